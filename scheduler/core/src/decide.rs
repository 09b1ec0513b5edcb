//! Inputs in, facts out: jobs and answers. Node reports are in `reconcile`.

use std::sync::Arc;

use crate::{
    admission::{refusal, source},
    entropy::Entropy,
    explain::ReasonCode,
    fact::{Fact, StopReason},
    fleet::Fleet,
    input::{Deregistration, Input, JobSeen},
    model::{JobId, JobPhase, Now, Origin, RunnerName},
    spent::bounded_delay,
};

/// Origins of runs remembered before their jobs arrive.
const ORIGINS_KEPT: usize = 16_384;

impl Fleet {
    pub(crate) fn take(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        input: &Input,
        facts: &mut Vec<Fact>,
    ) {
        match input {
            Input::JobSeen(seen) => self.job_seen(now, seen, facts),
            Input::RepositoryGone { id, full_name } => self.emit(
                Fact::RepositoryGone {
                    id: *id,
                    full_name: full_name.clone(),
                },
                facts,
            ),
            Input::RunSeen { run_id, origin } => self.run_seen(now, *run_id, origin, facts),
            Input::NodeAttached(attached) => self.node_attached(now, attached, facts),
            Input::NodeReported(report) => self.node_reported(now, entropy, report, facts),
            Input::NodeLost { node, session } => self.node_lost(node, *session),
            Input::RegistrationReady { runner, github_id } => {
                self.registration_ready(now, runner, *github_id, facts);
            }
            Input::RegistrationFailed {
                runner,
                failure,
                detail,
            } => self.registration_failed(now, entropy, runner, failure, detail, facts),
            Input::Deregistered { runner, outcome } => {
                self.deregistered(now, entropy, runner, *outcome, facts);
            }
            Input::RunnersListed { scope, runners } => {
                self.runners_listed(now, scope, runners, facts);
            }
            Input::BudgetChanged {
                credential,
                scopes,
                registrations,
                limited_until,
            } => {
                let known = self.budgets.get(credential);
                let problem = known.and_then(|known| known.problem.clone());
                let same = known.is_some_and(|known| {
                    known.scopes == *scopes
                        && known.registrations == Some(*registrations)
                        && known.limited_until == *limited_until
                });
                if !same {
                    self.emit(
                        Fact::BudgetChanged {
                            credential: credential.clone(),
                            scopes: scopes.clone(),
                            registrations: *registrations,
                            limited_until: *limited_until,
                            problem,
                        },
                        facts,
                    );
                }
            }
            Input::NewsDelay(delay) => self.soft.news_delay_ms = bounded_delay(*delay),
            Input::RegistrationsLost { runners } => {
                for name in runners {
                    self.registration_lost(name);
                }
            }
            Input::Command(command) => self.command(now, command, facts),
            Input::Tick => {}
        }
    }

    fn job_seen(&mut self, now: Now, seen: &Arc<JobSeen>, facts: &mut Vec<Fact>) {
        if self.ended_ids.contains(&seen.id) {
            return;
        }
        let id = seen.id;
        match self.known_job(id).map(|job| &job.seen) {
            None => {
                // Skipped jobs come completed and empty; nothing follows from them.
                if seen.phase == JobPhase::Completed
                    && seen.labels.is_empty()
                    && seen.runner_name.is_none()
                {
                    return;
                }
                let mut job = Arc::clone(seen);
                if job.phase < JobPhase::InProgress && job.started_at.is_some() {
                    Arc::make_mut(&mut job).started_at = None;
                }
                self.fill_origin(&mut job);
                let waits = job.phase < JobPhase::InProgress;
                self.emit(Fact::JobLearnt { job, at: now.utc }, facts);
                if waits {
                    return;
                }
            }
            Some(known) if seen.attempt < known.attempt => return,
            Some(known) if seen.attempt > known.attempt => {
                let mut job = Arc::clone(seen);
                self.fill_origin(&mut job);
                self.emit(Fact::JobLearnt { job, at: now.utc }, facts);
            }
            Some(known) => {
                let origin = known.origin.clone();
                if let Some(fields) = learnt_fields(known, seen) {
                    let origin_learnt = fields.origin != origin;
                    self.emit(
                        Fact::JobLearnt {
                            job: Arc::new(fields),
                            at: now.utc,
                        },
                        facts,
                    );
                    if origin_learnt {
                        self.check_taken(now, id, facts);
                    }
                }
                let known = &self.jobs[&id].seen;
                let conclusion = seen.conclusion.clone().or_else(|| known.conclusion.clone());
                if seen.phase > known.phase
                    || (seen.phase == known.phase && conclusion != known.conclusion)
                {
                    self.emit(
                        Fact::JobPhaseChanged {
                            job: id,
                            phase: seen.phase,
                            conclusion,
                            at: now.utc,
                        },
                        facts,
                    );
                }
            }
        }
        self.bind(now, id, facts);
    }

    /// `in_progress`, or a `completed` that overtook it, names who took the job.
    fn bind(&mut self, now: Now, id: JobId, facts: &mut Vec<Fact>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.phase() < JobPhase::InProgress {
            return;
        }
        let Some(name) = &job.seen.runner_name else {
            return;
        };
        if job
            .bound
            .as_ref()
            .is_some_and(|bound| bound.runner.as_str() == name)
        {
            return;
        }
        let runner = RunnerName::new(name);
        let ours = name.starts_with(self.name_prefix());
        self.emit(
            Fact::JobBound {
                job: id,
                runner: runner.clone(),
                ours,
                at: now.utc,
            },
            facts,
        );
        if ours {
            self.drop_spent(&runner);
            self.note_assigned(id, facts);
        }
        self.check_admitted(now, id, &runner, facts);
    }

    /// A private repository's job is served before its origin is known: what is
    /// learnt afterwards counts all the same.
    fn check_taken(&mut self, now: Now, id: JobId, facts: &mut Vec<Fact>) {
        let taker = self.jobs.get(&id).and_then(|job| job.bound.as_ref());
        if let Some(runner) = taker.map(|bound| bound.runner.clone()) {
            self.check_admitted(now, id, &runner, facts);
        }
    }

    /// GitHub may hand a runner a job its pool does not admit: it is stopped.
    fn check_admitted(&mut self, now: Now, id: JobId, name: &RunnerName, facts: &mut Vec<Fact>) {
        self.ensure_index();
        let (Some(job), Some(runner)) = (self.jobs.get(&id), self.runners.get(name)) else {
            return;
        };
        if job.phase() != JobPhase::InProgress {
            return;
        }
        let seen = &job.seen;
        let pool = self.capacity.pool_ix.get(&runner.placed.pool);
        let (Some(pool), Some(signature)) = (pool, self.labels.signature(&runner.placed.labels))
        else {
            return;
        };
        let refused = refusal(
            &self.capacity.pools[*pool as usize].pool,
            self.labels.get(signature),
            &seen.repository,
            source(&seen.origin, &seen.repository),
        );
        if let Some(reason) = refused
            && matches!(
                reason.code,
                ReasonCode::RepositoryNotAdmitted
                    | ReasonCode::PublicRepositoryRefused
                    | ReasonCode::ForkRefused
            )
        {
            self.stop(now, name, StopReason::NotAdmitted(reason.detail), facts);
        }
    }

    fn fill_origin(&self, job: &mut Arc<JobSeen>) {
        if job.origin.event.is_none()
            && let Some(origin) = self.soft.origins.get(&job.run_id)
        {
            Arc::make_mut(job).origin = origin.clone();
        }
    }

    fn run_seen(&mut self, now: Now, run: u64, origin: &Origin, facts: &mut Vec<Fact>) {
        let known: Vec<JobId> = self
            .runs
            .range((run, JobId(0))..=(run, JobId(u64::MAX)))
            .map(|(_, job)| *job)
            .collect();
        for job in known {
            if self
                .jobs
                .get(&job)
                .is_some_and(|job| job.seen.origin != *origin)
            {
                self.emit(
                    Fact::OriginLearnt {
                        job,
                        origin: origin.clone(),
                    },
                    facts,
                );
                self.check_taken(now, job, facts);
            }
        }
        self.soft.origins.insert(run, origin.clone());
        if self.soft.origins.len() > ORIGINS_KEPT {
            // Run ids grow: the smallest is the oldest.
            self.soft.origins.pop_first();
        }
    }

    fn deregistered(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        name: &RunnerName,
        outcome: Deregistration,
        facts: &mut Vec<Fact>,
    ) {
        if self.orphans.contains_key(name) {
            if outcome.is_gone() {
                self.emit(
                    Fact::OrphanGone {
                        runner: name.clone(),
                    },
                    facts,
                );
            } else {
                let failures = self
                    .soft
                    .orphan_rests
                    .get(name)
                    .map_or(0, |(_, failures)| *failures)
                    + 1;
                let base = if outcome == Deregistration::Busy {
                    60_000
                } else {
                    5_000
                };
                let until = now.mono + crate::budget::backoff(base, failures, entropy);
                self.soft
                    .orphan_rests
                    .insert(name.clone(), (until, failures));
                self.owe_deregistration(name);
                self.touch(crate::timers::Due::Orphan(name.clone()));
            }
            return;
        }
        let Some(runner) = self.runners.get_mut(name) else {
            return;
        };
        if !runner.stops_softly() || runner.deregistered.is_some() {
            return;
        }
        if outcome == Deregistration::Failed {
            runner.soft.deregister_failures += 1;
            let failures = runner.soft.deregister_failures;
            runner.soft.deregister_after =
                now.mono + crate::budget::backoff(5_000, failures, entropy);
            self.owe_deregistration(name);
            self.touch_runner(name);
            return;
        }
        self.emit(
            Fact::RunnerDeregistered {
                runner: name.clone(),
                outcome,
                at: now.utc,
            },
            facts,
        );
    }
}

/// The known record with what this sight adds, under its old phase; `None` when
/// it adds nothing. A sight of a lower phase is older and only fills gaps.
fn learnt_fields(known: &JobSeen, seen: &JobSeen) -> Option<JobSeen> {
    let newer = seen.phase >= known.phase;
    let mut merged = if newer { seen.clone() } else { known.clone() };
    let older = if newer { known } else { seen };
    merged.phase = known.phase;
    merged.conclusion = known.conclusion.clone();
    merged.created_at = known.created_at;
    merged.traceparent = known.traceparent.clone().or(merged.traceparent);
    if merged.labels.is_empty() {
        merged.labels = older.labels.clone();
    }
    if merged.repository.id == 0 {
        merged.repository.id = older.repository.id;
    }
    merged.repository.private = merged.repository.private.or(older.repository.private);
    if merged.origin.event.is_none() {
        merged.origin = older.origin.clone();
    }
    merged.runner_name = merged.runner_name.or_else(|| older.runner_name.clone());
    merged.runner_id = merged.runner_id.or(older.runner_id);
    merged.started_at = if seen.phase.max(known.phase) < JobPhase::InProgress {
        None
    } else if newer {
        merged.started_at.or(known.started_at)
    } else {
        known.started_at
    };
    merged.completed_at = merged.completed_at.or(known.completed_at);
    (merged != *known).then_some(merged)
}
