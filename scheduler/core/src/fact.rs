//! What was decided or learnt. `apply(&fact)` is the only way state changes;
//! recovery is a snapshot and the facts that follow.

use std::{ops::Deref, sync::Arc};

use crate::{
    input::{Defaults, JobSeen},
    model::{
        Capability, Conclusion, Condition, CredentialName, Exit, Generation, JobId, JobPhase,
        NodeName, Origin, Pool, PoolName, Resources, RunnerName, Scope, UtcMillis,
    },
};

/// One change of state. Facts are stored: fields are only added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A scheduler took over: counters start again under a higher epoch.
    EpochRaised {
        epoch: u64,
    },
    /// First sight of a job, or a field of it changed without a change of phase.
    JobLearnt {
        job: Arc<JobSeen>,
        at: UtcMillis,
    },
    JobPhaseChanged {
        job: JobId,
        phase: JobPhase,
        conclusion: Option<Conclusion>,
        at: UtcMillis,
    },
    OriginLearnt {
        job: JobId,
        origin: Origin,
    },
    /// Forgotten after its retention in memory; history keeps it.
    JobForgotten {
        job: JobId,
    },
    /// GitHub said which runner took it; ours or somebody else's.
    JobBound {
        job: JobId,
        runner: RunnerName,
        ours: bool,
        at: UtcMillis,
    },
    NodeJoined {
        node: NodeName,
        capability: Box<Capability>,
    },
    CapabilityChanged {
        node: NodeName,
        capability: Box<Capability>,
    },
    ConditionsChanged {
        node: NodeName,
        conditions: Vec<Condition>,
    },
    NodeReachable {
        node: NodeName,
    },
    NodeUnreachable {
        node: NodeName,
        since: UtcMillis,
    },
    NodeCordoned {
        node: NodeName,
    },
    NodeUncordoned {
        node: NodeName,
    },
    NodeDraining {
        node: NodeName,
        deadline: Option<UtcMillis>,
    },
    NodeRemoved {
        node: NodeName,
    },
    /// A runner was placed on a node for demand of this scope and signature.
    RunnerPlaced(Arc<RunnerPlaced>),
    RunnerRegistered {
        runner: RunnerName,
        github_id: u64,
        at: UtcMillis,
    },
    /// The node's word about its phase. `Exited` is `RunnerRetired`'s business.
    RunnerObserved {
        runner: RunnerName,
        phase: crate::input::ObservedPhase,
        observation: u64,
        worker: bool,
        container_id: String,
        at: UtcMillis,
    },
    /// Why it should end.
    RunnerStopping {
        runner: RunnerName,
        why: StopReason,
        at: UtcMillis,
    },
    /// The four-way check got this far: GitHub deleted the registration.
    RunnerDeregistered {
        runner: RunnerName,
        outcome: crate::input::Deregistration,
        at: UtcMillis,
    },
    /// Over. The slot is free; `deregister` says whether GitHub may still list it.
    RunnerRetired {
        runner: RunnerName,
        exit: Option<Exit>,
        why: RetireReason,
        deregister: bool,
        at: UtcMillis,
    },
    /// Registration of a runner of ours or an orphan still stands at GitHub.
    OrphanSeen {
        runner: RunnerName,
        scope: Scope,
        credential: CredentialName,
        github_id: u64,
        at: UtcMillis,
    },
    OrphanGone {
        runner: RunnerName,
    },
    BudgetChanged {
        credential: CredentialName,
        scopes: Vec<Scope>,
        registrations: u32,
        limited_until: Option<UtcMillis>,
        problem: Option<String>,
    },
    /// Cold failures of an image on a node or everywhere open its breaker until then.
    ImageBlocked {
        image: String,
        node: Option<NodeName>,
        until: UtcMillis,
        detail: String,
        failures: u32,
    },
    ImageCleared {
        image: String,
        node: Option<NodeName>,
    },
    /// A registration failed for demand of this scope: rest until then.
    ScopeRests {
        scope: Scope,
        until: UtcMillis,
        detail: String,
        failures: u32,
    },
    ScopeCleared {
        scope: Scope,
    },
    /// So many runners in a row idled out while the job they were placed for stayed
    /// queued. From the third on the demand rests until then.
    DemandRests {
        scope: Scope,
        /// Case-folded `owner/name`.
        repository: String,
        /// Case-folded and sorted.
        labels: Vec<String>,
        until: UtcMillis,
        runners: u32,
    },
    DemandCleared {
        scope: Scope,
        repository: String,
        labels: Vec<String>,
    },
    FloorSet {
        scope: Scope,
        credential: CredentialName,
        pool: PoolName,
        labels: Vec<String>,
        count: u32,
        until: UtcMillis,
    },
    FloorEnded {
        scope: Scope,
        pool: PoolName,
        labels: Vec<String>,
    },
    AutoscalerStarted {
        max_runners: Option<u32>,
        image: Option<String>,
        at: UtcMillis,
    },
    AutoscalerStopped {
        at: UtcMillis,
    },
    PoolSet {
        pool: Box<Pool>,
        origin: PoolOrigin,
    },
    PoolDeleted {
        pool: PoolName,
    },
    ShareSet {
        subject: String,
        weight: u32,
        maximum: u32,
        origin: PoolOrigin,
    },
    DefaultsSet {
        defaults: Box<Defaults>,
    },
    /// No longer watched: its waiting and queued jobs are dropped with this fact.
    RepositoryGone {
        id: u64,
        full_name: String,
    },
    /// The whole list of runners on a node that are not ours to steer, when it
    /// changed. Their resources are counted; they are never touched.
    ForeignSeen {
        node: NodeName,
        runners: Vec<RunnerName>,
    },
    /// Where the numbering of a node's intents stands; written in snapshots only,
    /// since between them it follows from the other facts.
    IntentNumbered {
        node: NodeName,
        generation: Generation,
    },
    /// What the fair share remembers of a subject; written in snapshots only,
    /// since between them it follows from `RunnerPlaced` and `JobBound`.
    /// Subject `""` is the fleet as a whole, comes first and wipes the others.
    ShareServed {
        subject: String,
        /// Service received, divided by the weight.
        virtual_time: u64,
        /// Virtual time of the one served last below this subject.
        served: u64,
        /// Placements charged to it whose runner another repository's job took.
        credit: u32,
    },
}

/// Where a pool or a share came from. The API's word stands over the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolOrigin {
    BuiltIn,
    File,
    Api,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerPlaced {
    pub runner: RunnerName,
    pub node: NodeName,
    pub scope: Arc<Scope>,
    /// What it has in common with other runners.
    pub spec: Arc<RunnerSpec>,
    pub resources: Resources,
    pub gpu_uuids: Vec<String>,
    pub traceparent: Option<String>,
    /// The job in whose name it was placed; GitHub may give it another.
    pub job: Option<JobId>,
    /// `owner/name` the placement is charged to; `None` for an idle floor.
    pub repository: Option<Arc<str>>,
    /// Generation of its node's intent from which it is wanted.
    pub generation: Generation,
    pub at: UtcMillis,
}

/// What runners for the same labels are made from: written once, shared by all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerSpec {
    pub pool: PoolName,
    pub credential: CredentialName,
    /// Exactly the demand's labels, case-folded and sorted.
    pub labels: Vec<String>,
    pub image: String,
    pub profile: String,
    pub network_mode: String,
    pub allowed_domains: Vec<String>,
    pub runtime: String,
    pub platform: String,
    pub runner_group: Option<String>,
    pub idle_timeout_ms: u64,
    pub lifetime_ms: u64,
}

impl Deref for RunnerPlaced {
    type Target = RunnerSpec;

    fn deref(&self) -> &RunnerSpec {
        &self.spec
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    Idle,
    /// The scope, pool or image is no longer wanted.
    Surplus,
    Lifetime,
    /// Asked for by a person; jobs are cancelled.
    Asked(String),
    DrainDeadline,
    /// A job its pool does not admit landed on it.
    NotAdmitted(String),
    /// GitHub did not create its registration; the sandbox is thrown away.
    NotRegistered(String),
    /// Its registration was lost with a scheduler before the node consumed it.
    RegistrationLost,
    /// GitHub no longer lists it and no worker runs in it.
    Ghost,
    /// Its job completed long ago and it is still alive.
    CompletedButAlive,
    /// It made no progress towards listening for a job.
    NeverStarted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetireReason {
    Finished,
    /// Registration failed; nothing ran.
    NotRegistered,
    /// The node could not prepare it.
    NotPrepared(String),
    /// Its registration was lost with a scheduler and never consumed.
    RegistrationLost,
    NodeRemoved,
    /// The node came back and does not know it.
    Vanished,
    Stopped,
}
