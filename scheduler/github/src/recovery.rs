//! Which failed deliveries are asked for again. Pure: time is an argument.
//!
//! GitHub redelivers nothing by itself, but keeps each delivery for three days and
//! sends it again when asked. The sweep finds what was lost in any case; this only
//! makes it sooner, so it is bounded and never insists.

use std::collections::BTreeMap;

use scheduler_core::model::UtcMillis;

const MINUTE_MS: u64 = 60_000;
/// The first look goes back this far: a queued job lives no longer.
const LOOK_BACK_MS: u64 = 24 * 60 * MINUTE_MS;
/// Later looks overlap by this much, because attempts are listed late.
const OVERLAP_MS: u64 = 2 * MINUTE_MS;
/// An event that failed so often is given up; the sweep knows better.
const MOST_TRIES: u32 = 3;
/// Redeliveries asked for in one look.
const MOST_AT_ONCE: usize = 30;
/// Events remembered while their outcome is open.
const MOST_TRIED: usize = 5_000;

/// Events the receiver understands; others are nobody's loss.
const EVENTS: [&str; 6] = [
    "workflow_job",
    "workflow_run",
    "installation",
    "installation_repositories",
    "repository",
    "meta",
];

/// One attempt of GitHub to deliver an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) id: u64,
    /// The same for every attempt of one event.
    pub(crate) guid: String,
    pub(crate) at: UtcMillis,
    pub(crate) good: bool,
    pub(crate) event: String,
    pub(crate) repository: Option<u64>,
}

#[derive(Debug)]
struct Tried {
    times: u32,
    first_failure: UtcMillis,
    last: UtcMillis,
}

/// What was asked for of one hook.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    tried: BTreeMap<String, Tried>,
    /// Start of the last look that saw the whole list.
    looked: Option<UtcMillis>,
}

/// What a look at the list found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// To be asked for again, oldest first: attempt and its event.
    pub(crate) again: Vec<Attempt>,
    /// Repositories of which something was not told, this time or for good.
    pub(crate) doubtful: Vec<u64>,
    /// Events that failed too often.
    pub(crate) given_up: usize,
}

impl Recovery {
    /// How far back the list must be read.
    pub(crate) fn since(&self, now: UtcMillis) -> UtcMillis {
        let horizon = now.saturating_sub(LOOK_BACK_MS);
        let Some(looked) = self.looked else {
            return horizon;
        };
        let open = self.tried.values().map(|tried| tried.first_failure).min();
        open.map_or(looked, |open| open.min(looked))
            .saturating_sub(OVERLAP_MS)
            .max(horizon)
    }

    /// Something that was asked for has not come yet.
    pub(crate) fn is_open(&self) -> bool {
        self.tried.values().any(|tried| tried.times < MOST_TRIES)
    }

    /// Judges the attempts since [`Self::since`]; `whole`: the list was read that far.
    pub(crate) fn look(
        &mut self,
        attempts: &[Attempt],
        whole: bool,
        between: u64,
        now: UtcMillis,
    ) -> Found {
        let mut events: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
        for attempt in attempts {
            events.entry(&attempt.guid).or_default().push(attempt);
        }
        let mut found = Found::default();
        let mut failed = Vec::new();
        // The receiver answers when one of those asked for before came through.
        let (mut came, mut asked) = (false, false);
        for (guid, attempts) in &events {
            if attempts.iter().any(|attempt| attempt.good) {
                came |= self.tried.remove(*guid).is_some();
                continue;
            }
            let Some(last) = attempts
                .iter()
                .max_by_key(|attempt| (attempt.at, attempt.id))
            else {
                continue;
            };
            if !EVENTS.contains(&last.event.as_str()) {
                continue;
            }
            let first = attempts.iter().map(|attempt| attempt.at).min();
            match self.tried.get(*guid) {
                Some(tried) if tried.times >= MOST_TRIES => {
                    found.given_up += 1;
                    continue;
                }
                Some(tried) if now.saturating_sub(tried.last) < between => {
                    asked = true;
                    continue;
                }
                Some(_) => asked = true,
                None => found.doubtful.extend(last.repository),
            }
            failed.push((first.unwrap_or(last.at), *last));
        }
        failed.sort_by_key(|(first, last)| (*first, last.id));
        // Nobody answered the last ones: one is enough to see whether that has changed.
        let most = if asked && !came { 1 } else { MOST_AT_ONCE };
        for (first, last) in failed.into_iter().take(most) {
            if self.tried.len() >= MOST_TRIED && !self.tried.contains_key(&last.guid) {
                break;
            }
            let tried = self.tried.entry(last.guid.clone()).or_insert(Tried {
                times: 0,
                first_failure: first,
                last: now,
            });
            tried.times += 1;
            tried.last = now;
            found.again.push(last.clone());
        }
        if whole {
            self.looked = Some(now);
        }
        self.forget(now);
        found.doubtful.sort_unstable();
        found.doubtful.dedup();
        found
    }

    /// GitHub does not send this one again.
    pub(crate) fn refused(&mut self, guid: &str) {
        if let Some(tried) = self.tried.get_mut(guid) {
            tried.times = MOST_TRIES;
        }
    }

    fn forget(&mut self, now: UtcMillis) {
        let horizon = now.saturating_sub(LOOK_BACK_MS);
        self.tried.retain(|_, tried| tried.first_failure >= horizon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UtcMillis = 100 * 60 * MINUTE_MS;
    const BETWEEN: u64 = 4 * MINUTE_MS;

    fn attempt(id: u64, guid: &str, ago: u64, good: bool) -> Attempt {
        Attempt {
            id,
            guid: guid.into(),
            at: NOW - ago * MINUTE_MS,
            good,
            event: "workflow_job".into(),
            repository: Some(id % 2),
        }
    }

    fn ids(found: &Found) -> Vec<u64> {
        found.again.iter().map(|attempt| attempt.id).collect()
    }

    #[test]
    fn an_event_is_asked_for_when_no_attempt_of_it_was_good() {
        let mut other = attempt(9, "other", 1, false);
        other.event = "push".into();
        let attempts = [
            attempt(8, "b", 1, false),
            attempt(7, "a", 2, true),
            attempt(6, "b", 3, false),
            attempt(5, "c", 4, false),
            attempt(4, "a", 5, false),
            other,
        ];
        let mut recovery = Recovery::default();
        assert_eq!(recovery.since(NOW), NOW - LOOK_BACK_MS);
        let found = recovery.look(&attempts, true, BETWEEN, NOW);
        assert_eq!(
            ids(&found),
            [5, 8],
            "oldest first, the latest attempt of each"
        );
        assert_eq!(found.doubtful, [0, 1]);
        // Asked a moment ago: its outcome is not there yet.
        let found = recovery.look(&attempts, true, BETWEEN, NOW + MINUTE_MS);
        assert_eq!(ids(&found), [0_u64; 0]);
    }

    #[test]
    fn while_nobody_answers_one_is_asked_for_and_after_three_times_given_up() {
        let mut recovery = Recovery::default();
        let mut attempts: Vec<Attempt> = (0..100)
            .map(|n| attempt(n, &format!("g{n:03}"), 60, false))
            .collect();
        let sizes: Vec<usize> = (0..5)
            .map(|look| {
                let now = NOW + look * 5 * MINUTE_MS;
                recovery.look(&attempts, true, BETWEEN, now).again.len()
            })
            .collect();
        assert_eq!(sizes, [MOST_AT_ONCE, 1, 1, 1, 1]);
        let later = NOW + 30 * MINUTE_MS;
        assert!(
            recovery.since(later) <= NOW - 60 * MINUTE_MS,
            "what is open stays in view"
        );
        // One came through: the rest follows at full pace.
        attempts.push(attempt(1_000, "g005", 0, true));
        let found = recovery.look(&attempts, true, BETWEEN, later);
        assert_eq!(found.again.len(), MOST_AT_ONCE);
        assert!(found.given_up > 0, "the first one failed three times");
        recovery.refused("g050");
        let again = recovery.look(&attempts, true, BETWEEN, later + 10 * MINUTE_MS);
        assert!(again.again.iter().all(|attempt| attempt.guid != "g050"));
    }

    #[test]
    fn a_list_that_was_not_read_to_its_end_is_read_as_far_again() {
        let mut recovery = Recovery::default();
        recovery.look(&[], false, BETWEEN, NOW);
        assert_eq!(recovery.since(NOW), NOW - LOOK_BACK_MS);
        recovery.look(&[], true, BETWEEN, NOW);
        assert_eq!(recovery.since(NOW + MINUTE_MS), NOW - OVERLAP_MS);
    }

    proptest! {
        /// No pattern of outcomes asks more than three times for one event, or for more than the bound at once.
        #[test]
        fn asking_is_bounded(
            looks in proptest::collection::vec(proptest::collection::vec((0_u64..40, any::<bool>()), 0..80), 1..12)
        ) {
            let mut recovery = Recovery::default();
            let mut asked: BTreeMap<String, u32> = BTreeMap::new();
            let mut now = NOW;
            for look in looks {
                let attempts: Vec<Attempt> = look
                    .iter()
                    .zip(0..)
                    .map(|((guid, good), id)| attempt(id, &format!("g{guid}"), 10, *good && guid % 3 == 0))
                    .collect();
                now += 5 * MINUTE_MS;
                let found = recovery.look(&attempts, true, BETWEEN, now);
                prop_assert!(found.again.len() <= MOST_AT_ONCE);
                for attempt in found.again {
                    // A good attempt ends the count: a later failure is a new story.
                    let times = asked.entry(attempt.guid).or_default();
                    *times += 1;
                }
                for attempt in attempts.iter().filter(|attempt| attempt.good) {
                    asked.remove(&attempt.guid);
                }
                prop_assert!(asked.values().all(|times| *times <= MOST_TRIES));
            }
        }
    }
}
