//! What one slot was refused, counted within bounds.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use agent_core::denied::{Denied, Destination};

use agent_core::domains::Refusal;

/// Most different refusals kept of one slot; later ones are only in the total.
const KEPT: usize = 512;
const MAX_NAME: usize = 253;

#[derive(Debug, Default)]
struct Counts {
    total: u64,
    by: BTreeMap<(String, &'static str, u16, &'static str), u64>,
    more: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Counts>);

impl Ledger {
    pub(crate) fn refused(&self, host: &str, protocol: &'static str, port: u16, why: Refusal) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total += 1;
        // Whatever a job wrote there: only what a name may hold is kept.
        let mut host: String = host.chars().filter(char::is_ascii_graphic).collect();
        host.truncate(MAX_NAME);
        let key = (host, protocol, port, why.word());
        if let Some(count) = counts.by.get_mut(&key) {
            *count += 1;
        } else if counts.by.len() < KEPT {
            counts.by.insert(key, 1);
        } else {
            counts.more = true;
        }
    }

    pub(crate) fn denied(&self) -> Denied {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = counts.by.iter().map(|(key, count)| Destination {
            destination: key.0.clone(),
            protocol: key.1.into(),
            port: key.2,
            count: *count,
            reason: key.3.into(),
        });
        Denied {
            total: counts.total,
            destinations: listed.collect(),
            more: counts.more,
        }
        .and(Denied::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_name_and_bounded() {
        let ledger = Ledger::default();
        for _ in 0..3 {
            ledger.refused("evil.test\u{1b}", "connect", 443, Refusal::NotListed);
        }
        for n in 0..2_000 {
            ledger.refused(&format!("n{n}.test"), "http", 80, Refusal::NotListed);
        }
        let denied = ledger.denied();
        assert_eq!((denied.total, denied.more), (2_003, true));
        assert_eq!(denied.destinations.len(), agent_core::denied::DESTINATIONS);
        let first = &denied.destinations[0];
        assert_eq!(
            (
                first.destination.as_str(),
                first.count,
                first.reason.as_str()
            ),
            ("evil.test", 3, "not_listed")
        );
        assert!(ledger.0.lock().unwrap().by.len() <= KEPT);
    }
}
