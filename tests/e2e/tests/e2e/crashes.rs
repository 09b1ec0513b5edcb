//! Programs die in the middle of everything; everything still finishes, once.

use std::time::Duration;

use serde_json::json;

use crate::rig::{Rig, Settings, job, native};

const QUEUE: Duration = Duration::from_secs(300);

/// Jobs long enough that some run and some wait when the crash comes.
fn jobs(count: usize) -> Vec<serde_json::Value> {
    let steps = ["echo started", "sleep 3", "echo finished"];
    (0..count)
        .map(|n| job(&format!("job {n}"), &native(), &steps))
        .collect()
}

/// Nobody's work was lost or done twice.
async fn each_ran_once(rig: &Rig, jobs: &[u64]) {
    for id in jobs {
        let job = rig.job(*id).await;
        assert_eq!(job["steps"][2]["output"], "finished\n", "{job:#}");
        assert_eq!(job["assignments"].as_array().unwrap().len(), 1, "{job:#}");
    }
}

#[tokio::test]
async fn the_scheduler_is_killed_while_jobs_run_wait_and_register() {
    let mut rig = Rig::start(Settings {
        scheduler: vec!["--max-runners", "4"],
        ..Settings::default()
    })
    .await;
    let pushed = rig.push("acme/web", jobs(12)).await;
    rig.wait_for(json!({"jobs_in_progress": 1}), QUEUE).await;
    rig.crash_scheduler().await;
    rig.wait_for(json!({"jobs_completed": 4}), QUEUE).await;
    rig.crash_scheduler().await;
    rig.all_end(&pushed.jobs, "success", QUEUE).await;
    each_ran_once(&rig, &pushed.jobs).await;
    rig.finish().await;
}

#[tokio::test]
async fn jobs_pushed_while_the_scheduler_is_down_are_found_by_the_sweep() {
    let mut rig = Rig::start(Settings::default()).await;
    rig.scheduler.process.kill9().await.unwrap();
    let pushed = rig.push("acme/web", jobs(2)).await;
    // Its webhooks reached nobody.
    rig.wait_for(json!({"deliveries_idle": true}), QUEUE).await;
    rig.crash_scheduler().await;
    rig.all_end(&pushed.jobs, "success", QUEUE).await;
    each_ran_once(&rig, &pushed.jobs).await;
    rig.finish().await;
}

#[tokio::test]
async fn the_agent_is_killed_while_containers_run() {
    let mut rig = Rig::start(Settings {
        scheduler: vec!["--max-runners", "4"],
        ..Settings::default()
    })
    .await;
    let pushed = rig.push("acme/web", jobs(8)).await;
    rig.wait_for(json!({"jobs_in_progress": 1}), QUEUE).await;
    rig.crash_agent().await;
    rig.wait_for(json!({"jobs_completed": 3}), QUEUE).await;
    rig.crash_agent().await;
    rig.all_end(&pushed.jobs, "success", QUEUE).await;
    each_ran_once(&rig, &pushed.jobs).await;
    rig.finish().await;
}

#[tokio::test]
async fn both_are_killed_at_once() {
    let mut rig = Rig::start(Settings::default()).await;
    let pushed = rig.push("acme/web", jobs(4)).await;
    rig.wait_for(json!({"jobs_in_progress": 1}), QUEUE).await;
    rig.crash_both().await;
    rig.all_end(&pushed.jobs, "success", QUEUE).await;
    each_ran_once(&rig, &pushed.jobs).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_restarted_scheduler_knows_what_it_knew() {
    let mut rig = Rig::start(Settings::default()).await;
    let done = rig.push("acme/web", jobs(2)).await;
    rig.all_end(&done.jobs, "success", QUEUE).await;
    for id in &done.jobs {
        rig.known_end(*id).await;
    }
    let running = rig
        .push(
            "acme/web",
            vec![job(
                "long",
                &native(),
                &["sleep 8", "true", "echo finished"],
            )],
        )
        .await;
    rig.job_is(running.jobs[0], "in_progress").await;
    rig.cli_out(&["share", "set", "acme/web", "--weight", "3"])
        .await;
    let fleet = rig.cli_json(&["runner", "status"]).await["fleet"].clone();
    rig.restart_scheduler().await;
    let status = rig.cli_json(&["runner", "status"]).await;
    assert_eq!(status["fleet"], fleet, "the same fleet, not a new one");
    for id in &done.jobs {
        let job = rig.known_end(*id).await;
        assert_eq!(job["conclusion"], "success", "{job:#}");
    }
    rig.all_end(&running.jobs, "success", QUEUE).await;
    each_ran_once(&rig, &running.jobs).await;
    rig.finish().await;
}
