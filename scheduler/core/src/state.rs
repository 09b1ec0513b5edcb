//! The records facts build: what readers see of jobs, nodes, runners, pools.
//!
//! Fields marked soft belong to this process only: no fact carries them and no
//! snapshot writes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    demand::{GroupIx, UnitIx},
    fact::{PoolOrigin, RunnerPlaced, StopReason},
    feasible::ClassIx,
    fleet::NodeIx,
    input::{Deregistration, JobSeen, ObservedPhase},
    model::{
        Capability, Condition, CredentialName, Generation, Gpu, JobId, JobPhase, NodeName, Pool,
        Resources, RunnerName, RunnerPhase, Scope, UtcMillis,
    },
    table::Slot,
};

/// A job as all sources together know it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Merged; `phase` is the highest ever seen for this attempt.
    pub seen: Arc<JobSeen>,
    pub learnt_at: UtcMillis,
    /// When `phase` became what it is, by our clock.
    pub phase_at: UtcMillis,
    pub bound: Option<Bound>,
    /// Derived: its place in the demand index.
    pub(crate) unit: Option<UnitIx>,
}

/// GitHub's word on who took a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    pub runner: RunnerName,
    /// One of this fleet's runners.
    pub ours: bool,
    pub at: UtcMillis,
}

impl Job {
    pub fn phase(&self) -> JobPhase {
        self.seen.phase
    }
}

/// A node and what is known of it.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: NodeName,
    pub capability: Capability,
    pub conditions: Vec<Condition>,
    pub unreachable_since: Option<UtcMillis>,
    pub cordoned: bool,
    pub draining: Option<Drain>,
    /// Of the newest intent for it.
    pub generation: Generation,
    /// Live runners of ours on it, in no order.
    pub runners: Vec<RunnerName>,
    pub foreign: Vec<RunnerName>,
    /// Held by our runners and, by estimate, by foreign ones.
    pub used: Resources,
    pub leases: BTreeMap<String, RunnerName>,
    /// Derived: places in `capability.gpus` of what may be leased, the smallest first.
    pub(crate) leasable: Vec<u32>,
    /// Derived.
    pub(crate) class: ClassIx,
    pub(crate) fits: Vec<u32>,
    /// Of its runners, in their order.
    pub(crate) slots: Vec<Slot>,
    pub(crate) soft: NodeSoft,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Jobs still running then are ended.
    pub deadline: Option<UtcMillis>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct NodeSoft {
    pub(crate) session: Option<u64>,
    /// Highest session ever attached: an older stream's words are ignored.
    pub(crate) newest_session: Option<u64>,
    pub(crate) heard_mono: u64,
    pub(crate) accepted: Generation,
    pub(crate) clock_offset_ms: i64,
    pub(crate) last_report_utc: Option<UtcMillis>,
    /// Reported since its last attach.
    pub(crate) reported: bool,
}

impl Node {
    pub fn is_reachable(&self) -> bool {
        self.unreachable_since.is_none()
    }

    /// What nobody holds; GPUs are offered ones without a lease.
    pub fn free(&self) -> Resources {
        Resources {
            cpu_millis: self
                .capability
                .capacity
                .cpu_millis
                .saturating_sub(self.used.cpu_millis),
            memory_bytes: self
                .capability
                .capacity
                .memory_bytes
                .saturating_sub(self.used.memory_bytes),
            gpus: self.free_gpus().count() as u32,
        }
    }

    /// The smallest first, so that the large ones are left for who needs them.
    pub fn free_gpus(&self) -> impl Iterator<Item = &Gpu> {
        let told = self.capability.gpus.iter();
        let known = told.filter(|gpu| self.leases.contains_key(&gpu.uuid));
        // What is held and no longer told may be an instance of any whole one.
        let unknown_lease = known.count() < self.leases.len();
        self.leasable_gpus().filter(move |gpu| {
            let whole_is_held = match &gpu.parent {
                Some(whole) => self.leases.contains_key(whole),
                None => unknown_lease,
            };
            !self.leases.contains_key(&gpu.uuid) && !whole_is_held
        })
    }

    /// Offered ones, leased or not. A GPU that is cut into instances is not among them.
    pub fn leasable_gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.leasable
            .iter()
            .map(|place| &self.capability.gpus[*place as usize])
    }

    /// After the capability changed.
    pub(crate) fn list_leasable(&mut self) {
        let gpus = &self.capability.gpus;
        let cut: BTreeSet<&String> = gpus.iter().filter_map(|gpu| gpu.parent.as_ref()).collect();
        let mut told: BTreeSet<&String> = BTreeSet::new();
        let mut leasable: Vec<u32> = (0..gpus.len() as u32)
            .filter(|place| {
                let gpu = &gpus[*place as usize];
                // A node that tells one device twice still has one.
                told.insert(&gpu.uuid) && gpu.is_offered() && !cut.contains(&gpu.uuid)
            })
            .collect();
        leasable.sort_by_key(|place| (gpus[*place as usize].memory_mib, *place));
        self.leasable = leasable;
    }

    /// Runners it may still take, when the node bounds them.
    pub fn free_slots(&self) -> Option<u32> {
        (self.capability.max_runners > 0).then(|| {
            self.capability
                .max_runners
                .saturating_sub((self.runners.len() + self.foreign.len()) as u32)
        })
    }

    /// The first condition that keeps every new runner away.
    pub fn blocking_condition(&self) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|condition| condition.image.is_none())
    }

    /// It has told what it can run. Before its engine answered it offers nothing.
    pub fn is_fingerprinted(&self) -> bool {
        !self.capability.labels.is_empty()
    }

    pub fn takes_new_runners(&self) -> bool {
        self.is_reachable()
            && self.is_fingerprinted()
            && !self.cordoned
            && self.draining.is_none()
            && self.blocking_condition().is_none()
    }

    /// Node's clock minus ours at its last report, milliseconds.
    pub fn clock_offset_ms(&self) -> i64 {
        self.soft.clock_offset_ms
    }

    /// Heard by this process; `None` when it only replays facts.
    pub fn last_report(&self) -> Option<UtcMillis> {
        self.soft.last_report_utc
    }

    /// ready, cordoned, draining, unreachable or not_ready.
    pub fn state_word(&self) -> &'static str {
        if !self.is_reachable() {
            "unreachable"
        } else if self.draining.is_some() {
            "draining"
        } else if self.cordoned {
            "cordoned"
        } else if self.blocking_condition().is_some() || !self.is_fingerprinted() {
            "not_ready"
        } else {
            "ready"
        }
    }
}

/// A runner that is not over yet.
#[derive(Clone, Debug)]
pub struct Runner {
    pub placed: Arc<RunnerPlaced>,
    pub registered: Option<Registered>,
    pub observed: Option<Observed>,
    pub job: Option<JobId>,
    pub stopping: Option<(StopReason, UtcMillis)>,
    pub deregistered: Option<(Deregistration, UtcMillis)>,
    /// Derived: its node's number; the same as long as it lives.
    pub(crate) node: NodeIx,
    /// Derived: the demand it stands for, and whether it counts as supply now.
    pub(crate) group: GroupIx,
    pub(crate) cover: Option<UnitIx>,
    pub(crate) counted: bool,
    /// `owner/name` folded, whose share it is charged to.
    pub(crate) charged: Option<u32>,
    pub(crate) soft: RunnerSoft,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    pub github_id: u64,
    pub at: UtcMillis,
}

/// The node's last word on a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub phase: ObservedPhase,
    pub observation: u64,
    pub worker: bool,
    pub container_id: String,
    pub at: UtcMillis,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct RunnerSoft {
    /// Order of placement as this process saw it.
    pub(crate) order: u64,
    pub(crate) idle_since: Option<u64>,
    /// Since when a worker runs in it without GitHub having said for which job.
    pub(crate) taken_since: Option<u64>,
    /// That lasted too long: it runs a job we do not know, and stands for none of ours.
    pub(crate) unclaimed: bool,
    /// Generation of the intent that first told it to stop.
    pub(crate) stop_generation: Generation,
    /// The node looked after that and saw no worker.
    pub(crate) checked: bool,
    pub(crate) deregister_after: u64,
    pub(crate) deregister_failures: u32,
    /// The shell holds no registration for it.
    pub(crate) lost: bool,
    pub(crate) absent_since: Option<u64>,
    pub(crate) missing_since: Option<u64>,
}

impl Runner {
    pub fn name(&self) -> &RunnerName {
        &self.placed.runner
    }

    pub fn phase(&self) -> RunnerPhase {
        if self.stopping.is_some() {
            return RunnerPhase::Stopping;
        }
        let refused = matches!(self.deregistered, Some((Deregistration::Busy, _)));
        if self.job.is_some() || self.has_worker() || refused {
            return RunnerPhase::Busy;
        }
        match self.observed.as_ref().map(|observed| observed.phase) {
            Some(ObservedPhase::Busy) => RunnerPhase::Busy,
            Some(ObservedPhase::Online) => RunnerPhase::Idle,
            Some(ObservedPhase::Consumed) => RunnerPhase::Starting,
            _ if self.registered.is_some() => RunnerPhase::Registered,
            _ => RunnerPhase::Reserved,
        }
    }

    pub fn has_worker(&self) -> bool {
        self.observed
            .as_ref()
            .is_some_and(|observed| observed.worker || observed.phase == ObservedPhase::Busy)
    }

    /// The node wrote its registration into the sandbox.
    pub fn is_consumed(&self) -> bool {
        self.observed
            .as_ref()
            .is_some_and(|observed| observed.phase >= ObservedPhase::Consumed)
    }

    pub fn container_id(&self) -> &str {
        self.observed
            .as_ref()
            .map_or("", |observed| observed.container_id.as_str())
    }

    /// reserved, registering, preparing, ready, starting, idle, busy or stopping.
    pub fn status_word(&self) -> &'static str {
        match self.phase() {
            RunnerPhase::Reserved => "reserved",
            RunnerPhase::Registered => match self.observed.as_ref().map(|seen| seen.phase) {
                Some(ObservedPhase::Preparing) => "preparing",
                Some(ObservedPhase::Ready) => "ready",
                _ => "registering",
            },
            RunnerPhase::Starting => "starting",
            RunnerPhase::Idle => "idle",
            RunnerPhase::Busy => "busy",
            RunnerPhase::Stopping => "stopping",
            RunnerPhase::Retired => "exited",
        }
    }

    /// Stops only when no job runs in it: the four-way check decides.
    pub(crate) fn stops_softly(&self) -> bool {
        matches!(
            self.stopping,
            Some((StopReason::Idle | StopReason::Surplus, _))
        )
    }
}

/// A runner seen on a node that is not ours to steer.
pub type Foreign = RunnerName;

/// A registration of ours that GitHub may still list without a live runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) scope: Scope,
    pub(crate) credential: CredentialName,
    pub(crate) github_id: Option<u64>,
    pub(crate) at: UtcMillis,
}

/// A pool and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolEntry {
    pub pool: Pool,
    pub origin: PoolOrigin,
}

/// A configured weight and maximum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub weight: u32,
    /// Most runners at once; 0: no limit.
    pub maximum: u32,
    pub origin: PoolOrigin,
}

/// What a credential may do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    pub scopes: Vec<Scope>,
    /// Registrations it may make now, before those already reserved.
    pub registrations: Option<u32>,
    pub limited_until: Option<UtcMillis>,
    /// What GitHub said and what to do, when it refuses.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) until: UtcMillis,
    pub(crate) detail: String,
    pub(crate) failures: u32,
    /// Soft: in force until its timer ran.
    pub(crate) resting: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) credential: CredentialName,
    pub(crate) count: u32,
    pub(crate) until: UtcMillis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Autoscaler {
    pub(crate) running: bool,
    pub(crate) max_runners: Option<u32>,
    pub(crate) image: Option<String>,
    pub(crate) at: Option<UtcMillis>,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            running: true,
            max_runners: None,
            image: None,
            at: None,
        }
    }
}

/// The fleet in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Scaling is on.
    pub running: bool,
    pub since: Option<UtcMillis>,
    /// 0: bounded by the nodes only.
    pub max_runners: u32,
    /// Image the API asked for over the configuration's.
    pub image: Option<String>,
    pub queued: u32,
    pub waiting: u32,
    pub in_progress: u32,
    pub runners: u32,
    pub busy: u32,
    pub idle: u32,
    pub nodes_ready: u32,
    pub nodes_total: u32,
    pub repositories: u32,
    /// Queued jobs no node can run, by the label or architecture that is missing.
    pub filtered: BTreeMap<String, u32>,
    /// Runners placed since this process started.
    pub placed: u64,
    /// Jobs that a runner of nobody we know took, since this process started.
    pub thefts: u64,
}

/// One repository's jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Runs in memory.
    pub runs: u32,
    pub running: u32,
    pub pending: u32,
    /// Failed jobs still in memory; the store's history reaches further back.
    pub failed: u32,
    /// Pending jobs no node can run, by the label that is missing.
    pub filtered: BTreeMap<String, u32>,
}
