//! The control API below `/_sim`; README.md, section 3.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::keys;
use super::shared::Shared;
use crate::machine::{
    AppSpec, Faults, ForeignRunnerSpec, GroupSpec, HookSpec, InstallationSpec, JobSpec, Limits,
    OwnerSpec, RepoSpec, RunSpec, SimError, TokenSpec, Until, World, iso,
};

/// Whole matrices travel in one body.
const MAX_BODY: usize = 16 * 1024 * 1024;
const MAX_WAIT: Duration = Duration::from_secs(600);

type Sim = State<Arc<Shared>>;

/// An error as JSON.
struct Refused(SimError);

impl From<SimError> for Refused {
    fn from(e: SimError) -> Self {
        Self(e)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0 {
            SimError::NotFound { .. } => StatusCode::NOT_FOUND,
            SimError::Exists { .. } => StatusCode::CONFLICT,
            SimError::Invalid(_) => StatusCode::BAD_REQUEST,
        };
        (status, Json(json!({"error": self.0.to_string()}))).into_response()
    }
}

type Answer = Result<Json<Value>, Refused>;

fn invalid(text: impl Into<String>) -> Refused {
    Refused(SimError::Invalid(text.into()))
}

fn missing(what: &'static str, id: u64) -> Refused {
    Refused(SimError::NotFound {
        what,
        name: id.to_string(),
    })
}

fn to_value(v: impl serde::Serialize) -> Json<Value> {
    Json(serde_json::to_value(v).unwrap_or(Value::Null))
}

/// A body as JSON; what is wrong with it is told with its place.
fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    let text: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(text).map_err(|e| invalid(format!("the body: {e}")))
}

pub(super) fn router(shared: Arc<Shared>) -> Router<Arc<Shared>> {
    Router::new()
        .route("/health", get(health))
        .route("/owners", post(owners))
        .route("/repos", post(repos))
        .route("/repos/rename", post(rename))
        .route("/apps", post(apps))
        .route("/installations", post(installations))
        .route("/installations/{id}/{what}", post(installation))
        .route("/tokens", post(tokens))
        .route("/tokens/revoke", post(revoke))
        .route("/hooks", post(hooks))
        .route("/groups", post(groups))
        .route("/runs", post(runs))
        .route("/runs/{id}", get(run))
        .route("/runs/{id}/{what}", post(change_run))
        .route("/jobs", post(queue_job).get(jobs))
        .route("/jobs/{id}", get(job))
        .route("/jobs/{id}/start", post(start_job))
        .route("/jobs/{id}/complete", post(complete_job))
        .route("/runners", get(runners).post(add_runner))
        .route("/runners/history", get(history))
        .route("/runners/{id}/{what}", post(switch_runner))
        .route("/faults", get(faults).put(put_faults).patch(patch_faults))
        .route("/limits", get(limits).put(put_limits))
        .route("/clock", post(clock))
        .route("/requests", get(requests).delete(clear_requests))
        .route("/deliveries", get(deliveries))
        .route("/wait", post(wait))
        .route("/summary", get(summary))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn health(State(s): Sim) -> Json<Value> {
    let now = s.quietly(|w| w.now_ms());
    let clock = if s.is_virtual() { "virtual" } else { "real" };
    Json(json!({"ok": true, "now": iso(now), "now_ms": now, "clock": clock}))
}

async fn owners(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let spec: OwnerSpec = parse(&body)?;
    Ok(Json(
        json!({"id": Shared::with(&s, |w| w.add_owner(spec))?}),
    ))
}

async fn repos(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let spec: RepoSpec = parse(&body)?;
    Shared::with(&s, |w| {
        let id = w.add_repo(spec)?;
        Ok(Json(json!({"id": id, "full_name": w.repository_name(id)})))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rename {
    repository: String,
    name: String,
}

async fn rename(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let r: Rename = parse(&body)?;
    Shared::with(&s, |w| w.rename_repo(&r.repository, &r.name))?;
    Ok(Json(json!({})))
}

async fn apps(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let mut spec: AppSpec = parse(&body)?;
    let key = tokio::task::spawn_blocking(keys::app_key)
        .await
        .ok()
        .flatten();
    let key = key.ok_or_else(|| invalid("no RSA key could be made"))?;
    spec.public_key = key.public_der;
    let slug = spec.slug.clone();
    let (id, client_id) = Shared::with(&s, |w| w.add_app(spec))?;
    Ok(Json(
        json!({"id": id, "client_id": client_id, "slug": slug, "private_key": key.pem}),
    ))
}

async fn installations(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let spec: InstallationSpec = parse(&body)?;
    Ok(Json(
        json!({"id": Shared::with(&s, |w| w.add_installation(spec))?}),
    ))
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Repositories {
    add: Vec<String>,
    remove: Vec<String>,
}

async fn installation(
    State(s): Sim,
    Path((id, what)): Path<(u64, String)>,
    body: axum::body::Bytes,
) -> Answer {
    let change: Repositories = parse(&body)?;
    Shared::with(&s, |w| match what.as_str() {
        "suspend" => w.suspend_installation(id, true),
        "unsuspend" => w.suspend_installation(id, false),
        "delete" => w.delete_installation(id),
        "repositories" => w.change_installation_repositories(id, &change.add, &change.remove),
        _ => Err(SimError::Invalid(format!(
            "`{what}` is not suspend, unsuspend, delete or repositories"
        ))),
    })?;
    Ok(Json(json!({})))
}

async fn tokens(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let spec: TokenSpec = parse(&body)?;
    Ok(Json(
        json!({"token": Shared::with(&s, |w| w.add_token(spec))?}),
    ))
}

#[derive(Deserialize)]
struct Revoke {
    token: String,
}

async fn revoke(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let r: Revoke = parse(&body)?;
    Ok(Json(
        json!({"revoked": Shared::with(&s, |w| w.revoke_token(&r.token))}),
    ))
}

async fn hooks(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let spec: HookSpec = parse(&body)?;
    Ok(Json(json!({"id": Shared::with(&s, |w| w.add_hook(spec))?})))
}

async fn groups(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let spec: GroupSpec = parse(&body)?;
    Ok(Json(
        json!({"id": Shared::with(&s, |w| w.add_group(spec))?}),
    ))
}

fn jobs_of(w: &World, run: u64) -> Vec<Value> {
    let ids = w.run(run).map(|r| r.jobs().to_vec()).unwrap_or_default();
    ids.iter()
        .filter_map(|id| w.job(*id))
        .map(|j| json!({"id": j.id, "name": j.name}))
        .collect()
}

async fn runs(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let spec: RunSpec = parse(&body)?;
    Shared::with(&s, |w| {
        let id = w.queue_run(&spec)?;
        Ok(Json(json!({"run_id": id, "jobs": jobs_of(w, id)})))
    })
}

async fn queue_job(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let mut all: serde_json::Map<String, Value> = parse(&body)?;
    let repository = match all.remove("repository") {
        Some(Value::String(r)) => r,
        _ => return Err(invalid("the body needs `repository`: \"owner/name\"")),
    };
    let job: JobSpec =
        serde_json::from_value(Value::Object(all)).map_err(|e| invalid(format!("the job: {e}")))?;
    Shared::with(&s, |w| {
        let id = w.queue_run(&RunSpec::one(&repository, job))?;
        Ok(Json(
            json!({"run_id": id, "job_id": w.run(id).and_then(|r| r.jobs().first().copied())}),
        ))
    })
}

async fn run(State(s): Sim, Path(id): Path<u64>) -> Answer {
    s.quietly(|w| w.run_view(id))
        .map(to_value)
        .ok_or_else(|| missing("run", id))
}

async fn change_run(State(s): Sim, Path((id, what)): Path<(u64, String)>) -> Answer {
    Shared::with(&s, |w| -> Result<(), SimError> {
        match what.as_str() {
            "cancel" | "force-cancel" => {
                if !w.cancel_run(id, what == "force-cancel")? {
                    return Err(SimError::Invalid(format!("run {id} is completed")));
                }
                Ok(())
            }
            "rerun" => w.rerun(id, false, None),
            "rerun-failed" => w.rerun(id, true, None),
            "release" => w.release_run(id),
            "approve" => w.approve_run(id).map(|_| ()),
            _ => Err(SimError::Invalid(format!(
                "`{what}` is not cancel, force-cancel, rerun, rerun-failed, release or approve"
            ))),
        }
    })?;
    s.quietly(|w| w.run_view(id))
        .map(to_value)
        .ok_or_else(|| missing("run", id))
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JobFilter {
    repository: Option<String>,
    status: Option<String>,
}

async fn jobs(State(s): Sim, Query(q): Query<JobFilter>) -> Json<Value> {
    let all = s.quietly(|w| {
        let ids: Vec<u64> = w.jobs().map(|j| j.id).collect();
        ids.into_iter()
            .filter_map(|id| w.job_view(id))
            .collect::<Vec<_>>()
    });
    to_value(
        all.into_iter()
            .filter(|j| q.repository.as_ref().is_none_or(|r| *r == j.repository))
            .filter(|j| q.status.as_ref().is_none_or(|x| x == j.status))
            .collect::<Vec<_>>(),
    )
}

async fn job(State(s): Sim, Path(id): Path<u64>) -> Answer {
    s.quietly(|w| w.job_view(id))
        .map(to_value)
        .ok_or_else(|| missing("job", id))
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Start {
    runner: Option<String>,
}

async fn start_job(State(s): Sim, Path(id): Path<u64>, body: axum::body::Bytes) -> Answer {
    let start: Start = parse(&body)?;
    Shared::with(&s, |w| w.start_job(id, start.runner.as_deref()))?;
    s.quietly(|w| w.job_view(id))
        .map(to_value)
        .ok_or_else(|| missing("job", id))
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Complete {
    conclusion: Option<String>,
}

async fn complete_job(State(s): Sim, Path(id): Path<u64>, body: axum::body::Bytes) -> Answer {
    let end: Complete = parse(&body)?;
    Shared::with(&s, |w| {
        w.complete_job(id, end.conclusion.as_deref().unwrap_or("success"))
    })?;
    s.quietly(|w| w.job_view(id))
        .map(to_value)
        .ok_or_else(|| missing("job", id))
}

async fn runners(State(s): Sim) -> Json<Value> {
    to_value(s.quietly(|w| {
        let ids: Vec<u64> = w.runners().map(|r| r.id).collect();
        ids.into_iter()
            .filter_map(|id| w.runner_view(id))
            .collect::<Vec<_>>()
    }))
}

async fn history(State(s): Sim) -> Json<Value> {
    to_value(s.quietly(|w| {
        let ids: Vec<u64> = w.registrations_ever().map(|r| r.id).collect();
        ids.into_iter()
            .filter_map(|id| w.runner_view(id))
            .collect::<Vec<_>>()
    }))
}

async fn add_runner(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let spec: ForeignRunnerSpec = parse(&body)?;
    Ok(Json(
        json!({"id": Shared::with(&s, |w| w.add_foreign_runner(&spec))?}),
    ))
}

async fn switch_runner(State(s): Sim, Path((id, what)): Path<(u64, String)>) -> Answer {
    let online = match what.as_str() {
        "online" => true,
        "offline" => false,
        _ => return Err(invalid(format!("`{what}` is not online or offline"))),
    };
    Shared::with(&s, |w| w.runner_switch(id, online))?;
    s.quietly(|w| w.runner_view(id))
        .map(to_value)
        .ok_or_else(|| missing("runner", id))
}

async fn faults(State(s): Sim) -> Json<Value> {
    s.quietly(|w| Json(json!({"faults": w.faults(), "fired": w.faults_fired()})))
}

async fn put_faults(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let f: Faults = parse(&body)?;
    Shared::with(&s, |w| w.set_faults(f));
    Ok(faults(State(s)).await)
}

async fn patch_faults(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let change: serde_json::Map<String, Value> = parse(&body)?;
    let mut now = s
        .quietly(|w| serde_json::to_value(w.faults()))
        .unwrap_or(Value::Null);
    if let Some(m) = now.as_object_mut() {
        m.extend(change);
    }
    let f: Faults = serde_json::from_value(now).map_err(|e| invalid(format!("the faults: {e}")))?;
    Shared::with(&s, |w| w.set_faults(f));
    Ok(faults(State(s)).await)
}

async fn limits(State(s): Sim) -> Json<Value> {
    to_value(s.quietly(|w| w.limits().clone()))
}

async fn put_limits(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let l: Limits = parse(&body)?;
    Shared::with(&s, |w| w.set_limits(l));
    Ok(limits(State(s)).await)
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct ClockChange {
    mode: Option<String>,
    advance_ms: Option<u64>,
    set_ms: Option<u64>,
}

async fn clock(State(s): Sim, body: axum::body::Bytes) -> Answer {
    let c: ClockChange = parse(&body)?;
    match c.mode.as_deref() {
        None => {}
        Some("real") => s.set_virtual(false),
        Some("virtual") => s.set_virtual(true),
        Some(other) => {
            return Err(invalid(format!(
                "the clock is real or virtual, not `{other}`"
            )));
        }
    }
    if (c.advance_ms.is_some() || c.set_ms.is_some()) && !s.is_virtual() {
        return Err(invalid(
            "only a virtual clock can be moved: send \"mode\": \"virtual\"",
        ));
    }
    let now = Shared::with(&s, |w| {
        let target = c.set_ms.unwrap_or(w.now_ms()) + c.advance_ms.unwrap_or(0);
        w.advance(target);
        w.now_ms()
    });
    Ok(Json(json!({"now_ms": now, "now": iso(now)})))
}

async fn requests(State(s): Sim) -> Json<Value> {
    s.quietly(|w| {
        let log = w.requests();
        let by: Vec<Value> = log
            .counts
            .iter()
            .map(|((m, r, st), n)| json!({"method": m, "route": r, "status": st, "count": n}))
            .collect();
        Json(json!({
            "total": log.total(),
            "not_modified": log.not_modified(),
            "by_endpoint": by,
            "entries": log.entries,
        }))
    })
}

async fn clear_requests(State(s): Sim) -> Json<Value> {
    s.quietly(World::clear_requests);
    Json(json!({}))
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WithPayload {
    payload: Option<String>,
}

async fn deliveries(State(s): Sim, Query(q): Query<WithPayload>) -> Json<Value> {
    let bodies = q.payload.is_some();
    s.quietly(|w| {
        let all: Vec<Value> = w
            .deliveries()
            .map(|d| {
                let mut v = json!({
                    "id": d.id, "guid": d.guid, "hook_id": d.hook, "event": d.event, "action": d.action,
                    "job_id": d.job, "status": d.status, "status_code": d.status_code, "redelivery": d.redelivery,
                    "created_ms": d.created_ms, "sent_at_ms": d.sent_ms, "duration_ms": d.duration_ms,
                });
                if bodies {
                    v["payload"] = serde_json::from_slice(&d.body).unwrap_or(Value::Null);
                }
                v
            })
            .collect();
        Json(Value::Array(all))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    until: Until,
    #[serde(default = "ten_seconds")]
    timeout_ms: u64,
}

fn ten_seconds() -> u64 {
    10_000
}

async fn wait(State(s): Sim, body: axum::body::Bytes) -> Result<Response, Refused> {
    let w: Wait = parse(&body)?;
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(w.timeout_ms).min(MAX_WAIT);
    let mut seen = s.sightings();
    loop {
        seen.borrow_and_update();
        let met = s.quietly(|world| world.holds(&w.until));
        let late = Instant::now() >= deadline || s.is_ending();
        if met || late {
            let status = if met {
                StatusCode::OK
            } else {
                StatusCode::REQUEST_TIMEOUT
            };
            let state = s.quietly(|world| world.summary());
            let mut v = json!({"met": met, "waited_ms": begun.elapsed().as_millis() as u64, "state": state});
            if !met && let Some(job) = w.until.job {
                v["job"] = s.quietly(|world| {
                    serde_json::to_value(world.job_view(job)).unwrap_or(Value::Null)
                });
            }
            return Ok((status, Json(v)).into_response());
        }
        // an error means that the server ends, and the deadline ends the loop
        let _ = tokio::time::timeout_at(deadline, seen.changed()).await;
    }
}

async fn summary(State(s): Sim) -> Json<Value> {
    to_value(s.quietly(|w| w.summary()))
}
