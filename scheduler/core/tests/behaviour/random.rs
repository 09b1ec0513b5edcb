//! Random histories: whatever happens in whatever order, the invariants hold, the
//! facts replay, and the naive oracle agrees with every placement and every wait.

use std::collections::BTreeSet;

use proptest::prelude::*;
use scheduler_core::{Entropy, Fleet, effect::Effect, fact::*, input::*, model::*};

use crate::{oracle, world::*};

const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];
const REPOS: [&str; 4] = ["acme/web", "acme/api", "beta/app", "solo/tool"];
const LABELS: [&str; 7] = [
    "self-hosted linux x64",
    "Self-Hosted Linux ARM64",
    "self-hosted",
    "self-hosted linux",
    "self-hosted linux x64 cuda",
    "self-hosted team-a x64",
    "",
];

#[derive(Clone, Debug)]
enum Op {
    Join(usize, u8),
    Report(usize),
    Lose(usize),
    Pass(u64),
    Job(u64, u8, usize, usize, bool),
    Assign(usize),
    Register,
    RegisterFails(u8),
    Observe(usize, u8),
    Exit(usize, u8),
    Deregister(u8),
    Command(u8, usize),
    Budget(u32),
    List(usize),
    Forget(usize),
    Stranger(usize, bool),
    Condition(usize, bool),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..5_usize, 0..10_u8).prop_map(|(node, kind)| Op::Join(node, kind)),
        4 => (0..5_usize).prop_map(Op::Report),
        1 => (0..5_usize).prop_map(Op::Lose),
        3 => (1..400_000_u64).prop_map(Op::Pass),
        8 => (1..60_u64, 0..4_u8, 0..4_usize, 0..7_usize, any::<bool>())
            .prop_map(|(id, phase, repo, labels, org)| Op::Job(id, phase, repo, labels, org)),
        4 => (0..64_usize).prop_map(Op::Assign),
        4 => Just(Op::Register),
        1 => (0..5_u8).prop_map(Op::RegisterFails),
        8 => (0..64_usize, 0..6_u8).prop_map(|(runner, phase)| Op::Observe(runner, phase)),
        3 => (0..64_usize, 0..5_u8).prop_map(|(runner, how)| Op::Exit(runner, how)),
        3 => (0..3_u8).prop_map(Op::Deregister),
        2 => (0..16_u8, 0..5_usize).prop_map(|(what, which)| Op::Command(what, which)),
        1 => (0..20_u32).prop_map(Op::Budget),
        1 => (0..4_usize).prop_map(Op::List),
        1 => (0..64_usize).prop_map(Op::Forget),
        1 => (0..5_usize, any::<bool>()).prop_map(|(node, here)| Op::Stranger(node, here)),
        1 => (0..5_usize, any::<bool>()).prop_map(|(node, bad)| Op::Condition(node, bad)),
        1 => Just(Op::Restart),
    ]
}

fn capability(kind: u8) -> Capability {
    match kind {
        0 => machine(),
        1 => arm_machine(),
        2 => gpu_machine(&["g1", "g2"], true),
        3 => gpu_machine(&["g3"], false),
        4 => Capability {
            max_runners: 1,
            ..machine()
        },
        5 => cut_machine(),
        6 => {
            let mut capability = gpu_machine(&["g1", "g2"], true);
            capability.gpus[0].withheld = Some(withheld("gpu_fault"));
            capability
        }
        // The same GPU before and after it is cut.
        7 => gpu_machine(&["whole"], true),
        8 => {
            let mut capability = gpu_machine(&["g1", "g4", "g4"], true);
            for gpu in &mut capability.gpus[1..] {
                gpu.product = "Big GPU".to_owned();
                gpu.memory_mib = 81_920;
                gpu.compute_capability = "10.0".to_owned();
            }
            capability
        }
        _ => Capability {
            capacity: Resources {
                cpu_millis: 1_500,
                memory_bytes: 3 * GIB,
                gpus: 0,
            },
            ..machine()
        },
    }
}

struct Story {
    world: World,
    breakers: oracle::Breakers,
    limited_until: u64,
    budget: Option<u32>,
    restrained: bool,
    heard: usize,
}

impl Story {
    fn runner(&self, at: usize) -> Option<RunnerName> {
        let runners = self.world.runners();
        (!runners.is_empty()).then(|| runners[at % runners.len()].name().clone())
    }

    fn joined(&self, at: usize) -> Option<&'static str> {
        let name = NODES[at % NODES.len()];
        (self.world.seen.contains_key(&node_name(name))
            && self.world.fleet.node(&node_name(name)).is_some())
        .then_some(name)
    }

    fn judge(&mut self) {
        let fresh: Vec<Fact> = self.world.facts[self.heard..].to_vec();
        self.heard = self.world.facts.len();
        for fact in &fresh {
            self.breakers.hear(fact);
            match fact {
                Fact::BudgetChanged { limited_until, .. } => {
                    self.limited_until = limited_until.unwrap_or(0);
                    self.budget = Some(0);
                }
                Fact::ShareSet { .. } | Fact::FloorSet { .. } => self.restrained = true,
                Fact::PoolSet { pool, .. } if pool.maximum > 0 => self.restrained = true,
                _ => {}
            }
        }
        let now = self.world.now;
        oracle::judge_placed(&self.world.fleet, &fresh, &self.breakers, now);
        let limited = self.limited_until > now.utc || self.budget.is_some() || self.restrained;
        oracle::judge_waiting(&self.world.fleet, &self.breakers, limited, now);
    }

    fn tell(&mut self, op: &Op) {
        match op {
            Op::Join(node, kind) => {
                self.world.join(NODES[*node], capability(*kind));
            }
            Op::Report(node) => {
                if let Some(name) = self.joined(*node) {
                    self.world.report(name);
                }
            }
            Op::Lose(node) => {
                if let Some(name) = self.joined(*node) {
                    self.world.lose(name);
                }
            }
            Op::Pass(ms) => {
                self.world.now.mono += ms;
                self.world.now.utc += ms;
                self.world.step(&[Input::Tick]);
            }
            Op::Job(id, phase, repo, labels, org) => {
                let mut seen = job(*id, REPOS[*repo], LABELS[*labels]);
                seen.phase = match phase {
                    0 => JobPhase::Waiting,
                    1 | 2 => JobPhase::Queued,
                    _ => JobPhase::Completed,
                };
                self.world
                    .see(&if *org { organization(seen) } else { seen });
            }
            Op::Assign(at) => self.assign(*at),
            Op::Register => {
                self.world.register();
            }
            Op::RegisterFails(how) => self.fail_registration(*how),
            Op::Observe(at, phase) => {
                if let Some(runner) = self.runner(*at)
                    && self.reports(&runner)
                {
                    let phase = [
                        ObservedPhase::Preparing,
                        ObservedPhase::Ready,
                        ObservedPhase::Consumed,
                        ObservedPhase::Online,
                        ObservedPhase::Online,
                        ObservedPhase::Busy,
                    ][*phase as usize];
                    self.world.observe(&runner, phase);
                }
            }
            Op::Exit(at, how) => {
                if let Some(runner) = self.runner(*at)
                    && self.reports(&runner)
                {
                    match how {
                        0 => self.world.exit(&runner, "finished", 0),
                        1 => self.world.exit(&runner, "out_of_memory", 137),
                        2 => self.world.exit(&runner, "runner_refused", 1),
                        3 => self.world.exit(&runner, "version_deprecated", 7),
                        _ => self.world.observe_with(&runner, |seen| {
                            seen.phase = ObservedPhase::Failed;
                            seen.error = Some(("image_unavailable".into(), "no such image".into()));
                        }),
                    };
                }
            }
            Op::Deregister(how) => {
                let owed: Vec<Input> = self
                    .world
                    .fleet
                    .outstanding()
                    .filter_map(|effect| match effect {
                        Effect::Deregister { runner, .. } => Some(Input::Deregistered {
                            runner: runner.clone(),
                            outcome: [
                                Deregistration::Gone,
                                Deregistration::Busy,
                                Deregistration::Failed,
                            ][*how as usize],
                        }),
                        _ => None,
                    })
                    .collect();
                self.world.step(&owed);
            }
            Op::Command(what, which) => self.command(*what, *which),
            Op::Budget(registrations) => {
                let limited_until = (*registrations == 0).then_some(self.world.now.utc + 60_000);
                self.world.step(&[Input::BudgetChanged {
                    credential: credential(),
                    scopes: vec![repository_scope(REPOS[0])],
                    registrations: *registrations,
                    limited_until,
                }]);
            }
            Op::List(repo) => {
                let scope = repository_scope(REPOS[*repo]);
                let mut listed: Vec<ListedRunner> = self
                    .world
                    .runners()
                    .iter()
                    .filter(|runner| *runner.placed.scope == scope)
                    .skip(1)
                    .map(|runner| ListedRunner {
                        github_id: 1,
                        name: runner.name().clone(),
                        online: true,
                        busy: false,
                    })
                    .collect();
                for name in ["ls-test-old", "ls-other-old", "theirs"] {
                    listed.push(ListedRunner {
                        github_id: 9,
                        name: RunnerName::new(name),
                        online: false,
                        busy: false,
                    });
                }
                self.world.step(&[Input::RunnersListed {
                    scope,
                    runners: listed,
                }]);
            }
            Op::Forget(at) => {
                if let Some(runner) = self.runner(*at) {
                    for seen in self.world.seen.values_mut() {
                        seen.remove(&runner);
                    }
                }
            }
            Op::Stranger(node, here) => {
                if let Some(name) = self.joined(*node) {
                    let stranger = RunnerName::new("somebody-elses");
                    let seen = self.world.seen.get_mut(&node_name(name)).expect("joined");
                    if *here {
                        seen.insert(
                            stranger.clone(),
                            ObservedRunner {
                                name: stranger,
                                phase: ObservedPhase::Online,
                                observation: 1,
                                worker: true,
                                container_id: "f00".into(),
                                foreign: true,
                                remove_refused: false,
                                exit: None,
                                error: None,
                            },
                        );
                    } else {
                        seen.remove(&stranger);
                    }
                    self.world.report(name);
                }
            }
            Op::Condition(node, bad) => {
                if let Some(name) = self.joined(*node) {
                    let mut report = self.world.report_of(name);
                    if *bad {
                        report.conditions.push(Condition {
                            kind: "disk_full".into(),
                            detail: "no space".into(),
                            next_step: "free some".into(),
                            image: None,
                        });
                    }
                    self.world.step(&[Input::NodeReported(Box::new(report))]);
                }
            }
            Op::Restart => self.restart(),
        }
    }

    /// Only a node that is attached can speak.
    fn reports(&self, runner: &RunnerName) -> bool {
        let node = &self.world.fleet.runner(runner).expect("live").placed.node;
        self.world.seen.contains_key(node)
    }

    /// GitHub hands any matching queued job to any idle runner.
    fn assign(&mut self, at: usize) {
        let pairs: Vec<(JobSeen, RunnerName)> =
            self.world
                .fleet
                .jobs()
                .filter(|job| job.phase() == JobPhase::Queued && !job.seen.labels.is_empty())
                .flat_map(|job| {
                    self.world
                        .fleet
                        .runners()
                        .filter(|runner| {
                            *runner.placed.scope == job.seen.scope
                                && runner.is_consumed()
                                && runner.job.is_none()
                                && job.seen.labels.iter().all(|label| {
                                    runner.placed.labels.contains(&label.to_lowercase())
                                })
                        })
                        .map(|runner| ((*job.seen).clone(), runner.name().clone()))
                })
                .collect();
        if !pairs.is_empty() {
            let (job, runner) = &pairs[at % pairs.len()];
            self.world.start(job, runner);
        }
    }

    fn fail_registration(&mut self, how: u8) {
        let now = self.world.now;
        let failed: Vec<Input> = self
            .world
            .fleet
            .outstanding()
            .filter_map(|effect| match effect {
                Effect::Register { runner, .. } => Some(Input::RegistrationFailed {
                    runner: runner.clone(),
                    failure: match how {
                        0 => RegistrationFailure::Ambiguous,
                        1 => RegistrationFailure::RateLimited {
                            until: now.utc + 60_000,
                        },
                        2 => RegistrationFailure::Forbidden,
                        3 => RegistrationFailure::NotFound,
                        _ => RegistrationFailure::Transient,
                    },
                    detail: "said no".into(),
                }),
                _ => None,
            })
            .collect();
        self.world.step(&failed);
    }

    fn command(&mut self, what: u8, which: usize) {
        let node = node_name(NODES[which]);
        let command = match what {
            0 => Command::CordonNode { node },
            1 => Command::UncordonNode { node },
            2 => Command::DrainNode {
                node,
                deadline: Some(self.world.now.utc + 30_000),
            },
            3 => {
                self.world.seen.remove(&node);
                Command::RemoveNode { node }
            }
            4 => Command::StopAutoscaler,
            5 | 6 => Command::StartAutoscaler {
                max_runners: (which > 2).then_some(3),
                image: (which > 3).then(|| "runner:9".to_owned()),
            },
            7 | 8 => Command::SetPool(Box::new(Pool {
                labels: label_set("linux x64 team-a"),
                image: format!("runner:{which}"),
                precedence: 5,
                placement: if which > 2 {
                    Placement::Spread
                } else {
                    Placement::Pack
                },
                resources: Resources {
                    cpu_millis: 1_000 * (which as u32 + 1),
                    memory_bytes: 2 * GIB,
                    gpus: [0, 0, 0, 1, 2][which % 5],
                },
                gpu: match which {
                    1 => GpuNeeds {
                        compute_capability: (9, 0),
                        ..GpuNeeds::default()
                    },
                    2 => GpuNeeds {
                        models: vec!["big".to_owned(), "huge".to_owned()],
                        ..GpuNeeds::default()
                    },
                    3 => GpuNeeds {
                        memory_mib: 16_384,
                        ..GpuNeeds::default()
                    },
                    _ => GpuNeeds::default(),
                },
                repositories: if which == 1 {
                    vec!["acme/web".to_owned()]
                } else {
                    Vec::new()
                },
                ..pool("team")
            })),
            9 => Command::DeletePool {
                pool: PoolName::new("team"),
            },
            10 => Command::SetShare {
                subject: "acme".to_owned(),
                weight: 3,
                maximum: which as u32,
            },
            11 => Command::SetShare {
                subject: REPOS[which % 4].to_owned(),
                weight: 2,
                maximum: 1,
            },
            12 => Command::Provision {
                scope: repository_scope(REPOS[which % 4]),
                credential: credential(),
                labels: label_set("self-hosted linux x64"),
                pool: None,
                count: 2,
                until: self.world.now.utc + 120_000,
            },
            13 => match self.runner(which) {
                Some(runner) => Command::StopRunner {
                    runner,
                    reason: "asked".to_owned(),
                },
                None => Command::StopAutoscaler,
            },
            14 => Command::Configure {
                pools: vec![Pool {
                    bare_self_hosted: true,
                    ..pool("file")
                }],
                shares: vec![("beta".to_owned(), 2, 0)],
                defaults: Box::default(),
            },
            _ => {
                self.world.step(&[Input::RepositoryGone {
                    id: 0,
                    full_name: REPOS[which % 4].to_owned(),
                }]);
                return;
            }
        };
        self.world.command(command);
    }

    /// A new process loads the snapshot and knows no registration.
    fn restart(&mut self) {
        let snapshot = self.world.fleet.snapshot();
        let mut fleet = Fleet::new("test");
        snapshot.iter().for_each(|fact| fleet.apply(fact));
        assert_eq!(fleet.snapshot(), snapshot);
        self.world.fleet = fleet;
        let facts = self.world.fleet.raise_epoch(0);
        facts.iter().for_each(|fact| self.world.replay.apply(fact));
        self.world.facts.extend(facts);
        let lost: Vec<RunnerName> = self
            .world
            .runners()
            .iter()
            .filter(|runner| !runner.is_consumed())
            .map(|runner| runner.name().clone())
            .collect();
        self.world.entropy = Entropy::from_seed(1_000 + self.world.facts.len() as u64);
        self.world
            .step(&[Input::RegistrationsLost { runners: lost }]);
        let names: Vec<&str> = NODES
            .into_iter()
            .filter(|name| {
                self.world.seen.contains_key(&node_name(name))
                    && self.world.fleet.node(&node_name(name)).is_some()
            })
            .collect();
        for name in names {
            let capability = self
                .world
                .fleet
                .node(&node_name(name))
                .expect("known")
                .capability
                .clone();
            self.world.join(name, capability);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        max_shrink_iters: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_history_keeps_the_invariants(ops in prop::collection::vec(op(), 1..120)) {
        let mut story = Story {
            world: World::started(),
            breakers: oracle::Breakers::default(),
            limited_until: 0,
            budget: None,
            restrained: false,
            heard: 0,
        };
        for op in &ops {
            story.tell(op);
            story.judge();
        }
        let names: BTreeSet<&RunnerName> = story
            .world
            .facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::RunnerPlaced(placed) => Some(&placed.runner),
                _ => None,
            })
            .collect();
        let placed = story
            .world
            .facts
            .iter()
            .filter(|fact| matches!(fact, Fact::RunnerPlaced(_)))
            .count();
        prop_assert_eq!(names.len(), placed, "a name was used twice");
    }

    #[test]
    fn the_same_inputs_give_the_same_facts(ops in prop::collection::vec(op(), 1..60)) {
        let tell = || {
            let mut story = Story {
                world: World::started(),
                breakers: oracle::Breakers::default(),
                limited_until: 0,
                budget: None,
                restrained: false,
                heard: 0,
            };
            ops.iter().for_each(|op| story.tell(op));
            story.world.facts
        };
        prop_assert_eq!(tell(), tell());
    }
}
