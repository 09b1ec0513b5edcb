//! JSON over plain HTTP on loopback, with a deadline on every call.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// Longest a call may take unless the caller says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer read: the simulator's request log is the biggest one.
const ANSWER_MAX: usize = 64 << 20;

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Http {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Http {
    /// A client of `base`, such as `http://127.0.0.1:8080`.
    pub fn new(base: impl Into<String>) -> Self {
        Self {
            base: base.into().trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// The server's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET; any status but 2xx is an error.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, None).await
    }

    /// POST a JSON body; any status but 2xx is an error.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// PUT a JSON body; any status but 2xx is an error.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(Method::PUT, path, Some(body)).await
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let (status, answer) = self
            .raw(
                method.clone(),
                path,
                &[("content-type", "application/json")],
                bytes,
                PATIENCE,
            )
            .await?;
        if !status.is_success() {
            bail!(
                "{method} {}{path}: {status}: {}",
                self.base,
                String::from_utf8_lossy(&answer)
            );
        }
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).with_context(|| format!("{method} {path}: no JSON"))
    }

    /// Any request: status and body as they came.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).context("build request")?;
        let call = async {
            let answer = self.client.request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_MAX)
                .collect()
                .await
                .map_err(|e| anyhow::anyhow!("read answer: {e}"))?;
            Ok::<_, anyhow::Error>((status, body.to_bytes()))
        };
        tokio::time::timeout(patience, call)
            .await
            .with_context(|| format!("{method} {}{path}: no answer in {patience:?}", self.base))?
            .with_context(|| format!("{method} {}{path}", self.base))
    }
}
