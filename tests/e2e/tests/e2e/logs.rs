//! What a job wrote can be read while it runs and after its runner is gone.

use std::time::Duration;

use longshore_e2e::wait;
use serde_json::json;

use crate::rig::{Rig, SOON, Settings, job, native};

#[tokio::test]
async fn logs_are_there_after_the_runner_is_gone() {
    let mut rig = Rig::start(Settings::default()).await;
    let pushed = rig
        .push("acme/web", vec![job("build", &native(), &["echo a line"])])
        .await;
    let ended = rig.job_is(pushed.jobs[0], "completed").await;
    let runner = ended["runner_name"].as_str().unwrap().to_owned();
    rig.wait_for(json!({"runners": 0}), SOON).await;
    let text = wait::until(
        "the log of the gone runner",
        Duration::from_secs(30),
        || async {
            let output = rig.cli(&["runner", "logs", &runner]).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // GitHub's runner program names each job on its own output.
            if output.status.success() && text.contains("build") {
                Ok(text)
            } else {
                Err(format!("{output:?}"))
            }
        },
    )
    .await
    .unwrap();
    let tail = rig
        .cli_out(&["runner", "logs", &runner, "--tail", "10"])
        .await;
    assert!(
        tail.len() <= 10 && text.ends_with(&tail),
        "{tail:?} of {text:?}"
    );
    // No secret of the hand-over is in it.
    assert!(!text.contains("encoded_jit_config") && !text.contains("PRIVATE KEY"));
    rig.finish().await;
}

#[tokio::test]
async fn following_ends_with_the_runner() {
    let mut rig = Rig::start(Settings::default()).await;
    let pushed = rig
        .push("acme/web", vec![job("build", &native(), &["sleep 4"])])
        .await;
    let running = rig.job_is(pushed.jobs[0], "in_progress").await;
    let runner = running["runner_name"].as_str().unwrap().to_owned();
    // The client's patience is the test's: a follow that never ends fails it.
    let output = rig.cli(&["runner", "logs", "-f", &runner]).await;
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.is_empty());
    rig.all_end(&pushed.jobs, "success", SOON).await;
    rig.finish().await;
}
