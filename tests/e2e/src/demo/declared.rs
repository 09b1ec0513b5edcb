//! What the demo queues, and how each job must end: written down before anything is started.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How a job must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Conclusion `success`.
    Success,
    /// Conclusion `failure`.
    Failure,
    /// Conclusion `cancelled`.
    Cancelled,
    /// Still queued when everything else is over, and nothing was started for it.
    Unschedulable,
}

/// One job as GitHub would list it, a matrix counting as several.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Declared {
    /// `owner/name`.
    pub repo: String,
    /// Name of the run it belongs to; unique in the demo.
    pub run: String,
    /// Job name; unique in its run.
    pub name: String,
    /// `runs-on`.
    pub labels: Vec<String>,
    /// How it must end.
    pub expect: Outcome,
    /// Its output is the in-container probe's.
    #[serde(default)]
    pub probe: bool,
    /// From the reader's own file.
    #[serde(default)]
    pub yours: bool,
}

/// One run: what is pushed to the simulator in one call.
#[derive(Debug, Clone)]
pub struct Run {
    /// Name of the run; unique in the demo.
    pub name: String,
    /// `owner/name`.
    pub repo: String,
    /// Body for the simulator.
    pub body: Value,
    /// Its jobs.
    pub jobs: Vec<Declared>,
    /// Cancelled as soon as this job runs.
    pub cancel_when_running: Option<String>,
}

/// One job of the reader's own file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Yours {
    repo: String,
    labels: Vec<String>,
    steps: Vec<String>,
    expect: YourOutcome,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum YourOutcome {
    Success,
    Failure,
    Unschedulable,
}

/// Most jobs a reader's file may hold: the demo is no load test.
const YOURS_MAX: usize = 200;

/// What this host cannot run, so that such jobs must stay queued.
#[derive(Debug, Clone)]
pub struct Host {
    /// Label of this host's architecture.
    pub native: &'static str,
    /// Label of an architecture this host lacks.
    pub foreign: &'static str,
    /// Label of an accelerator this host lacks.
    pub accelerator: &'static str,
}

impl Host {
    /// The host this runs on.
    pub fn here() -> Self {
        let arm = std::env::consts::ARCH == "aarch64";
        Self {
            native: if arm { "arm64" } else { "x64" },
            foreign: if arm { "x64" } else { "arm64" },
            accelerator: if Path::new("/dev/nvidiactl").exists() {
                "fpga"
            } else {
                "cuda"
            },
        }
    }
}

/// Organisation of the demo's repositories; has a webhook.
pub const ORGANISATION: &str = "acme";
/// Personal account: its runners register per repository.
pub const PERSON: &str = "mona";

/// The queue of the demo. `probe` is the script that a job runs to see what its sandbox holds.
pub fn standard(host: &Host, probe: Option<&str>) -> Vec<Run> {
    let native = vec![
        "self-hosted".to_owned(),
        "linux".to_owned(),
        host.native.to_owned(),
    ];
    let with = |extra: &str| {
        vec![
            "self-hosted".to_owned(),
            "linux".to_owned(),
            extra.to_owned(),
        ]
    };
    let mut runs = Vec::new();

    let mut web = Builder::new("web CI", "acme/web", "push");
    web.job(
        "lint",
        &native,
        &["echo checking 214 files", "echo no findings"],
        Outcome::Success,
    );
    web.job(
        "build",
        &native,
        &[
            "echo building on $(uname -m)",
            "echo artefact > out.txt && cat out.txt",
        ],
        Outcome::Success,
    );
    web.matrix(
        "test",
        4,
        &native,
        &["echo running shard", "test -n \"$HOME\""],
        &["build"],
        Outcome::Success,
    );
    runs.push(web.done());

    let mut api = Builder::new("api CI", "acme/api", "push");
    api.job(
        "unit",
        &native,
        &["echo 118 tests passed"],
        Outcome::Success,
    );
    api.job(
        "integration",
        &native,
        &[
            "echo connecting",
            "echo 'assertion failed: 41 == 42'; exit 3",
            "echo never printed",
        ],
        Outcome::Failure,
    );
    api.matrix(
        "package",
        3,
        &with(host.foreign),
        &["uname -m"],
        &[],
        Outcome::Unschedulable,
    );
    runs.push(api.done());

    let mut nightly = Builder::new("api nightly", "acme/api", "schedule");
    nightly.job(
        "soak",
        &native,
        &["echo soaking", "sleep 600"],
        Outcome::Cancelled,
    );
    let mut nightly = nightly.done();
    nightly.cancel_when_running = Some("soak".into());
    runs.push(nightly);

    let mut models = Builder::new("models", "acme/models", "workflow_dispatch");
    models.job(
        "evaluate",
        &native,
        &[
            "echo evaluating",
            "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo score 0.93",
        ],
        Outcome::Success,
    );
    models.matrix(
        "train",
        2,
        &with(host.accelerator),
        &["nvidia-smi"],
        &[],
        Outcome::Unschedulable,
    );
    runs.push(models.done());

    // In a repository of its own: beside jobs with the same labels, GitHub may hand any runner of theirs to it, and the fleet can only stop that runner.
    let mut fork = Builder::new("pull request from a fork", "mona/site", "pull_request");
    fork.job("from a stranger", &native, &["env"], Outcome::Unschedulable);
    let mut fork = fork.done();
    fork.body["head_repository"] = json!("stranger/site");
    runs.push(fork);

    let mut personal = Builder::new("dotfiles", "mona/dotfiles", "push");
    personal.job(
        "check",
        &native,
        &["echo personal account, own repository"],
        Outcome::Success,
    );
    runs.push(personal.done());

    if let Some(script) = probe {
        let mut isolation = Builder::new("isolation", "acme/web", "workflow_dispatch");
        isolation.job("probe the sandbox", &native, &[script], Outcome::Success);
        let mut isolation = isolation.done();
        isolation.jobs[0].probe = true;
        runs.push(isolation);
    }
    runs
}

/// The reader's own jobs, one run each.
pub fn yours(file: &Path) -> Result<Vec<Run>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    parse_yours(&text).with_context(|| {
        format!(
            "{}: expected [{{\"repo\":\"owner/name\",\"labels\":[\"self-hosted\",..],\"steps\":[\"shell\",..],\"expect\":\"success|failure|unschedulable\"}}, ..]",
            file.display()
        )
    })
}

fn parse_yours(text: &str) -> Result<Vec<Run>> {
    let jobs: Vec<Yours> = serde_json::from_str(text)?;
    if jobs.len() > YOURS_MAX {
        bail!("{} jobs, at most {YOURS_MAX}", jobs.len());
    }
    jobs.into_iter()
        .enumerate()
        .map(|(index, job)| {
            let number = index + 1;
            let sound = |part: &str| {
                !part.is_empty()
                    && part
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            match job.repo.split_once('/') {
                Some((owner, name)) if sound(owner) && sound(name) => {}
                _ => bail!("job {number}: repo `{}` is not owner/name", job.repo),
            }
            if job.steps.is_empty() {
                bail!("job {number}: has no steps");
            }
            let expect = match job.expect {
                YourOutcome::Success => Outcome::Success,
                YourOutcome::Failure => Outcome::Failure,
                YourOutcome::Unschedulable => Outcome::Unschedulable,
            };
            let name = format!("yours {number}");
            let steps: Vec<&str> = job.steps.iter().map(String::as_str).collect();
            let mut run = Builder::new(&name, &job.repo, "workflow_dispatch");
            run.job(&name, &job.labels, &steps, expect);
            let mut run = run.done();
            run.jobs[0].yours = true;
            Ok(run)
        })
        .collect()
}

struct Builder {
    run: Run,
}

impl Builder {
    fn new(name: &str, repo: &str, event: &str) -> Self {
        Self {
            run: Run {
                name: name.to_owned(),
                repo: repo.to_owned(),
                body: json!({"repository": repo, "workflow": name, "event": event, "head_branch": "main", "jobs": []}),
                jobs: Vec::new(),
                cancel_when_running: None,
            },
        }
    }

    fn job(&mut self, name: &str, labels: &[String], steps: &[&str], expect: Outcome) {
        self.matrix(name, 1, labels, steps, &[], expect);
    }

    fn matrix(
        &mut self,
        name: &str,
        size: usize,
        labels: &[String],
        steps: &[&str],
        needs: &[&str],
        expect: Outcome,
    ) {
        let mut job = json!({"name": name, "labels": labels, "steps": steps, "expect": expect});
        if !needs.is_empty() {
            job["needs"] = json!(needs);
        }
        if size > 1 {
            job["matrix"] = json!(size);
        }
        if let Some(jobs) = self.run.body["jobs"].as_array_mut() {
            jobs.push(job);
        }
        for n in 1..=size {
            let name = if size == 1 {
                name.to_owned()
            } else {
                format!("{name} ({n})")
            };
            self.run.jobs.push(Declared {
                repo: self.run.repo.clone(),
                run: self.run.name.clone(),
                name,
                labels: labels.to_vec(),
                expect,
                probe: false,
                yours: false,
            });
        }
    }

    fn done(self) -> Run {
        self.run
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_standard_queue_holds_every_kind_of_job() {
        let runs = standard(&Host::here(), Some("echo probe"));
        let jobs: Vec<&Declared> = runs.iter().flat_map(|r| &r.jobs).collect();
        let repos: BTreeSet<&str> = jobs.iter().map(|j| j.repo.as_str()).collect();
        assert!(repos.len() >= 4);
        for outcome in [
            Outcome::Success,
            Outcome::Failure,
            Outcome::Cancelled,
            Outcome::Unschedulable,
        ] {
            assert!(
                jobs.iter().any(|j| j.expect == outcome),
                "no job expects {outcome:?}"
            );
        }
        let names: BTreeSet<(&str, &str)> = jobs
            .iter()
            .map(|j| (j.run.as_str(), j.name.as_str()))
            .collect();
        assert_eq!(names.len(), jobs.len(), "a job cannot be told from another");
    }

    #[test]
    fn a_readers_file_becomes_runs() {
        let runs = parse_yours(
            r#"[{"repo":"me/x","labels":["self-hosted"],"steps":["true"],"expect":"failure"}]"#,
        )
        .unwrap();
        assert_eq!(runs.len(), 1);
        assert!(runs[0].jobs[0].yours);
        assert_eq!(runs[0].jobs[0].expect, Outcome::Failure);
    }

    #[test]
    fn a_readers_mistake_names_the_job() {
        for (text, part) in [
            (
                r#"[{"repo":"me","labels":[],"steps":["true"],"expect":"success"}]"#,
                "owner/name",
            ),
            (
                r#"[{"repo":"me/x","labels":[],"steps":[],"expect":"success"}]"#,
                "no steps",
            ),
            (
                r#"[{"repo":"me/x","labels":[],"steps":["true"],"expect":"maybe"}]"#,
                "maybe",
            ),
            (
                r#"[{"repo":"me/x","label":[],"steps":["true"],"expect":"success"}]"#,
                "label",
            ),
            (r#"{"repo":"me/x"}"#, "invalid type"),
        ] {
            let error = format!("{:#}", parse_yours(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
