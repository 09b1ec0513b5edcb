//! What GitHub says about jobs, in any order and any number of times.

use scheduler_core::model::*;

use crate::world::*;

#[test]
fn the_same_job_seen_three_times_gets_one_runner() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", "self-hosted linux x64");
    world.see(&wanted);
    assert!(world.see(&wanted).is_empty(), "an echo is no news");
    world.see(&wanted);
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn empty_labels_match_nothing() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", ""));
    assert_eq!(world.runners().len(), 0);
    assert_eq!(
        world.reason(1),
        scheduler_core::explain::ReasonCode::NoLabels
    );
    assert_eq!(world.fleet.job(JobId(1)).unwrap().phase(), JobPhase::Queued);
}
