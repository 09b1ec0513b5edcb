//! From a queued job to a retired runner, and what may happen on the way.

use scheduler_core::{effect::Desired, input::*, model::*};

use crate::world::*;

#[test]
fn a_job_gets_a_runner_and_nothing_is_left_behind() {
    let mut world = World::started();
    world.join("a", machine());
    world.report("a");
    let wanted = job(1, "acme/web", "self-hosted linux x64");
    world.see(&wanted);
    let runner = world.only_runner();
    assert!(runner.as_str().starts_with("ls-test-"));
    assert_eq!(world.owes(is_register), 1);
    assert_eq!(world.owes(is_intent), 1);
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
    world.report("a");
    assert_eq!(
        world.owes(is_intent),
        0,
        "the report acknowledges the intent"
    );
    world.bring_up(&runner);
    assert_eq!(world.owes(is_register), 0);
    assert_eq!(
        world.fleet.runner(&runner).unwrap().phase(),
        RunnerPhase::Idle
    );
    world.start(&wanted, &runner);
    assert_eq!(
        world.fleet.runner(&runner).unwrap().phase(),
        RunnerPhase::Busy
    );
    world.observe(&runner, ObservedPhase::Busy);
    world.complete(&wanted, Some(&runner));
    world.exit(&runner, "finished", 0);
    assert_eq!(world.runners().len(), 0);
    assert_eq!(world.owes(is_deregister), 0, "GitHub forgot it by itself");
    world.report("a");
    assert_eq!(world.fleet.outstanding().count(), 0);
    assert_eq!(
        world.fleet.node(&node_name("a")).unwrap().used,
        Resources::default()
    );
}
