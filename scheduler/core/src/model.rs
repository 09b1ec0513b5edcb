//! The nouns: ids, scopes, jobs, nodes, pools, runners.

use std::{collections::BTreeSet, fmt, time::Duration};

/// Time as the shell hands it in, in milliseconds.
///
/// Leases and timeouts use `mono`; deadlines that outlive the process use `utc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Monotonic, from an arbitrary start.
    pub mono: u64,
    /// Since 1970-01-01 UTC.
    pub utc: u64,
}

/// Milliseconds since 1970-01-01 UTC.
pub type UtcMillis = u64;

/// GitHub's job id (64 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub std::sync::Arc<str>);
        impl $name {
            pub fn new(value: impl AsRef<str>) -> Self {
                Self(value.as_ref().into())
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A node's name in the fleet.
    NodeName
);
name!(
    /// Runner and container name, `ls-<fleet>-<random>`; unique for ever.
    RunnerName
);
name!(
    /// A pool's name.
    PoolName
);
name!(
    /// A credential's name in the configuration; never the credential.
    CredentialName
);

/// Order of a scheduler's words to a node. Epochs are raised at each start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    pub epoch: u64,
    pub counter: u64,
}

/// Where GitHub registers a runner, narrowest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Repository { owner: String, repo: String },
    Organization { login: String },
    Enterprise { slug: String },
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository { owner, repo } => write!(f, "{owner}/{repo}"),
            Self::Organization { login } => write!(f, "{login}"),
            Self::Enterprise { slug } => write!(f, "enterprises/{slug}"),
        }
    }
}

/// A repository as GitHub describes it in runs, jobs and webhooks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repository {
    /// Survives renames; 0 when the source did not say.
    pub id: u64,
    pub owner: String,
    pub name: String,
    /// `None` until a source said so; treated as public by admission.
    pub private: Option<bool>,
}

impl Repository {
    pub fn full_name(&self) -> String {
        [&self.owner, "/", &self.name].concat()
    }

    /// Case-folded `owner/name`, written over what `into` held.
    pub(crate) fn fold_into(&self, into: &mut String) {
        into.clear();
        into.push_str(&self.owner);
        into.push('/');
        into.push_str(&self.name);
        if into.is_ascii() {
            into.make_ascii_lowercase();
        } else {
            *into = into.to_lowercase();
        }
    }
}

/// Where a job's code comes from, for admission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `push`, `pull_request`, ... ; `None` until the run is known.
    pub event: Option<String>,
    /// `owner/name` of the head; differs from the repository for a fork.
    pub head_repository: Option<String>,
}

/// GitHub's word on a job, in rank order: a later word never goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobPhase {
    /// `waiting`, `pending` or `requested`: not runnable yet.
    Waiting,
    Queued,
    InProgress,
    Completed,
}

/// Result of a completed job. Unknown words survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conclusion {
    Success,
    Failure,
    Cancelled,
    Skipped,
    TimedOut,
    Other(String),
}

/// What one runner takes, or a node offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub gpus: u32,
}

/// A GPU of a node, or an instance that a GPU is cut into.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gpu {
    pub uuid: String,
    pub product: String,
    pub memory_mib: u64,
    pub compute_capability: String,
    /// A container really saw it; `cuda` and `gpu` are answered only then.
    pub proven: bool,
    /// UUID of the GPU that this instance is cut from.
    pub parent: Option<String>,
    /// Why it is not offered at present, although it is there.
    pub withheld: Option<Condition>,
}

impl Gpu {
    /// A runner may be given it, unless another one holds it.
    pub fn is_offered(&self) -> bool {
        self.proven && self.withheld.is_none()
    }
}

/// What each GPU of a pool's runners must have. The default takes any.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuNeeds {
    /// At least this much; a MIG instance counts by its own memory.
    pub memory_mib: u64,
    /// At least this; (8, 0) is met by 8.0, 8.6 and 9.0.
    pub compute_capability: (u32, u32),
    /// Its product's name holds one of these, whatever the case; empty: any.
    pub models: Vec<String>,
}

impl GpuNeeds {
    pub fn admits(&self, gpu: &Gpu) -> bool {
        let enough = gpu.memory_mib >= self.memory_mib;
        // Most pools ask for nothing: no text is looked at for them.
        enough
            && (self.compute_capability == (0, 0)
                || compute_capability(&gpu.compute_capability)
                    .is_some_and(|have| have >= self.compute_capability))
            && (self.models.is_empty()
                || self.models.iter().any(|model| holds(&gpu.product, model)))
    }
}

impl fmt::Display for GpuNeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.memory_mib > 0 {
            parts.push(format!("at least {} MiB", self.memory_mib));
        }
        if self.compute_capability != (0, 0) {
            let (major, minor) = self.compute_capability;
            parts.push(format!("compute capability {major}.{minor} or higher"));
        }
        if !self.models.is_empty() {
            parts.push(format!("model {}", self.models.join(" or ")));
        }
        f.write_str(&parts.join(", "))
    }
}

/// `8.6` as numbers, so that 10.0 is more than 9.0.
pub fn compute_capability(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn holds(product: &str, model: &str) -> bool {
    let (product, model) = (product.as_bytes(), model.as_bytes());
    model.is_empty()
        || product
            .windows(model.len())
            .any(|part| part.eq_ignore_ascii_case(model))
}

/// What a node can do, as it proved it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capability {
    /// `x64`, `arm64`, `arm`.
    pub arch: String,
    /// Case-folded labels this node can carry (`self-hosted`, `linux`, `x64`, ...).
    pub labels: BTreeSet<String>,
    pub capacity: Resources,
    pub gpus: Vec<Gpu>,
    /// 0: bounded by resources only.
    pub max_runners: u32,
    /// Sandbox properties guaranteed here.
    pub properties: BTreeSet<String>,
    /// Facts for people: engine, kernel, versions. Carried, never decided on.
    pub facts: Vec<(String, String)>,
}

/// What keeps a node from taking new work, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// `engine_down`, `disk_full`, `firewall_missing`, `clock_offset`, `image_unavailable`.
    pub kind: String,
    pub detail: String,
    pub next_step: String,
    /// Only this image is affected, when set.
    pub image: Option<String>,
}

/// What a pool does with public repositories and fork pull requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Refuse,
    /// Only under the `strict` profile.
    StrictOnly,
    Allow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    Low,
    Normal,
    High,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Best fit: keeps whole nodes free.
    Pack,
    Spread,
}

/// What kind of runners serve which jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: PoolName,
    /// Labels a job may ask for; empty: whatever a node proves.
    pub labels: BTreeSet<String>,
    /// `owner/name` patterns with `*`; empty: all.
    pub repositories: Vec<String>,
    pub public_repositories: Admission,
    pub fork_pull_requests: Admission,
    pub image: String,
    /// GitHub's runner group by name; `None`: the default group.
    pub runner_group: Option<String>,
    pub name_prefix: String,
    pub resources: Resources,
    pub gpu: GpuNeeds,
    /// `strict`, `standard`, `containers`.
    pub profile: String,
    /// `open`, `allowlist`, `none`.
    pub network_mode: String,
    /// What runners of mode `allowlist` may reach.
    pub allowed_domains: Vec<String>,
    /// Class of the runtime that makes the sandboxes; empty: the engine's own.
    pub runtime: String,
    pub idle_floor: u32,
    /// 0: no limit of its own.
    pub maximum: u32,
    pub priority: Priority,
    pub placement: Placement,
    pub required_properties: BTreeSet<String>,
    pub idle_timeout: Duration,
    pub lifetime: Duration,
    /// Serve jobs that ask for `[self-hosted]` alone.
    pub bare_self_hosted: bool,
    /// Higher wins when several pools admit a job; equal: by name.
    pub precedence: i32,
}

/// How a runner ended, as its node saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    /// Words of `RunnerExit.Cause`, lower case: `finished`, `out_of_memory`, ...
    pub cause: String,
    pub detail: String,
    pub usage: Option<Usage>,
    /// `None`: the node could not tell.
    pub denied: Option<Denied>,
}

/// What a runner tried to reach and was not let. Bounded: see [`Denied::bound`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    /// Packets dropped and requests refused, listed or not.
    pub total: u64,
    /// Most tried first.
    pub destinations: Vec<DeniedDestination>,
    /// There were more than are listed.
    pub more: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeniedDestination {
    /// An address, or a host name where the egress proxy refused it.
    pub destination: String,
    pub protocol: String,
    /// 0 where the protocol has none.
    pub port: u16,
    pub count: u64,
    /// `firewall`, `not_listed`, ...
    pub reason: String,
}

impl Denied {
    /// Most destinations kept of one runner.
    pub const DESTINATIONS: usize = 32;
    /// Longest name kept: as long as DNS allows.
    const NAME: usize = 253;

    /// Cuts what a node said down to what is kept.
    pub fn bound(mut self) -> Self {
        self.more |= self.destinations.len() > Self::DESTINATIONS;
        self.destinations.truncate(Self::DESTINATIONS);
        for denied in &mut self.destinations {
            for text in [
                &mut denied.destination,
                &mut denied.protocol,
                &mut denied.reason,
            ] {
                text.retain(|c| c.is_ascii_graphic());
                text.truncate(Self::NAME);
            }
        }
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub cpu: Duration,
    pub peak_memory_bytes: u64,
    /// From and to disks; `None` where the host cannot tell.
    pub read_bytes: Option<u64>,
    pub written_bytes: Option<u64>,
    pub peak_gpu_memory_bytes: Option<u64>,
}

/// A runner's life as the scheduler knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunnerPhase {
    /// Placed; registration owed.
    Reserved,
    /// Registration call answered; waiting for the node.
    Registered,
    /// The node wrote it into the sandbox.
    Starting,
    /// Listens for jobs.
    Idle,
    /// GitHub or the node says a job runs.
    Busy,
    /// Told to stop; registration being deleted or sandbox being removed.
    Stopping,
    /// Over. Kept as history only.
    Retired,
}
