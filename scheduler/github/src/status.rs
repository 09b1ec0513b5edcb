//! What the sweep reports about itself, for status calls and the dashboard.

use std::collections::BTreeMap;

use scheduler_core::model::{CredentialName, Repository, Scope, UtcMillis};

/// State of watching GitHub. Published through a watch channel after each sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepStatus {
    /// Completed sweeps since start.
    pub iterations: u64,
    /// End of the last completed sweep.
    pub last_check: Option<UtcMillis>,
    /// Start of the next one.
    pub next_check: Option<UtcMillis>,
    /// A delivery was verified and none has been missed since.
    pub webhooks_healthy: bool,
    /// Repositories within the window, with their queues; by `owner/name`.
    pub repositories: BTreeMap<String, RepositoryQueue>,
    /// Repositories that are accessible but outside the since_days window.
    pub outside_window: usize,
    /// What is wrong now, with the next step. Empty when all is well.
    pub problems: Vec<Problem>,
    /// Webhook deliveries that failed and were asked for again.
    pub recovery: RecoveryStatus,
}

/// What became of failed webhook deliveries. The sweep finds what they told in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryStatus {
    /// Deliveries GitHub was asked to send again, since the start.
    pub redelivered: u64,
    /// Hooks whose deliveries the credential may not read or repeat, and what it lacks.
    pub not_permitted: BTreeMap<String, String>,
}

/// Runs of one repository, as far as the sweep and the webhooks told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryQueue {
    pub repository: Repository,
    pub scope: Scope,
    pub credential: CredentialName,
    /// Runs seen within the window, whatever became of them.
    pub total: u32,
    pub running: u32,
    /// Completed with failure; from what was seen, never from an extra call.
    pub failed: u32,
    /// Queued, pending or waiting.
    pub pending: u32,
    /// Of `pending`: held by an approval or a concurrency group, not runnable.
    pub held: u32,
    /// Live runs by the architecture their workflow file name mentions. A forecast; routing goes by labels.
    pub forecast: ArchForecast,
}

/// Live runs by the architecture in the workflow's file name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchForecast {
    /// `amd64`, `x86`, `x64` in the name.
    pub x64: u32,
    /// `arm64`, `aarch64` in the name.
    pub arm64: u32,
    /// Neither or both.
    pub unknown: u32,
}

/// One thing that keeps work from being seen or served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Credential, repository or scope it is about.
    pub subject: String,
    /// With the next step; tokens redacted.
    pub detail: String,
    pub since: UtcMillis,
}

/// What is left of a credential's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateStatus {
    pub credential: CredentialName,
    /// `core`, `actions_runner_registration`, ... as the replies name them.
    pub resource: String,
    pub limit: u64,
    pub remaining: u64,
    pub reset_at: UtcMillis,
    /// Set while the credential rests.
    pub limited_until: Option<UtcMillis>,
}
