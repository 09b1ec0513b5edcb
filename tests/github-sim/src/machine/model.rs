//! The things GitHub knows: owners, repositories, Apps, groups, runners, runs, jobs, hooks, deliveries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::spec::JobSpec;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerKind {
    User,
    Organization,
    Enterprise,
}

#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) id: u64,
    pub(crate) login: String,
    pub(crate) kind: OwnerKind,
    pub(crate) members: BTreeMap<String, String>,
    pub(crate) enterprise: Option<u64>,
    pub(crate) created_ms: u64,
    /// `all`, `selected` or `none`: may repositories have runners of their own
    pub(crate) runners_enabled: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Repo {
    pub(crate) id: u64,
    pub(crate) owner: u64,
    pub(crate) name: String,
    pub(crate) full_name: String,
    pub(crate) private: bool,
    pub(crate) archived: bool,
    pub(crate) disabled: bool,
    pub(crate) fork: bool,
    pub(crate) created_ms: u64,
    pub(crate) pushed_ms: u64,
    pub(crate) next_run_number: u64,
    /// workflow name → id
    pub(crate) workflows: BTreeMap<String, u64>,
    /// Its runs, oldest first.
    pub(crate) runs: Vec<u64>,
}

#[derive(Clone)]
pub(crate) struct App {
    pub(crate) id: u64,
    pub(crate) client_id: String,
    pub(crate) slug: String,
    pub(crate) permissions: BTreeMap<String, String>,
    pub(crate) events: Vec<String>,
    pub(crate) public_key: Vec<u8>,
    pub(crate) hook: Option<u64>,
    pub(crate) created_ms: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Installation {
    pub(crate) id: u64,
    pub(crate) app: u64,
    pub(crate) account: u64,
    /// `None`: all repositories of the account
    pub(crate) repositories: Option<BTreeSet<u64>>,
    pub(crate) permissions: BTreeMap<String, String>,
    pub(crate) events: Vec<String>,
    pub(crate) suspended_ms: Option<u64>,
    pub(crate) created_ms: u64,
}

/// Where runners register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Repository(u64),
    Organization(u64),
    Enterprise(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    All,
    Selected,
    Private,
}

impl Visibility {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Selected => "selected",
            Self::Private => "private",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "all" => Some(Self::All),
            "selected" => Some(Self::Selected),
            "private" => Some(Self::Private),
            _ => None,
        }
    }
}

/// A runner group of an organisation or enterprise.
#[derive(Debug, Clone)]
pub struct Group {
    pub id: u64,
    pub name: String,
    pub visibility: Visibility,
    /// Repositories (organisation) or organisations (enterprise) when the visibility is `Selected`.
    pub selected: BTreeSet<u64>,
    pub allows_public: bool,
    pub is_default: bool,
}

/// Who moves a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// A runner program, through the protocol.
    Program,
    /// The simulator, for jobs that say `simulate`.
    Simulated,
    /// The simulator, as somebody else's runner: takes any job.
    Foreign,
}

/// Why a registration is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovedBy {
    Completed,
    Deleted,
    Expired,
    AcquireFailed,
}

#[derive(Debug, Clone)]
pub struct Runner {
    pub id: u64,
    pub name: String,
    pub scope: Scope,
    pub group: u64,
    pub labels: Vec<String>,
    /// Lower-case, for matching.
    pub(crate) folded: BTreeSet<String>,
    pub os: String,
    pub version: Option<String>,
    pub ephemeral: bool,
    pub driver: Driver,
    pub online: bool,
    /// The job it was given or runs.
    pub job: Option<u64>,
    pub busy_since_ms: Option<u64>,
    pub created_ms: u64,
    pub removed: Option<(u64, RemovedBy)>,
    /// A JIT registration may be used for one connection only.
    pub(crate) used: bool,
    pub(crate) session: Option<String>,
    pub(crate) last_seen_ms: u64,
    pub(crate) client_id: String,
    pub(crate) key: usize,
    pub(crate) work_folder: String,
    /// (time, online, busy), oldest first
    pub(crate) history: Vec<(u64, bool, bool)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Waiting,
    Queued,
    InProgress,
    Completed,
}

impl Status {
    pub fn text(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }
}

/// The runner a job ran on, as it is remembered after the runner is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunnerRef {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) group_id: u64,
    pub(crate) group_name: String,
}

/// What REST and webhooks show of a job; kept for the lag fault.
#[derive(Debug, Clone)]
pub struct JobState {
    pub status: Status,
    pub conclusion: Option<String>,
    pub(crate) runner: Option<RunnerRef>,
    pub started_ms: Option<u64>,
    pub completed_ms: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Step {
    pub number: u64,
    pub name: String,
    pub run: String,
    pub status: Status,
    pub conclusion: Option<String>,
    pub exit_code: Option<i64>,
    pub output: String,
    pub output_truncated: bool,
    pub(crate) started_ms: Option<u64>,
    pub(crate) completed_ms: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Job {
    pub id: u64,
    pub run: u64,
    pub attempt: u64,
    pub repo: u64,
    pub name: String,
    pub spec: Arc<JobSpec>,
    pub labels: Vec<String>,
    pub(crate) folded: BTreeSet<String>,
    pub state: JobState,
    pub(crate) history: Vec<(u64, JobState)>,
    pub steps: Vec<Step>,
    pub created_ms: u64,
    pub queued_ms: Option<u64>,
    /// Given to this runner, which has not acquired it yet.
    pub assigned: Option<u64>,
    pub assigned_ms: Option<u64>,
    /// Identifies one assignment.
    pub(crate) request: Option<String>,
    pub(crate) told: bool,
    pub(crate) cancel_requested: bool,
    pub(crate) cancel_told: bool,
    pub(crate) lock_until_ms: u64,
    /// Names of all runners it was ever given to.
    pub assignments: Vec<String>,
    pub annotations: Vec<String>,
    /// Taken over from an earlier attempt.
    pub carried: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunState {
    pub(crate) status: &'static str,
    pub(crate) conclusion: Option<String>,
    pub(crate) updated_ms: u64,
    pub(crate) attempt: u64,
    pub(crate) started_ms: u64,
}

#[derive(Debug, Clone)]
pub struct Run {
    pub id: u64,
    pub repo: u64,
    pub(crate) number: u64,
    pub(crate) workflow: String,
    pub(crate) workflow_id: u64,
    pub(crate) event: String,
    pub(crate) head_branch: String,
    pub(crate) head_sha: String,
    pub(crate) head_repo: u64,
    pub(crate) actor: u64,
    pub(crate) created_ms: u64,
    pub(crate) state: RunState,
    pub(crate) history: Vec<(u64, RunState)>,
    /// Job ids per attempt.
    pub attempts: Vec<Vec<u64>>,
    /// Jobs that wait for others of the run.
    pub(crate) held: Vec<Arc<JobSpec>>,
    pub(crate) specs: Vec<Arc<JobSpec>>,
    pub(crate) pending: bool,
}

impl Run {
    /// requested, pending, queued, waiting, in_progress or completed
    pub fn status(&self) -> &'static str {
        self.state.status
    }

    pub fn conclusion(&self) -> Option<&str> {
        self.state.conclusion.as_deref()
    }

    /// Ids of the jobs of the latest attempt.
    pub fn jobs(&self) -> &[u64] {
        self.attempts.last().map_or(&[], Vec::as_slice)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookTarget {
    Repository(u64),
    Organization(u64),
    App(u64),
}

/// A webhook. Its secret is in no `Debug` output.
#[derive(Clone)]
pub struct Hook {
    pub id: u64,
    pub target: HookTarget,
    pub url: String,
    pub(crate) secret: Option<String>,
    pub events: Vec<String>,
    pub content_type: String,
    pub insecure_ssl: String,
    pub active: bool,
    pub(crate) created_ms: u64,
    pub(crate) updated_ms: u64,
    pub(crate) last: Option<(u64, String)>,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook")
            .field("id", &self.id)
            .field("url", &self.url)
            .field("events", &self.events)
            .finish()
    }
}

/// One attempt to deliver one event to one hook.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub id: u64,
    pub guid: String,
    pub hook: u64,
    pub event: String,
    pub action: Option<String>,
    pub job: Option<u64>,
    pub repo: Option<u64>,
    pub installation: Option<u64>,
    pub redelivery: bool,
    /// `pending`, `in flight`, `OK` or what went wrong.
    pub status: String,
    pub status_code: u16,
    pub duration_ms: u64,
    pub created_ms: u64,
    pub sent_ms: Option<u64>,
    pub body: Arc<[u8]>,
    pub(crate) order_key: u64,
    pub(crate) bad_signature: bool,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) response_body: String,
}
