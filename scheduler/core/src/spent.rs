//! Runners that ended after a job GitHub has not named yet: that job still counts as
//! queued, and must not ask for a second runner while its webhook is on the way.

use std::time::Duration;

use crate::{
    apply::NO_GROUP,
    demand::{GroupIx, UnitIx},
    fleet::Fleet,
    model::{Exit, Now, RunnerName},
    state::Runner,
    timers::Due,
};

/// `in_progress` of one burst was seen to arrive spread over 28 s.
const SPENT_MS: u64 = 30_000;
/// A source that is silent for longer is out of order: its jobs may cost a surplus runner.
const LONGEST_DELAY_MS: u64 = 15 * 60_000;
/// Beyond so many at once a late webhook may cost a surplus runner.
const KEPT: usize = 4_096;

/// Supply that is used up, for a job we do not know yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) group: GroupIx,
    pub(crate) cover: Option<UnitIx>,
    /// Monotonic.
    pub(crate) until: u64,
}

impl Runner {
    /// A job ran in it, and GitHub has not said which. A runner program that was not
    /// told to stop ends cleanly only after its one job (facts.md 4).
    pub(crate) fn ran_unnamed(&self, exit: Option<&Exit>) -> bool {
        let finished = exit.is_some_and(|exit| {
            exit.cause == "finished" && matches!(exit.code, Some(0 | 100..=105))
        });
        self.job.is_none()
            && !self.soft.unclaimed
            && (self.has_worker() || (finished && self.stopping.is_none()))
    }

    /// What remains of it as supply; `None` when it stood for nothing.
    pub(crate) fn spent(&self, until: u64) -> Option<Spent> {
        (self.group != NO_GROUP).then_some(Spent {
            group: self.group,
            cover: self.cover,
            until,
        })
    }
}

/// In milliseconds, bounded.
pub(crate) fn bounded_delay(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).map_or(LONGEST_DELAY_MS, |delay| delay.min(LONGEST_DELAY_MS))
}

impl Fleet {
    /// How long after its start or its end GitHub names a job, in milliseconds.
    pub(crate) fn naming_ms(&self) -> u64 {
        self.soft.news_delay_ms + SPENT_MS
    }

    pub(crate) fn keep_spent(&mut self, name: &RunnerName, spent: Spent) {
        if self.soft.spent.len() >= KEPT {
            return;
        }
        self.demand.add_supply(spent.group, spent.cover);
        self.soft.spent.insert(name.clone(), spent);
        self.touch(Due::Spent(name.clone()));
    }

    /// GitHub named its job, or did not within the time.
    pub(crate) fn drop_spent(&mut self, name: &RunnerName) {
        if let Some(spent) = self.soft.spent.remove(name) {
            self.demand.remove_supply(spent.group, spent.cover);
        }
    }

    pub(crate) fn attend_spent(&mut self, now: Now, name: &RunnerName) -> Option<u64> {
        let until = self.soft.spent.get(name)?.until;
        if until > now.mono {
            return Some(until);
        }
        self.drop_spent(name);
        None
    }
}
