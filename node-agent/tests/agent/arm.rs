//! ARM hosts and emulation.
//!
//! What is real here: the agent, the engine, the kernel, and containers whose every program
//! but the engine's own init is an arm64 one. What is not: their instructions are carried
//! out by Debian's qemu-user through binfmt_misc, since this host is x64, and that the
//! host is arm64 is a recorded tree and one word of the engine's. Native ARM is not met.

use std::path::Path;
use std::sync::OnceLock;

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;

use crate::arm_engine::ArmEngine;
use crate::layout;
use crate::on::On;
use crate::support::{Bench, Desired, run};

/// An arm64 host, as its files show it.
fn recorded() -> String {
    let tree = layout::root().join("node-agent/detect/fixtures/arm64-tree");
    tree.display().to_string()
}

/// An image for arm64: its shell is one, and its runner program a script of that shell.
fn image() -> String {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| layout::image(&["arm64"])).clone()
}

fn on_platform(image: &str, platform: &str) -> Desired {
    match run(image) {
        Desired::Run(spec) => Desired::Run(pb::RunnerSpec {
            platform: platform.into(),
            ..spec
        }),
        other => other,
    }
}

/// Its step says which machine it is on, and whose processor is below it.
async fn prints_aarch64(bench: &mut Bench) {
    let runner = bench.name("arm64");
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    bench
        .intend(&[(&runner, on_platform(&image(), "linux/arm64"))], &[wish])
        .await;
    bench.phase(&runner, Phase::Ready).await;
    let job = "echo machine=$(uname -m); echo vendors=$(grep -c vendor_id /proc/cpuinfo)";
    bench.register(&runner, job, "x").await;
    let exited = bench.phase(&runner, Phase::Exited).await;
    let exit = exited.exit.expect("an end has an exit");
    assert_eq!((exit.code, exit.cause()), (Some(0), Cause::Finished));
    let output = bench.output(&runner).await;
    assert!(output.contains("machine=aarch64"), "{output}");
    // Were this an ARM processor, there would be none: this is what is not native here.
    assert!(!output.contains("vendors=0"), "{output}");
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arm64_host_runs_arm64_jobs_and_no_others() {
    let engine = ArmEngine::before(Path::new(&On::Host.socket()));
    let socket = engine.socket().display().to_string();
    let more = ["--engine-socket", &socket, "--probe-root", &recorded()];
    let mut bench = Bench::start_with(&On::Host, "arm64", &more).await;
    bench
        .until_capability(|told| {
            told.arch == "arm64" && told.labels == ["self-hosted", "linux", "arm64", "docker"]
        })
        .await;
    prints_aarch64(&mut bench).await;

    // The platform is asked for, whatever the image is: the engine would start this one.
    let runner = bench.name("amd64");
    bench
        .intend(&[(&runner, on_platform(&image(), "linux/amd64"))], &[])
        .await;
    let failed = bench.phase(&runner, Phase::Failed).await;
    let error = failed.error.expect("a failure has an error").detail;
    assert!(
        error.contains("arm64") && error.contains("amd64"),
        "{error}"
    );
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emulation_is_offered_when_asked_for_and_under_its_own_label() {
    let mut bench = Bench::start_with(&On::Host, "emulated", &["--emulated", "arm64"]).await;
    bench
        .until_capability(|told| {
            told.arch == "x64"
                && told.labels == ["self-hosted", "linux", "x64", "docker", "arm64-emulated"]
        })
        .await;
    prints_aarch64(&mut bench).await;
    bench.finish().await;
}
