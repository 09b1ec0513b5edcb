//! Each test names one rule of the protocol.

use proptest::prelude::*;

use super::*;
use crate::exit::Ended;
use crate::model::{ErrorReason, Phase, Resources};

const LEASE: u64 = 30_000;

fn at(ms: u64) -> Now {
    Now {
        mono_ms: ms,
        utc_ms: 1_700_000_000_000 + ms,
    }
}

fn spec() -> RunnerSpec {
    RunnerSpec {
        image: "i".into(),
        profile: "strict".into(),
        resources: Resources {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            gpus: 0,
        },
        platform: "linux/amd64".into(),
        ..RunnerSpec::default()
    }
}

fn intent(counter: u64, runners: &[(&str, Desired)]) -> Intent {
    Intent {
        generation: Generation { epoch: 1, counter },
        cordoned: false,
        runners: runners
            .iter()
            .map(|(n, d)| ((*n).to_owned(), d.clone()))
            .collect(),
        expected: vec![],
    }
}

fn run() -> Desired {
    Desired::Run(spec())
}

fn node() -> Node {
    let mut node = Node::new(Durable::default(), LEASE);
    node.contact(at(0));
    node.observe(Event::Firewall { in_place: true }, at(0));
    node
}

const A: &str = "ls-f-aaaa";

fn to_ready(node: &mut Node) {
    node.accept(intent(1, &[(A, run())]), at(1));
    assert!(matches!(
        node.reconcile(at(1))[..],
        [Action::Prepare { .. }]
    ));
    node.observe(
        Event::Prepared {
            runner: A.into(),
            container_id: "c1".into(),
        },
        at(2),
    );
}

fn to_consumed(node: &mut Node) {
    to_ready(node);
    node.observe(Event::RegistrationHeld { runner: A.into() }, at(3));
    assert_eq!(
        node.reconcile(at(3)),
        [Action::HandOver { runner: A.into() }]
    );
    node.observe(Event::HandedOver { runner: A.into() }, at(4));
}

fn saw(node: &mut Node, worker: bool, now: u64) {
    let processes = Processes {
        listener: true,
        worker,
    };
    let event = match node.runners[A].step {
        Some(Step::Look) => Event::Looked {
            runner: A.into(),
            processes,
        },
        _ => Event::Seen {
            runner: A.into(),
            processes,
        },
    };
    node.observe(event, at(now));
}

#[test]
fn what_was_seen_before_the_order_does_not_count_as_the_last_look() {
    let mut node = node();
    to_consumed(&mut node);
    let newest = node.runner(A).unwrap().observation;
    node.accept(
        intent(
            2,
            &[(
                A,
                Desired::Remove {
                    observation: newest,
                },
            )],
        ),
        at(10),
    );
    let processes = Processes {
        listener: true,
        worker: false,
    };
    node.observe(
        Event::Seen {
            runner: A.into(),
            processes,
        },
        at(11),
    );
    assert_eq!(node.reconcile(at(11)), [Action::Look { runner: A.into() }]);
    node.observe(
        Event::Seen {
            runner: A.into(),
            processes,
        },
        at(12),
    );
    assert!(node.reconcile(at(12)).is_empty());
    assert_eq!(phase(&node), Phase::Consumed);
}

fn finish(node: &mut Node, code: i32, now: u64) {
    node.observe(Event::Died { runner: A.into() }, at(now));
    assert_eq!(
        node.reconcile(at(now)),
        [Action::Collect { runner: A.into() }]
    );
    let outcome = Outcome {
        ended: Ended {
            code: Some(code),
            ..Ended::default()
        },
        ..Outcome::default()
    };
    node.observe(
        Event::Collected {
            runner: A.into(),
            outcome,
        },
        at(now),
    );
    assert_eq!(
        node.reconcile(at(now)),
        [Action::Remove { runner: A.into() }]
    );
    node.observe(Event::Removed { runner: A.into() }, at(now));
}

fn phase(node: &Node) -> Phase {
    node.runner(A).unwrap().phase
}

#[test]
fn a_runner_goes_through_its_phases_once() {
    let mut node = node();
    to_consumed(&mut node);
    assert_eq!(phase(&node), Phase::Consumed);
    node.observe(Event::Online { runner: A.into() }, at(5));
    assert_eq!(phase(&node), Phase::Online);
    saw(&mut node, true, 6);
    assert_eq!(phase(&node), Phase::Busy);
    assert!(node.runner(A).unwrap().worker);
    finish(&mut node, 0, 7);
    let observed = node.runner(A).unwrap();
    assert_eq!(observed.phase, Phase::Exited);
    assert_eq!(observed.exit.unwrap().cause, Cause::Finished);
    assert!(
        node.reconcile(at(8)).is_empty(),
        "the same intent must not start it again"
    );
}

#[test]
fn absence_stops_nothing() {
    let mut node = node();
    to_consumed(&mut node);
    node.accept(intent(2, &[]), at(10));
    for ms in [10, 100_000, 10_000_000] {
        node.contact(at(ms));
        assert!(node.reconcile(at(ms)).is_empty(), "at {ms}");
    }
    assert!(node.runner(A).unwrap().foreign);
    assert_eq!(phase(&node), Phase::Consumed);
}

#[test]
fn an_older_generation_is_refused_whole() {
    let mut node = node();
    to_consumed(&mut node);
    node.accept(intent(5, &[(A, run())]), at(10));
    let kill = Desired::Kill {
        reason: "old".into(),
        grace_ms: 0,
    };
    let (answer, _) = node.accept(intent(4, &[(A, kill.clone())]), at(11));
    assert_eq!(answer, Accept::Stale);
    assert!(node.reconcile(at(11)).is_empty());
    let older_epoch = Intent {
        generation: Generation {
            epoch: 0,
            counter: 99,
        },
        ..intent(9, &[(A, kill)])
    };
    assert_eq!(node.accept(older_epoch, at(12)).0, Accept::Stale);
    assert!(node.reconcile(at(12)).is_empty());
    assert_eq!(
        node.highest(),
        Generation {
            epoch: 1,
            counter: 5
        }
    );
}

#[test]
fn remove_is_valid_for_the_newest_observation_only() {
    let mut node = node();
    to_consumed(&mut node);
    node.accept(intent(2, &[(A, Desired::StopIfIdle)]), at(10));
    assert_eq!(node.reconcile(at(10)), [Action::Look { runner: A.into() }]);
    saw(&mut node, false, 11);
    let told = node.runner(A).unwrap().observation;
    assert!(
        node.reconcile(at(12)).is_empty(),
        "stop_if_idle alone ends nothing"
    );

    node.observe(Event::Online { runner: A.into() }, at(13));
    node.accept(
        intent(3, &[(A, Desired::Remove { observation: told })]),
        at(14),
    );
    assert!(
        node.reconcile(at(14)).is_empty(),
        "the observation is not the newest any more"
    );

    let newest = node.runner(A).unwrap().observation;
    node.accept(
        intent(
            4,
            &[(
                A,
                Desired::Remove {
                    observation: newest,
                },
            )],
        ),
        at(15),
    );
    assert_eq!(node.reconcile(at(15)), [Action::Look { runner: A.into() }]);
    saw(&mut node, false, 16);
    assert_eq!(
        node.reconcile(at(16)),
        [Action::Collect { runner: A.into() }]
    );
}

#[test]
fn a_worker_seen_at_the_last_look_saves_the_job() {
    let mut node = node();
    to_consumed(&mut node);
    node.accept(intent(2, &[(A, Desired::StopIfIdle)]), at(10));
    node.reconcile(at(10));
    saw(&mut node, false, 11);
    let newest = node.runner(A).unwrap().observation;
    node.accept(
        intent(
            3,
            &[(
                A,
                Desired::Remove {
                    observation: newest,
                },
            )],
        ),
        at(12),
    );
    assert_eq!(node.reconcile(at(12)), [Action::Look { runner: A.into() }]);
    saw(&mut node, true, 13);
    assert!(node.reconcile(at(13)).is_empty());
    let observed = node.runner(A).unwrap();
    assert!(observed.remove_refused && observed.worker);
    assert_eq!(observed.phase, Phase::Busy);
    assert!(observed.observation > newest);
}

#[test]
fn a_failed_look_removes_nothing_and_is_repeated_later() {
    let mut node = node();
    to_consumed(&mut node);
    let newest = node.runner(A).unwrap().observation;
    node.accept(
        intent(
            2,
            &[(
                A,
                Desired::Remove {
                    observation: newest,
                },
            )],
        ),
        at(10),
    );
    assert_eq!(node.reconcile(at(10)).len(), 1);
    node.observe(Event::LookFailed { runner: A.into() }, at(11));
    assert!(node.reconcile(at(12)).is_empty());
    assert_eq!(
        node.next_deadline_ms(at(12)),
        Some(11 + crate::lifecycle::RETRY_MS)
    );
    assert_eq!(
        node.reconcile(at(11 + crate::lifecycle::RETRY_MS)),
        [Action::Look { runner: A.into() }]
    );
}

#[test]
fn nothing_new_starts_after_the_lease() {
    let mut node = node();
    node.accept(intent(1, &[(A, run())]), at(1));
    assert!(node.reconcile(at(LEASE + 1)).is_empty());
    node.contact(at(LEASE + 2));
    assert_eq!(node.reconcile(at(LEASE + 2)).len(), 1);
}

#[test]
fn no_hand_over_after_the_lease_or_without_firewall() {
    let mut node = node();
    to_ready(&mut node);
    node.observe(Event::RegistrationHeld { runner: A.into() }, at(3));
    assert!(node.reconcile(at(LEASE + 5)).is_empty());
    node.contact(at(LEASE + 6));
    node.observe(Event::Firewall { in_place: false }, at(LEASE + 6));
    assert!(node.reconcile(at(LEASE + 6)).is_empty());
    node.observe(Event::Firewall { in_place: true }, at(LEASE + 7));
    assert_eq!(node.reconcile(at(LEASE + 7)).len(), 1);
}

#[test]
fn a_cordoned_node_starts_nothing_new_and_ends_nothing() {
    let mut node = node();
    to_consumed(&mut node);
    let mut next = intent(2, &[(A, run()), ("ls-f-bbbb", run())]);
    next.cordoned = true;
    node.accept(next, at(10));
    assert!(node.reconcile(at(10)).is_empty());
    assert_eq!(phase(&node), Phase::Consumed);
}

#[test]
fn a_sandbox_without_registration_is_given_up_without_a_look() {
    for desired in [Desired::StopIfIdle, Desired::Remove { observation: 0 }] {
        let mut node = node();
        to_ready(&mut node);
        node.accept(intent(2, &[(A, desired)]), at(10));
        assert_eq!(
            node.reconcile(at(10)),
            [Action::Collect { runner: A.into() }]
        );
    }
}

#[test]
fn an_unwanted_sandbox_is_given_up_after_a_while_but_never_a_runner() {
    let mut node = node();
    to_ready(&mut node);
    node.accept(intent(2, &[]), at(10));
    assert!(node.reconcile(at(10)).is_empty());
    assert_eq!(
        node.next_deadline_ms(at(11)),
        Some(10 + UNWANTED_SANDBOX_MS)
    );
    assert_eq!(node.reconcile(at(10 + UNWANTED_SANDBOX_MS)).len(), 1);
}

#[test]
fn an_end_is_kept_until_a_later_intent_lets_it_go() {
    let mut node = node();
    to_consumed(&mut node);
    finish(&mut node, 0, 10);
    // Accepted before the end was reported: the scheduler cannot know of it yet.
    node.accept(intent(2, &[]), at(11));
    assert!(node.runner(A).is_some());
    let report = node.observed();
    node.told(&report);
    node.accept(intent(3, &[(A, run())]), at(12));
    assert!(node.runner(A).is_some(), "still named");
    let (_, actions) = node.accept(intent(4, &[]), at(13));
    assert_eq!(actions, [Action::Forget { runner: A.into() }]);
    assert!(node.runner(A).is_none());
}

#[test]
fn an_end_survives_the_process_and_is_not_started_again() {
    let mut node = node();
    to_consumed(&mut node);
    node.observe(Event::Died { runner: A.into() }, at(10));
    node.reconcile(at(10));
    let outcome = Outcome {
        ended: Ended {
            code: Some(0),
            ..Ended::default()
        },
        ..Outcome::default()
    };
    node.observe(
        Event::Collected {
            runner: A.into(),
            outcome,
        },
        at(10),
    );
    // What is written before anything is removed is enough.
    let durable = node.durable();
    assert_eq!(durable.finished[0].phase, Phase::Exited);

    let mut next = Node::new(durable, LEASE);
    next.contact(at(20));
    next.accept(intent(1, &[(A, run())]), at(20));
    assert!(next.reconcile(at(20)).is_empty());
    assert_eq!(next.runner(A).unwrap().exit.unwrap().cause, Cause::Finished);
}

#[test]
fn a_live_runner_is_reported_before_the_engine_can_be_asked_and_missed_after() {
    let mut node = node();
    to_consumed(&mut node);
    saw(&mut node, true, 5);
    let mut next = Node::new(node.durable(), LEASE);
    assert_eq!(next.runner(A).unwrap().phase, Phase::Busy);
    next.recovered(vec![], at(50));
    assert_eq!(
        next.reconcile(at(50)),
        [Action::Collect { runner: A.into() }]
    );
    next.observe(
        Event::Collected {
            runner: A.into(),
            outcome: Outcome::default(),
        },
        at(51),
    );
    assert_eq!(next.runner(A).unwrap().exit.unwrap().cause, Cause::Engine);
}

#[test]
fn a_busy_runner_is_still_busy_after_its_adoption() {
    let mut node = node();
    to_consumed(&mut node);
    saw(&mut node, true, 5);
    let mut next = Node::new(node.durable(), LEASE);
    next.recovered(vec![found(true, true, true)], at(50));
    let observed = next.runner(A).unwrap();
    assert_eq!((observed.phase, observed.worker), (Phase::Busy, true));
    assert!(next.reconcile(at(50)).is_empty());
}

#[test]
fn a_live_runner_is_adopted_and_left_alone() {
    let mut node = Node::new(Durable::default(), LEASE);
    let now = at(100);
    node.adopt(found(true, true, false), now);
    assert!(node.reconcile(now).is_empty());
    let observed = node.runner(A).unwrap();
    assert_eq!(observed.phase, Phase::Online);
    assert!(observed.foreign, "until an intent names it");
    assert!(
        observed.observation > 1_000,
        "numbers of the earlier process are not reused"
    );
    node.contact(now);
    node.accept(intent(1, &[(A, run())]), now);
    assert!(node.reconcile(now).is_empty());
    assert!(!node.runner(A).unwrap().foreign);
}

fn found(running: bool, listener: bool, worker: bool) -> Found {
    Found {
        name: A.into(),
        container_id: "c".into(),
        running,
        processes: Processes { listener, worker },
        started_utc_ms: at(50).utc_ms,
        lifetime_ms: 60_000,
    }
}

#[test]
fn an_adopted_runner_keeps_its_lifetime() {
    let mut node = Node::new(Durable::default(), LEASE);
    node.adopt(found(true, true, true), at(100));
    assert_eq!(node.next_deadline_ms(at(100)), Some(100 + 60_000 - 50));
}

#[test]
fn renamed_without_a_listener_never_started() {
    let mut node = Node::new(Durable::default(), LEASE);
    node.adopt(found(true, false, false), at(100));
    assert_eq!(
        node.reconcile(at(100)),
        [Action::Collect { runner: A.into() }]
    );
    node.observe(
        Event::Collected {
            runner: A.into(),
            outcome: Outcome::default(),
        },
        at(101),
    );
    assert_eq!(
        node.runner(A).unwrap().exit.unwrap().cause,
        Cause::NeverStarted
    );
}

#[test]
fn lifetime_ends_a_runner_whatever_it_does() {
    let mut node = node();
    to_consumed(&mut node);
    saw(&mut node, true, 5);
    let end = 4 + crate::lifecycle::DEFAULT_LIFETIME_MS;
    assert!(node.reconcile(at(end - 1)).is_empty());
    assert_eq!(node.next_deadline_ms(at(end - 1)), Some(end));
    assert_eq!(
        node.reconcile(at(end)),
        [Action::End {
            runner: A.into(),
            grace_ms: LIFETIME_GRACE_MS
        }]
    );
    assert!(node.reconcile(at(end + 1)).is_empty(), "asked once");
    finish(&mut node, 137, end + 2);
    assert_eq!(node.runner(A).unwrap().exit.unwrap().cause, Cause::Lifetime);
}

#[test]
fn kill_ends_a_busy_runner_and_says_why() {
    let mut node = node();
    to_consumed(&mut node);
    saw(&mut node, true, 5);
    node.accept(
        intent(
            2,
            &[(
                A,
                Desired::Kill {
                    reason: "asked by mona".into(),
                    grace_ms: 90_000,
                },
            )],
        ),
        at(6),
    );
    assert_eq!(
        node.reconcile(at(6)),
        [Action::End {
            runner: A.into(),
            grace_ms: 90_000
        }]
    );
    node.observe(Event::EndAsked { runner: A.into() }, at(7));
    assert!(node.reconcile(at(7)).is_empty());
    finish(&mut node, 130, 8);
    let exit = node.runner(A).unwrap().exit.unwrap();
    assert_eq!(
        (exit.cause, exit.detail.as_str()),
        (Cause::Killed, "asked by mona")
    );
}

#[test]
fn orders_for_an_unknown_runner_are_answered_so_that_the_scheduler_goes_on() {
    for desired in [
        Desired::StopIfIdle,
        Desired::Remove { observation: 7 },
        Desired::Kill {
            reason: "x".into(),
            grace_ms: 0,
        },
    ] {
        let mut node = node();
        node.accept(intent(1, &[(A, desired)]), at(1));
        assert!(node.reconcile(at(1)).is_empty());
        assert_eq!(
            node.runner(A).unwrap().exit.unwrap().cause,
            Cause::NeverStarted
        );
    }
}

#[test]
fn a_failed_preparation_is_reported_and_not_retried_by_the_node() {
    let mut node = node();
    node.accept(intent(1, &[(A, run())]), at(1));
    node.reconcile(at(1));
    let error = RunnerError {
        reason: ErrorReason::ImageUnavailable,
        detail: "no such image".into(),
    };
    node.observe(
        Event::PrepareFailed {
            runner: A.into(),
            error: error.clone(),
        },
        at(2),
    );
    assert_eq!(phase(&node), Phase::Failed);
    assert_eq!(node.runner(A).unwrap().error, Some(error));
    assert!(node.reconcile(at(3)).is_empty());
}

#[test]
fn a_broken_hand_over_ends_the_sandbox() {
    let mut node = node();
    to_ready(&mut node);
    node.observe(Event::RegistrationHeld { runner: A.into() }, at(3));
    node.reconcile(at(3));
    node.observe(
        Event::HandOverFailed {
            runner: A.into(),
            detail: "pipe closed".into(),
        },
        at(4),
    );
    assert_eq!(
        node.reconcile(at(4)),
        [Action::Collect { runner: A.into() }]
    );
}

#[test]
fn a_postponed_hand_over_is_made_once_the_firewall_is_back() {
    let mut node = node();
    to_ready(&mut node);
    node.observe(Event::RegistrationHeld { runner: A.into() }, at(3));
    node.reconcile(at(3));
    node.observe(Event::Firewall { in_place: false }, at(4));
    node.observe(Event::HandOverPostponed { runner: A.into() }, at(4));
    assert!(node.reconcile(at(4)).is_empty());
    node.observe(Event::Firewall { in_place: true }, at(5));
    assert_eq!(
        node.reconcile(at(5)),
        [Action::HandOver { runner: A.into() }]
    );
}

#[test]
fn a_registration_may_come_before_its_intent() {
    let mut node = node();
    node.observe(Event::RegistrationHeld { runner: A.into() }, at(1));
    node.accept(intent(1, &[(A, run())]), at(2));
    node.reconcile(at(2));
    node.observe(
        Event::Prepared {
            runner: A.into(),
            container_id: "c".into(),
        },
        at(3),
    );
    assert_eq!(
        node.reconcile(at(3)),
        [Action::HandOver { runner: A.into() }]
    );
}

#[test]
fn a_sandbox_that_dies_waiting_is_collected() {
    let mut node = node();
    to_ready(&mut node);
    finish(&mut node, 71, 5);
    assert_eq!(
        node.runner(A).unwrap().exit.unwrap().cause,
        Cause::NeverStarted
    );
}

#[test]
fn names_that_could_leave_a_folder_are_ignored() {
    let mut node = node();
    node.accept(intent(1, &[("../../etc", run())]), at(1));
    assert!(node.reconcile(at(1)).is_empty());
    assert!(node.observed().is_empty());
}

#[derive(Clone, Debug)]
enum Move {
    Accept {
        generation: u64,
        desired: u8,
        cordoned: bool,
    },
    Happen(u8),
    Pass(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (0u64..40, 0u8..6, any::<bool>()).prop_map(|(generation, desired, cordoned)| {
            Move::Accept {
                generation,
                desired,
                cordoned,
            }
        }),
        (0u8..14).prop_map(Move::Happen),
        (0u64..40_000).prop_map(Move::Pass),
    ];
    proptest::collection::vec(one, 1..60)
}

proptest! {
    /// Over any order of messages and answers: one thing at a time, never two
    /// sandboxes for a name, no end without an order, a deadline or a death,
    /// and observations that only grow.
    #[test]
    fn any_order_of_events_keeps_the_rules(moves in moves()) {
        let mut node = Node::new(Durable::default(), LEASE);
        let mut now = 1u64;
        let (mut prepared, mut handed, mut last_seen) = (0, 0, 0u64);
        let mut ordered_end = false;
        let mut died = false;
        let mut failed = false;
        for step in moves {
            match step {
                Move::Pass(ms) => now += ms,
                Move::Accept { generation, desired, cordoned } => {
                    let newest = node.runner(A).map_or(0, |r| r.observation);
                    let desired = match desired {
                        0 | 1 => Some(run()),
                        2 => Some(Desired::StopIfIdle),
                        3 => Some(Desired::Remove { observation: newest }),
                        4 => Some(Desired::Kill { reason: "k".into(), grace_ms: 1 }),
                        _ => None,
                    };
                    let list: Vec<(&str, Desired)> = desired.iter().map(|d| (A, d.clone())).collect();
                    let mut i = intent(generation, &list);
                    i.cordoned = cordoned;
                    let before = node.highest();
                    let (answer, _) = node.accept(i, at(now));
                    prop_assert_eq!(answer == Accept::Stale, generation < before.counter && before.epoch == 1);
                    if answer == Accept::Accepted {
                        ordered_end |= matches!(desired, Some(Desired::StopIfIdle | Desired::Remove { .. } | Desired::Kill { .. }));
                        if node.runner(A).is_none() {
                            // Let go: the name may begin anew, and numbering with it.
                            (prepared, handed, last_seen, died, failed, ordered_end) = (0, 0, 0, false, false, false);
                        }
                    }
                }
                Move::Happen(what) => {
                    let runner = A.to_owned();
                    let event = match what {
                        0 | 1 => Event::Prepared { runner, container_id: "c".into() },
                        2 => { failed = true; Event::PrepareFailed { runner, error: RunnerError { reason: ErrorReason::StartFailed, detail: String::new() } } }
                        3 | 4 => Event::HandedOver { runner },
                        5 => { failed = true; Event::HandOverFailed { runner, detail: String::new() } }
                        6 => Event::Online { runner },
                        7 => Event::Seen { runner, processes: Processes { listener: true, worker: true } },
                        8 => Event::Looked { runner, processes: Processes { listener: true, worker: false } },
                        9 => { died = true; Event::Died { runner } }
                        10 => Event::Firewall { in_place: !now.is_multiple_of(3) },
                        11 => Event::RegistrationHeld { runner },
                        12 => { node.contact(at(now)); continue }
                        _ => Event::EndAsked { runner },
                    };
                    // Only answers to what is under way come from a real shell.
                    let under_way = node.runners.get(A).and_then(|r| r.step);
                    let fits = match &event {
                        Event::Prepared { .. } | Event::PrepareFailed { .. } => under_way == Some(Step::Prepare),
                        Event::HandedOver { .. } | Event::HandOverFailed { .. } => under_way == Some(Step::HandOver),
                        Event::EndAsked { .. } => under_way == Some(Step::End),
                        Event::Looked { .. } => under_way == Some(Step::Look),
                        _ => true,
                    };
                    if fits { node.observe(event, at(now)); }
                }
            }
            let may_start = node.may_start(at(now));
            for action in node.reconcile(at(now)) {
                match action {
                    Action::Prepare { .. } => { prepared += 1; prop_assert!(may_start); }
                    Action::HandOver { .. } => { handed += 1; prop_assert!(may_start && node.firewall); }
                    Action::End { .. } | Action::Collect { .. } => {
                        let old = now > UNWANTED_SANDBOX_MS;
                        prop_assert!(ordered_end || died || failed || old, "ended for no reason");
                    }
                    _ => {}
                }
            }
            prop_assert!(prepared <= 1 && handed <= 1);
            if let Some(observed) = node.runner(A) {
                prop_assert!(observed.observation >= last_seen);
                last_seen = observed.observation;
            }
        }
    }
}
