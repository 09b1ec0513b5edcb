//! The node looks at its own sandboxes, and says what it saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_core::names::label;
use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::property::State;

use crate::on::{Kind, On};
use crate::support::{Bench, deadline, run};

fn named<'a>(told: &'a pb::SandboxChecked, name: &str) -> &'a pb::Check {
    assert_eq!(told.error, None);
    let found = told.checks.iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("nothing is told of {name}: {told:#?}"))
}

fn in_state(told: &pb::SandboxChecked, state: State) -> Vec<&str> {
    let of_it = told.checks.iter().filter(|check| check.state() == state);
    of_it.map(|check| check.name.as_str()).collect()
}

/// What this engine cannot give, in the probe's words.
fn gaps(bench: &Bench) -> Vec<&'static str> {
    ["own_cgroup_namespace", "no_ipv6"]
        .into_iter()
        .filter(|name| bench.property(name).state() != State::Guaranteed)
        .collect()
}

pub(crate) async fn the_probe_of_the_strict_sandbox_passes_as_a_job(on: On) {
    let mut bench = Bench::start(&on, "probe").await;
    let runner = bench.name("probe");
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    let wanted = [(&*runner, run(&bench.image()))];
    bench.intend(&wanted, std::slice::from_ref(&wish)).await;
    let gaps = gaps(&bench);
    assert!(gaps.is_empty() || on.kind() == Kind::Podman, "{gaps:?}");
    let unclaimed: String = gaps
        .iter()
        .map(|gap| format!(" --unclaimed={gap}"))
        .collect();
    let script = format!("longshore-probe --profile=strict{unclaimed}");
    bench.register(&runner, &script, "unused").await;
    let exited = bench.phase(&runner, Phase::Exited).await;
    let output = bench.output(&runner).await;
    assert_eq!(exited.exit.expect("an exit").code, Some(0), "{output}");
    let lines = |word: &str| output.lines().filter(|line| line.starts_with(word)).count();
    assert!(lines("PASS ") >= 40, "{output}");
    assert_eq!(lines("FAIL "), 0, "{output}");
    bench.finish().await;
}

pub(crate) async fn a_node_publishes_what_it_saw_and_answers_a_check(on: On) {
    let mut bench = Bench::start(&on, "looks").await;
    // At its start, in an image of its own.
    for name in [
        "non_root",
        "no_capabilities",
        "seccomp",
        "read_only_rootfs",
        "no_peers",
        "no_host_services",
        "no_metadata",
        "no_private_networks",
        "log_cap",
        "complete_removal",
    ] {
        let told = bench.property(name);
        assert_eq!(told.state(), State::Guaranteed, "{told:?}");
        assert!(told.evidence.starts_with("probe at 2"), "{told:?}");
    }
    for name in ["no_peers", "no_host_services"] {
        let told = bench.property(name);
        let control = "where somebody listens";
        assert!(told.evidence.contains(control), "{told:?}");
    }

    // Now, from a job's image.
    let image = bench.image();
    let told = bench.check("strict", &image).await;
    assert_eq!(
        in_state(&told, State::Failed),
        Vec::<&str>::new(),
        "{told:#?}"
    );
    assert!(in_state(&told, State::Guaranteed).len() >= 25, "{told:#?}");
    let standard = bench.check("standard", "").await;
    assert_eq!(in_state(&standard, State::Failed), Vec::<&str>::new());
    let root = named(&standard, "read_only_rootfs");
    assert_eq!(root.state(), State::NotGuaranteed);
    assert!(root.detail.contains("standard"), "{root:?}");

    let absent = bench.check("strict", "127.0.0.1:1/absent:1").await;
    let error = absent.error.expect("no such image");
    assert_eq!(error.reason, "image_unavailable", "{error:?}");
    assert!(absent.checks.is_empty());

    assert_eq!(bench.leftovers(), "", "the slots' networks alone stay");
    let images = bench.docker(&["images", "-q", "--filter", "reference=longshore-probe-*"]);
    let own = bench.docker(&["images", "--format", "{{.Repository}}"]);
    assert!(
        !own.contains(bench.table().trim_start_matches("longshore_")),
        "{images} {own}"
    );
    bench.finish().await;
}

pub(crate) async fn a_flushed_table_turns_a_check_red(on: On) {
    let mut bench = Bench::start(&on, "flushed").await;
    let before = bench.check("strict", "").await;
    assert_eq!(
        named(&before, "no_host_services").state(),
        State::Guaranteed
    );

    // The agent puts its table back within seconds: it is taken away again and again.
    let stop = Arc::new(AtomicBool::new(false));
    let table = bench.table();
    let (told, by) = (stop.clone(), on.clone());
    let flushing = std::thread::spawn(move || {
        let line = format!("nft delete table inet {table}");
        while !told.load(Ordering::Relaxed) {
            let _ = by.run(&line);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let during = bench.check("strict", "").await;
    stop.store(true, Ordering::Relaxed);
    flushing.join().unwrap();
    let broken = named(&during, "no_host_services");
    assert_eq!(broken.state(), State::Failed, "{during:#?}");
    assert!(broken.detail.contains("reached"), "{broken:?}");
    // And it is published, so that nothing is placed here.
    bench.told("no_host_services", State::Failed).await;

    // Put back by the agent itself, and seen.
    bench.table_is_back().await;
    let after = bench.check("strict", "").await;
    assert_eq!(
        in_state(&after, State::Failed),
        Vec::<&str>::new(),
        "{after:#?}"
    );
    bench.told("no_host_services", State::Guaranteed).await;
    bench.finish().await;
}

/// Images that the agent under test made for its probes.
fn probe_images(bench: &Bench) -> String {
    let own = format!("label={}={}", label::OWN_IMAGE, bench.instance().as_str());
    bench.docker(&["images", "-aq", "--filter", &own])
}

/// Kills the agent while it looks, so that the probe's image stays.
async fn killed_while_it_looks(bench: &mut Bench) {
    bench.ask("strict", "").await;
    let begin = Instant::now();
    while probe_images(bench).is_empty() {
        assert!(begin.elapsed() < deadline(), "no image is made");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.kill_agent();
    // The engine may be told to remove it at that very moment: then there is nothing to see.
    assert_ne!(probe_images(bench), "", "it outlives the agent");
}

pub(crate) async fn the_image_of_a_killed_agents_probe_goes_at_the_next_start_or_by_purge(on: On) {
    let mut bench = Bench::start(&on, "image").await;
    assert_eq!(probe_images(&bench), "", "a probe that ended leaves none");
    killed_while_it_looks(&mut bench).await;
    let left = probe_images(&bench);
    bench.start_agent().await;
    let begin = Instant::now();
    while left.lines().any(|id| probe_images(&bench).contains(id)) {
        assert!(begin.elapsed() < deadline(), "{left} is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    killed_while_it_looks(&mut bench).await;
    bench.purge_now();
    assert_eq!(probe_images(&bench), "", "nothing of a purged node stays");
    bench.start_agent().await;
    bench.finish().await;
}
