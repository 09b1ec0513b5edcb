//! A scheduler in this process, restartable on one store, and plain HTTP to talk to it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use longshore_proto::v1::fleet_service_client::FleetServiceClient;
use longshore_scheduler::{
    app::{self, Listeners, Running, Wiring},
    config::{Arguments, Config, Sources, WatchSettings},
    driver::Recovered,
    ports::Store,
    web::WebhookBounds,
};
use scheduler_store::{AuditQuery, AuditRow, Memory};
use tonic::{
    Request as Call, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::{
    fake_github::{FakeGitHub, SECRET},
    joined::Joined,
};

/// Nothing here takes longer unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) store: Memory,
    pub(crate) github: FakeGitHub,
    pub(crate) bounds: WebhookBounds,
    folder: tempfile::TempDir,
    flags: Vec<String>,
    joined: Joined,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            store: Memory::new("f1"),
            github: FakeGitHub::default(),
            bounds: WebhookBounds::default(),
            folder: tempfile::tempdir().expect("a folder"),
            flags: Vec::new(),
            joined: Joined::default(),
        }
    }

    pub(crate) fn with_flags(mut self, flags: &[&str]) -> Self {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self
    }

    fn config(&self, stored: Option<&WatchSettings>) -> Config {
        let state = self.folder.path().display().to_string();
        let fixed = [
            "longshore-scheduler",
            "--state-dir",
            &state,
            "--api-listen",
            "127.0.0.1:0",
            "--node-listen",
            "127.0.0.1:0",
            "--webhook-listen",
            "127.0.0.1:0",
        ];
        let all = fixed
            .iter()
            .map(|flag| (*flag).to_owned())
            .chain(self.flags.clone());
        let arguments = Arguments::parse(all).expect("arguments parse");
        Config::resolve(&Sources {
            arguments: &arguments,
            file: None,
            environment: &Default::default(),
            stored,
            credentials: &Default::default(),
        })
        .expect("a valid configuration")
    }

    /// Starts a scheduler on this world's store.
    pub(crate) async fn start(&self) -> Scheduler {
        let stored = self
            .store
            .setting(longshore_scheduler::api::fleet::writes::SETTINGS_KEY)
            .await
            .expect("readable")
            .map(|text| serde_json::from_str::<WatchSettings>(&text).expect("settings"));
        let config = self.config(stored.as_ref());
        let listeners = Listeners::bind(&config).await.expect("free ports");
        let recovered = Recovered::load(&self.store).await.expect("loads");
        let running = app::start(Wiring {
            config,
            listeners,
            store: Arc::new(self.store.clone()),
            recovered,
            github: self.github.clone(),
            webhook_bounds: self.bounds,
            stored_settings: stored.is_some(),
        })
        .await
        .expect("starts");
        // Now: the world and its folder may be gone before the scheduler is.
        let token = std::fs::read_to_string(&running.token_file).expect("a token file");
        let token = token.trim().to_owned();
        Scheduler {
            running,
            authority: std::fs::read_to_string(self.folder.path().join("ca.pem"))
                .expect("the authority"),
            joined: self.joined.clone(),
            store: self.store.clone(),
            token,
        }
    }
}

pub(crate) struct Scheduler {
    pub(crate) running: Running,
    /// PEM.
    pub(crate) authority: String,
    pub(crate) joined: Joined,
    pub(crate) store: Memory,
    token: String,
}

impl Scheduler {
    /// As whoever holds this host's token.
    pub(crate) async fn fleet(&self) -> FleetServiceClient<Authorized> {
        let channel = channel(self.running.addresses.api).await;
        FleetServiceClient::with_interceptor(channel, self.bearer())
    }

    /// The audit log, newest first.
    pub(crate) async fn audit(&self) -> Vec<AuditRow> {
        let rows = self.store.audit(AuditQuery::default()).await;
        rows.expect("readable")
    }

    pub(crate) fn bearer(&self) -> Bearer {
        Bearer(self.token())
    }

    pub(crate) fn token(&self) -> String {
        self.token.clone()
    }

    pub(crate) fn webhooks(&self) -> SocketAddr {
        self.running.addresses.webhooks
    }

    /// Sends a signed workflow_job delivery.
    pub(crate) async fn deliver(&self, body: &serde_json::Value) -> StatusCode {
        deliver_to(self.webhooks(), body).await.expect("an answer")
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let url = format!("http://{}{path}", self.running.addresses.api);
        let bearer = format!("Bearer {}", self.token());
        let headers = [("authorization", bearer.as_str())];
        send("GET", &url, &headers, Bytes::new()).await
    }

    /// The value of a metric's line, 0 when it is not there.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        text.lines()
            .find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
            .unwrap_or(0.0)
    }

    pub(crate) async fn shutdown(self) {
        tokio::time::timeout(PATIENCE, self.running.shutdown())
            .await
            .expect("ends in time");
    }

    pub(crate) async fn kill(self) {
        tokio::time::timeout(PATIENCE, self.running.kill())
            .await
            .expect("dies in time");
    }
}

/// A connection on which every call shows a token.
pub(crate) type Authorized = InterceptedService<Channel, Bearer>;

/// Shows a token.
#[derive(Clone)]
pub(crate) struct Bearer(pub(crate) String);

impl Interceptor for Bearer {
    fn call(&mut self, mut call: Call<()>) -> Result<Call<()>, Status> {
        let value = MetadataValue::try_from(format!("Bearer {}", self.0)).expect("a header");
        call.metadata_mut().insert("authorization", value);
        Ok(call)
    }
}

pub(crate) async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}"))
        .expect("a URL")
        .connect()
        .await
        .expect("connects")
}

/// A queued job for an x64 runner.
pub(crate) fn queued(id: u64) -> serde_json::Value {
    serde_json::json!({
        "id": id, "name": "build", "status": "queued",
        "labels": ["self-hosted", "linux", "x64"],
    })
}

pub(crate) fn sign(body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = hmac::sign(&key, body);
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

/// Sends a signed workflow_job delivery; `None` when nobody answers.
pub(crate) async fn deliver_to(
    address: SocketAddr,
    body: &serde_json::Value,
) -> Option<StatusCode> {
    let body = body.to_string();
    let signature = sign(body.as_bytes());
    let headers = [
        ("x-github-event", "workflow_job"),
        ("x-github-delivery", "d-1"),
        ("x-hub-signature-256", signature.as_str()),
    ];
    let url = format!("http://{address}/webhooks/github");
    let answer = try_send("POST", &url, &headers, body.into()).await;
    answer.map(|(status, _)| status)
}

pub(crate) async fn send(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> (StatusCode, String) {
    try_send(method, url, headers, body)
        .await
        .expect("an answer")
}

async fn try_send(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Option<(StatusCode, String)> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).expect("a request");
    let exchange = async {
        let response = client.request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Some((status, text))
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("answered in time")
}

/// Waits until something holds. Polls a condition nobody announces.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what} did not come about"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
