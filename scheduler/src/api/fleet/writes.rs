//! Changes: checked against the view, committed by the driver, read back before the answer.

use std::time::Duration;

use longshore_proto::v1;
use scheduler_core::{
    fact::PoolOrigin,
    input::Command,
    model::{NodeName, PoolName, RunnerPhase},
};
use tonic::Status;

use super::{Fleets, status::settings};
use crate::{
    access::Who,
    api::{convert, errors},
    config::WatchSettings,
    ports::{Demand, Store},
};

/// Where the autoscaler's settings are stored.
pub const SETTINGS_KEY: &str = "autoscaler";

/// Pools in all, at most.
pub const POOLS: usize = 1_000;
/// Shares in all, at most.
pub const SHARES: usize = 10_000;
/// Bytes of a share's subject, at most: GitHub's owner and name have 140.
const SUBJECT: usize = 256;

impl<S: Store, D: Demand> Fleets<S, D> {
    pub(super) async fn start(
        &self,
        who: &Who,
        asked: &v1::StartAutoscalerRequest,
    ) -> Result<v1::StartAutoscalerResponse, Status> {
        let now = self.parts.settings.borrow().clone();
        let next = merged(&now, asked.settings.as_ref())?;
        let was_running = self.parts.view.fleet(|fleet| fleet.is_running());
        let answer = v1::StartAutoscalerResponse {
            settings: Some(settings(&next)),
            was_running,
        };
        if asked.validate_only {
            return Ok(answer);
        }
        let stored = serde_json::to_string(&next).map_err(|_| errors::stopping())?;
        let command = Command::StartAutoscaler {
            max_runners: Some(next.max_runners),
            image: Some(next.image.clone()),
        };
        self.write(
            who,
            "autoscaler",
            &asked.request_id,
            vec![command],
            vec![(SETTINGS_KEY.to_owned(), Some(stored))],
        )
        .await?;
        self.parts.settings.send_if_modified(|current| {
            let changed = *current != next;
            *current = next;
            changed
        });
        self.parts.demand.nudge();
        Ok(answer)
    }

    pub(super) async fn stop(
        &self,
        who: &Who,
        asked: &v1::StopAutoscalerRequest,
    ) -> Result<v1::StopAutoscalerResponse, Status> {
        let was_running = self.parts.view.fleet(|fleet| fleet.is_running());
        self.write(
            who,
            "autoscaler",
            &asked.request_id,
            vec![Command::StopAutoscaler],
            Vec::new(),
        )
        .await?;
        Ok(v1::StopAutoscalerResponse { was_running })
    }

    pub(super) async fn end_runner(
        &self,
        who: &Who,
        asked: &v1::StopRunnerRequest,
    ) -> Result<v1::StopRunnerResponse, Status> {
        let row = self.runner_row(who, &asked.name).await?;
        let busy = self.parts.view.fleet(|fleet| {
            let runner = fleet.runner(&row.name)?;
            Some(runner.phase() == RunnerPhase::Busy)
        });
        if busy.is_some() {
            let reason = match asked.reason.as_str() {
                "" => "asked for".to_owned(),
                reason => reason.chars().take(200).collect(),
            };
            let command = Command::StopRunner {
                runner: row.name.clone(),
                reason,
            };
            let subject = row.name.to_string();
            self.write(who, &subject, &asked.request_id, vec![command], Vec::new())
                .await?;
        }
        Ok(v1::StopRunnerResponse {
            runner: Some(self.shown(&row)),
            job_cancelled: busy.unwrap_or(false),
        })
    }

    async fn on_node(
        &self,
        who: &Who,
        name: &str,
        request_id: &str,
        command: impl FnOnce(NodeName) -> Command,
    ) -> Result<(), Status> {
        self.node(name)?;
        let command = command(NodeName::new(name));
        self.write(who, name, request_id, vec![command], Vec::new())
            .await
    }

    pub(super) async fn cordon(
        &self,
        who: &Who,
        asked: &v1::CordonNodeRequest,
    ) -> Result<v1::CordonNodeResponse, Status> {
        self.on_node(who, &asked.name, &asked.request_id, |node| {
            Command::CordonNode { node }
        })
        .await?;
        Ok(v1::CordonNodeResponse {
            node: Some(self.node(&asked.name)?),
        })
    }

    pub(super) async fn uncordon(
        &self,
        who: &Who,
        asked: &v1::UncordonNodeRequest,
    ) -> Result<v1::UncordonNodeResponse, Status> {
        self.on_node(who, &asked.name, &asked.request_id, |node| {
            Command::UncordonNode { node }
        })
        .await?;
        Ok(v1::UncordonNodeResponse {
            node: Some(self.node(&asked.name)?),
        })
    }

    pub(super) async fn drain(
        &self,
        who: &Who,
        asked: &v1::DrainNodeRequest,
    ) -> Result<v1::DrainNodeResponse, Status> {
        let deadline = match &asked.deadline {
            None => None,
            Some(span) => {
                let span = convert::duration(span).ok_or_else(|| {
                    errors::invalid(
                        "deadline",
                        "it is negative",
                        "leave it out to wait for ever",
                    )
                })?;
                Some(self.now().utc.saturating_add(span.as_millis() as u64))
            }
        };
        self.on_node(who, &asked.name, &asked.request_id, |node| {
            Command::DrainNode { node, deadline }
        })
        .await?;
        Ok(v1::DrainNodeResponse {
            node: Some(self.node(&asked.name)?),
        })
    }

    pub(super) async fn remove(
        &self,
        who: &Who,
        asked: &v1::RemoveNodeRequest,
    ) -> Result<v1::RemoveNodeResponse, Status> {
        self.node(&asked.name)?;
        let node = NodeName::new(&asked.name);
        // First: from now on the node opens nothing, whatever becomes of the rest.
        let revoked = self.parts.admissions.remove(&asked.name, self.now().utc);
        revoked.await.map_err(|_| errors::stopping())?;
        self.on_node(who, &asked.name, &asked.request_id, |node| {
            Command::RemoveNode { node }
        })
        .await?;
        self.parts.links.end(&node);
        self.parts.vitals.forget(&node);
        Ok(v1::RemoveNodeResponse {})
    }

    pub(super) async fn put_pool(
        &self,
        who: &Who,
        asked: &v1::SetPoolRequest,
    ) -> Result<v1::SetPoolResponse, Status> {
        let told = asked
            .pool
            .as_ref()
            .ok_or_else(|| errors::invalid("pool", "it is missing", "send the pool to set"))?;
        let defaults = self.parts.view.fleet(|fleet| fleet.defaults().clone());
        let pool = convert::pool_of(told, &defaults)
            .map_err(|(field, problem)| errors::invalid(field, problem, "correct it"))?;
        let name = pool.name.clone();
        let built_in = self.parts.view.fleet(|fleet| {
            fleet
                .pool(&name)
                .is_some_and(|entry| entry.origin == PoolOrigin::BuiltIn)
        });
        if built_in {
            return Err(errors::precondition(
                "pool_built_in",
                &format!("pool `{name}` is built in"),
                "set a pool of another name: it goes before the built-in one",
            ));
        }
        let full = self
            .parts
            .view
            .fleet(|fleet| fleet.pool(&name).is_none() && fleet.pools().count() >= POOLS);
        if full {
            return Err(too_many("pools", POOLS, "delete one that is not used"));
        }
        if asked.validate_only {
            let shown = convert::pool(&pool, PoolOrigin::Api, 0, &defaults.image);
            return Ok(v1::SetPoolResponse { pool: Some(shown) });
        }
        self.write(
            who,
            name.as_str(),
            &asked.request_id,
            vec![Command::SetPool(Box::new(pool))],
            Vec::new(),
        )
        .await?;
        let shown = self.parts.view.fleet(|fleet| {
            let entry = fleet.pool(&name)?;
            let runners = fleet
                .runners()
                .filter(|runner| runner.placed.pool == name)
                .count() as u32;
            Some(convert::pool(
                &entry.pool,
                entry.origin,
                runners,
                &defaults.image,
            ))
        });
        Ok(v1::SetPoolResponse { pool: shown })
    }

    pub(super) async fn drop_pool(
        &self,
        who: &Who,
        asked: &v1::DeletePoolRequest,
    ) -> Result<v1::DeletePoolResponse, Status> {
        let name = PoolName::new(&asked.name);
        let origin = self
            .parts
            .view
            .fleet(|fleet| fleet.pool(&name).map(|entry| entry.origin));
        match origin {
            None => Err(errors::not_found(
                "pool",
                asked.name.escape_debug(),
                "`longshore pool list` lists them",
            )),
            Some(PoolOrigin::BuiltIn) => Err(errors::precondition(
                "pool_built_in",
                &format!("pool `{name}` is built in"),
                "give it nothing to do by a pool that admits the same jobs",
            )),
            Some(PoolOrigin::File) => Err(errors::precondition(
                "pool_from_file",
                &format!("pool `{name}` stands in the configuration file"),
                "take it out there and restart the scheduler",
            )),
            Some(PoolOrigin::Api) => {
                self.write(
                    who,
                    name.as_str(),
                    &asked.request_id,
                    vec![Command::DeletePool { pool: name.clone() }],
                    Vec::new(),
                )
                .await?;
                Ok(v1::DeletePoolResponse {})
            }
        }
    }

    pub(super) async fn put_share(
        &self,
        who: &Who,
        asked: &v1::SetShareRequest,
    ) -> Result<v1::SetShareResponse, Status> {
        let parts: Vec<&str> = asked.subject.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
            return Err(errors::invalid(
                "subject",
                format!(
                    "`{}` is neither owner nor owner/name",
                    asked.subject.escape_debug()
                ),
                "write it like acme or acme/web",
            ));
        }
        if !(1..=1_000).contains(&asked.weight) {
            return Err(errors::invalid(
                "weight",
                format!("{} is not from 1 to 1,000", asked.weight),
                "1 is the default",
            ));
        }
        let full = self.parts.view.fleet(|fleet| {
            let mut known = fleet.shares();
            known.all(|(subject, _)| subject != asked.subject) && fleet.shares().count() >= SHARES
        });
        if full || asked.subject.len() > SUBJECT {
            return Err(too_many(
                "shares",
                SHARES,
                "name owners instead of single repositories",
            ));
        }
        let command = Command::SetShare {
            subject: asked.subject.clone(),
            weight: asked.weight,
            maximum: asked.maximum,
        };
        self.write(
            who,
            &asked.subject,
            &asked.request_id,
            vec![command],
            Vec::new(),
        )
        .await?;
        Ok(v1::SetShareResponse {})
    }
}

fn too_many(what: &str, most: usize, next_step: &str) -> Status {
    errors::status(
        tonic::Code::ResourceExhausted,
        &format!("too_many_{what}"),
        &format!("there are {most} {what}, and no more are kept"),
        next_step,
    )
}

/// Settings after a request: what it leaves out stays as it is.
fn merged(
    now: &WatchSettings,
    asked: Option<&v1::AutoscalerSettings>,
) -> Result<WatchSettings, Status> {
    let mut next = now.clone();
    let Some(asked) = asked else {
        return Ok(next);
    };
    if !asked.owners.is_empty() {
        if let Some(owner) = asked.owners.iter().find(|owner| !is_login(owner)) {
            return Err(errors::invalid(
                "settings.owners",
                format!("`{}` is no GitHub login", owner.escape_debug()),
                "name users or organisations, without a slash",
            ));
        }
        next.owners = asked.owners.clone();
    }
    if let Some(span) = &asked.poll_interval {
        let interval = convert::duration(span)
            .filter(|interval| *interval >= Duration::from_secs(1))
            .ok_or_else(|| {
                errors::invalid(
                    "settings.poll_interval",
                    "it is shorter than 1 s",
                    "60 s is the default",
                )
            })?;
        next.interval_ms = interval.as_millis() as u64;
    }
    if asked.max_runners > 0 {
        next.max_runners = asked.max_runners;
    }
    if !asked.image.is_empty() {
        next.image = asked.image.clone();
    }
    if asked.since_days > 0 {
        next.since_days = asked.since_days;
    }
    Ok(next)
}

fn is_login(owner: &str) -> bool {
    !owner.is_empty()
        && owner.len() <= 100
        && owner
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> WatchSettings {
        WatchSettings {
            owners: vec!["acme".to_owned()],
            interval_ms: 60_000,
            since_days: 1,
            max_runners: 0,
            image: "image".to_owned(),
        }
    }

    #[test]
    fn what_a_request_leaves_out_stays() {
        let asked = v1::AutoscalerSettings {
            max_runners: 5,
            ..v1::AutoscalerSettings::default()
        };
        let next = merged(&now(), Some(&asked)).expect("valid");
        assert_eq!(
            next,
            WatchSettings {
                max_runners: 5,
                ..now()
            }
        );
    }

    #[test]
    fn owners_and_intervals_that_cannot_be_are_refused() {
        let owner = v1::AutoscalerSettings {
            owners: vec!["acme/web".to_owned()],
            ..v1::AutoscalerSettings::default()
        };
        assert!(merged(&now(), Some(&owner)).is_err());
        let interval = v1::AutoscalerSettings {
            poll_interval: Some(convert::span(Duration::from_millis(10))),
            ..v1::AutoscalerSettings::default()
        };
        assert!(merged(&now(), Some(&interval)).is_err());
    }
}
