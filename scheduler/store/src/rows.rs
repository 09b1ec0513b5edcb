//! Rows for people: jobs, runners, audit entries, and how to ask for them.

use std::fmt;

use scheduler_core::model::{Denied, JobId, JobPhase, Resources, RunnerName, Usage, UtcMillis};

/// One page and where the next begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Opaque; `None` on the last page.
    pub next: Option<String>,
}

/// A job, waiting, running or over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    pub id: JobId,
    pub run_id: u64,
    pub attempt: u32,
    /// `owner/name`.
    pub repository: String,
    pub scope: String,
    pub name: String,
    pub workflow: String,
    pub labels: Vec<String>,
    pub phase: JobPhase,
    pub conclusion: Option<String>,
    /// Who took it, once GitHub said so.
    pub runner: Option<String>,
    /// The runner is one of this fleet.
    pub ours: bool,
    pub created_at: UtcMillis,
    pub started_at: Option<UtcMillis>,
    pub completed_at: Option<UtcMillis>,
    pub html_url: String,
    /// Last change of this row.
    pub changed_at: UtcMillis,
}

/// How far a runner came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunnerStage {
    Reserved,
    Registered,
    Starting,
    Idle,
    Busy,
    Stopping,
    Retired,
}

/// A runner, living or over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerRow {
    pub name: RunnerName,
    pub node: String,
    pub pool: String,
    pub scope: String,
    /// `owner/name`: the scope's, or that of the job it took.
    pub repository: Option<String>,
    pub labels: Vec<String>,
    pub resources: Resources,
    pub gpu_uuids: Vec<String>,
    pub image: String,
    pub profile: String,
    pub stage: RunnerStage,
    pub github_id: Option<u64>,
    pub container_id: Option<String>,
    pub job: Option<JobId>,
    pub placed_at: UtcMillis,
    pub registered_at: Option<UtcMillis>,
    /// The runner program listened for the first time.
    pub online_at: Option<UtcMillis>,
    /// A job began in it.
    pub busy_at: Option<UtcMillis>,
    pub stopping_at: Option<UtcMillis>,
    /// Why it was told to stop.
    pub stop_reason: Option<String>,
    pub retired_at: Option<UtcMillis>,
    pub retire_reason: Option<String>,
    pub exit_code: Option<i32>,
    pub exit_cause: Option<String>,
    pub exit_detail: Option<String>,
    pub usage: Option<Usage>,
    pub denied: Option<Denied>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobQuery {
    /// `owner/name`.
    pub repository: Option<String>,
    /// Only within this owner or `owner/name`, whatever the case.
    pub within: Option<String>,
    pub phase: Option<JobPhase>,
    pub page_token: Option<String>,
    /// 0 means 100; at most [`crate::PAGE_MAX`].
    pub page_size: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunnerQuery {
    /// `owner/name`.
    pub repository: Option<String>,
    /// Only within this owner or `owner/name`, whatever the case. A runner that
    /// has no repository yet is its scope's owner's.
    pub within: Option<String>,
    pub node: Option<String>,
    /// Retired ones too.
    pub include_finished: bool,
    pub page_token: Option<String>,
    /// 0 means 100; at most [`crate::PAGE_MAX`].
    pub page_size: u32,
}

/// Runs of one repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryCounts {
    /// `owner/name`.
    pub repository: String,
    pub runs: u32,
    /// Jobs in progress.
    pub running: u32,
    /// Jobs queued.
    pub pending: u32,
    /// Runs with a failed or timed-out job.
    pub failed: u32,
}

/// Who did what, with which result. Never changed, deleted by retention only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditEntry {
    pub at: UtcMillis,
    /// Who: a token's name, `local`, a node's name, `scheduler`; empty when nobody knows.
    pub actor: String,
    /// What kind of caller: `token`, `node`, `scheduler`, `anonymous`.
    pub kind: String,
    /// Public id of the token or the certificate; a name may be used again, this is not.
    pub credential: String,
    /// What was called, for example `FleetService/StopRunner`.
    pub action: String,
    /// On what: a runner, a node, a pool.
    pub subject: String,
    /// Address of the peer, without its port.
    pub address: String,
    /// Family of the caller's program, such as `longshore-cli`.
    pub surface: String,
    /// `ok`, `denied`, `refused` or `failed`.
    pub outcome: String,
    pub detail: String,
    /// The caller's request id, empty when it gave none.
    pub request_id: String,
    /// W3C trace id, empty when there is none.
    pub trace: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    pub id: u64,
    pub entry: AuditEntry,
    /// Covers the entry and the hash of the row before.
    pub hash: crate::chain::Hash,
}

/// Which audit entries, and from where on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// Only ids below this, newest first.
    pub before: Option<u64>,
    /// Only ids above this, oldest first. Stands over `before`.
    pub after: Option<u64>,
    /// Only these; `None` is any.
    pub actor: Option<String>,
    pub action: Option<String>,
    pub subject: Option<String>,
    pub outcome: Option<String>,
    pub since: UtcMillis,
    /// 0 means 100; at most [`crate::PAGE_MAX`].
    pub limit: u32,
}

impl AuditQuery {
    pub(crate) fn matches(&self, entry: &AuditEntry) -> bool {
        let is =
            |wanted: &Option<String>, found: &String| wanted.as_ref().is_none_or(|w| w == found);
        is(&self.actor, &entry.actor)
            && is(&self.action, &entry.action)
            && is(&self.subject, &entry.subject)
            && is(&self.outcome, &entry.outcome)
            && entry.at >= self.since
    }
}

/// A bearer token as it is kept: its hash and what it may.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Public; part of the token.
    pub id: String,
    pub name: String,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// A word of the shell's; the store does not judge it.
    pub role: String,
    /// Empty for the whole fleet, else owner or owner/name.
    pub scope: String,
    pub created_at: UtcMillis,
    pub created_by: String,
    /// `None`: it does not expire.
    pub expires_at: Option<UtcMillis>,
    pub last_used_at: Option<UtcMillis>,
    pub revoked_at: Option<UtcMillis>,
}

impl fmt::Debug for TokenRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRow")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("hash", &"***")
            .field("role", &self.role)
            .field("scope", &self.scope)
            .field("created_at", &self.created_at)
            .field("created_by", &self.created_by)
            .field("expires_at", &self.expires_at)
            .field("last_used_at", &self.last_used_at)
            .field("revoked_at", &self.revoked_at)
            .finish()
    }
}

/// A change of the bearer tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenChange {
    Made(TokenRow),
    /// It was used; never set back.
    Used {
        id: String,
        at: UtcMillis,
    },
    /// It is valid no more. The first time counts.
    Revoked {
        id: String,
        at: UtcMillis,
    },
}

/// Whether `owner/name` lies within `acme` or `acme/web`, as GitHub compares names.
pub(crate) fn lies_within(repository: &str, within: &str) -> bool {
    if within.contains('/') {
        return repository.eq_ignore_ascii_case(within);
    }
    repository
        .split_once('/')
        .is_some_and(|(owner, _)| owner.eq_ignore_ascii_case(within))
}

/// Rows of a page from what a caller asked for.
pub(crate) fn page_size(asked: u32) -> u32 {
    match asked {
        0 => 100,
        n => n.min(crate::PAGE_MAX),
    }
}

/// Where a page of jobs begins: below this id.
pub(crate) fn job_cursor(token: Option<&str>) -> Result<Option<JobId>, crate::Error> {
    token
        .map(|token| token.parse().map(JobId))
        .transpose()
        .map_err(|_| crate::Error::BadPageToken)
}

/// Where a page of runners begins: below this time and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunnerCursor {
    pub(crate) placed_at: UtcMillis,
    pub(crate) name: String,
}

impl RunnerCursor {
    pub(crate) fn of(row: &RunnerRow) -> Self {
        Self {
            placed_at: row.placed_at,
            name: row.name.as_str().to_owned(),
        }
    }

    pub(crate) fn parse(token: Option<&str>) -> Result<Option<Self>, crate::Error> {
        let Some(token) = token else { return Ok(None) };
        let (at, name) = token.split_once(':').ok_or(crate::Error::BadPageToken)?;
        Ok(Some(Self {
            placed_at: at.parse().map_err(|_| crate::Error::BadPageToken)?,
            name: name.to_owned(),
        }))
    }
}

impl fmt::Display for RunnerCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.placed_at, self.name)
    }
}

impl RunnerStage {
    /// The word of every surface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Registered => "registered",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
            Self::Retired => "retired",
        }
    }

    pub(crate) fn rank(self) -> i64 {
        self as i64
    }

    pub(crate) fn from_rank(rank: i64) -> Option<Self> {
        [
            Self::Reserved,
            Self::Registered,
            Self::Starting,
            Self::Idle,
            Self::Busy,
            Self::Stopping,
            Self::Retired,
        ]
        .into_iter()
        .find(|s| s.rank() == rank)
    }
}
