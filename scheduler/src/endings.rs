//! Counts how jobs of our runners ended, each once, from facts in their order.

use std::collections::BTreeSet;

use scheduler_core::{
    Fleet,
    ending::{self, Ending, RunnerEnd},
    fact::Fact,
    model::{JobId, JobPhase},
};

use crate::metrics::{EndingLabel, Metrics};

/// Jobs whose runner was lost and of which GitHub has not said the end yet.
const KEPT: usize = 10_000;

/// What has been counted before GitHub's word came.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    counted: BTreeSet<JobId>,
}

impl Endings {
    /// Takes a fact before it is applied.
    pub(crate) fn see(&mut self, metrics: &Metrics, fleet: &Fleet, fact: &Fact) {
        let Some((job, ending)) = self.of(fleet, fact) else {
            return;
        };
        if fleet
            .job(job)
            .is_some_and(|job| job.phase() != JobPhase::Completed)
            && !matches!(fact, Fact::JobPhaseChanged { .. })
        {
            if self.counted.len() >= KEPT {
                self.counted.pop_first();
            }
            self.counted.insert(job);
        }
        let label = EndingLabel {
            kind: ending.kind.as_str(),
            reason: ending.reason,
        };
        metrics.job_endings.get_or_create(&label).inc();
    }

    fn of(&mut self, fleet: &Fleet, fact: &Fact) -> Option<(JobId, Ending)> {
        match fact {
            Fact::RunnerRetired {
                runner, exit, why, ..
            } => {
                let known = fleet.runner(runner)?;
                let job = fleet.job(known.job?)?;
                let told = known.stopping.as_ref().map(|(why, _)| why.words());
                let end = RunnerEnd {
                    code: exit.as_ref().and_then(|exit| exit.code),
                    cause: exit.as_ref().map_or("", |exit| &exit.cause),
                    detail: "",
                    told_to_stop: told.as_deref(),
                    retired: why.word(),
                };
                let conclusion = job.seen.conclusion.as_ref().map(|c| c.word());
                Some((job.seen.id, ending::of(conclusion, Some(end))?))
            }
            Fact::JobPhaseChanged {
                job,
                phase: JobPhase::Completed,
                conclusion,
                ..
            } => {
                if self.counted.remove(job) {
                    return None;
                }
                let known = fleet.job(*job)?;
                let bound = known.bound.as_ref().filter(|bound| bound.ours)?;
                // While its runner lives, the runner's end is waited for.
                if fleet.runner(&bound.runner).is_some() {
                    return None;
                }
                let conclusion = conclusion.as_ref().map(|c| c.word());
                Some((*job, ending::of(conclusion, None)?))
            }
            _ => None,
        }
    }
}
