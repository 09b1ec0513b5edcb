//! Which denials are written and which only counted: a flood must not fill the disk. Pure.

use std::collections::BTreeMap;

use scheduler_core::model::UtcMillis;
use scheduler_store::AuditEntry;

/// Denials of one caller that are written at once, and how long one more takes.
const OF_ONE: Allowance = Allowance {
    burst: 10,
    refill: 60_000,
};
/// The same over all callers: 14,400 rows a day at most, whatever comes.
const OF_ALL: Allowance = Allowance {
    burst: 1_000,
    refill: 6_000,
};
/// Callers told apart; further ones are one.
const CALLERS: usize = 1_024;
/// Callers named in one round of summaries; the rest share a row.
const NAMED: usize = 20;

struct Allowance {
    burst: u64,
    /// Milliseconds for one more.
    refill: u64,
}

/// A bucket that fills with time.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Milliseconds of refill saved up.
    saved: u64,
    at: UtcMillis,
}

impl Bucket {
    fn full(of: &Allowance, at: UtcMillis) -> Self {
        Self {
            saved: of.burst * of.refill,
            at,
        }
    }

    fn refill(&mut self, of: &Allowance, now: UtcMillis) {
        let gained = now.saturating_sub(self.at);
        self.saved = self.saved.saturating_add(gained).min(of.burst * of.refill);
        self.at = self.at.max(now);
    }

    fn has(&mut self, of: &Allowance, now: UtcMillis) -> bool {
        self.refill(of, now);
        self.saved >= of.refill
    }

    fn take(&mut self, of: &Allowance) {
        self.saved = self.saved.saturating_sub(of.refill);
    }
}

/// Who, from where.
type Caller = (String, String);

#[derive(Debug)]
struct Account {
    bucket: Bucket,
    suppressed: u64,
    /// The last one that was not written, for its summary.
    last: Option<AuditEntry>,
}

/// What was let through and what was only counted.
#[derive(Debug)]
pub(super) struct Ledger {
    all: Bucket,
    callers: BTreeMap<Caller, Account>,
}

impl Ledger {
    pub(super) fn new(now: UtcMillis) -> Self {
        Self {
            all: Bucket::full(&OF_ALL, now),
            callers: BTreeMap::new(),
        }
    }

    /// The entry, when it is to be written; else it is counted.
    pub(super) fn take(&mut self, entry: AuditEntry) -> Option<AuditEntry> {
        let now = entry.at;
        let mut caller = (entry.actor.clone(), entry.address.clone());
        if self.callers.len() >= CALLERS && !self.callers.contains_key(&caller) {
            caller = Caller::default();
        }
        let account = self.callers.entry(caller).or_insert_with(|| Account {
            bucket: Bucket::full(&OF_ONE, now),
            suppressed: 0,
            last: None,
        });
        if account.bucket.has(&OF_ONE, now) && self.all.has(&OF_ALL, now) {
            account.bucket.take(&OF_ONE);
            self.all.take(&OF_ALL);
            return Some(entry);
        }
        account.suppressed += 1;
        account.last = Some(entry);
        None
    }

    /// What was counted since the last time, as entries; `lost` never came this far.
    pub(super) fn summaries(&mut self, lost: u64, now: UtcMillis) -> Vec<AuditEntry> {
        let mut counted: Vec<(u64, AuditEntry)> = self
            .callers
            .values_mut()
            .filter_map(|account| {
                let count = std::mem::take(&mut account.suppressed);
                Some((count, account.last.take()?))
            })
            .collect();
        self.callers.retain(|_, account| {
            account.bucket.refill(&OF_ONE, now);
            account.bucket.saved < OF_ONE.burst * OF_ONE.refill
        });
        counted.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let rest = counted.split_off(counted.len().min(NAMED));
        let mut entries: Vec<AuditEntry> = counted
            .into_iter()
            .map(|(count, last)| AuditEntry {
                detail: format!("{count} more were not written; the last: {}", last.detail),
                at: now,
                ..last
            })
            .collect();
        let more: u64 = rest.iter().map(|(count, _)| count).sum::<u64>() + lost;
        if more > 0 {
            let callers = rest.len();
            entries.push(AuditEntry {
                at: now,
                actor: "scheduler".to_owned(),
                kind: "scheduler".to_owned(),
                action: "denials".to_owned(),
                outcome: "denied".to_owned(),
                detail: format!("{more} more of {callers} other callers or more were not written"),
                ..AuditEntry::default()
            });
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(actor: &str, address: &str, at: UtcMillis) -> AuditEntry {
        AuditEntry {
            at,
            actor: actor.to_owned(),
            address: address.to_owned(),
            detail: "no_token".to_owned(),
            ..AuditEntry::default()
        }
    }

    #[test]
    fn a_flood_of_one_is_counted_and_does_not_hide_another() {
        let mut ledger = Ledger::new(0);
        let flood = (0..5_000).filter_map(|_| ledger.take(denial("", "10.0.0.1", 0)));
        assert_eq!(flood.count(), 10);
        assert!(ledger.take(denial("ada", "10.0.0.1", 0)).is_some());
        assert!(ledger.take(denial("", "10.0.0.2", 0)).is_some());
        let told = ledger.summaries(0, 60_000);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].detail.starts_with("4990 more"),
            "{}",
            told[0].detail
        );
        assert_eq!(told[0].address, "10.0.0.1");
        // Told once; a minute later there is room for one more.
        assert!(ledger.summaries(0, 60_000).is_empty());
        let later = (0..9).filter_map(|_| ledger.take(denial("", "10.0.0.1", 60_000)));
        assert_eq!(later.count(), 1);
    }

    #[test]
    fn a_day_of_attack_from_everywhere_stays_within_its_rows() {
        let mut ledger = Ledger::new(0);
        let mut rows = 0;
        let mut sent = 0_u64;
        let mut told = 0_u64;
        for minute in 0..24 * 60_u64 {
            let at = minute * 60_000;
            for n in 0..3_000 {
                sent += 1;
                let from = format!("10.{}.{}.1", n / 250, n % 250);
                rows += usize::from(ledger.take(denial("", &from, at)).is_some());
            }
            if minute % 10 == 9 {
                let summaries = ledger.summaries(0, at);
                rows += summaries.len();
                for entry in summaries {
                    let count = entry.detail.split(' ').next().unwrap();
                    told += count.parse::<u64>().unwrap();
                }
                assert!(ledger.callers.len() <= CALLERS + 1);
            }
        }
        assert!(rows <= 1_000 + 14_400 + 144 * 21, "{rows} rows");
        let summaries = 144 * 21;
        assert!(told + rows as u64 >= sent && told + rows as u64 <= sent + summaries);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_away() {
        let mut ledger = Ledger::new(100_000_000);
        let written =
            (0..100).filter_map(|n| ledger.take(denial("", "a", 100_000_000 - n * 60_000)));
        assert_eq!(written.count(), 10);
    }
}
