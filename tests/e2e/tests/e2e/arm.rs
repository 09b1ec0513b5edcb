//! ARM jobs from the push to their end.
//!
//! What is emulated: this host is x64. The steps are arm64 programs (busybox of Debian's
//! arm64) that qemu-user carries out through binfmt_misc; demo-runner, which starts them,
//! is this machine's own program. In the first test the files of a recorded arm64 host and
//! one word of the engine's answer about itself make the agent take this host for arm64;
//! everything after that is the ordinary way of an ordinary job. Native ARM is not met.

use std::path::Path;

use longshore_e2e::wait;
use serde_json::{Value, json};

use crate::image;
use crate::rig::{ArmEngine, ENGINE_SOCKET, Pushed, Rig, SOON, Settings, job, native};

const ARM64: [&str; 3] = ["self-hosted", "linux", "arm64"];
const EMULATED: [&str; 3] = ["self-hosted", "linux", "arm64-emulated"];
const LOOK: &str = "uname -m; echo vendors=$(grep -c vendor_id /proc/cpuinfo)";

/// The step ran on an arm64 machine, as far as a program can tell from `uname`.
fn assert_on_arm64(job: &Value) {
    let said = job["steps"][0]["output"].as_str().unwrap_or_default();
    assert!(said.starts_with("aarch64\n"), "{job:#}");
    // An ARM processor has none: this is what is not native here.
    assert!(!said.contains("vendors=0"), "{job:#}");
}

/// A job that nothing here can run is told why, with the label that is missing.
async fn waits_for(rig: &Rig, id: u64, label: &str) {
    wait::until("the reason", SOON, || async {
        let output = rig.cli(&["explain", &id.to_string(), "-o", "json"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match text.contains(&format!("no node can run {label}")) || text.contains("missing_label") {
            true if text.contains(label) => Ok(()),
            _ => Err(text),
        }
    })
    .await
    .unwrap();
}

/// The first job ran on arm64, the second waits for a label until it is cancelled.
async fn the_first_ran_and_the_other_lacks(mut rig: Rig, pushed: &Pushed, label: &str) {
    rig.all_end(&pushed.jobs[..1], "success", SOON).await;
    assert_on_arm64(&rig.job(pushed.jobs[0]).await);
    waits_for(&rig, pushed.jobs[1], label).await;
    rig.cancel(pushed.run).await;
    let ended = json!({"job": pushed.jobs[1], "status": "completed"});
    rig.wait_for(ended, SOON).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_arm64_job_lands_on_an_arm64_host() {
    let engine = ArmEngine::before(Path::new(ENGINE_SOCKET));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../node-agent/detect/fixtures/arm64-tree")
        .canonicalize()
        .unwrap();
    let rig = Rig::start(Settings {
        image: Some(image::runner_for("arm64")),
        engine_socket: Some(engine.socket()),
        agent_env: vec![(
            "LONGSHORE_PROBE_ROOT".to_owned(),
            tree.display().to_string(),
        )],
        ..Settings::default()
    })
    .await;
    let node = rig.cli_json(&["node", "describe", rig.node()]).await;
    assert_eq!(node["arch"], "arm64", "{node:#}");
    let pushed = rig
        .push(
            "acme/web",
            vec![
                job("arm", &ARM64, &[LOOK]),
                job("x64", &native(), &["true"]),
            ],
        )
        .await;
    // Nobody takes this host for what it really is.
    the_first_ran_and_the_other_lacks(rig, &pushed, "x64").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emulation_serves_only_who_asks_for_it() {
    let rig = Rig::start(Settings {
        image: Some(image::runner_for("arm64")),
        agent_env: vec![("LONGSHORE_EMULATED".to_owned(), "arm64".to_owned())],
        ..Settings::default()
    })
    .await;
    let pushed = rig
        .push(
            "acme/web",
            vec![
                job("emulated", &EMULATED, &[LOOK]),
                job("native", &ARM64, &["true"]),
            ],
        )
        .await;
    the_first_ran_and_the_other_lacks(rig, &pushed, "arm64").await;
}
