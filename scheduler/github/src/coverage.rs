//! What the sweep may leave unread while webhooks prove healthy. Pure: time is an argument.
//!
//! A repository whose deliveries arrive needs its lists only now and then, and a
//! run whose jobs were told needs them read only now and then: often enough that
//! a lost word is found, seldom enough that a job costs little more than its
//! registration. Whatever looks wrong is read at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use scheduler_core::model::UtcMillis;

/// Runs remembered at most; a run that is not remembered is read.
const MOST_RUNS: usize = 100_000;
/// Runs that no webhook spoiled are read all the same, so many a sweep, as a sample.
pub(crate) const SAMPLES: u32 = 3;

/// All waits, as multiples of the interval between two sweeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    /// A repository that spoke this lately is not listed.
    fresh: u64,
    /// But never unlisted for longer than this.
    unlisted: u64,
    /// A told run is read again after this ...
    reread: u64,
    /// ... and, as long as nothing new is found, after twice that and so on up to this.
    longest: u64,
    /// A webhook that is later than this is a lost one.
    pub(crate) patience: u64,
}

impl Waits {
    /// With the default of 60 s: 2, 8, 10 and 20 minutes, and 30 s.
    pub(crate) fn of(poll_interval: Duration) -> Self {
        let interval = u64::try_from(poll_interval.as_millis()).unwrap_or(u64::MAX / 1_000);
        Self {
            fresh: 2 * interval,
            unlisted: 8 * interval,
            reread: 10 * interval,
            longest: 20 * interval,
            patience: 30_000.min(interval / 2),
        }
    }
}

/// Which lists of a repository's runs a sweep reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lists {
    Nothing,
    Queued,
    QueuedAndRunning,
}

/// What the sweep knows of a repository besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// Runs of it are under way.
    pub(crate) live: bool,
    /// The lists know something about them that no webhook told (their origin).
    pub(crate) incomplete: bool,
    /// Every second sweep.
    pub(crate) turn: bool,
}

/// What the lists say of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Queued,
    Running,
    /// In no list although jobs of it are not over; `true`: all of them wait for an approval.
    Missing(bool),
}

#[derive(Debug, Default)]
struct Repository {
    told: Option<UtcMillis>,
    listed: Option<UtcMillis>,
    doubted: bool,
}

#[derive(Debug)]
struct Run {
    repository: u64,
    first: UtcMillis,
    told: Option<UtcMillis>,
    read: Option<UtcMillis>,
    /// A webhook said that a job of it runs or ran.
    moved: bool,
    wait: u64,
}

impl Run {
    fn last_word(&self) -> UtcMillis {
        self.told.max(self.read).unwrap_or(self.first)
    }
}

/// How far webhooks cover repositories and runs.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    repositories: BTreeMap<u64, Repository>,
    runs: BTreeMap<u64, Run>,
}

impl Coverage {
    /// A webhook told a job of this run; `moved`: it runs or is over.
    pub(crate) fn told(&mut self, repository: u64, run: u64, moved: bool, now: UtcMillis) {
        let known = self.repositories.entry(repository).or_default();
        known.told = known.told.max(Some(now));
        if let Some(run) = self.run(repository, run, now) {
            run.told = run.told.max(Some(now));
            run.moved |= moved;
        }
    }

    fn run(&mut self, repository: u64, run: u64, now: UtcMillis) -> Option<&mut Run> {
        if self.runs.len() >= MOST_RUNS && !self.runs.contains_key(&run) {
            return None;
        }
        Some(self.runs.entry(run).or_insert(Run {
            repository,
            first: now,
            told: None,
            read: None,
            moved: false,
            wait: 0,
        }))
    }

    /// Something about this repository was not told: all of it is read next time.
    pub(crate) fn doubt(&mut self, repository: u64) {
        self.repositories.entry(repository).or_default().doubted = true;
    }

    pub(crate) fn is_doubted(&self, repository: u64) -> bool {
        let known = self.repositories.get(&repository);
        known.is_some_and(|known| known.doubted)
    }

    /// What to list of a repository now, webhooks being healthy.
    pub(crate) fn lists(
        &self,
        repository: u64,
        standing: Standing,
        waits: &Waits,
        now: UtcMillis,
    ) -> Lists {
        let Some(known) = self.repositories.get(&repository) else {
            return Lists::QueuedAndRunning;
        };
        let within =
            |at: Option<UtcMillis>, wait| at.is_some_and(|at| now.saturating_sub(at) < wait);
        if known.doubted || standing.incomplete || !within(known.listed, waits.unlisted) {
            Lists::QueuedAndRunning
        } else if within(known.told, waits.fresh) {
            Lists::Nothing
        } else if standing.live || standing.turn {
            Lists::QueuedAndRunning
        } else {
            // Nothing of it runs as far as we know: what is new begins as queued.
            Lists::Queued
        }
    }

    /// Both lists were read to their end.
    pub(crate) fn listed(&mut self, repository: u64, now: UtcMillis) {
        let known = self.repositories.entry(repository).or_default();
        known.listed = Some(now);
        known.doubted = false;
    }

    /// Whether the jobs of a run must be read now, webhooks being healthy.
    pub(crate) fn must_read(
        &self,
        run: u64,
        shown: Shown,
        live: bool,
        waits: &Waits,
        now: UtcMillis,
    ) -> bool {
        let Some(known) = self.runs.get(&run) else {
            return true;
        };
        let silent = now.saturating_sub(known.last_word()) > waits.patience;
        let unread = known.read.is_none_or(|read| Some(read) < known.told);
        let checked = known.read.unwrap_or(known.first);
        let due = now.saturating_sub(checked) >= known.wait.max(waits.reread);
        due || match shown {
            // It began or went on without a word about it.
            Shown::Running if !known.moved || !live => silent && unread,
            // Its end, perhaps.
            Shown::Missing(false) => silent,
            _ => false,
        }
    }

    /// Never read so far and not only just told: good for a sample.
    pub(crate) fn is_unread(&self, run: u64, waits: &Waits, now: UtcMillis) -> bool {
        let known = self.runs.get(&run);
        known.is_some_and(|known| {
            known.read.is_none() && now.saturating_sub(known.last_word()) > waits.patience
        })
    }

    /// The jobs of a run were read; `news`: something that no webhook had told.
    pub(crate) fn read(
        &mut self,
        repository: u64,
        run: u64,
        news: bool,
        waits: &Waits,
        now: UtcMillis,
    ) {
        if let Some(run) = self.run(repository, run, now) {
            run.wait = if news || run.read.is_none() {
                waits.reread
            } else {
                (run.wait * 2).min(waits.longest)
            };
            run.read = Some(now);
        }
    }

    pub(crate) fn forget_repository(&mut self, repository: u64) {
        self.repositories.remove(&repository);
        self.runs.retain(|_, run| run.repository != repository);
    }

    /// Forgets repositories that are not watched any more, and runs nobody spoke of for long.
    pub(crate) fn tidy(&mut self, watched: &BTreeSet<u64>, waits: &Waits, now: UtcMillis) {
        self.repositories.retain(|id, _| watched.contains(id));
        let kept = 2 * waits.longest;
        self.runs
            .retain(|_, run| now.saturating_sub(run.last_word()) < kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: u64 = 60_000;

    fn waits() -> Waits {
        Waits::of(Duration::from_secs(60))
    }

    fn standing(live: bool, turn: bool) -> Standing {
        Standing {
            live,
            incomplete: false,
            turn,
        }
    }

    #[test]
    fn a_repository_that_speaks_is_listed_every_eight_minutes_only() {
        let mut coverage = Coverage::default();
        let lists =
            |coverage: &Coverage, now| coverage.lists(5, standing(true, true), &waits(), now);
        assert_eq!(lists(&coverage, 0), Lists::QueuedAndRunning, "never listed");
        coverage.listed(5, 0);
        let mut listed = Vec::new();
        for minute in 0..30 {
            let now = minute * MINUTE;
            coverage.told(5, 1, false, now);
            if minute % 2 == 0 && lists(&coverage, now) != Lists::Nothing {
                listed.push(minute);
                coverage.listed(5, now);
            }
        }
        assert_eq!(listed, [8, 16, 24]);
        assert_eq!(
            lists(&coverage, 29 * MINUTE + 2 * MINUTE),
            Lists::QueuedAndRunning,
            "silent for two minutes with runs under way"
        );
    }

    #[test]
    fn a_quiet_repository_is_asked_for_queued_runs_and_every_other_time_for_all() {
        let mut coverage = Coverage::default();
        coverage.listed(5, 0);
        let lists =
            |coverage: &Coverage, turn| coverage.lists(5, standing(false, turn), &waits(), MINUTE);
        assert_eq!(lists(&coverage, false), Lists::Queued);
        assert_eq!(lists(&coverage, true), Lists::QueuedAndRunning);
        coverage.told(5, 1, false, MINUTE);
        assert_eq!(lists(&coverage, true), Lists::Nothing);
        let incomplete = Standing {
            incomplete: true,
            ..standing(false, false)
        };
        assert_eq!(
            coverage.lists(5, incomplete, &waits(), MINUTE),
            Lists::QueuedAndRunning,
            "the list knows where a run comes from"
        );
        coverage.doubt(5);
        assert_eq!(lists(&coverage, false), Lists::QueuedAndRunning);
        coverage.listed(5, MINUTE);
        assert!(!coverage.is_doubted(5));
    }

    #[test]
    fn a_told_run_is_read_at_stretched_intervals_and_again_sooner_after_news() {
        let mut coverage = Coverage::default();
        let must =
            |coverage: &Coverage, now| coverage.must_read(1, Shown::Queued, true, &waits(), now);
        assert!(must(&coverage, 0), "no webhook told it");
        coverage.told(5, 1, false, 0);
        let mut reads = Vec::new();
        for minute in 0..100 {
            let now = minute * MINUTE;
            if must(&coverage, now) {
                reads.push(minute);
                coverage.read(5, 1, false, &waits(), now);
            }
        }
        assert_eq!(reads, [10, 20, 40, 60, 80], "10 minutes, then 20");
        coverage.read(5, 1, true, &waits(), 100 * MINUTE);
        assert!(!must(&coverage, 109 * MINUTE) && must(&coverage, 110 * MINUTE));
    }

    #[test]
    fn what_looks_wrong_is_read_at_once() {
        let mut coverage = Coverage::default();
        coverage.told(5, 1, false, 0);
        let must = |coverage: &Coverage, shown, live, now| {
            coverage.must_read(1, shown, live, &waits(), now)
        };
        // It runs, and no webhook said so: after half a minute that one is lost.
        assert!(!must(&coverage, Shown::Running, true, 30_000));
        assert!(must(&coverage, Shown::Running, true, 30_001));
        coverage.told(5, 1, true, 31_000);
        assert!(!must(&coverage, Shown::Running, true, 90_000));
        // Nothing of it is left, yet it runs: a job of it was not told.
        assert!(must(&coverage, Shown::Running, false, 90_000));
        coverage.read(5, 1, false, &waits(), 90_000);
        assert!(
            !must(&coverage, Shown::Running, false, 200_000),
            "once a word"
        );
        // It vanished from the lists: its end was not told.
        assert!(must(&coverage, Shown::Missing(false), true, 200_000));
        assert!(
            !must(&coverage, Shown::Missing(true), true, 200_000),
            "who waits for an approval stands in neither list"
        );
    }

    /// 450 s of 1,000 jobs in 50 repositories, every word told: what lists and reads cost.
    #[test]
    fn a_thousand_jobs_cost_little_more_than_their_registrations() {
        let mut coverage = Coverage::default();
        let (mut calls, mut told) = (0, 0);
        for repository in 0..50 {
            coverage.listed(repository, 0);
        }
        for second in 0..450_u64 {
            let now = second * 1_000;
            // Two jobs a second begin and end somewhere.
            for n in 0..2 {
                let job = second * 2 + n;
                coverage.told(job % 50, job, true, now);
                told += 1;
            }
            if second % 126 == 60 {
                for repository in 0..50 {
                    let lists = coverage.lists(repository, standing(true, true), &waits(), now);
                    calls += match lists {
                        Lists::Nothing => 0,
                        Lists::Queued => 1,
                        Lists::QueuedAndRunning => 2,
                    };
                    if lists == Lists::QueuedAndRunning {
                        coverage.listed(repository, now);
                        let runs = (0..1_000).filter(|job| job % 50 == repository);
                        calls += runs
                            .filter(|run| {
                                coverage.runs.contains_key(run)
                                    && coverage.must_read(*run, Shown::Queued, true, &waits(), now)
                            })
                            .count();
                    }
                }
            }
        }
        assert_eq!(told, 900);
        assert!(calls <= 150, "{calls} calls beside the registrations");
    }

    /// Ten idle minutes of 50 repositories with healthy webhooks.
    #[test]
    fn an_idle_repository_costs_less_than_a_call_a_minute() {
        let mut coverage = Coverage::default();
        for repository in 0..50 {
            coverage.listed(repository, 0);
        }
        let mut calls = 0;
        for sweep in 1..=30_u64 {
            let now = sweep * 120_000;
            for repository in 0..50 {
                let turn = (repository + sweep).is_multiple_of(2);
                match coverage.lists(repository, standing(false, turn), &waits(), now) {
                    Lists::Nothing => {}
                    Lists::Queued => calls += 1,
                    Lists::QueuedAndRunning => {
                        calls += 2;
                        coverage.listed(repository, now);
                    }
                }
            }
        }
        assert!(
            calls * 10 <= 50 * 60 * 8,
            "{calls} in an hour: at most 0.8 a minute"
        );
    }

    proptest! {
        /// Whatever was told: nothing stays unlisted or unread for longer than its bound.
        #[test]
        fn every_wait_is_bounded(
            words in proptest::collection::vec((0_u64..400_000, 0_u64..4, any::<bool>(), any::<bool>()), 1..80)
        ) {
            let (mut coverage, waits) = (Coverage::default(), waits());
            let mut now = 0;
            coverage.listed(5, now);
            let mut listed_at = now;
            for (step, run, moved, look) in words {
                now += step;
                coverage.told(5, run, moved, now);
                if look {
                    let lists = coverage.lists(5, standing(true, false), &waits, now);
                    if now - listed_at >= waits.unlisted {
                        prop_assert_eq!(lists, Lists::QueuedAndRunning);
                    }
                    if lists == Lists::QueuedAndRunning {
                        coverage.listed(5, now);
                        listed_at = now;
                    }
                    for run in 0..4 {
                        if coverage.must_read(run, Shown::Queued, true, &waits, now) {
                            coverage.read(5, run, false, &waits, now);
                        }
                    }
                }
                let runs = coverage.runs.values();
                for run in runs {
                    prop_assert!(run.wait <= waits.longest);
                }
                prop_assert!(coverage.must_read(9, Shown::Queued, true, &waits, now), "never told");
                let late = now + waits.longest;
                for run in coverage.runs.keys() {
                    prop_assert!(coverage.must_read(*run, Shown::Queued, true, &waits, late));
                }
            }
        }
    }
}
