//! What a queue of several repositories looks like, and what of it is not for this host.

use std::time::Duration;

use longshore_e2e::wait;

use crate::rig::{Rig, Settings, foreign, job, native, other_arch};

/// The whole queue on a busy machine of two cores.
const QUEUE: Duration = Duration::from_secs(400);

#[tokio::test]
async fn three_repositories_with_41_jobs_of_which_12_need_another_architecture() {
    let mut rig = Rig::start(Settings {
        repos: vec!["acme/web", "acme/api", "acme/tools"],
        ..Settings::default()
    })
    .await;
    let native = native();
    let foreign = foreign();
    let jobs = |here: usize, elsewhere: usize| {
        let mut jobs = Vec::new();
        for n in 0..here {
            jobs.push(job(&format!("job {n}"), &native, &["echo done"]));
        }
        for n in 0..elsewhere {
            jobs.push(job(&format!("other {n}"), &foreign, &["echo never"]));
        }
        jobs
    };
    let mut served = Vec::new();
    let mut waiting = Vec::new();
    for (repo, here, elsewhere) in [
        ("acme/web", 8, 12),
        ("acme/api", 14, 0),
        ("acme/tools", 7, 0),
    ] {
        let pushed = rig.push(repo, jobs(here, elsewhere)).await;
        served.extend_from_slice(&pushed.jobs[..here]);
        waiting.extend_from_slice(&pushed.jobs[here..]);
    }
    assert_eq!(served.len() + waiting.len(), 41);
    rig.all_end(&served, "success", QUEUE).await;

    // Counts are shown, by architecture.
    let line = format!("12 filtered: no node can run {}\n", other_arch());
    for command in ["status", "list-workflows"] {
        wait::until(
            "the filtered jobs to be counted",
            Duration::from_secs(30),
            || async {
                let text = rig.cli_out(&["runner", command, "-o", "table"]).await;
                if text.contains(&line) {
                    Ok(())
                } else {
                    Err(text)
                }
            },
        )
        .await
        .unwrap();
    }
    let status = rig.cli_json(&["runner", "status"]).await;
    assert_eq!(status["filtered"], serde_json::json!({other_arch(): 12}));
    assert_eq!(status["queued_workflows"], 12);
    assert_eq!(status["repositories_monitored"], 3);
    let queues = rig.cli_json(&["runner", "list-workflows"]).await;
    let of = |repo: &str| {
        let mut queues = queues.as_array().unwrap().iter();
        queues
            .find(|q| q["repo"] == repo)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(of("acme/web")["filtered"][other_arch()], 12);
    assert_eq!(of("acme/api")["filtered"], serde_json::json!({}));

    // None was started in vain.
    assert_eq!(rig.registrations_ever().await, served.len());
    for id in &waiting {
        assert_eq!(rig.job(*id).await["status"], "queued");
    }
    let why = rig.cli_json(&["explain", &waiting[0].to_string()]).await;
    assert_eq!(why["nodes"][0]["feasible"], false);
    assert_eq!(why["nodes"][0]["reasons"][0]["code"], "missing_label");
    rig.finish().await;
}

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
