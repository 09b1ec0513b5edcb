//! Token buckets and the hourly budget. Pure: time is an argument, in milliseconds.

use std::collections::VecDeque;

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

/// So many and no more within any minute, whatever a bucket would allow.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    most: usize,
    /// When each was taken, oldest first; at most `most`.
    taken: VecDeque<UtcMillis>,
}

impl Window {
    pub(crate) fn of(most: usize) -> Self {
        Self {
            most,
            taken: VecDeque::with_capacity(most),
        }
    }

    pub(crate) fn available(&mut self, now: UtcMillis) -> u64 {
        // A clock that stepped back is taken as it is: nothing was taken in its future.
        self.taken
            .retain(|at| *at <= now && at.saturating_add(UNIT) > now);
        (self.most - self.taken.len()) as u64
    }

    /// When the next may be taken; `None`: now.
    pub(crate) fn next(&mut self, now: UtcMillis) -> Option<UtcMillis> {
        let full = self.available(now) == 0;
        let oldest = self.taken.front().filter(|_| full);
        oldest.map(|at| at.saturating_add(UNIT))
    }

    /// Takes one, or says when the next is there.
    pub(crate) fn take(&mut self, now: UtcMillis) -> Result<(), UtcMillis> {
        match self.next(now) {
            Some(until) => Err(until),
            None => {
                self.taken.push_back(now);
                Ok(())
            }
        }
    }
}

/// GitHub counts 5 points for each and allows 900 a minute (facts.md 2.4).
pub(crate) fn registrations_a_minute() -> Window {
    Window::of(175)
}

/// Just-in-time registrations of one credential: 100 at once, 120 a minute.
pub(crate) fn registrations(now: UtcMillis) -> Bucket {
    Bucket::full(100, 120, now)
}

/// Reads of the sweep: 600 points a minute, a GET is one; a few at once.
pub(crate) fn reads(now: UtcMillis) -> Bucket {
    Bucket::full(40, 600, now)
}

/// A small raise is told at most this often, unless little is left.
const RAISE_EVERY_MS: u64 = 10_000;
/// Less than this is little, and so many more are worth a word at once. More than may
/// be in flight: by those the core's count and this one differ for a moment.
const LITTLE: u32 = 10;

/// What the core still believes it may register, of a bucket that moves all the time.
///
/// The core counts down by itself with every registration made, so it is told again
/// before it runs dry: never more than there is, and in steps, so that not every
/// registration is a fact to be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    believed: Option<u32>,
    made: u64,
    at: UtcMillis,
}

impl Told {
    /// `truth` may be registered now, and `made` were in all: the number to tell, if
    /// anything needs to be said.
    pub(crate) fn next(&mut self, now: UtcMillis, truth: u32, made: u64) -> Option<u32> {
        let used = u32::try_from(made.saturating_sub(self.made)).unwrap_or(u32::MAX);
        self.made = made;
        self.believed = self.believed.map(|believed| believed.saturating_sub(used));
        let stepped = if truth < 2 * LITTLE {
            truth
        } else {
            truth - truth % LITTLE
        };
        let due = match self.believed {
            Some(believed) if believed <= truth => {
                let waited = now.saturating_sub(self.at) >= RAISE_EVERY_MS;
                let much = believed < LITTLE || stepped >= believed + LITTLE;
                stepped > believed && (much || waited)
            }
            _ => true,
        };
        due.then(|| {
            self.believed = Some(stepped);
            self.at = now;
            stepped
        })
    }

    /// What the core believes now.
    pub(crate) fn believed(&self) -> u32 {
        self.believed.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the core does it: set by a word, counted down by every registration.
    #[derive(Default)]
    struct Core {
        left: u32,
        words: u32,
    }

    impl Core {
        fn hear(&mut self, word: Option<u32>) {
            if let Some(word) = word {
                self.left = word;
                self.words += 1;
            }
        }
    }

    #[test]
    fn a_steady_trickle_never_runs_the_core_dry_and_is_not_told_one_by_one() {
        let (mut told, mut core) = (Told::default(), Core::default());
        let mut bucket = registrations(0);
        core.hear(told.next(0, 100, 0));
        for made in 1..=1_000_u64 {
            let now = made * 500;
            assert!(core.left > 0, "registration {made} waits");
            bucket.take(now).unwrap();
            core.left -= 1;
            let truth = u32::try_from(bucket.available(now)).unwrap();
            core.hear(told.next(now, truth, made));
        }
        assert!(core.words <= 150, "{} words", core.words);
    }

    proptest! {
        #[test]
        fn never_more_is_believed_than_there_is_and_nothing_only_when_there_is_nothing(
            truths in proptest::collection::vec((0_u64..3_000, 0_u32..101, 0_u32..12), 1..200)
        ) {
            let (mut told, mut core) = (Told::default(), Core::default());
            let (mut now, mut made) = (0, 0);
            for (step, truth, wanted) in truths {
                now += step;
                let used = wanted.min(core.left);
                core.left -= used;
                made += u64::from(used);
                core.hear(told.next(now, truth, made));
                prop_assert_eq!(told.believed(), core.left);
                prop_assert!(core.left <= truth);
                prop_assert!(core.left > 0 || truth == 0, "work would stand still");
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
    fn no_minute_has_more_registrations_than_github_allows() {
        let (mut bucket, mut window) = (registrations(0), registrations_a_minute());
        let mut taken: Vec<UtcMillis> = Vec::new();
        for now in (0..300_000).step_by(50) {
            if bucket.available(now) > 0 && window.take(now).is_ok() {
                bucket.take(now).unwrap();
                taken.push(now);
            }
        }
        let most = taken.iter().map(|from| {
            let within = |at: &&UtcMillis| (*from..from + 60_000).contains(*at);
            taken.iter().filter(within).count()
        });
        assert_eq!(most.max(), Some(175));
        assert!(taken.len() >= 600, "{} in five minutes", taken.len());
    }

    #[test]
    fn a_full_window_names_the_time_of_the_next() {
        let mut window = Window::of(2);
        assert_eq!((window.take(1_000), window.take(5_000)), (Ok(()), Ok(())));
        assert_eq!(window.take(60_999), Err(61_000));
        assert_eq!(window.take(61_000), Ok(()));
        assert_eq!(window.take(2_000), Ok(()), "a clock that stepped back");
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
