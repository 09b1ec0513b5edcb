//! Nodes that join, fill up, fall silent, drain and leave.

use scheduler_core::{effect::*, explain::ReasonCode, fact::*, input::*, model::*};

use crate::world::*;

const X64: &str = "self-hosted linux x64";

fn queue(world: &mut World, ids: std::ops::Range<u64>) {
    let jobs: Vec<Input> = ids
        .map(|id| Input::JobSeen(std::sync::Arc::new(job(id, "acme/web", X64))))
        .collect();
    world.step(&jobs);
}

#[test]
fn a_full_fleet_explains_itself_and_goes_on_when_a_slot_is_free() {
    let mut world = World::started();
    world.join("a", machine());
    queue(&mut world, 1..7);
    assert_eq!(world.on("a"), 4);
    let waiting = world
        .fleet
        .explain(JobId(6), world.now)
        .expect("a known job");
    assert_eq!(waiting.nodes[0].1[0].code, ReasonCode::NoCapacity);
    let runner = world.runners()[0].name().clone();
    world.bring_up(&runner);
    world.start(&job(1, "acme/web", X64), &runner);
    world.exit(&runner, "finished", 0);
    assert_eq!(world.on("a"), 4);
}

#[test]
fn a_small_node_still_takes_one_clamped_runner() {
    let mut world = World::started();
    world.join(
        "tiny",
        Capability {
            capacity: Resources {
                cpu_millis: 1_000,
                memory_bytes: GIB,
                gpus: 0,
            },
            ..machine()
        },
    );
    queue(&mut world, 1..3);
    assert_eq!(world.on("tiny"), 1);
    assert_eq!(world.runners()[0].placed.resources.memory_bytes, GIB);
    let explained = world.fleet.explain(JobId(2), world.now).unwrap();
    assert!(explained.nodes[0].1[0].detail.contains("clamped"));
}

#[test]
fn packing_keeps_nodes_free_and_spreading_evens_out() {
    for (placement, expected) in [(Placement::Pack, [2, 0]), (Placement::Spread, [1, 1])] {
        let mut world = World::started();
        world.join("a", machine());
        world.join("b", machine());
        world.command(Command::SetPool(Box::new(Pool {
            placement,
            ..pool("only")
        })));
        queue(&mut world, 1..3);
        assert_eq!([world.on("a"), world.on("b")], expected);
    }
}

#[test]
fn jobs_without_gpu_avoid_gpu_nodes_and_use_them_last() {
    let mut world = World::started();
    world.join("gpu", gpu_machine(&["g1"], true));
    world.join("plain", machine());
    queue(&mut world, 1..5);
    assert_eq!([world.on("gpu"), world.on("plain")], [0, 4]);
    queue(&mut world, 5..6);
    assert_eq!(world.on("gpu"), 1);
}

#[test]
fn gpus_are_leased_exclusively_by_uuid() {
    let mut world = World::started();
    world.join("gpu", gpu_machine(&["g1", "g2"], true));
    for id in 1..4 {
        world.see(&job(id, "acme/web", "self-hosted linux x64 cuda"));
    }
    let mut leased: Vec<String> = world
        .runners()
        .iter()
        .flat_map(|runner| runner.placed.gpu_uuids.clone())
        .collect();
    leased.sort();
    assert_eq!(leased, ["g1", "g2"]);
    let explained = world.fleet.explain(JobId(3), world.now).unwrap();
    assert_eq!(explained.nodes[0].1[0].code, ReasonCode::NoCapacity);
}

#[test]
fn cuda_is_answered_only_by_a_proven_gpu() {
    let mut world = World::started();
    world.join("gpu", gpu_machine(&["g1"], false));
    world.see(&job(1, "acme/web", "self-hosted linux x64 cuda"));
    assert_eq!(world.runners().len(), 0);
    let explained = world.fleet.explain(JobId(1), world.now).unwrap();
    assert!(
        explained.nodes[0]
            .1
            .iter()
            .any(|r| r.code == ReasonCode::NoGpu)
    );
    let mut report = world.report_of("gpu");
    report.capability = Some(gpu_machine(&["g1"], true));
    world.step(&[Input::NodeReported(Box::new(report))]);
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn an_instance_and_its_gpu_are_never_both_leased() {
    let mut world = World::started();
    // Leased whole, then cut while the job runs.
    world.join("gpu", gpu_machine(&["whole"], true));
    world.see(&job(1, "acme/web", "self-hosted linux x64 cuda"));
    assert_eq!(leases(&world), ["whole"]);
    let mut report = world.report_of("gpu");
    report.capability = Some(cut_machine());
    world.step(&[Input::NodeReported(Box::new(report))]);
    world.see(&job(2, "acme/web", "self-hosted linux x64 cuda"));
    assert_eq!(leases(&world), ["whole"], "its parts are not free");

    // An instance is leased, and the node tells of the whole alone while it is.
    let mut world = World::started();
    let mut one = cut_machine();
    one.gpus.truncate(2);
    world.join("gpu", one);
    world.see(&job(1, "acme/web", "self-hosted linux x64 cuda"));
    let mut report = world.report_of("gpu");
    report.capability = Some(gpu_machine(&["whole"], true));
    world.step(&[Input::NodeReported(Box::new(report))]);
    world.see(&job(2, "acme/web", "self-hosted linux x64 cuda"));
    assert_eq!(leases(&world), ["part-1"], "the whole may hold it");

    let mut world = World::started();
    world.join("gpu", cut_machine());
    for id in 1..4 {
        world.see(&job(id, "acme/web", "self-hosted linux x64 cuda"));
    }
    assert_eq!(
        leases(&world),
        ["part-1", "part-2"],
        "the whole is not free"
    );
}

#[test]
fn a_withheld_gpu_is_not_given_and_its_reason_is_explained() {
    let mut world = World::started();
    let mut capability = gpu_machine(&["g1", "g2"], true);
    capability.gpus[0].withheld = Some(withheld("gpu_fault"));
    world.join("gpu", capability.clone());
    for id in 1..3 {
        world.see(&job(id, "acme/web", "self-hosted linux x64 gpu"));
    }
    assert_eq!(leases(&world), ["g2"]);
    assert_eq!(
        world.fleet.node(&node_name("gpu")).unwrap().state_word(),
        "ready"
    );

    // The one that is held falls ill: its job goes on, nothing new comes.
    capability.gpus[1].withheld = Some(withheld("gpu_lost"));
    let mut report = world.report_of("gpu");
    report.capability = Some(capability.clone());
    world.step(&[Input::NodeReported(Box::new(report))]);
    assert_eq!(leases(&world), ["g2"]);
    let explained = world.fleet.explain(JobId(2), world.now).unwrap();
    let told: Vec<_> = explained.nodes[0].1.iter().collect();
    assert!(
        told.iter().any(|reason| reason.code == ReasonCode::NoGpu
            && reason.detail.contains("told as gpu_fault")
            && reason.unblocked_by == "end gpu_fault"),
        "{told:?}"
    );

    capability.gpus[0].withheld = None;
    let mut report = world.report_of("gpu");
    report.capability = Some(capability);
    world.step(&[Input::NodeReported(Box::new(report))]);
    assert_eq!(leases(&world), ["g1", "g2"]);
}

#[test]
fn a_pool_says_what_its_gpus_must_have() {
    let needs = |memory_mib, compute_capability, models: &[&str]| GpuNeeds {
        memory_mib,
        compute_capability,
        models: models.iter().map(|model| (*model).to_owned()).collect(),
    };
    for (gpu, given, words) in [
        (needs(0, (0, 0), &[]), "small", ""),
        (needs(20_000, (0, 0), &[]), "large", ""),
        (needs(0, (9, 0), &[]), "large", ""),
        (needs(0, (0, 0), &["b200", "h100"]), "large", ""),
        (needs(100_000, (0, 0), &[]), "", "at least 100000 MiB"),
        (needs(0, (10, 1), &[]), "", "compute capability 10.1"),
        (needs(0, (0, 0), &["A100"]), "", "model A100"),
    ] {
        let mut world = World::started();
        let mut capability = gpu_machine(&["large", "small"], true);
        capability.gpus[0].product = "NVIDIA H100 80GB HBM3".to_owned();
        capability.gpus[0].memory_mib = 81_559;
        capability.gpus[0].compute_capability = "10.0".to_owned();
        world.join("gpu", capability);
        world.command(Command::SetPool(Box::new(Pool {
            gpu,
            precedence: 5,
            ..pool("chosen")
        })));
        world.see(&job(1, "acme/web", "self-hosted linux x64 cuda"));
        assert_eq!(leases(&world).concat(), given, "{words}");
        if given.is_empty() {
            let explained = world.fleet.explain(JobId(1), world.now).unwrap();
            let told = &explained.nodes[0].1;
            assert!(
                told.iter().any(|reason| reason.code == ReasonCode::NoGpu
                    && reason.detail.contains(words)
                    && reason.detail.contains("NVIDIA H100")),
                "{told:?}"
            );
        }
    }
}

/// UUIDs that runners hold.
fn leases(world: &World) -> Vec<String> {
    let mut leased: Vec<String> = world
        .runners()
        .iter()
        .flat_map(|runner| runner.placed.gpu_uuids.clone())
        .collect();
    leased.sort();
    leased
}

#[test]
fn foreign_runners_are_counted_and_never_touched() {
    let mut world = World::started();
    world.join("a", machine());
    let stranger = RunnerName::new("ls-test-unknown");
    world.seen.get_mut(&node_name("a")).unwrap().insert(
        stranger.clone(),
        ObservedRunner {
            name: stranger.clone(),
            phase: ObservedPhase::Busy,
            observation: 3,
            worker: true,
            container_id: "f00".to_owned(),
            foreign: true,
            remove_refused: false,
            exit: None,
            error: None,
        },
    );
    world.report("a");
    queue(&mut world, 1..6);
    assert_eq!(world.on("a"), 3, "its estimate is kept free");
    let intent = world.fleet.intent(&node_name("a")).unwrap();
    assert!(intent.runners.iter().all(|wanted| wanted.name != stranger));
    world
        .seen
        .get_mut(&node_name("a"))
        .unwrap()
        .remove(&stranger);
    world.report("a");
    assert_eq!(world.on("a"), 4);
}

#[test]
fn a_cordoned_node_takes_nothing_new_and_keeps_what_runs() {
    let mut world = World::started();
    world.join("a", machine());
    queue(&mut world, 1..2);
    world.command(Command::CordonNode {
        node: node_name("a"),
    });
    queue(&mut world, 2..3);
    assert_eq!(world.on("a"), 1);
    assert_eq!(world.reason(2), ReasonCode::RunnerOnItsWay);
    assert!(world.fleet.intent(&node_name("a")).unwrap().cordoned);
    world.command(Command::UncordonNode {
        node: node_name("a"),
    });
    assert_eq!(world.on("a"), 2);
}

#[test]
fn draining_stops_idle_runners_at_once_and_busy_ones_at_the_deadline() {
    let mut world = World::started();
    world.join("a", machine());
    queue(&mut world, 1..3);
    let names: Vec<RunnerName> = world.runners().iter().map(|r| r.name().clone()).collect();
    for name in &names {
        world.bring_up(name);
    }
    world.start(&job(1, "acme/web", X64), &names[0]);
    let deadline = Some(world.now.utc + 20 * MINUTE);
    world.command(Command::DrainNode {
        node: node_name("a"),
        deadline,
    });
    assert_eq!(world.desired(&names[1]), Desired::StopIfIdle);
    assert!(matches!(world.desired(&names[0]), Desired::Run(_)));
    world.live(21 * MINUTE);
    assert!(matches!(world.desired(&names[0]), Desired::Kill { .. }));
}

#[test]
fn a_silent_node_becomes_unreachable_its_jobs_are_not_replaced() {
    let mut world = World::started();
    world.join("a", machine());
    world.join("b", machine());
    queue(&mut world, 1..2);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&job(1, "acme/web", X64), &runner);
    world.lose("a");
    assert!(world.fleet.node(&node_name("a")).unwrap().is_reachable());
    world.pass(31_000);
    assert!(!world.fleet.node(&node_name("a")).unwrap().is_reachable());
    assert_eq!(world.runners().len(), 1, "its running job is not replaced");
    world.join("a", machine());
    assert!(world.fleet.node(&node_name("a")).unwrap().is_reachable());
}

#[test]
fn a_waiting_job_whose_runner_fell_silent_gets_another_elsewhere() {
    let mut world = World::started();
    world.join("a", machine());
    queue(&mut world, 1..2);
    world.lose("a");
    world.join("b", machine());
    world.pass(25_000);
    world.report("b");
    world.pass(10_000);
    assert_eq!([world.on("a"), world.on("b")], [1, 1]);
}

#[test]
fn after_a_long_silence_of_our_own_every_node_gets_a_full_lease() {
    let mut world = World::started();
    world.join("a", machine());
    world.now.mono += 10 * MINUTE;
    world.now.utc += 10 * MINUTE;
    world.step(&[]);
    assert!(world.fleet.node(&node_name("a")).unwrap().is_reachable());
    world.pass(31_000);
    assert!(!world.fleet.node(&node_name("a")).unwrap().is_reachable());
}

#[test]
fn a_runner_its_node_no_longer_knows_is_retired_and_replaced() {
    let mut world = World::started();
    world.join("a", machine());
    queue(&mut world, 1..2);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.seen.get_mut(&node_name("a")).unwrap().clear();
    let facts = world.live(20_000);
    assert!(facts.iter().any(|fact| matches!(
        fact,
        Fact::RunnerRetired {
            why: RetireReason::Vanished,
            deregister: true,
            ..
        }
    )));
    assert_ne!(world.only_runner(), runner);
}

#[test]
fn a_report_older_than_a_runner_does_not_make_it_vanish() {
    let mut world = World::started();
    world.join("a", machine());
    world.report("a");
    let stale = world.report_of("a");
    queue(&mut world, 1..2);
    let runner = world.only_runner();
    for _ in 0..20 {
        world.now.mono += 9_000;
        world.now.utc += 9_000;
        world.step(&[Input::NodeReported(Box::new(stale.clone()))]);
    }
    assert_eq!(world.only_runner(), runner, "no other took its place");
    assert_eq!(world.owes(is_intent), 1, "it still has to hear of it");
}

#[test]
fn one_report_without_a_runner_is_not_its_end() {
    let mut world = World::started();
    world.join("a", machine());
    queue(&mut world, 1..2);
    let runner = world.only_runner();
    world.bring_up(&runner);
    let known = world.seen.get_mut(&node_name("a")).map(std::mem::take);
    world.report("a");
    world.pass(5_000);
    world.seen.insert(node_name("a"), known.unwrap());
    world.live(60_000);
    assert_eq!(world.only_runner(), runner);
}

#[test]
fn memory_bounds_a_node_before_its_processors_do() {
    let mut world = World::started();
    let mut narrow = machine();
    narrow.capacity.cpu_millis = 64_000;
    narrow.capacity.memory_bytes = 9 * GIB;
    world.join("a", narrow);
    queue(&mut world, 1..9);
    assert_eq!(world.on("a"), 2, "two runners of 4 GiB each");
}

#[test]
fn words_of_an_older_stream_are_void() {
    let mut world = World::started();
    world.join("a", machine());
    let mut old = world.report_of("a");
    world.join("a", machine());
    old.conditions.push(Condition {
        kind: "disk_full".to_owned(),
        detail: String::new(),
        next_step: String::new(),
        image: None,
    });
    assert!(world.step(&[Input::NodeReported(Box::new(old))]).is_empty());
}

#[test]
fn a_node_that_obeyed_a_higher_epoch_raises_ours() {
    let mut world = World::started();
    world.step(&[Input::NodeAttached(Box::new(NodeAttached {
        node: node_name("a"),
        session: 1,
        highest: Generation {
            epoch: 9,
            counter: 4,
        },
        capability: machine(),
        clock_offset_ms: 0,
    }))]);
    assert_eq!(world.fleet.epoch(), 10);
    let generation = world.fleet.intent(&node_name("a")).unwrap().generation;
    assert_eq!(generation.epoch, 10);
}

#[test]
fn every_change_of_an_intent_has_a_higher_generation() {
    let mut world = World::started();
    world.join("a", machine());
    let mut last = world.fleet.intent(&node_name("a")).unwrap();
    queue(&mut world, 1..4);
    for _ in 0..2 {
        world.command(Command::CordonNode {
            node: node_name("a"),
        });
        let next = world.fleet.intent(&node_name("a")).unwrap();
        assert!(next.generation > last.generation);
        last = next;
        world.command(Command::UncordonNode {
            node: node_name("a"),
        });
        let next = world.fleet.intent(&node_name("a")).unwrap();
        assert!(next.generation > last.generation);
        last = next;
    }
}

#[test]
fn a_clock_too_far_off_keeps_work_away() {
    let mut world = World::started();
    world.join("a", machine());
    let mut report = world.report_of("a");
    report.clock_offset_ms = -90_000;
    world.step(&[Input::NodeReported(Box::new(report))]);
    queue(&mut world, 1..2);
    assert_eq!(world.reason(1), ReasonCode::NodeCondition);
    world.report("a");
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn removing_a_node_retires_its_runners_and_deletes_their_registrations() {
    let mut world = World::started();
    world.join("a", machine());
    world.join("b", machine());
    queue(&mut world, 1..2);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.command(Command::RemoveNode {
        node: node_name("a"),
    });
    assert!(world.fleet.node(&node_name("a")).is_none());
    assert_eq!(world.owes(is_deregister), 1);
    assert_eq!(world.on("b"), 1);
}

#[test]
fn a_node_whose_engine_has_not_answered_yet_is_not_ready() {
    let mut world = World::started();
    world.join("a", Capability::default());
    world.report("a");
    queue(&mut world, 1..2);
    let node = world.fleet.node(&node_name("a")).unwrap();
    assert_eq!(node.state_word(), "not_ready");
    assert_eq!(world.fleet.status().nodes_ready, 0);
    assert_eq!(world.reason(1), ReasonCode::NodeCondition);
    let mut report = world.report_of("a");
    report.capability = Some(machine());
    world.step(&[Input::NodeReported(Box::new(report))]);
    let node = world.fleet.node(&node_name("a")).unwrap();
    assert_eq!(node.state_word(), "ready");
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn a_node_hears_which_kinds_of_runner_pools_may_place_there() {
    let mut world = World::started();
    let with = |name: &str, image: &str, labels: &str| Pool {
        image: image.to_owned(),
        labels: label_set(labels),
        ..pool(name)
    };
    let mut gpu = with("gpu", "gpu:1", "linux x64 gpu");
    gpu.resources.gpus = 1;
    let mut demanding = with("demanding", "demanding:1", "linux x64");
    demanding
        .required_properties
        .insert("nobody_has_it".to_owned());
    for pool in [
        with("arm", "arm:1", "linux arm64"),
        with("first", "one:1", "linux x64 team"),
        with("same", "one:1", "linux x64 other-team"),
        gpu,
        demanding,
    ] {
        world.command(Command::SetPool(Box::new(pool)));
    }
    world.join("x", machine());
    world.join("arm", arm_machine());
    let kinds = |world: &World, node: &str| -> Vec<(String, String, String)> {
        let intent = world.fleet.intent(&node_name(node)).expect("a known node");
        let kinds = intent.expected.into_iter();
        kinds
            .map(|kind| (kind.pool.to_string(), kind.image, kind.platform))
            .collect()
    };
    let images = |world: &World, node: &str| -> Vec<String> {
        let kinds = kinds(world, node).into_iter();
        kinds
            .map(|(_, image, _)| image)
            .filter(|image| image.ends_with(":1"))
            .collect()
    };
    // Once for two pools that ask alike; none for a GPU or what the node lacks.
    assert_eq!(images(&world, "x"), ["one:1"]);
    assert_eq!(images(&world, "arm"), ["arm:1"]);
    assert!(
        kinds(&world, "arm")
            .iter()
            .all(|(.., platform)| platform == "linux/arm64")
    );

    // Bounded, however many pools there are.
    for n in 0..30 {
        let many = with(&format!("many-{n}"), &format!("m{n}:1"), "linux x64");
        world.command(Command::SetPool(Box::new(many)));
    }
    assert_eq!(kinds(&world, "x").len(), 8);
}
