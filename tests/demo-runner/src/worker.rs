//! `Runner.Worker`: runs the steps of one job and tells the service what came of it.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::containers::{Container, Containers};
use crate::diag::Diag;
use crate::service::{Service, persist};
use crate::settings::{self, Settings};
use crate::steps::{self, End};

const RENEW: Duration = Duration::from_secs(60);
const SUCCEEDED: u8 = 100;
const FAILED: u8 = 102;
const CANCELED: u8 = 103;
const ABANDONED: u8 = 105;

#[derive(Deserialize)]
struct Start {
    job: Job,
    #[serde(rename = "runUrl")]
    run_url: String,
    #[serde(rename = "requestId")]
    request: String,
}

#[derive(Deserialize)]
struct Job {
    name: String,
    repository: String,
    #[serde(default)]
    job_id: u64,
    #[serde(default)]
    steps: Vec<Step>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    container: Option<Container>,
    #[serde(default)]
    services: BTreeMap<String, Container>,
}

#[derive(Deserialize)]
struct Step {
    number: u64,
    name: String,
    run: String,
}

pub(crate) fn main() -> u8 {
    let Ok(root) = settings::root() else {
        return ABANDONED;
    };
    let mut first = String::new();
    let read = std::io::stdin().lock().read_line(&mut first);
    let start: Start = match read.ok().and_then(|_| serde_json::from_str(&first).ok()) {
        Some(s) => s,
        None => {
            eprintln!("Runner.Worker is started by Runner.Listener, which tells it its job");
            return ABANDONED;
        }
    };
    let diag = match Diag::open(&root, "Worker") {
        Ok(d) => d,
        Err(e) => {
            eprintln!(
                "An unhandled exception: {} is not writable: {e}",
                root.join("_diag").display()
            );
            return ABANDONED;
        }
    };
    let service = match Settings::load(&root) {
        Ok(s) => Arc::new(Service::new(s)),
        Err(e) => {
            diag.line(&e);
            return ABANDONED;
        }
    };
    let cancelled = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&cancelled);
    std::thread::spawn(move || {
        // the end of the pipe means that the listener is gone: the job ends as well
        for line in std::io::stdin().lock().lines() {
            match line.as_deref() {
                Ok("cancel" | "shutdown") | Err(_) => break,
                Ok(_) => {}
            }
        }
        heard.store(true, Ordering::SeqCst);
    });
    Worker {
        root,
        start,
        service,
        diag,
        cancelled,
    }
    .run()
}

struct Worker {
    root: PathBuf,
    start: Start,
    service: Arc<Service>,
    diag: Diag,
    cancelled: Arc<AtomicBool>,
}

impl Worker {
    fn run(self) -> u8 {
        let tracking = format!("github_{:x}_{}", self.start.job.job_id, std::process::id());
        self.diag.line(&format!(
            "Job {} of {} starts",
            self.start.job.job_id, self.start.job.repository
        ));
        let (stop_renewing, stopped) = channel::<()>();
        let (service, run_url, request) = (
            Arc::clone(&self.service),
            self.start.run_url.clone(),
            self.start.request.clone(),
        );
        let renewing = std::thread::spawn(move || {
            while stopped.recv_timeout(RENEW) == Err(RecvTimeoutError::Timeout) {
                // a lock that is lost shows at the end; until then it is tried again
                let _ = persist(3, || service.renew(&run_url, &request));
            }
        });
        let end = match self.folders() {
            Ok((workspace, temp)) => self.steps(&workspace, &temp, &tracking),
            Err(e) => {
                self.diag.line(&format!("the work folder: {e}"));
                self.report_setup_failure(&format!("the work folder is not usable: {e}\n"));
                End::Failure
            }
        };
        drop(stop_renewing);
        let _ = renewing.join();
        let left = steps::kill_tracked(&tracking);
        if left > 0 {
            self.diag
                .line(&format!("Terminated {left} orphan processes"));
        }
        let (word, code) = match end {
            End::Success => ("succeeded", SUCCEEDED),
            End::Failure => ("failed", FAILED),
            End::Cancelled => ("canceled", CANCELED),
        };
        match persist(5, || {
            self.service
                .complete(&self.start.run_url, &self.start.request, word)
        }) {
            Ok(()) => code,
            Err(e) => {
                self.diag.line(&format!("completing the job: {e}"));
                if end == End::Cancelled {
                    CANCELED
                } else {
                    ABANDONED
                }
            }
        }
    }

    /// Makes `_work` and what belongs into it; gives the workspace and the folder for scripts.
    fn folders(&self) -> std::io::Result<(PathBuf, PathBuf)> {
        let work = &self.service.settings().work;
        let repo = self
            .start
            .job
            .repository
            .rsplit('/')
            .next()
            .unwrap_or("repo");
        let workspace = work.join(repo).join(repo);
        let temp = work.join("_temp");
        std::fs::create_dir_all(&workspace)?;
        for folder in ["_temp", "_actions", "_tool", "_PipelineMapping"] {
            std::fs::create_dir_all(work.join(folder))?;
        }
        for folder in ["pages", "blocks"] {
            std::fs::create_dir_all(self.root.join("_diag").join(folder))?;
        }
        Ok((workspace, temp))
    }

    fn steps(&self, workspace: &Path, temp: &Path, tracking: &str) -> End {
        let environment = self.environment(workspace, temp, tracking);
        let context = steps::Context {
            workspace,
            temp,
            environment: &environment,
            cancelled: &self.cancelled,
        };
        if !self.hook(&context, "ACTIONS_RUNNER_HOOK_JOB_STARTED", "Set up runner") {
            self.skip(&self.start.job.steps);
            return End::Failure;
        }
        let job = &self.start.job;
        let mut containers = None;
        if job.container.is_some() || !job.services.is_empty() {
            self.diag.line("Initialize containers");
            let work = &self.service.settings().work;
            match Containers::prepare(&context, work, job.container.as_ref(), &job.services) {
                Ok(prepared) => containers = Some(prepared),
                Err(output) => {
                    self.report_setup_failure(&output);
                    return End::Failure;
                }
            }
        }
        let mut end = End::Success;
        for (i, step) in self.start.job.steps.iter().enumerate() {
            let ended = self.step(&context, step, containers.as_ref());
            if ended != End::Success {
                end = ended;
                self.skip(&self.start.job.steps[i + 1..]);
                break;
            }
        }
        if let Some(containers) = containers {
            self.diag.line("Stop containers");
            containers.clean_up();
        }
        if !self.hook(
            &context,
            "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
            "Complete runner",
        ) && end == End::Success
        {
            end = End::Failure;
        }
        end
    }

    fn step(
        &self,
        context: &steps::Context<'_>,
        step: &Step,
        containers: Option<&Containers<'_>>,
    ) -> End {
        self.diag
            .line(&format!("Step {} starts: {}", step.number, step.name));
        let pass_on = |text: &str| self.send(step.number, text, None, None);
        let result = match containers.filter(|containers| containers.has_container()) {
            Some(containers) => containers.run(step.number, &step.run, pass_on),
            None => steps::run(context, step.number, &step.run, pass_on),
        };
        let (word, end) = match result.end {
            End::Success => ("success", End::Success),
            End::Failure => ("failure", End::Failure),
            End::Cancelled => ("cancelled", End::Cancelled),
        };
        self.send(step.number, &result.rest, result.exit_code, Some(word));
        self.diag
            .line(&format!("Step {} ends: {word}", step.number));
        end
    }

    fn skip(&self, steps: &[Step]) {
        for step in steps {
            self.send(step.number, "", None, Some("skipped"));
        }
    }

    fn send(&self, number: u64, output: &str, exit_code: Option<i64>, conclusion: Option<&str>) {
        let report = json!({
            "jobId": self.start.request, "number": number, "output": output, "exit_code": exit_code,
            "conclusion": conclusion,
        });
        if let Err(e) = persist(3, || self.service.step(&self.start.run_url, &report)) {
            self.diag.line(&format!("telling of step {number}: {e}"));
        }
    }

    fn report_setup_failure(&self, text: &str) {
        if let Some(first) = self.start.job.steps.first() {
            self.send(first.number, text, None, Some("failure"));
            self.skip(&self.start.job.steps[1..]);
        }
    }

    /// Runs a job hook if one is set; `false`: it failed.
    fn hook(&self, context: &steps::Context<'_>, variable: &str, name: &str) -> bool {
        let Ok(path) = std::env::var(variable) else {
            return true;
        };
        self.diag.line(&format!("{name}: {path}"));
        let result = steps::run(
            context,
            0,
            &format!("exec sh -e '{}'", path.replace('\'', "'\\''")),
            |_| (),
        );
        if result.end != End::Success {
            self.diag.line(&format!("{name} failed"));
        }
        result.end == End::Success
    }

    fn environment(
        &self,
        workspace: &Path,
        temp: &Path,
        tracking: &str,
    ) -> BTreeMap<String, String> {
        let work = &self.service.settings().work;
        let mut env: BTreeMap<String, String> = std::env::vars()
            .filter(|(k, _)| {
                !k.starts_with("ACTIONS_RUNNER_INPUT_") && !k.starts_with("ACTIONS_RUNNER_HOOK_")
            })
            .collect();
        let tool_cache = std::env::var("RUNNER_TOOL_CACHE")
            .or_else(|_| std::env::var("AGENT_TOOLSDIRECTORY"))
            .unwrap_or_else(|_| work.join("_tool").display().to_string());
        let owner = self
            .start
            .job
            .repository
            .split('/')
            .next()
            .unwrap_or_default();
        for (name, value) in [
            ("CI", "true".to_owned()),
            ("GITHUB_ACTIONS", "true".to_owned()),
            ("GITHUB_WORKSPACE", workspace.display().to_string()),
            ("GITHUB_REPOSITORY", self.start.job.repository.clone()),
            ("GITHUB_REPOSITORY_OWNER", owner.to_owned()),
            ("GITHUB_JOB", self.start.job.name.clone()),
            ("RUNNER_NAME", self.service.settings().agent_name.clone()),
            ("RUNNER_OS", "Linux".to_owned()),
            ("RUNNER_ARCH", "X64".to_owned()),
            ("RUNNER_TEMP", temp.display().to_string()),
            (
                "RUNNER_WORKSPACE",
                workspace
                    .parent()
                    .unwrap_or(workspace)
                    .display()
                    .to_string(),
            ),
            ("RUNNER_TOOL_CACHE", tool_cache),
            ("RUNNER_TRACKING_ID", tracking.to_owned()),
        ] {
            env.insert(name.to_owned(), value);
        }
        env.extend(self.start.job.env.clone());
        env
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_with_unknown_fields_is_understood() {
        let line = json!({
            "job": {"name": "build", "repository": "a/b", "job_id": 1, "later": [], "steps": [{"number": 1, "name": "n", "run": "true", "x": 1}]},
            "runUrl": "http://h/run", "requestId": "r",
        });
        let start: Start = serde_json::from_value(line).unwrap();
        assert_eq!(
            (start.job.name.as_str(), start.job.steps.len()),
            ("build", 1)
        );
    }
}
