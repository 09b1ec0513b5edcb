//! The job machine: waiting → queued → assigned → in_progress → completed.

use super::assign::trim;
use super::model::{Driver, Job, JobState, RemovedBy, RunnerRef, Status, Step};
use super::runs;
use super::world::{DAY, MINUTE, SimError, Timer, World};

const CANCEL_FORCE_END: u64 = 5 * MINUTE;
/// A lock lasts ten minutes, and five more are granted before the job is given up.
pub(crate) const LOCK: u64 = 10 * MINUTE;
const LOCK_GRACE: u64 = 5 * MINUTE;
const MAX_OUTPUT: usize = 1024 * 1024;

impl World {
    /// Puts a new state in force and remembers it for lagging reads.
    pub(crate) fn set_job(&mut self, id: u64, state: JobState) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.state = state.clone();
        job.history.push((now, state));
        trim(&mut job.history);
    }

    /// waiting → queued, or the first queueing.
    pub(crate) fn job_to_queue(&mut self, id: u64) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.queued_ms = Some(now);
        let mut state = job.state.clone();
        state.status = Status::Queued;
        let had_environment = job.spec.environment.is_some();
        self.set_job(id, state);
        self.queued.insert(id);
        self.set_timer(now + DAY, Timer::QueueTimeout { job: id });
        self.emit_job(id, "queued");
        if had_environment
            && self.roll(
                self.cfg.faults.webhook_waiting_after_queued,
                "webhook_waiting_after_queued",
            )
        {
            self.emit_job_as(id, "waiting", Status::Waiting);
        }
        self.assign_job(id);
    }

    /// Assigned → in_progress, on this runner.
    pub(crate) fn job_started(&mut self, id: u64, runner: RunnerRef) {
        let now = self.now;
        self.queued.remove(&id);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let mut state = job.state.clone();
        state.status = Status::InProgress;
        state.runner = Some(runner);
        state.started_ms = Some(now);
        job.lock_until_ms = now + LOCK;
        let timeout = job.spec.timeout_minutes.unwrap_or(360) * MINUTE;
        let run = job.run;
        self.set_job(id, state);
        self.set_timer(now + timeout, Timer::JobTimeout { job: id });
        self.emit_job(id, "in_progress");
        runs::refresh(self, run);
    }

    /// Any state → completed; frees or removes the runner.
    pub(crate) fn job_completed(&mut self, id: u64, conclusion: &str) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.state.status == Status::Completed {
            return;
        }
        let was_running = job.state.status == Status::InProgress;
        let mut state = job.state.clone();
        state.status = Status::Completed;
        state.conclusion = Some(conclusion.to_owned());
        state.completed_ms = Some(now);
        let runner = job.assigned.take();
        if let Some(request) = job.request.take() {
            self.requests_of_jobs.remove(&request);
        }
        for step in &mut job.steps {
            if step.status != Status::Completed {
                step.status = Status::Completed;
                let ran = step.started_ms.is_some();
                step.conclusion = Some(
                    if ran && conclusion == "cancelled" {
                        "cancelled"
                    } else {
                        "skipped"
                    }
                    .to_owned(),
                );
                step.completed_ms = Some(now);
            }
        }
        if !was_running {
            job.steps.iter_mut().for_each(|s| s.started_ms = None);
        }
        let run = job.run;
        self.set_job(id, state);
        self.queued.remove(&id);
        self.emit_job(id, "completed");
        if let Some(runner) = runner {
            let ephemeral = self.runners.get(&runner).is_some_and(|r| r.ephemeral);
            if was_running && ephemeral {
                self.remove_runner(runner, RemovedBy::Completed);
            } else {
                self.release_runner(runner);
            }
        }
        runs::refresh(self, run);
    }

    /// Cancels one job: at once when nothing runs, through its runner otherwise.
    pub(crate) fn cancel_job(&mut self, id: u64) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match job.state.status {
            Status::Completed => {}
            Status::Waiting | Status::Queued => self.job_completed(id, "cancelled"),
            Status::InProgress => {
                if job.cancel_requested {
                    return;
                }
                job.cancel_requested = true;
                let program = job
                    .assigned
                    .and_then(|r| self.runners.get(&r))
                    .is_some_and(|r| r.driver == Driver::Program);
                if program {
                    self.set_timer(now + CANCEL_FORCE_END, Timer::ForceEnd { job: id });
                } else {
                    self.job_completed(id, "cancelled");
                }
            }
        }
    }

    pub(crate) fn job_force_end(&mut self, id: u64) {
        if self
            .jobs
            .get(&id)
            .is_some_and(|j| j.state.status == Status::InProgress && j.cancel_requested)
        {
            self.job_completed(id, "cancelled");
        }
    }

    pub(crate) fn job_queued_too_long(&mut self, id: u64) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.state.status != Status::Queued || job.queued_ms.is_none_or(|t| t + DAY > now) {
            return;
        }
        job.annotations
            .push("The job was not picked up by a runner within 24 hours.".into());
        self.job_completed(id, "cancelled");
    }

    pub(crate) fn job_ran_too_long(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.state.status == Status::InProgress {
            job.annotations
                .push("The job has exceeded its maximum execution time.".into());
            self.cancel_job(id);
        }
    }

    /// The runner has not renewed its lock: "lost communication".
    pub(crate) fn job_lock_ended(&mut self, id: u64) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.state.status != Status::InProgress {
            return;
        }
        let end = job.lock_until_ms + LOCK_GRACE;
        if end > now {
            self.set_timer(end, Timer::Lock { job: id });
            return;
        }
        job.annotations
            .push("The self-hosted runner lost communication with the server.".into());
        self.job_completed(id, "failure");
    }

    pub(crate) fn start_lock(&mut self, id: u64) {
        self.set_timer(self.now + LOCK + LOCK_GRACE, Timer::Lock { job: id });
    }

    // ---- jobs that need no runner program -------------------------------------------------------------------------

    /// A registration becomes connected for a job that says `simulate`, after the time the job asks for.
    pub(crate) fn connect_simulated_for(&mut self, job_id: u64) {
        let Some(job) = self.jobs.get(&job_id) else {
            return;
        };
        let Some(how) = job.spec.simulate.clone() else {
            return;
        };
        let fits = |w: &World, id: u64| {
            w.runners.get(&id).is_some_and(|r| {
                let free =
                    !r.online && !r.used && r.removed.is_none() && r.driver == Driver::Program;
                free && job.folded.is_subset(&r.folded) && {
                    let as_simulated = super::model::Runner {
                        driver: Driver::Simulated,
                        ..r.clone()
                    };
                    w.fits(&as_simulated, job)
                }
            })
        };
        let found = self
            .live
            .values()
            .flat_map(|m| m.keys().copied())
            .find(|id| fits(self, *id));
        if let Some(id) = found {
            self.plan_simulated(id, how.online_after_ms);
        }
    }

    fn plan_simulated(&mut self, runner: u64, online_after_ms: u64) {
        if let Some(r) = self.runners.get_mut(&runner) {
            r.used = true;
            let due = (r.created_ms + online_after_ms).max(self.now);
            self.set_timer(due, Timer::SimConnect { runner });
        }
    }

    /// After a registration: is there a simulated job it could serve?
    pub(crate) fn offer_to_simulated(&mut self, runner_id: u64) {
        let Some(r) = self.runners.get(&runner_id) else {
            return;
        };
        if r.driver != Driver::Program {
            return;
        }
        let as_simulated = super::model::Runner {
            driver: Driver::Simulated,
            ..r.clone()
        };
        let wanted = self
            .queued
            .iter()
            .filter_map(|j| self.jobs.get(j))
            .find(|j| {
                j.spec.simulate.is_some() && j.assigned.is_none() && self.fits(&as_simulated, j)
            })
            .and_then(|j| j.spec.simulate.as_ref().map(|s| s.online_after_ms));
        if let Some(after) = wanted {
            self.plan_simulated(runner_id, after);
        }
    }

    pub(crate) fn simulated_connect(&mut self, runner: u64) {
        if let Some(r) = self.runners.get_mut(&runner)
            && r.removed.is_none()
            && !r.online
        {
            r.driver = Driver::Simulated;
            r.os = "Linux".into();
            self.set_online(runner, true);
        }
    }

    pub(crate) fn simulated_start(&mut self, id: u64) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.state.status != Status::Queued {
            return;
        }
        let Some(runner) = job.assigned else { return };
        let how = job.spec.simulate.clone();
        let Some(reference) = self.runner_ref(runner) else {
            return;
        };
        self.job_started(id, reference);
        if let Some(how) = how {
            self.set_timer(self.now + how.duration_ms, Timer::SimComplete { job: id });
        }
    }

    pub(crate) fn simulated_complete(&mut self, id: u64) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.state.status != Status::InProgress {
            return;
        }
        let conclusion = job
            .spec
            .simulate
            .as_ref()
            .and_then(|s| s.conclusion.clone());
        self.finish_steps_as(id, conclusion.as_deref().unwrap_or("success"));
        self.job_completed(id, conclusion.as_deref().unwrap_or("success"));
    }

    fn finish_steps_as(&mut self, id: u64, conclusion: &str) {
        let now = self.now;
        if let Some(job) = self.jobs.get_mut(&id) {
            for step in &mut job.steps {
                step.status = Status::Completed;
                step.conclusion = Some(conclusion.to_owned());
                step.started_ms.get_or_insert(now);
                step.completed_ms = Some(now);
            }
        }
    }

    pub(crate) fn runner_ref(&self, id: u64) -> Option<RunnerRef> {
        let r = self.runners.get(&id)?;
        let group_name = self
            .groups
            .get(&(r.scope, r.group))
            .map_or("Default", |g| g.name.as_str())
            .to_owned();
        Some(RunnerRef {
            id,
            name: r.name.clone(),
            group_id: r.group,
            group_name,
        })
    }

    /// Starts a job by hand, on a live registration or on a runner nobody has heard of.
    pub fn start_job(&mut self, id: u64, runner: Option<&str>) -> Result<(), SimError> {
        let job = self.jobs.get(&id).ok_or(SimError::NotFound {
            what: "job",
            name: id.to_string(),
        })?;
        if job.state.status != Status::Queued {
            return Err(SimError::Invalid(format!(
                "job {id} is {}, not queued",
                job.state.status.text()
            )));
        }
        let known = runner.and_then(|n| self.runner_named(n));
        if let Some(r) = known
            && self
                .runners
                .get(&r)
                .is_some_and(|r| r.job.is_some_and(|j| j != id))
        {
            return Err(SimError::Invalid("this runner has another job".into()));
        }
        if let Some(old) = self.jobs.get_mut(&id).and_then(|j| j.assigned.take())
            && Some(old) != known
        {
            self.release_runner(old);
        }
        let reference = match known {
            Some(r) => {
                let now = self.now;
                if let Some(runner) = self.runners.get_mut(&r) {
                    runner.job = Some(id);
                    runner.busy_since_ms = Some(now);
                }
                self.idle.remove(&r);
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.assigned = Some(r);
                }
                self.runner_ref(r)
            }
            None => Some(RunnerRef {
                id: 900_000_000 + id % 1_000_000,
                name: runner.unwrap_or("GitHub Actions 1").to_owned(),
                group_id: 2,
                group_name: "GitHub Actions".into(),
            }),
        };
        if let Some(reference) = reference {
            self.job_started(id, reference);
        }
        Ok(())
    }

    /// Ends a job by hand, in any state.
    pub fn complete_job(&mut self, id: u64, conclusion: &str) -> Result<(), SimError> {
        if !self.jobs.contains_key(&id) {
            return Err(SimError::NotFound {
                what: "job",
                name: id.to_string(),
            });
        }
        self.finish_steps_as(id, conclusion);
        self.job_completed(id, conclusion);
        Ok(())
    }

    /// Appends to the output of a step, at most 1 MiB.
    pub(crate) fn append_output(step: &mut Step, text: &str) {
        let room = MAX_OUTPUT.saturating_sub(step.output.len());
        if text.len() <= room {
            step.output.push_str(text);
            return;
        }
        let mut cut = room;
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        step.output.push_str(&text[..cut]);
        step.output_truncated = true;
    }

    pub(crate) fn new_steps(job: &super::spec::JobSpec) -> Vec<Step> {
        job.steps
            .iter()
            .enumerate()
            .map(|(i, s)| Step {
                number: i as u64 + 1,
                name: s.name.clone(),
                run: s.run.clone(),
                status: Status::Queued,
                conclusion: None,
                exit_code: None,
                output: String::new(),
                output_truncated: false,
                started_ms: None,
                completed_ms: None,
            })
            .collect()
    }

    /// What a lagging reader sees of a job; `None`: nothing yet.
    pub(crate) fn seen_job<'a>(&self, job: &'a Job) -> Option<&'a JobState> {
        let lag = self.cfg.faults.list_lag_ms;
        if lag == 0 {
            return Some(&job.state);
        }
        let at = self.now.saturating_sub(lag);
        if job.created_ms > at {
            return None;
        }
        job.history
            .iter()
            .rev()
            .find(|(t, _)| *t <= at)
            .map(|(_, s)| s)
            .or(job.history.first().map(|(_, s)| s))
    }
}
