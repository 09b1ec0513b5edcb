//! The command line client against a real scheduler.

use serde_json::json;

use crate::rig::{Rig, SOON, Settings, job, native, own_arch};

#[tokio::test]
async fn every_list_and_every_missing_thing() {
    let mut rig = Rig::start(Settings::default()).await;
    let node = rig.node().to_owned();
    let nodes = rig.cli_json(&["node", "list"]).await;
    assert_eq!(nodes.as_array().unwrap().len(), 1);
    assert_eq!(nodes[0]["name"], node);
    assert_eq!(nodes[0]["state"], "ready");
    assert_eq!(nodes[0]["arch"], own_arch());
    let described = rig.cli_out(&["node", "describe", &node]).await;
    assert!(described.contains("Evidence\n"), "{described}");
    let pools = rig.cli_json(&["pool", "list"]).await;
    assert!(
        !pools.as_array().unwrap().is_empty(),
        "there is always a pool"
    );

    let pushed = rig
        .push("acme/web", vec![job("long", &native(), &["sleep 600"])])
        .await;
    let running = rig.job_is(pushed.jobs[0], "in_progress").await;
    // GitHub's word that the job runs arrives a moment later.
    let id = pushed.jobs[0].to_string();
    longshore_e2e::wait::until("the fleet to know that it runs", SOON, || async {
        let job = rig.cli(&["job", "describe", &id, "-o", "json"]).await;
        let text = String::from_utf8_lossy(&job.stdout).into_owned();
        match text.contains("\"in_progress\"") {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await
    .unwrap();
    let containers = rig.cli_json(&["runner", "list-containers"]).await;
    let container = containers[0]["container_id"].as_str().unwrap().to_owned();
    assert_eq!(container.len(), 12);
    assert_eq!(containers[0]["name"], running["runner_name"]);
    assert_eq!(containers[0]["status"], "running");
    let status = rig.cli_json(&["runner", "status"]).await;
    assert_eq!(status["running"], true);
    assert_eq!(status["active_runners"], 1);
    assert_eq!(status["nodes_ready"], 1);

    let stopped = rig
        .cli_json(&[
            "runner",
            "stop-container",
            "--container",
            &container,
            "--reason",
            "a test",
        ])
        .await;
    assert_eq!(stopped["job_cancelled"], true);
    rig.job_is(pushed.jobs[0], "completed").await;

    for missing in [
        vec!["runner", "stop-container", "--container", "ffffffffffff"],
        vec!["runner", "logs", "ls-none"],
        vec!["node", "describe", "nowhere"],
        vec!["job", "describe", "1"],
        vec!["explain", "1"],
        vec!["pool", "delete", "nothing"],
    ] {
        let output = rig.cli(&missing).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{missing:?}: {stderr}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains("\n  next: "),
            "{stderr}"
        );
        assert!(output.stdout.is_empty());
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_cordoned_node_takes_nothing_and_an_uncordoned_one_does() {
    let mut rig = Rig::start(Settings::default()).await;
    let node = rig.node().to_owned();
    assert_eq!(
        rig.cli_json(&["node", "cordon", &node]).await["state"],
        "cordoned"
    );
    let pushed = rig
        .push("acme/web", vec![job("build", &native(), &["true"])])
        .await;
    let id = pushed.jobs[0].to_string();
    longshore_e2e::wait::until("the reason", SOON, || async {
        let output = rig.cli(&["explain", &id, "-o", "json"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("\"cordoned\"") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await
    .unwrap();
    assert_eq!(rig.registrations_ever().await, 0);
    assert_eq!(
        rig.cli_json(&["node", "uncordon", &node]).await["state"],
        "ready"
    );
    rig.all_end(&pushed.jobs, "success", SOON).await;
    rig.finish().await;
}

#[tokio::test]
async fn stopping_the_autoscaler_lets_jobs_finish_and_starts_no_more() {
    let mut rig = Rig::start(Settings::default()).await;
    let steps = ["sleep 3", "echo finished"];
    let first = rig
        .push("acme/web", vec![job("first", &native(), &steps)])
        .await;
    rig.job_is(first.jobs[0], "in_progress").await;
    assert_eq!(rig.cli_json(&["runner", "stop"]).await["was_running"], true);
    let second = rig
        .push("acme/web", vec![job("second", &native(), &["true"])])
        .await;
    rig.all_end(&first.jobs, "success", SOON).await;
    let id = second.jobs[0].to_string();
    longshore_e2e::wait::until("the reason", SOON, || async {
        let output = rig.cli(&["explain", &id, "-o", "json"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("autoscaler_stopped") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await
    .unwrap();
    assert_eq!(rig.job(second.jobs[0]).await["status"], "queued");
    assert_eq!(
        rig.cli_json(&["runner", "status"]).await["running"],
        json!(false)
    );
    rig.cli_out(&["runner", "start", "--owner", "acme"]).await;
    rig.all_end(&second.jobs, "success", SOON).await;
    rig.finish().await;
}
