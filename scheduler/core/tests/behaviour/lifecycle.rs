//! From a queued job to a retired runner, and what may happen on the way.

use std::time::Duration;

use scheduler_core::{effect::*, explain::ReasonCode, fact::*, input::*, model::*};

use crate::world::*;

const X64: &str = "self-hosted linux x64";

/// One idle runner whose job went away.
fn idle_world() -> (World, RunnerName) {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.complete(&wanted, None);
    (world, runner)
}

fn answer(world: &mut World, runner: &RunnerName, outcome: Deregistration) -> Vec<Fact> {
    world.step(&[Input::Deregistered {
        runner: runner.clone(),
        outcome,
    }])
}

fn retired(facts: &[Fact]) -> Option<(RetireReason, bool)> {
    facts.iter().find_map(|fact| match fact {
        Fact::RunnerRetired {
            why, deregister, ..
        } => Some((why.clone(), *deregister)),
        _ => None,
    })
}

#[test]
fn a_job_gets_a_runner_and_nothing_is_left_behind() {
    let mut world = World::started();
    world.join("a", machine());
    world.report("a");
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    assert!(runner.as_str().starts_with("ls-test-"));
    assert_eq!(world.owes(is_register), 1);
    assert_eq!(world.owes(is_intent), 1);
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
    world.report("a");
    assert_eq!(world.owes(is_intent), 0, "the report acknowledges it");
    world.bring_up(&runner);
    assert_eq!(world.owes(is_register), 0);
    let phase = |world: &World| world.fleet.runner(&runner).unwrap().phase();
    assert_eq!(phase(&world), RunnerPhase::Idle);
    world.start(&wanted, &runner);
    assert_eq!(phase(&world), RunnerPhase::Busy);
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

#[test]
fn the_exit_alone_makes_progress_when_completed_is_lost() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&wanted, &runner);
    world.exit(&runner, "finished", 0);
    assert_eq!(world.runners().len(), 0);
}

#[test]
fn an_unclean_exit_deletes_the_registration_until_it_is_gone() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&wanted, &runner);
    let facts = world.exit(&runner, "out_of_memory", 137);
    assert_eq!(retired(&facts), Some((RetireReason::Finished, true)));
    assert_eq!(world.owes(is_deregister), 1);
    answer(&mut world, &runner, Deregistration::Failed);
    assert_eq!(world.owes(is_deregister), 0, "rests after a failure");
    world.live(60_000);
    assert_eq!(world.owes(is_deregister), 1, "and is owed again");
    answer(&mut world, &runner, Deregistration::Gone);
    assert_eq!(world.owes(is_deregister), 0);
    assert_eq!(world.fleet.orphans().count(), 0);
}

#[test]
fn an_idle_runner_is_removed_only_after_the_four_way_check() {
    let (mut world, runner) = idle_world();
    world.live(4 * MINUTE);
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
    world.now.mono += 70_000;
    world.now.utc += 70_000;
    world.step(&[]);
    assert_eq!(world.desired(&runner), Desired::StopIfIdle);
    assert_eq!(world.owes(is_deregister), 0, "the node has not looked yet");
    world.report("a");
    assert_eq!(
        world.owes(is_deregister),
        1,
        "no worker: now GitHub is asked"
    );
    answer(&mut world, &runner, Deregistration::Gone);
    let observation = world.seen[&node_name("a")][&runner].observation;
    assert_eq!(world.desired(&runner), Desired::Remove { observation });
    let facts = world.exit(&runner, "idle", 0);
    assert_eq!(retired(&facts), Some((RetireReason::Stopped, false)));
    assert_eq!(world.owes(is_deregister), 0);
}

#[test]
fn a_worker_that_appears_during_the_check_keeps_the_runner() {
    let (mut world, runner) = idle_world();
    world.live(6 * MINUTE);
    assert_eq!(world.owes(is_deregister), 1);
    answer(&mut world, &runner, Deregistration::Gone);
    world.observe_with(&runner, |seen| {
        seen.phase = ObservedPhase::Busy;
        seen.worker = true;
        seen.remove_refused = true;
    });
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
    assert_eq!(
        world.fleet.runner(&runner).unwrap().phase(),
        RunnerPhase::Busy
    );
    let facts = world.exit(&runner, "finished", 0);
    assert_eq!(retired(&facts), Some((RetireReason::Finished, false)));
}

#[test]
fn a_worker_seen_by_the_check_keeps_github_out_of_it() {
    let (mut world, runner) = idle_world();
    world.now.mono += 6 * MINUTE;
    world.now.utc += 6 * MINUTE;
    world.step(&[]);
    assert_eq!(world.desired(&runner), Desired::StopIfIdle);
    world.observe(&runner, ObservedPhase::Busy);
    assert_eq!(world.owes(is_deregister), 0);
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
}

#[test]
fn a_deletion_refused_as_busy_keeps_the_runner() {
    let (mut world, runner) = idle_world();
    world.live(6 * MINUTE);
    answer(&mut world, &runner, Deregistration::Busy);
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
    assert_eq!(
        world.fleet.runner(&runner).unwrap().phase(),
        RunnerPhase::Busy
    );
    world.live(6 * MINUTE);
    assert_eq!(
        world.desired(&runner),
        Desired::StopIfIdle,
        "without a worker it is asked again later"
    );
}

#[test]
fn a_job_bound_during_the_check_keeps_the_runner() {
    let (mut world, runner) = idle_world();
    world.live(6 * MINUTE);
    world.start(&job(2, "acme/web", X64), &runner);
    assert_eq!(world.owes(is_deregister), 0);
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
}

#[test]
fn a_runner_past_its_lifetime_is_killed() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&wanted, &runner);
    world.now.mono += 22_501_000;
    world.now.utc += 22_501_000;
    world.step(&[]);
    assert!(matches!(world.desired(&runner), Desired::Kill { .. }));
}

#[test]
fn a_runner_alive_long_after_its_job_completed_is_killed() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&wanted, &runner);
    world.observe(&runner, ObservedPhase::Busy);
    world.complete(&wanted, Some(&runner));
    world.live(9 * MINUTE);
    assert!(matches!(world.desired(&runner), Desired::Run(_)));
    world.live(2 * MINUTE);
    assert!(matches!(world.desired(&runner), Desired::Kill { .. }));
}

#[test]
fn a_ghost_is_killed_after_two_lists_miss_it() {
    let mut world = World::started();
    world.join("a", machine());
    world.command(Command::SetPool(Box::new(Pool {
        idle_timeout: std::time::Duration::from_secs(3_600),
        ..pool("patient")
    })));
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    world.bring_up(&runner);
    let missing = [Input::RunnersListed {
        scope: repository_scope("acme/web"),
        runners: Vec::new(),
    }];
    world.step(&missing);
    world.live(2 * MINUTE);
    world.step(&missing);
    assert!(
        matches!(world.desired(&runner), Desired::Run(_)),
        "lists lag behind young registrations"
    );
    world.live(4 * MINUTE);
    world.step(&missing);
    world.live(30_000);
    world.step(&missing);
    assert!(
        matches!(world.desired(&runner), Desired::Run(_)),
        "one list may be wrong, two at once as well"
    );
    world.live(31_000);
    world.step(&missing);
    assert!(matches!(world.desired(&runner), Desired::Kill { .. }));
}

#[test]
fn orphans_of_this_fleet_are_deleted_when_old_and_offline_and_others_never() {
    let mut world = World::started();
    world.step(&[Input::BudgetChanged {
        credential: credential(),
        scopes: vec![repository_scope("acme/web")],
        registrations: 100,
        limited_until: None,
    }]);
    let entry = |name: &str, online| ListedRunner {
        github_id: 5,
        name: RunnerName::new(name),
        online,
        busy: false,
    };
    let list = [Input::RunnersListed {
        scope: repository_scope("acme/web"),
        runners: vec![
            entry("ls-test-gone", false),
            entry("ls-test-online", true),
            entry("ls-other-gone", false),
            entry("someone", false),
        ],
    }];
    world.step(&list);
    assert_eq!(world.owes(is_deregister), 0, "too young");
    world.pass(11 * MINUTE);
    world.step(&list);
    let owed: Vec<_> = world.fleet.outstanding().cloned().collect();
    assert!(
        matches!(&owed[..], [Effect::Deregister { runner, github_id: Some(5), .. }]
            if runner.as_str() == "ls-test-gone"),
        "{owed:?}"
    );
}

#[test]
fn a_registration_that_may_exist_is_deleted_by_name_and_replaced_under_another() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let first = world.only_runner();
    world.report("a");
    world.step(&[Input::RegistrationFailed {
        runner: first.clone(),
        failure: RegistrationFailure::Ambiguous,
        detail: "timeout".to_owned(),
    }]);
    assert_eq!(world.owes(is_deregister), 1);
    assert!(matches!(world.desired(&first), Desired::Kill { .. }));
    assert_eq!(world.reason(1), ReasonCode::ScopeResting);
    world.live(5_000);
    let names: Vec<RunnerName> = world.runners().iter().map(|r| r.name().clone()).collect();
    assert_eq!(
        names.len(),
        1,
        "the first is gone, a second came: {names:?}"
    );
    assert_ne!(names[0], first);
}

#[test]
fn failing_registrations_back_off_and_a_success_clears_the_scope() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let mut rests = Vec::new();
    for _ in 0..3 {
        let runner = world
            .runners()
            .iter()
            .find(|runner| runner.stopping.is_none())
            .map(|runner| runner.name().clone())
            .expect("tried again");
        let facts = world.step(&[Input::RegistrationFailed {
            runner,
            failure: RegistrationFailure::Transient,
            detail: "502".to_owned(),
        }]);
        let until = facts.iter().find_map(|fact| match fact {
            Fact::ScopeRests { until, .. } => Some(*until - world.now.utc),
            _ => None,
        });
        rests.push(until.expect("rests"));
        world.live(40_000);
    }
    assert!(rests[1] > rests[0] && rests[2] > rests[1], "{rests:?}");
    let facts = world.register();
    assert!(
        facts
            .iter()
            .any(|fact| matches!(fact, Fact::ScopeCleared { .. }))
    );
}

#[test]
fn a_refused_credential_is_named_in_the_reason() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    world.step(&[Input::RegistrationFailed {
        runner,
        failure: RegistrationFailure::Forbidden,
        detail: "needs administration=write".to_owned(),
    }]);
    let explanation = world.fleet.explain(JobId(1), world.now).unwrap();
    assert_eq!(explanation.reason, ReasonCode::CredentialProblem);
    assert!(explanation.summary.contains("administration=write"));
    assert!(explanation.not_before.is_some());
}

#[test]
fn a_late_registration_of_a_retired_runner_is_deleted() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = job(1, "acme/web", X64);
    world.see(&wanted);
    let runner = world.only_runner();
    world.complete(&wanted, None);
    world.observe_with(&runner, |seen| {
        seen.phase = ObservedPhase::Failed;
        seen.error = Some(("start_failed".to_owned(), "no".to_owned()));
    });
    assert_eq!(world.runners().len(), 0);
    world.step(&[Input::RegistrationReady {
        runner,
        github_id: 77,
    }]);
    assert!(world.fleet.outstanding().any(|owed| matches!(
        owed,
        Effect::Deregister {
            github_id: Some(77),
            ..
        }
    )));
}

#[test]
fn a_rate_limit_holds_everything_back_until_it_ends() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    let until = world.now.utc + 60_000;
    world.report("a");
    world.step(&[Input::RegistrationFailed {
        runner,
        failure: RegistrationFailure::RateLimited { until },
        detail: "secondary".to_owned(),
    }]);
    world.see(&job(2, "acme/web", X64));
    world.live(20_000);
    assert_eq!(world.owes(is_register), 0);
    let explanation = world.fleet.explain(JobId(1), world.now).unwrap();
    assert_eq!(explanation.reason, ReasonCode::RateLimited);
    assert_eq!(explanation.not_before, Some(until));
    world.step(&[Input::BudgetChanged {
        credential: credential(),
        scopes: Vec::new(),
        registrations: 50,
        limited_until: Some(until),
    }]);
    world.live(45_000);
    assert_eq!(world.runners().len(), 2);
    assert_eq!(world.owes(is_register), 1, "one by one after a limit");
}

#[test]
fn never_more_runners_are_reserved_than_may_be_registered() {
    let mut world = World::started();
    world.join("a", machine());
    world.step(&[Input::BudgetChanged {
        credential: credential(),
        scopes: Vec::new(),
        registrations: 2,
        limited_until: None,
    }]);
    let jobs: Vec<Input> = (1..5)
        .map(|id| Input::JobSeen(std::sync::Arc::new(job(id, "acme/web", X64))))
        .collect();
    world.step(&jobs);
    assert_eq!(world.runners().len(), 2);
    world.register();
    assert_eq!(world.runners().len(), 2, "the budget is spent");
    world.step(&[Input::BudgetChanged {
        credential: credential(),
        scopes: Vec::new(),
        registrations: 1,
        limited_until: None,
    }]);
    assert_eq!(world.runners().len(), 3);
}

#[test]
fn eight_registrations_are_in_flight_at_most() {
    let mut world = World::started();
    for name in ["a", "b", "c"] {
        world.join(name, machine());
    }
    let jobs: Vec<Input> = (1..13)
        .map(|id| Input::JobSeen(std::sync::Arc::new(job(id, "acme/web", X64))))
        .collect();
    world.step(&jobs);
    assert_eq!(world.runners().len(), 12);
    assert_eq!(world.owes(is_register), 8);
    world.register();
    assert_eq!(world.owes(is_register), 4);
}

#[test]
fn after_a_load_a_consumed_registration_is_kept_and_another_is_given_up() {
    let mut world = World::started();
    world.join("a", machine());
    let jobs: Vec<Input> = (1..3)
        .map(|id| Input::JobSeen(std::sync::Arc::new(job(id, "acme/web", X64))))
        .collect();
    world.step(&jobs);
    world.register();
    let names: Vec<RunnerName> = world.runners().iter().map(|r| r.name().clone()).collect();
    world.step(&[Input::RegistrationsLost {
        runners: names.clone(),
    }]);
    world.observe(&names[0], ObservedPhase::Consumed);
    world.observe(&names[1], ObservedPhase::Ready);
    assert!(matches!(world.desired(&names[0]), Desired::Run(_)));
    assert!(matches!(world.desired(&names[1]), Desired::Kill { .. }));
    assert_eq!(world.owes(is_deregister), 1);
    assert_eq!(world.runners().len(), 3, "a successor under a new name");
    let facts = world.exit(&names[1], "killed", 0);
    assert_eq!(retired(&facts).unwrap().0, RetireReason::RegistrationLost);
}

#[test]
fn an_image_that_cannot_be_had_rests_on_its_node_then_everywhere() {
    let mut world = World::started();
    for name in ["a", "b", "c"] {
        world.join(name, machine());
    }
    world.see(&job(1, "acme/web", X64));
    for _ in 0..3 {
        let runner = world.only_runner();
        world.observe_with(&runner, |seen| {
            seen.phase = ObservedPhase::Failed;
            seen.error = Some(("image_unavailable".to_owned(), "not found".to_owned()));
        });
    }
    assert_eq!(world.runners().len(), 0);
    assert_eq!(world.reason(1), ReasonCode::ImageUnavailable);
    world.live(2 * MINUTE);
    assert_eq!(world.runners().len(), 1, "tried again after the backoff");
    let runner = world.only_runner();
    world.register();
    let facts = world.observe(&runner, ObservedPhase::Consumed);
    assert!(
        facts
            .iter()
            .any(|fact| matches!(fact, Fact::ImageCleared { .. }))
    );
}

#[test]
fn a_deprecated_runner_version_stops_the_image_everywhere() {
    let mut world = World::started();
    world.join("a", machine());
    world.join("b", machine());
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.exit(&runner, "version_deprecated", 7);
    assert_eq!(world.runners().len(), 0, "no hot loop");
    assert_eq!(world.reason(1), ReasonCode::ImageUnavailable);
}

#[test]
fn a_runner_that_github_refuses_rests_under_its_own_reason_until_one_listens() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let mut rests = Vec::new();
    for _ in 0..3 {
        let runner = world.only_runner();
        world.register();
        world.observe(&runner, ObservedPhase::Ready);
        let started = world.observe(&runner, ObservedPhase::Consumed);
        let cleared = |facts: &[Fact]| {
            facts
                .iter()
                .any(|fact| matches!(fact, Fact::ImageCleared { .. }))
        };
        assert!(!cleared(&started), "being started disproves no refusal");
        let facts = world.exit(&runner, "runner_refused", 1);
        assert_eq!(world.reason(1), ReasonCode::RunnerRefused);
        let explained = world.fleet.explain(JobId(1), world.now).unwrap();
        assert!(explained.summary.contains("exit code 1"), "{explained:?}");
        let rest = facts.iter().find_map(|fact| match fact {
            Fact::ImageBlocked { until, node, .. } => {
                assert_eq!(*node, Some(node_name("a")), "never everywhere");
                Some(*until - world.now.utc)
            }
            _ => None,
        });
        rests.push(rest.unwrap());
        assert_eq!(world.runners().len(), 0, "no hot loop");
        world.live(rests[rests.len() - 1] + 9_000);
    }
    assert!(
        rests.windows(2).all(|pair| pair[0] < pair[1]),
        "it waits longer each time: {rests:?}"
    );
    let runner = world.only_runner();
    world.bring_up(&runner);
    assert!(
        world
            .facts
            .iter()
            .any(|fact| matches!(fact, Fact::ImageCleared { .. })),
        "a runner that listens ends it"
    );
}

/// Brings the only runner up and lets it idle out.
fn idles_out(world: &mut World) {
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.live(6 * MINUTE);
    answer(world, &runner, Deregistration::Gone);
    world.exit(&runner, "idle", 0);
}

fn public_job(id: u64) -> JobSeen {
    let mut wanted = organization(job(id, "acme/open", X64));
    wanted.repository.private = Some(false);
    wanted
}

#[test]
fn demand_that_github_assigns_to_nobody_rests_after_three_runners_and_says_so() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&public_job(1));
    for _ in 0..2 {
        idles_out(&mut world);
        assert_eq!(world.runners().len(), 1, "a replacement");
    }
    idles_out(&mut world);
    assert_eq!(world.runners().len(), 0, "three are enough");
    let explained = world.fleet.explain(JobId(1), world.now).unwrap();
    assert_eq!(explained.reason, ReasonCode::GithubDoesNotAssign);
    assert!(explained.next_step.contains("allows_public_repositories"));
    assert!(explained.next_step.contains("acme/open"));
    assert!(explained.not_before.is_some_and(|at| at > world.now.utc));
    // Other repositories of the organisation, and another job of this one.
    world.see(&organization(job(2, "acme/web", X64)));
    world.see(&public_job(3));
    assert_eq!(world.runners().len(), 1, "only the other repository's");
    let other = world.only_runner();
    world.bring_up(&other);
    world.start(&organization(job(2, "acme/web", X64)), &other);
    world.exit(&other, "finished", 0);
    assert_eq!(world.runners().len(), 0);
    world.live(5 * MINUTE);
    assert!(!world.runners().is_empty(), "it is tried again later");
}

#[test]
fn a_demand_that_rested_is_served_at_once_when_github_assigns_again_or_scaling_is_started() {
    let mut world = World::started();
    world.join("a", machine());
    let wanted = public_job(1);
    world.see(&wanted);
    for _ in 0..3 {
        idles_out(&mut world);
    }
    assert_eq!(world.runners().len(), 0);
    world.command(Command::StartAutoscaler {
        max_runners: None,
        image: None,
    });
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&wanted, &runner);
    world.exit(&runner, "finished", 0);
    // The count begins anew: two more in vain do not rest it.
    world.see(&public_job(2));
    for _ in 0..2 {
        idles_out(&mut world);
        assert_eq!(world.runners().len(), 1);
    }
    // A runner of ours takes the job: forgotten again.
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.start(&public_job(2), &runner);
    world.exit(&runner, "finished", 0);
    world.see(&public_job(3));
    for _ in 0..2 {
        idles_out(&mut world);
        assert_eq!(world.runners().len(), 1);
    }
}

#[test]
fn a_worker_whose_job_is_not_named_yet_asks_for_no_second_runner_for_a_while() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.observe(&runner, ObservedPhase::Busy);
    world.live(60_000);
    assert_eq!(world.runners().len(), 1, "GitHub's word is only late");
    world.live(3 * 60_000);
    assert_eq!(
        world.runners().len(),
        2,
        "it runs a job we do not see: ours still waits"
    );
}

#[test]
fn a_runner_that_ended_before_its_job_was_named_is_not_replaced_at_once() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.observe(&runner, ObservedPhase::Busy);
    world.exit(&runner, "finished", 0);
    assert!(world.runners().is_empty(), "its job may be the queued one");
    world.live(20_000);
    assert!(world.runners().is_empty(), "GitHub's word is only late");
    world.live(20_000);
    assert_eq!(world.runners().len(), 1, "it ran a job we do not see");
}

#[test]
fn without_webhooks_an_ended_runner_stands_for_its_job_until_a_sweep_can_name_it() {
    let mut world = World::started();
    world.join("a", machine());
    world.step(&[Input::NewsDelay(Duration::from_secs(90))]);
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.exit(&runner, "finished", 0);
    world.live(100_000);
    assert!(world.runners().is_empty(), "the next sweep is not over");
    world.live(40_000);
    assert_eq!(world.runners().len(), 1, "it ran a job we do not see");
    // Webhooks proved healthy: the next one that ends so waits for their words only.
    let second = world.only_runner();
    world.step(&[Input::NewsDelay(Duration::ZERO)]);
    world.bring_up(&second);
    world.exit(&second, "finished", 0);
    world.live(40_000);
    assert_eq!(world.runners().len(), 1);
}

#[test]
fn a_late_word_about_an_ended_runner_frees_what_it_stood_for() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.exit(&runner, "finished", 0);
    world.see(&job(2, "acme/web", X64));
    assert_eq!(
        world.runners().len(),
        1,
        "two jobs wait, one runner is spent"
    );
    world.start(&job(1, "acme/web", X64), &runner);
    assert_eq!(world.runners().len(), 1, "one job waits, one runner comes");
    world.see(&job(3, "acme/web", X64));
    assert_eq!(world.runners().len(), 2, "nothing stands for the third");
}

#[test]
fn a_runner_that_failed_without_a_job_is_replaced_at_once() {
    let mut world = World::started();
    world.join("a", machine());
    world.see(&job(1, "acme/web", X64));
    let runner = world.only_runner();
    world.bring_up(&runner);
    world.exit(&runner, "killed", 137);
    assert_eq!(world.runners().len(), 1, "nobody took the job");
}
