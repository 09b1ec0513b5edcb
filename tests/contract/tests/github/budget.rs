//! What a job costs at GitHub, counted in the simulator's request log, and that
//! what is saved loses nothing.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use scheduler_core::{
    input::Input,
    model::{Conclusion, JobPhase},
};
use scheduler_github::{Config, CredentialKind};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    receiver::{Receiver, SECRET},
    world::{DEADLINE, Watching, World, registration, secret},
};

const OWNERS: usize = 5;
const REPOSITORIES: usize = 50;
const JOBS: usize = 100;

async fn config(world: &World) -> Config {
    let scopes = ["repo", "admin:org", "admin:org_hook"];
    let token = world.token("root", &scopes).await;
    let mut config = world.config(CredentialKind::Token(token));
    config.webhook_secrets = vec![secret(SECRET)];
    config
}

async fn calls(world: &World) -> (u64, Value) {
    let log = world.control.get("requests").await.unwrap();
    (log["total"].as_u64().unwrap(), log["by_endpoint"].clone())
}

/// Both events, as the documents ask for them.
async fn hook(world: &World, receiver: &Receiver, owner: &str) {
    let target = json!({"organization": owner, "events": ["workflow_job", "workflow_run"]});
    receiver.hook(world, target).await;
}

/// 100 jobs in 50 repositories with webhooks, four sweeps and the removal checks:
/// at most 1.2 calls a job, of which one is its registration.
#[tokio::test]
async fn a_job_told_by_webhooks_costs_little_more_than_its_registration() {
    let world = World::start().await;
    let mut config = config(&world).await;
    for owner in 0..OWNERS {
        let login = format!("org{owner}");
        let members = json!({"root": "admin"});
        let body = json!({"login": login, "kind": "organization", "members": members});
        world.post("owners", body).await;
        config.owners.push(login);
    }
    let names: Vec<(String, String)> = (0..REPOSITORIES)
        .map(|n| (format!("org{}", n % OWNERS), format!("repo{n}")))
        .collect();
    for (owner, name) in &names {
        let body = json!({"owner": owner, "name": name});
        world.post("repos", body).await;
    }
    let mut watching = Watching::start(config);
    watching.routes(REPOSITORIES).await;
    let mut listed = BTreeSet::new();
    while listed.len() < OWNERS {
        let scope = watching
            .until("every scope's runners at the start", |input| match input {
                Input::RunnersListed { scope, .. } if !listed.contains(&scope) => Some(scope),
                _ => None,
            })
            .await;
        listed.insert(scope);
    }
    let mut receiver = Receiver::start(watching.github.clone()).await;
    for owner in 0..OWNERS {
        hook(&world, &receiver, &format!("org{owner}")).await;
        receiver.next().await;
    }
    watching.sweep().await;
    world.control.delete("requests").await.unwrap();

    let (mut registered, mut over) = (0, 0);
    let mut waiting = VecDeque::new();
    for n in 0..JOBS {
        let (owner, name) = &names[n % REPOSITORIES];
        let simulate = json!({"start_after_ms": 0, "duration_ms": 100, "conclusion": "success", "online_after_ms": 0});
        let body = json!({"repository": format!("{owner}/{name}"), "name": format!("job {n}"),
            "labels": ["self-hosted", "linux", "x64"], "simulate": simulate});
        world.post("jobs", body).await;
        let mut queued = None;
        while queued.is_none() {
            for input in receiver.next().await {
                if let Input::JobSeen(seen) = input {
                    over += usize::from(seen.phase == JobPhase::Completed);
                    queued = queued.or((seen.phase == JobPhase::Queued).then_some(seen));
                }
            }
        }
        waiting.extend(queued);
        // Twenty jobs are queued at any time, also when the sweeps come.
        while waiting.len() > 20 || (n + 1 == JOBS && !waiting.is_empty()) {
            let seen = waiting.pop_front().unwrap();
            let wanted = registration(
                &format!("ls-t-{registered}"),
                seen.scope.clone(),
                &seen.credential,
            );
            watching.github.register(&wanted).await.unwrap();
            registered += 1;
        }
        // Once every repository has spoken.
        if n >= REPOSITORIES && n % 12 == 0 {
            watching.sweep().await;
        }
    }
    while over < JOBS {
        for input in receiver.next().await {
            if let Input::JobSeen(seen) = input {
                over += usize::from(seen.phase == JobPhase::Completed);
            }
        }
    }
    for scope in &listed {
        let credential = &watching.github.status().borrow().repositories["org0/repo0"]
            .credential
            .clone();
        let left = watching
            .github
            .list_runners(scope, credential)
            .await
            .unwrap();
        assert_eq!(left, [], "every registration went with its job");
    }
    let (total, endpoints) = calls(&world).await;
    println!("{total} calls for {JOBS} jobs: {endpoints}");
    assert_eq!(registered, JOBS);
    assert!(
        total <= (JOBS as u64) * 12 / 10,
        "{total} calls for {JOBS} jobs: {endpoints}"
    );
    world.server.stop().await;
}

/// A scheduler that sweeps often and hears of `acme` by webhook.
async fn watched() -> (World, Watching, Receiver) {
    let world = World::start().await;
    let mut config = config(&world).await;
    config.owners = vec!["acme".into()];
    config.poll_interval = Duration::from_millis(400);
    let mut watching = Watching::start(config);
    watching.routes(1).await;
    let mut receiver = Receiver::start(watching.github.clone()).await;
    hook(&world, &receiver, "acme").await;
    receiver.next().await;
    (world, watching, receiver)
}

/// Everything that a webhook did not tell is found, although told runs are not read in every sweep.
#[tokio::test]
async fn what_webhooks_lose_is_found_although_sweeps_trust_them() {
    let (world, mut watching, mut receiver) = watched().await;
    let run = world
        .post(
            "runs",
            json!({"repository": "acme/web", "jobs": [
            {"name": "first", "labels": ["self-hosted"]},
            {"name": "second", "labels": ["self-hosted"], "needs": ["first"]}]}),
        )
        .await;
    let first = run["jobs"][0]["id"].as_u64().unwrap();
    world.post(&format!("jobs/{first}/start"), json!({})).await;
    let mut phase = JobPhase::Waiting;
    while phase < JobPhase::InProgress {
        for input in receiver.next().await {
            if let Input::JobSeen(seen) = input {
                phase = phase.max(seen.phase);
            }
        }
    }
    let mut status = watching.github.status();
    let healthy = status.wait_for(|status| status.webhooks_healthy);
    timeout(DEADLINE, healthy)
        .await
        .expect("webhooks prove healthy")
        .unwrap();

    // From here on every word is lost: an end, and what follows it in the same run.
    world
        .control
        .put("faults", &json!({"webhook_drop": 1.0}))
        .await
        .unwrap();
    world
        .post(
            &format!("jobs/{first}/complete"),
            json!({"conclusion": "failure"}),
        )
        .await;
    let ended = watching
        .until("the end of the first job", |input| match input {
            Input::JobSeen(seen) if seen.id.0 == first && seen.phase == JobPhase::Completed => {
                Some(seen.conclusion.clone())
            }
            _ => None,
        })
        .await;
    assert_eq!(ended, Some(Conclusion::Failure));

    // A run that nobody told of, and its end.
    let job = world.queue("acme/web", &["self-hosted"]).await;
    let seen = watching.job(job).await;
    assert_eq!(seen.phase, JobPhase::Queued);
    world.post(&format!("jobs/{job}/start"), json!({})).await;
    world
        .post(
            &format!("jobs/{job}/complete"),
            json!({"conclusion": "success"}),
        )
        .await;
    watching
        .until("the end of the second run", |input| match input {
            Input::JobSeen(seen) if seen.id.0 == job && seen.phase == JobPhase::Completed => {
                Some(())
            }
            _ => None,
        })
        .await;
    let doubted = status.wait_for(|status| !status.webhooks_healthy);
    timeout(DEADLINE, doubted)
        .await
        .expect("lost webhooks are noticed")
        .unwrap();
    world.server.stop().await;
}

/// The second job of a run whose first one was told and ended: its own words are lost.
#[tokio::test]
async fn a_job_that_follows_inside_a_told_run_is_found() {
    let (world, mut watching, mut receiver) = watched().await;
    let drop = json!({"webhook_drop": 1.0});
    let run = world
        .post(
            "runs",
            json!({"repository": "acme/web", "jobs": [
            {"name": "first", "labels": ["self-hosted"]},
            {"name": "second", "labels": ["self-hosted"], "needs": ["first"]}]}),
        )
        .await;
    let first = run["jobs"][0]["id"].as_u64().unwrap();
    world.post(&format!("jobs/{first}/start"), json!({})).await;
    let mut phase = JobPhase::Waiting;
    while phase < JobPhase::InProgress {
        for input in receiver.next().await {
            if let Input::JobSeen(seen) = input {
                phase = phase.max(seen.phase);
            }
        }
    }
    world.control.put("faults", &drop).await.unwrap();
    world
        .post(
            &format!("jobs/{first}/complete"),
            json!({"conclusion": "success"}),
        )
        .await;
    let second = watching
        .until("the job that follows", |input| match input {
            Input::JobSeen(seen) if seen.id.0 != first && seen.phase == JobPhase::Queued => {
                Some(seen)
            }
            _ => None,
        })
        .await;
    assert_eq!(second.name, "second");
    world.server.stop().await;
}
