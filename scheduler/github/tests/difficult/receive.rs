//! Deliveries: signed bytes in, inputs out.

use aws_lc_rs::hmac;
use axum::http::Method;
use scheduler_core::{
    input::{Input, JobSeen},
    model::{JobPhase, Scope},
};
use scheduler_github::{
    GitHub, SecretSource,
    webhook::{Delivery, MAX_BODY, WebhookError},
};
use serde_json::{Value, json};

use crate::{
    fake::{Fake, Say},
    world::{Watching, World, job, phases, repository, run},
};

pub(crate) fn sign(body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"s");
    format!("sha256={}", hex::encode(hmac::sign(&key, body)))
}

pub(crate) async fn deliver(
    github: &GitHub,
    event: &str,
    payload: &Value,
) -> Result<Vec<Input>, WebhookError> {
    let body = serde_json::to_vec(payload).unwrap();
    deliver_bytes(github, event, &body, Some(&sign(&body))).await
}

async fn deliver_bytes(
    github: &GitHub,
    event: &str,
    body: &[u8],
    signature: Option<&str>,
) -> Result<Vec<Input>, WebhookError> {
    github
        .receive(Delivery {
            event,
            guid: Some("11111111-2222-3333-4444-555555555555"),
            hook_id: None,
            hook_target: None,
            signature,
            content_type: Some("application/json"),
            body,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        })
        .await
}

fn secret() -> Vec<SecretSource> {
    vec![SecretSource::Value {
        origin: "test".into(),
        value: "s".to_owned().into(),
    }]
}

fn hooked(fake: &Fake) -> GitHub {
    let mut config = fake.config();
    config.webhook_secrets = secret();
    GitHub::connect(config).unwrap()
}

fn job_event(action: &str, status: &str) -> Value {
    json!({"action": action, "repository": repository(1, "mona/web"),
           "workflow_job": {"id": 9_000_000_001_u64, "run_id": 5, "status": status, "labels": ["self-hosted"],
                            "conclusion": null, "runner_id": 0, "runner_name": "", "created_at": "2026-01-01T00:00:00Z"}})
}

fn the_job(inputs: &[Input]) -> &JobSeen {
    match inputs {
        [Input::JobSeen(seen)] => seen,
        other => panic!("{other:?}"),
    }
}

/// A GitHub that knows one repository by name only.
async fn knowing_one() -> Fake {
    let world = World::default();
    world.set("/repos/mona/web", repository(1, "mona/web"));
    world.serve().await
}

#[tokio::test]
async fn a_queued_job_of_a_repository_not_listed_yet_is_routed_by_one_look_up() {
    let fake = knowing_one().await;
    let github = hooked(&fake);
    for _ in 0..3 {
        let inputs = deliver(&github, "workflow_job", &job_event("queued", "queued"))
            .await
            .unwrap();
        let seen = the_job(&inputs);
        assert_eq!((seen.id.0, seen.phase), (9_000_000_001, JobPhase::Queued));
        assert_eq!(
            seen.scope,
            Scope::Repository {
                owner: "mona".into(),
                repo: "web".into()
            }
        );
        assert_eq!((seen.runner_id, seen.runner_name.as_deref()), (None, None));
        assert!(seen.traceparent.as_deref().unwrap().contains("b7ad6b71"));
    }
    assert_eq!(fake.count(&Method::GET, "/repos/mona/web"), 1);
    let phase = the_job(
        &deliver(&github, "workflow_job", &job_event("queued", "waiting"))
            .await
            .unwrap(),
    )
    .phase;
    assert_eq!(phase, JobPhase::Waiting);
}

#[tokio::test]
async fn a_repository_that_is_not_there_has_no_route_though_its_owner_has_one() {
    let world = World::default();
    world.set("/repos/mona/web", repository(1, "mona/web"));
    let fake = world.serve().await;
    let github = hooked(&fake);
    assert!(github.resolve("mona", "web").await.is_some());
    assert_eq!(github.resolve("mona", "none").await, None);
    world.break_with("/repos/mona/", Say::new(500, json!({"message": "oops"})));
    assert!(
        github.resolve("mona", "other").await.is_some(),
        "a GitHub in trouble has not said that it is not there"
    );
}

#[tokio::test]
async fn the_origin_of_a_run_is_remembered_for_its_jobs() {
    let fake = knowing_one().await;
    let github = hooked(&fake);
    let run = json!({"action": "requested", "repository": repository(1, "mona/web"),
        "workflow_run": {"id": 5, "event": "pull_request", "status": "queued", "head_repository": {"full_name": "fork/web"}}});
    let inputs = deliver(&github, "workflow_run", &run).await.unwrap();
    assert!(
        matches!(&inputs[..], [Input::RunSeen { run_id: 5, origin }] if origin.head_repository.as_deref() == Some("fork/web"))
    );
    let inputs = deliver(&github, "workflow_job", &job_event("queued", "queued"))
        .await
        .unwrap();
    assert_eq!(
        the_job(&inputs).origin.event.as_deref(),
        Some("pull_request")
    );
}

#[tokio::test]
async fn unsigned_forged_large_and_broken_deliveries_are_told_apart() {
    let fake = knowing_one().await;
    let github = hooked(&fake);
    let body = serde_json::to_vec(&job_event("queued", "queued")).unwrap();
    let deliver = async |body: &[u8], signature: Option<&str>| {
        deliver_bytes(&github, "workflow_job", body, signature)
            .await
            .unwrap_err()
    };
    assert_eq!(deliver(&body, None).await, WebhookError::Unsigned);
    assert_eq!(
        deliver(&body, Some(&sign(b"other"))).await,
        WebhookError::BadSignature
    );
    let broken = b"{\"action\":";
    assert!(matches!(
        deliver(broken, Some(&sign(broken))).await,
        WebhookError::Malformed(_)
    ));
    assert!(matches!(
        deliver(broken, Some("sha256=00")).await,
        WebhookError::BadSignature
    ));
    let large = vec![b' '; MAX_BODY + 1];
    assert_eq!(deliver(&large, None).await, WebhookError::TooLarge);
    assert_eq!(
        fake.seen().len(),
        0,
        "nothing was looked up for any of them"
    );
    let unhooked = fake.github();
    let refused = deliver_bytes(&unhooked, "ping", &body, Some(&sign(&body))).await;
    assert_eq!(refused, Err(WebhookError::NoSecret));
}

#[tokio::test]
async fn unknown_events_actions_and_shapes_are_accepted_and_ignored() {
    let fake = knowing_one().await;
    let github = hooked(&fake);
    for (event, payload) in [
        ("sponsorship", json!({"action": "created"})),
        ("workflow_job", job_event("brand_new", "queued")),
        ("workflow_job", json!({"action": "queued"})),
        (
            "workflow_job",
            json!({"action": "queued", "workflow_job": 7, "repository": []}),
        ),
        (
            "workflow_job",
            json!({"action": "queued", "workflow_job": {}, "repository": repository(1, "mona/web")}),
        ),
        (
            "workflow_run",
            json!({"action": "completed", "workflow_run": null}),
        ),
        ("ping", json!({})),
        ("repository", json!({"action": "sparkled"})),
    ] {
        assert_eq!(
            deliver(&github, event, &payload).await,
            Ok(vec![]),
            "{event} {payload}"
        );
    }
}

#[tokio::test]
async fn owners_that_are_not_watched_cost_no_call() {
    let fake = knowing_one().await;
    let mut config = fake.config();
    config.webhook_secrets = secret();
    config.owners = vec!["acme".into()];
    let github = GitHub::connect(config).unwrap();
    assert_eq!(
        deliver(&github, "workflow_job", &job_event("queued", "queued")).await,
        Ok(vec![])
    );
    assert_eq!(fake.seen().len(), 0);
}

#[tokio::test]
async fn an_unreachable_repository_is_asked_about_once_and_told() {
    let fake = Fake::start(|_| Say::new(404, json!({"message": "Not Found"}))).await;
    let mut config = fake.config();
    config.webhook_secrets = secret();
    let mut watching = Watching::start(config);
    for _ in 0..3 {
        let inputs = deliver(
            &watching.github,
            "workflow_job",
            &job_event("queued", "queued"),
        )
        .await;
        assert_eq!(inputs, Ok(vec![]));
    }
    assert_eq!(fake.count(&Method::GET, "/repos/mona/web"), 1);
    watching.next_sweep().await;
    let problems = watching.status.borrow().problems.clone();
    let told = problems
        .iter()
        .find(|problem| problem.subject == "mona/web");
    assert!(
        told.is_some_and(|problem| problem.detail.contains("Add a token")),
        "{problems:?}"
    );
}

#[tokio::test]
async fn a_hook_without_workflow_jobs_and_a_deleted_hook_are_told() {
    let world = World::default();
    world.repositories(&[]);
    let fake = world.serve().await;
    let mut config = fake.config();
    config.webhook_secrets = secret();
    let mut watching = Watching::start(config);
    let ping = |events: Value| json!({"zen": "z", "hook_id": 3, "hook": {"id": 3, "active": true, "events": events}});
    deliver(&watching.github, "ping", &ping(json!(["push"])))
        .await
        .unwrap();
    watching.next_sweep().await;
    let problems = |watching: &Watching| watching.status.borrow().problems.clone();
    assert!(problems(&watching)[0].detail.contains("workflow_job"));
    assert!(watching.status.borrow().webhooks_healthy);
    deliver(&watching.github, "ping", &ping(json!(["workflow_job"])))
        .await
        .unwrap();
    watching.next_sweep().await;
    assert_eq!(problems(&watching), []);
    deliver(
        &watching.github,
        "meta",
        &json!({"action": "deleted", "hook_id": 3}),
    )
    .await
    .unwrap();
    watching.next_sweep().await;
    assert!(problems(&watching)[0].detail.contains("deleted"));
    assert!(!watching.status.borrow().webhooks_healthy);
}

#[tokio::test]
async fn a_told_job_is_read_again_only_when_what_was_told_may_not_have_been_kept() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    let fake = world.serve().await;
    let mut config = fake.config();
    config.webhook_secrets = secret();
    let mut watching = Watching::start(config);
    watching.next_sweep().await;
    let queued = job_event("queued", "queued");
    let told = deliver(&watching.github, "workflow_job", &queued).await;
    assert_eq!(the_job(&told.unwrap()).phase, JobPhase::Queued);
    world.runs("mona/web", "queued", vec![run(5, "queued", "ci.yml")]);
    let listed = job(9_000_000_001, 5, "queued", None);
    world.jobs("mona/web", 5, vec![listed]);
    assert_eq!(
        phases(&watching.next_sweep().await),
        [],
        "a webhook told it"
    );
    assert_eq!(fake.count(&Method::GET, "/runs/5/jobs"), 0);
    watching.github.distrust();
    assert_eq!(
        phases(&watching.next_sweep().await),
        [(9_000_000_001, JobPhase::Queued)]
    );
}
