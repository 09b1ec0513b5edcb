//! The fleet: one value that decides facts, applies facts and owes effects.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    capacity::Capacity,
    demand::Demand,
    effect::{Desired, Effect, NodeIntent, RunnerIntent},
    entropy::Entropy,
    explain::Explanation,
    fact::{Fact, RunnerPlaced},
    input::{DEFAULT_IMAGE, Defaults, Input},
    labels::Labels,
    model::{
        CredentialName, Generation, JobId, NodeName, Now, Origin, PoolName, Resources, RunnerName,
        RunnerPhase, Scope,
    },
    owed::Owed,
    spent::Spent,
    state::{
        Autoscaler, Budget, Floor, Job, Node, Orphan, PoolEntry, Queue, Rest, Runner, Share, Status,
    },
    table::Table,
    timers::Timers,
    unassigned::{DemandKey, InVain},
};

pub(crate) type NodeIx = u32;

/// Everything the scheduler believes, and the indexes that make it fast.
#[derive(Debug)]
pub struct Fleet {
    pub(crate) fleet_id: String,
    /// What the names of its runners begin with.
    prefix: String,
    pub(crate) epoch: u64,
    pub(crate) defaults: Defaults,
    pub(crate) autoscaler: Autoscaler,
    pub(crate) pools: BTreeMap<PoolName, PoolEntry>,
    pub(crate) shares: BTreeMap<String, Share>,
    pub(crate) budgets: BTreeMap<CredentialName, Budget>,
    pub(crate) rests: BTreeMap<Scope, Rest>,
    pub(crate) images: BTreeMap<(String, Option<NodeName>), Rest>,
    /// Demand for which runners idled out in a row.
    pub(crate) in_vain: BTreeMap<DemandKey, InVain>,
    pub(crate) floors: BTreeMap<(Scope, PoolName, Vec<String>), Floor>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Jobs by run, for the origin that arrives by run.
    pub(crate) runs: BTreeSet<(u64, JobId)>,
    /// Completed jobs in memory, oldest first.
    pub(crate) completed: BTreeSet<(u64, JobId)>,
    /// Jobs forgotten lately: a late echo does not bring them back.
    pub(crate) ended: VecDeque<JobId>,
    pub(crate) ended_ids: BTreeSet<JobId>,
    pub(crate) runners: Table<RunnerName, Runner>,
    pub(crate) orphans: Table<RunnerName, Orphan>,
    pub(crate) nodes_by_name: BTreeMap<NodeName, NodeIx>,
    pub(crate) node_ixs: Table<NodeName, NodeIx>,
    pub(crate) nodes: Vec<Option<Node>>,

    // Derived from the above, kept as facts are applied.
    pub(crate) labels: Labels,
    pub(crate) capacity: Capacity,
    pub(crate) demand: Demand,
    pub(crate) owed: Owed,
    /// Pools or defaults changed: the indexes are rebuilt before their next use.
    pub(crate) stale: bool,

    // Soft: this process only.
    pub(crate) timers: Timers,
    pub(crate) soft: Soft,
}

#[derive(Debug, Default)]
pub(crate) struct Soft {
    pub(crate) last: Option<Now>,
    pub(crate) placed: u64,
    pub(crate) thefts: u64,
    pub(crate) orders: u64,
    /// Origins of runs whose jobs did not arrive yet, oldest first.
    pub(crate) origins: BTreeMap<u64, Origin>,
    /// Runners over lately, for answers that arrive after their end.
    pub(crate) graves: Table<RunnerName, Arc<RunnerPlaced>>,
    pub(crate) grave_order: VecDeque<RunnerName>,
    /// Runners over after a job that GitHub has not named yet.
    pub(crate) spent: BTreeMap<RunnerName, Spent>,
    /// How late GitHub's word about a job may be, beside what a webhook takes.
    pub(crate) news_delay_ms: u64,
    /// Registrations of our prefix seen without a live runner: when first.
    pub(crate) strangers: BTreeMap<RunnerName, u64>,
    /// Orphans whose deletion rests after a failure: until when, and how often it failed.
    pub(crate) orphan_rests: BTreeMap<RunnerName, (u64, u32)>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            image: DEFAULT_IMAGE.to_owned(),
            max_runners: 0,
            idle_timeout: Duration::from_secs(300),
            lifetime: Duration::from_secs(6 * 3600 + 15 * 60),
            node_lease: Duration::from_secs(30),
            orphan_age: Duration::from_secs(600),
            ghost_age: Duration::from_secs(300),
            ghost_confirmation: Duration::from_secs(60),
            after_completion: Duration::from_secs(600),
            stop_grace: Duration::from_secs(90),
            ageing: Duration::from_secs(1800),
            resources: Resources {
                cpu_millis: 2_000,
                memory_bytes: 4 << 30,
                gpus: 0,
            },
            bare_self_hosted: false,
        }
    }
}

impl Fleet {
    /// An empty fleet. `fleet_id` is made once, stored by the shell, and part of
    /// every runner's name.
    pub fn new(fleet_id: impl Into<String>) -> Self {
        let fleet_id = fleet_id.into();
        let mut fleet = Self {
            prefix: format!("ls-{fleet_id}-"),
            fleet_id,
            epoch: 0,
            defaults: Defaults::default(),
            autoscaler: Autoscaler::default(),
            pools: BTreeMap::new(),
            shares: BTreeMap::new(),
            budgets: BTreeMap::new(),
            rests: BTreeMap::new(),
            images: BTreeMap::new(),
            in_vain: BTreeMap::new(),
            floors: BTreeMap::new(),
            jobs: BTreeMap::new(),
            runs: BTreeSet::new(),
            completed: BTreeSet::new(),
            ended: VecDeque::new(),
            ended_ids: BTreeSet::new(),
            runners: Table::default(),
            orphans: Table::default(),
            nodes_by_name: BTreeMap::new(),
            node_ixs: Table::default(),
            nodes: Vec::new(),
            labels: Labels::default(),
            capacity: Capacity::default(),
            demand: Demand::default(),
            owed: Owed::default(),
            stale: true,
            timers: Timers::default(),
            soft: Soft::default(),
        };
        fleet.reindex();
        fleet
    }

    /// Takes a batch of inputs, decides, applies what it decided to itself and
    /// returns it for the store. Reports and other inputs come before timers.
    pub fn step(&mut self, now: Now, entropy: &mut Entropy, inputs: &[Input]) -> Vec<Fact> {
        // An input leads to a fact or two as a rule.
        let mut facts = Vec::with_capacity(2 * inputs.len());
        self.notice_time(now);
        for input in inputs {
            self.take(now, entropy, input, &mut facts);
        }
        self.run_timers(now, &mut facts);
        self.schedule(now, entropy, &mut facts);
        self.rearm(now, &mut facts);
        facts
    }

    /// For a view that only applies facts: brings the indexes up to date after a
    /// batch, so that explaining sees them. `step` does it by itself.
    pub fn settle(&mut self) {
        self.ensure_index();
        self.settle_lending();
    }

    /// Raises the epoch above the present one and at least to `at_least`: done and
    /// committed once at each start of a scheduler, before its first step.
    pub fn raise_epoch(&mut self, at_least: u64) -> Vec<Fact> {
        let fact = Fact::EpochRaised {
            epoch: at_least.max(self.epoch + 1),
        };
        self.apply(&fact);
        vec![fact]
    }

    /// What the state owes now. The shell knows what of it is in flight.
    pub fn outstanding(&self) -> impl Iterator<Item = &Effect> {
        self.owed.effects()
    }

    /// The monotonic time at which `step` has something to do without an input.
    pub fn next_deadline(&self) -> Option<u64> {
        let lease = self.defaults.node_lease.as_millis() as u64;
        let heartbeat = self
            .soft
            .last
            .filter(|_| self.nodes().any(Node::is_reachable))
            .map(|last| last.mono + (lease / 3).max(1));
        [self.timers.next(), heartbeat].into_iter().flatten().min()
    }

    /// A node's whole intent; `None` for a node nobody knows.
    pub fn intent(&self, node: &NodeName) -> Option<NodeIntent> {
        let node = self.node(node)?;
        let mut runners: Vec<RunnerIntent> = node
            .slots
            .iter()
            .filter_map(|slot| self.runners.at(*slot))
            .map(|(name, runner)| RunnerIntent {
                name: name.clone(),
                desired: self.desired(runner),
            })
            .collect();
        runners.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Some(NodeIntent {
            generation: node.generation,
            cordoned: node.cordoned || node.draining.is_some(),
            runners,
            expected: self.expected(node),
        })
    }

    pub(crate) fn desired(&self, runner: &Runner) -> Desired {
        use crate::fact::StopReason;
        let Some((why, _)) = &runner.stopping else {
            return Desired::Run(runner.placed.clone());
        };
        let grace = self.defaults.stop_grace.as_millis() as u64;
        let kill = |reason: &str, grace_ms| Desired::Kill {
            reason: reason.to_owned(),
            grace_ms,
        };
        match why {
            StopReason::Idle | StopReason::Surplus => match &runner.deregistered {
                Some((answer, _)) if answer.is_gone() => Desired::Remove {
                    observation: runner
                        .observed
                        .as_ref()
                        .map_or(0, |observed| observed.observation),
                },
                _ => Desired::StopIfIdle,
            },
            StopReason::Lifetime => kill("lifetime", grace),
            StopReason::Asked(reason) => kill(reason, grace),
            StopReason::DrainDeadline => kill("drain deadline", grace),
            StopReason::NotAdmitted(reason) => kill(reason, grace),
            StopReason::NotRegistered(_) => kill("not registered", 0),
            StopReason::RegistrationLost => kill("registration lost", 0),
            StopReason::Ghost => kill("registration gone", grace),
            StopReason::CompletedButAlive => kill("job completed long ago", grace),
            StopReason::NeverStarted => kill("never started", grace),
        }
    }

    /// Why a job waits, or `None` for a job nobody knows.
    pub fn explain(&self, job: JobId, now: Now) -> Option<Explanation> {
        self.explained(job, now)
    }

    pub fn fleet_id(&self) -> &str {
        &self.fleet_id
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Ordered by id.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// Live runners, ordered by name.
    pub fn runners(&self) -> impl Iterator<Item = &Runner> {
        self.runners.values()
    }

    pub fn runner(&self, name: &RunnerName) -> Option<&Runner> {
        self.runners.get(name)
    }

    /// Ordered by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes_by_name
            .values()
            .filter_map(|ix| self.nodes[*ix as usize].as_ref())
    }

    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes[self.node_ix(name)? as usize].as_ref()
    }

    /// The node a runner of ours is on.
    pub(crate) fn node_of(&self, runner: &Runner) -> Option<&Node> {
        self.nodes.get(runner.node as usize)?.as_ref()
    }

    /// Ordered by name; the built-in pool among them.
    pub fn pools(&self) -> impl Iterator<Item = &PoolEntry> {
        self.pools.values()
    }

    pub fn pool(&self, name: &PoolName) -> Option<&PoolEntry> {
        self.pools.get(name)
    }

    /// Configured weights and maxima by `owner` or `owner/name`.
    pub fn shares(&self) -> impl Iterator<Item = (&str, &Share)> {
        self.shares
            .iter()
            .map(|(subject, share)| (subject.as_str(), share))
    }

    pub fn budgets(&self) -> impl Iterator<Item = (&CredentialName, &Budget)> {
        self.budgets.iter()
    }

    /// Registrations that GitHub may still list without a live runner.
    pub fn orphans(&self) -> impl Iterator<Item = &RunnerName> {
        self.orphans.keys()
    }

    /// Most runners at once; 0: bounded by the nodes only.
    pub fn max_runners(&self) -> u32 {
        self.autoscaler
            .max_runners
            .unwrap_or(self.defaults.max_runners)
    }

    pub fn is_running(&self) -> bool {
        self.autoscaler.running
    }

    /// The fleet in numbers. Not for the hot path: it walks jobs and nodes.
    pub fn status(&self) -> Status {
        let mut status = Status {
            running: self.autoscaler.running,
            since: self.autoscaler.at,
            max_runners: self.max_runners(),
            image: self.autoscaler.image.clone(),
            runners: self.runners.len() as u32,
            nodes_total: self.nodes_by_name.len() as u32,
            nodes_ready: self.nodes().filter(|node| node.takes_new_runners()).count() as u32,
            filtered: self.filtered(),
            placed: self.soft.placed,
            thefts: self.soft.thefts,
            ..Status::default()
        };
        let mut repositories = BTreeSet::new();
        for job in self.jobs.values() {
            repositories.insert((&job.seen.repository.owner, &job.seen.repository.name));
            match job.phase() {
                crate::model::JobPhase::Queued => status.queued += 1,
                crate::model::JobPhase::Waiting => status.waiting += 1,
                crate::model::JobPhase::InProgress => status.in_progress += 1,
                crate::model::JobPhase::Completed => {}
            }
        }
        status.repositories = repositories.len() as u32;
        for (_, runner) in self.runners.unordered() {
            match runner.phase() {
                RunnerPhase::Busy => status.busy += 1,
                RunnerPhase::Idle => status.idle += 1,
                _ => {}
            }
        }
        status
    }

    /// Each repository's jobs in memory, by `owner/name`.
    pub fn queues(&self) -> BTreeMap<String, Queue> {
        use crate::model::{Conclusion, JobPhase};
        let mut queues: BTreeMap<String, Queue> = BTreeMap::new();
        let mut runs: BTreeSet<(String, u64)> = BTreeSet::new();
        let mut missing: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
        for job in self.jobs.values() {
            let name = job.seen.repository.full_name();
            let first_of_run = runs.insert((name.clone(), job.seen.run_id));
            let queue = queues.entry(name).or_default();
            queue.runs += u32::from(first_of_run);
            match job.phase() {
                JobPhase::InProgress => queue.running += 1,
                JobPhase::Waiting => queue.pending += 1,
                JobPhase::Queued => {
                    queue.pending += 1;
                    let label = missing
                        .entry(job.seen.labels.clone())
                        .or_insert_with_key(|labels| self.missing_label(labels));
                    if let Some(label) = label {
                        *queue.filtered.entry(label.clone()).or_default() += 1;
                    }
                }
                JobPhase::Completed => {
                    let failed = matches!(
                        job.seen.conclusion,
                        Some(Conclusion::Failure | Conclusion::TimedOut)
                    );
                    queue.failed += u32::from(failed);
                }
            }
        }
        queues
    }

    /// Queued jobs no node can run, by the label or architecture that is missing.
    pub fn filtered(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for (labels, jobs) in self.queued_by_labels() {
            if let Some(label) = self.missing_label(&labels) {
                *counts.entry(label).or_default() += jobs;
            }
        }
        counts
    }

    pub(crate) fn node_ix(&self, name: &NodeName) -> Option<NodeIx> {
        self.node_ixs.get(name).copied()
    }

    pub(crate) fn emit(&mut self, fact: Fact, facts: &mut Vec<Fact>) {
        self.apply(&fact);
        facts.push(fact);
    }

    pub(crate) fn next_generation(&self, node: NodeIx) -> Generation {
        let counter = self.nodes[node as usize]
            .as_ref()
            .filter(|node| node.generation.epoch == self.epoch)
            .map_or(0, |node| node.generation.counter);
        Generation {
            epoch: self.epoch,
            counter: counter + 1,
        }
    }

    /// Names that carry this are ours, whatever else we know of them.
    pub fn name_prefix(&self) -> &str {
        &self.prefix
    }
}
