//! One runner, job or node by what a caller typed.

use longshore_proto::v1;
use scheduler_core::model::{JobId, NodeName, RunnerName};
use scheduler_store::RunnerRow;
use tonic::Status;

use super::Fleets;
use crate::{
    access::Who,
    api::{convert, errors},
    ports::{Demand, Store},
};

/// Shortest prefix that may stand for a name.
const PREFIX: usize = 4;

impl<S: Store, D: Demand> Fleets<S, D> {
    /// A runner by name, container id, or an unambiguous prefix of either, if the
    /// caller's scope reaches it; to a caller it does not reach it is not there.
    pub(super) async fn runner_row(&self, who: &Who, typed: &str) -> Result<RunnerRow, Status> {
        let unknown = || {
            errors::not_found(
                "runner",
                typed.escape_debug(),
                "`longshore runner list-containers` lists them",
            )
        };
        if typed.len() < PREFIX || typed.len() > 128 {
            return Err(unknown());
        }
        let mut rows = self
            .parts
            .store
            .runners_by_prefix(typed, 3)
            .await
            .map_err(|error| errors::store(&error))?;
        let found = rows.len();
        rows.retain(|row| reaches(who, row));
        if rows.len() < found {
            who.denied(typed, "out_of_scope");
        }
        let exact = rows.iter().position(|row| {
            row.name.as_str() == typed || row.container_id.as_deref() == Some(typed)
        });
        match (exact, rows.len()) {
            (Some(exact), _) => Ok(rows.swap_remove(exact)),
            (None, 0) => Err(unknown()),
            (None, 1) => Ok(rows.swap_remove(0)),
            (None, _) => {
                let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
                Err(errors::invalid(
                    "name",
                    format!("several runners begin like that: {}", names.join(", ")),
                    "type more of the name",
                ))
            }
        }
    }

    /// What readers see of it: the living runner, else its history.
    pub(super) fn shown(&self, row: &RunnerRow) -> v1::Runner {
        let live = self.parts.view.fleet(|fleet| {
            let runner = fleet.runner(&row.name)?;
            Some(convert::runner(fleet, runner))
        });
        let past = convert::runner_row(row);
        match live {
            // The store knows a repository and a start that memory may have let go.
            Some(live) => v1::Runner {
                repo: if live.repo.is_empty() {
                    past.repo
                } else {
                    live.repo
                },
                started_at: live.started_at.or(past.started_at),
                ..live
            },
            None => past,
        }
    }

    pub(super) async fn runner(&self, who: &Who, typed: &str) -> Result<v1::Runner, Status> {
        Ok(self.shown(&self.runner_row(who, typed).await?))
    }

    /// The history of the runner that took a job.
    pub(super) async fn runner_of(&self, name: &str) -> Result<Option<RunnerRow>, Status> {
        let rows = self.parts.store.runners_by_prefix(name, 1).await;
        let rows = rows.map_err(|error| errors::store(&error))?;
        Ok(rows.into_iter().find(|row| row.name.as_str() == name))
    }

    /// A job of now or before, with its runner's usage once that is known.
    /// To a caller whose scope does not reach it, it is not there.
    pub(super) async fn job(&self, who: &Who, id: u64) -> Result<v1::Job, Status> {
        let job = self.any_job(id).await?;
        if who.reaches(&job.repo) {
            return Ok(job);
        }
        Err(no_job(id))
    }

    async fn any_job(&self, id: u64) -> Result<v1::Job, Status> {
        let now = self.now();
        let live = self.parts.view.fleet(|fleet| {
            let job = fleet.job(JobId(id))?;
            let reason = convert::Reasons::default().of(fleet, job, now);
            Some(convert::job(fleet, job, reason))
        });
        let row = self.parts.store.job(JobId(id)).await;
        let row = row.map_err(|error| errors::store(&error))?;
        let runner = match row
            .as_ref()
            .filter(|row| row.ours)
            .and_then(|row| row.runner.as_deref())
        {
            Some(name) => self.runner_of(name).await?,
            None => None,
        };
        let past = row.map(|row| convert::job_row(&row, runner.as_ref()));
        match (live, past) {
            (Some(live), Some(past)) => Ok(v1::Job {
                node: if live.node.is_empty() {
                    past.node
                } else {
                    live.node
                },
                usage: past.usage,
                ending: past.ending,
                denied: past.denied,
                ..live
            }),
            (Some(job), None) | (None, Some(job)) => Ok(job),
            (None, None) => Err(no_job(id)),
        }
    }

    pub(super) async fn explain(
        &self,
        who: &Who,
        id: u64,
    ) -> Result<v1::ExplainJobResponse, Status> {
        let job = self.job(who, id).await?;
        let now = self.now();
        let known = self.parts.view.fleet(|fleet| fleet.explain(JobId(id), now));
        Ok(match known {
            Some(explanation) => convert::explanation(&explanation, job),
            // Only history knows it: it is over.
            None => v1::ExplainJobResponse {
                summary: format!("The job is {}: it waits for nothing.", job.state),
                reason: "not_queued".to_owned(),
                job: Some(job),
                ..v1::ExplainJobResponse::default()
            },
        })
    }

    pub(super) fn node(&self, name: &str) -> Result<v1::Node, Status> {
        let name = NodeName::new(name);
        let vital = self.parts.vitals.of(&name);
        self.parts
            .view
            .fleet(|fleet| Some(convert::node(fleet.node(&name)?, vital)))
            .ok_or_else(|| {
                errors::not_found(
                    "node",
                    name.as_str().escape_debug(),
                    "`longshore node list` lists them",
                )
            })
    }

    /// Refuses a repository to filter by that the caller's scope does not reach: to it there is none.
    pub(super) fn within_reach(&self, who: &Who, typed: &str) -> Result<(), Status> {
        if typed.is_empty() || who.reaches(typed) {
            return Ok(());
        }
        Err(no_repository(typed))
    }

    /// Refuses a repository to filter by that nobody watches, as far as the first sweep said which are.
    pub(super) fn known_repository(&self, typed: &str) -> Result<(), Status> {
        let sweep = self.parts.demand.sweep();
        let mut watched = sweep.repositories.keys();
        let known = watched.any(|name| name.eq_ignore_ascii_case(typed));
        if typed.is_empty() || sweep.iterations == 0 || known {
            return Ok(());
        }
        Err(no_repository(typed))
    }

    /// The name of a living runner the core knows.
    pub(super) fn is_live(&self, name: &RunnerName) -> bool {
        self.parts.view.fleet(|fleet| fleet.runner(name).is_some())
    }
}

/// Whether the caller's scope covers a runner: by its repository, else by whom it is registered with.
fn reaches(who: &Who, row: &RunnerRow) -> bool {
    match &row.repository {
        Some(repository) => who.scope().covers(repository),
        None => who.scope().covers_owner(&row.scope),
    }
}

fn no_job(id: u64) -> Status {
    errors::not_found(
        "job",
        id,
        "`longshore job list` lists them; ids are GitHub's job ids, not run ids",
    )
}

fn no_repository(typed: &str) -> Status {
    errors::not_found(
        "repository",
        typed.escape_debug(),
        "`longshore runner list-workflows` lists the watched ones",
    )
}
