//! The service that GitHub's runner program talks to.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::shared::Shared;
use crate::machine::{RunnerError, StepReport};

/// How long a poll waits for a message.
const LONG_POLL: Duration = Duration::from_secs(50);
const MAX_BODY: usize = 4 * 1024 * 1024;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/oauth2/token", post(token))
        .route("/session", post(open_session).delete(close_session))
        .route("/message", get(message))
        .route("/acknowledge", post(acknowledge))
        .route("/run/acquirejob", post(acquire))
        .route("/run/renewjob", post(renew))
        .route("/run/completejob", post(complete))
        .route("/run/steps", post(step))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

fn refuse(e: &RunnerError) -> Response {
    let (status, kind) = e.status();
    let body = json!({"source": "actions-broker-listener", "statusCode": status, "errorKind": kind, "errorMessage": e.to_string()});
    (
        StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN),
        Json(body),
    )
        .into_response()
}

fn unauthorized() -> Response {
    (
        StatusCode::UNAUTHORIZED,
        Json(json!({"errorKind": "Unauthorized"})),
    )
        .into_response()
}

fn runner(shared: &Shared, headers: &HeaderMap) -> Option<u64> {
    let secret = headers
        .get("authorization")?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")?;
    shared.quietly(|w| w.runner_of_token(secret))
}

async fn token(State(shared): State<Arc<Shared>>, body: String) -> Response {
    let pairs = crate::machine::query_pairs(&body);
    let field = |name: &str| {
        pairs
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    };
    let kind_ok = field("client_assertion_type").is_some_and(|t| t.ends_with("jwt-bearer"));
    let made = field("client_assertion")
        .filter(|_| kind_ok)
        .and_then(|a| shared.quietly(|w| w.runner_token(a)));
    match made {
        Some((token, seconds)) => {
            Json(json!({"access_token": token, "token_type": "Bearer", "expires_in": seconds}))
                .into_response()
        }
        None => (
            StatusCode::BAD_REQUEST,
            Json(json!({"error": "invalid_client"})),
        )
            .into_response(),
    }
}

async fn open_session(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let Some(id) = runner(&shared, &headers) else {
        return unauthorized();
    };
    match Shared::with(&shared, |w| {
        w.runner_connect(id)
            .map(|s| (s, w.runner(id).map(|r| r.name.clone())))
    }) {
        Ok((session, name)) => {
            let agent = json!({"id": id, "name": name});
            Json(json!({"sessionId": session, "ownerName": "longshore-demo", "agent": agent}))
                .into_response()
        }
        Err(e) => refuse(&e),
    }
}

#[derive(Deserialize)]
struct SessionQuery {
    #[serde(rename = "sessionId")]
    session: String,
    #[serde(default)]
    status: String,
}

/// The session in the query, if it belongs to the caller.
fn own_session(shared: &Shared, headers: &HeaderMap, session: &str) -> Result<(), Box<Response>> {
    let id = runner(shared, headers).ok_or_else(|| Box::new(unauthorized()))?;
    if shared.quietly(|w| w.session_owner(session)) == Some(id) {
        Ok(())
    } else {
        Err(Box::new(refuse(&RunnerError::RunnerSessionInvalid)))
    }
}

async fn close_session(
    State(shared): State<Arc<Shared>>,
    Query(q): Query<SessionQuery>,
    headers: HeaderMap,
) -> Response {
    if let Err(r) = own_session(&shared, &headers, &q.session) {
        return *r;
    }
    match Shared::with(&shared, |w| w.runner_disconnect(&q.session)) {
        Ok(()) => Json(json!({})).into_response(),
        Err(e) => refuse(&e),
    }
}

async fn message(
    State(shared): State<Arc<Shared>>,
    Query(q): Query<SessionQuery>,
    headers: HeaderMap,
) -> Response {
    if let Err(r) = own_session(&shared, &headers, &q.session) {
        return *r;
    }
    let busy = q.status.eq_ignore_ascii_case("busy");
    let deadline = Instant::now() + LONG_POLL;
    let mut changes = shared.changes();
    // the first poll may bring the runner online, which others wait for
    let first = Shared::with(&shared, |w| w.runner_poll(&q.session, busy));
    let mut got = first;
    loop {
        match got {
            Err(e) => return refuse(&e),
            Ok(Some(m)) => return Json(shared.quietly(|w| w.broker_message(&m))).into_response(),
            Ok(None) => {}
        }
        loop {
            changes.borrow_and_update();
            if shared.is_ending() {
                return StatusCode::ACCEPTED.into_response();
            }
            if shared.quietly(|w| w.runner_has_message(&q.session)) {
                break;
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return StatusCode::ACCEPTED.into_response(),
            }
        }
        got = shared.quietly(|w| w.runner_poll(&q.session, busy));
    }
}

fn text(body: &Value, names: &[&str]) -> String {
    names
        .iter()
        .find_map(|n| body.get(*n).and_then(Value::as_str))
        .unwrap_or_default()
        .to_owned()
}

async fn acknowledge(
    State(shared): State<Arc<Shared>>,
    Query(q): Query<SessionQuery>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if let Err(r) = own_session(&shared, &headers, &q.session) {
        return *r;
    }
    let request = text(&body, &["runnerRequestId"]);
    match shared.quietly(|w| w.runner_acknowledge(&q.session, &request)) {
        Ok(()) => Json(json!({})).into_response(),
        Err(e) => refuse(&e),
    }
}

/// The open session of the caller.
fn session_of(shared: &Shared, headers: &HeaderMap) -> Result<String, Box<Response>> {
    let id = runner(shared, headers).ok_or_else(|| Box::new(unauthorized()))?;
    shared
        .quietly(|w| w.session_of_runner(id))
        .ok_or_else(|| Box::new(refuse(&RunnerError::RunnerSessionInvalid)))
}

async fn acquire(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let session = match session_of(&shared, &headers) {
        Ok(s) => s,
        Err(r) => return *r,
    };
    let request = text(&body, &["jobMessageId", "jobId"]);
    match Shared::with(&shared, |w| w.runner_acquire(&session, &request)) {
        Ok(job) => Json(job).into_response(),
        Err(e) => refuse(&e),
    }
}

async fn renew(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let session = match session_of(&shared, &headers) {
        Ok(s) => s,
        Err(r) => return *r,
    };
    match shared.quietly(|w| w.runner_renew(&session, &text(&body, &["jobId"]))) {
        Ok(until) => Json(json!({"lockedUntil": crate::machine::iso(until)})).into_response(),
        Err(e) => refuse(&e),
    }
}

async fn complete(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let session = match session_of(&shared, &headers) {
        Ok(s) => s,
        Err(r) => return *r,
    };
    // GitHub's words for results differ from those of its REST interface
    let conclusion = match text(&body, &["conclusion"]).to_ascii_lowercase().as_str() {
        "succeeded" | "success" => "success",
        "canceled" | "cancelled" => "cancelled",
        "skipped" => "skipped",
        _ => "failure",
    };
    match Shared::with(&shared, |w| {
        w.runner_complete(&session, &text(&body, &["jobId"]), conclusion)
    }) {
        Ok(()) => Json(json!({})).into_response(),
        Err(e) => refuse(&e),
    }
}

#[derive(Deserialize)]
struct StepBody {
    #[serde(rename = "jobId")]
    job: String,
    #[serde(flatten)]
    report: StepReport,
}

async fn step(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(body): Json<StepBody>,
) -> Response {
    let session = match session_of(&shared, &headers) {
        Ok(s) => s,
        Err(r) => return *r,
    };
    match Shared::with(&shared, |w| {
        w.runner_step(&session, &body.job, &body.report)
    }) {
        Ok(()) => Json(json!({})).into_response(),
        Err(e) => refuse(&e),
    }
}
