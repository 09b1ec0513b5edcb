//! Lists: jobs and runners from the history, with what memory knows better; nodes and pools from memory.

use std::collections::BTreeMap;

use longshore_proto::v1;
use scheduler_core::model::{JobPhase, PoolName};
use scheduler_store::{JobQuery, RunnerQuery};
use tonic::Status;

use super::Fleets;
use crate::{
    access::Who,
    api::{convert, errors, page},
    ports::{Demand, Store},
};

impl<S: Store, D: Demand> Fleets<S, D> {
    pub(super) async fn jobs(
        &self,
        who: &Who,
        asked: v1::ListJobsRequest,
    ) -> Result<v1::ListJobsResponse, Status> {
        self.within_reach(who, &asked.repo)?;
        let query = JobQuery {
            repository: some(asked.repo.clone()),
            within: who.within(),
            phase: phase(&asked.state)?,
            page_token: some(asked.page_token),
            page_size: asked.page_size,
        };
        let rows = self.parts.store.jobs(query).await;
        let rows = rows.map_err(|error| errors::store(&error))?;
        if rows.items.is_empty() {
            self.known_repository(&asked.repo)?;
        }
        let now = self.now();
        let mut reasons = convert::Reasons::default();
        let mut jobs = Vec::with_capacity(rows.items.len());
        for row in rows.items {
            let live = self.parts.view.fleet(|fleet| {
                let job = fleet.job(row.id)?;
                let reason = reasons.of(fleet, job, now);
                Some(convert::job(fleet, job, reason))
            });
            let complete = live.as_ref().is_some_and(|job| {
                job.runner.is_empty() || (!job.node.is_empty() && job.state != "completed")
            });
            let past = match (&row.runner, complete) {
                (Some(name), false) if row.ours => self.runner_of(name).await?,
                _ => None,
            };
            let past = convert::job_row(&row, past.as_ref());
            jobs.push(match live {
                Some(live) => v1::Job {
                    node: if live.node.is_empty() {
                        past.node
                    } else {
                        live.node
                    },
                    usage: past.usage,
                    ending: past.ending,
                    denied: past.denied,
                    ..live
                },
                None => past,
            });
        }
        Ok(v1::ListJobsResponse {
            jobs,
            next_page_token: rows.next.unwrap_or_default(),
        })
    }

    pub(super) async fn runners(
        &self,
        who: &Who,
        asked: v1::ListRunnersRequest,
    ) -> Result<v1::ListRunnersResponse, Status> {
        self.within_reach(who, &asked.repo)?;
        let query = RunnerQuery {
            repository: some(asked.repo.clone()),
            within: who.within(),
            node: some(asked.node),
            include_finished: asked.include_finished,
            page_token: some(asked.page_token),
            page_size: asked.page_size,
        };
        let rows = self.parts.store.runners(query).await;
        let rows = rows.map_err(|error| errors::store(&error))?;
        if rows.items.is_empty() {
            self.known_repository(&asked.repo)?;
        }
        Ok(v1::ListRunnersResponse {
            runners: rows.items.iter().map(|row| self.shown(row)).collect(),
            next_page_token: rows.next.unwrap_or_default(),
        })
    }

    pub(super) fn nodes(
        &self,
        asked: &v1::ListNodesRequest,
    ) -> Result<v1::ListNodesResponse, Status> {
        let vitals = &self.parts.vitals;
        let (nodes, next_page_token) = self.parts.view.fleet(|fleet| {
            page::cut(
                fleet.nodes(),
                |node| node.name.to_string(),
                asked.page_size,
                &asked.page_token,
            )
            .map(|(nodes, next)| {
                let shown = nodes
                    .into_iter()
                    .map(|node| convert::node(node, vitals.of(&node.name)));
                (shown.collect(), next)
            })
        })?;
        Ok(v1::ListNodesResponse {
            nodes,
            next_page_token,
        })
    }

    pub(super) fn pools(
        &self,
        asked: &v1::ListPoolsRequest,
    ) -> Result<v1::ListPoolsResponse, Status> {
        let (pools, next_page_token) = self.parts.view.fleet(|fleet| {
            let mut live: BTreeMap<PoolName, u32> = BTreeMap::new();
            for runner in fleet.runners() {
                *live.entry(runner.placed.pool.clone()).or_default() += 1;
            }
            page::cut(
                fleet.pools(),
                |entry| entry.pool.name.to_string(),
                asked.page_size,
                &asked.page_token,
            )
            .map(|(entries, next)| {
                let image = fleet.defaults().image.clone();
                let shown = entries.into_iter().map(|entry| {
                    let runners = live.get(&entry.pool.name).copied().unwrap_or(0);
                    convert::pool(&entry.pool, entry.origin, runners, &image)
                });
                (shown.collect(), next)
            })
        })?;
        Ok(v1::ListPoolsResponse {
            pools,
            next_page_token,
        })
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn phase(word: &str) -> Result<Option<JobPhase>, Status> {
    Ok(Some(match word {
        "" => return Ok(None),
        "waiting" => JobPhase::Waiting,
        "queued" => JobPhase::Queued,
        "in_progress" => JobPhase::InProgress,
        "completed" => JobPhase::Completed,
        other => {
            return Err(errors::invalid(
                "state",
                format!("`{}` is no state of a job", other.escape_debug()),
                "use queued, waiting, in_progress, completed or nothing",
            ));
        }
    }))
}
