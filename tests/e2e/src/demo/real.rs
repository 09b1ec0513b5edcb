//! The demo with a GitHub credential: the same programs serve an owner's real repositories until Ctrl-C.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use longshore_client::v1;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    folder::{Folder, write_json},
    gather::{Declaration, Story},
    identity::{Identity, RUN_VARIABLE},
    parts::{Parts, Wishes},
    show::Show,
    stop::Stop,
    verdict::{JobState, Registration},
};
use crate::fleet::{Scheduler, SchedulerSettings, secret_file};

/// Time between two looks at the jobs.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whose repositories, and by which credential.
#[derive(Clone)]
pub struct Source {
    owners: Vec<String>,
    token: Option<String>,
    app: Option<(String, PathBuf)>,
    url: Option<String>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("owners", &self.owners)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// From `OWNER`, `GITHUB_TOKEN` or `GITHUB_APP_ID` and `GITHUB_APP_KEY_FILE`, and `GITHUB_API_URL`. `None` without an owner.
    pub fn from_variables(read: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let set = |name: &str| read(name).filter(|v| !v.trim().is_empty());
        let Some(owners) = set("OWNER") else {
            return Ok(None);
        };
        let token = set("GITHUB_TOKEN");
        let app = match (set("GITHUB_APP_ID"), set("GITHUB_APP_KEY_FILE")) {
            (Some(id), Some(file)) => Some((id, PathBuf::from(file))),
            (None, None) => None,
            _ => bail!("a GitHub App needs both GITHUB_APP_ID and GITHUB_APP_KEY_FILE"),
        };
        if token.is_none() && app.is_none() {
            bail!(
                "OWNER={owners} needs a credential: set GITHUB_TOKEN, or GITHUB_APP_ID and GITHUB_APP_KEY_FILE"
            );
        }
        Ok(Some(Self {
            owners: owners.split(',').map(|o| o.trim().to_owned()).collect(),
            token,
            app,
            url: set("GITHUB_API_URL"),
        }))
    }
}

/// Nobody knows beforehand what real repositories hold.
pub fn declare(folder: &Folder) -> Result<()> {
    write_json(
        &folder.declared(),
        &Declaration {
            jobs: Vec::new(),
            real: true,
        },
    )
}

/// Starts scheduler and agent.
pub async fn start(
    parts: &mut Parts,
    wishes: &Wishes,
    folder: &Folder,
    identity: &Identity,
    source: &Source,
) -> Result<()> {
    let token_file = match &source.token {
        None => None,
        Some(token) => {
            let file = folder.state().join("secrets/token");
            secret_file(&file, token)?;
            Some(file)
        }
    };
    let scheduler = Scheduler::start(
        &wishes.binaries,
        &folder.logs(),
        &SchedulerSettings {
            state: folder.state().join("scheduler"),
            github_url: source.url.clone(),
            token_file,
            app: source.app.clone(),
            owners: source.owners.clone(),
            image: wishes.image.clone(),
            env: vec![(RUN_VARIABLE.to_owned(), identity.run.clone())],
            ..SchedulerSettings::default()
        },
    )
    .await?;
    parts.scheduler = Some(scheduler);
    parts.start_agent(wishes, folder, identity).await
}

/// Shows jobs as they come and go, until somebody asks to stop.
pub async fn run(
    parts: &mut Parts,
    show: &mut Show,
    stop: &mut Stop,
    source: &Source,
) -> Result<()> {
    show.line(&format!(
        "serving {}; Ctrl-C lets running jobs end and takes everything down",
        source.owners.join(", ")
    ));
    let client = parts.client()?;
    while !stop.asked() {
        parts.must_run()?;
        let jobs = jobs(&client).await?;
        let repos: BTreeMap<u64, String> = jobs.iter().map(|j| (j.id, j.repo.clone())).collect();
        let states: Vec<JobState> = jobs.iter().map(state).collect();
        show.jobs(&repos, &states);
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// What the fleet knows at the end, in the place of the simulator's story.
pub async fn write_story(parts: &Parts, folder: &Folder) -> Result<()> {
    let client = parts.client()?;
    let listed = client
        .list_runners(v1::ListRunnersRequest {
            page_size: longshore_client::MAX_PAGE,
            ..Default::default()
        })
        .await?;
    let story = Story {
        jobs: jobs(&client)
            .await?
            .iter()
            .map(|j| raw(&state(j)))
            .collect::<Result<_>>()?,
        registrations_left: listed
            .runners
            .into_iter()
            .map(|r| Registration {
                name: r.name,
                scope: r.scope,
                labels: r.labels,
            })
            .collect(),
        ..Story::default()
    };
    write_json(&folder.github(), &story)
}

async fn jobs(client: &longshore_client::Client) -> Result<Vec<v1::Job>> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = client
            .list_jobs(v1::ListJobsRequest {
                page_size: longshore_client::MAX_PAGE,
                page_token,
                ..Default::default()
            })
            .await
            .context("list jobs")?;
        all.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

fn state(job: &v1::Job) -> JobState {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    let millis = |t: &Option<_>| {
        t.as_ref()
            .map(|t: &prost_types::Timestamp| t.seconds * 1_000 + i64::from(t.nanos) / 1_000_000)
    };
    JobState {
        id: job.id,
        run_id: job.run_id,
        run: job.workflow.clone(),
        name: job.name.clone(),
        status: job.state.clone(),
        conclusion: text(&job.conclusion),
        runner_name: text(&job.runner),
        queued_ms: millis(&job.queued_at),
        started_ms: millis(&job.started_at),
        assignments: Vec::new(),
    }
}

fn raw(job: &JobState) -> Result<Value> {
    let mut value = serde_json::to_value(job)?;
    value["steps"] = json!([]);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        }
    }

    #[test]
    fn without_an_owner_the_simulator_is_served() {
        assert!(
            Source::from_variables(read(&[("GITHUB_TOKEN", "t")]))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn an_owner_needs_a_whole_credential() {
        for pairs in [
            &[("OWNER", "me")][..],
            &[("OWNER", "me"), ("GITHUB_APP_ID", "1")],
        ] {
            let error = Source::from_variables(read(pairs)).unwrap_err().to_string();
            assert!(error.contains("GITHUB_"), "{error}");
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        let source = Source::from_variables(read(&[("OWNER", "me,you"), ("GITHUB_TOKEN", "hush")]))
            .unwrap()
            .unwrap();
        assert_eq!(source.owners, ["me", "you"]);
        assert!(!format!("{source:?}").contains("hush"));
    }
}
