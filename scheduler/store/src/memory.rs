//! The store for tests: all in memory, with faults on request.
//!
//! Clones share one content, so that a restarted scheduler finds what the one
//! before it had committed. Facts go through the stored format, as on disk.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use scheduler_core::{
    fact::Fact,
    model::{JobId, JobPhase, RunnerName, UtcMillis},
};
use tokio::sync::watch;

use crate::{
    AuditQuery, AuditRow, Commit, Error, JobQuery, JobRow, Loaded, Page, Raised, RepositoryCounts,
    RunnerQuery, RunnerRow, RunnerStage, Store, TokenChange, TokenRow, chain, format,
    project::Patches,
    rows::{RunnerCursor, job_cursor, lies_within, page_size},
};

/// Not durable. For tests only.
#[derive(Clone, Debug)]
pub struct Memory {
    content: Arc<Mutex<Content>>,
    faults: Faults,
}

/// What a test makes go wrong.
#[derive(Clone, Debug)]
pub struct Faults {
    state: Arc<Mutex<FaultState>>,
    stalled: Arc<watch::Sender<bool>>,
}

#[derive(Debug, Default)]
struct FaultState {
    fail_before: u32,
    fail_after: u32,
    full: bool,
    commits: u64,
}

#[derive(Debug, Default)]
struct Content {
    fleet_id: String,
    epoch: u64,
    sequence: u64,
    snapshot_sequence: u64,
    snapshot: Vec<u8>,
    /// Encoded batches by the sequence of their last fact.
    facts: BTreeMap<u64, Vec<u8>>,
    jobs: BTreeMap<JobId, JobRow>,
    runners: BTreeMap<RunnerName, RunnerRow>,
    settings: BTreeMap<String, String>,
    records: BTreeMap<(String, String), String>,
    audit: BTreeMap<u64, AuditRow>,
    /// `None`: nothing was pruned, or written.
    audit_pruned: Option<(u64, chain::Hash)>,
    audit_last: Option<(u64, chain::Hash)>,
    tokens: BTreeMap<String, TokenRow>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub fn new(fleet_id: &str) -> Self {
        Self {
            content: Arc::new(Mutex::new(Content {
                fleet_id: fleet_id.to_owned(),
                ..Content::default()
            })),
            faults: Faults {
                state: Arc::default(),
                stalled: Arc::new(watch::Sender::new(false)),
            },
        }
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl Faults {
    /// Commits wait until this is lifted.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// The next `n` commits fail and keep nothing.
    pub fn fail_before(&self, n: u32) {
        lock(&self.state).fail_before = n;
    }

    /// The next `n` commits are kept, yet answered with an error: the answer
    /// was lost on its way.
    pub fn fail_after(&self, n: u32) {
        lock(&self.state).fail_after = n;
    }

    /// The disk is full until this is lifted.
    pub fn fill(&self, full: bool) {
        lock(&self.state).full = full;
    }

    /// Commits kept so far.
    pub fn commits(&self) -> u64 {
        lock(&self.state).commits
    }

    async fn pass(&self) {
        let mut stalled = self.stalled.subscribe();
        // The sender lives as long as self.
        let _ = stalled.wait_for(|stalled| !stalled).await;
    }

    fn take(&self, pick: impl Fn(&mut FaultState) -> &mut u32) -> Result<(), Error> {
        let mut state = lock(&self.state);
        if state.full {
            return Err(Error::Full {
                path: "memory".to_owned(),
            });
        }
        let left = pick(&mut state);
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        Err(Error::Injected { action: "commit" })
    }
}

impl Content {
    fn check_epoch(&self, expected: u64) -> Result<(), Error> {
        if self.epoch == expected {
            return Ok(());
        }
        Err(Error::Fenced {
            expected,
            found: self.epoch,
        })
    }

    fn ends(&self) -> chain::Ends {
        let start = || (0, chain::genesis(&self.fleet_id));
        let pruned = self.audit_pruned.unwrap_or_else(start);
        chain::Ends {
            pruned,
            last: self.audit_last.unwrap_or(pruned),
        }
    }

    fn change(&mut self, change: TokenChange) {
        match change {
            TokenChange::Made(row) => {
                self.tokens.insert(row.id.clone(), row);
            }
            TokenChange::Used { id, at } => {
                if let Some(row) = self.tokens.get_mut(&id) {
                    row.last_used_at = row.last_used_at.max(Some(at));
                }
            }
            TokenChange::Revoked { id, at } => {
                if let Some(row) = self.tokens.get_mut(&id) {
                    row.revoked_at = row.revoked_at.or(Some(at));
                }
            }
        }
    }

    fn append(&mut self, facts: &[Fact]) {
        if facts.is_empty() {
            return;
        }
        let batch = format::encode(self.sequence + 1, facts);
        self.sequence += facts.len() as u64;
        self.facts.insert(self.sequence, batch);
    }

    fn project(&mut self, facts: &[Fact], at: UtcMillis) {
        let patches = Patches::of(facts, at);
        for gone in &patches.repositories_gone {
            for job in self.jobs.values_mut() {
                if job.repository == *gone && job.phase <= JobPhase::Queued {
                    job.phase = JobPhase::Completed;
                    job.completed_at = job.completed_at.or(Some(at));
                    job.changed_at = at;
                }
            }
        }
        for (id, patch) in patches.jobs {
            if let Some(row) = patch.merge(id, self.jobs.get(&id), at) {
                self.jobs.insert(id, row);
            }
        }
        for (name, patch) in patches.runners {
            let old = self.runners.get(&name);
            let repository = patch
                .job
                .and_then(|id| self.jobs.get(&id))
                .map(|job| job.repository.clone());
            if let Some(row) = patch.merge(&name, old, repository) {
                self.runners.insert(name, row);
            }
        }
    }
}

impl Store for Memory {
    async fn load(&self) -> Result<Loaded, Error> {
        let content = lock(&self.content);
        let snapshot = match content.snapshot.as_slice() {
            [] => Vec::new(),
            bytes => format::decode(bytes)?.1,
        };
        let mut facts = Vec::new();
        for batch in content.facts.values() {
            let (first, batch) = format::decode(batch)?;
            let skip = (content.snapshot_sequence + 1).saturating_sub(first);
            facts.extend(
                batch
                    .into_iter()
                    .skip(usize::try_from(skip).unwrap_or(usize::MAX)),
            );
        }
        Ok(Loaded {
            fleet_id: content.fleet_id.clone(),
            epoch: content.epoch,
            sequence: content.sequence,
            snapshot_sequence: content.snapshot_sequence,
            snapshot,
            facts,
        })
    }

    async fn commit(&self, commit: Commit) -> Result<u64, Error> {
        self.faults.pass().await;
        self.faults.take(|f| &mut f.fail_before)?;
        let mut content = lock(&self.content);
        content.check_epoch(commit.expected_epoch)?;
        content.append(&commit.facts);
        content.project(&commit.facts, commit.at);
        for (key, value) in commit.settings {
            match value {
                Some(value) => content.settings.insert(key, value),
                None => content.settings.remove(&key),
            };
        }
        for change in commit.records {
            let key = (change.kind.to_owned(), change.key);
            match change.value {
                Some(value) => content.records.insert(key, value),
                None => content.records.remove(&key),
            };
        }
        for entry in commit.audit {
            let (last, hash) = content.ends().last;
            let id = last + 1;
            let hash = chain::link(&hash, id, &entry);
            content.audit_last = Some((id, hash));
            content.audit.insert(id, AuditRow { id, entry, hash });
        }
        for change in commit.tokens {
            content.change(change);
        }
        lock(&self.faults.state).commits += 1;
        self.faults.take(|f| &mut f.fail_after)?;
        Ok(content.sequence)
    }

    async fn raise_epoch(&self, expected: u64, at_least: u64) -> Result<Raised, Error> {
        let mut content = lock(&self.content);
        content.check_epoch(expected)?;
        content.epoch = at_least.max(expected + 1);
        let epoch = content.epoch;
        content.append(&[Fact::EpochRaised { epoch }]);
        Ok(Raised {
            epoch,
            sequence: content.sequence,
        })
    }

    async fn write_snapshot(
        &self,
        expected_epoch: u64,
        sequence: u64,
        facts: Vec<Fact>,
    ) -> Result<(), Error> {
        let mut content = lock(&self.content);
        content.check_epoch(expected_epoch)?;
        if sequence <= content.snapshot_sequence {
            return Ok(());
        }
        content.snapshot = format::encode(0, &facts);
        content.snapshot_sequence = sequence;
        content.facts.retain(|last, _| *last > sequence);
        Ok(())
    }

    async fn facts_after(&self, after: u64, limit: u32) -> Result<Vec<(u64, Fact)>, Error> {
        let content = lock(&self.content);
        if after < content.snapshot_sequence {
            return Err(Error::Compacted {
                after,
                oldest: content.snapshot_sequence,
            });
        }
        let mut found = Vec::new();
        for batch in content.facts.range(after + 1..).map(|(_, batch)| batch) {
            if found.len() >= limit as usize {
                break;
            }
            let (first, batch) = format::decode(batch)?;
            found.extend(
                (first..)
                    .zip(batch)
                    .filter(|(sequence, _)| *sequence > after),
            );
        }
        Ok(found)
    }

    async fn jobs(&self, query: JobQuery) -> Result<Page<JobRow>, Error> {
        let before = job_cursor(query.page_token.as_deref())?;
        let size = page_size(query.page_size) as usize;
        let content = lock(&self.content);
        let mut items: Vec<_> = content
            .jobs
            .values()
            .rev()
            .filter(|job| before.is_none_or(|before| job.id < before))
            .filter(|job| {
                query
                    .repository
                    .as_ref()
                    .is_none_or(|r| *r == job.repository)
            })
            .filter(|job| {
                let within = query.within.as_deref();
                within.is_none_or(|within| lies_within(&job.repository, within))
            })
            .filter(|job| query.phase.is_none_or(|phase| phase == job.phase))
            .take(size + 1)
            .cloned()
            .collect();
        let more = items.len() > size;
        items.truncate(size);
        let next = more
            .then(|| items.last().map(|job| job.id.0.to_string()))
            .flatten();
        Ok(Page { items, next })
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRow>, Error> {
        Ok(lock(&self.content).jobs.get(&id).cloned())
    }

    async fn runners(&self, query: RunnerQuery) -> Result<Page<RunnerRow>, Error> {
        let before = RunnerCursor::parse(query.page_token.as_deref())?;
        let size = page_size(query.page_size) as usize;
        let content = lock(&self.content);
        let mut items: Vec<_> = content
            .runners
            .values()
            .filter(|r| before.as_ref().is_none_or(|b| RunnerCursor::of(r) < *b))
            .filter(|r| query.include_finished || r.stage != RunnerStage::Retired)
            .filter(|r| query.node.as_ref().is_none_or(|node| *node == r.node))
            .filter(|r| query.repository.is_none() || query.repository == r.repository)
            .filter(|r| {
                let within = query.within.as_deref();
                within.is_none_or(|within| match &r.repository {
                    Some(repository) => lies_within(repository, within),
                    None => r.scope.eq_ignore_ascii_case(within),
                })
            })
            .cloned()
            .collect();
        items.sort_by_key(|r| std::cmp::Reverse(RunnerCursor::of(r)));
        let more = items.len() > size;
        items.truncate(size);
        let next = more
            .then(|| items.last().map(|r| RunnerCursor::of(r).to_string()))
            .flatten();
        Ok(Page { items, next })
    }

    async fn runners_by_prefix(&self, prefix: &str, limit: u32) -> Result<Vec<RunnerRow>, Error> {
        let content = lock(&self.content);
        let mut found: Vec<_> = content
            .runners
            .values()
            .filter(|r| {
                r.name.as_str().starts_with(prefix)
                    || r.container_id
                        .as_ref()
                        .is_some_and(|c| c.starts_with(prefix))
            })
            .cloned()
            .collect();
        found.sort_by_key(|r| std::cmp::Reverse(RunnerCursor::of(r)));
        found.truncate(page_size(limit) as usize);
        Ok(found)
    }

    async fn repository_counts(
        &self,
        since: UtcMillis,
        after: Option<String>,
    ) -> Result<Vec<RepositoryCounts>, Error> {
        use std::collections::BTreeSet;
        #[derive(Default)]
        struct Seen {
            runs: BTreeSet<u64>,
            failed: BTreeSet<u64>,
            running: u32,
            pending: u32,
        }
        let content = lock(&self.content);
        let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
        for job in content.jobs.values().filter(|job| job.created_at >= since) {
            let seen = seen.entry(&job.repository).or_default();
            seen.runs.insert(job.run_id);
            match job.phase {
                JobPhase::InProgress => seen.running += 1,
                JobPhase::Queued => seen.pending += 1,
                JobPhase::Waiting | JobPhase::Completed => {}
            }
            if matches!(job.conclusion.as_deref(), Some("failure" | "timed_out")) {
                seen.failed.insert(job.run_id);
            }
        }
        Ok(seen
            .into_iter()
            .filter(|(repository, _)| after.as_ref().is_none_or(|a| **repository > **a))
            .take(crate::PAGE_MAX as usize)
            .map(|(repository, seen)| RepositoryCounts {
                repository: repository.to_owned(),
                runs: u32::try_from(seen.runs.len()).unwrap_or(u32::MAX),
                running: seen.running,
                pending: seen.pending,
                failed: u32::try_from(seen.failed.len()).unwrap_or(u32::MAX),
            })
            .collect())
    }

    async fn setting(&self, key: &str) -> Result<Option<String>, Error> {
        Ok(lock(&self.content).settings.get(key).cloned())
    }

    async fn records(&self, kind: &str) -> Result<Vec<(String, String)>, Error> {
        Ok(lock(&self.content)
            .records
            .range((kind.to_owned(), String::new())..)
            .take_while(|((of, _), _)| of == kind)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }

    async fn audit(&self, query: AuditQuery) -> Result<Vec<AuditRow>, Error> {
        let content = lock(&self.content);
        let size = page_size(query.limit) as usize;
        let matches = |row: &&AuditRow| query.matches(&row.entry);
        Ok(match query.after {
            Some(after) => {
                let rows = content.audit.range(after.saturating_add(1)..);
                let rows = rows.map(|(_, row)| row).filter(matches);
                rows.take(size).cloned().collect()
            }
            None => {
                let rows = content.audit.range(..query.before.unwrap_or(u64::MAX));
                let rows = rows.rev().map(|(_, row)| row).filter(matches);
                rows.take(size).cloned().collect()
            }
        })
    }

    async fn audit_ends(&self) -> Result<chain::Ends, Error> {
        Ok(lock(&self.content).ends())
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>, Error> {
        let mut rows: Vec<_> = lock(&self.content).tokens.values().cloned().collect();
        rows.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(rows)
    }

    async fn prune(
        &self,
        history_before: UtcMillis,
        audit_before: UtcMillis,
        limit: u32,
    ) -> Result<u64, Error> {
        let mut content = lock(&self.content);
        let limit = limit as usize;
        let jobs: Vec<_> = content
            .jobs
            .values()
            .filter(|job| job.phase == JobPhase::Completed)
            .filter(|job| job.completed_at.is_some_and(|at| at < history_before))
            .take(limit)
            .map(|job| job.id)
            .collect();
        let runners: Vec<_> = content
            .runners
            .values()
            .filter(|r| r.retired_at.is_some_and(|at| at < history_before))
            .take(limit)
            .map(|r| r.name.clone())
            .collect();
        let audit: Vec<_> = content
            .audit
            .values()
            .take_while(|row| row.entry.at < audit_before)
            .take(limit)
            .map(|row| (row.id, row.hash))
            .collect();
        let tokens: Vec<_> = content
            .tokens
            .values()
            .filter(|row| {
                let over = [row.revoked_at, row.expires_at];
                over.into_iter().flatten().any(|at| at < history_before)
            })
            .take(limit)
            .map(|row| row.id.clone())
            .collect();
        let gone = jobs.len() + runners.len() + audit.len() + tokens.len();
        for id in jobs {
            content.jobs.remove(&id);
        }
        for name in runners {
            content.runners.remove(&name);
        }
        for (id, hash) in audit {
            content.audit.remove(&id);
            content.audit_pruned = Some((id, hash));
        }
        for id in tokens {
            content.tokens.remove(&id);
        }
        Ok(gone as u64)
    }
}
