//! The demo against the fake GitHub: a world of repositories, a queue, and every job watched to its declared end.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    declared::{self, Declared, Host, ORGANISATION, Outcome, PERSON, Run},
    folder::{Folder, write_json},
    gather::{self, Declaration},
    identity::{Identity, RUN_VARIABLE},
    parts::{Parts, Wishes},
    show::Show,
    stop::Stop,
    verdict::JobState,
};
use crate::fleet::{Scheduler, SchedulerSettings, Sim, secret_file};

/// Longest the whole queue may take on a slow host.
const QUEUE_WITHIN: Duration = Duration::from_secs(600);
/// Time between two looks at the jobs.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What a job runs to see what its sandbox holds; the image has it.
const PROBE: &str = "longshore-probe --profile=strict";
/// Everything that is to be queued.
pub fn queue(wishes: &Wishes) -> Result<Vec<Run>> {
    let mut runs = declared::standard(&Host::here(), Some(PROBE));
    if let Some(file) = &wishes.jobs {
        runs.extend(declared::yours(file)?);
    }
    Ok(runs)
}

/// Writes down what must happen.
pub fn declare(folder: &Folder, runs: &[Run]) -> Result<()> {
    let jobs: Vec<Declared> = runs.iter().flat_map(|r| r.jobs.clone()).collect();
    write_json(&folder.declared(), &Declaration { jobs, real: false })
}

/// Starts simulator, scheduler and agent, with a world for the queue.
pub async fn start(
    parts: &mut Parts,
    wishes: &Wishes,
    folder: &Folder,
    identity: &Identity,
    runs: &[Run],
    image: &str,
) -> Result<()> {
    let logs = folder.logs();
    let sim = parts.sim.insert(
        Sim::start(
            &wishes.binaries,
            &logs,
            Some(&identity.runner_net()),
            1,
            &[],
        )
        .await?,
    );
    let token = world(sim, runs).await?;
    let owners = owners(runs);
    let secrets = folder.state().join("secrets");
    let (token_file, webhook_file) = (secrets.join("token"), secrets.join("webhook"));
    secret_file(&token_file, &token)?;
    let webhook_secret = random_secret()?;
    secret_file(&webhook_file, &webhook_secret)?;
    let scheduler = Scheduler::start(
        &wishes.binaries,
        &logs,
        &SchedulerSettings {
            state: folder.state().join("scheduler"),
            github_url: Some(sim.url().to_owned()),
            token_file: Some(token_file),
            webhook_secret_file: Some(webhook_file),
            owners: owners.clone(),
            image: Some(image.to_owned()),
            // Small runners, so that a small host runs several jobs at once.
            more: ["--default-cpu", "0.5", "--default-memory", "512MiB"]
                .map(String::from)
                .to_vec(),
            env: vec![(RUN_VARIABLE.to_owned(), identity.run.clone())],
            ..SchedulerSettings::default()
        },
    )
    .await?;
    let scheduler = parts.scheduler.insert(scheduler);
    hooks(sim, runs, &scheduler.webhook_url(), &webhook_secret).await?;
    parts.start_agent(wishes, folder, identity).await
}

fn random_secret() -> Result<String> {
    let mut bytes = [0; 24];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    Ok(hex::encode(bytes))
}

fn owners(runs: &[Run]) -> Vec<String> {
    let mut owners: Vec<String> = runs
        .iter()
        .filter_map(|r| r.repo.split_once('/'))
        .map(|(owner, _)| owner.to_owned())
        .collect();
    owners.sort();
    owners.dedup();
    owners
}

/// Makes owners, repositories and a token for them.
async fn world(sim: &Sim, runs: &[Run]) -> Result<String> {
    sim.control("owners", json!({"login": PERSON, "kind": "user"}))
        .await?;
    for owner in owners(runs).iter().filter(|o| *o != PERSON) {
        // Whoever the reader's own repositories belong to: an organisation that the demo's person administers.
        sim.control(
            "owners",
            json!({"login": owner, "kind": "organization", "members": {PERSON: "admin"}}),
        )
        .await?;
    }
    let mut repos: Vec<&str> = runs.iter().map(|r| r.repo.as_str()).collect();
    repos.sort_unstable();
    repos.dedup();
    for repo in repos {
        repository(sim, repo, json!({"private": true})).await?;
    }
    for fork in runs
        .iter()
        .filter_map(|r| r.body["head_repository"].as_str())
    {
        let stranger = fork.split('/').next().unwrap_or(fork);
        sim.control("owners", json!({"login": stranger, "kind": "user"}))
            .await?;
        repository(sim, fork, json!({"fork": true})).await?;
    }
    let token = sim
        .control(
            "tokens",
            json!({"login": PERSON, "scopes": ["repo", "admin:org"]}),
        )
        .await?;
    token["token"]
        .as_str()
        .map(str::to_owned)
        .context("the simulator gave no token")
}

async fn repository(sim: &Sim, full_name: &str, mut body: Value) -> Result<()> {
    let (owner, name) = full_name.split_once('/').context("owner/name")?;
    body["owner"] = json!(owner);
    body["name"] = json!(name);
    sim.control("repos", body).await?;
    Ok(())
}

/// Webhooks as an operator would set them: one per organisation, one per personal repository.
async fn hooks(sim: &Sim, runs: &[Run], url: &str, secret: &str) -> Result<()> {
    let events = json!(["workflow_job", "workflow_run"]);
    for owner in owners(runs).iter().filter(|o| *o != PERSON) {
        sim.control(
            "hooks",
            json!({"organization": owner, "url": url, "secret": secret, "events": events}),
        )
        .await?;
    }
    let mut personal: Vec<&str> = runs
        .iter()
        .map(|r| r.repo.as_str())
        .filter(|r| r.starts_with(&format!("{PERSON}/")))
        .collect();
    personal.dedup();
    for repo in personal {
        sim.control(
            "hooks",
            json!({"repository": repo, "url": url, "secret": secret, "events": events}),
        )
        .await?;
    }
    Ok(())
}

/// Pushes the queue and follows it to its end.
pub async fn run(
    parts: &mut Parts,
    folder: &Folder,
    runs: &[Run],
    show: &mut Show,
    stop: &mut Stop,
) -> Result<()> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut cancels: Vec<(String, String)> = Vec::new();
    for run in runs {
        let sim = parts.sim.as_ref().context("no simulator")?;
        let made = sim.control("runs", run.body.clone()).await?;
        let id = made["run_id"].to_string();
        if let Some(job) = &run.cancel_when_running {
            cancels.push((id.clone(), job.clone()));
        }
        names.insert(id, run.name.clone());
        // After each, so that the checker knows them all whatever happens next.
        write_json(&folder.path().join(gather::RUNS), &names)?;
    }
    let declared: Vec<Declared> = runs.iter().flat_map(|r| r.jobs.clone()).collect();
    show.line(&format!(
        "queued {} jobs in {} repositories of {ORGANISATION}, {PERSON} and others; {} of them cannot run here",
        declared.len(),
        runs.iter().map(|r| &r.repo).collect::<std::collections::BTreeSet<_>>().len(),
        declared.iter().filter(|d| d.expect == Outcome::Unschedulable).count()
    ));

    let deadline = Instant::now() + QUEUE_WITHIN;
    loop {
        parts.must_run()?;
        let sim = parts.sim.as_ref().context("no simulator")?;
        let raw = gather::rows(&sim.look("jobs").await?);
        let jobs = gather::jobs(&raw, &names);
        show.jobs(&repositories(&raw), &jobs);
        for (run, job) in std::mem::take(&mut cancels) {
            let running = jobs
                .iter()
                .any(|j| j.run_id.to_string() == run && j.name == job && j.status == "in_progress");
            if running {
                sim.control(&format!("runs/{run}/cancel"), json!({}))
                    .await?;
                show.line(&format!(
                    "cancelling {job}, as somebody would on GitHub's page"
                ));
            } else {
                cancels.push((run, job));
            }
        }
        let open = open_jobs(&declared, &jobs);
        if open.is_empty() {
            break;
        }
        if stop.asked() {
            bail!("stopped by a signal with {} jobs open", open.len());
        }
        if Instant::now() >= deadline {
            bail!("after {QUEUE_WITHIN:?} still open: {}", open.join(", "));
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn repositories(raw: &[Value]) -> BTreeMap<u64, String> {
    raw.iter()
        .filter_map(|j| Some((j["id"].as_u64()?, j["repository"].as_str()?.to_owned())))
        .collect()
}

/// Declared jobs that must end and have not.
fn open_jobs(declared: &[Declared], jobs: &[JobState]) -> Vec<String> {
    declared
        .iter()
        .filter(|d| d.expect != Outcome::Unschedulable)
        .filter(|d| {
            !jobs
                .iter()
                .any(|j| j.run == d.run && j.name == d.name && j.status == "completed")
        })
        .map(|d| format!("{} / {}", d.run, d.name))
        .collect()
}

/// Writes what each job's steps printed, and for those still queued what the scheduler says about them.
pub async fn write_jobs(
    parts: &Parts,
    wishes: &Wishes,
    folder: &Folder,
    show: &mut Show,
) -> Result<()> {
    let sim = parts.sim.as_ref().context("no simulator")?;
    let scheduler = parts.scheduler.as_ref().context("no scheduler")?;
    for job in gather::rows(&sim.look("jobs").await?) {
        let repo = job["repository"].as_str().unwrap_or_default().to_owned();
        let name = job["name"].as_str().unwrap_or_default().to_owned();
        let id = job["id"].to_string();
        let place = folder
            .jobs()
            .join(file_name(&format!("{repo} {name} {id}")));
        write_json(&place.join("job.json"), &job)?;
        for step in gather::rows(&job["steps"]) {
            let number = step["number"].as_u64().unwrap_or_default();
            write_text(
                &place.join(format!("step-{number}.out")),
                step["output"].as_str().unwrap_or_default(),
            )?;
            // A step that was never run has no exit code: no file rather than a made-up one.
            if let Some(code) = step["exit_code"].as_i64() {
                write_text(
                    &place.join(format!("step-{number}.exit")),
                    &format!("{code}\n"),
                )?;
            }
        }
        if job["status"] == "queued" {
            let output = scheduler.cli(&wishes.binaries, &["explain", &id]).await?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            write_text(&place.join("explain.txt"), &text)?;
            let why = text
                .lines()
                .find_map(|l| l.strip_prefix("Why "))
                .or_else(|| text.lines().next())
                .unwrap_or("no explanation");
            show.line(&format!("{repo:16} {name:22} why it waits: {}", why.trim()));
        }
    }
    Ok(())
}

/// A text as a file name: nothing that could leave the folder.
fn file_name(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_name_cannot_leave_its_folder() {
        assert_eq!(file_name("a/../b c"), "a_.._b_c");
    }

    #[test]
    fn only_jobs_that_must_end_keep_the_demo_waiting() {
        let runs = declared::standard(&Host::here(), None);
        let declared: Vec<Declared> = runs.iter().flat_map(|r| r.jobs.clone()).collect();
        let open = open_jobs(&declared, &[]);
        assert_eq!(
            open.len(),
            declared
                .iter()
                .filter(|d| d.expect != Outcome::Unschedulable)
                .count()
        );
        let ended: Vec<JobState> = declared
            .iter()
            .filter(|d| d.expect != Outcome::Unschedulable)
            .map(|d| JobState {
                run: d.run.clone(),
                name: d.name.clone(),
                status: "completed".into(),
                ..JobState::default()
            })
            .collect();
        assert!(open_jobs(&declared, &ended).is_empty());
    }
}
