//! ProvisionRunners: a floor of idle runners for ten minutes.

use std::collections::BTreeSet;

use longshore_proto::v1;
use scheduler_core::{
    Fleet, Node,
    input::Command,
    model::{CredentialName, JobPhase, PoolName, Scope},
};
use tonic::Status;

use super::Fleets;
use crate::{
    access::{self, Who},
    api::{convert, errors},
    ports::{Demand, Store},
};

/// How long a floor stands.
const TTL_MS: u64 = 10 * 60_000;
/// Runners of one floor, at most.
const MOST: u32 = 256;
/// Floors of one request without a repository, at most.
const FLOORS: usize = 256;

/// One floor to set.
struct Wanted {
    repo: String,
    scope: Scope,
    credential: CredentialName,
    labels: BTreeSet<String>,
}

impl<S: Store, D: Demand> Fleets<S, D> {
    pub(super) async fn provision(
        &self,
        who: &Who,
        asked: &v1::ProvisionRunnersRequest,
    ) -> Result<v1::ProvisionRunnersResponse, Status> {
        if asked.count > MOST {
            return Err(errors::invalid(
                "count",
                format!("{} is more than {MOST}", asked.count),
                "ask for fewer, or set idle_floor of a pool",
            ));
        }
        let pool = (!asked.pool.is_empty()).then(|| PoolName::new(&asked.pool));
        if let Some(pool) = &pool
            && !self.parts.view.fleet(|fleet| fleet.pool(pool).is_some())
        {
            return Err(errors::not_found(
                "pool",
                asked.pool.escape_debug(),
                "`longshore pool list` lists them",
            ));
        }
        let count = asked.count.max(1);
        let until = self.now().utc + TTL_MS;
        let wanted = self.wanted(who, asked).await?;
        let mut commands = Vec::new();
        let mut provisioned = Vec::new();
        for floor in wanted {
            let problem = self
                .parts
                .view
                .fleet(|fleet| problem(fleet, &floor.labels, pool.as_ref()));
            provisioned.push(v1::Provisioned {
                repo: floor.repo,
                scope: floor.scope.to_string(),
                labels: floor.labels.iter().cloned().collect(),
                count,
                until: Some(convert::time(until)),
                problem: problem.unwrap_or_default(),
            });
            commands.push(Command::Provision {
                scope: floor.scope,
                credential: floor.credential,
                labels: floor.labels,
                pool: pool.clone(),
                count,
                until,
            });
        }
        if !asked.validate_only && !commands.is_empty() {
            let subject = if asked.repo.is_empty() {
                "*"
            } else {
                &asked.repo
            };
            self.write(who, subject, &asked.request_id, commands, Vec::new())
                .await?;
        }
        Ok(v1::ProvisionRunnersResponse { provisioned })
    }

    async fn wanted(
        &self,
        who: &Who,
        asked: &v1::ProvisionRunnersRequest,
    ) -> Result<Vec<Wanted>, Status> {
        if !asked.repo.is_empty() && !who.reaches(&asked.repo) {
            return Err(unreached(&asked.repo));
        }
        let given: BTreeSet<String> = asked.labels.iter().map(|l| l.to_lowercase()).collect();
        let waiting = self
            .parts
            .view
            .fleet(|fleet| waiting(fleet, who.scope(), &asked.repo, &given));
        if asked.repo.is_empty() || !waiting.is_empty() {
            return Ok(waiting);
        }
        let Some((owner, name)) = asked.repo.split_once('/') else {
            return Err(errors::invalid(
                "repo",
                format!("`{}` is not owner/name", asked.repo.escape_debug()),
                "write it like acme/web",
            ));
        };
        let Some((scope, credential)) = self.parts.demand.resolve(owner, name).await else {
            return Err(unreached(&asked.repo));
        };
        let labels = if given.is_empty() {
            self.parts.view.fleet(usual_labels)
        } else {
            given
        };
        Ok(vec![Wanted {
            repo: asked.repo.clone(),
            scope,
            credential,
            labels,
        }])
    }
}

fn unreached(repo: &str) -> Status {
    errors::not_found(
        "repository",
        repo.escape_debug(),
        "check the name, and that the GitHub credential reaches it",
    )
}

/// One floor per scope and label set that jobs within the caller's scope wait for.
fn waiting(
    fleet: &Fleet,
    within: &access::Scope,
    repo: &str,
    given: &BTreeSet<String>,
) -> Vec<Wanted> {
    let mut seen = BTreeSet::new();
    let mut floors = Vec::new();
    for job in fleet.jobs() {
        let name = job.seen.repository.full_name();
        let other = !repo.is_empty() && !name.eq_ignore_ascii_case(repo) || !within.covers(&name);
        if job.phase() != JobPhase::Queued || job.seen.labels.is_empty() || other {
            continue;
        }
        let labels = if given.is_empty() {
            job.seen.labels.iter().map(|l| l.to_lowercase()).collect()
        } else {
            given.clone()
        };
        if floors.len() < FLOORS && seen.insert((job.seen.scope.clone(), labels.clone())) {
            floors.push(Wanted {
                repo: name,
                scope: job.seen.scope.clone(),
                credential: job.seen.credential.clone(),
                labels,
            });
        }
    }
    floors
}

/// What workflows usually ask for, on the architecture most nodes have.
fn usual_labels(fleet: &Fleet) -> BTreeSet<String> {
    let arches = |arch: &str| {
        fleet
            .nodes()
            .filter(|node| node.capability.arch == arch)
            .count()
    };
    let arch = if arches("arm64") > arches("x64") {
        "arm64"
    } else {
        "x64"
    };
    ["self-hosted", "linux", arch].map(str::to_owned).into()
}

/// Why nothing of these labels can start now, from one pool if named; `None` when a node can take it.
fn problem(fleet: &Fleet, labels: &BTreeSet<String>, pool: Option<&PoolName>) -> Option<String> {
    if !fleet.is_running() {
        return Some("scaling is off; `longshore runner start` turns it on".to_owned());
    }
    if fleet.nodes().next().is_none() {
        return Some("no node is attached; start longshore-agent on a host".to_owned());
    }
    // What a pool grants is asked of no node.
    let asked: BTreeSet<&String> = labels
        .iter()
        .filter(|label| !fleet.grants(label, pool))
        .collect();
    let carriers: Vec<_> = fleet
        .nodes()
        .filter(|node| asked.iter().all(|l| node.capability.labels.contains(*l)))
        .collect();
    if carriers.is_empty() {
        let missing: Vec<&str> = asked
            .iter()
            .filter(|label| {
                !fleet
                    .nodes()
                    .any(|node| node.capability.labels.contains(**label))
            })
            .map(|label| label.as_str())
            .collect();
        if !fleet.nodes().any(Node::is_fingerprinted) {
            return Some(
                "no node has told yet what it can run; wait, or see `longshore node list`"
                    .to_owned(),
            );
        }
        return Some(match &missing[..] {
            [] => "no node carries all of these labels together; attach one that does".to_owned(),
            [only] => format!("no node carries the label {only}; attach one that does"),
            several => format!(
                "no node carries the labels {}; attach one that does",
                several.join(", ")
            ),
        });
    }
    if !carriers.iter().any(|node| node.takes_new_runners()) {
        return Some(
            "nodes that carry these labels take no new runners; see `longshore node list`"
                .to_owned(),
        );
    }
    None
}
