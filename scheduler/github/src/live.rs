//! Runs that still have jobs to come, so that their end is noticed although
//! GitHub's lists only show what is queued or running. Pure.

use std::collections::{BTreeMap, BTreeSet};

use scheduler_core::{
    input::JobSeen,
    model::{Conclusion, JobId, JobPhase, UtcMillis},
};

/// Jobs tracked at most; more are found by the lists alone.
const MOST_JOBS: usize = 100_000;
/// A read that says "gone" counts only when repeated this much later.
const CONFIRM_AFTER_MS: u64 = 60_000;

#[derive(Debug, Default)]
pub(crate) struct Live {
    runs: BTreeMap<u64, LiveRun>,
    jobs: usize,
}

#[derive(Debug, Default)]
struct LiveRun {
    repository: u64,
    jobs: BTreeMap<JobId, JobSeen>,
    absent: BTreeMap<JobId, UtcMillis>,
}

impl Live {
    /// Takes a sighting in. True when the job was not known before.
    pub(crate) fn note(&mut self, seen: &JobSeen) -> bool {
        if seen.phase == JobPhase::Completed {
            return self.end(seen.run_id, seen.id);
        }
        let known = self
            .runs
            .get(&seen.run_id)
            .is_some_and(|run| run.jobs.contains_key(&seen.id));
        if !known && self.jobs >= MOST_JOBS {
            return true;
        }
        let run = self.runs.entry(seen.run_id).or_default();
        run.repository = seen.repository.id;
        run.absent.remove(&seen.id);
        match run.jobs.get_mut(&seen.id) {
            // A later word never goes down.
            Some(known) if known.phase > seen.phase => {}
            Some(known) => *known = seen.clone(),
            None => {
                self.jobs += 1;
                run.jobs.insert(seen.id, seen.clone());
            }
        }
        !known
    }

    /// Forgets a job. True when it was not known.
    fn end(&mut self, run_id: u64, job: JobId) -> bool {
        let Some(run) = self.runs.get_mut(&run_id) else {
            return true;
        };
        let known = run.jobs.remove(&job).is_some();
        run.absent.remove(&job);
        if known {
            self.jobs -= 1;
        }
        if run.jobs.is_empty() {
            self.runs.remove(&run_id);
        }
        !known
    }

    pub(crate) fn forget_repository(&mut self, repository: u64) {
        self.runs.retain(|_, run| run.repository != repository);
        self.jobs = self.runs.values().map(|run| run.jobs.len()).sum();
    }

    pub(crate) fn phase(&self, run_id: u64, job: JobId) -> Option<JobPhase> {
        Some(self.runs.get(&run_id)?.jobs.get(&job)?.phase)
    }

    pub(crate) fn has_run(&self, run_id: u64) -> bool {
        self.runs.contains_key(&run_id)
    }

    pub(crate) fn has_repository(&self, repository: u64) -> bool {
        self.runs.values().any(|run| run.repository == repository)
    }

    /// Tracked runs of a repository.
    pub(crate) fn runs_of(&self, repository: u64) -> impl Iterator<Item = u64> {
        self.runs
            .iter()
            .filter(move |(_, run)| run.repository == repository)
            .map(|(id, _)| *id)
    }

    /// All tracked jobs of the run wait for an approval.
    pub(crate) fn only_waits(&self, run_id: u64) -> bool {
        let run = self.runs.get(&run_id);
        run.is_some_and(|run| run.jobs.values().all(|job| job.phase == JobPhase::Waiting))
    }

    /// Tracked runs of a repository that its lists did not show.
    pub(crate) fn unlisted(&self, repository: u64, listed: &BTreeSet<u64>) -> Vec<u64> {
        self.runs
            .iter()
            .filter(|(id, run)| run.repository == repository && !listed.contains(id))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Tracked jobs of a run that an answer about the run did not name.
    pub(crate) fn unnamed(&self, run_id: u64, named: &BTreeSet<JobId>) -> Vec<JobId> {
        self.runs
            .get(&run_id)
            .into_iter()
            .flat_map(|run| run.jobs.keys())
            .filter(|job| !named.contains(job))
            .copied()
            .collect()
    }

    /// GitHub answered 404 for this job. One stale read ends nothing: only a
    /// second one a minute later does, and then the job's end is returned.
    pub(crate) fn absent(&mut self, now: UtcMillis, run_id: u64, job: JobId) -> Option<JobSeen> {
        let run = self.runs.get_mut(&run_id)?;
        if !run.jobs.contains_key(&job) {
            return None;
        }
        let first = *run.absent.entry(job).or_insert(now);
        if now.saturating_sub(first) < CONFIRM_AFTER_MS {
            return None;
        }
        let mut seen = run.jobs.get(&job)?.clone();
        seen.phase = JobPhase::Completed;
        seen.conclusion = Some(Conclusion::Other("deleted".to_owned()));
        seen.completed_at = Some(now);
        seen.traceparent = None;
        self.end(run_id, job);
        Some(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use scheduler_core::model::{CredentialName, Origin, Repository, Scope};

    fn seen(run_id: u64, id: u64, phase: JobPhase) -> JobSeen {
        JobSeen {
            id: JobId(id),
            run_id,
            attempt: 1,
            repository: Repository {
                id: 5,
                owner: "o".into(),
                name: "r".into(),
                private: None,
            },
            scope: Scope::Organization { login: "o".into() },
            credential: CredentialName::new("t"),
            name: String::new(),
            workflow: String::new(),
            labels: vec![],
            phase,
            conclusion: None,
            runner_name: None,
            runner_id: None,
            origin: Origin::default(),
            created_at: 0,
            started_at: None,
            completed_at: None,
            html_url: String::new(),
            traceparent: None,
        }
    }

    #[test]
    fn one_stale_absence_ends_nothing_and_a_confirmed_one_does() {
        let mut live = Live::default();
        live.note(&seen(1, 10, JobPhase::Queued));
        assert_eq!(live.absent(0, 1, JobId(10)), None);
        assert_eq!(live.absent(59_999, 1, JobId(10)), None);
        live.note(&seen(1, 10, JobPhase::Queued));
        assert_eq!(
            live.absent(60_000, 1, JobId(10)),
            None,
            "it was seen in between"
        );
        let end = live.absent(120_000, 1, JobId(10)).unwrap();
        assert_eq!(end.phase, JobPhase::Completed);
        assert!(live.unlisted(5, &BTreeSet::new()).is_empty());
        assert_eq!(live.absent(200_000, 1, JobId(10)), None);
    }

    #[test]
    fn unlisted_runs_and_unnamed_jobs_are_asked_about() {
        let mut live = Live::default();
        live.note(&seen(1, 10, JobPhase::Queued));
        live.note(&seen(1, 11, JobPhase::InProgress));
        live.note(&seen(2, 20, JobPhase::Queued));
        assert_eq!(live.unlisted(5, &BTreeSet::from([2])), [1]);
        assert_eq!(live.unlisted(6, &BTreeSet::new()), [0_u64; 0]);
        assert_eq!(live.unnamed(1, &BTreeSet::from([JobId(11)])), [JobId(10)]);
        live.forget_repository(5);
        assert_eq!(live.jobs, 0);
    }

    proptest! {
        /// In any order of sightings a completed job is not tracked, and a phase never goes down.
        #[test]
        fn merging_is_monotonic(events in proptest::collection::vec((0_u64..3, 0_u64..4, 0_u8..4), 0..200)) {
            let mut live = Live::default();
            for (run, job, phase) in events {
                let phase = [JobPhase::Waiting, JobPhase::Queued, JobPhase::InProgress, JobPhase::Completed][usize::from(phase)];
                let before = live.phase(run, JobId(job));
                live.note(&seen(run, job, phase));
                let after = live.phase(run, JobId(job));
                match phase {
                    JobPhase::Completed => prop_assert_eq!(after, None),
                    _ => prop_assert_eq!(after, Some(before.map_or(phase, |before| before.max(phase)))),
                }
                let counted: usize = live.runs.values().map(|run| run.jobs.len()).sum();
                prop_assert_eq!(live.jobs, counted);
                prop_assert!(live.runs.values().all(|run| !run.jobs.is_empty()));
            }
        }
    }
}
