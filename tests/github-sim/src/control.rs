//! A small client of the control API, for tests and the demo.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

const MAX_ANSWER: usize = 512 * 1024 * 1024;
/// On top of what a wait may take.
const SLACK: Duration = Duration::from_secs(30);

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{method} {path}: {why}; is github-sim running?")]
    Transport {
        method: String,
        path: String,
        why: String,
    },
    #[error("{method} {path} answered {status}: {body}")]
    Refused {
        method: String,
        path: String,
        status: u16,
        body: String,
    },
}

/// Calls below `/_sim`.
#[derive(Debug, Clone)]
pub struct Control {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Control {
    /// `base` is what `Server::control_url` or the ready line says.
    pub fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            base: base.trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<(u16, Value), ControlError> {
        let failed = |why: String| ControlError::Transport {
            method: method.into(),
            path: path.into(),
            why,
        };
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{}/{}", self.base, path.trim_start_matches('/')))
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .map_err(|e| failed(e.to_string()))?;
        let exchange = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|e| e.to_string())?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| e.to_string())?;
            Ok::<_, String>((status, body.to_bytes()))
        };
        let (status, bytes) = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| failed(format!("no answer within {} s", limit.as_secs())))?
            .map_err(failed)?;
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok((status, value))
    }

    async fn checked(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ControlError> {
        match self.send(method, path, body, SLACK).await? {
            (200..=299, v) => Ok(v),
            (status, v) => Err(ControlError::Refused {
                method: method.into(),
                path: path.into(),
                status,
                body: v.to_string(),
            }),
        }
    }

    pub async fn get(&self, path: &str) -> Result<Value, ControlError> {
        self.checked("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ControlError> {
        self.checked("POST", path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, ControlError> {
        self.checked("PUT", path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, ControlError> {
        self.checked("PATCH", path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, ControlError> {
        self.checked("DELETE", path, None).await
    }

    /// Waits for a condition (README.md, section 3). `Ok(false)` with the state when the deadline came first.
    pub async fn wait(
        &self,
        until: &Value,
        timeout: Duration,
    ) -> Result<(bool, Value), ControlError> {
        let body = json!({"until": until, "timeout_ms": timeout.as_millis() as u64});
        match self
            .send("POST", "wait", Some(&body), timeout + SLACK)
            .await?
        {
            (200, v) => Ok((true, v)),
            (408, v) => Ok((false, v)),
            (status, v) => Err(ControlError::Refused {
                method: "POST".into(),
                path: "wait".into(),
                status,
                body: v.to_string(),
            }),
        }
    }
}
