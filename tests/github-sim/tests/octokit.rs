//! GitHub's own JavaScript client, from npm, drives the server. Needs Node 20 and, the first time, an npm registry.

use std::path::Path;
use std::process::Command;

use github_sim::shell::{Options, Server};

fn run(command: &mut Command, what: &str) {
    let out = command
        .output()
        .unwrap_or_else(|e| panic!("{what}: {e}; is Node 20 with npm installed?"));
    assert!(
        out.status.success(),
        "{what} failed:\n{}\n{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn octokit_drives_the_simulator() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("octokit");
    let lock = std::fs::read(folder.join("package-lock.json")).unwrap();
    let done = folder.join("node_modules/.installed-for");
    if std::fs::read(&done).ok().as_deref() != Some(lock.as_slice()) {
        run(
            Command::new("npm")
                .args(["ci", "--no-audit", "--no-fund"])
                .current_dir(&folder),
            "npm ci",
        );
        std::fs::write(&done, &lock).unwrap();
    }
    let sim = Server::start(Options::default()).await.unwrap();
    let (rest, control) = (sim.rest_url(), sim.control_url());
    let test = tokio::task::spawn_blocking(move || {
        let mut node = Command::new("node");
        node.args(["--test", "--test-concurrency=1", "simulator.test.mjs"])
            .env("SIM_REST", rest)
            .env("SIM_CONTROL", control)
            .current_dir(folder);
        run(&mut node, "the octokit test");
    });
    test.await.unwrap();
    assert_eq!(sim.with(|w| w.check()), Vec::<String>::new());
    sim.stop().await;
}
