//! When to sweep next, and whether webhooks can be trusted. Pure: time is an argument.

use std::time::Duration;

use scheduler_core::model::UtcMillis;

/// A proof older than this is none.
const PROOF_MS: u64 = 24 * 3_600_000;
/// After a miss webhooks stay unproven this long.
const DOUBT_MS: u64 = 10 * 60_000;
/// Part of the hour's calls the sweep leaves to registrations and to people.
const RESERVED_SHARE: u64 = 5;
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Whether deliveries arrive, from what arrives and what the sweep found missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    delivered: Option<UtcMillis>,
    missed: Option<UtcMillis>,
}

impl Health {
    /// A delivery was verified.
    pub(crate) fn delivered(&mut self, now: UtcMillis) {
        self.delivered = Some(now);
    }

    /// The sweep found a job that a webhook should have told.
    pub(crate) fn missed(&mut self, now: UtcMillis) {
        self.missed = Some(now);
    }

    pub(crate) fn healthy(&self, now: UtcMillis) -> bool {
        let proven = self
            .delivered
            .is_some_and(|at| now.saturating_sub(at) < PROOF_MS);
        let doubted = self.missed.is_some_and(|missed| {
            now.saturating_sub(missed) < DOUBT_MS || self.delivered.is_none_or(|at| at <= missed)
        });
        proven && !doubted
    }

    pub(crate) fn last_delivery(&self) -> Option<UtcMillis> {
        self.delivered
    }
}

/// What the next sweep will cost and what may be spent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    pub(crate) poll_interval: Duration,
    pub(crate) healthy: bool,
    /// Calls of the last sweep that counted (not 304).
    pub(crate) counted_calls: u64,
    /// It was the first: it had no validators yet, and the next will cost less.
    pub(crate) cold: bool,
    /// Limit and rest of the hour and milliseconds to its reset, when known.
    pub(crate) hour: Option<(u64, u64, u64)>,
}

/// From the start of a sweep to the start of the next.
pub(crate) fn interval(outlook: &Outlook) -> Duration {
    let base = outlook.poll_interval * if outlook.healthy { 2 } else { 1 };
    let Some((limit, remaining, reset_in)) = outlook.hour else {
        return base;
    };
    if outlook.counted_calls == 0 {
        return base;
    }
    let spendable = remaining.saturating_sub(limit / RESERVED_SHARE);
    if spendable < outlook.counted_calls {
        // Not even one more: after the reset, with the hour's calls fresh again.
        return base.max(Duration::from_millis(reset_in + 1_000).min(LONGEST));
    }
    let sweeps = spendable / outlook.counted_calls;
    if outlook.cold && sweeps > 1 {
        return base;
    }
    base.max(Duration::from_millis(reset_in / sweeps).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn outlook(healthy: bool, counted_calls: u64, hour: Option<(u64, u64, u64)>) -> Outlook {
        Outlook {
            poll_interval: MINUTE,
            healthy,
            counted_calls,
            cold: false,
            hour,
        }
    }

    #[test]
    fn sixty_seconds_and_twice_that_with_healthy_webhooks() {
        assert_eq!(interval(&outlook(false, 40, None)), MINUTE);
        assert_eq!(interval(&outlook(true, 40, None)), MINUTE * 2);
        assert_eq!(
            interval(&outlook(false, 0, Some((5000, 1, 3_600_000)))),
            MINUTE
        );
    }

    #[test]
    fn a_cold_sweep_of_a_hundred_repositories_fits_the_hour() {
        let every = interval(&outlook(false, 200, Some((5000, 5000, 3_600_000))));
        assert!(every >= Duration::from_secs(144), "{every:?}");
        assert!(every <= Duration::from_secs(200), "{every:?}");
        let spent = interval(&outlook(false, 200, Some((5000, 1000, 300_000))));
        assert_eq!(
            spent,
            Duration::from_secs(301),
            "the reserve is not touched"
        );
    }

    #[test]
    fn the_price_of_the_first_sweep_does_not_delay_the_second() {
        let first = |hour| {
            interval(&Outlook {
                cold: true,
                ..outlook(false, 90, Some(hour))
            })
        };
        assert_eq!(first((5000, 4900, 3_600_000)), MINUTE);
        assert_eq!(
            first((5000, 1100, 3_600_000)),
            LONGEST,
            "one more is all that is left"
        );
    }

    #[test]
    fn webhooks_are_healthy_once_proven_and_until_missed() {
        let mut health = Health::default();
        assert!(!health.healthy(0));
        health.delivered(1_000);
        assert!(health.healthy(2_000));
        health.missed(3_000);
        assert!(!health.healthy(3_001));
        health.delivered(4_000);
        assert!(!health.healthy(5_000), "doubt lasts a while");
        assert!(health.healthy(3_000 + DOUBT_MS));
        assert!(!health.healthy(4_000 + PROOF_MS));
    }

    proptest! {
        /// Spending at the chosen pace until the reset leaves the reserve untouched.
        #[test]
        fn the_hour_is_never_overspent(
            calls in 1_u64..3_000, limit in 60_u64..15_000, used in 0_u64..15_000,
            reset_in in 1_u64..3_600_000,
        ) {
            let remaining = limit.saturating_sub(used);
            let every = interval(&outlook(false, calls, Some((limit, remaining, reset_in))));
            prop_assert!(every >= MINUTE && every <= LONGEST.max(MINUTE));
            // Bounded by the longest interval: such a credential is told as rate limited instead.
            if every < LONGEST {
                let sweeps = reset_in / u64::try_from(every.as_millis()).unwrap();
                prop_assert!(sweeps * calls <= remaining.saturating_sub(limit / RESERVED_SHARE) + calls);
            }
        }
    }
}
