//! Jobs that this fleet must not run, although it could.

use std::time::Duration;

use longshore_e2e::wait;
use serde_json::json;

use crate::rig::{GROUP, Rig, SOON, Settings, job, native};

#[tokio::test]
async fn a_pull_request_from_a_fork_is_refused_and_says_why() {
    // In a private repository only members open pull requests, so that one
    // whose origin is not known yet is served; in a public one it waits.
    let mut rig = Rig::start(Settings {
        public: vec!["acme/web"],
        ..Settings::default()
    })
    .await;
    rig.cli_out(&["pool", "set", "public", "--runner-group", GROUP])
        .await;
    let stranger = json!({"login": "stranger", "kind": "user"});
    rig.sim.control("owners", stranger).await.unwrap();
    let fork = json!({"owner": "stranger", "name": "web", "private": false, "fork": true});
    rig.sim.control("repos", fork).await.unwrap();
    let strange = rig
        .push_run(json!({
            "repository": "acme/web", "event": "pull_request", "head_repository": "stranger/web",
            "jobs": [job("from a stranger", &native(), &["env"])],
        }))
        .await;
    let id = strange.jobs[0].to_string();
    wait::until("the refusal", Duration::from_secs(60), || async {
        let output = rig.cli(&["explain", &id, "-o", "json"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("fork_refused") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await
    .unwrap();
    assert_eq!(
        rig.registrations_ever().await,
        0,
        "no runner was spent on it"
    );
    assert_eq!(rig.job(strange.jobs[0]).await["status"], "queued");
    // GitHub gives a runner whatever matches it: the stranger's job must be
    // out of the queue before the control, a push by a member.
    rig.cancel(strange.run).await;
    rig.all_end(&strange.jobs, "cancelled", Duration::from_secs(60))
        .await;
    let own = rig
        .push("acme/web", vec![job("own", &native(), &["true"])])
        .await;
    rig.all_end(&own.jobs, "success", SOON).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_public_repository_is_served_by_a_group_that_allows_it() {
    let mut rig = Rig::start(Settings {
        public: vec!["acme/web"],
        ..Settings::default()
    })
    .await;
    // A pool of one's own goes before the built-in one.
    rig.cli_out(&["pool", "set", "public", "--runner-group", GROUP])
        .await;
    let pushed = rig
        .push("acme/web", vec![job("build", &native(), &["true"])])
        .await;
    rig.all_end(&pushed.jobs, "success", SOON).await;
    assert_eq!(rig.registrations_ever().await, 1);
    rig.finish().await;
}
