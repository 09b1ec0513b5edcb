//! A small GitHub with state: repositories, runs and jobs behind the REST paths the sweep reads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::http::Method;
use scheduler_core::{
    input::{Input, JobSeen},
    model::JobPhase,
};
use scheduler_github::{Config, GitHub, SweepStatus};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Duration, timeout},
};

use crate::fake::{Fake, Say, Seen};

/// Longest a test waits for something that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct State {
    /// Path and query (exact) to its JSON.
    pub(crate) answers: BTreeMap<String, Value>,
    /// Substring of the target to an answer that stands before everything else.
    pub(crate) broken: Vec<(String, Say)>,
    pub(crate) etags: bool,
}

#[derive(Clone, Default)]
pub(crate) struct World(pub(crate) Arc<Mutex<State>>);

impl World {
    pub(crate) fn set(&self, target: &str, value: Value) {
        self.0
            .lock()
            .unwrap()
            .answers
            .insert(target.to_owned(), value);
    }

    pub(crate) fn remove(&self, target: &str) {
        self.0.lock().unwrap().answers.remove(target);
    }

    pub(crate) fn break_with(&self, part: &str, say: Say) {
        self.0.lock().unwrap().broken.push((part.to_owned(), say));
    }

    pub(crate) fn repositories(&self, names: &[&str]) {
        let list: Vec<Value> = names
            .iter()
            .zip(1..)
            .map(|(full, id)| repository(id, full))
            .collect();
        self.set("/user/repos?per_page=100&sort=pushed", json!(list));
    }

    /// Runs of a repository by status; absent statuses are empty lists.
    pub(crate) fn runs(&self, full: &str, status: &str, runs: Vec<Value>) {
        self.set(
            &format!(
                "/repos/{full}/actions/runs?status={status}&exclude_pull_requests=true&per_page=100"
            ),
            json!({"total_count": runs.len(), "workflow_runs": runs}),
        );
    }

    pub(crate) fn jobs(&self, full: &str, run: u64, jobs: Vec<Value>) {
        self.set(
            &format!("/repos/{full}/actions/runs/{run}/jobs?filter=latest&per_page=100"),
            json!({"total_count": jobs.len(), "jobs": jobs}),
        );
    }

    pub(crate) async fn serve(&self) -> Fake {
        let world = self.clone();
        Fake::start(move |seen| world.answer(seen)).await
    }

    pub(crate) fn answer(&self, seen: &Seen) -> Say {
        let state = self.0.lock().unwrap();
        if let Some((_, say)) = state
            .broken
            .iter()
            .find(|(part, _)| seen.target.contains(part))
        {
            return say.clone();
        }
        if seen.method != Method::GET {
            return Say::new(404, json!({"message": "Not Found"}));
        }
        let empty = if seen.target.contains("/actions/runs?status=") {
            Some(json!({"total_count": 0, "workflow_runs": []}))
        } else if seen.target.contains("/actions/runners?") {
            Some(json!({"total_count": 0, "runners": []}))
        } else {
            None
        };
        let Some(value) = state.answers.get(&seen.target).cloned().or(empty) else {
            return Say::new(404, json!({"message": "Not Found"}));
        };
        if !state.etags {
            return Say::new(200, value);
        }
        let etag = format!("W/\"{:x}\"", checksum(&value.to_string()));
        let known = seen
            .headers
            .get("if-none-match")
            .and_then(|value| value.to_str().ok());
        if known == Some(&etag) {
            Say::new(304, Value::Null).with("etag", etag)
        } else {
            Say::new(200, value).with("etag", etag)
        }
    }
}

fn checksum(text: &str) -> u64 {
    text.bytes()
        .fold(7, |sum, byte| sum.wrapping_mul(1_000_003) ^ u64::from(byte))
}

pub(crate) fn repository(id: u64, full: &str) -> Value {
    let (owner, name) = full.split_once('/').unwrap();
    json!({"id": id, "name": name, "full_name": full, "private": true,
           "owner": {"login": owner, "id": 99, "type": "User"}, "archived": false, "disabled": false,
           "permissions": {"admin": true, "push": true, "pull": true},
           "pushed_at": now(), "updated_at": now()})
}

pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

pub(crate) fn run(id: u64, status: &str, path: &str) -> Value {
    json!({"id": id, "name": "CI", "status": status, "conclusion": null, "path": path, "event": "pull_request",
           "run_attempt": 1, "head_repository": {"id": 7, "name": "web", "full_name": "fork/web"}})
}

pub(crate) fn job(id: u64, run: u64, status: &str, conclusion: Option<&str>) -> Value {
    json!({"id": id, "run_id": run, "run_attempt": 1, "name": format!("job {id}"), "status": status,
           "conclusion": conclusion, "labels": ["self-hosted", "linux"], "created_at": "2026-01-01T00:00:00Z",
           "started_at": "2026-01-01T00:00:00Z", "runner_id": 0, "runner_name": "", "steps": []})
}

/// The crate at work, with what it told.
pub(crate) struct Watching {
    pub(crate) github: GitHub,
    inputs: mpsc::Receiver<Vec<Input>>,
    pub(crate) status: watch::Receiver<SweepStatus>,
    task: JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watching {
    pub(crate) fn start(config: Config) -> Self {
        let github = GitHub::connect(config).unwrap();
        let (sender, inputs) = mpsc::channel(64);
        let status = github.status();
        let task = tokio::spawn(github.clone().run(sender));
        Self {
            github,
            inputs,
            status,
            task,
        }
    }

    /// Everything told until one more sweep than now has ended.
    pub(crate) async fn next_sweep(&mut self) -> Vec<Input> {
        let before = self.status.borrow().iterations;
        self.github.nudge();
        let mut told = Vec::new();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            tokio::select! {
                batch = self.inputs.recv() => told.extend(batch.expect("the sweep ended")),
                changed = self.status.changed() => {
                    changed.unwrap();
                    if self.status.borrow().iterations > before {
                        break;
                    }
                }
                () = tokio::time::sleep_until(deadline) => panic!("no sweep; told {told:?}"),
            }
        }
        while let Ok(batch) = self.inputs.try_recv() {
            told.extend(batch);
        }
        told
    }

    /// Inputs until one fits.
    pub(crate) async fn until(&mut self, what: &str, fits: impl Fn(&Input) -> bool) -> Input {
        let search = async {
            loop {
                let batch = self.inputs.recv().await.expect("the sweep ended");
                if let Some(found) = batch.into_iter().find(|input| fits(input)) {
                    return found;
                }
            }
        };
        timeout(DEADLINE, search)
            .await
            .unwrap_or_else(|_| panic!("never told: {what}"))
    }
}

pub(crate) fn jobs_in(inputs: &[Input]) -> BTreeMap<u64, JobSeen> {
    inputs
        .iter()
        .filter_map(|input| match input {
            Input::JobSeen(seen) => Some((seen.id.0, (**seen).clone())),
            _ => None,
        })
        .collect()
}

pub(crate) fn phases(inputs: &[Input]) -> Vec<(u64, JobPhase)> {
    jobs_in(inputs)
        .into_iter()
        .map(|(id, seen)| (id, seen.phase))
        .collect()
}
