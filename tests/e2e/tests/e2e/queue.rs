//! A job that is not for this fleet.

use std::time::Duration;

use longshore_e2e::wait;

use crate::rig::{Rig, Settings, job};

#[tokio::test]
async fn a_job_that_nothing_can_run_is_explained_and_gets_no_runner() {
    let rig = Rig::start(Settings::default()).await;
    let labels = ["self-hosted", "linux", "quantum"];
    let pushed = rig
        .push("acme/web", vec![job("odd", &labels, &["true"])])
        .await;
    let id = pushed.jobs[0].to_string();
    let why = wait::until(
        "the job to be explained",
        Duration::from_secs(60),
        || async {
            let output = rig.cli(&["explain", &id, "-o", "json"]).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            match serde_json::from_str::<serde_json::Value>(&text) {
                Ok(why) if why["nodes"].as_array().is_some_and(|n| !n.is_empty()) => Ok(why),
                _ => Err(text),
            }
        },
    )
    .await
    .unwrap();
    assert_eq!(why["nodes"][0]["node"], rig.node());
    assert_eq!(why["nodes"][0]["reasons"][0]["code"], "missing_label");
    assert!(
        why["summary"].as_str().unwrap().contains("quantum"),
        "{why:#}"
    );
    assert!(!why["next_step"].as_str().unwrap().is_empty());
    assert_eq!(rig.registrations_ever().await, 0);
    rig.cancel(pushed.run).await;
    rig.finish().await;
}
