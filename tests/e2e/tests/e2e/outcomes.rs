//! One job, and every way a job can end.

use serde_json::json;

use crate::rig::{Rig, SOON, Settings, job, native};

#[tokio::test]
async fn a_webhook_becomes_a_container_and_the_container_a_success() {
    let mut rig = Rig::start(Settings::default()).await;
    let steps = [
        "echo hello from $(id -u)",
        "test -w \"$HOME\" && echo $((6 * 7))",
    ];
    let pushed = rig
        .push("acme/web", vec![job("build", &native(), &steps)])
        .await;
    let id = pushed.jobs[0];
    let ended = rig.job_is(id, "completed").await;
    assert_eq!(ended["conclusion"], "success", "{ended:#}");
    // The steps really ran, as the user of GitHub's image.
    assert_eq!(ended["steps"][0]["output"], "hello from 1001\n");
    assert_eq!(ended["steps"][1]["output"], "42\n");

    let ours = rig.known_end(id).await;
    assert_eq!(ours["state"], "completed");
    assert_eq!(ours["conclusion"], "success");
    assert_eq!(ours["node"], rig.node());
    assert_eq!(ours["runner"], ended["runner_name"]);
    assert_eq!(rig.registrations_ever().await, 1, "one job, one runner");
    rig.finish().await;
}

#[tokio::test]
async fn a_failing_job_fails_and_nothing_is_retried() {
    let mut rig = Rig::start(Settings::default()).await;
    let steps = ["echo before", "exit 3", "echo after"];
    let pushed = rig
        .push("acme/web", vec![job("test", &native(), &steps)])
        .await;
    let ended = rig.job_is(pushed.jobs[0], "completed").await;
    assert_eq!(ended["conclusion"], "failure", "{ended:#}");
    assert_eq!(ended["steps"][1]["exit_code"], 3);
    assert_ne!(ended["steps"][2]["output"], "after\n", "{ended:#}");
    assert_eq!(rig.registrations_ever().await, 1);
    rig.finish().await;
}

#[tokio::test]
async fn a_job_cancelled_while_it_runs_and_one_cancelled_while_it_waits() {
    let mut rig = Rig::start(Settings::default()).await;
    let running = rig
        .push(
            "acme/web",
            vec![job("soak", &native(), &["echo started; sleep 600"])],
        )
        .await;
    rig.job_is(running.jobs[0], "in_progress").await;
    rig.cancel(running.run).await;
    rig.all_end(&running.jobs, "cancelled", SOON).await;

    let waiting = rig
        .push(
            "acme/web",
            vec![job("odd", &["self-hosted", "no-such-label"], &["true"])],
        )
        .await;
    rig.cancel(waiting.run).await;
    rig.all_end(&waiting.jobs, "cancelled", SOON).await;
    assert_eq!(
        rig.registrations_ever().await,
        1,
        "nothing for the one that waited"
    );
    rig.finish().await;
}

#[tokio::test]
async fn a_rerun_is_a_new_attempt_with_a_new_runner() {
    let mut rig = Rig::start(Settings::default()).await;
    let pushed = rig
        .push("acme/web", vec![job("flaky", &native(), &["exit 1"])])
        .await;
    rig.all_end(&pushed.jobs, "failure", SOON).await;
    rig.sim
        .control(&format!("runs/{}/rerun", pushed.run), json!({}))
        .await
        .unwrap();
    rig.wait_for(json!({"jobs_completed": 2}), SOON).await;
    rig.wait_for(json!({"run": pushed.run}), SOON).await;
    let names: std::collections::BTreeSet<_> = rig
        .cli_json(&["runner", "list-containers", "--all"])
        .await
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(rig.registrations_ever().await, 2);
    rig.finish().await;
}

#[tokio::test]
async fn without_webhooks_the_sweep_finds_the_job() {
    let mut rig = Rig::start(Settings {
        no_webhooks: true,
        ..Settings::default()
    })
    .await;
    let pushed = rig
        .push("acme/web", vec![job("build", &native(), &["true"])])
        .await;
    rig.all_end(&pushed.jobs, "success", SOON).await;
    rig.finish().await;
}

/// Its runner is gone long before the sweep that names the job.
#[tokio::test]
async fn a_short_job_between_two_sweeps_costs_one_runner() {
    let mut rig = Rig::start(Settings {
        no_webhooks: true,
        scheduler: vec!["--interval", "45s"],
        ..Settings::default()
    })
    .await;
    let pushed = rig
        .push("acme/web", vec![job("short", &native(), &["true"])])
        .await;
    rig.all_end(&pushed.jobs, "success", SOON).await;
    rig.known_end(pushed.jobs[0]).await;
    assert_eq!(rig.registrations_ever().await, 1);
    rig.finish().await;
}
