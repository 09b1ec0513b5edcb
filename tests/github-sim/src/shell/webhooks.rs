//! Sends deliveries: one attempt, ten seconds, never again by itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::machine::{DeliveryOutcome, Outgoing};

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 * 1024;

pub(super) struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Sender {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(TIMEOUT));
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    pub(super) async fn send(&self, delivery: Outgoing) -> DeliveryOutcome {
        let begun = Instant::now();
        let duration = || begun.elapsed().as_millis() as u64;
        let mut request = http::Request::builder().method("POST").uri(&delivery.url);
        for (name, value) in &delivery.headers {
            request = request.header(name, value);
        }
        let request = match request.body(Full::new(Bytes::copy_from_slice(&delivery.body))) {
            Ok(r) => r,
            Err(e) => {
                return DeliveryOutcome::Failed {
                    why: format!("invalid URL: {e}"),
                    duration_ms: duration(),
                };
            }
        };
        let exchange = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|_| "failed to connect to host".to_owned())?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await;
            let body = body
                .map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned())
                .unwrap_or_default();
            Ok::<_, String>((status, body))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok((status, body))) => DeliveryOutcome::Answered {
                status,
                duration_ms: duration(),
                body,
            },
            Ok(Err(why)) => DeliveryOutcome::Failed {
                why,
                duration_ms: duration(),
            },
            Err(_) => DeliveryOutcome::Failed {
                why: "timed out".into(),
                duration_ms: duration(),
            },
        }
    }
}
