//! The fair share under a flood: one repository pushes 256-job matrices beside 20
//! light ones at weights 1, 2 and 4. Simulated time; only the core's public API.
//!
//! Two numbers: Jain's index over service divided by weight while everybody has
//! work, and the worst wait of a repository that asks for one job at a time at
//! weight 1, against the time its fair share of the fleet takes to serve one job.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use scheduler_core::{Entropy, Fleet, fact::Fact, input::*, model::*};

use crate::row::Row;

const NODES: usize = 8;
const SLOTS: usize = 4;
const LIGHT: usize = 20;
const MATRIX: usize = 256;
const JOB_MS: u64 = 60_000;
const TICK_MS: u64 = 1_000;
/// The index is taken after everybody had a first turn.
const WARM_UP_MS: u64 = 10 * 60_000;
const LENGTH_MS: u64 = 70 * 60_000;

/// What the scenario showed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) jain: f64,
    /// Worst wait of the lone light repository, milliseconds.
    pub(crate) worst_wait_ms: u64,
    /// What its fair share would take to serve one job, milliseconds.
    pub(crate) fair_wait_ms: u64,
    pub(crate) served: usize,
}

pub(crate) fn measure() -> Vec<Row> {
    let outcome = run(1);
    vec![
        Row::new(
            "fair_jain",
            (outcome.jain, "index"),
            ("perfectly fair by weight", 1.0),
            outcome.served,
        ),
        Row::new(
            "fair_light_wait",
            (outcome.worst_wait_ms as f64 / 1_000.0, "s"),
            (
                "time a fair share takes to serve one job",
                outcome.fair_wait_ms as f64 / 1_000.0,
            ),
            outcome.served,
        ),
    ]
}

/// Weight of the repository at this place: the flood first, then 1, 2, 4, 1, ...
fn weight(at: usize) -> u32 {
    if at == 0 { 1 } else { [1, 2, 4][(at - 1) % 3] }
}

fn name(at: usize) -> String {
    if at == 0 {
        "flood".to_owned()
    } else {
        format!("light-{at:02}")
    }
}

pub(crate) fn run(seed: u64) -> Outcome {
    let mut story = Story::new(seed);
    while story.now.mono < LENGTH_MS {
        story.tick();
    }
    story.outcome()
}

struct Story {
    fleet: Fleet,
    entropy: Entropy,
    jitter: Entropy,
    now: Now,
    next_job: u64,
    /// Waiting jobs by repository, oldest first.
    waiting: BTreeMap<String, VecDeque<JobId>>,
    /// What runs where, and until when.
    running: BTreeMap<RunnerName, (u64, JobId)>,
    served: BTreeMap<String, u64>,
    worst_wait_ms: u64,
    total: usize,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut story = Self {
            fleet: Fleet::new("fair"),
            entropy: Entropy::from_seed(seed),
            jitter: Entropy::from_seed(seed ^ 0xfa1e),
            now: Now {
                mono: 0,
                utc: 1_700_000_000_000,
            },
            next_job: 1,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            served: BTreeMap::new(),
            worst_wait_ms: 0,
            total: 0,
        };
        story.fleet.raise_epoch(0);
        let mut inputs: Vec<Input> = (0..=LIGHT)
            .map(|at| {
                Input::Command(Command::SetShare {
                    subject: format!("acme/{}", name(at)),
                    weight: weight(at),
                    maximum: 0,
                })
            })
            .collect();
        inputs.push(Input::BudgetChanged {
            credential: CredentialName::new("main"),
            scopes: Vec::new(),
            registrations: u32::MAX,
            limited_until: None,
        });
        for node in 0..NODES {
            inputs.push(Input::NodeAttached(Box::new(NodeAttached {
                node: node_name(node),
                session: 1,
                highest: Generation::default(),
                capability: Capability {
                    arch: "x64".to_owned(),
                    labels: ["self-hosted", "linux", "x64"].map(str::to_owned).into(),
                    capacity: Resources {
                        cpu_millis: 2_000 * SLOTS as u32,
                        memory_bytes: SLOTS as u64 * (4 << 30),
                        gpus: 0,
                    },
                    properties: scheduler_core::profile::of_a_full_node(),
                    ..Capability::default()
                },
                clock_offset_ms: 0,
            })));
        }
        story.step(&inputs);
        story
    }

    fn step(&mut self, inputs: &[Input]) -> Vec<Fact> {
        self.fleet.step(self.now, &mut self.entropy, inputs)
    }

    fn waits(&self, repository: &str) -> usize {
        self.waiting.get(repository).map_or(0, VecDeque::len)
    }

    fn push(&mut self, repository: &str, count: usize) {
        let mut inputs = Vec::new();
        for _ in 0..count {
            let id = JobId(self.next_job);
            self.next_job += 1;
            self.waiting
                .entry(repository.to_owned())
                .or_default()
                .push_back(id);
            inputs.push(Input::JobSeen(Arc::new(self.job(id, repository))));
        }
        self.step(&inputs);
    }

    fn job(&self, id: JobId, repository: &str) -> JobSeen {
        JobSeen {
            id,
            run_id: id.0,
            attempt: 1,
            repository: Repository {
                id: 0,
                owner: "acme".to_owned(),
                name: repository.to_owned(),
                private: Some(true),
            },
            scope: Scope::Repository {
                owner: "acme".to_owned(),
                repo: repository.to_owned(),
            },
            credential: CredentialName::new("main"),
            name: "build".to_owned(),
            workflow: "ci".to_owned(),
            labels: ["self-hosted", "linux", "x64"].map(str::to_owned).to_vec(),
            phase: JobPhase::Queued,
            conclusion: None,
            runner_name: None,
            runner_id: None,
            origin: Origin {
                event: Some("push".to_owned()),
                head_repository: None,
            },
            created_at: self.now.utc,
            started_at: None,
            completed_at: None,
            html_url: String::new(),
            traceparent: None,
        }
    }

    /// One second of everybody's life.
    fn tick(&mut self) {
        self.now.mono += TICK_MS;
        self.now.utc += TICK_MS;
        // The flood comes in matrices; the light ones but the last always have a
        // few jobs; the last asks for its next only when it has none.
        if self.waits(&name(0)) < MATRIX {
            self.push(&name(0), MATRIX);
        }
        for at in (1..=LIGHT).filter(|at| *at != LONE) {
            let short = 8_usize.saturating_sub(self.waits(&name(at)));
            if short > 0 {
                self.push(&name(at), short);
            }
        }
        let last = name(LONE);
        let quiet = self.waits(&last) == 0
            && !self.running.values().any(|(_, job)| {
                self.fleet
                    .job(*job)
                    .is_some_and(|job| job.seen.repository.name == last)
            });
        if quiet {
            self.push(&last, 1);
        }
        self.finish();
        self.start();
    }

    /// Jobs whose time is over complete and their runners exit.
    fn finish(&mut self) {
        let over: Vec<(RunnerName, JobId)> = self
            .running
            .iter()
            .filter(|(_, (until, _))| *until <= self.now.mono)
            .map(|(runner, (_, job))| (runner.clone(), *job))
            .collect();
        let mut inputs = Vec::new();
        for (runner, job) in &over {
            self.running.remove(runner);
            let mut seen = (*self.fleet.job(*job).expect("it runs").seen).clone();
            seen.phase = JobPhase::Completed;
            seen.conclusion = Some(Conclusion::Success);
            inputs.push(Input::JobSeen(Arc::new(seen)));
        }
        let ended: BTreeSet<RunnerName> = over.into_iter().map(|(runner, _)| runner).collect();
        inputs.extend(self.reports(&ended));
        self.step(&inputs);
    }

    fn reports(&self, ended: &BTreeSet<RunnerName>) -> Vec<Input> {
        (0..NODES)
            .map(|at| {
                let node = self.fleet.node(&node_name(at)).expect("joined");
                let runners = node
                    .runners
                    .iter()
                    .map(|name| {
                        let busy = self.running.contains_key(name);
                        let over = ended.contains(name);
                        ObservedRunner {
                            name: name.clone(),
                            phase: match (over, busy) {
                                (true, _) => ObservedPhase::Exited,
                                (false, true) => ObservedPhase::Busy,
                                (false, false) => ObservedPhase::Online,
                            },
                            observation: 1 + u64::from(busy),
                            worker: busy,
                            container_id: String::new(),
                            foreign: false,
                            remove_refused: false,
                            exit: over.then(|| Exit {
                                code: Some(0),
                                cause: "finished".to_owned(),
                                detail: String::new(),
                                usage: None,
                                denied: None,
                            }),
                            error: None,
                        }
                    })
                    .collect();
                Input::NodeReported(Box::new(NodeReported {
                    node: node_name(at),
                    session: 1,
                    accepted: node.generation,
                    capability: None,
                    conditions: Vec::new(),
                    runners,
                    clock_offset_ms: 0,
                }))
            })
            .collect()
    }

    /// New runners register, listen and take the oldest job of their repository.
    fn start(&mut self) {
        let fresh: Vec<(RunnerName, Scope)> = self
            .fleet
            .runners()
            .filter(|runner| runner.registered.is_none())
            .map(|runner| (runner.name().clone(), (*runner.placed.scope).clone()))
            .collect();
        let mut inputs: Vec<Input> = fresh
            .iter()
            .enumerate()
            .map(|(at, (runner, _))| Input::RegistrationReady {
                runner: runner.clone(),
                github_id: at as u64 + 1,
            })
            .collect();
        for (runner, scope) in fresh {
            let Scope::Repository { repo, .. } = scope else {
                continue;
            };
            let Some(id) = self.waiting.get_mut(&repo).and_then(VecDeque::pop_front) else {
                continue;
            };
            let mut seen = (*self.fleet.job(id).expect("it waits").seen).clone();
            let waited = self.now.utc - seen.created_at;
            if self.now.mono > WARM_UP_MS {
                *self.served.entry(repo.clone()).or_default() += 1;
                self.total += 1;
                if repo == name(LONE) {
                    self.worst_wait_ms = self.worst_wait_ms.max(waited);
                }
            }
            seen.phase = JobPhase::InProgress;
            seen.runner_name = Some(runner.as_str().to_owned());
            inputs.push(Input::JobSeen(Arc::new(seen)));
            // Half to one and a half times the usual length.
            let length = JOB_MS / 2 + self.jitter.below(JOB_MS);
            self.running.insert(runner, (self.now.mono + length, id));
        }
        self.step(&inputs);
        let reports = self.reports(&BTreeSet::new());
        self.step(&reports);
    }

    fn outcome(&self) -> Outcome {
        // The lone one asks for less than its share: it is judged by its waits.
        let shares: Vec<f64> = (0..=LIGHT)
            .filter(|at| *at != LONE)
            .map(|at| {
                let served = self.served.get(&name(at)).copied().unwrap_or(0);
                served as f64 / f64::from(weight(at))
            })
            .collect();
        let sum: f64 = shares.iter().sum();
        let squares: f64 = shares.iter().map(|share| share * share).sum();
        let weights: u32 = (0..=LIGHT).map(weight).sum();
        let slots = (NODES * SLOTS) as u64;
        Outcome {
            jain: sum * sum / (shares.len() as f64 * squares),
            worst_wait_ms: self.worst_wait_ms,
            fair_wait_ms: JOB_MS * u64::from(weights) / (slots * u64::from(weight(LONE))),
            served: self.total,
        }
    }
}

/// The light repository that asks for one job at a time; its weight is 1.
const LONE: usize = LIGHT - 1;

fn node_name(at: usize) -> NodeName {
    NodeName::new(format!("node-{at}"))
}

#[cfg(test)]
mod tests {
    use super::{LONE, run, weight};

    #[test]
    fn a_flood_neither_bends_the_shares_nor_starves_the_lightest() {
        assert_eq!(weight(LONE), 1, "the lone one is among the lightest");
        for seed in 1..4 {
            let outcome = run(seed);
            assert!(outcome.jain >= 0.95, "seed {seed}: {outcome:?}");
            assert!(
                outcome.worst_wait_ms <= 2 * outcome.fair_wait_ms,
                "seed {seed}: {outcome:?}"
            );
            assert!(outcome.served > 1_000, "seed {seed}: {outcome:?}");
        }
    }
}
