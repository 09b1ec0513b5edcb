//! GitHub as the process holds it: replaced as a whole when what is watched changes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use scheduler_core::{
    input::{Deregistration, Input},
    model::{CredentialName, RunnerName, Scope},
};
use scheduler_github::{
    Account, ApiUrl, Config as HubConfig, ConnectError, Credential, CredentialKind, Enterprise,
    GitHub as Client, Proxy, SecretSource,
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

/// Lists of runners are never closer together.
const SOONEST_LIST: Duration = Duration::from_secs(1);

/// One GitHub with all its credentials. Clones share the current connection.
#[derive(Clone)]
pub struct Hub {
    current: Arc<ArcSwap<Client>>,
    config: Arc<ArcSwap<GitHubConfig>>,
    prefix: Arc<str>,
    /// Time between two lists of runners, in milliseconds.
    list_every: Arc<AtomicU64>,
}

impl Hub {
    /// Checks settings and files; calls nobody. `fleet_id` marks our runners.
    pub fn connect(config: &Config, fleet_id: &str) -> Result<Self, ConnectError> {
        let prefix = format!("ls-{fleet_id}-");
        let list_every = list_every(config);
        let wanted = settings(&config.github, &config.watch, &prefix, list_every)?;
        let client = Client::connect(wanted)?;
        Ok(Self {
            current: Arc::new(ArcSwap::from_pointee(client)),
            config: Arc::new(ArcSwap::from_pointee(config.github.clone())),
            prefix: prefix.into(),
            list_every: Arc::new(AtomicU64::new(list_every.as_millis() as u64)),
        })
    }

    /// Takes other settings for the connection that the next change of what is watched makes.
    /// What could not connect is refused, and everything stays as it is.
    pub fn reconfigure(&self, config: &Config) -> Result<(), ConnectError> {
        let every = list_every(config);
        Client::connect(settings(
            &config.github,
            &config.watch,
            &self.prefix,
            every,
        )?)?;
        self.config.store(Arc::new(config.github.clone()));
        self.list_every
            .store(every.as_millis() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn client(&self) -> Client {
        Client::clone(&self.current.load())
    }
}

/// A ghost is found by two lists; an orphan by the one after it is old enough.
fn list_every(config: &Config) -> Duration {
    (config.defaults.orphan_age / 2).min(config.defaults.ghost_age)
}

fn settings(
    config: &GitHubConfig,
    watch: &WatchSettings,
    prefix: &str,
    list_every: Duration,
) -> Result<HubConfig, ConnectError> {
    let mut hub = HubConfig {
        api_url: ApiUrl::parse(&config.api_url)?,
        since_days: watch.since_days,
        poll_interval: Duration::from_millis(watch.interval_ms),
        webhook_secrets: config
            .webhook_secret_files
            .iter()
            .cloned()
            .map(SecretSource::File)
            .collect(),
        webhook_url: config.webhook_url.clone(),
        proxy: Proxy::from_env(),
        ca_file: config.ca_file.clone(),
        runner_prefixes: vec![prefix.to_owned()],
        list_runners_every: list_every.max(SOONEST_LIST),
        ..HubConfig::default()
    };
    // An account's own token comes first: it serves that account alone.
    for account in &config.accounts.accounts {
        let credential = account.token_file.as_ref().map(|file| {
            let kind = CredentialKind::Token(SecretSource::File(file.clone()));
            add(&mut hub, format!("token-{}", account.login), kind)
        });
        hub.accounts.push(Account {
            login: account.login.clone(),
            organization: account.organization,
            credential,
        });
    }
    let app = config.app_id.zip(config.app_key_file.clone());
    let app = app.map(|(id, key)| {
        let kind = CredentialKind::App {
            id: id.to_string(),
            key: SecretSource::File(key),
        };
        add(&mut hub, "app".to_owned(), kind)
    });
    let token = match &config.token_file {
        Some(path) => Some(SecretSource::File(path.clone())),
        None => SecretSource::from_env("GITHUB_TOKEN"),
    };
    let token = token.map(|token| add(&mut hub, "token".to_owned(), CredentialKind::Token(token)));
    for enterprise in &config.accounts.enterprises {
        let kind =
            CredentialKind::EnterpriseToken(SecretSource::File(enterprise.token_file.clone()));
        let credential = add(&mut hub, format!("enterprise-{}", enterprise.slug), kind);
        hub.enterprises.push(Enterprise {
            slug: enterprise.slug.clone(),
            credential,
            organizations: enterprise.organizations.clone(),
        });
    }
    for owner in &watch.owners {
        match owner.split_once('/') {
            None => hub.owners.push(owner.clone()),
            // Named without a token of its own: the general token may hold the right, an App never.
            Some(("enterprises", slug)) => {
                let mut known = hub.enterprises.iter();
                if known.all(|known| !known.slug.eq_ignore_ascii_case(slug)) {
                    let credential = token.clone().or_else(|| app.clone());
                    hub.enterprises.push(Enterprise {
                        slug: slug.to_owned(),
                        credential: credential.unwrap_or_else(|| CredentialName::new("token")),
                        organizations: Vec::new(),
                    });
                }
            }
            Some(_) => hub.repositories.push(owner.clone()),
        }
    }
    Ok(hub)
}

fn add(hub: &mut HubConfig, name: String, kind: CredentialKind) -> CredentialName {
    let name = CredentialName::new(name);
    hub.credentials.push(Credential {
        name: name.clone(),
        kind,
    });
    name
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

    fn distrust(&self) {
        self.client().distrust();
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
            let every = Duration::from_millis(self.list_every.load(Ordering::Relaxed));
            let connected = settings(&self.config.load(), &wanted, &self.prefix, every)
                .and_then(Client::connect);
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
