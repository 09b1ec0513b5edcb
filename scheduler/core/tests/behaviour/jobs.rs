//! What GitHub says about jobs, in any order and any number of times.

use scheduler_core::{explain::ReasonCode, fact::*, input::*, model::*};

use crate::world::*;

const X64: &str = "self-hosted linux x64";

#[test]
fn the_same_job_seen_three_times_gets_one_runner() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    assert!(world.see(&wanted).is_empty(), "an echo is no news");
    world.see(&wanted);
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn each_runner_is_placed_in_the_name_of_a_job_of_its_own() {
    let mut world = World::started();
    world.join("a", machine());
    let mut named = Vec::new();
    // The first ones wait together, the last one comes later.
    let queued = [1, 2, 3].map(|id| Input::JobSeen(std::sync::Arc::new(job(id, "acme/web", X64))));
    for facts in [world.step(&queued), world.see(&job(4, "acme/web", X64))] {
        named.extend(facts.iter().filter_map(|fact| match fact {
            Fact::RunnerPlaced(placed) => placed.job,
            _ => None,
        }));
    }
    assert_eq!(named, [1, 2, 3, 4].map(JobId));
}

#[test]
fn empty_labels_match_nothing() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", ""));
    assert_eq!(world.runners().len(), 0);
    assert_eq!(world.reason(1), ReasonCode::NoLabels);
}

#[test]
fn labels_match_whatever_their_case() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", "Self-Hosted LINUX X64"));
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn a_waiting_job_holds_no_capacity_until_it_is_queued() {
    let mut world = World::started();
    world.join("a", machine());
    let mut wanted = job(1, "acme/web", X64);
    wanted.phase = JobPhase::Waiting;
    world.see(&wanted);
    assert_eq!(world.runners().len(), 0);
    wanted.phase = JobPhase::Queued;
    world.see(&wanted);
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn a_late_waiting_does_not_undo_queued() {
    let mut world = World::started();
    let mut wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    wanted.phase = JobPhase::Waiting;
    world.see(&wanted);
    world.join("a", machine());
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn completed_before_in_progress_stays_completed() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.complete(&wanted, Some(&runner));
    world.start(&wanted, &runner);
    let seen = world.fleet.job(JobId(1)).unwrap();
    assert_eq!(seen.phase(), JobPhase::Completed);
    assert_eq!(seen.bound.as_ref().unwrap().runner, runner);
    world.see(&wanted);
    assert_eq!(world.runners().len(), 1, "no second runner for an echo");
}

#[test]
fn rerun_echoes_do_not_lower_demand() {
    let mut world = World::started();
    world.see(&job(1, "acme/web", X64));
    for id in 2..7 {
        let mut echo = job(id, "acme/web", X64);
        echo.phase = JobPhase::Completed;
        echo.attempt = 2;
        world.see(&echo);
    }
    world.join("a", machine());
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn a_new_attempt_of_the_same_id_starts_over_and_an_old_one_is_ignored() {
    let mut world = World::started();
    let mut first = job(1, "acme/web", X64);
    world.see(&first);
    world.complete(&first, None);
    let mut second = job(1, "acme/web", X64);
    second.attempt = 2;
    world.see(&second);
    assert_eq!(world.fleet.job(JobId(1)).unwrap().phase(), JobPhase::Queued);
    first.phase = JobPhase::Completed;
    assert!(world.see(&first).is_empty());
}

#[test]
fn cancelling_a_queued_job_ends_its_demand() {
    let mut world = World::started();
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    world.complete(&wanted, None);
    world.join("a", machine());
    assert_eq!(world.runners().len(), 0);
}

#[test]
fn a_forgotten_job_is_not_brought_back_by_a_late_echo() {
    let mut world = World::started();
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    world.complete(&wanted, None);
    world.now.mono += 61 * MINUTE;
    world.now.utc += 61 * MINUTE;
    let facts = world.step(&[Input::Tick]);
    assert!(facts.contains(&Fact::JobForgotten { job: JobId(1) }));
    world.join("a", machine());
    world.see(&wanted);
    assert_eq!(world.runners().len(), 0);
}

#[test]
fn a_job_taken_by_a_stranger_is_counted_and_not_served() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&wanted, &RunnerName::new("their-runner"));
    assert_eq!(world.fleet.status().thefts, 1);
    assert_eq!(
        world.fleet.runner(&runner).unwrap().phase(),
        RunnerPhase::Idle
    );
}

#[test]
fn a_stolen_runner_is_replaced() {
    let mut world = World::started();
    world.join("a", machine());
    let mine = job(1, "acme/web", X64);
    world.see(&mine);
    let runner = world.only_runner();
    world.bring_up(&runner);
    // A job that asks for less appears and GitHub gives it the runner at once.
    let thief = job(2, "acme/web", "self-hosted linux");
    world.start(&thief, &runner);
    assert_eq!(world.runners().len(), 2, "the first job gets another one");
}

#[test]
fn a_surplus_idle_runner_serves_compatible_demand_first() {
    let mut world = World::started();
    world.join("a", machine());
    let first = job(1, "acme/web", X64);
    world.see(&first);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.complete(&first, None);
    world.see(&job(2, "acme/web", "self-hosted linux"));
    assert_eq!(world.runners().len(), 1, "the idle one takes it");
    assert_eq!(world.reason(2), ReasonCode::RunnerOnItsWay);
    world.see(&job(3, "acme/web", "self-hosted linux"));
    assert_eq!(world.runners().len(), 2, "but only one of them");
}

#[test]
fn the_origin_of_a_run_may_come_before_or_after_its_jobs() {
    let origin = Origin {
        event: Some("push".to_owned()),
        head_repository: None,
    };
    let public = |id| {
        let mut wanted = job(id, "acme/web", X64);
        wanted.repository.private = Some(false);
        wanted.origin = Origin::default();
        wanted
    };
    let mut world = World::started();
    world.join("a", machine());
    world.see(&public(100));
    assert_eq!(world.reason(100), ReasonCode::OriginUnknown);
    world.step(&[Input::RunSeen {
        run_id: 1,
        origin: origin.clone(),
    }]);
    assert_eq!(world.runners().len(), 1);
    world.step(&[Input::RunSeen { run_id: 2, origin }]);
    world.see(&public(200));
    assert_eq!(world.runners().len(), 2);
}

#[test]
fn a_private_repository_is_served_before_its_origin_is_known_and_that_is_said() {
    let mut world = World::started();
    world.join("a", machine());
    let mut wanted = job(1, "acme/web", X64);
    wanted.origin = Origin::default();
    world.see(&wanted);
    assert_eq!(world.runners().len(), 1);
    let summary = |world: &World| world.fleet.explain(JobId(1), world.now).unwrap().summary;
    assert!(summary(&world).contains("has not said yet where the code"));
    let origin = Origin {
        event: Some("push".to_owned()),
        head_repository: None,
    };
    world.step(&[Input::RunSeen {
        run_id: wanted.run_id,
        origin,
    }]);
    assert!(!summary(&world).contains("has not said yet"));
}

#[test]
fn a_fork_that_is_learnt_after_its_job_was_taken_ends_the_runner() {
    let mut world = World::started();
    world.join("a", machine());
    let mut wanted = job(1, "acme/web", X64);
    wanted.origin = Origin::default();
    world.see(&wanted);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&wanted, &runner);
    assert!(world.fleet.runner(&runner).unwrap().stopping.is_none());
    let origin = Origin {
        event: Some("pull_request".to_owned()),
        head_repository: Some("mallory/web".to_owned()),
    };
    world.step(&[Input::RunSeen {
        run_id: wanted.run_id,
        origin,
    }]);
    assert!(matches!(
        world.fleet.runner(&runner).unwrap().stopping,
        Some((StopReason::NotAdmitted(_), _))
    ));
}

#[test]
fn a_pull_request_from_a_fork_is_refused_until_a_pool_admits_it() {
    let mut world = World::started();
    world.join("a", machine());
    let mut wanted = job(1, "acme/web", X64);
    wanted.repository.private = Some(false);
    wanted.origin = Origin {
        event: Some("pull_request".to_owned()),
        head_repository: Some("stranger/web".to_owned()),
    };
    world.see(&wanted);
    assert_eq!(world.runners().len(), 0);
    assert_eq!(world.reason(1), ReasonCode::ForkRefused);
    world.command(Command::SetPool(Box::new(Pool {
        fork_pull_requests: Admission::StrictOnly,
        ..pool("forks")
    })));
    assert_eq!(world.runners().len(), 1);
    assert_eq!(world.runners()[0].placed.pool, PoolName::new("forks"));
}

#[test]
fn public_repositories_run_only_on_strict_unless_allowed() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetPool(Box::new(Pool {
        profile: "containers".to_owned(),
        labels: label_set("linux x64 containers"),
        ..pool("loose")
    })));
    let mut wanted = job(1, "acme/web", "self-hosted linux x64 containers");
    wanted.repository.private = Some(false);
    world.see(&wanted);
    assert_eq!(world.runners().len(), 0);
    assert_eq!(world.reason(1), ReasonCode::PublicRepositoryRefused);
}

#[test]
fn a_job_its_pool_does_not_admit_is_stopped_when_it_starts() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetPool(Box::new(Pool {
        repositories: vec!["acme/web".to_owned()],
        precedence: 1,
        ..pool("web-only")
    })));
    world.see(&organization(job(1, "acme/web", X64)));
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&organization(job(2, "acme/secret", X64)), &runner);
    assert!(matches!(
        world.fleet.runner(&runner).unwrap().stopping,
        Some((StopReason::NotAdmitted(_), _))
    ));
}

#[test]
fn bare_self_hosted_is_served_only_when_asked_for() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", "self-hosted"));
    assert_eq!(world.reason(1), ReasonCode::BareSelfHosted);
    world.command(Command::SetPool(Box::new(Pool {
        bare_self_hosted: true,
        ..pool("any")
    })));
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn jobs_no_node_can_run_are_counted_by_what_is_missing_and_start_nothing() {
    let mut world = World::started();
    world.join("a", machine());
    for id in 1..8 {
        world.see(&job(id, "acme/web", "self-hosted linux arm64"));
    }
    world.see(&job(8, "acme/web", "self-hosted linux x64 cuda"));
    assert_eq!(world.runners().len(), 0);
    let filtered = world.fleet.filtered();
    assert_eq!(filtered.get("arm64"), Some(&7));
    assert_eq!(filtered.get("cuda"), Some(&1));
    assert_eq!(world.reason(1), ReasonCode::MissingLabel);
    let queues = world.fleet.queues();
    assert_eq!(queues["acme/web"].pending, 8);
    assert_eq!(queues["acme/web"].filtered.get("arm64"), Some(&7));
    world.join("b", arm_machine());
    assert_eq!(world.on("b"), 4, "they start as soon as a node can");
}

#[test]
fn an_unwatched_repository_takes_its_waiting_jobs_with_it() {
    let mut world = World::started();
    world.see(&job(1, "acme/web", X64));
    world.see(&job(2, "acme/api", X64));
    world.step(&[Input::RepositoryGone {
        id: 0,
        full_name: "acme/web".to_owned(),
    }]);
    assert!(world.fleet.job(JobId(1)).is_none());
    assert!(world.fleet.job(JobId(2)).is_some());
    world.join("a", machine());
    assert_eq!(world.runners().len(), 1);
}
