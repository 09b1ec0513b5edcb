//! The handle the shell holds: one GitHub, all credentials.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use scheduler_core::{
    input::{Deregistration, Input, JobSeen, ListedRunner},
    model::{CredentialName, JobId, JobPhase, Origin, Repository, RunnerName, Scope, UtcMillis},
};
use secrecy::SecretString;
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    client::Client,
    config::{Config, ConfigError},
    coverage::{Coverage, Waits},
    credential::{Identity, Secret, Source, lock, utc_now},
    deliveries::Hooks,
    directory::Directory,
    discovery::{self, Shown},
    error::CallError,
    ledger::Ledger,
    live::Live,
    pages::{Pacer, PageCache},
    problems::Problems,
    registration::{self, Groups, RegisterError, Registered, Registration},
    schedule::Health,
    status::{RateStatus, SweepStatus},
    sweep::{self, RunBrief},
    translate::Route,
    webhook::{Delivery, WebhookError},
    wire::Installation,
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
#[derive(Clone)]
pub struct GitHub {
    pub(crate) inner: Arc<Inner>,
}

/// What the parts share.
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) pacer: Pacer,
    pub(crate) directory: Mutex<Directory>,
    pub(crate) live: Mutex<Live>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) health: Mutex<Health>,
    pub(crate) coverage: Mutex<Coverage>,
    pub(crate) waits: Waits,
    pub(crate) hooks: Hooks,
    /// Origins of runs that a webhook or list told, for jobs that follow.
    pub(crate) origins: Mutex<BTreeMap<u64, Origin>>,
    pub(crate) problems: Problems,
    pub(crate) runs: PageCache<RunBrief>,
    pub(crate) jobs: PageCache<JobSeen>,
    pub(crate) repositories: PageCache<Shown>,
    pub(crate) installations: PageCache<Installation>,
    pub(crate) status: watch::Sender<SweepStatus>,
    pub(crate) sweep_now: Notify,
    pub(crate) discover_now: Notify,
    pub(crate) started_at: UtcMillis,
    /// Scopes with registrations lately, for the orphan list.
    pub(crate) in_use: Mutex<BTreeMap<Scope, (CredentialName, UtcMillis)>>,
    groups: Groups,
    webhook_secrets: Vec<Secret>,
    /// Repositories nobody reaches, so that each webhook does not ask again.
    unreachable: Mutex<BTreeMap<String, UtcMillis>>,
}

/// How long an unreachable repository is not asked about again.
const UNREACHABLE_MS: u64 = 5 * 60_000;
const MOST_UNREACHABLE: usize = 1_000;
const MOST_ORIGINS: usize = 20_000;
/// Longest a webhook waits for an unknown repository to be looked up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(4);

impl GitHub {
    /// Checks settings and files and prepares the transport. Calls nobody, so
    /// that a scheduler starts while GitHub is down; troubles show in
    /// [`SweepStatus::problems`]. Needs a tokio runtime around it.
    pub fn connect(config: Config) -> Result<Self, ConnectError> {
        for name in &config.repositories {
            let mut parts = name.split('/');
            let good = parts.next().is_some_and(|part| !part.is_empty())
                && parts.next().is_some_and(|part| !part.is_empty())
                && parts.next().is_none();
            if !good {
                return Err(ConfigError::Repository(name.clone()));
            }
        }
        config.check_accounts()?;
        let client = Client::new(&config)?;
        let webhook_secrets: Vec<Secret> = config
            .webhook_secrets
            .iter()
            .map(|source| Secret::new(source.clone(), "the webhook secret file"))
            .collect();
        for secret in &webhook_secrets {
            secret.read()?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                pacer: Pacer::default(),
                directory: Mutex::new(Directory::new(&config.repositories)),
                live: Mutex::default(),
                ledger: Mutex::default(),
                health: Mutex::default(),
                coverage: Mutex::default(),
                waits: Waits::of(config.poll_interval),
                hooks: Hooks::default(),
                origins: Mutex::default(),
                problems: Problems::default(),
                runs: PageCache::default(),
                jobs: PageCache::default(),
                repositories: PageCache::default(),
                installations: PageCache::default(),
                status: watch::Sender::new(SweepStatus::default()),
                sweep_now: Notify::new(),
                discover_now: Notify::new(),
                started_at: utc_now(),
                in_use: Mutex::default(),
                groups: Groups::default(),
                webhook_secrets,
                unreachable: Mutex::default(),
                config,
            }),
        })
    }

    /// Discovers repositories, sweeps, lists runners for the orphan sweep and
    /// tells budgets, until `inputs` is closed. Spawn it once.
    pub async fn run(self, inputs: mpsc::Sender<Vec<Input>>) {
        sweep::run(&self.inner, &inputs).await;
    }

    /// Verifies, parses and translates one delivery. The caller answers 202 when
    /// the inputs are committed; 401, 413 or 400 by [`WebhookError`].
    pub async fn receive(&self, delivery: Delivery<'_>) -> Result<Vec<Input>, WebhookError> {
        crate::receive::receive(&self.inner, delivery).await
    }

    /// Creates a registration. Not idempotent: after [`RegisterError`] the name is burnt.
    pub async fn register(&self, wanted: &Registration) -> Result<Registered, RegisterError> {
        let inner = &self.inner;
        let identity = inner.registrar(&wanted.scope, &wanted.credential).await?;
        inner.mark_in_use(&wanted.scope, &identity.name);
        registration::register(
            &inner.client,
            &inner.pacer,
            &inner.groups,
            &identity,
            wanted,
        )
        .await
    }

    /// Deletes a registration, by id when known, else by name. The error says why it failed.
    pub async fn deregister(
        &self,
        runner: &RunnerName,
        scope: &Scope,
        credential: &CredentialName,
        github_id: Option<u64>,
    ) -> (Deregistration, Option<CallError>) {
        let inner = &self.inner;
        let outcome = match inner.registrar(scope, credential).await {
            Ok(identity) => {
                inner.mark_in_use(scope, &identity.name);
                registration::deregister(&inner.client, &identity, runner, scope, github_id).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(outcome) => (outcome, None),
            Err(error) => (Deregistration::Failed, Some(error)),
        }
    }

    /// All runners of a scope whose name carries one of our prefixes.
    pub async fn list_runners(
        &self,
        scope: &Scope,
        credential: &CredentialName,
    ) -> Result<Vec<ListedRunner>, CallError> {
        let inner = &self.inner;
        let identity = inner.registrar(scope, credential).await?;
        let prefixes = &inner.config.runner_prefixes;
        registration::list_runners(&inner.client, &inner.pacer, &identity, scope, prefixes).await
    }

    /// Where runners for `owner/name` register and with which credential; `None`
    /// when nothing we hold reaches it. May ask GitHub the first time.
    pub async fn resolve(&self, owner: &str, name: &str) -> Option<(Scope, CredentialName)> {
        let route = self.inner.route(owner, name).await?;
        let exists = self.inner.exists(owner, name).await;
        exists.then_some((route.scope, route.credential))
    }

    /// Jobs remembered from before the start: those that vanished from GitHub's
    /// lists meanwhile are asked about and reported by the next sweeps.
    pub fn remember(&self, jobs: impl IntoIterator<Item = KnownJob>) {
        let mut live = lock(&self.inner.live);
        for job in jobs {
            live.note(&JobSeen {
                id: job.id,
                run_id: job.run_id,
                attempt: job.attempt,
                scope: Scope::Repository {
                    owner: job.repository.owner.clone(),
                    repo: job.repository.name.clone(),
                },
                repository: job.repository,
                credential: CredentialName::new(""),
                name: String::new(),
                workflow: String::new(),
                labels: Vec::new(),
                phase: JobPhase::Waiting,
                conclusion: None,
                runner_name: None,
                runner_id: None,
                origin: Origin::default(),
                created_at: 0,
                started_at: None,
                completed_at: None,
                html_url: String::new(),
                traceparent: None,
            });
        }
    }

    /// What a delivery told may not have been kept: for a while the sweep reads
    /// everything again, whatever webhooks told.
    pub fn distrust(&self) {
        lock(&self.inner.health).missed(utc_now());
    }

    /// Sweeps at once (still within the budget).
    pub fn nudge(&self) {
        self.inner.sweep_now.notify_one();
    }

    /// Changed after each sweep.
    pub fn status(&self) -> watch::Receiver<SweepStatus> {
        self.inner.status.subscribe()
    }

    /// Limits as the last replies told them.
    pub fn rates(&self) -> Vec<RateStatus> {
        let now = utc_now();
        let mut all = Vec::new();
        for identity in self.inner.client.identities() {
            let limits = lock(&identity.limits);
            let limited_until = limits
                .resting(now, crate::limits::Use::Read)
                .map(|rest| rest.until);
            all.extend(limits.rates().map(|rate| RateStatus {
                credential: identity.name.clone(),
                resource: rate.resource.clone(),
                limit: rate.limit,
                remaining: rate.remaining,
                reset_at: rate.reset_at,
                limited_until,
            }));
        }
        all
    }

    /// Current webhook secrets, read again when their files changed.
    pub fn webhook_secrets(&self) -> Vec<SecretString> {
        self.inner.webhook_secrets()
    }

    /// Gives installation tokens back to GitHub. Bounded by the call timeout.
    pub async fn shutdown(&self) {
        let timeout = self.inner.config.call_timeout;
        let revoked = tokio::time::timeout(timeout, self.inner.client.revoke_tokens()).await;
        if revoked.is_err() {
            tracing::debug!("not all installation tokens were given back in time; they expire");
        }
    }
}

impl fmt::Debug for GitHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHub")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Where a repository's runners register, asking GitHub when it is new here.
    pub(crate) async fn route(&self, owner: &str, name: &str) -> Option<Route> {
        if !self.config.wants(owner, name) {
            return None;
        }
        if let Some(route) = lock(&self.directory).route(owner, name) {
            return Some(route);
        }
        let full = format!("{owner}/{name}").to_lowercase();
        let now = utc_now();
        {
            let mut unreachable = lock(&self.unreachable);
            unreachable.retain(|_, at| now.saturating_sub(*at) < UNREACHABLE_MS);
            if unreachable.contains_key(&full) {
                return None;
            }
        }
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, discovery::find(self, owner, name)).await;
        let route = lock(&self.directory).route(owner, name);
        if route.is_none() {
            let detail = match found {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(_)) => CallError::NoCredential(full.clone()).to_string(),
                Err(_) => format!(
                    "GitHub did not tell within {} s who serves {full}",
                    LOOKUP_TIMEOUT.as_secs()
                ),
            };
            self.problems.set(&full, detail, now);
            let mut unreachable = lock(&self.unreachable);
            if unreachable.len() < MOST_UNREACHABLE {
                unreachable.insert(full, now);
            }
        }
        route
    }

    /// False only where GitHub plainly said so: an organisation's route says
    /// nothing about one repository. While GitHub does not answer, it is believed.
    async fn exists(&self, owner: &str, name: &str) -> bool {
        if lock(&self.directory).watched(owner, name).is_some() {
            return true;
        }
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, discovery::find(self, owner, name)).await;
        !matches!(found, Ok(Ok(false)))
    }

    /// The identity that registers in a scope: the named one, or the one that
    /// serves the scope now (a credential may have been renamed since).
    async fn registrar(
        &self,
        scope: &Scope,
        credential: &CredentialName,
    ) -> Result<Arc<Identity>, CallError> {
        let usable = |identity: &Arc<Identity>| !matches!(identity.source, Source::App(_));
        if let Some(identity) = self.client.identity(credential).filter(usable) {
            return Ok(identity);
        }
        if let Some(identity) = self.installation_named(credential) {
            return Ok(identity);
        }
        let route = match scope {
            Scope::Repository { owner, repo } => self.route(owner, repo).await,
            _ => lock(&self.directory)
                .routes()
                .get_key_value(scope)
                .map(|(scope, credential)| Route {
                    scope: scope.clone(),
                    credential: credential.clone(),
                }),
        };
        route
            .and_then(|route| self.client.identity(&route.credential))
            .ok_or_else(|| CallError::NoCredential(scope.to_string()))
    }

    /// `app/123` names an installation that discovery has not met yet, e.g. after a restart.
    fn installation_named(&self, credential: &CredentialName) -> Option<Arc<Identity>> {
        let (app, id) = credential.as_str().rsplit_once('/')?;
        let app = self.client.identity(&CredentialName::new(app))?;
        let id = id.parse().ok()?;
        matches!(app.source, Source::App(_)).then(|| self.client.installation(&app, id))
    }

    fn mark_in_use(&self, scope: &Scope, credential: &CredentialName) {
        lock(&self.in_use).insert(scope.clone(), (credential.clone(), utc_now()));
    }

    pub(crate) fn webhook_secrets(&self) -> Vec<SecretString> {
        let mut secrets = Vec::with_capacity(self.webhook_secrets.len());
        for secret in &self.webhook_secrets {
            match secret.read() {
                Ok(value) => secrets.push(value),
                Err(error) => {
                    self.problems
                        .set("webhook secret", error.to_string(), utc_now());
                }
            }
        }
        secrets
    }

    pub(crate) fn set_origin(&self, run: u64, origin: &Origin) {
        let mut origins = lock(&self.origins);
        origins.insert(run, origin.clone());
        while origins.len() > MOST_ORIGINS {
            origins.pop_first();
        }
    }

    pub(crate) fn knows_origin(&self, run: u64) -> bool {
        lock(&self.origins).contains_key(&run)
    }

    pub(crate) fn origin(&self, run: u64) -> Origin {
        lock(&self.origins).get(&run).cloned().unwrap_or_default()
    }
}
