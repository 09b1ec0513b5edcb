//! Failed webhook deliveries are asked for again, where the credential permits it.

use std::{collections::BTreeMap, time::Duration};

use scheduler_core::{input::Input, model::JobPhase};
use scheduler_github::{Config, CredentialKind};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::timeout};

use crate::{
    receiver::{Receiver, SECRET},
    world::{DEADLINE, Watching, World, secret},
};

async fn config(world: &World, scopes: &[&str]) -> Config {
    let token = world.token("root", scopes).await;
    let mut config = world.config(CredentialKind::Token(token));
    config.owners = vec!["acme".into()];
    config.webhook_secrets = vec![secret(SECRET)];
    config.poll_interval = Duration::from_millis(400);
    config
}

/// How often each (method, route) below `deliveries` was asked.
async fn asked(world: &World) -> BTreeMap<String, u64> {
    let log = world.control.get("requests").await.unwrap();
    let rows = log["by_endpoint"].as_array().unwrap();
    let mut asked = BTreeMap::new();
    for row in rows {
        let route = row["route"].as_str().unwrap();
        if route.contains("/deliveries") {
            let method = row["method"].as_str().unwrap().to_owned();
            *asked.entry(method).or_default() += row["count"].as_u64().unwrap();
        }
    }
    asked
}

async fn queued(receiver: &mut Receiver, job: u64) {
    loop {
        for input in receiver.next().await {
            if let Input::JobSeen(seen) = input
                && seen.id.0 == job
            {
                assert_eq!(seen.phase, JobPhase::Queued);
                return;
            }
        }
    }
}

/// A scheduler that hears of `acme` by a webhook whose deliveries all fail from here on.
async fn all_lost(scopes: &[&str]) -> (World, Watching, Receiver) {
    let world = World::start().await;
    let mut watching = Watching::start(config(&world, scopes).await);
    watching.routes(1).await;
    let mut receiver = Receiver::start(watching.github.clone()).await;
    receiver.hook(&world, json!({"organization": "acme"})).await;
    receiver.next().await;
    let lost = json!({"webhook_drop": 1.0});
    world.control.put("faults", &lost).await.unwrap();
    (world, watching, receiver)
}

#[tokio::test]
async fn lost_deliveries_come_again_once_each_and_settle() {
    let (world, mut watching, mut receiver) =
        all_lost(&["repo", "admin:org", "admin:org_hook"]).await;
    // Enough that both forms of failure are among them: with a status code and without.
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(world.queue("acme/web", &["self-hosted"]).await);
    }
    let log = world.control.get("deliveries").await.unwrap();
    let codes: Vec<u64> = log
        .as_array()
        .unwrap()
        .iter()
        .filter(|delivery| delivery["event"] == "workflow_job")
        .map(|delivery| delivery["status_code"].as_u64().unwrap())
        .collect();
    assert!(codes.contains(&0) && codes.contains(&502), "{codes:?}");
    let mut missing = jobs.clone();
    while !missing.is_empty() {
        for input in receiver.next().await {
            if let Input::JobSeen(seen) = input {
                missing.retain(|job| *job != seen.id.0);
            }
        }
    }
    // Two more looks: nothing is asked for that has come.
    let looks = asked(&world).await["GET"];
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while asked(&world).await["GET"] < looks + 2 {
        assert!(tokio::time::Instant::now() < deadline, "no further look");
        watching.sweep().await;
    }
    assert_eq!(asked(&world).await["POST"], jobs.len() as u64);
    let status = watching.github.status().borrow().recovery.clone();
    assert_eq!(status.redelivered, jobs.len() as u64);
    assert_eq!(status.not_permitted, BTreeMap::new());
    let deliveries = world.control.get("deliveries").await.unwrap();
    let deliveries = deliveries.as_array().unwrap();
    let again: Vec<&Value> = deliveries
        .iter()
        .filter(|delivery| delivery["redelivery"] == true)
        .collect();
    assert_eq!(again.len(), jobs.len());
    for delivery in again {
        assert_eq!(delivery["status"], "OK", "{delivery}");
        let guid = &delivery["guid"];
        assert!(
            deliveries
                .iter()
                .any(|first| first["redelivery"] == false && first["guid"] == *guid),
            "a redelivery keeps its guid"
        );
    }
    world.server.stop().await;
}

#[tokio::test]
async fn without_the_permission_it_is_said_once_and_the_sweep_finds_the_job() {
    let (world, mut watching, _receiver) = all_lost(&["repo", "admin:org"]).await;
    let job = world.queue("acme/web", &["self-hosted"]).await;
    assert_eq!(watching.job(job).await.phase, JobPhase::Queued);
    let mut status = watching.github.status();
    let said = status.wait_for(|status| !status.recovery.not_permitted.is_empty());
    let said = timeout(DEADLINE, said)
        .await
        .expect("said")
        .unwrap()
        .clone();
    let (hook, lacks) = said.recovery.not_permitted.first_key_value().unwrap();
    assert!(
        hook.starts_with("webhook ") && hook.ends_with(" of acme"),
        "{hook}"
    );
    assert!(
        lacks.contains("X-Accepted-OAuth-Scopes: admin:org_hook"),
        "{lacks}"
    );
    for _ in 0..8 {
        watching.sweep().await;
    }
    assert_eq!(
        asked(&world).await,
        BTreeMap::from([("GET".to_owned(), 1)]),
        "not asked again"
    );
    world.server.stop().await;
}

/// What an App's webhook told while nobody listened comes after the start.
#[tokio::test]
async fn an_app_recovers_what_failed_before_the_start() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let permissions = json!({"actions": "read", "metadata": "read", "administration": "write",
        "organization_self_hosted_runners": "write"});
    let url = format!("http://{address}/webhooks/github");
    let app = world
        .post(
            "apps",
            json!({"slug": "longshore", "permissions": permissions,
            "events": ["workflow_job"], "webhook": {"url": url, "secret": SECRET}}),
        )
        .await;
    world
        .post(
            "installations",
            json!({"app_id": app["id"], "account": "acme", "repositories": null}),
        )
        .await;
    let job = world.queue("acme/web", &["self-hosted"]).await;
    let (idle, state) = world
        .control
        .wait(&json!({"deliveries_idle": true}), DEADLINE)
        .await
        .unwrap();
    assert!(idle, "{state}");

    let mut config = world.config(CredentialKind::App {
        id: app["id"].to_string(),
        key: secret(app["private_key"].as_str().unwrap()),
    });
    config.webhook_secrets = vec![secret(SECRET)];
    // Open before anything is asked for; it is served when the crate is there.
    let listener = TcpListener::bind(address).await.unwrap();
    let watching = Watching::start(config);
    let mut receiver = Receiver::on(listener, watching.github.clone());
    queued(&mut receiver, job).await;
    world.server.stop().await;
}

/// With the public URL given, our hook is found before its first delivery, and nobody else's.
#[tokio::test]
async fn the_hook_with_our_url_is_found_at_the_start() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = format!("http://{}/webhooks/github", listener.local_addr().unwrap());
    let foreign = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = format!("http://{}/", foreign.local_addr().unwrap());
    drop(foreign);
    let faults = json!({"webhook_drop": 1.0});
    for (url, secret) in [(&ours, SECRET), (&theirs, "another")] {
        world
            .post(
                "hooks",
                json!({"organization": "acme", "url": url, "secret": secret,
                "events": ["workflow_job"], "content_type": "json"}),
            )
            .await;
    }
    world.control.put("faults", &faults).await.unwrap();
    let job = world.queue("acme/web", &["self-hosted"]).await;
    let mut config = config(&world, &["repo", "admin:org", "admin:org_hook"]).await;
    config.webhook_url = Some(ours);
    let watching = Watching::start(config);
    let mut receiver = Receiver::on(listener, watching.github.clone());
    queued(&mut receiver, job).await;
    let asked = asked(&world).await;
    assert_eq!(
        asked["POST"], 1,
        "the other hook is nobody's business of ours"
    );
    world.server.stop().await;
}
