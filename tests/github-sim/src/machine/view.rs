//! What a test sees of the world: jobs with step outputs, registrations, a summary, and conditions to wait for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::{RemovedBy, Status};
use super::world::World;

/// A step, with what it really wrote.
#[derive(Debug, Clone, Serialize)]
pub struct StepView {
    pub number: u64,
    pub name: String,
    pub run: String,
    pub status: &'static str,
    pub conclusion: Option<String>,
    pub exit_code: Option<i64>,
    pub output: String,
    pub output_truncated: bool,
}

/// A job; times are milliseconds since the epoch.
#[derive(Debug, Clone, Serialize)]
pub struct JobView {
    pub id: u64,
    pub run_id: u64,
    pub run_attempt: u64,
    pub repository: String,
    pub name: String,
    pub labels: Vec<String>,
    pub status: &'static str,
    pub conclusion: Option<String>,
    pub runner_id: Option<u64>,
    pub runner_name: Option<String>,
    pub created_ms: u64,
    pub queued_ms: Option<u64>,
    pub assigned_ms: Option<u64>,
    pub started_ms: Option<u64>,
    pub completed_ms: Option<u64>,
    pub expect: Option<String>,
    /// `null` when nothing was declared.
    pub as_expected: Option<bool>,
    pub carried: bool,
    pub steps: Vec<StepView>,
    pub assignments: Vec<String>,
    pub annotations: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RunView {
    pub id: u64,
    pub repository: String,
    pub workflow: String,
    pub event: String,
    pub attempt: u64,
    pub status: &'static str,
    pub conclusion: Option<String>,
    pub jobs: Vec<JobView>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RunnerView {
    pub id: u64,
    pub name: String,
    pub scope: String,
    pub labels: Vec<String>,
    pub group_id: u64,
    pub status: &'static str,
    pub busy: bool,
    pub ephemeral: bool,
    pub created_ms: u64,
    pub job_id: Option<u64>,
    pub removed_ms: Option<u64>,
    pub removed_by: Option<RemovedBy>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Expected {
    pub met: u64,
    pub unmet: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    pub runs: u64,
    pub jobs: BTreeMap<&'static str, u64>,
    pub conclusions: BTreeMap<String, u64>,
    pub runners: u64,
    pub expected: Expected,
}

/// A condition to wait for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Until {
    pub job: Option<u64>,
    /// With `job`; a later status counts as well.
    pub status: Option<String>,
    pub run: Option<u64>,
    /// `"completed"`
    pub all_jobs: Option<String>,
    pub jobs_completed: Option<u64>,
    pub jobs_in_progress: Option<u64>,
    pub runners: Option<u64>,
    pub runners_at_least: Option<u64>,
    pub runners_online: Option<u64>,
    pub deliveries_idle: Option<bool>,
    pub requests: Option<RequestsUntil>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestsUntil {
    pub route: Option<String>,
    pub method: Option<String>,
    pub at_least: u64,
}

impl World {
    pub fn job_view(&self, id: u64) -> Option<JobView> {
        let j = self.jobs.get(&id)?;
        let runner = j.state.runner.as_ref();
        let outcome = match (j.state.status, j.state.conclusion.as_deref()) {
            (Status::Completed, Some(c)) => c,
            (Status::Queued, _) if j.assignments.is_empty() => "unschedulable",
            _ => "",
        };
        Some(JobView {
            id,
            run_id: j.run,
            run_attempt: j.attempt,
            repository: self
                .repos
                .get(&j.repo)
                .map_or_else(String::new, |r| r.full_name.clone()),
            name: j.name.clone(),
            labels: j.labels.clone(),
            status: j.state.status.text(),
            conclusion: j.state.conclusion.clone(),
            runner_id: runner.map(|r| r.id),
            runner_name: runner.map(|r| r.name.clone()),
            created_ms: j.created_ms,
            queued_ms: j.queued_ms,
            assigned_ms: j.assigned_ms,
            started_ms: j.state.started_ms,
            completed_ms: j.state.completed_ms,
            as_expected: j.spec.expect.as_deref().map(|e| e == outcome),
            expect: j.spec.expect.clone(),
            carried: j.carried,
            steps: j
                .steps
                .iter()
                .map(|s| StepView {
                    number: s.number,
                    name: s.name.clone(),
                    run: s.run.clone(),
                    status: s.status.text(),
                    conclusion: s.conclusion.clone(),
                    exit_code: s.exit_code,
                    output: s.output.clone(),
                    output_truncated: s.output_truncated,
                })
                .collect(),
            assignments: j.assignments.clone(),
            annotations: j.annotations.clone(),
        })
    }

    pub fn run_view(&self, id: u64) -> Option<RunView> {
        let r = self.runs.get(&id)?;
        Some(RunView {
            id,
            repository: self
                .repos
                .get(&r.repo)
                .map_or_else(String::new, |r| r.full_name.clone()),
            workflow: r.workflow.clone(),
            event: r.event.clone(),
            attempt: r.state.attempt,
            status: r.state.status,
            conclusion: r.state.conclusion.clone(),
            jobs: r.jobs().iter().filter_map(|j| self.job_view(*j)).collect(),
        })
    }

    pub fn runner_view(&self, id: u64) -> Option<RunnerView> {
        let r = self.runners.get(&id)?;
        Some(RunnerView {
            id,
            name: r.name.clone(),
            scope: self.scope_text(r.scope),
            labels: r.labels.clone(),
            group_id: r.group,
            status: if r.online { "online" } else { "offline" },
            busy: r.job.is_some(),
            ephemeral: r.ephemeral,
            created_ms: r.created_ms,
            job_id: r.job,
            removed_ms: r.removed.map(|(t, _)| t),
            removed_by: r.removed.map(|(_, by)| by),
        })
    }

    pub fn summary(&self) -> Summary {
        let mut s = Summary {
            runs: self.runs.len() as u64,
            runners: self.runners().count() as u64,
            ..Summary::default()
        };
        for status in [
            Status::Waiting,
            Status::Queued,
            Status::InProgress,
            Status::Completed,
        ] {
            s.jobs.insert(status.text(), 0);
        }
        for j in self.jobs.values() {
            *s.jobs.entry(j.state.status.text()).or_default() += 1;
            if let Some(c) = &j.state.conclusion {
                *s.conclusions.entry(c.clone()).or_default() += 1;
            }
            if let Some(view) = j.spec.expect.as_ref().and_then(|_| self.job_view(j.id)) {
                if view.as_expected == Some(true) {
                    s.expected.met += 1;
                } else {
                    let got = view.conclusion.unwrap_or_else(|| view.status.to_owned());
                    let want = view.expect.unwrap_or_default();
                    s.expected.unmet.push(format!(
                        "{} {} ({}): wanted {want}, is {got}",
                        view.repository, view.name, j.id
                    ));
                }
            }
        }
        s
    }

    fn count_jobs(&self, status: Status) -> u64 {
        self.jobs
            .values()
            .filter(|j| j.state.status == status)
            .count() as u64
    }

    /// Whether all parts of a condition hold. An empty condition never does.
    pub fn holds(&self, until: &Until) -> bool {
        let mut checks: Vec<bool> = Vec::new();
        if let Some(id) = until.job {
            let want = match until.status.as_deref() {
                Some("waiting") => Status::Waiting,
                Some("queued") => Status::Queued,
                Some("in_progress") => Status::InProgress,
                _ => Status::Completed,
            };
            checks.push(self.jobs.get(&id).is_some_and(|j| j.state.status >= want));
        }
        if let Some(id) = until.run {
            checks.push(
                self.runs
                    .get(&id)
                    .is_some_and(|r| r.state.status == "completed"),
            );
        }
        if until.all_jobs.is_some() {
            checks.push(self.open_runs.is_empty() && !self.jobs.is_empty());
        }
        if let Some(n) = until.jobs_completed {
            checks.push(self.count_jobs(Status::Completed) >= n);
        }
        if let Some(n) = until.jobs_in_progress {
            checks.push(self.count_jobs(Status::InProgress) >= n);
        }
        if let Some(n) = until.runners {
            checks.push(self.runners().count() as u64 == n);
        }
        if let Some(n) = until.runners_at_least {
            checks.push(self.runners().count() as u64 >= n);
        }
        if let Some(n) = until.runners_online {
            checks.push(self.runners().filter(|r| r.online).count() as u64 >= n);
        }
        if until.deliveries_idle == Some(true) {
            checks.push(self.deliveries_idle());
        }
        if let Some(r) = &until.requests {
            checks.push(self.log.count(r.method.as_deref(), r.route.as_deref()) >= r.at_least);
        }
        !checks.is_empty() && checks.iter().all(|c| *c)
    }

    /// Broken invariants of the simulator itself.
    pub fn check(&self) -> Vec<String> {
        let mut out = Vec::new();
        for id in &self.queued {
            if self
                .jobs
                .get(id)
                .is_none_or(|j| j.state.status != Status::Queued || j.assigned.is_some())
            {
                out.push(format!("job {id} stands in the queue and is not queued"));
            }
        }
        for id in &self.idle {
            match self.runners.get(id) {
                Some(r) if r.online && r.job.is_none() && r.removed.is_none() => {}
                _ => out.push(format!("runner {id} stands among the idle and is not idle")),
            }
        }
        for j in self.jobs.values() {
            match (j.state.status, j.assigned) {
                (Status::Completed, Some(_)) => {
                    out.push(format!("job {} is completed and has a runner", j.id))
                }
                (Status::Queued, None) if !self.queued.contains(&j.id) => {
                    out.push(format!("job {} is queued and in no queue", j.id));
                }
                (_, Some(r)) => {
                    let gone = self.runners.get(&r).is_none_or(|x| x.removed.is_some());
                    if !gone && self.runners.get(&r).is_some_and(|x| x.job != Some(j.id)) {
                        out.push(format!(
                            "job {} believes in runner {r}, which has another job",
                            j.id
                        ));
                    }
                }
                _ => {}
            }
            if j.state.status == Status::Completed && j.state.conclusion.is_none() {
                out.push(format!("job {} is completed without a conclusion", j.id));
            }
        }
        for r in self.runners.values() {
            if let Some(job) = r.job
                && self.jobs.get(&job).is_none_or(|j| j.assigned != Some(r.id))
            {
                out.push(format!(
                    "runner {} believes in job {job}, which is not its own",
                    r.id
                ));
            }
            if r.ephemeral {
                let ran = self
                    .jobs
                    .values()
                    .filter(|j| !j.carried && j.state.runner.as_ref().is_some_and(|x| x.id == r.id))
                    .count();
                if ran > 1 {
                    out.push(format!("ephemeral runner {} ran {ran} jobs", r.id));
                }
            }
        }
        for run in self.runs.values() {
            let done = run.held.is_empty()
                && !run.pending
                && run
                    .jobs()
                    .iter()
                    .filter_map(|j| self.jobs.get(j))
                    .all(|j| j.state.status == Status::Completed);
            if done != (run.state.status == "completed") {
                out.push(format!(
                    "run {} is {}, its jobs say otherwise",
                    run.id, run.state.status
                ));
            }
            if (run.state.status == "completed") == self.open_runs.contains(&run.id) {
                out.push(format!("run {} stands wrongly among the open ones", run.id));
            }
        }
        out
    }
}
