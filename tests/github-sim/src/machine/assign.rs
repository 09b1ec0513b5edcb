//! Which job goes to which runner: any idle, online one that fits, in random order.

use std::collections::BTreeSet;

use super::model::{Driver, Job, Runner, Scope, Status, Visibility};
use super::world::{SECOND, Timer, World};

impl World {
    /// The labels of a job are a subset of the runner's, and the runner's group admits the repository.
    pub(crate) fn fits(&self, runner: &Runner, job: &Job) -> bool {
        if job.labels.is_empty() && job.spec.group.is_none() {
            return false;
        }
        if !job.folded.is_subset(&runner.folded) {
            return false;
        }
        let simulated_job = job.spec.simulate.is_some();
        match runner.driver {
            Driver::Program if simulated_job => return false,
            Driver::Simulated if !simulated_job => return false,
            _ => {}
        }
        self.scope_admits(runner.scope, runner.group, job)
    }

    fn scope_admits(&self, scope: Scope, group: u64, job: &Job) -> bool {
        let Some(repo) = self.repos.get(&job.repo) else {
            return false;
        };
        let (in_scope, member) = match scope {
            Scope::Repository(r) => return r == repo.id && job.spec.group.is_none(),
            Scope::Organization(o) => (o == repo.owner, repo.id),
            Scope::Enterprise(e) => (
                self.owners
                    .get(&repo.owner)
                    .is_some_and(|o| o.enterprise == Some(e)),
                repo.owner,
            ),
        };
        if !in_scope {
            return false;
        }
        let Some(group) = self.groups.get(&(scope, group)) else {
            return false;
        };
        if job
            .spec
            .group
            .as_ref()
            .is_some_and(|g| !g.eq_ignore_ascii_case(&group.name))
        {
            return false;
        }
        if !repo.private && !group.allows_public {
            return false;
        }
        match group.visibility {
            Visibility::All => true,
            Visibility::Selected => group.selected.contains(&member),
            Visibility::Private => repo.private,
        }
    }

    /// Looks for a runner for a job that became queued.
    pub(crate) fn assign_job(&mut self, job_id: u64) {
        let Some(job) = self.jobs.get(&job_id) else {
            return;
        };
        if job.state.status != Status::Queued || job.assigned.is_some() {
            return;
        }
        let fitting: Vec<u64> = self
            .idle
            .iter()
            .copied()
            .filter(|r| {
                self.runners
                    .get(r)
                    .is_some_and(|runner| self.fits(runner, job))
            })
            .collect();
        if let Some(runner) = self.chance.pick(&fitting) {
            self.assign(job_id, runner);
        } else {
            self.connect_simulated_for(job_id);
        }
    }

    /// Looks for a job for a runner that became idle.
    pub(crate) fn assign_runner(&mut self, runner_id: u64) {
        if !self.idle.contains(&runner_id) {
            return;
        }
        let Some(runner) = self.runners.get(&runner_id) else {
            return;
        };
        let fitting: Vec<u64> = self
            .queued
            .iter()
            .copied()
            .filter(|j| {
                self.jobs
                    .get(j)
                    .is_some_and(|job| job.assigned.is_none() && self.fits(runner, job))
            })
            .collect();
        if let Some(job) = self.chance.pick(&fitting) {
            self.assign(job, runner_id);
        }
    }

    pub(crate) fn assign_idle_runners(&mut self) {
        let idle: BTreeSet<u64> = self.idle.clone();
        for runner in idle {
            self.assign_runner(runner);
        }
    }

    fn assign(&mut self, job_id: u64, runner_id: u64) {
        let request = self.chance.guid();
        let now = self.now;
        let lost = self.roll(self.cfg.faults.drop_assignment, "drop_assignment");
        let Some(runner) = self.runners.get_mut(&runner_id) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&job_id) else {
            return;
        };
        runner.job = Some(job_id);
        runner.busy_since_ms = Some(now);
        runner.history.push((now, runner.online, true));
        trim(&mut runner.history);
        let driver = runner.driver;
        job.assigned = Some(runner_id);
        job.assigned_ms = Some(now);
        job.assignments.push(runner.name.clone());
        job.told = lost;
        job.cancel_told = false;
        job.request = Some(request.clone());
        let start_after = job.spec.simulate.as_ref().map_or(0, |s| s.start_after_ms);
        self.requests_of_jobs.insert(request, job_id);
        self.idle.remove(&runner_id);
        self.queued.remove(&job_id);
        match driver {
            Driver::Program => self.set_timer(now + 60 * SECOND, Timer::Unacquired { job: job_id }),
            Driver::Simulated | Driver::Foreign => {
                self.set_timer(now + start_after, Timer::SimStart { job: job_id })
            }
        }
    }

    /// Takes a job that was given but not acquired back into the queue.
    pub(crate) fn job_not_picked_up(&mut self, job_id: u64) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&job_id) else {
            return;
        };
        if job.state.status != Status::Queued
            || job.assigned_ms.is_none_or(|t| t + 60 * SECOND > now)
        {
            return;
        }
        let Some(runner) = job.assigned.take() else {
            return;
        };
        job.assigned_ms = None;
        if let Some(request) = job.request.take() {
            self.requests_of_jobs.remove(&request);
        }
        self.queued.insert(job_id);
        self.release_runner(runner);
        self.assign_job(job_id);
    }

    /// Makes a runner idle again that lost its job without having run it.
    pub(crate) fn release_runner(&mut self, runner_id: u64) {
        let now = self.now;
        let Some(runner) = self.runners.get_mut(&runner_id) else {
            return;
        };
        runner.job = None;
        runner.busy_since_ms = None;
        runner.history.push((now, runner.online, false));
        trim(&mut runner.history);
        if runner.removed.is_none() && runner.online {
            self.idle.insert(runner_id);
            self.assign_runner(runner_id);
        }
    }
}

pub(crate) fn trim<T>(history: &mut Vec<T>) {
    const KEEP: usize = 8;
    if history.len() > KEEP {
        let extra = history.len() - KEEP;
        history.drain(..extra);
    }
}
