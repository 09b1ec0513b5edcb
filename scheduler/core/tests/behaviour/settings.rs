//! Pools, shares, floors, and turning scaling on and off.

use std::time::Duration;

use scheduler_core::{effect::*, explain::ReasonCode, fact::*, input::*, model::*};

use crate::world::*;

const X64: &str = "self-hosted linux x64";

fn queue(world: &mut World, repo: &str, ids: std::ops::Range<u64>) {
    let jobs: Vec<Input> = ids
        .map(|id| Input::JobSeen(std::sync::Arc::new(job(id, repo, X64))))
        .collect();
    world.step(&jobs);
}

#[test]
fn a_pool_may_grant_labels_of_its_own_but_never_hardware() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetPool(Box::new(Pool {
        labels: label_set("linux x64 arm64 team-a"),
        ..pool("team")
    })));
    world.see(&job(1, "acme/web", "self-hosted linux x64 team-a"));
    world.see(&job(2, "acme/web", "self-hosted linux arm64 team-a"));
    assert_eq!(world.runners().len(), 1);
    assert_eq!(world.reason(2), ReasonCode::MissingLabel);
}

#[test]
fn a_pool_demands_properties_of_its_nodes() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetPool(Box::new(Pool {
        required_properties: label_set("user_namespace"),
        ..pool("careful")
    })));
    queue(&mut world, "acme/web", 1..2);
    assert_eq!(world.reason(1), ReasonCode::MissingProperty);
    world.join(
        "b",
        Capability {
            properties: machine()
                .properties
                .into_iter()
                .chain(["user_namespace".to_owned()])
                .collect(),
            ..machine()
        },
    );
    assert_eq!(world.on("b"), 1);
}

#[test]
fn a_profile_waits_for_a_node_that_offers_it_and_all_it_stands_on() {
    use scheduler_core::profile;
    let mut world = World::started();
    let without = |gone: &str| Capability {
        properties: machine()
            .properties
            .into_iter()
            .filter(|property| property != gone)
            .collect(),
        ..machine()
    };
    world.join("strict-only", without(&profile::offer("containers")));
    world.command(Command::SetPool(Box::new(Pool {
        profile: "containers".to_owned(),
        ..pool("siblings")
    })));
    queue(&mut world, "acme/web", 1..2);
    assert_eq!(world.reason(1), ReasonCode::MissingProperty);
    let said = |world: &World| {
        let told = world.explain(1);
        told.nodes
            .iter()
            .flat_map(|(_, reasons)| reasons)
            .map(|reason| reason.detail.clone())
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(said(&world).contains("has profile containers, which this node does not offer"));

    // Offered, and yet one property of it was found broken.
    world.join("broken", without("no_peers"));
    assert_eq!(world.on("broken"), 0);
    assert!(said(&world).contains("profile containers of pool siblings requires no_peers"));

    // A root that can be written to is no obstacle: only strict asks for the other.
    world.join("open-root", without("read_only_rootfs"));
    assert_eq!(world.on("open-root"), 1);
}

#[test]
fn names_carry_the_fleet_and_the_pools_prefix() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetPool(Box::new(Pool {
        name_prefix: "build".to_owned(),
        ..pool("named")
    })));
    queue(&mut world, "acme/web", 1..2);
    let name = world.only_runner();
    assert!(name.as_str().starts_with("ls-test-build-"));
    assert!(name.as_str().len() <= 64);
}

#[test]
fn a_new_image_rotates_idle_runners_out() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetPool(Box::new(pool("only"))));
    queue(&mut world, "acme/web", 1..2);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.command(Command::SetPool(Box::new(Pool {
        image: "runner:2".to_owned(),
        ..pool("only")
    })));
    assert_eq!(world.desired(&runner), Desired::StopIfIdle);
    assert!(
        world
            .runners()
            .iter()
            .any(|runner| runner.placed.image == "runner:2"),
        "the waiting job gets a new one"
    );
}

#[test]
fn maxima_of_pool_share_and_fleet_hold_and_are_explained() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetPool(Box::new(Pool {
        maximum: 3,
        ..pool("only")
    })));
    world.command(Command::SetShare {
        subject: "acme/web".to_owned(),
        weight: 1,
        maximum: 1,
    });
    queue(&mut world, "acme/web", 1..3);
    assert_eq!(world.runners().len(), 1);
    let reason = |world: &World, id| {
        let explained = world.fleet.explain(JobId(id), world.now).unwrap();
        explained.reason
    };
    assert!(matches!(
        reason(&world, 2),
        ReasonCode::ShareMaximum | ReasonCode::RunnerOnItsWay
    ));
    queue(&mut world, "acme/api", 10..14);
    assert_eq!(world.runners().len(), 3, "the pool's maximum");
    world.command(Command::StartAutoscaler {
        max_runners: Some(2),
        image: None,
    });
    assert_eq!(world.fleet.max_runners(), 2);
    world.command(Command::SetShare {
        subject: "acme/web".to_owned(),
        weight: 1,
        maximum: 0,
    });
    assert_eq!(
        world.runners().len(),
        3,
        "nothing is stopped, nothing added"
    );
}

#[test]
fn a_share_maximum_frees_up_when_its_runner_ends() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetShare {
        subject: "acme".to_owned(),
        weight: 1,
        maximum: 1,
    });
    queue(&mut world, "acme/web", 1..3);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&job(1, "acme/web", X64), &runner);
    assert_eq!(world.reason(2), ReasonCode::ShareMaximum);
    world.exit(&runner, "finished", 0);
    assert_eq!(world.runners().len(), 1);
    assert_ne!(world.only_runner(), runner);
}

#[test]
fn higher_bands_go_first_and_waiting_moves_up() {
    let mut world = World::started();
    world.command(Command::SetPool(Box::new(Pool {
        priority: Priority::Low,
        repositories: vec!["acme/*".to_owned()],
        ..pool("slow")
    })));
    let early = job(1, "acme/web", X64);
    world.see(&early);
    world.see(&job(2, "beta/app", X64));
    let one_slot = Capability {
        max_runners: 1,
        ..machine()
    };
    world.join("a", one_slot.clone());
    assert_eq!(
        world.runners()[0].placed.job,
        Some(JobId(2)),
        "normal first"
    );
    // Twice the ageing period later the early job outranks a fresh normal one.
    let mut world = World::started();
    world.command(Command::SetPool(Box::new(Pool {
        priority: Priority::Low,
        repositories: vec!["acme/*".to_owned()],
        ..pool("slow")
    })));
    let now = world.now.utc;
    world.see(&JobSeen {
        created_at: now,
        ..early
    });
    world.pass(61 * MINUTE);
    world.see(&JobSeen {
        created_at: world.now.utc,
        ..job(2, "beta/app", X64)
    });
    world.join("a", one_slot);
    assert_eq!(world.runners()[0].placed.job, Some(JobId(1)), "aged first");
}

#[test]
fn weights_divide_a_full_fleet() {
    let mut world = World::started();
    world.command(Command::SetShare {
        subject: "heavy".to_owned(),
        weight: 3,
        maximum: 0,
    });
    queue(&mut world, "heavy/a", 1..30);
    queue(&mut world, "light/b", 101..130);
    world.join("a", machine());
    world.join("b", machine());
    let heavy = world
        .runners()
        .iter()
        .filter(|runner| runner.placed.repository.as_deref() == Some("heavy/a"))
        .count();
    assert_eq!(heavy, 6, "three quarters of eight");
}

#[test]
fn one_flooding_repository_does_not_starve_its_neighbour() {
    let mut world = World::started();
    queue(&mut world, "acme/flood", 1..257);
    queue(&mut world, "acme/light", 1_000..1_001);
    world.join("a", machine());
    assert!(
        world
            .runners()
            .iter()
            .any(|runner| runner.placed.repository.as_deref() == Some("acme/light"))
    );
}

#[test]
fn a_provisioned_floor_stands_for_its_time_and_is_topped_up() {
    let mut world = World::started();
    world.join("a", machine());
    let until = world.now.utc + 10 * MINUTE;
    world.command(Command::Provision {
        scope: repository_scope("acme/web"),
        credential: credential(),
        labels: label_set(X64),
        pool: None,
        count: 2,
        until,
    });
    assert_eq!(world.runners().len(), 2);
    queue(&mut world, "acme/web", 1..2);
    assert_eq!(world.runners().len(), 3, "one for the job, two to spare");
    let facts = world.live(11 * MINUTE);
    assert!(
        facts
            .iter()
            .any(|fact| matches!(fact, Fact::FloorEnded { .. }))
    );
}

#[test]
fn an_idle_floor_is_not_retired_by_the_idle_timeout() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::Provision {
        scope: repository_scope("acme/web"),
        credential: credential(),
        labels: label_set(X64),
        pool: None,
        count: 1,
        until: world.now.utc + 60 * MINUTE,
    });
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.live(20 * MINUTE);
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
}

#[test]
fn a_pools_own_floor_stands_in_the_organisations_it_serves() {
    let mut world = World::started();
    world.join("a", machine());
    world.step(&[Input::BudgetChanged {
        credential: credential(),
        scopes: vec![Scope::Organization {
            login: "acme".to_owned(),
        }],
        registrations: 50,
        limited_until: None,
    }]);
    world.command(Command::SetPool(Box::new(Pool {
        labels: label_set(X64),
        idle_floor: 2,
        ..pool("warm")
    })));
    assert_eq!(world.runners().len(), 2);
    assert!(
        world
            .runners()
            .iter()
            .all(|r| r.placed.repository.is_none())
    );
}

#[test]
fn stopping_the_autoscaler_lets_jobs_finish_and_starts_nothing() {
    let mut world = World::started();
    world.join("a", machine());
    queue(&mut world, "acme/web", 1..3);
    let names: Vec<RunnerName> = world.runners().iter().map(|r| r.name().clone()).collect();
    names.iter().for_each(|name| world.bring_up(name));
    world.start(&job(1, "acme/web", X64), &names[0]);
    world.command(Command::StopAutoscaler);
    assert!(matches!(world.desired(&names[0]), Desired::Run(_)));
    assert_eq!(world.desired(&names[1]), Desired::StopIfIdle);
    queue(&mut world, "acme/web", 5..6);
    assert_eq!(world.runners().len(), 2);
    assert_eq!(world.reason(5), ReasonCode::AutoscalerStopped);
    world.command(Command::StartAutoscaler {
        max_runners: None,
        image: None,
    });
    assert_eq!(world.runners().len(), 4);
}

#[test]
fn the_file_replaces_the_last_file_and_the_api_stands_over_it() {
    let mut world = World::started();
    let configure = |names: &[&str], idle: u64| Command::Configure {
        pools: names.iter().map(|name| pool(name)).collect(),
        shares: vec![("acme".to_owned(), 2, 0)],
        defaults: Box::new(Defaults {
            idle_timeout: Duration::from_secs(idle),
            ..Defaults::default()
        }),
    };
    world.command(configure(&["one", "two"], 100));
    world.command(Command::SetPool(Box::new(Pool {
        image: "mine".to_owned(),
        ..pool("two")
    })));
    assert!(
        world.command(configure(&["one", "two"], 100)).is_empty(),
        "the same file again changes nothing"
    );
    world.command(configure(&["three"], 100));
    let names: Vec<&str> = world
        .fleet
        .pools()
        .map(|entry| entry.pool.name.as_str())
        .collect();
    assert_eq!(names, ["default", "three", "two"]);
    let two = world.fleet.pool(&PoolName::new("two")).unwrap();
    assert_eq!(
        (two.origin, two.pool.image.as_str()),
        (PoolOrigin::Api, "mine")
    );
}

#[test]
fn stopping_a_runner_on_request_kills_it() {
    let mut world = World::started();
    world.join("a", machine());
    queue(&mut world, "acme/web", 1..2);
    let runner = world.only_runner();
    world.command(Command::StopRunner {
        runner: runner.clone(),
        reason: "asked".to_owned(),
    });
    assert!(matches!(world.desired(&runner), Desired::Kill { .. }));
    assert_eq!(world.runners().len(), 2, "the job still gets one");
}
