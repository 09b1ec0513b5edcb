//! The ground a test stands on: a simulator with one organisation, and a scheduler that serves it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use longshore_e2e::{
    binaries::Binaries,
    fleet::{Scheduler, SchedulerSettings, Sim, secret_file},
};
use serde_json::json;
use tempfile::TempDir;

/// Secret of the webhooks.
pub(crate) const WEBHOOK_SECRET: &str = "not much of a secret";

/// A simulator with organisation `acme`, repository `acme/web` and an administrator's token.
pub(crate) struct Ground {
    pub(crate) binaries: Binaries,
    pub(crate) folder: TempDir,
    pub(crate) sim: Sim,
    pub(crate) settings: SchedulerSettings,
}

impl Ground {
    /// Starts the simulator.
    pub(crate) async fn lay() -> Result<Self> {
        let binaries = Binaries::find()?;
        let folder = tempfile::tempdir()?;
        let sim = Sim::start(&binaries, folder.path(), None, 1, &[]).await?;
        sim.control(
            "owners",
            json!({"login": "acme", "kind": "organization", "members": {"mona": "admin"}}),
        )
        .await?;
        sim.control(
            "repos",
            json!({"owner": "acme", "name": "web", "private": true}),
        )
        .await?;
        let token = sim
            .control(
                "tokens",
                json!({"login": "mona", "scopes": ["repo", "admin:org"]}),
            )
            .await?;
        let token_file = folder.path().join("secrets/token");
        secret_file(&token_file, token["token"].as_str().context("no token")?)?;
        let webhook_secret_file = folder.path().join("secrets/webhook");
        secret_file(&webhook_secret_file, WEBHOOK_SECRET)?;
        let settings = SchedulerSettings {
            state: folder.path().join("scheduler"),
            github_url: Some(sim.url().to_owned()),
            token_file: Some(token_file),
            webhook_secret_file: Some(webhook_secret_file),
            owners: vec!["acme".into()],
            image: Some("longshore-test:none".into()),
            ..SchedulerSettings::default()
        };
        Ok(Self {
            binaries,
            folder,
            sim,
            settings,
        })
    }

    /// Starts the scheduler and points the organisation's webhook at it.
    pub(crate) async fn scheduler(&self) -> Result<Scheduler> {
        let scheduler =
            Scheduler::start(&self.binaries, self.folder.path(), &self.settings).await?;
        self.sim
            .control(
                "hooks",
                json!({"organization": "acme", "url": scheduler.webhook_url(), "secret": WEBHOOK_SECRET,
                       "events": ["workflow_job", "workflow_run"]}),
            )
            .await?;
        Ok(scheduler)
    }

    /// A path in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
