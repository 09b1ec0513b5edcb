//! GitHub as the process holds it: replaced as a whole when what is watched changes.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use scheduler_core::{
    input::{Deregistration, Input},
    model::{CredentialName, RunnerName, Scope},
};
use scheduler_github::{
    ApiUrl, Config as HubConfig, ConnectError, Credential, CredentialKind, GitHub as Client, Proxy,
    SecretSource,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, GitHubConfig, WatchSettings},
    ports::{
        Delivery, Demand, GitHub, OpenJobs, RateStatus, Registered, Registration,
        RegistrationFailed, Source, SweepStatus, WebhookError,
    },
};

/// One GitHub with all its credentials. Clones share the current connection.
#[derive(Clone)]
pub struct Hub {
    current: Arc<ArcSwap<Client>>,
    config: Arc<GitHubConfig>,
    prefix: Arc<str>,
}

impl Hub {
    /// Checks settings and files; calls nobody. `fleet_id` marks our runners.
    pub fn connect(config: &Config, fleet_id: &str) -> Result<Self, ConnectError> {
        let prefix = format!("ls-{fleet_id}-");
        let client = Client::connect(settings(&config.github, &config.watch, &prefix)?)?;
        Ok(Self {
            current: Arc::new(ArcSwap::from_pointee(client)),
            config: Arc::new(config.github.clone()),
            prefix: prefix.into(),
        })
    }

    fn client(&self) -> Client {
        Client::clone(&self.current.load())
    }
}

fn settings(
    config: &GitHubConfig,
    watch: &WatchSettings,
    prefix: &str,
) -> Result<HubConfig, ConnectError> {
    let mut credentials = Vec::new();
    if let (Some(id), Some(key)) = (config.app_id, &config.app_key_file) {
        credentials.push(Credential {
            name: CredentialName::new("app"),
            kind: CredentialKind::App {
                id: id.to_string(),
                key: SecretSource::File(key.clone()),
            },
        });
    }
    let token = match &config.token_file {
        Some(path) => Some(SecretSource::File(path.clone())),
        None => SecretSource::from_env("GITHUB_TOKEN"),
    };
    if let Some(token) = token {
        credentials.push(Credential {
            name: CredentialName::new("token"),
            kind: CredentialKind::Token(token),
        });
    }
    let mut hub = HubConfig {
        api_url: ApiUrl::parse(&config.api_url)?,
        credentials,
        since_days: watch.since_days,
        poll_interval: Duration::from_millis(watch.interval_ms),
        webhook_secrets: config
            .webhook_secret_files
            .iter()
            .cloned()
            .map(SecretSource::File)
            .collect(),
        proxy: Proxy::from_env(),
        ca_file: config.ca_file.clone(),
        runner_prefixes: vec![prefix.to_owned()],
        ..HubConfig::default()
    };
    for owner in &watch.owners {
        match owner.split_once('/') {
            None => hub.owners.push(owner.clone()),
            Some(("enterprises", slug)) => hub.enterprises.push(slug.to_owned()),
            Some(_) => hub.repositories.push(owner.clone()),
        }
    }
    Ok(hub)
}

impl GitHub for Hub {
    async fn register(&self, wanted: Registration) -> Result<Registered, RegistrationFailed> {
        self.client()
            .register(&wanted)
            .await
            .map_err(|error| RegistrationFailed {
                failure: error.failure,
                detail: error.error.to_string(),
            })
    }

    async fn deregister(
        &self,
        runner: RunnerName,
        scope: Scope,
        credential: CredentialName,
        github_id: Option<u64>,
    ) -> Deregistration {
        let client = self.client();
        let (outcome, error) = client
            .deregister(&runner, &scope, &credential, github_id)
            .await;
        if let Some(error) = error {
            tracing::warn!(%runner, %error, "a registration was not deleted; it is tried again");
        }
        outcome
    }
}

impl Demand for Hub {
    async fn receive(&self, delivery: Delivery<'_>) -> Result<Vec<Input>, WebhookError> {
        self.client().receive(delivery).await
    }

    async fn resolve(&self, owner: &str, name: &str) -> Option<(Scope, CredentialName)> {
        self.client().resolve(owner, name).await
    }

    fn sweep(&self) -> SweepStatus {
        self.client().status().borrow().clone()
    }

    fn rates(&self) -> Vec<RateStatus> {
        self.client().rates()
    }

    fn nudge(&self) {
        self.client().nudge();
    }
}

impl Source for Hub {
    async fn watch(
        self,
        jobs: OpenJobs,
        inputs: mpsc::Sender<Vec<Input>>,
        mut changes: watch::Receiver<WatchSettings>,
        stop: CancellationToken,
    ) {
        loop {
            self.client().remember(jobs());
            let sweeping = tokio::spawn(self.client().run(inputs.clone()));
            let changed = tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                () = stop.cancelled() => false,
            };
            if !changed {
                sweeping.abort();
                self.client().shutdown().await;
                return;
            }
            let wanted = changes.borrow_and_update().clone();
            let connected = settings(&self.config, &wanted, &self.prefix).and_then(Client::connect);
            match connected {
                // The older one's tokens expire by themselves: calls under way still use them.
                Ok(client) => self.current.store(Arc::new(client)),
                // Checked before it was stored; files may have gone since.
                Err(error) => tracing::error!(%error, "GitHub is watched as before"),
            }
            sweeping.abort();
        }
    }
}
