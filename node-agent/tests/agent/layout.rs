//! An image laid out as GitHub's, in every profile. Its programs are stand-ins; where they
//! lie, whose they are and what may be written is as in the original.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;

use crate::on::On;
use crate::profiles::under;
use crate::support::{Bench, LISTENER};

pub(crate) fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().unwrap()
}

/// The demo's image, for its own architecture or `arm64`, with a script for a runner program.
pub(crate) fn image(arch: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("runner");
    // It is both programs, by the name it is called by.
    let worker = "case $0 in *Runner.Worker) . /home/runner/.job; exit;; esac\n";
    let script = LISTENER.replacen('\n', &format!("\n{worker}"), 1);
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let built = Command::new(root().join("tests/demo-runner/image/build"))
        .args(arch)
        .arg("--runner")
        .arg(&program)
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{words}");
    String::from_utf8(built.stdout).unwrap().trim().to_owned()
}

/// A name, and a line of a shell that has to succeed in the runner's folder.
const CHECKS: [(&str, &str); 12] = [
    ("user", "[ $(id -u):$(id -g) = 1001:1001 ]"),
    (
        "home",
        "[ $PWD = /home/runner ] && [ $HOME = /home/runner ]",
    ),
    (
        "memory",
        "grep -q '^tmpfs /home/runner tmpfs rw' /proc/mounts",
    ),
    (
        "hidden",
        "[ ! -e run.sh ] && [ ! -e config.sh ] && [ ! -e k8s ]",
    ),
    (
        "runner",
        "[ -x bin/Runner.Listener ] && [ -x bin/Runner.Worker ] && [ -e bin/Runner.PluginHost ]",
    ),
    (
        "node",
        "[ -x externals/node20/bin/node ] && [ -x externals/node24_alpine/bin/node ]",
    ),
    (
        "bin",
        "grep -q ' /home/runner/bin [a-z0-9]* ro' /proc/mounts && ! { echo x >>bin/Runner.Listener; } 2>/dev/null && ! { echo x >bin/new; } 2>/dev/null",
    ),
    (
        "externals",
        "grep -q ' /home/runner/externals [a-z0-9]* ro' /proc/mounts && ! { echo x >externals/new; } 2>/dev/null",
    ),
    // What the runner program writes beside its own files.
    (
        "files",
        "echo x >.env && echo x >.path && mkdir -p _diag && echo x >_diag/Runner.log",
    ),
    (
        "work",
        "mkdir -p _work/_temp _work/_tool _work/_actions && echo x >_work/_temp/x && ! grep -q ' /home/runner/_work tmpfs' /proc/mounts",
    ),
    (
        "sudo",
        "[ -e /etc/sudoers.d/runner ] && ! sudo true 2>/dev/null",
    ),
    ("root", "grep -q '^[^ ]* / [a-z0-9]* ROOT[, ]' /proc/mounts"),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_githubs_layout_works_in_every_profile() {
    let image = image(&[]);
    let mut bench = Bench::start(&On::Host, "layout").await;
    let own = bench.docker(&["image", "inspect", "-f", "{{json .Config}}", &image]);
    let own: serde_json::Value = serde_json::from_str(&own).unwrap();
    // GitHub's names a user and nothing to run.
    assert_eq!(own["User"], "runner");
    assert!(own["Cmd"].is_null() && own["Entrypoint"].is_null(), "{own}");
    for profile in ["strict", "standard", "containers"] {
        let mut job = String::new();
        for (name, line) in CHECKS {
            let root = if profile == "strict" { "ro" } else { "rw" };
            let line = line.replace("ROOT", root);
            job.push_str(&format!(
                "if {line}; then echo {name} holds; else echo {name} fails; fi\n"
            ));
        }
        let runner = bench.name(profile);
        let wish = pb::LogSubscription {
            runner: runner.clone(),
            offset: 0,
        };
        bench
            .intend(&[(&runner, under(profile, &image))], &[wish])
            .await;
        bench.phase(&runner, Phase::Ready).await;
        bench.register(&runner, &job, "x").await;
        let exited = bench.phase(&runner, Phase::Exited).await;
        let exit = exited.exit.expect("an end has an exit");
        assert_eq!((exit.code, exit.cause()), (Some(0), Cause::Finished));
        let output = bench.output(&runner).await;
        for (name, line) in CHECKS {
            assert!(
                output.contains(&format!("{name} holds")),
                "{profile}: {line}:\n{output}"
            );
        }
        bench.intend(&[], &[]).await;
        bench.gone(&runner).await;
    }
    bench.finish().await;
}
