//! Sandboxes that are made by crun and by gVisor, on a private engine that has both.

use std::time::Duration;

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::property::State;
use longshore_proto::v1::runner_exit::Cause;

use crate::on::On;
use crate::support::{Bench, kill, run};

/// What gVisor of Debian 12 leaves open, and nothing else: the table of docs/security.md.
const OPEN_UNDER_RUNSC: [&str; 7] = [
    "read_only_rootfs",
    "tmpfs",
    "process_limit",
    "memory_limit",
    "no_swap",
    "cpu_limit",
    "no_devices",
];

fn in_state(told: &pb::SandboxChecked, state: State) -> Vec<&str> {
    let of_it = told.checks.iter().filter(|check| check.state() == state);
    of_it.map(|check| check.name.as_str()).collect()
}

/// The node tries each runtime by itself, says what it saw, and answers a check of it.
pub(crate) async fn a_runtime_is_offered_once_a_sandbox_was_made_by_it(on: On) {
    let class = on.runtime_class();
    let mut bench = Bench::start(&on, "offers").await;
    let image = bench.image();
    for image in ["", &image] {
        let seen = bench.check("strict", image).await;
        assert_eq!(seen.error, None);
        let none = Vec::<&str>::new();
        assert_eq!(in_state(&seen, State::Failed), none, "{seen:#?}");
        let made = seen.checks.iter().find(|c| c.name == "runtime_class");
        let made = made.expect("who made it is told");
        assert_eq!(made.state(), State::Guaranteed, "{made:?}");
        let words = format!("made by {class}");
        assert!(made.detail.contains(&words), "{made:?}");
        let own = bench.check_under("", "strict", "").await;
        let by_own = in_state(&own, State::NotGuaranteed);
        let mut open = in_state(&seen, State::NotGuaranteed);
        open.retain(|name| !by_own.contains(name));
        let expected: &[&str] = match class {
            "runsc" => &OPEN_UNDER_RUNSC,
            _ => &[],
        };
        assert_eq!(open, expected, "{seen:#?}");
    }
    let offer = format!("runtime_{class}");
    bench.told(&offer, State::Guaranteed).await;
    let told = bench.property(&offer);
    assert!(told.evidence.starts_with("probe at 2"), "{told:?}");
    assert!(told.evidence.contains("verified with"), "{told:?}");
    bench.told("own_runtime_runc", State::Guaranteed).await;
    assert_eq!(bench.leftovers(), "", "the slots' networks alone stay");
    bench.finish().await;
}

/// From the hand-over to its end, with the agent killed in the middle.
pub(crate) async fn a_job_is_run_and_adopted(on: On) {
    let class = on.runtime_class();
    let mut bench = Bench::start(&on, "made").await;
    let (runner, idle) = (bench.name("job"), bench.name("idle"));
    let both = [
        (&*runner, run(&bench.image())),
        (&*idle, run(&bench.image())),
    ];
    bench.intend(&both, &[]).await;
    bench.phase(&runner, Phase::Ready).await;
    bench.phase(&idle, Phase::Ready).await;
    for id in bench.containers_of_runners() {
        let by = bench.docker(&["inspect", "-f", "{{.HostConfig.Runtime}}", &id]);
        assert_eq!(by.trim(), class);
    }

    let canary = format!("canary-{}", crate::support::random());
    let job = "echo ran as $(id -u) on $(uname -v); while [ ! -e _work/go ]; do sleep 0.1; done";
    bench.register(&runner, job, &canary).await;
    bench.register(&idle, "", &canary).await;
    let busy = bench.phase(&runner, Phase::Busy).await;
    assert!(busy.worker, "{busy:?}");
    let online = bench.phase(&idle, Phase::Online).await;
    assert!(!online.worker, "{online:?}");
    let everything = bench.docker(&["inspect", &runner]);
    for text in [
        &everything,
        &bench.docker(&["logs", &runner]),
        &bench.agent_log(),
    ] {
        assert!(!text.contains(&canary), "the secret is told: {text}");
    }

    bench.kill_agent();
    bench.start_agent().await;
    bench.intend(&both, &[]).await;
    let adopted = bench.phase(&runner, Phase::Busy).await;
    assert_eq!(adopted.container_id, busy.container_id);
    bench.docker(&["exec", &runner, "touch", "/home/runner/_work/go"]);
    let exit = bench.phase(&runner, Phase::Exited).await.exit;
    let exit = exit.expect("an end has an exit");
    assert_eq!((exit.code, exit.cause()), (Some(0), Cause::Finished));
    let ended = [(&*idle, kill("the test is over", Duration::from_secs(1)))];
    bench.intend(&ended, &[]).await;
    bench.phase(&idle, Phase::Exited).await;
    bench.intend(&[], &[]).await;
    bench.gone(&idle).await;
    bench.finish().await;
}

/// What is asked for and not there is refused, with what is there.
pub(crate) async fn a_runtime_that_is_not_there_is_refused_by_name(on: On) {
    let mut bench = Bench::start(&on, "absent").await;
    let seen = bench.check_under("kata", "strict", "").await;
    let error = seen.error.expect("there is no Kata here");
    assert_eq!(error.reason, "spec_refused", "{error:?}");
    assert!(
        error.detail.contains("kata") && error.detail.contains("runsc"),
        "{error:?}"
    );
    // Left out by the operator, though the engine has it.
    bench.kill_agent();
    bench.add_argument("--runtimes", "runc");
    bench.start_agent().await;
    let seen = bench.check_under("runsc", "strict", "").await;
    assert_eq!(seen.error.expect("left out").reason, "spec_refused");
    bench.finish().await;
}
