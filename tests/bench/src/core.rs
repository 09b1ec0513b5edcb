//! CPU per decision of the pure core, in both directions, against a naive scan.
//!
//! A fleet is full and a long queue waits. **Node to job**: nodes report that a
//! runner ended, and the next runners are placed. **Job to node**: jobs arrive for
//! which some nodes have room, and their runners are placed. A decision is one
//! runner placed; what is timed is the whole `step` that led to it, from the input
//! to the facts: reading the report or the job, retiring, choosing, placing, every
//! index, timer and owed effect, and dropping the facts.
//! Inputs are made before, as the shell makes them: a job's record is shared by the
//! input, the fact and the state, so making it is the parser's cost, and freeing it
//! that of whoever holds it last.
//!
//! `core_decide` hands `step` what the driver would: everything that is ready, here
//! 64 inputs (the driver drains up to 512). `core_step` hands it one input at a
//! time, the idle fleet's case, in which each placement pays for a step of its own.
//! Blocks of 64 decisions are timed by the thread's CPU clock, both ways in turn,
//! and everything a real GitHub and real nodes would answer in between is told
//! outside the timing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use scheduler_core::{Entropy, Fleet, fact::Fact, input::*, model::*};

use crate::row::{Row, thread_cpu_ns};

const SIGNATURES: u64 = 300;
const OWNERS: u64 = 200;
const REPOSITORIES: u64 = 2_000;
const CLASSES: u64 = 48;
const SLOTS: u32 = 4;
/// Of every ten nodes, one stays free for the job-to-node direction.
const FREE_OF: u64 = 10;
const BLOCK: usize = 64;
const BLOCKS: usize = 40;
const NAIVE_RUNS: usize = 12;

const NAIVE: &str = "naive scan over plain strings, same directions";
const DECIDED: usize = 2 * BLOCK * BLOCKS;

pub(crate) fn measure() -> Vec<Row> {
    let small = Measured::of(1_000, 100_000);
    let large = Measured::of(10_000, 1_000_000);
    eprintln!("core_decide_1k: {small:?}\ncore_decide_10k: {large:?}");
    vec![
        Row::new(
            "core_decide_1k",
            (small.batched.mean(), "us"),
            (
                "naive scan over plain strings, same directions; 64 inputs a step, as the driver \
                 batches what is ready",
                small.naive_us,
            ),
            DECIDED,
        ),
        Row::new(
            "core_decide_10k",
            (large.batched.mean(), "us"),
            (
                "naive scan over plain strings, same directions; 64 inputs a step, as the driver \
                 batches what is ready",
                large.naive_us,
            ),
            DECIDED,
        ),
        Row::new(
            "core_decide_flatness",
            (large.batched.mean(), "us"),
            ("core_decide_1k", small.batched.mean()),
            DECIDED,
        ),
        Row::new(
            "core_step_1k",
            (small.alone.mean(), "us"),
            (NAIVE, small.naive_us),
            DECIDED,
        ),
        Row::new(
            "core_step_10k",
            (large.alone.mean(), "us"),
            (NAIVE, large.naive_us),
            DECIDED,
        ),
    ]
}

/// Microseconds per decision in the two directions.
#[derive(Debug)]
struct Directions {
    node_to_job: f64,
    job_to_node: f64,
}

impl Directions {
    fn mean(&self) -> f64 {
        f64::midpoint(self.node_to_job, self.job_to_node)
    }
}

#[derive(Debug)]
struct Measured {
    batched: Directions,
    /// One input a step.
    alone: Directions,
    naive_us: f64,
}

impl Measured {
    fn of(nodes: u64, jobs: u64) -> Self {
        let mut bench = Bench::filled(nodes, jobs);
        let mut spent: [Vec<f64>; 4] = Default::default();
        // Interleaved, so that all see the same load.
        for _ in 0..BLOCKS {
            spent[0].push(bench.node_to_job(BLOCK));
            spent[1].push(bench.job_to_node(BLOCK));
            spent[2].push(bench.node_to_job(1));
            spent[3].push(bench.job_to_node(1));
        }
        let [a, b, c, d] = spent.map(|blocks| median(blocks) / 1_000.0);
        Self {
            batched: Directions {
                node_to_job: a,
                job_to_node: b,
            },
            alone: Directions {
                node_to_job: c,
                job_to_node: d,
            },
            naive_us: naive_us(nodes, jobs),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Small deterministic numbers without a dependency on the core's own generator.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn node_labels(node: u64) -> BTreeSet<String> {
    let class = node % CLASSES;
    let arch = if class.is_multiple_of(4) {
        "arm64"
    } else {
        "x64"
    };
    let mut labels: BTreeSet<String> = ["self-hosted", "linux", arch]
        .into_iter()
        .map(str::to_owned)
        .collect();
    // Each class carries about half of 40 features.
    for feature in 0..40 {
        if mix(class * 1_000 + feature).is_multiple_of(2) {
            labels.insert(format!("feature-{feature}"));
        }
    }
    if node.is_multiple_of(FREE_OF) {
        labels.insert("spare".to_owned());
    }
    labels
}

fn job_labels(signature: u64) -> Vec<String> {
    let arch = if signature.is_multiple_of(4) {
        "arm64"
    } else {
        "x64"
    };
    let mut labels = vec![
        "self-hosted".to_owned(),
        "linux".to_owned(),
        arch.to_owned(),
    ];
    labels.push(format!("feature-{}", signature % 40));
    if signature >= 40 {
        labels.push(format!("feature-{}", (signature / 40 + signature) % 40));
    }
    // Distinct sets beyond the pairs above.
    if signature >= 280 {
        labels.push(format!("feature-{}", (signature * 7) % 40));
    }
    labels
}

fn repository(at: u64) -> (String, String) {
    (
        format!("owner-{}", at % OWNERS),
        format!("repo-{}", at / OWNERS),
    )
}

fn job(id: u64, repository_at: u64, labels: Vec<String>) -> JobSeen {
    let (owner, name) = repository(repository_at);
    JobSeen {
        id: JobId(id),
        run_id: id / 8,
        attempt: 1,
        repository: Repository {
            id: repository_at + 1,
            owner: owner.clone(),
            name: name.clone(),
            private: Some(true),
        },
        scope: Scope::Repository { owner, repo: name },
        credential: CredentialName::new("main"),
        name: "build".to_owned(),
        workflow: "ci".to_owned(),
        labels,
        phase: JobPhase::Queued,
        conclusion: None,
        runner_name: None,
        runner_id: None,
        origin: Origin {
            event: Some("push".to_owned()),
            head_repository: None,
        },
        created_at: 1_700_000_000_000 + id,
        started_at: None,
        completed_at: None,
        html_url: String::new(),
        traceparent: None,
    }
}

fn queued(id: u64) -> JobSeen {
    let random = mix(id);
    job(
        id,
        random % REPOSITORIES,
        job_labels((random >> 32) % SIGNATURES),
    )
}

struct Bench {
    fleet: Fleet,
    now: Now,
    entropy: Entropy,
    next_job: u64,
    next_node: usize,
    names: Vec<NodeName>,
    observation: u64,
}

impl Bench {
    fn filled(nodes: u64, jobs: u64) -> Self {
        let mut bench = Self {
            fleet: Fleet::new("bench"),
            now: Now {
                mono: 1_000,
                utc: 1_700_000_100_000,
            },
            entropy: Entropy::from_seed(7),
            next_job: jobs,
            next_node: 0,
            names: Vec::new(),
            observation: 1,
        };
        bench.fleet.raise_epoch(0);
        bench.step(&[Input::BudgetChanged {
            credential: CredentialName::new("main"),
            scopes: Vec::new(),
            registrations: u32::MAX,
            limited_until: None,
        }]);
        for first in (0..jobs).step_by(1_000) {
            let batch: Vec<Input> = (first..(first + 1_000).min(jobs))
                .map(|id| Input::JobSeen(Arc::new(queued(id))))
                .collect();
            bench.step(&batch);
        }
        for at in 0..nodes {
            let name = NodeName::new(format!("node-{at:05}"));
            let spare = at.is_multiple_of(FREE_OF);
            bench.step(&[Input::NodeAttached(Box::new(NodeAttached {
                node: name.clone(),
                session: 1,
                highest: Generation::default(),
                capability: Capability {
                    arch: "x64".to_owned(),
                    // Spare nodes answer only the jobs of the other direction.
                    labels: if spare {
                        ["self-hosted", "spare"].map(str::to_owned).into()
                    } else {
                        node_labels(at)
                    },
                    capacity: Resources {
                        cpu_millis: 2_000 * SLOTS,
                        memory_bytes: u64::from(SLOTS) * (4 << 30),
                        gpus: 0,
                    },
                    properties: scheduler_core::profile::of_a_full_node(),
                    ..Capability::default()
                },
                clock_offset_ms: 0,
            }))]);
            if !spare {
                bench.names.push(name);
            }
        }
        bench.settle();
        let full = (nodes - nodes.div_ceil(FREE_OF)) as usize * SLOTS as usize;
        assert_eq!(bench.fleet.runners().count(), full, "the fleet is full");
        bench
    }

    fn step(&mut self, inputs: &[Input]) -> Vec<Fact> {
        self.fleet.step(self.now, &mut self.entropy, inputs)
    }

    /// GitHub registers what is reserved; nodes report what they hold.
    fn settle(&mut self) {
        let ready: Vec<Input> = self
            .fleet
            .runners()
            .filter(|runner| runner.registered.is_none())
            .enumerate()
            .map(|(at, runner)| Input::RegistrationReady {
                runner: runner.name().clone(),
                github_id: at as u64 + 1,
            })
            .collect();
        self.step(&ready);
        let unseen: BTreeSet<NodeName> = self
            .fleet
            .runners()
            .filter(|runner| runner.observed.is_none())
            .map(|runner| runner.placed.node.clone())
            .collect();
        for node in unseen {
            let report = self.report(&node, None);
            self.step(&[report]);
        }
    }

    /// What the node would report; `ended` has just exited.
    fn report(&mut self, node: &NodeName, ended: Option<&RunnerName>) -> Input {
        let known = self.fleet.node(node).expect("joined");
        let runners = known
            .runners
            .iter()
            .map(|name| {
                let over = ended == Some(name);
                let seen = self
                    .fleet
                    .runner(name)
                    .and_then(|runner| runner.observed.as_ref());
                ObservedRunner {
                    name: name.clone(),
                    phase: if over {
                        ObservedPhase::Exited
                    } else {
                        ObservedPhase::Online
                    },
                    observation: seen.map_or(self.observation, |seen| seen.observation),
                    worker: false,
                    container_id: "0123456789ab".to_owned(),
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
            node: node.clone(),
            session: 1,
            accepted: known.generation,
            capability: None,
            conditions: Vec::new(),
            runners,
            clock_offset_ms: 0,
        }))
    }

    /// Nanoseconds per decision of one block, `batch` inputs a step.
    fn timed(&mut self, inputs: &[Input], batch: usize) -> f64 {
        let mut placed = 0;
        let before = thread_cpu_ns();
        for inputs in inputs.chunks(batch) {
            let facts = self.fleet.step(self.now, &mut self.entropy, inputs);
            placed += facts
                .iter()
                .filter(|fact| matches!(fact, Fact::RunnerPlaced(_)))
                .count();
        }
        let spent = thread_cpu_ns() - before;
        assert_eq!(placed, inputs.len(), "each input led to one placement");
        spent as f64 / inputs.len() as f64
    }

    fn node_to_job(&mut self, batch: usize) -> f64 {
        // The runners that will end have taken a job each.
        let mut ends = Vec::new();
        for _ in 0..BLOCK {
            let node = self.names[self.next_node % self.names.len()].clone();
            self.next_node += 7;
            let runner = self
                .fleet
                .node(&node)
                .and_then(|node| node.runners.first())
                .expect("a full node")
                .clone();
            ends.push((node, runner));
        }
        ends.dedup_by(|a, b| a.0 == b.0);
        let mut taken = Vec::new();
        for (_, runner) in &ends {
            let placed = &self.fleet.runner(runner).expect("live").placed;
            let job = placed
                .job
                .and_then(|id| self.fleet.job(id))
                .expect("placed for a job");
            if job.phase() == JobPhase::Queued {
                let mut seen = (*job.seen).clone();
                seen.phase = JobPhase::InProgress;
                seen.runner_name = Some(runner.as_str().to_owned());
                taken.push(Input::JobSeen(Arc::new(seen)));
            }
        }
        self.step(&taken);
        let reports: Vec<Input> = ends
            .iter()
            .map(|(node, runner)| self.report(node, Some(runner)))
            .collect();
        let spent = self.timed(&reports, batch);
        self.settle();
        spent
    }

    fn job_to_node(&mut self, batch: usize) -> f64 {
        let labels = vec!["self-hosted".to_owned(), "spare".to_owned()];
        let first = self.next_job;
        self.next_job += BLOCK as u64;
        let arrivals: Vec<Input> = (first..self.next_job)
            .map(|id| Input::JobSeen(Arc::new(job(id, mix(id) % REPOSITORIES, labels.clone()))))
            .collect();
        let spent = self.timed(&arrivals, batch);
        self.settle();
        // They run and end, so that the room is free again.
        let mine: Vec<(NodeName, RunnerName, JobId)> = self
            .fleet
            .runners()
            .filter_map(|runner| {
                let job = runner.placed.job.filter(|job| job.0 >= first)?;
                Some((runner.placed.node.clone(), runner.name().clone(), job))
            })
            .collect();
        for (_, runner, job) in &mine {
            let mut seen = (*self.fleet.job(*job).expect("known").seen).clone();
            seen.phase = JobPhase::Completed;
            seen.runner_name = Some(runner.as_str().to_owned());
            self.step(&[Input::JobSeen(Arc::new(seen))]);
        }
        for (node, runner, _) in &mine {
            let report = self.report(node, Some(runner));
            self.step(&[report]);
        }
        spent
    }
}

/// The same two questions answered by scanning plain strings, microseconds.
fn naive_us(nodes: u64, jobs: u64) -> f64 {
    let nodes: Vec<(BTreeSet<String>, u32)> = (0..nodes)
        .map(|at| (node_labels(at), (mix(at) % 4) as u32))
        .collect();
    let queue: Vec<(Vec<String>, u64)> = (0..jobs)
        .map(|id| {
            let random = mix(id);
            (
                job_labels((random >> 32) % SIGNATURES),
                random % REPOSITORIES,
            )
        })
        .collect();
    let served: BTreeMap<u64, u64> = (0..REPOSITORIES).map(|at| (at, mix(at) % 1_000)).collect();
    let mut job_to_node = Vec::new();
    let mut node_to_job = Vec::new();
    let mut found = 0_usize;
    for run in 0..NAIVE_RUNS {
        let wanted = job_labels(run as u64 * 17 % SIGNATURES);
        let before = thread_cpu_ns();
        let best = nodes
            .iter()
            .enumerate()
            .filter(|(_, (labels, free))| *free > 0 && wanted.iter().all(|l| labels.contains(l)))
            .min_by_key(|(_, (_, free))| *free);
        job_to_node.push((thread_cpu_ns() - before) as f64);
        found += usize::from(best.is_some());
        let (labels, _) = &nodes[run * 31 % nodes.len()];
        let before = thread_cpu_ns();
        let best = queue
            .iter()
            .enumerate()
            .filter(|(_, (wanted, _))| wanted.iter().all(|label| labels.contains(label)))
            .min_by_key(|(at, (_, repository))| (served[repository], *at));
        node_to_job.push((thread_cpu_ns() - before) as f64);
        found += usize::from(best.is_some());
    }
    assert!(found > 0, "the scan finds something to place");
    f64::midpoint(median(job_to_node), median(node_to_job)) / 1_000.0
}
