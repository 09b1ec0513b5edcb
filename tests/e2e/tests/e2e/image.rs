//! The image of the tests' runners: built once, and a case where it is absent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use longshore_e2e::binaries::Binaries;
use longshore_e2e::wait;

use serde_json::Value;

use crate::rig::{Rig, Settings, job, native};

/// The root of the checkout.
fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize()
        .expect("this crate lies in the checkout")
}

/// Name of the image with the stand-in runner program; builds it when it is not there.
pub(crate) fn runner() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| build(&[]))
}

/// The same for amd64 or arm64: steps are of that architecture, the runner program is this machine's.
#[cfg(target_arch = "x86_64")]
pub(crate) fn runner_for(arch: &str) -> String {
    tokio::task::block_in_place(|| build(&[arch]))
}

fn build(more: &[&str]) -> String {
    let program = static_runner();
    let output = Command::new(root().join("tests/demo-runner/image/build"))
        .current_dir(root())
        .args(more)
        .arg("--json")
        .arg("--runner")
        .arg(&program)
        .output()
        .expect("run tests/demo-runner/image/build");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "build the runner image: {stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last: Value = serde_json::from_str(stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("the last line is no JSON ({e}): {stdout}"));
    last["image"]
        .as_str()
        .expect("name of the image")
        .to_owned()
}

/// The runner program without shared libraries: it runs in an image that holds nothing else.
fn static_runner() -> PathBuf {
    if let Some(built) = std::env::var_os("DEMO_RUNNER_BIN") {
        return built.into();
    }
    let rustc = Command::new("rustc")
        .arg("-vV")
        .output()
        .expect("run rustc");
    let version = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let triple = version
        .lines()
        .find_map(|l| l.strip_prefix("host: "))
        .expect("rustc names its host")
        .to_owned();
    let binaries = Binaries::find().expect("folder of the programs");
    let target = binaries
        .folder()
        .parent()
        .expect("target folder")
        .join("static");
    let program = target.join(&triple).join("debug/demo-runner");
    let status = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["build", "--locked", "--quiet", "-p", "demo-runner"])
        .args(["--target", &triple, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .expect("run cargo");
    assert!(status.success(), "build the static runner program");
    program
}

#[tokio::test]
async fn a_job_whose_image_is_absent_waits_and_says_so() {
    // Nothing listens there, so that nobody waits for a name server.
    let absent = "127.0.0.1:1/no-such-image:1";
    let settings = Settings {
        image: Some(absent.to_owned()),
        ..Settings::default()
    };
    let rig = Rig::start(settings).await;
    let ids = rig
        .push("acme/web", vec![job("build", &native(), &["true"])])
        .await;
    let why = wait::until(
        "the reason to name the image",
        Duration::from_secs(90),
        || async {
            let output = rig.cli(&["explain", &ids.jobs[0].to_string()]).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            match text.contains("image_unavailable") && text.contains("no-such-image") {
                true => Ok(text),
                false => Err(text),
            }
        },
    );
    why.await.unwrap();
    assert_eq!(rig.job(ids.jobs[0]).await["status"], "queued");
    // It waits; it does not go round registering.
    assert!(
        rig.registrations_ever().await <= 1,
        "no storm of registrations"
    );
    rig.cancel(ids.run).await;
    rig.finish().await;
}
