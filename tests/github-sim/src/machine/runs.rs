//! Runs: from a request to jobs, their status from their jobs, cancel, re-run.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::assign::trim;
use super::model::{Job, JobState, Run, RunState, Status};
use super::spec::{JobSpec, RunSpec};
use super::world::{SimError, World};

const MAX_JOBS_PER_MATRIX: u32 = 256;

pub(crate) fn queue(w: &mut World, spec: &RunSpec) -> Result<u64, SimError> {
    let repo_id = w.repo_id(&spec.repository)?;
    if spec.jobs.is_empty() {
        return Err(SimError::Invalid("a run has at least one job".into()));
    }
    for j in &spec.jobs {
        if j.matrix.is_some_and(|n| n == 0 || n > MAX_JOBS_PER_MATRIX) {
            return Err(SimError::Invalid(format!(
                "`{}`: a matrix has 1 to 256 jobs",
                j.name
            )));
        }
        for need in &j.needs {
            if !spec.jobs.iter().any(|o| o.name == *need) {
                return Err(SimError::Invalid(format!(
                    "`{}` needs `{need}`, which is no job of the run",
                    j.name
                )));
            }
        }
    }
    let head_repo = match &spec.head_repository {
        Some(name) => w.repo_id(name)?,
        None => repo_id,
    };
    let owner = w.repos[&repo_id].owner;
    let actor = match &spec.actor {
        Some(login) => w.owner_id(login)?,
        None => owner,
    };
    let id = w.next_run;
    w.next_run += 1 + w.chance.below(900);
    let head_sha = hex::encode(w.chance.bytes(20));
    let workflow_id = {
        let now = w.now;
        let fresh = w.fresh_id();
        let repo = w
            .repos
            .get_mut(&repo_id)
            .ok_or_else(|| SimError::Invalid("repository vanished".into()))?;
        repo.runs.push(id);
        if spec.event == "push" {
            repo.pushed_ms = now;
        }
        *repo.workflows.entry(spec.workflow.clone()).or_insert(fresh)
    };
    let number = {
        let repo = w
            .repos
            .get_mut(&repo_id)
            .ok_or_else(|| SimError::Invalid("repository vanished".into()))?;
        repo.next_run_number += 1;
        repo.next_run_number - 1
    };
    let specs: Vec<Arc<JobSpec>> = spec.jobs.iter().cloned().map(Arc::new).collect();
    let state = RunState {
        status: if spec.pending { "pending" } else { "queued" },
        conclusion: None,
        updated_ms: w.now,
        attempt: 1,
        started_ms: w.now,
    };
    let event = if head_repo != repo_id && spec.event == "push" {
        "pull_request".into()
    } else {
        spec.event.clone()
    };
    let run = Run {
        id,
        repo: repo_id,
        number,
        workflow: spec.workflow.clone(),
        workflow_id,
        event,
        head_branch: spec.head_branch.clone(),
        head_sha,
        head_repo,
        actor,
        created_ms: w.now,
        history: vec![(w.now, state.clone())],
        state,
        attempts: vec![Vec::new()],
        held: specs.clone(),
        specs,
        pending: spec.pending,
    };
    w.runs.insert(id, run);
    w.open_runs.insert(id);
    w.emit_run(id, "requested");
    if !spec.pending {
        create_ready(w, id);
    }
    Ok(id)
}

/// Creates the jobs whose needs are met.
fn create_ready(w: &mut World, run_id: u64) {
    loop {
        let Some(run) = w.runs.get(&run_id) else {
            return;
        };
        let done: Vec<(String, Option<String>, bool)> = run
            .jobs()
            .iter()
            .filter_map(|id| w.jobs.get(id))
            .map(|j| {
                (
                    j.spec.name.clone(),
                    j.state.conclusion.clone(),
                    j.state.status == Status::Completed,
                )
            })
            .collect();
        let ready = |spec: &JobSpec| -> Option<bool> {
            let mut fine = true;
            for need in &spec.needs {
                let mut any = false;
                for (_, conclusion, completed) in done.iter().filter(|(n, _, _)| n == need) {
                    any = true;
                    if !completed {
                        return None;
                    }
                    fine &= conclusion.as_deref() == Some("success");
                }
                if !any {
                    return None;
                }
            }
            Some(fine)
        };
        let Some((at, fine)) = run
            .held
            .iter()
            .enumerate()
            .find_map(|(i, s)| ready(s).map(|fine| (i, fine)))
        else {
            return;
        };
        let Some(run) = w.runs.get_mut(&run_id) else {
            return;
        };
        let spec = run.held.remove(at);
        let skipped = !fine || spec.skipped;
        let n = if skipped { 1 } else { spec.matrix.unwrap_or(1) };
        for i in 1..=n {
            let name = if spec.matrix.is_some() && !skipped {
                format!("{} ({i})", spec.name)
            } else {
                spec.name.clone()
            };
            create_job(w, run_id, &spec, name, skipped);
        }
    }
}

fn create_job(w: &mut World, run_id: u64, spec: &Arc<JobSpec>, name: String, skipped: bool) -> u64 {
    let id = w.next_job;
    w.next_job += 1 + w.chance.below(40);
    let now = w.now;
    let Some(run) = w.runs.get_mut(&run_id) else {
        return id;
    };
    let waits = spec.environment.is_some();
    let state = JobState {
        status: if waits {
            Status::Waiting
        } else {
            Status::Queued
        },
        conclusion: None,
        runner: None,
        started_ms: None,
        completed_ms: None,
    };
    let labels = if skipped {
        Vec::new()
    } else {
        spec.labels.clone()
    };
    let job = Job {
        id,
        run: run_id,
        attempt: run.state.attempt,
        repo: run.repo,
        name,
        folded: labels
            .iter()
            .map(|l| l.to_lowercase())
            .collect::<BTreeSet<_>>(),
        labels,
        steps: World::new_steps(spec),
        spec: Arc::clone(spec),
        history: vec![(now, state.clone())],
        state,
        created_ms: now,
        queued_ms: None,
        assigned: None,
        assigned_ms: None,
        request: None,
        told: false,
        cancel_requested: false,
        cancel_told: false,
        lock_until_ms: 0,
        assignments: Vec::new(),
        annotations: Vec::new(),
        carried: false,
    };
    if let Some(last) = run.attempts.last_mut() {
        last.push(id);
    }
    w.jobs.insert(id, job);
    if skipped {
        w.job_completed(id, "skipped");
    } else if waits {
        w.emit_job(id, "waiting");
        refresh(w, run_id);
    } else {
        w.job_to_queue(id);
        refresh(w, run_id);
    }
    id
}

/// Works out the status of a run from its jobs, and creates jobs that were waiting for others.
pub(crate) fn refresh(w: &mut World, run_id: u64) {
    if w.runs
        .get(&run_id)
        .is_some_and(|r| !r.held.is_empty() && !r.pending)
    {
        create_ready(w, run_id);
    }
    let Some(run) = w.runs.get(&run_id) else {
        return;
    };
    if run.pending {
        return;
    }
    let states: Vec<&JobState> = run
        .jobs()
        .iter()
        .filter_map(|id| w.jobs.get(id))
        .map(|j| &j.state)
        .collect();
    if states.is_empty() {
        return;
    }
    let any = |s: Status| states.iter().any(|j| j.status == s);
    let concluded = |c: &str| states.iter().any(|j| j.conclusion.as_deref() == Some(c));
    let all_done = run.held.is_empty() && states.iter().all(|j| j.status == Status::Completed);
    let (status, conclusion) = if all_done {
        let c = if concluded("failure") || concluded("timed_out") {
            "failure"
        } else if concluded("cancelled") {
            "cancelled"
        } else if states
            .iter()
            .all(|j| j.conclusion.as_deref() == Some("skipped"))
        {
            "skipped"
        } else {
            "success"
        };
        ("completed", Some(c.to_owned()))
    } else if any(Status::InProgress)
        || states
            .iter()
            .any(|j| j.conclusion.as_deref().is_some_and(|c| c != "skipped"))
    {
        ("in_progress", None)
    } else if any(Status::Queued) || !any(Status::Waiting) {
        ("queued", None)
    } else {
        ("waiting", None)
    };
    if run.state.status == status && run.state.conclusion == conclusion {
        return;
    }
    let before = run.state.status;
    let now = w.now;
    let Some(run) = w.runs.get_mut(&run_id) else {
        return;
    };
    run.state = RunState {
        status,
        conclusion,
        updated_ms: now,
        ..run.state.clone()
    };
    run.history.push((now, run.state.clone()));
    trim(&mut run.history);
    match status {
        "completed" => {
            w.open_runs.remove(&run_id);
            w.emit_run(run_id, "completed");
        }
        "in_progress" if before != "in_progress" => w.emit_run(run_id, "in_progress"),
        _ => {}
    }
}

impl World {
    /// `false`: it was completed already (409).
    pub fn cancel_run(&mut self, id: u64, force: bool) -> Result<bool, SimError> {
        let run = self.runs.get_mut(&id).ok_or(SimError::NotFound {
            what: "run",
            name: id.to_string(),
        })?;
        if run.state.status == "completed" {
            return Ok(false);
        }
        run.held.clear();
        run.pending = false;
        let jobs = run.jobs().to_vec();
        if jobs.is_empty() {
            run.state = RunState {
                status: "completed",
                conclusion: Some("cancelled".into()),
                updated_ms: self.now,
                ..run.state.clone()
            };
            run.history.push((self.now, run.state.clone()));
            self.open_runs.remove(&id);
            self.emit_run(id, "completed");
            return Ok(true);
        }
        for job in jobs {
            if force
                && self
                    .jobs
                    .get(&job)
                    .is_some_and(|j| j.state.status != Status::Completed)
            {
                self.job_completed(job, "cancelled");
            } else {
                self.cancel_job(job);
            }
        }
        refresh(self, id);
        Ok(true)
    }

    /// Lets a run go that a concurrency group held.
    pub fn release_run(&mut self, id: u64) -> Result<(), SimError> {
        let run = self.runs.get_mut(&id).ok_or(SimError::NotFound {
            what: "run",
            name: id.to_string(),
        })?;
        if !run.pending {
            return Err(SimError::Invalid(format!("run {id} is not pending")));
        }
        run.pending = false;
        run.state.status = "queued";
        run.state.updated_ms = self.now;
        run.history.push((self.now, run.state.clone()));
        create_ready(self, id);
        Ok(())
    }

    /// Approves the deployments of a run: its waiting jobs are queued.
    pub fn approve_run(&mut self, id: u64) -> Result<u64, SimError> {
        let run = self.runs.get(&id).ok_or(SimError::NotFound {
            what: "run",
            name: id.to_string(),
        })?;
        let mut n = 0;
        for job in run.jobs().to_vec() {
            if self
                .jobs
                .get(&job)
                .is_some_and(|j| j.state.status == Status::Waiting)
            {
                self.job_to_queue(job);
                n += 1;
            }
        }
        refresh(self, id);
        Ok(n)
    }

    /// A new attempt. With `only_failed`, or for one job, the others are carried over: new ids, a `completed` event each.
    pub fn rerun(
        &mut self,
        id: u64,
        only_failed: bool,
        one_job: Option<u64>,
    ) -> Result<(), SimError> {
        let run = self.runs.get_mut(&id).ok_or(SimError::NotFound {
            what: "run",
            name: id.to_string(),
        })?;
        if run.state.status != "completed" {
            return Err(SimError::Invalid(
                "This workflow run is already running".into(),
            ));
        }
        let old: Vec<Job> = run
            .jobs()
            .iter()
            .filter_map(|j| self.jobs.get(j))
            .cloned()
            .collect();
        let mut again: BTreeSet<String> = old
            .iter()
            .filter(|j| match one_job {
                Some(one) => j.id == one,
                None => {
                    !only_failed
                        || !matches!(j.state.conclusion.as_deref(), Some("success" | "neutral"))
                }
            })
            .map(|j| j.spec.name.clone())
            .collect();
        // dependents of what runs again run again as well
        loop {
            let more: Vec<String> = run
                .specs
                .iter()
                .filter(|s| !again.contains(&s.name) && s.needs.iter().any(|n| again.contains(n)))
                .map(|s| s.name.clone())
                .collect();
            if more.is_empty() {
                break;
            }
            again.extend(more);
        }
        let attempt = run.state.attempt + 1;
        run.attempts.push(Vec::new());
        run.state = RunState {
            status: "queued",
            conclusion: None,
            updated_ms: self.now,
            attempt,
            started_ms: self.now,
        };
        run.history.push((self.now, run.state.clone()));
        trim(&mut run.history);
        run.held = run
            .specs
            .iter()
            .filter(|s| again.contains(&s.name))
            .cloned()
            .collect();
        let mut held_singles = Vec::new();
        if only_failed || one_job.is_some() {
            // of a matrix only the members that failed (or the one asked for) run again
            run.held
                .retain(|s| s.matrix.is_none() || s.needs.iter().any(|n| again.contains(n)));
            for j in &old {
                let partial =
                    j.spec.matrix.is_some() && !j.spec.needs.iter().any(|n| again.contains(n));
                let wanted = match one_job {
                    Some(one) => j.id == one,
                    None => j.state.conclusion.as_deref() != Some("success"),
                };
                if again.contains(&j.spec.name) && partial && wanted {
                    held_singles.push((Arc::clone(&j.spec), j.name.clone()));
                }
            }
        }
        let rerun_names: BTreeSet<String> = held_singles.iter().map(|(_, n)| n.clone()).collect();
        let held_specs: BTreeSet<String> = run.held.iter().map(|s| s.name.clone()).collect();
        self.open_runs.insert(id);
        self.emit_run(id, "requested");
        for mut job in old {
            if held_specs.contains(&job.spec.name) || rerun_names.contains(&job.name) {
                continue;
            }
            job.id = self.next_job;
            self.next_job += 1 + self.chance.below(40);
            job.attempt = attempt;
            job.carried = true;
            job.created_ms = self.now;
            job.history = vec![(self.now, job.state.clone())];
            let new_id = job.id;
            self.jobs.insert(new_id, job);
            if let Some(last) = self.runs.get_mut(&id).and_then(|r| r.attempts.last_mut()) {
                last.push(new_id);
            }
            self.emit_job(new_id, "completed");
        }
        for (spec, name) in held_singles {
            create_job(self, id, &spec, name, false);
        }
        create_ready(self, id);
        refresh(self, id);
        Ok(())
    }

    /// What a lagging reader sees of a run.
    pub(crate) fn seen_run<'a>(&self, run: &'a Run) -> Option<&'a RunState> {
        let lag = self.cfg.faults.list_lag_ms;
        if lag == 0 {
            return Some(&run.state);
        }
        let at = self.now.saturating_sub(lag);
        if run.created_ms > at {
            return None;
        }
        run.history
            .iter()
            .rev()
            .find(|(t, _)| *t <= at)
            .map(|(_, s)| s)
            .or(run.history.first().map(|(_, s)| s))
    }
}
