//! A scripted GitHub for one test: routes answer from a closure, requests are kept.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode},
    response::Response,
};
use scheduler_core::model::{CredentialName, RunnerName, Scope};
use scheduler_github::{
    ApiUrl, Config, Credential, CredentialKind, GitHub, Registration, SecretSource,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A request as the fake saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    /// As written on the wire: absolute through a proxy.
    pub(crate) absolute: bool,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// What the fake answers.
#[derive(Clone, Debug)]
pub(crate) struct Say {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
    pub(crate) delay: Duration,
}

impl Say {
    pub(crate) fn new(status: u16, body: Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body,
            delay: Duration::ZERO,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn late(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

type Script = Box<dyn Fn(&Seen) -> Say + Send + Sync>;

struct Shared {
    script: Script,
    seen: Mutex<VecDeque<Seen>>,
}

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fake {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script)
    }

    pub(crate) fn on<L>(listener: L, script: impl Fn(&Seen) -> Say + Send + Sync + 'static) -> Self
    where
        L: axum::serve::Listener<Addr = SocketAddr>,
    {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            address,
            shared,
            server,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().iter().cloned().collect()
    }

    pub(crate) fn count(&self, method: &Method, part: &str) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.method == method && seen.target.contains(part))
            .count()
    }

    /// A configuration with one personal token that talks to this fake.
    pub(crate) fn config(&self) -> Config {
        Config {
            api_url: ApiUrl::parse(&self.url()).unwrap(),
            credentials: vec![token("main", TOKEN)],
            call_timeout: Duration::from_secs(5),
            ..Config::default()
        }
    }

    pub(crate) fn github(&self) -> GitHub {
        GitHub::connect(self.config()).unwrap()
    }
}

pub(crate) const TOKEN: &str = "ghp_secretsecretsecret";

pub(crate) fn token(name: &str, value: &str) -> Credential {
    Credential {
        name: CredentialName::new(name),
        kind: CredentialKind::Token(SecretSource::Value {
            origin: "test".into(),
            value: value.to_owned().into(),
        }),
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let seen = Seen {
        method: parts.method,
        target: parts
            .uri
            .path_and_query()
            .map(ToString::to_string)
            .unwrap_or_default(),
        absolute: parts.uri.authority().is_some(),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    };
    let say = (shared.script)(&seen);
    shared.seen.lock().unwrap().push_back(seen);
    tokio::time::sleep(say.delay).await;
    let mut response = Response::builder().status(StatusCode::from_u16(say.status).unwrap());
    for (name, value) in &say.headers {
        response = response.header(name, value);
    }
    let body = if matches!(say.status, 204 | 304) {
        Body::empty()
    } else {
        Body::from(serde_json::to_vec(&say.body).unwrap())
    };
    response.body(body).unwrap()
}

pub(crate) fn org() -> Scope {
    Scope::Organization {
        login: "acme".into(),
    }
}

pub(crate) fn registration(name: &str) -> Registration {
    Registration {
        runner: RunnerName::new(name),
        scope: org(),
        credential: CredentialName::new("main"),
        labels: vec!["self-hosted".into(), "linux".into()],
        runner_group: None,
        work_folder: "_work".into(),
    }
}

pub(crate) fn jit(id: u64, name: &str) -> Say {
    Say::new(
        201,
        json!({"runner": {"id": id, "name": name, "os": "unknown", "status": "offline", "busy": false, "labels": []},
               "encoded_jit_config": "c2VjcmV0"}),
    )
}

pub(crate) fn runner(id: u64, name: &str) -> Value {
    json!({"id": id, "name": name, "os": "linux", "status": "online", "busy": false, "labels": []})
}

pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}
