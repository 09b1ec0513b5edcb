//! GetStatus and ListWorkflowQueues: the core's own counts joined with the sweep's report.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use longshore_proto::v1;
use scheduler_core::{Queue, model::UtcMillis};
use scheduler_github::{RepositoryQueue, SweepStatus};
use scheduler_store::RepositoryCounts;
use tonic::Status;

use super::Fleets;
use crate::{
    access::{Scope, Who},
    api::{convert, errors, page},
    config::WatchSettings,
    ports::{Demand, RateStatus, Store},
};

/// Pages of history read for one list, at most.
const HISTORY_PAGES: usize = 100;

/// Settings as the API shows them.
pub(super) fn settings(watch: &WatchSettings) -> v1::AutoscalerSettings {
    v1::AutoscalerSettings {
        owners: watch.owners.clone(),
        poll_interval: Some(convert::span(Duration::from_millis(watch.interval_ms))),
        max_runners: watch.max_runners,
        image: watch.image.clone(),
        since_days: watch.since_days,
    }
}

impl<S: Store, D: Demand> Fleets<S, D> {
    /// What the whole fleet does; to a caller with a scope, what is within it.
    pub(super) fn status(&self, who: &Who) -> v1::GetStatusResponse {
        let whole = self.whole_status();
        if who.scope().is_fleet() {
            return whole;
        }
        self.status_within(who.scope(), whole)
    }

    fn status_within(&self, scope: &Scope, whole: v1::GetStatusResponse) -> v1::GetStatusResponse {
        let (queues, runners) = self.parts.view.fleet(|fleet| {
            let runners = fleet
                .runners()
                .filter(|runner| !runner.container_id().is_empty())
                .filter(|runner| {
                    let shown = convert::runner(fleet, runner);
                    shows_runner(scope, &shown)
                });
            (fleet.queues(), runners.count() as u32)
        });
        let sweep = self.parts.demand.sweep();
        let own = sweep.repositories.keys().filter(|name| scope.covers(name));
        let queues: Vec<&Queue> = queues
            .iter()
            .filter(|(name, _)| scope.covers(name))
            .map(|(_, queue)| queue)
            .collect();
        v1::GetStatusResponse {
            active_runners: runners,
            queued_workflows: queues.iter().map(|queue| queue.pending).sum(),
            repositories_monitored: (own.count() as u32).max(queues.len() as u32),
            filtered: summed(&queues),
            // Nobody counts these by repository, and credentials are the fleet's.
            provisioned_runners: 0,
            credentials: Vec::new(),
            settings: whole.settings.map(|settings| v1::AutoscalerSettings {
                owners: settings
                    .owners
                    .into_iter()
                    .filter(|owner| scope.owner().is_some_and(|o| o.eq_ignore_ascii_case(owner)))
                    .collect(),
                ..settings
            }),
            ..whole
        }
    }

    fn whole_status(&self) -> v1::GetStatusResponse {
        let sweep = self.parts.demand.sweep();
        let (status, containers, problems, fleet_id) = self.parts.view.fleet(|fleet| {
            let containers = fleet
                .runners()
                .filter(|runner| !runner.container_id().is_empty())
                .count() as u32;
            let problems: BTreeMap<String, String> = fleet
                .budgets()
                .filter_map(|(name, budget)| Some((name.to_string(), budget.problem.clone()?)))
                .collect();
            (
                fleet.status(),
                containers,
                problems,
                fleet.fleet_id().to_owned(),
            )
        });
        let repositories = sweep.repositories.len() as u32;
        v1::GetStatusResponse {
            running: status.running,
            start_time: Some(convert::time(status.since.unwrap_or(self.parts.started_at))),
            iterations: sweep.iterations,
            active_runners: containers,
            queued_workflows: status.queued,
            repositories_monitored: repositories.max(status.repositories),
            last_check: sweep.last_check.map(convert::time),
            provisioned_runners: self.parts.view.placed(),
            filtered: counts(&status.filtered),
            nodes_ready: status.nodes_ready,
            nodes_total: status.nodes_total,
            settings: Some(settings(&self.parts.settings.borrow())),
            credentials: credentials(&self.parts.demand.rates(), &sweep, problems),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            fleet: fleet_id,
        }
    }

    pub(super) async fn queues(
        &self,
        who: &Who,
        asked: v1::ListWorkflowQueuesRequest,
    ) -> Result<v1::ListWorkflowQueuesResponse, Status> {
        let sweep = self.parts.demand.sweep();
        let (core, filtered) = self
            .parts
            .view
            .fleet(|fleet| (fleet.queues(), fleet.filtered()));
        let history = self.history().await?;
        let owner = asked.owner.to_lowercase();
        let names: BTreeSet<&String> = sweep
            .repositories
            .keys()
            .chain(core.keys())
            .chain(history.keys())
            .filter(|name| {
                let of = name.split('/').next().unwrap_or_default();
                owner.is_empty() || of.to_lowercase() == owner
            })
            .filter(|name| who.scope().covers(name))
            .collect();
        let (names, next_page_token) = page::cut(
            names.into_iter(),
            |name| (*name).clone(),
            asked.page_size,
            &asked.page_token,
        )?;
        let queues = names
            .into_iter()
            .map(|name| {
                queue(
                    name,
                    sweep.repositories.get(name),
                    core.get(name),
                    history.get(name),
                )
            })
            .collect();
        Ok(v1::ListWorkflowQueuesResponse {
            queues,
            next_page_token,
            filtered: match who.scope() {
                Scope::Fleet => counts(&filtered),
                scope => {
                    let within = core.iter().filter(|(name, _)| scope.covers(name));
                    summed(&within.map(|(_, queue)| queue).collect::<Vec<_>>())
                }
            },
        })
    }

    /// What the store knows of the window, by repository.
    async fn history(&self) -> Result<BTreeMap<String, RepositoryCounts>, Status> {
        let days = u64::from(self.parts.settings.borrow().since_days.max(1));
        let since: UtcMillis = self.now().utc.saturating_sub(days * 86_400_000);
        let mut all = BTreeMap::new();
        let mut after = None;
        for _ in 0..HISTORY_PAGES {
            let page = self.parts.store.repository_counts(since, after).await;
            let page = page.map_err(|error| errors::store(&error))?;
            let Some(last) = page.last().map(|last| last.repository.clone()) else {
                break;
            };
            all.extend(page.into_iter().map(|row| (row.repository.clone(), row)));
            after = Some(last);
        }
        Ok(all)
    }
}

/// Whether a scope shows a runner: by its repository, else by whom it is registered with.
pub(super) fn shows_runner(scope: &Scope, runner: &v1::Runner) -> bool {
    match runner.repo.as_str() {
        "" => scope.covers_owner(&runner.scope),
        repository => scope.covers(repository),
    }
}

fn summed(queues: &[&Queue]) -> HashMap<String, u32> {
    let mut sums = HashMap::new();
    for (label, count) in queues.iter().flat_map(|queue| &queue.filtered) {
        *sums.entry(label.clone()).or_default() += count;
    }
    sums
}

fn counts(counts: &BTreeMap<String, u32>) -> HashMap<String, u32> {
    counts.clone().into_iter().collect()
}

/// One repository from three angles: the sweep counts runs, the core lives jobs,
/// the store remembers failures.
fn queue(
    name: &str,
    sweep: Option<&RepositoryQueue>,
    core: Option<&Queue>,
    history: Option<&RepositoryCounts>,
) -> v1::WorkflowQueue {
    let none = Queue::default();
    let core = core.unwrap_or(&none);
    let most = |values: [u32; 3]| values.into_iter().max().unwrap_or(0);
    let forecast = sweep.map(|sweep| sweep.forecast).unwrap_or_default();
    v1::WorkflowQueue {
        repo: name.to_owned(),
        total_workflows: most([
            sweep.map_or(0, |sweep| sweep.total),
            core.runs,
            history.map_or(0, |history| history.runs),
        ]),
        running: core.running,
        failed: most([
            sweep.map_or(0, |sweep| sweep.failed),
            core.failed,
            history.map_or(0, |history| history.failed),
        ]),
        // Runs held back have no jobs yet: only the sweep knows of them.
        pending: core.pending.max(sweep.map_or(0, |sweep| sweep.held)),
        filtered: counts(&core.filtered),
        forecast: [
            ("x64", forecast.x64),
            ("arm64", forecast.arm64),
            ("unknown", forecast.unknown),
        ]
        .into_iter()
        .filter(|(_, runs)| *runs > 0)
        .map(|(arch, runs)| (arch.to_owned(), runs))
        .collect(),
    }
}

/// One line per credential: the core limit, and what is wrong.
fn credentials(
    rates: &[RateStatus],
    sweep: &SweepStatus,
    mut problems: BTreeMap<String, String>,
) -> Vec<v1::CredentialStatus> {
    for problem in &sweep.problems {
        problems
            .entry(problem.subject.clone())
            .or_insert_with(|| problem.detail.clone());
    }
    let mut lines: BTreeMap<String, v1::CredentialStatus> = BTreeMap::new();
    for rate in rates {
        let name = rate.credential.to_string();
        let line = lines
            .entry(name.clone())
            .or_insert_with(|| v1::CredentialStatus {
                name,
                ..v1::CredentialStatus::default()
            });
        if rate.resource == "core" {
            line.remaining = rate.remaining as i64;
            line.limit = rate.limit as i64;
            line.reset_at = Some(convert::time(rate.reset_at));
        }
        if let Some(until) = rate.limited_until {
            let until = convert::time(until);
            let detail = format!("rate limited by GitHub until {until}; it goes on by itself");
            problems.entry(line.name.clone()).or_insert(detail);
        }
    }
    for (subject, detail) in problems {
        lines
            .entry(subject.clone())
            .or_insert_with(|| v1::CredentialStatus {
                name: subject,
                ..v1::CredentialStatus::default()
            })
            .problem = detail;
    }
    lines.into_values().collect()
}
