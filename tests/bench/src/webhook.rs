//! Signed webhooks of a chosen size, sent over one kept connection.

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// The published form of a self-hosted `workflow_job` event.
const TEMPLATE: &str =
    include_str!("../../github-sim/data/webhooks/made/workflow_job.queued.selfhosted.json");

/// A sender that plays GitHub's side of one hook.
pub(crate) struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    key: hmac::Key,
}

impl Sender {
    pub(crate) fn new(url: String, secret: &[u8]) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            url,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
        }
    }

    /// Sends one event and returns when the receiver answered; anything but 202 is an error.
    pub(crate) async fn send(&self, body: Bytes) -> Result<()> {
        let signature = hex::encode(hmac::sign(&self.key, &body));
        let request = hyper::Request::post(&self.url)
            .header("content-type", "application/json")
            .header("user-agent", "GitHub-Hookshot/bench")
            .header("x-github-event", "workflow_job")
            .header("x-github-delivery", delivery())
            .header("x-hub-signature-256", format!("sha256={signature}"))
            .body(Full::new(body))?;
        let answer = self.client.request(request).await.context("send webhook")?;
        let status = answer.status();
        let said = answer.into_body().collect().await?.to_bytes();
        ensure!(
            status == 202,
            "webhook answered {status}: {}",
            String::from_utf8_lossy(&said)
        );
        Ok(())
    }
}

fn delivery() -> String {
    let bytes: [u8; 16] = rand::random();
    let text = hex::encode(bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}

/// One job as GitHub would describe it.
pub(crate) struct JobEvent<'a> {
    pub(crate) id: u64,
    pub(crate) owner: &'a str,
    pub(crate) repo: &'a str,
    pub(crate) repo_id: u64,
    pub(crate) action: &'a str,
    pub(crate) status: &'a str,
    pub(crate) conclusion: Option<&'a str>,
    pub(crate) labels: &'a [&'a str],
    pub(crate) runner: Option<&'a str>,
}

impl JobEvent<'_> {
    /// The event's body, padded to `size` bytes when it is shorter.
    pub(crate) fn body(&self, size: usize) -> Bytes {
        let mut event: Value = serde_json::from_str(TEMPLATE).expect("published example is JSON");
        event["action"] = json!(self.action);
        let now = jiff::Timestamp::now().to_string();
        let job = &mut event["workflow_job"];
        job["id"] = json!(self.id);
        job["run_id"] = json!(self.id);
        job["status"] = json!(self.status);
        job["conclusion"] = json!(self.conclusion);
        job["labels"] = json!(self.labels);
        job["created_at"] = json!(now);
        job["started_at"] = json!(now);
        job["runner_name"] = json!(self.runner);
        job["runner_id"] = json!(self.runner.map(|_| 1));
        let repository = &mut event["repository"];
        repository["id"] = json!(self.repo_id);
        repository["name"] = json!(self.repo);
        repository["full_name"] = json!(format!("{}/{}", self.owner, self.repo));
        repository["private"] = json!(true);
        repository["owner"]["login"] = json!(self.owner);
        if let Some(organization) = event.get_mut("organization") {
            organization["login"] = json!(self.owner);
        }
        let short = event.to_string().len();
        if short < size {
            event["repository"]["description"] = json!("x".repeat(size - short));
        }
        Bytes::from(event.to_string())
    }
}
