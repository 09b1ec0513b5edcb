//! Runner programs that do not end by themselves (facts.md 5 rows 5 and 6), with short times.

use std::time::Duration;

use longshore_e2e::wait;
use serde_json::{Value, json};

use crate::rig::{Rig, SOON, Settings, job, native};

/// The one ended runner whose exit says this, once there is one.
async fn ended_for(rig: &Rig, why: &str) -> Value {
    wait::until("the stuck runner's end to be known", SOON, || async {
        let all = rig.cli_json(&["runner", "list-containers", "--all"]).await;
        let all = all.as_array().unwrap();
        let told = |c: &&Value| {
            c["exit"]["detail"]
                .as_str()
                .is_some_and(|d| d.contains(why))
        };
        match all.iter().find(told) {
            Some(found) => Ok(found.clone()),
            None => Err(format!("{all:#?}")),
        }
    })
    .await
    .unwrap()
}

/// Its job was given to somebody else while it took it: GitHub forgets the registration, the
/// program polls on. It stands for the job that waits, so nothing goes on while it lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_ghost_is_ended_and_its_job_gets_another_runner() {
    let mut rig = Rig::start(Settings {
        agents: vec![1],
        // No other time ends it within this test.
        scheduler: vec![
            "--idle-timeout",
            "1h",
            "--ghost-age",
            "4s",
            "--ghost-confirmation",
            "2s",
        ],
        ..Settings::default()
    })
    .await;
    let faults = |conflict: f64| json!({"acquire_conflict": conflict, "ghost_runner": true});
    rig.sim
        .http
        .put("/_sim/faults", &faults(1.0))
        .await
        .unwrap();
    let pushed = rig
        .push("acme/web", vec![job("stolen", &native(), &["echo mine"])])
        .await;
    wait::until("a job to be lost while it is taken", SOON, || async {
        let history = rig.sim.look("runners/history").await.unwrap();
        let left = rig.registrations().await.len();
        let made = history.as_array().map_or(0, Vec::len);
        match made > left {
            true => Ok(()),
            false => Err(format!("{history:#}")),
        }
    })
    .await
    .unwrap();
    rig.sim
        .http
        .put("/_sim/faults", &faults(0.0))
        .await
        .unwrap();
    let ended = ended_for(&rig, "registration gone").await;
    assert_eq!(ended["exit"]["cause"], "killed", "{ended:#}");
    rig.all_end(&pushed.jobs, "success", SOON).await;
    let job = rig.known_end(pushed.jobs[0]).await;
    assert_ne!(job["runner"], ended["name"], "{job:#}");
    rig.finish().await;
}

/// After a cancellation some versions say the same line for ever, and ignore SIGINT.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_lives_on_after_its_job_is_killed_and_makes_room() {
    let mut rig = Rig::start(Settings {
        agents: vec![1],
        scheduler: vec!["--after-completion", "5s", "--stop-grace", "2s"],
        ..Settings::default()
    })
    .await;
    let mut stuck = job("cancelled", &native(), &["echo started; sleep 600"]);
    stuck["env"] = json!({"DEMO_RUNNER_FAULT": "never-exit"});
    let first = rig.push("acme/web", vec![stuck]).await;
    rig.job_is(first.jobs[0], "in_progress").await;
    // The node has one place.
    let second = rig
        .push("acme/web", vec![job("next", &native(), &["echo fine"])])
        .await;
    rig.cancel(first.run).await;
    rig.all_end(&first.jobs, "cancelled", SOON).await;
    let ended = ended_for(&rig, "job completed long ago").await;
    assert_eq!(ended["exit"]["cause"], "killed", "{ended:#}");
    rig.all_end(&second.jobs, "success", Duration::from_secs(90))
        .await;
    // GitHub's word of the job stands: the watchdog ended a program, not a job.
    let job = rig.known_end(first.jobs[0]).await;
    assert_eq!(job["conclusion"], "cancelled", "{job:#}");
    rig.finish().await;
}
