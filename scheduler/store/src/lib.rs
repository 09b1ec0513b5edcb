//! What the scheduler writes to disk: facts, and rows derived from them.
//!
//! One trait, [`Store`]; [`Sqlite`] is the embedded default, [`Memory`] is for
//! tests. A commit is one transaction: the facts, the rows for people (jobs,
//! runners), settings and audit entries, under the epoch of the writer. No
//! secret is ever stored.

#![warn(clippy::unwrap_used)]

pub mod chain;
pub mod format;
mod memory;
mod project;
mod rows;
mod sqlite;

use std::future::Future;

use scheduler_core::{
    fact::Fact,
    model::{JobId, UtcMillis},
};

pub use memory::{Faults, Memory};
pub use rows::{
    AuditEntry, AuditQuery, AuditRow, JobQuery, JobRow, Page, RepositoryCounts, RunnerQuery,
    RunnerRow, RunnerStage, TokenChange, TokenRow,
};

pub use sqlite::{Options, Sqlite};

/// Most rows of one page.
pub const PAGE_MAX: u32 = 1_000;

/// Where facts are kept. All calls are safe to drop half-way: a commit that was
/// begun ends by itself, one way or the other.
pub trait Store: Send + Sync + 'static {
    /// Everything that rebuilds the state: a snapshot and the facts after it.
    fn load(&self) -> impl Future<Output = Result<Loaded, Error>> + Send;

    /// Makes facts, settings and audit entries durable in one transaction and
    /// returns the sequence of the last fact. Nothing is kept on an error.
    fn commit(&self, commit: Commit) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Takes the store over: raises the epoch from `expected` to the larger of
    /// `expected + 1` and `at_least`, and records `Fact::EpochRaised`, which the
    /// caller applies. Whoever still holds the old epoch is fenced from here on.
    fn raise_epoch(
        &self,
        expected: u64,
        at_least: u64,
    ) -> impl Future<Output = Result<Raised, Error>> + Send;

    /// Replaces older snapshots by this one, taken at `sequence`. Commits may
    /// go on meanwhile; a broken-off call leaves the older snapshot in force.
    fn write_snapshot(
        &self,
        expected_epoch: u64,
        sequence: u64,
        facts: Vec<Fact>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Facts with a sequence above `after`, oldest first, at most about `limit`.
    /// [`Error::Compacted`] when a snapshot has swallowed some of them.
    fn facts_after(
        &self,
        after: u64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<(u64, Fact)>, Error>> + Send;

    /// Jobs of now and before, newest first.
    fn jobs(&self, query: JobQuery) -> impl Future<Output = Result<Page<JobRow>, Error>> + Send;

    fn job(&self, id: JobId) -> impl Future<Output = Result<Option<JobRow>, Error>> + Send;

    /// Runners of now and before, newest first.
    fn runners(
        &self,
        query: RunnerQuery,
    ) -> impl Future<Output = Result<Page<RunnerRow>, Error>> + Send;

    /// Runners whose name or container id begins with `prefix`, newest first,
    /// at most `limit`: two of them make a prefix ambiguous.
    fn runners_by_prefix(
        &self,
        prefix: &str,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<RunnerRow>, Error>> + Send;

    /// Runs per repository with a job created since then, by name, at most
    /// [`PAGE_MAX`] after the repository `after`.
    fn repository_counts(
        &self,
        since: UtcMillis,
        after: Option<String>,
    ) -> impl Future<Output = Result<Vec<RepositoryCounts>, Error>> + Send;

    /// A setting of the surfaces, such as the autoscaler's.
    fn setting(&self, key: &str) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// Everything of this kind, by key.
    fn records(
        &self,
        kind: &str,
    ) -> impl Future<Output = Result<Vec<(String, String)>, Error>> + Send;

    /// Audit entries that match, in the order asked for.
    fn audit(&self, query: AuditQuery)
    -> impl Future<Output = Result<Vec<AuditRow>, Error>> + Send;

    /// Between which rows the audit log stands.
    fn audit_ends(&self) -> impl Future<Output = Result<chain::Ends, Error>> + Send;

    /// Every bearer token that retention kept, oldest first.
    fn tokens(&self) -> impl Future<Output = Result<Vec<TokenRow>, Error>> + Send;

    /// Deletes jobs and runners that ended and tokens that were over before
    /// `history_before`, and the audit entries before the first one that is not
    /// older than `audit_before`, at most `limit` of each; returns how many went.
    /// Call again until it returns 0.
    fn prune(
        &self,
        history_before: UtcMillis,
        audit_before: UtcMillis,
        limit: u32,
    ) -> impl Future<Output = Result<u64, Error>> + Send;
}

/// What recovery starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Made once with the store; part of every runner's name.
    pub fleet_id: String,
    /// Epoch in force; a scheduler that starts raises it first.
    pub epoch: u64,
    /// Sequence of the last fact.
    pub sequence: u64,
    /// Sequence at which the snapshot was taken; 0 without one.
    pub snapshot_sequence: u64,
    pub snapshot: Vec<Fact>,
    /// Facts after the snapshot, in order.
    pub facts: Vec<Fact>,
}

impl Loaded {
    /// Every fact to apply, in order.
    pub fn all(&self) -> impl Iterator<Item = &Fact> {
        self.snapshot.iter().chain(&self.facts)
    }
}

/// One group commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Epoch the writer believes to hold.
    pub expected_epoch: u64,
    pub at: UtcMillis,
    pub facts: Vec<Fact>,
    /// Settings to write; `None` deletes.
    pub settings: Vec<(String, Option<String>)>,
    /// Chained in this order behind those of earlier commits.
    pub audit: Vec<AuditEntry>,
    pub tokens: Vec<TokenChange>,
    pub records: Vec<RecordChange>,
}

/// A record to write or delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordChange {
    pub kind: &'static str,
    pub key: String,
    /// JSON; `None` deletes.
    pub value: Option<String>,
}

/// Answer of [`Store::raise_epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    pub epoch: u64,
    /// Sequence of the recorded `Fact::EpochRaised`.
    pub sequence: u64,
}

/// Why the store said no. Texts complete "failed to ...".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "open {path}: another scheduler (process {holder}) uses it; stop that one or give this one its own --state-dir"
    )]
    Locked { path: String, holder: String },
    #[error(
        "commit: another scheduler took over (epoch {found}, ours {expected}); this one must stop writing and load again"
    )]
    Fenced { expected: u64, found: u64 },
    #[error("write {path}: it is read-only; make it writable for the scheduler's user: {detail}")]
    ReadOnly { path: String, detail: String },
    #[error("write {path}: the disk is full; free space and the scheduler goes on by itself")]
    Full { path: String },
    #[error("open {path}: {detail}")]
    Unusable { path: String, detail: String },
    #[error(
        "open {path}: its tables are of version {found} and this scheduler knows {ours}; start the newer release again"
    )]
    NewerTables { path: String, found: i64, ours: i64 },
    #[error(transparent)]
    Format(#[from] format::Error),
    #[error("read facts after {after}: a snapshot at {oldest} has replaced them; load again")]
    Compacted { after: u64, oldest: u64 },
    #[error("{action}: {source}")]
    Database {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("read page: the page token is not one of ours")]
    BadPageToken,
    /// A fault a test asked for.
    #[error("{action}: fault injected by a test")]
    Injected { action: &'static str },
}
