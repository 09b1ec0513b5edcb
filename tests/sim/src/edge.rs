//! GitHub's words as inputs: webhooks, sweeps and lists of runners, by the rules
//! of the specification, over github-sim's REST surface.

use std::{collections::BTreeSet, sync::Arc};

use github_sim::machine::{Request, Response};
use scheduler_core::{
    input::{Input, JobSeen, ListedRunner},
    model::{Conclusion, CredentialName, JobId, JobPhase, Origin, Repository, RunnerName},
};
use serde_json::Value;

use crate::{
    workload::{REPOSITORIES, scope_of, scope_path},
    world::World,
};

fn text(value: &Value) -> Option<String> {
    value
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

fn conclusion(value: &Value) -> Option<Conclusion> {
    Some(match value.as_str()? {
        "success" => Conclusion::Success,
        "failure" => Conclusion::Failure,
        "cancelled" => Conclusion::Cancelled,
        "skipped" => Conclusion::Skipped,
        "timed_out" => Conclusion::TimedOut,
        other => Conclusion::Other(other.to_owned()),
    })
}

fn phase_of_status(status: &str) -> JobPhase {
    match status {
        "queued" => JobPhase::Queued,
        "in_progress" => JobPhase::InProgress,
        "completed" => JobPhase::Completed,
        _ => JobPhase::Waiting,
    }
}

fn origin(run: &Value) -> Origin {
    Origin {
        event: text(&run["event"]),
        head_repository: text(&run["head_repository"]["full_name"]),
    }
}

impl World {
    pub(crate) fn call(&mut self, credential: &CredentialName, request: Request) -> Response {
        let token = self.tokens.get(credential.as_str()).cloned();
        self.github.call(&request.token(&token.unwrap_or_default()))
    }

    fn job_seen(&self, job: &Value, repository: &str, phase: JobPhase) -> Option<JobSeen> {
        let id = job["id"].as_u64()?;
        let (scope, credential) = scope_of(repository);
        let (owner, name) = repository.split_once('/')?;
        let known = self.github.job(id);
        Some(JobSeen {
            id: JobId(id),
            run_id: job["run_id"].as_u64()?,
            attempt: job["run_attempt"].as_u64().unwrap_or(1) as u32,
            repository: Repository {
                id: known.map_or(0, |job| job.repo),
                owner: owner.to_owned(),
                name: name.to_owned(),
                private: Some(true),
            },
            scope,
            credential,
            name: text(&job["name"]).unwrap_or_default(),
            workflow: text(&job["workflow_name"]).unwrap_or_default(),
            labels: job["labels"]
                .as_array()
                .map(|labels| labels.iter().filter_map(text).collect())
                .unwrap_or_default(),
            phase,
            conclusion: conclusion(&job["conclusion"]),
            runner_name: text(&job["runner_name"]),
            runner_id: job["runner_id"].as_u64().filter(|id| *id > 0),
            origin: Origin::default(),
            created_at: known.map_or(0, |job| job.created_ms),
            started_at: None,
            completed_at: None,
            html_url: String::new(),
            traceparent: None,
        })
    }

    /// A delivery, as the webhook listener understands it.
    pub(crate) fn delivered(&self, event: &str, body: &[u8]) -> Vec<Input> {
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let repository = text(&body["repository"]["full_name"]).unwrap_or_default();
        match event {
            "workflow_run" => {
                let run = &body["workflow_run"];
                let id = run["id"].as_u64();
                id.map(|run_id| Input::RunSeen {
                    run_id,
                    origin: origin(run),
                })
                .into_iter()
                .collect()
            }
            "workflow_job" => {
                let job = &body["workflow_job"];
                let status = job["status"].as_str().unwrap_or_default();
                // Runnable only if action and status both say queued.
                let phase = match body["action"].as_str() {
                    Some("queued") if status == "queued" => JobPhase::Queued,
                    Some("queued" | "waiting") => JobPhase::Waiting,
                    Some("in_progress") => JobPhase::InProgress,
                    Some("completed") => JobPhase::Completed,
                    _ => return Vec::new(),
                };
                let seen = self.job_seen(job, &repository, phase);
                seen.map(|seen| Input::JobSeen(Arc::new(seen)))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// Queued and running runs of every repository, and whatever the scheduler
    /// still believes to be open.
    pub(crate) fn sweep(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        for repository in REPOSITORIES {
            let credential = scope_of(repository).1;
            let mut runs = BTreeSet::new();
            for status in ["queued", "in_progress"] {
                let path = format!("/repos/{repository}/actions/runs?status={status}&per_page=100");
                let answer = self.call(&credential, Request::get(&path));
                if answer.status != 200 {
                    continue;
                }
                for run in answer.value()["workflow_runs"]
                    .as_array()
                    .into_iter()
                    .flatten()
                {
                    if let Some(run_id) = run["id"].as_u64() {
                        runs.insert(run_id);
                        inputs.push(Input::RunSeen {
                            run_id,
                            origin: origin(run),
                        });
                    }
                }
            }
            if let Some(fleet) = &self.shadow {
                let open = fleet.jobs().filter(|job| {
                    job.phase() != JobPhase::Completed
                        && job.seen.repository.full_name() == repository
                });
                runs.extend(open.map(|job| job.seen.run_id));
            }
            for run in runs {
                let path = format!("/repos/{repository}/actions/runs/{run}/jobs?per_page=100");
                let answer = self.call(&credential, Request::get(&path));
                if answer.status != 200 {
                    continue;
                }
                for job in answer.value()["jobs"].as_array().into_iter().flatten() {
                    let phase = phase_of_status(job["status"].as_str().unwrap_or_default());
                    if let Some(seen) = self.job_seen(job, repository, phase) {
                        inputs.push(Input::JobSeen(Arc::new(seen)));
                    }
                }
            }
        }
        self.note(|| format!("a sweep brings {} inputs", inputs.len()));
        inputs
    }

    /// Every scope's runners with our prefix.
    pub(crate) fn list_runners(&mut self) -> Vec<Input> {
        let scopes: BTreeSet<_> = REPOSITORIES.into_iter().map(scope_of).collect();
        let mut inputs = Vec::new();
        for (scope, credential) in scopes {
            let path = format!("/{}/actions/runners?per_page=100", scope_path(&scope));
            let answer = self.call(&credential, Request::get(&path));
            if answer.status != 200 {
                continue;
            }
            let body = answer.value();
            let listed = body["runners"].as_array().into_iter().flatten();
            let runners = listed
                .filter_map(|runner| {
                    let name = runner["name"].as_str()?;
                    name.starts_with("ls-").then_some(())?;
                    Some(ListedRunner {
                        github_id: runner["id"].as_u64()?,
                        name: RunnerName::new(name),
                        online: runner["status"] == "online",
                        busy: runner["busy"] == true,
                    })
                })
                .collect();
            inputs.push(Input::RunnersListed { scope, runners });
        }
        inputs
    }
}
