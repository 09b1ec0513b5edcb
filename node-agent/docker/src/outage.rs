//! When the engine was away: what ended meanwhile was ended by its restart.
//!
//! An engine that dies and starts again without live-restore kills what still runs
//! and says nothing but "signal 9". The time of the end tells the difference.

use std::time::{SystemTime, UNIX_EPOCH};

/// Clocks of engine and agent are the same; its own bookkeeping comes a little late.
const SLACK_MS: u64 = 2_000;

/// The last time the engine did not answer, milliseconds since the epoch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outage {
    from: u64,
    /// 0 while it lasts.
    to: u64,
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

impl Outage {
    /// Said again while it lasts, it began the first time.
    pub(crate) fn begins(&mut self, now: u64) {
        if self.from == 0 || self.to != 0 {
            *self = Self { from: now, to: 0 };
        }
    }

    pub(crate) fn ends(&mut self, now: u64) {
        if self.from != 0 && self.to == 0 {
            self.to = now;
        }
    }

    /// When the last one began, if there was one.
    pub(crate) fn began(&self) -> Option<u64> {
        (self.from != 0).then_some(self.from)
    }

    /// A container that a signal ended then did not end by itself.
    pub(crate) fn covers(&self, finished: u64) -> bool {
        let to = if self.to == 0 { u64::MAX } else { self.to };
        self.from != 0 && finished >= self.from && finished <= to.saturating_add(SLACK_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::Outage;

    #[test]
    fn only_ends_within_the_outage_are_the_engines() {
        let mut outage = Outage::default();
        assert!(!outage.covers(5), "there was none");
        outage.begins(10_000);
        outage.begins(15_000);
        assert!(!outage.covers(9_999), "it began the first time");
        assert!(outage.covers(10_000) && outage.covers(90_000));
        outage.ends(20_000);
        outage.ends(99_000);
        assert!(outage.covers(21_000), "bookkeeping comes late");
        assert!(!outage.covers(22_001));
    }
}
