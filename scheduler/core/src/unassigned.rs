//! Demand GitHub gives to none of our runners: it rests instead of costing a
//! runner after the other (facts.md 5 row 1).
//!
//! GitHub never says why it does not assign a job: the runner group may not allow
//! the repository, or a policy forbids it. What can be seen is a runner that idled
//! out while the very job it was placed for stayed queued.

use crate::{
    fact::Fact,
    fleet::Fleet,
    input::JobSeen,
    labels::fold,
    model::{JobId, JobPhase, Now, RunnerName, Scope, UtcMillis},
};

/// So many runners may idle out in a row before the demand rests.
pub(crate) const MOST_IN_VAIN: u32 = 3;
/// First rest; doubles with each further runner.
const FIRST_REST_MS: u64 = 5 * 60_000;
const LONGEST_REST_MS: u64 = 30 * 60_000;
/// Demands remembered, at most; beyond it new ones are not counted.
const KEPT: usize = 10_000;

/// Scope, folded `owner/name` and folded labels.
pub(crate) type DemandKey = (Scope, String, Vec<String>);

/// Runners that waited in vain for a demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InVain {
    pub(crate) runners: u32,
    pub(crate) until: UtcMillis,
    /// Soft: in force until its timer ran.
    pub(crate) resting: bool,
}

fn key(seen: &JobSeen) -> DemandKey {
    (
        seen.scope.clone(),
        seen.repository.full_name().to_lowercase(),
        fold(&seen.labels),
    )
}

impl Fleet {
    /// Its jobs are not counted as demand now.
    pub(crate) fn demand_rests(&self, seen: &JobSeen) -> bool {
        !self.in_vain.is_empty()
            && self
                .in_vain
                .get(&key(seen))
                .is_some_and(|rest| rest.resting)
    }

    /// What explains a job whose demand rests at `now`.
    pub(crate) fn waited_in_vain(&self, seen: &JobSeen, now: UtcMillis) -> Option<&InVain> {
        self.in_vain
            .get(&key(seen))
            .filter(|rest| rest.runners >= MOST_IN_VAIN && rest.until > now)
    }

    /// A runner idled out; in vain when the job it was placed for still waits. Said
    /// when it is told to stop, since its place is filled again from then on.
    pub(crate) fn note_in_vain(&mut self, now: Now, name: &RunnerName, facts: &mut Vec<Fact>) {
        let waiting = self
            .runners
            .get(name)
            .filter(|runner| runner.job.is_none())
            .and_then(|runner| self.jobs.get(&runner.placed.job?))
            .filter(|job| job.phase() == JobPhase::Queued);
        let Some(job) = waiting else {
            return;
        };
        let key = key(&job.seen);
        let known = self.in_vain.get(&key);
        // Runners of one burst idle out together: the rest has begun already.
        if known.is_some_and(|rest| rest.resting && rest.until > now.utc)
            || (known.is_none() && self.in_vain.len() >= KEPT)
        {
            return;
        }
        let runners = known.map_or(0, |rest| rest.runners) + 1;
        let rest = match runners.checked_sub(MOST_IN_VAIN) {
            None => 0,
            Some(more) => (FIRST_REST_MS << more.min(8)).min(LONGEST_REST_MS),
        };
        let (scope, repository, labels) = key;
        self.emit(
            Fact::DemandRests {
                scope,
                repository,
                labels,
                until: now.utc + rest,
                runners,
            },
            facts,
        );
    }

    /// GitHub gave a job of this demand to a runner of ours after all.
    pub(crate) fn note_assigned(&mut self, id: JobId, facts: &mut Vec<Fact>) {
        if self.in_vain.is_empty() {
            return;
        }
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let key = key(&job.seen);
        if self.in_vain.contains_key(&key) {
            self.clear_in_vain(key, facts);
        }
    }

    /// Whoever starts scaling may have changed something at GitHub: all are tried again.
    pub(crate) fn forget_in_vain(&mut self, facts: &mut Vec<Fact>) {
        let keys: Vec<DemandKey> = self.in_vain.keys().cloned().collect();
        for key in keys {
            self.clear_in_vain(key, facts);
        }
    }

    /// When to look again. A demand without queued jobs is forgotten.
    pub(crate) fn attend_in_vain(
        &mut self,
        now: Now,
        key: &DemandKey,
        facts: &mut Vec<Fact>,
    ) -> Option<u64> {
        let rest = self.in_vain.get_mut(key)?;
        if rest.until > now.utc {
            return Some(now.mono + (rest.until - now.utc));
        }
        if std::mem::replace(&mut rest.resting, false) {
            self.relist_demand(key);
        }
        if self.jobs_of(key).is_empty() {
            self.clear_in_vain(key.clone(), facts);
            return None;
        }
        Some(now.mono + LONGEST_REST_MS)
    }

    fn clear_in_vain(&mut self, key: DemandKey, facts: &mut Vec<Fact>) {
        let (scope, repository, labels) = key;
        self.emit(
            Fact::DemandCleared {
                scope,
                repository,
                labels,
            },
            facts,
        );
    }

    pub(crate) fn jobs_of(&self, wanted: &DemandKey) -> Vec<JobId> {
        self.jobs
            .values()
            .filter(|job| {
                job.phase() == JobPhase::Queued
                    && job.seen.scope == wanted.0
                    && key(&job.seen) == *wanted
            })
            .map(|job| job.seen.id)
            .collect()
    }
}
