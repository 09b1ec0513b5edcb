//! The world: all state, the virtual clock, and the calls that build it up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::chance::Chance;
use super::faults::{Faults, Limits};
use super::hooks::Outbox;
use super::jit::RunnerKey;
use super::limits::Buckets;
use super::model::{
    App, Driver, Group, Hook, HookTarget, Installation, Job, Owner, OwnerKind, Repo, Run, Runner,
    Scope, Visibility,
};
use super::rest::RequestLog;
use super::runs;
use super::spec::{
    AppSpec, ForeignRunnerSpec, GroupSpec, HookSpec, InstallationSpec, OwnerSpec, RepoSpec,
};
use super::tokens::Token;

pub(crate) const SECOND: u64 = 1_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;
pub(crate) const HOUR: u64 = 60 * MINUTE;
pub(crate) const DAY: u64 = 24 * HOUR;

/// How a world is set up.
#[derive(Debug, Clone)]
pub struct WorldConfig {
    /// Virtual time at the start, milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// Scheme and authority of REST, without a slash at the end.
    pub rest_url: String,
    /// Scheme and authority of the runner face.
    pub runner_url: String,
    pub faults: Faults,
    pub limits: Limits,
    /// Behave as a GitHub Enterprise Server: webhooks name it, as GHES does.
    pub ghes: bool,
    /// Delivery attempts that are remembered, with their bodies.
    pub keep_deliveries: usize,
    /// Request log entries that are remembered; counts are never lost.
    pub keep_requests: usize,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            // 2026-01-01T00:00:00Z
            start_ms: 1_767_225_600_000,
            rest_url: "https://api.github.com".into(),
            runner_url: "https://broker.actions.githubusercontent.com".into(),
            faults: Faults::default(),
            limits: Limits::default(),
            ghes: false,
            keep_deliveries: 10_000,
            keep_requests: 20_000,
        }
    }
}

/// A request of a test that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    #[error("there is no {what} `{name}`; create it first")]
    NotFound { what: &'static str, name: String },
    #[error("{what} `{name}` is there already")]
    Exists { what: &'static str, name: String },
    #[error("{0}")]
    Invalid(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    Unacquired { job: u64 },
    QueueTimeout { job: u64 },
    JobTimeout { job: u64 },
    Lock { job: u64 },
    ForceEnd { job: u64 },
    Silent { runner: u64 },
    RunnerExpiry { runner: u64 },
    SimConnect { runner: u64 },
    SimStart { job: u64 },
    SimComplete { job: u64 },
}

/// GitHub. Everything goes in by method calls and comes out as values; see README.md, section 5.
pub struct World {
    pub(crate) cfg: WorldConfig,
    pub(crate) now: u64,
    pub(crate) chance: Chance,
    pub(crate) fired: BTreeMap<&'static str, u64>,
    timers: BTreeMap<(u64, u64), Timer>,
    next_seq: u64,
    next_id: u64,
    pub(crate) next_job: u64,
    pub(crate) next_run: u64,
    next_runner: u64,
    pub(crate) owners: BTreeMap<u64, Owner>,
    pub(crate) logins: BTreeMap<String, u64>,
    pub(crate) repos: BTreeMap<u64, Repo>,
    pub(crate) repo_names: BTreeMap<String, u64>,
    /// Old paths of renamed repositories.
    pub(crate) moved: BTreeMap<String, u64>,
    pub(crate) apps: BTreeMap<u64, App>,
    pub(crate) installations: BTreeMap<u64, Installation>,
    pub(crate) tokens: BTreeMap<String, Token>,
    pub(crate) groups: BTreeMap<(Scope, u64), Group>,
    pub(crate) runners: BTreeMap<u64, Runner>,
    /// Registrations that exist.
    pub(crate) live: BTreeMap<Scope, BTreeMap<u64, String>>,
    pub(crate) names: BTreeMap<(Scope, String), u64>,
    pub(crate) idle: BTreeSet<u64>,
    pub(crate) clients: BTreeMap<String, u64>,
    pub(crate) sessions: BTreeMap<String, u64>,
    pub(crate) runner_tokens: BTreeMap<String, (u64, u64)>,
    pub(crate) label_ids: BTreeMap<String, u64>,
    pub(crate) registration_times: BTreeMap<Scope, VecDeque<u64>>,
    pub(crate) keys: Vec<RunnerKey>,
    pub(crate) runs: BTreeMap<u64, Run>,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) queued: BTreeSet<u64>,
    /// Runs that are not completed.
    pub(crate) open_runs: BTreeSet<u64>,
    pub(crate) requests_of_jobs: BTreeMap<String, u64>,
    pub(crate) hooks: BTreeMap<u64, Hook>,
    pub(crate) outbox: Outbox,
    pub(crate) buckets: Buckets,
    pub(crate) log: RequestLog,
}

impl World {
    pub fn new(seed: u64, cfg: WorldConfig) -> Self {
        Self {
            now: cfg.start_ms,
            chance: Chance::new(seed),
            fired: BTreeMap::new(),
            timers: BTreeMap::new(),
            next_seq: 0,
            next_id: 700_000_000,
            next_job: 40_000_000_000,
            next_run: 12_000_000_000,
            next_runner: 1,
            owners: BTreeMap::new(),
            logins: BTreeMap::new(),
            repos: BTreeMap::new(),
            repo_names: BTreeMap::new(),
            moved: BTreeMap::new(),
            apps: BTreeMap::new(),
            installations: BTreeMap::new(),
            tokens: BTreeMap::new(),
            groups: BTreeMap::new(),
            runners: BTreeMap::new(),
            live: BTreeMap::new(),
            names: BTreeMap::new(),
            idle: BTreeSet::new(),
            clients: BTreeMap::new(),
            sessions: BTreeMap::new(),
            runner_tokens: BTreeMap::new(),
            label_ids: BTreeMap::new(),
            registration_times: BTreeMap::new(),
            keys: Vec::new(),
            runs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            queued: BTreeSet::new(),
            open_runs: BTreeSet::new(),
            requests_of_jobs: BTreeMap::new(),
            hooks: BTreeMap::new(),
            outbox: Outbox::new(cfg.keep_deliveries),
            buckets: Buckets::default(),
            log: RequestLog::new(cfg.keep_requests),
            cfg,
        }
    }

    /// Virtual time, milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.now
    }

    /// Moves the clock and fires the timers that are due, in order. An earlier time is ignored: the clock never goes back.
    pub fn advance(&mut self, now_ms: u64) {
        while let Some((&(due, seq), _)) = self.timers.first_key_value() {
            if due > now_ms {
                break;
            }
            let Some(timer) = self.timers.remove(&(due, seq)) else {
                break;
            };
            self.now = self.now.max(due);
            self.fire(timer);
        }
        self.now = self.now.max(now_ms);
    }

    /// When the world does something by itself next: a timer, or a delivery that was held back.
    pub fn next_timer_ms(&self) -> Option<u64> {
        let timer = self.timers.first_key_value().map(|(k, _)| k.0);
        match (timer, self.outbox.next_due()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The faults in force.
    pub fn faults(&self) -> &Faults {
        &self.cfg.faults
    }

    pub fn set_faults(&mut self, faults: Faults) {
        self.cfg.faults = faults;
    }

    pub fn limits(&self) -> &Limits {
        &self.cfg.limits
    }

    pub fn set_limits(&mut self, limits: Limits) {
        self.cfg.limits = limits;
    }

    /// Sets the addresses that go into bodies and registrations from here on.
    pub fn set_urls(&mut self, rest: &str, runner: &str) {
        self.cfg.rest_url = rest.into();
        self.cfg.runner_url = runner.into();
    }

    /// Keys that registrations are made with, in turn. Without any, `.credentials_rsaparams` holds bytes that are no key.
    pub fn set_runner_keys(&mut self, keys: Vec<RunnerKey>) {
        self.keys = keys;
    }

    /// How often each kind of fault really happened.
    pub fn faults_fired(&self) -> &BTreeMap<&'static str, u64> {
        &self.fired
    }

    /// Draws a fault and counts it when it happens.
    pub(crate) fn roll(&mut self, probability: f64, kind: &'static str) -> bool {
        let hit = self.chance.roll(probability);
        if hit {
            self.count_fault(kind);
        }
        hit
    }

    pub(crate) fn count_fault(&mut self, kind: &'static str) {
        *self.fired.entry(kind).or_default() += 1;
    }

    pub(crate) fn set_timer(&mut self, due_ms: u64, timer: Timer) {
        self.next_seq += 1;
        self.timers.insert((due_ms, self.next_seq), timer);
    }

    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn fresh_runner_id(&mut self) -> u64 {
        self.next_runner += 1;
        self.next_runner - 1
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Unacquired { job } => self.job_not_picked_up(job),
            Timer::QueueTimeout { job } => self.job_queued_too_long(job),
            Timer::JobTimeout { job } => self.job_ran_too_long(job),
            Timer::Lock { job } => self.job_lock_ended(job),
            Timer::ForceEnd { job } => self.job_force_end(job),
            Timer::Silent { runner } => self.runner_silent(runner),
            Timer::RunnerExpiry { runner } => self.runner_expired(runner),
            Timer::SimConnect { runner } => self.simulated_connect(runner),
            Timer::SimStart { job } => self.simulated_start(job),
            Timer::SimComplete { job } => self.simulated_complete(job),
        }
    }

    // ---- building it up -------------------------------------------------------------------------------------------

    /// A user, organisation or enterprise. Members that do not exist are made as users.
    pub fn add_owner(&mut self, spec: OwnerSpec) -> Result<u64, SimError> {
        let key = spec.login.to_lowercase();
        if spec.login.is_empty() || spec.login.contains('/') {
            return Err(SimError::Invalid(format!(
                "`{}` is not a login",
                spec.login
            )));
        }
        if self.logins.contains_key(&key) {
            return Err(SimError::Exists {
                what: "owner",
                name: spec.login,
            });
        }
        let enterprise = match &spec.enterprise {
            Some(slug) => Some(self.owner_of_kind(slug, OwnerKind::Enterprise)?),
            None => None,
        };
        let mut members = BTreeMap::new();
        for (login, role) in spec.members {
            let low = login.to_lowercase();
            if !self.logins.contains_key(&low) {
                self.add_owner(OwnerSpec::user(&login))?;
            }
            members.insert(low, role);
        }
        let id = self.fresh_id();
        let owner = Owner {
            id,
            login: spec.login,
            kind: spec.kind,
            members,
            enterprise,
            created_ms: self.now,
            runners_enabled: "all".into(),
        };
        self.owners.insert(id, owner);
        self.logins.insert(key, id);
        let scope = match spec.kind {
            OwnerKind::Organization => Some(Scope::Organization(id)),
            OwnerKind::Enterprise => Some(Scope::Enterprise(id)),
            OwnerKind::User => None,
        };
        if let Some(scope) = scope {
            let group = Group {
                id: 1,
                name: "Default".into(),
                visibility: Visibility::All,
                selected: BTreeSet::new(),
                allows_public: false,
                is_default: true,
            };
            self.groups.insert((scope, 1), group);
        }
        Ok(id)
    }

    pub fn add_repo(&mut self, spec: RepoSpec) -> Result<u64, SimError> {
        let owner = self.owner_id(&spec.owner)?;
        let login = self.owners[&owner].login.clone();
        let full_name = format!("{login}/{}", spec.name);
        let key = full_name.to_lowercase();
        if self.repo_names.contains_key(&key) {
            return Err(SimError::Exists {
                what: "repository",
                name: full_name,
            });
        }
        let id = self.fresh_id();
        let repo = Repo {
            id,
            owner,
            name: spec.name,
            full_name,
            private: spec.private,
            archived: spec.archived,
            disabled: spec.disabled,
            fork: spec.fork,
            created_ms: self.now,
            pushed_ms: self.now.saturating_sub(spec.pushed_hours_ago * HOUR),
            next_run_number: 1,
            workflows: BTreeMap::new(),
            runs: Vec::new(),
        };
        self.repos.insert(id, repo);
        self.moved.remove(&key);
        self.repo_names.insert(key, id);
        Ok(id)
    }

    /// The old path answers 301 from here on; `repository` is sent.
    pub fn rename_repo(&mut self, full_name: &str, name: &str) -> Result<(), SimError> {
        let id = self.repo_id(full_name)?;
        let Some(repo) = self.repos.get_mut(&id) else {
            return Ok(());
        };
        let old = repo.full_name.to_lowercase();
        let login = repo.full_name.split('/').next().unwrap_or("").to_owned();
        let from = repo.name.clone();
        repo.name = name.into();
        repo.full_name = format!("{login}/{name}");
        let new = repo.full_name.to_lowercase();
        self.repo_names.remove(&old);
        self.repo_names.insert(new, id);
        self.moved.insert(old, id);
        self.emit_repository(id, "renamed", Some(from));
        Ok(())
    }

    pub fn set_archived(&mut self, full_name: &str, archived: bool) -> Result<(), SimError> {
        let id = self.repo_id(full_name)?;
        if let Some(repo) = self.repos.get_mut(&id) {
            repo.archived = archived;
        }
        self.emit_repository(id, if archived { "archived" } else { "unarchived" }, None);
        Ok(())
    }

    /// An App; gives its id and client id.
    pub fn add_app(&mut self, spec: AppSpec) -> Result<(u64, String), SimError> {
        if self.apps.values().any(|a| a.slug == spec.slug) {
            return Err(SimError::Exists {
                what: "App",
                name: spec.slug,
            });
        }
        let id = self.fresh_id() % 10_000_000;
        let client_id = format!("Iv23li{}", self.chance.alphanumeric(14));
        let hook = spec.webhook.map(|w| {
            let hook_id = self.fresh_id();
            let hook = Hook {
                id: hook_id,
                target: HookTarget::App(id),
                url: w.url,
                secret: Some(w.secret),
                events: spec.events.clone(),
                content_type: "json".into(),
                insecure_ssl: "0".into(),
                active: true,
                created_ms: self.now,
                updated_ms: self.now,
                last: None,
            };
            self.hooks.insert(hook_id, hook);
            hook_id
        });
        let app = App {
            id,
            client_id: client_id.clone(),
            slug: spec.slug,
            permissions: spec.permissions,
            events: spec.events,
            public_key: spec.public_key,
            hook,
            created_ms: self.now,
        };
        self.apps.insert(id, app);
        if let Some(hook) = hook {
            self.emit_ping(hook);
        }
        Ok((id, client_id))
    }

    pub fn add_installation(&mut self, spec: InstallationSpec) -> Result<u64, SimError> {
        let app = self
            .apps
            .get(&spec.app_id)
            .ok_or_else(|| SimError::NotFound {
                what: "App",
                name: spec.app_id.to_string(),
            })?;
        let (events, wanted) = (app.events.clone(), app.permissions.clone());
        let account = self.owner_id(&spec.account)?;
        if self
            .installations
            .values()
            .any(|i| i.app == spec.app_id && i.account == account)
        {
            return Err(SimError::Exists {
                what: "installation on",
                name: spec.account,
            });
        }
        let repositories = match spec.repositories {
            Some(names) => Some(
                names
                    .iter()
                    .map(|n| self.repo_id(n))
                    .collect::<Result<BTreeSet<_>, _>>()?,
            ),
            None => None,
        };
        let id = self.fresh_id() % 100_000_000;
        let installation = Installation {
            id,
            app: spec.app_id,
            account,
            repositories,
            permissions: spec.permissions.unwrap_or(wanted),
            events,
            suspended_ms: None,
            created_ms: self.now,
        };
        self.installations.insert(id, installation);
        self.emit_installation(id, "created");
        Ok(id)
    }

    pub fn suspend_installation(&mut self, id: u64, suspended: bool) -> Result<(), SimError> {
        let now = self.now;
        let one = self.installation_mut(id)?;
        one.suspended_ms = suspended.then_some(now);
        self.emit_installation(id, if suspended { "suspend" } else { "unsuspend" });
        Ok(())
    }

    /// Removes it; its tokens end at once.
    pub fn delete_installation(&mut self, id: u64) -> Result<(), SimError> {
        self.installation_mut(id)?;
        self.emit_installation(id, "deleted");
        self.installations.remove(&id);
        self.tokens.retain(|_, t| t.installation() != Some(id));
        Ok(())
    }

    pub fn change_installation_repositories(
        &mut self,
        id: u64,
        add: &[String],
        remove: &[String],
    ) -> Result<(), SimError> {
        let add = add
            .iter()
            .map(|n| self.repo_id(n))
            .collect::<Result<Vec<_>, _>>()?;
        let remove = remove
            .iter()
            .map(|n| self.repo_id(n))
            .collect::<Result<Vec<_>, _>>()?;
        let account = self.installation_mut(id)?.account;
        let all: BTreeSet<u64> = self
            .repos
            .values()
            .filter(|r| r.owner == account)
            .map(|r| r.id)
            .collect();
        let one = self.installation_mut(id)?;
        let set = one.repositories.get_or_insert(all);
        set.extend(add.iter().copied());
        for r in &remove {
            set.remove(r);
        }
        if !add.is_empty() {
            self.emit_installation_repositories(id, "added", &add);
        }
        if !remove.is_empty() {
            self.emit_installation_repositories(id, "removed", &remove);
        }
        Ok(())
    }

    fn installation_mut(&mut self, id: u64) -> Result<&mut Installation, SimError> {
        self.installations
            .get_mut(&id)
            .ok_or_else(|| SimError::NotFound {
                what: "installation",
                name: id.to_string(),
            })
    }

    /// A repository's or organisation's webhook; sends `ping`.
    pub fn add_hook(&mut self, spec: HookSpec) -> Result<u64, SimError> {
        let target = match (&spec.repository, &spec.organization) {
            (Some(r), None) => HookTarget::Repository(self.repo_id(r)?),
            (None, Some(o)) => {
                HookTarget::Organization(self.owner_of_kind(o, OwnerKind::Organization)?)
            }
            _ => {
                return Err(SimError::Invalid(
                    "name either `repository` or `organization`".into(),
                ));
            }
        };
        let id = self.fresh_id();
        let hook = Hook {
            id,
            target,
            url: spec.url,
            secret: spec.secret,
            events: spec.events,
            content_type: spec.content_type,
            insecure_ssl: "0".into(),
            active: true,
            created_ms: self.now,
            updated_ms: self.now,
            last: None,
        };
        self.hooks.insert(id, hook);
        self.emit_ping(id);
        Ok(id)
    }

    /// A group; the name `Default` changes the one that is always there.
    pub fn add_group(&mut self, spec: GroupSpec) -> Result<u64, SimError> {
        let scope = match (&spec.organization, &spec.enterprise) {
            (Some(o), None) => Scope::Organization(self.owner_of_kind(o, OwnerKind::Organization)?),
            (None, Some(e)) => Scope::Enterprise(self.owner_of_kind(e, OwnerKind::Enterprise)?),
            _ => {
                return Err(SimError::Invalid(
                    "name either `organization` or `enterprise`".into(),
                ));
            }
        };
        let visibility = Visibility::parse(&spec.visibility)
            .ok_or_else(|| SimError::Invalid("visibility is all, selected or private".into()))?;
        let mut selected = BTreeSet::new();
        for name in &spec.repositories {
            selected.insert(if matches!(scope, Scope::Enterprise(_)) {
                self.owner_id(name)?
            } else {
                self.repo_id(name)?
            });
        }
        let is_default = spec.name == "Default";
        let id = if is_default {
            1
        } else {
            self.next_group_id(scope)
        };
        if !is_default
            && self
                .groups_of(scope)
                .any(|g| g.name.eq_ignore_ascii_case(&spec.name))
        {
            return Err(SimError::Exists {
                what: "runner group",
                name: spec.name,
            });
        }
        let group = Group {
            id,
            name: spec.name,
            visibility,
            selected,
            allows_public: spec.allows_public_repositories,
            is_default,
        };
        self.groups.insert((scope, id), group);
        self.assign_idle_runners();
        Ok(id)
    }

    pub(crate) fn next_group_id(&self, scope: Scope) -> u64 {
        self.groups_of(scope).map(|g| g.id).max().unwrap_or(1) + 1
    }

    pub(crate) fn groups_of(&self, scope: Scope) -> impl Iterator<Item = &Group> {
        self.groups
            .range((scope, 0)..=(scope, u64::MAX))
            .map(|(_, g)| g)
    }

    /// Somebody else's runner.
    pub fn add_foreign_runner(&mut self, spec: &ForeignRunnerSpec) -> Result<u64, SimError> {
        let scope = self.parse_scope(&spec.scope)?;
        if self.names.contains_key(&(scope, spec.name.to_lowercase())) {
            return Err(SimError::Exists {
                what: "runner",
                name: spec.name.clone(),
            });
        }
        let id = self.register(
            scope,
            &spec.name,
            &spec.labels,
            spec.group_id.unwrap_or(1),
            "_work",
            spec.ephemeral,
        );
        if let Some(r) = self.runners.get_mut(&id) {
            r.driver = Driver::Foreign;
            r.os = "Linux".into();
            r.version = Some(super::runners::CURRENT_VERSION.into());
        }
        if spec.online {
            self.set_online(id, true);
        }
        Ok(id)
    }

    /// Queues a run; gives its id. Its jobs are in `world.run(id).jobs()`.
    pub fn queue_run(&mut self, spec: &super::spec::RunSpec) -> Result<u64, SimError> {
        runs::queue(self, spec)
    }

    // ---- finding things -------------------------------------------------------------------------------------------

    pub(crate) fn owner_id(&self, login: &str) -> Result<u64, SimError> {
        self.logins
            .get(&login.to_lowercase())
            .copied()
            .ok_or_else(|| SimError::NotFound {
                what: "owner",
                name: login.into(),
            })
    }

    pub(crate) fn owner_of_kind(&self, login: &str, kind: OwnerKind) -> Result<u64, SimError> {
        let id = self.owner_id(login)?;
        if self.owners.get(&id).is_some_and(|o| o.kind == kind) {
            Ok(id)
        } else {
            Err(SimError::Invalid(format!(
                "`{login}` is not of the kind {kind:?}"
            )))
        }
    }

    pub(crate) fn repo_id(&self, full_name: &str) -> Result<u64, SimError> {
        self.repo_names
            .get(&full_name.to_lowercase())
            .copied()
            .ok_or_else(|| SimError::NotFound {
                what: "repository",
                name: full_name.into(),
            })
    }

    /// `repos/o/r`, `orgs/o` or `enterprises/e`.
    pub fn parse_scope(&self, text: &str) -> Result<Scope, SimError> {
        let (kind, name) = text.split_once('/').ok_or_else(|| {
            SimError::Invalid(format!(
                "`{text}` is not repos/o/r, orgs/o or enterprises/e"
            ))
        })?;
        match kind {
            "repos" => Ok(Scope::Repository(self.repo_id(name)?)),
            "orgs" => Ok(Scope::Organization(
                self.owner_of_kind(name, OwnerKind::Organization)?,
            )),
            "enterprises" => Ok(Scope::Enterprise(
                self.owner_of_kind(name, OwnerKind::Enterprise)?,
            )),
            _ => Err(SimError::Invalid(format!(
                "`{text}` is not repos/o/r, orgs/o or enterprises/e"
            ))),
        }
    }

    /// The form `parse_scope` reads.
    pub fn scope_text(&self, scope: Scope) -> String {
        match scope {
            Scope::Repository(r) => format!(
                "repos/{}",
                self.repos.get(&r).map_or("?", |r| r.full_name.as_str())
            ),
            Scope::Organization(o) => format!(
                "orgs/{}",
                self.owners.get(&o).map_or("?", |o| o.login.as_str())
            ),
            Scope::Enterprise(o) => format!(
                "enterprises/{}",
                self.owners.get(&o).map_or("?", |o| o.login.as_str())
            ),
        }
    }

    /// The repository as `owner/name`.
    pub fn repository_name(&self, id: u64) -> Option<&str> {
        self.repos.get(&id).map(|r| r.full_name.as_str())
    }

    pub fn job(&self, id: u64) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs, by id.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    pub fn run(&self, id: u64) -> Option<&Run> {
        self.runs.get(&id)
    }

    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// Registrations that exist.
    pub fn runners(&self) -> impl Iterator<Item = &Runner> {
        self.live
            .values()
            .flat_map(|m| m.keys())
            .filter_map(|id| self.runners.get(id))
    }

    /// Every registration ever made.
    pub fn registrations_ever(&self) -> impl Iterator<Item = &Runner> {
        self.runners.values()
    }

    pub fn runner(&self, id: u64) -> Option<&Runner> {
        self.runners.get(&id)
    }

    /// The live registration of this name.
    pub fn runner_id(&self, scope: &str, name: &str) -> Option<u64> {
        let scope = self.parse_scope(scope).ok()?;
        self.names.get(&(scope, name.to_lowercase())).copied()
    }

    /// The live registration of this name in any scope, where names are unique across the test.
    pub fn runner_named(&self, name: &str) -> Option<u64> {
        let low = name.to_lowercase();
        self.names
            .iter()
            .find(|((_, n), _)| *n == low)
            .map(|(_, id)| *id)
    }
}
