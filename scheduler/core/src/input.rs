//! Everything the shell may tell the core: a closed list.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::model::{
    Admission, Capability, Conclusion, Condition, CredentialName, Exit, Generation, GpuNeeds,
    JobId, JobPhase, NodeName, Origin, Placement, Pool, PoolName, Priority, Repository, RunnerName,
    Scope, UtcMillis,
};

/// One thing learnt or asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A job seen through a webhook, a sweep or a scale set. Merged by id and rank.
    JobSeen(Arc<JobSeen>),
    /// A repository or installation is no longer watched: its waiting jobs end.
    RepositoryGone {
        id: u64,
        full_name: String,
    },
    /// The event or head of a run became known, by id of the run.
    RunSeen {
        run_id: u64,
        origin: Origin,
    },
    NodeAttached(Box<NodeAttached>),
    NodeReported(Box<NodeReported>),
    /// The stream ended or the lease ran out; the shell says which stream.
    NodeLost {
        node: NodeName,
        session: u64,
    },
    /// GitHub created the runner. The registration itself stays in the shell.
    RegistrationReady {
        runner: RunnerName,
        github_id: u64,
    },
    /// GitHub did not; `retry_at` is set when the credential must rest.
    RegistrationFailed {
        runner: RunnerName,
        failure: RegistrationFailure,
        detail: String,
    },
    /// GitHub answered a deregistration.
    Deregistered {
        runner: RunnerName,
        outcome: Deregistration,
    },
    /// A bulk list of a scope's runners with our prefix, for the orphan sweep.
    RunnersListed {
        scope: Scope,
        runners: Vec<ListedRunner>,
    },
    /// How many registrations a credential may make now, and when that changes.
    BudgetChanged {
        credential: CredentialName,
        scopes: Vec<Scope>,
        registrations: u32,
        limited_until: Option<UtcMillis>,
    },
    /// How long GitHub's word about a job may take from now on, beside what a webhook
    /// takes: zero while webhooks prove healthy, else until the next sweep is over.
    NewsDelay(Duration),
    /// After a load: the shell's memory holds no registration for these.
    RegistrationsLost {
        runners: Vec<RunnerName>,
    },
    Command(Command),
    /// Time passed: leases, idle timeouts, ageing, provisioning deadlines.
    Tick,
}

/// A job as one source saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSeen {
    pub id: JobId,
    pub run_id: u64,
    pub attempt: u32,
    pub repository: Repository,
    /// The one scope this job belongs to (narrowest configured that may register).
    pub scope: Scope,
    pub credential: CredentialName,
    pub name: String,
    pub workflow: String,
    pub labels: Vec<String>,
    pub phase: JobPhase,
    pub conclusion: Option<Conclusion>,
    /// Empty and 0 from GitHub both arrive here as `None`.
    pub runner_name: Option<String>,
    pub runner_id: Option<u64>,
    /// Runner group's name when GitHub says one; unknown while queued.
    pub origin: Origin,
    pub created_at: UtcMillis,
    pub started_at: Option<UtcMillis>,
    pub completed_at: Option<UtcMillis>,
    pub html_url: String,
    /// W3C traceparent of the request that brought it.
    pub traceparent: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAttached {
    pub node: NodeName,
    /// Numbers the streams of this process; a newer one fences the older.
    pub session: u64,
    pub highest: Generation,
    pub capability: Capability,
    /// Node's clock minus ours, milliseconds.
    pub clock_offset_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReported {
    pub node: NodeName,
    pub session: u64,
    pub accepted: Generation,
    /// Set when it changed.
    pub capability: Option<Capability>,
    pub conditions: Vec<Condition>,
    pub runners: Vec<ObservedRunner>,
    pub clock_offset_ms: i64,
}

/// What a node sees of one runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRunner {
    pub name: RunnerName,
    pub phase: ObservedPhase,
    pub observation: u64,
    /// A worker process exists.
    pub worker: bool,
    pub container_id: String,
    pub foreign: bool,
    pub remove_refused: bool,
    pub exit: Option<Exit>,
    /// Reason word and detail when it failed.
    pub error: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObservedPhase {
    Preparing,
    Ready,
    Consumed,
    Online,
    Busy,
    Exited,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationFailure {
    /// Name taken or outcome unknown (timeout, 5xx): delete by name, take a new name.
    Ambiguous,
    /// Primary or secondary limit: rest until then.
    RateLimited { until: UtcMillis },
    /// Token missing, expired or lacking a permission; `detail` names it.
    Forbidden,
    /// The scope or the runner group does not exist.
    NotFound,
    /// Anything else that a retry may mend.
    Transient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deregistration {
    /// 204, or 404: it is gone.
    Gone,
    /// 422: a job runs in it.
    Busy,
    /// Not answered; tried again after backoff.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRunner {
    pub github_id: u64,
    pub name: RunnerName,
    pub online: bool,
    pub busy: bool,
}

/// What people and programs ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    StartAutoscaler {
        max_runners: Option<u32>,
        image: Option<String>,
    },
    StopAutoscaler,
    /// A floor of idle runners with a time to live.
    Provision {
        scope: Scope,
        credential: CredentialName,
        labels: BTreeSet<String>,
        pool: Option<PoolName>,
        count: u32,
        until: UtcMillis,
    },
    StopRunner {
        runner: RunnerName,
        reason: String,
    },
    CordonNode {
        node: NodeName,
    },
    UncordonNode {
        node: NodeName,
    },
    DrainNode {
        node: NodeName,
        deadline: Option<UtcMillis>,
    },
    RemoveNode {
        node: NodeName,
    },
    SetPool(Box<Pool>),
    DeletePool {
        pool: PoolName,
    },
    /// `owner` or `owner/name`; weight 1 is the default, maximum 0 no limit.
    SetShare {
        subject: String,
        weight: u32,
        maximum: u32,
    },
    /// All pools and shares of the configuration file, replacing the last file's.
    Configure {
        pools: Vec<Pool>,
        shares: Vec<(String, u32, u32)>,
        defaults: Box<Defaults>,
    },
}

/// GitHub's own runner image. A tag, not a digest: GitHub gives no jobs to a runner that is
/// 30 days behind its newest release (facts.md 3), so a digest built in here would stop working.
pub const DEFAULT_IMAGE: &str = "ghcr.io/actions/actions-runner:latest";

/// Fleet-wide settings of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Image of the built-in pool and of pools that name none.
    pub image: String,
    /// Most runners at once in the fleet; 0: bounded by the nodes only.
    pub max_runners: u32,
    pub idle_timeout: Duration,
    pub lifetime: Duration,
    pub node_lease: Duration,
    pub orphan_age: Duration,
    /// Lists lag behind young registrations: only an older one that they miss can be a
    /// ghost (facts.md 5 rows 5 and 7).
    pub ghost_age: Duration,
    /// Two lists so far apart have to miss a ghost's registration.
    pub ghost_confirmation: Duration,
    /// A runner alive so long after its job completed is stuck (facts.md 5 row 6).
    pub after_completion: Duration,
    /// Between SIGINT and SIGKILL of a runner that has to end (facts.md 4.6).
    pub stop_grace: Duration,
    /// A job moves up one priority band per this long in the queue.
    pub ageing: Duration,
    pub resources: crate::model::Resources,
    pub bare_self_hosted: bool,
}

impl Defaults {
    /// A pool with every field at its default. Its image is empty: the default of the moment.
    pub fn pool(&self, name: &str) -> Pool {
        Pool {
            name: PoolName::new(name),
            labels: BTreeSet::new(),
            repositories: Vec::new(),
            public_repositories: Admission::StrictOnly,
            fork_pull_requests: Admission::Refuse,
            image: String::new(),
            runner_group: None,
            name_prefix: String::new(),
            resources: self.resources,
            gpu: GpuNeeds::default(),
            profile: "strict".to_owned(),
            network_mode: "open".to_owned(),
            allowed_domains: Vec::new(),
            runtime: String::new(),
            idle_floor: 0,
            maximum: 0,
            priority: Priority::Normal,
            placement: Placement::Pack,
            required_properties: BTreeSet::new(),
            idle_timeout: self.idle_timeout,
            lifetime: self.lifetime,
            bare_self_hosted: self.bare_self_hosted,
            precedence: 0,
        }
    }
}
