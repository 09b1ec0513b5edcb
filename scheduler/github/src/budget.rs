//! Token buckets and the hourly budget. Pure: time is an argument, in milliseconds.

use scheduler_core::model::UtcMillis;

/// A bucket of whole tokens refilled evenly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    capacity: u64,
    per_minute: u64,
    /// Tokens times 60,000, so that a refill is exact.
    level: u64,
    at: UtcMillis,
}

const UNIT: u64 = 60_000;

impl Bucket {
    pub(crate) fn full(capacity: u64, per_minute: u64, now: UtcMillis) -> Self {
        Self {
            capacity,
            per_minute,
            level: capacity * UNIT,
            at: now,
        }
    }

    fn refill(&mut self, now: UtcMillis) {
        // A clock that stepped back refills nothing and is taken as it is.
        let passed = now.saturating_sub(self.at);
        self.at = now;
        self.level = self
            .level
            .saturating_add(passed.saturating_mul(self.per_minute))
            .min(self.capacity * UNIT);
    }

    pub(crate) fn available(&mut self, now: UtcMillis) -> u64 {
        self.refill(now);
        self.level / UNIT
    }

    /// Takes one token, or says when the next is there.
    pub(crate) fn take(&mut self, now: UtcMillis) -> Result<(), UtcMillis> {
        self.refill(now);
        if self.level >= UNIT {
            self.level -= UNIT;
            Ok(())
        } else {
            Err(now + (UNIT - self.level).div_ceil(self.per_minute.max(1)))
        }
    }
}

/// Just-in-time registrations of one credential: 100 at once, 120 a minute.
pub(crate) fn registrations(now: UtcMillis) -> Bucket {
    Bucket::full(100, 120, now)
}

/// Reads of the sweep: 600 points a minute, a GET is one; a few at once.
pub(crate) fn reads(now: UtcMillis) -> Bucket {
    Bucket::full(40, 600, now)
}

/// A raise is told at most this often, unless little is left.
const RAISE_EVERY_MS: u64 = 10_000;

/// What the core is told of a bucket that moves all the time: never more than
/// there is, in steps, so that not every registration is a fact to be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    registrations: Option<u32>,
    at: UtcMillis,
}

impl Told {
    /// The number to tell now; the same as before when nothing needs to be said.
    pub(crate) fn next(&mut self, now: UtcMillis, truth: u32) -> u32 {
        let stepped = if truth < 20 {
            truth
        } else {
            truth - truth % 10
        };
        let told = match self.registrations {
            Some(before) if before <= truth => {
                let waited = now.saturating_sub(self.at) >= RAISE_EVERY_MS;
                if stepped > before && (before < 50 || waited) {
                    stepped
                } else {
                    before
                }
            }
            _ => stepped,
        };
        if self.registrations != Some(told) {
            *self = Self {
                registrations: Some(told),
                at: now,
            };
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_steady_trickle_of_registrations_is_not_told_one_by_one() {
        let mut told = Told::default();
        let mut bucket = registrations(0);
        let mut words = Vec::new();
        for second in 0..120 {
            let now = second * 1_000;
            bucket.take(now).unwrap();
            let truth = u32::try_from(bucket.available(now)).unwrap();
            words.push(told.next(now, truth));
        }
        words.dedup();
        assert_eq!(words, [90], "99 or 100 of 100 all the time");
        assert_eq!(told.next(200_000, 100), 100);
    }

    proptest! {
        #[test]
        fn never_more_is_told_than_there_is(truths in proptest::collection::vec((0_u64..3_000, 0_u32..101), 1..200)) {
            let mut told = Told::default();
            let mut now = 0;
            for (step, truth) in truths {
                now += step;
                let word = told.next(now, truth);
                prop_assert!(word <= truth);
                prop_assert!(word > 0 || truth == 0, "work would stand still");
            }
        }
    }

    #[test]
    fn a_burst_empties_the_bucket_and_half_a_second_brings_one_back() {
        let mut bucket = registrations(1_000);
        for _ in 0..100 {
            bucket.take(1_000).unwrap();
        }
        assert_eq!(bucket.take(1_000), Err(1_500));
        assert_eq!(bucket.take(1_499), Err(1_500));
        assert_eq!(bucket.take(1_500), Ok(()));
        assert_eq!(bucket.available(61_500), 100);
    }

    #[test]
    fn a_clock_step_back_neither_refills_nor_blocks_for_long() {
        let mut bucket = registrations(10_000_000);
        while bucket.take(10_000_000).is_ok() {}
        assert_eq!(bucket.take(1_000), Err(1_500));
        assert_eq!(bucket.available(2_000), 2);
    }

    proptest! {
        /// Whatever the pattern of calls, no window gets more than capacity plus refill.
        #[test]
        fn never_more_than_capacity_plus_refill(
            steps in proptest::collection::vec(0_u64..5_000, 1..400)
        ) {
            let mut bucket = registrations(0);
            let (mut now, mut taken) = (0, 0_u64);
            for step in steps {
                now += step;
                let before = bucket.available(now);
                if bucket.take(now).is_ok() {
                    taken += 1;
                    prop_assert!(before >= 1);
                } else {
                    prop_assert_eq!(before, 0);
                }
                prop_assert!(taken <= 100 + now * 120 / 60_000);
            }
        }

        /// The time it names is the earliest at which a token is there.
        #[test]
        fn the_named_time_is_exact(drain in 1_u64..200, offset in 0_u64..10_000) {
            let mut bucket = reads(offset);
            for _ in 0..drain {
                if let Err(at) = bucket.take(offset) {
                    prop_assert!(at > offset);
                    prop_assert!(bucket.clone().take(at - 1).is_err());
                    prop_assert!(bucket.clone().take(at).is_ok());
                }
            }
        }
    }
}
