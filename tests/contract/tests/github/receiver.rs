//! A webhook listener around the production crate: what a scheduler's would do.

use std::net::SocketAddr;

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use scheduler_core::input::Input;
use scheduler_github::{GitHub, webhook::Delivery};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};

use crate::world::{DEADLINE, World};

pub(crate) const SECRET: &str = "contract-webhook-secret";

pub(crate) struct Receiver {
    address: SocketAddr,
    inputs: mpsc::Receiver<Vec<Input>>,
    server: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Shared = (GitHub, mpsc::Sender<Vec<Input>>);

async fn receive(
    State((github, told)): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    match github
        .receive(Delivery::from_request(&headers, &body))
        .await
    {
        Ok(inputs) => {
            // Nobody listens any more when the test is over.
            let _ = told.send(inputs).await;
            StatusCode::ACCEPTED
        }
        Err(_) => StatusCode::UNAUTHORIZED,
    }
}

impl Receiver {
    pub(crate) async fn start(github: GitHub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, github)
    }

    pub(crate) fn on(listener: TcpListener, github: GitHub) -> Self {
        let address = listener.local_addr().unwrap();
        let (told, inputs) = mpsc::channel(1_024);
        let router = Router::new()
            .route("/webhooks/github", post(receive))
            .with_state((github, told));
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            address,
            inputs,
            server,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/webhooks/github", self.address)
    }

    /// A hook of this repository or organisation that comes here; its id.
    pub(crate) async fn hook(&self, world: &World, target: Value) -> u64 {
        let mut hook = json!({"url": self.url(), "secret": SECRET, "events": ["workflow_job"], "content_type": "json"});
        for (key, value) in target.as_object().unwrap() {
            hook[key] = value.clone();
        }
        world.post("hooks", hook).await["id"].as_u64().unwrap()
    }

    /// What the next delivery told.
    pub(crate) async fn next(&mut self) -> Vec<Input> {
        let next = timeout(DEADLINE, self.inputs.recv()).await;
        next.expect("no delivery came").expect("the listener ended")
    }
}
