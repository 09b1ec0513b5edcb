//! A scheduler and a simulated GitHub as separate processes with default settings.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use longshore_e2e::{
    binaries::Binaries,
    fleet::{Scheduler, SchedulerSettings, Sim, secret_file},
    http::Http,
    wait::until,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The webhook secret of every measurement.
pub(crate) const SECRET: &str = "bench-webhook-secret";

/// Both processes and what they were told.
pub(crate) struct Fleet {
    pub(crate) sim: Sim,
    pub(crate) scheduler: Scheduler,
    pub(crate) binaries: Binaries,
    /// How the scheduler was started, to start it again.
    pub(crate) settings: SchedulerSettings,
    pub(crate) folder: TempDir,
}

/// What differs between measurements.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// Repositories `owner/name`; their owners become organisations.
    pub(crate) repositories: &'a [String],
    /// GitHub tells the scheduler by organisation webhooks.
    pub(crate) webhooks: bool,
    pub(crate) scheduler_flags: &'a [&'a str],
    pub(crate) config: Option<&'a str>,
    pub(crate) sim_net: Option<longshore_e2e::fleet::RunnerNet>,
    pub(crate) image: Option<&'a str>,
}

impl Fleet {
    pub(crate) async fn start(setup: Setup<'_>) -> Result<Self> {
        let binaries = Binaries::find()?;
        let folder = tempfile::tempdir()?;
        let path = folder.path();
        let sim = Sim::start(&binaries, path, setup.sim_net.as_ref(), 1, &[]).await?;
        let mut owners: Vec<&str> = Vec::new();
        for full in setup.repositories {
            let (owner, name) = full.split_once('/').context("repository is owner/name")?;
            if !owners.contains(&owner) {
                owners.push(owner);
                let members = json!({"bench-admin": "admin"});
                sim.control(
                    "owners",
                    json!({"login": owner, "kind": "organization", "members": members}),
                )
                .await?;
            }
            sim.control(
                "repos",
                json!({"owner": owner, "name": name, "private": true}),
            )
            .await?;
        }
        let token = sim
            .control(
                "tokens",
                json!({"login": "bench-admin", "scopes": ["repo", "admin:org", "admin:org_hook"]}),
            )
            .await?;
        let token = token["token"].as_str().context("a token")?.to_string();
        let settings = scheduler_settings(path, &sim, &token, &owners, &setup)?;
        let scheduler = Scheduler::start(&binaries, path, &settings).await?;
        let fleet = Self {
            sim,
            scheduler,
            binaries,
            settings,
            folder,
        };
        if setup.webhooks {
            fleet.hook(&owners).await?;
        }
        Ok(fleet)
    }

    async fn hook(&self, owners: &[&str]) -> Result<()> {
        for owner in owners {
            self.sim
                .control(
                    "hooks",
                    json!({
                        "organization": owner, "url": self.scheduler.webhook_url(), "secret": SECRET,
                        "events": ["workflow_job", "workflow_run"], "content_type": "json"
                    }),
                )
                .await?;
        }
        Ok(())
    }

    /// The simulator's list under `path`.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let answer = self.sim.look(path).await?;
        Ok(answer.as_array().cloned().unwrap_or_default())
    }

    /// Calls the scheduler made since the log was last cleared; control calls do not count.
    pub(crate) async fn github_calls(&self) -> Result<(u64, Value)> {
        let log = self.sim.look("requests").await?;
        Ok((
            log["total"].as_u64().context("total of the request log")?,
            log["by_endpoint"].clone(),
        ))
    }

    /// Waits until the sweep of the start is over, which reads everything once without validators.
    pub(crate) async fn swept(&self) -> Result<()> {
        let api = Http::new(self.scheduler.api_url());
        let token = std::fs::read_to_string(&self.scheduler.token_file)?;
        let bearer = format!("Bearer {}", token.trim());
        let look = || async {
            let patience = Duration::from_secs(10);
            let shown = [("authorization", bearer.as_str())];
            let answer = api.raw(
                hyper::Method::GET,
                "/metrics",
                &shown,
                Bytes::new(),
                patience,
            );
            let (_, text) = answer.await.map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&text);
            let sweeps = text
                .lines()
                .find_map(|line| line.strip_prefix("longshore_github_sweeps "));
            match sweeps {
                None | Some("0") => Err(format!("sweeps: {sweeps:?}")),
                Some(_) => Ok(()),
            }
        };
        until("the first sweep is over", Duration::from_secs(120), look).await
    }

    /// Starts the request log anew.
    pub(crate) async fn forget_calls(&self) -> Result<()> {
        self.sim
            .http
            .raw(
                hyper::Method::DELETE,
                "/_sim/requests",
                &[],
                Bytes::new(),
                Duration::from_secs(10),
            )
            .await?;
        Ok(())
    }
}

fn scheduler_settings(
    path: &Path,
    sim: &Sim,
    token: &str,
    owners: &[&str],
    setup: &Setup<'_>,
) -> Result<SchedulerSettings> {
    let token_file = path.join("token");
    secret_file(&token_file, token)?;
    let secret = path.join("webhook-secret");
    secret_file(&secret, SECRET)?;
    let config = match setup.config {
        Some(text) => {
            let file = path.join("scheduler.toml");
            std::fs::write(&file, text)?;
            Some(file)
        }
        None => None,
    };
    Ok(SchedulerSettings {
        state: path.join("scheduler"),
        github_url: Some(sim.url().into()),
        token_file: Some(token_file),
        webhook_secret_file: Some(secret),
        owners: owners.iter().map(|owner| (*owner).into()).collect(),
        image: setup.image.map(Into::into),
        config,
        more: setup
            .scheduler_flags
            .iter()
            .map(|flag| (*flag).into())
            .collect(),
        ..SchedulerSettings::default()
    })
}

/// `count` repositories over `owners` organisations.
pub(crate) fn repositories(owners: usize, count: usize) -> Vec<String> {
    (0..count)
        .map(|i| format!("org{}/repo{i}", i % owners))
        .collect()
}
