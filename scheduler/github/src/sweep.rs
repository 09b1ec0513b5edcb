//! The level-triggered side: lists runs and jobs again and again, so that a
//! lost webhook costs latency and nothing else.
//!
//! Queued jobs hide inside `in_progress` runs, so both are listed and the jobs
//! of each are read. Absence from a list ends nothing: a run that vanished is
//! asked about itself. While webhooks prove healthy, [`Coverage`] says what may
//! be left for later.
//!
//! [`Coverage`]: crate::coverage::Coverage

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use scheduler_core::{
    input::{Input, JobSeen},
    model::{Conclusion, JobId, JobPhase, Origin, Repository, Scope, UtcMillis},
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    budget::Told,
    client::Call,
    coverage::{Lists, SAMPLES, Shown, Standing},
    credential::{Identity, Source, lock, utc_now},
    deliveries::recover,
    directory::Watched,
    discovery::{discover, window_start},
    error::CallError,
    github::Inner,
    ledger::RunState,
    limits::Use,
    pages::{Listing, list},
    registration::{list_runners, scope_path},
    schedule::{Outlook, interval},
    status::{Problem, RepositoryQueue, SweepStatus},
    translate::{Route, job_seen, origin, rest_phase},
    wire::{Job, JobList, RunList},
};

/// Repositories looked at side by side.
const ABREAST: usize = 4;
/// A filtered list of runs ends at 1,000.
const MOST_RUN_PAGES: usize = 10;
/// 256 jobs a matrix, several matrices a run.
const MOST_JOB_PAGES: usize = 50;
/// Every so many sweeps `waiting` and `pending` runs are listed too, for display.
const HELD_EVERY: u64 = 5;
/// The same while webhooks prove healthy.
const HELD_RARELY: u64 = 25;
const DISCOVERY_EVERY: Duration = Duration::from_secs(10 * 60);
/// Lists of so many owners cost about as many calls.
const FEW_OWNERS: usize = 5;
const DISCOVERY_RETRY: Duration = Duration::from_secs(60);
/// A scope without a registration call for this long needs no orphan list.
const IN_USE_MS: u64 = 20 * 60_000;
/// Two nudges closer together than this are one.
const NUDGE_GAP: Duration = Duration::from_secs(2);

/// A run as far as the sweep needs it.
#[derive(Clone)]
pub(crate) struct RunBrief {
    id: u64,
    state: RunState,
    path: String,
    origin: Origin,
}

/// Runs everything periodic until `inputs` is closed.
pub(crate) async fn run(inner: &Inner, inputs: &mpsc::Sender<Vec<Input>>) {
    tokio::select! {
        () = inputs.closed() => {}
        () = sweeps(inner, inputs) => {}
        () = budgets(inner, inputs) => {}
        () = orphans(inner, inputs) => {}
        () = recover(inner) => {}
    }
}

async fn send(inputs: &mpsc::Sender<Vec<Input>>, batch: Vec<Input>) {
    // Closed means shutdown: `run` ends by itself then.
    if !batch.is_empty() && inputs.send(batch).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn sweeps(inner: &Inner, inputs: &mpsc::Sender<Vec<Input>>) {
    let mut next_discovery = Instant::now();
    let mut next_sweep = Instant::now();
    let mut iterations = 0;
    // When the next sweep is due if webhooks prove healthy before it.
    let mut at_ease: Option<Instant> = None;
    let delay = news_delay(false, inner.config.poll_interval);
    send(inputs, vec![Input::NewsDelay(delay)]).await;
    loop {
        if Instant::now() >= next_discovery {
            send(inputs, discover(inner).await).await;
            next_discovery = Instant::now() + until_discovery(inner);
        }
        if Instant::now() >= next_sweep
            && let Some(later) = at_ease.take()
            && lock(&inner.health).healthy(utc_now())
        {
            next_sweep = later;
        }
        if Instant::now() >= next_sweep {
            let started = Instant::now();
            sweep(inner, inputs, iterations).await;
            iterations += 1;
            let (every, healthy) = pace(inner, iterations == 1);
            // With healthy webhooks the sweep is a safety net: it rests a full
            // interval. Otherwise it is the only source and keeps its rhythm.
            let from = if healthy { Instant::now() } else { started };
            next_sweep = from + every;
            at_ease = (!healthy).then(|| Instant::now() + 2 * inner.config.poll_interval);
            let delay = news_delay(healthy, every + started.elapsed());
            send(inputs, vec![Input::NewsDelay(delay)]).await;
            publish(inner, iterations, every, healthy);
        }
        tokio::select! {
            () = tokio::time::sleep_until(next_discovery.min(next_sweep)) => {}
            () = inner.sweep_now.notified() => {
                next_sweep = next_sweep.min(Instant::now() + nudge_delay(iterations));
                at_ease = None;
            }
            () = inner.discover_now.notified() => {
                next_discovery = Instant::now();
                next_sweep = next_sweep.min(Instant::now() + NUDGE_GAP);
                at_ease = None;
            }
        }
    }
}

/// Without webhooks only the lists tell that a quiet repository has become
/// active, so they are read with every sweep while they are few.
fn until_discovery(inner: &Inner) -> Duration {
    if inner.problems.in_discovery() {
        return DISCOVERY_RETRY;
    }
    let few = lock(&inner.directory).owners() <= FEW_OWNERS;
    if few && !lock(&inner.health).healthy(utc_now()) {
        inner.config.poll_interval
    } else {
        DISCOVERY_EVERY
    }
}

/// How late the word about a job may be, `next_sweep` being the time to its end.
fn news_delay(healthy: bool, next_sweep: Duration) -> Duration {
    if healthy { Duration::ZERO } else { next_sweep }
}

fn nudge_delay(iterations: u64) -> Duration {
    if iterations == 0 {
        Duration::ZERO
    } else {
        NUDGE_GAP / 10
    }
}

fn pace(inner: &Inner, cold: bool) -> (Duration, bool) {
    let now = utc_now();
    let healthy = lock(&inner.health).healthy(now);
    let counted_calls = inner.pacer.take_counted();
    let hours = inner
        .client
        .identities()
        .into_iter()
        .filter_map(|identity| {
            let limits = lock(&identity.limits);
            let rate = limits.reads_left(now)?;
            Some((
                rate.limit,
                rate.remaining,
                rate.reset_at.saturating_sub(now),
            ))
        });
    // The scarcest credential sets the pace.
    let hour = hours.min_by_key(|(limit, remaining, _)| remaining * 1000 / (*limit).max(1));
    let outlook = Outlook {
        poll_interval: inner.config.poll_interval,
        healthy,
        counted_calls,
        cold,
        hour,
    };
    (interval(&outlook), healthy)
}

async fn sweep(inner: &Inner, inputs: &mpsc::Sender<Vec<Input>>, iteration: u64) {
    let now = utc_now();
    let oldest = window_start(inner, now);
    lock(&inner.ledger).prune(oldest);
    inner.runs.tidy(now);
    inner.jobs.tidy(now);
    let watched: Vec<Watched> = {
        let directory = lock(&inner.directory);
        let ledger = lock(&inner.ledger);
        let live = lock(&inner.live);
        directory
            .repositories()
            .filter(|watched| {
                let id = watched.repository.id;
                watched.last_activity >= oldest || ledger.is_live(id) || live.has_repository(id)
            })
            .cloned()
            .collect()
    };
    let ids = watched
        .iter()
        .map(|watched| watched.repository.id)
        .collect();
    lock(&inner.coverage).tidy(&ids, &inner.waits, now);
    let trusted = lock(&inner.health).healthy(now);
    let held_every = if trusted { HELD_RARELY } else { HELD_EVERY };
    let with_held = iteration.is_multiple_of(held_every);
    let samples = AtomicU32::new(if trusted { SAMPLES } else { 0 });
    let due = watched.into_iter().filter_map(|watched| {
        let id = watched.repository.id;
        let lists = match trusted && !with_held {
            true => lists_of(inner, id, iteration, now),
            false => Lists::QueuedAndRunning,
        };
        (lists != Lists::Nothing).then_some((watched, lists))
    });
    let mut results = stream::iter(due)
        .map(|(watched, lists)| {
            let plan = Plan {
                lists,
                with_held,
                trusted: trusted && !lock(&inner.coverage).is_doubted(watched.repository.id),
                samples: &samples,
            };
            one_repository(inner, watched, plan)
        })
        .buffer_unordered(ABREAST);
    while let Some(batch) = results.next().await {
        send(inputs, batch).await;
    }
}

fn lists_of(inner: &Inner, repository: u64, iteration: u64, now: UtcMillis) -> Lists {
    let runs: Vec<u64> = lock(&inner.live).runs_of(repository).collect();
    let standing = Standing {
        live: !runs.is_empty() || lock(&inner.ledger).is_live(repository),
        incomplete: !runs.iter().all(|run| inner.knows_origin(*run)),
        turn: repository.wrapping_add(iteration).is_multiple_of(2),
    };
    lock(&inner.coverage).lists(repository, standing, &inner.waits, now)
}

/// What one sweep reads of one repository.
struct Plan<'a> {
    lists: Lists,
    with_held: bool,
    /// Runs whose jobs webhooks told need not be read.
    trusted: bool,
    /// Told runs that may still be read in this sweep, as a sample.
    samples: &'a AtomicU32,
}

/// One repository, whatever breaks in it.
async fn one_repository(inner: &Inner, watched: Watched, plan: Plan<'_>) -> Vec<Input> {
    let full = watched.repository.full_name();
    let route = lock(&inner.directory).route(&watched.repository.owner, &watched.repository.name);
    let (Some(route), Some(identity)) = (route, inner.client.identity(&watched.reader)) else {
        return Vec::new();
    };
    let mut look = Look {
        inner,
        plan,
        identity,
        repository: watched.repository,
        route,
        inputs: Vec::new(),
        listed: BTreeSet::new(),
        trouble: None,
        complete: true,
        news: false,
    };
    look.take().await;
    match look.trouble {
        // Told once, of the credential.
        Some(CallError::Unauthorized { .. } | CallError::Credential { .. }) | None => {
            inner.problems.clear(&full);
        }
        Some(error) => inner.problems.set(&full, error.to_string(), utc_now()),
    }
    look.inputs
}

/// One look at one repository.
struct Look<'a> {
    inner: &'a Inner,
    plan: Plan<'a>,
    identity: Arc<Identity>,
    repository: Repository,
    route: Route,
    inputs: Vec<Input>,
    listed: BTreeSet<u64>,
    trouble: Option<CallError>,
    /// Every list was read to its end.
    complete: bool,
    /// The run being read told something new.
    news: bool,
}

impl Look<'_> {
    fn path(&self, below: &str) -> String {
        let scope = Scope::Repository {
            owner: self.repository.owner.clone(),
            repo: self.repository.name.clone(),
        };
        format!("{}/actions/{below}", scope_path(&scope))
    }

    fn broke(&mut self, error: CallError) {
        self.complete = false;
        tracing::debug!(repository = %self.repository.full_name(), %error, "part of the sweep failed");
        self.trouble.get_or_insert(error);
    }

    async fn take(&mut self) {
        let with_held = self.plan.with_held;
        let statuses: &[&str] = match self.plan.lists {
            _ if with_held => &["queued", "in_progress", "waiting", "pending"],
            Lists::QueuedAndRunning => &["queued", "in_progress"],
            Lists::Queued => &["queued"],
            Lists::Nothing => &[],
        };
        let mut runs: BTreeMap<u64, RunBrief> = BTreeMap::new();
        for status in statuses {
            match self.runs(status).await {
                Ok(listing) => {
                    if listing.moved {
                        self.inner.discover_now.notify_one();
                    }
                    runs.extend(listing.items.into_iter().map(|run| (run.id, run)));
                    if let Some(error) = listing.broken {
                        self.broke(error);
                    }
                }
                // Limited: the next sweep goes on; nothing else here will work either.
                Err(error @ CallError::RateLimited { .. }) => {
                    self.broke(error);
                    break;
                }
                Err(error) => self.broke(error),
            }
        }
        let now = utc_now();
        for run in runs.values() {
            self.listed.insert(run.id);
            self.inner.set_origin(run.id, &run.origin);
            lock(&self.inner.ledger).set(
                self.repository.id,
                run.id,
                run.state,
                Some(&run.path)
                    .filter(|path| !path.is_empty())
                    .map(String::as_str),
                now,
            );
            self.inputs.push(Input::RunSeen {
                run_id: run.id,
                origin: run.origin.clone(),
            });
        }
        let with_jobs: Vec<(u64, Shown)> = runs
            .values()
            .filter_map(|run| match run.state {
                // A run held by a concurrency group has no jobs yet.
                RunState::Held => None,
                RunState::Queued => Some((run.id, Shown::Queued)),
                _ => Some((run.id, Shown::Running)),
            })
            .collect();
        for (run, shown) in with_jobs {
            if self.must_read(run, shown) {
                self.jobs_of(run).await;
            }
        }
        if self.plan.lists == Lists::QueuedAndRunning || with_held {
            let unlisted = lock(&self.inner.live).unlisted(self.repository.id, &self.listed);
            for run in unlisted {
                let waits = lock(&self.inner.live).only_waits(run);
                if self.must_read(run, Shown::Missing(waits)) {
                    self.jobs_of(run).await;
                }
            }
            if self.complete {
                lock(&self.inner.coverage).listed(self.repository.id, utc_now());
            }
        }
        if self.complete && with_held {
            let live = lock(&self.inner.live);
            let listed = &self.listed;
            lock(&self.inner.ledger).settle(self.repository.id, |run| {
                listed.contains(&run) || live.has_run(run)
            });
        }
    }

    fn must_read(&self, run: u64, shown: Shown) -> bool {
        if !self.plan.trusted {
            return true;
        }
        let (now, waits) = (utc_now(), &self.inner.waits);
        let live = lock(&self.inner.live).has_run(run);
        let coverage = lock(&self.inner.coverage);
        if coverage.must_read(run, shown, live, waits, now) {
            return true;
        }
        let sample = |left: u32| left.checked_sub(1);
        let relaxed = Ordering::Relaxed;
        coverage.is_unread(run, waits, now)
            && self
                .plan
                .samples
                .fetch_update(relaxed, relaxed, sample)
                .is_ok()
    }

    async fn runs(&self, status: &str) -> Result<Listing<RunBrief>, CallError> {
        let words = format!("list {status} runs of {}", self.repository.full_name());
        let path = self.path(&format!(
            "runs?status={status}&exclude_pull_requests=true&per_page=100"
        ));
        list::<RunList, RunBrief, _>(
            &self.inner.client,
            &self.inner.pacer,
            &self.inner.runs,
            &self.identity,
            Call::get(words, path),
            MOST_RUN_PAGES,
            |page| {
                page.workflow_runs
                    .items()
                    .filter_map(|run| {
                        let stated = run.status.text().or(Some(status));
                        Some(RunBrief {
                            id: run.id.id()?,
                            state: RunState::of(stated, run.conclusion.text()),
                            path: run.path.text().unwrap_or_default().to_owned(),
                            origin: origin(run),
                        })
                    })
                    .collect()
            },
        )
        .await
    }

    async fn jobs_of(&mut self, run: u64) {
        let words = format!("list jobs of run {run} of {}", self.repository.full_name());
        let path = self.path(&format!("runs/{run}/jobs?filter=latest&per_page=100"));
        let (repository, route) = (self.repository.clone(), self.route.clone());
        self.news = false;
        let listing = list::<JobList, JobSeen, _>(
            &self.inner.client,
            &self.inner.pacer,
            &self.inner.jobs,
            &self.identity,
            Call::get(words, path),
            MOST_JOB_PAGES,
            |page| {
                let now = utc_now();
                page.jobs
                    .items()
                    .filter_map(|job| {
                        job_seen(job, rest_phase(job.status.text()), &repository, &route, now)
                    })
                    .collect()
            },
        )
        .await;
        let listing = match listing {
            Ok(listing) => listing,
            // The run was deleted, or this read is stale.
            Err(CallError::NotFound { .. }) => {
                let jobs = lock(&self.inner.live).unnamed(run, &BTreeSet::new());
                for job in jobs {
                    self.absent(run, job);
                }
                return;
            }
            Err(error) => {
                self.broke(error);
                return;
            }
        };
        let mut named = BTreeSet::new();
        for mut seen in listing.items {
            named.insert(seen.id);
            // Cached pages may be older than the route and the run's origin.
            seen.run_id = run;
            seen.repository = self.repository.clone();
            seen.scope = self.route.scope.clone();
            seen.credential = self.route.credential.clone();
            self.emit(seen);
        }
        if let Some(error) = listing.broken {
            self.broke(error);
            return;
        }
        // Jobs of an earlier attempt, or on a page that shifted away: each is asked for itself.
        let unnamed = lock(&self.inner.live).unnamed(run, &named);
        for job in unnamed {
            self.single_job(run, job).await;
        }
        let (waits, now) = (&self.inner.waits, utc_now());
        lock(&self.inner.coverage).read(self.repository.id, run, self.news, waits, now);
    }

    async fn single_job(&mut self, run: u64, job: JobId) {
        let words = format!("look job {} of {} up", job.0, self.repository.full_name());
        let call = Call::get(words, self.path(&format!("jobs/{}", job.0)));
        self.inner.pacer.turn(&self.identity.name).await;
        match self.inner.client.json::<Job>(&self.identity, &call).await {
            Ok((wire, _)) => {
                self.inner.pacer.count();
                let phase = rest_phase(wire.status.text());
                let now = utc_now();
                if let Some(mut seen) = job_seen(&wire, phase, &self.repository, &self.route, now) {
                    seen.run_id = run;
                    self.emit(seen);
                }
            }
            Err(CallError::NotFound { .. }) => self.absent(run, job),
            Err(error) => self.broke(error),
        }
    }

    fn absent(&mut self, run: u64, job: JobId) {
        let ended = lock(&self.inner.live).absent(utc_now(), run, job);
        if let Some(mut seen) = ended {
            seen.scope = self.route.scope.clone();
            seen.credential = self.route.credential.clone();
            self.inputs.push(Input::JobSeen(Arc::new(seen)));
        }
    }

    fn emit(&mut self, mut seen: JobSeen) {
        seen.origin = self.inner.origin(seen.run_id);
        let now = utc_now();
        let mut live = lock(&self.inner.live);
        let known = live.phase(seen.run_id, seen.id);
        if seen.phase == JobPhase::Completed && known.is_none() {
            // Over before we knew it: nothing to say.
            return;
        }
        live.note(&seen);
        let run_over = !live.has_run(seen.run_id);
        drop(live);
        if known.is_none_or(|known| known < seen.phase) {
            self.news = true;
            self.check_webhooks(&seen, known, now);
        }
        if seen.phase == JobPhase::Completed {
            let mut ledger = lock(&self.inner.ledger);
            if matches!(
                seen.conclusion,
                Some(Conclusion::Failure | Conclusion::TimedOut)
            ) {
                ledger.fail(self.repository.id, seen.run_id);
            }
            if run_over && !self.listed.contains(&seen.run_id) {
                ledger.finish(self.repository.id, seen.run_id);
            }
        }
        self.inputs.push(Input::JobSeen(Arc::new(seen)));
    }

    /// What a webhook should have told long ago is a missed webhook.
    fn check_webhooks(&self, seen: &JobSeen, known: Option<JobPhase>, now: UtcMillis) {
        let happened = match (known, seen.phase) {
            (_, JobPhase::Waiting) => None,
            (None, _) | (_, JobPhase::Queued) => Some(seen.created_at),
            (_, JobPhase::InProgress) => seen.started_at,
            (_, JobPhase::Completed) => seen.completed_at,
        };
        // A job that only waited was created long before it was queued.
        let happened = happened.filter(|_| known != Some(JobPhase::Waiting));
        let Some(happened) = happened else {
            return;
        };
        let mut health = lock(&self.inner.health);
        let since = health.last_delivery().map(|_| self.inner.started_at);
        let overdue = happened + self.inner.waits.patience < now;
        if since.is_some_and(|since| happened > since) && overdue {
            tracing::warn!(
                repository = %self.repository.full_name(),
                job = seen.id.0,
                phase = ?seen.phase,
                "the sweep found what no webhook told; webhooks are not trusted for a while"
            );
            health.missed(now);
            drop(health);
            lock(&self.inner.coverage).doubt(self.repository.id);
        }
    }
}

fn publish(inner: &Inner, iterations: u64, every: Duration, healthy: bool) {
    let now = utc_now();
    let oldest = window_start(inner, now);
    let directory = lock(&inner.directory);
    let ledger = lock(&inner.ledger);
    let mut repositories = BTreeMap::new();
    let mut outside_window = 0;
    for watched in directory.repositories() {
        let repository = &watched.repository;
        let Some(route) = directory.route(&repository.owner, &repository.name) else {
            continue;
        };
        if watched.last_activity < oldest && !ledger.is_live(repository.id) {
            outside_window += 1;
            continue;
        }
        let counts = ledger.counts(repository.id);
        let queue = RepositoryQueue {
            repository: repository.clone(),
            scope: route.scope,
            credential: route.credential,
            total: counts.total,
            running: counts.running,
            failed: counts.failed,
            pending: counts.queued + counts.held,
            held: counts.held,
            forecast: counts.forecast,
        };
        repositories.insert(repository.full_name(), queue);
    }
    drop(ledger);
    drop(directory);
    let mut problems = inner.problems.all();
    for identity in inner.client.identities() {
        let subject = format!("credential {}", identity.name);
        if let Some((detail, since)) = lock(&identity.problem).clone() {
            problems.retain(|problem| problem.subject != subject);
            problems.push(Problem {
                subject,
                detail,
                since,
            });
        }
    }
    inner.status.send_replace(SweepStatus {
        iterations,
        last_check: Some(now),
        next_check: Some(now + u64::try_from(every.as_millis()).unwrap_or(u64::MAX / 2)),
        webhooks_healthy: healthy,
        repositories,
        outside_window,
        problems,
        recovery: inner.hooks.status(),
    });
}

/// Tells the core how many registrations each credential may make, when that changed.
async fn budgets(inner: &Inner, inputs: &mpsc::Sender<Vec<Input>>) {
    let mut told = BTreeMap::new();
    let mut steps: BTreeMap<_, Told> = BTreeMap::new();
    loop {
        let now = utc_now();
        let mut scopes: BTreeMap<_, Vec<Scope>> = BTreeMap::new();
        for (scope, credential) in lock(&inner.directory).routes() {
            scopes.entry(credential).or_default().push(scope);
        }
        let mut batch = Vec::new();
        let mut moving = false;
        for identity in inner.client.identities() {
            if matches!(identity.source, Source::App(_)) {
                continue;
            }
            let (registrations, limited_until, made) = {
                let mut limits = lock(&identity.limits);
                let (registrations, limited_until) = limits.registrations(now);
                (registrations, limited_until, limits.made())
            };
            moving |= registrations < 100;
            let Some(scopes) = scopes.remove(&identity.name) else {
                continue;
            };
            let step = steps.entry(identity.name.clone()).or_default();
            let moved = step.next(now, registrations, made).is_some();
            let word = (limited_until, scopes);
            if moved || told.get(&identity.name) != Some(&word) {
                told.insert(identity.name.clone(), word.clone());
                batch.push(Input::BudgetChanged {
                    credential: identity.name.clone(),
                    scopes: word.1,
                    registrations: step.believed(),
                    limited_until: word.0,
                });
            }
        }
        send(inputs, batch).await;
        // A burst of registrations is told as one change.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let longest = Duration::from_secs(if moving { 1 } else { 60 });
        tokio::select! {
            () = inner.client.budget_changed.notified() => {}
            () = tokio::time::sleep(longest) => {}
        }
    }
}

/// Lists the runners of scopes in use; each scope once at the start.
async fn orphans(inner: &Inner, inputs: &mpsc::Sender<Vec<Input>>) {
    let mut listed_once: BTreeSet<Scope> = BTreeSet::new();
    loop {
        let now = utc_now();
        let mut due = lock(&inner.directory).routes();
        due.retain(|scope, _| !listed_once.contains(scope));
        {
            let mut in_use = lock(&inner.in_use);
            in_use.retain(|_, (_, at)| now.saturating_sub(*at) < IN_USE_MS);
            for (scope, (credential, _)) in in_use.iter() {
                due.insert(scope.clone(), credential.clone());
            }
        }
        let any = !listed_once.is_empty() || !due.is_empty();
        for (scope, credential) in due {
            let Some(identity) = inner.client.identity(&credential) else {
                continue;
            };
            if lock(&identity.limits)
                .resting(utc_now(), Use::Read)
                .is_some()
            {
                continue;
            }
            let prefixes = &inner.config.runner_prefixes;
            let subject = format!("runners of {scope}");
            match list_runners(&inner.client, &inner.pacer, &identity, &scope, prefixes).await {
                Ok(runners) => {
                    listed_once.insert(scope.clone());
                    if !runners.is_empty() {
                        let mut in_use = lock(&inner.in_use);
                        in_use.insert(scope.clone(), (credential, utc_now()));
                    }
                    inner.problems.clear(&subject);
                    send(inputs, vec![Input::RunnersListed { scope, runners }]).await;
                }
                Err(error) => inner.problems.set(&subject, error.to_string(), utc_now()),
            }
        }
        // Before the first discovery there is nothing to list: look again soon.
        let pause = if any {
            inner.config.list_runners_every
        } else {
            Duration::from_secs(1)
        };
        tokio::time::sleep(pause).await;
    }
}
