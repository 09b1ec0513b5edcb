//! What people ask for: cordon, drain, removal, settings, floors, stops.

use crate::{
    apply::BUILT_IN_POOL,
    fact::{Fact, PoolOrigin, RetireReason, StopReason},
    fleet::Fleet,
    input::Command,
    labels::fold,
    model::{NodeName, Now, Pool, PoolName, RunnerName},
};

impl Fleet {
    /// Commands on unknown subjects change nothing; the shell answers "not found".
    pub(crate) fn command(&mut self, now: Now, command: &Command, facts: &mut Vec<Fact>) {
        match command {
            Command::StartAutoscaler { max_runners, image } => {
                self.forget_in_vain(facts);
                let same = self.autoscaler.running
                    && self.autoscaler.at.is_some()
                    && self.autoscaler.max_runners == *max_runners
                    && self.autoscaler.image == *image;
                if !same {
                    self.emit(
                        Fact::AutoscalerStarted {
                            max_runners: *max_runners,
                            image: image.clone(),
                            at: now.utc,
                        },
                        facts,
                    );
                }
            }
            Command::StopAutoscaler => {
                if self.autoscaler.running {
                    self.emit(Fact::AutoscalerStopped { at: now.utc }, facts);
                }
            }
            Command::Provision {
                scope,
                credential,
                labels,
                pool,
                count,
                until,
            } => {
                let labels = fold(&labels.iter().cloned().collect::<Vec<_>>());
                let pool = pool.clone().or_else(|| self.pool_for_labels(&labels));
                if let Some(pool) = pool
                    && self.pools.contains_key(&pool)
                    && !labels.is_empty()
                {
                    self.emit(
                        Fact::FloorSet {
                            scope: scope.clone(),
                            credential: credential.clone(),
                            pool,
                            labels,
                            count: *count,
                            until: *until,
                        },
                        facts,
                    );
                }
            }
            Command::StopRunner { runner, reason } => {
                self.stop(now, runner, StopReason::Asked(reason.clone()), facts);
            }
            Command::CordonNode { node } => {
                if self.node(node).is_some_and(|node| !node.cordoned) {
                    self.emit(Fact::NodeCordoned { node: node.clone() }, facts);
                }
            }
            Command::UncordonNode { node } => {
                if self
                    .node(node)
                    .is_some_and(|node| node.cordoned || node.draining.is_some())
                {
                    self.emit(Fact::NodeUncordoned { node: node.clone() }, facts);
                }
            }
            Command::DrainNode { node, deadline } => {
                let same = |drain: &crate::state::Drain| drain.deadline == *deadline;
                if self
                    .node(node)
                    .is_some_and(|node| !node.draining.as_ref().is_some_and(same))
                {
                    self.emit(
                        Fact::NodeDraining {
                            node: node.clone(),
                            deadline: *deadline,
                        },
                        facts,
                    );
                }
            }
            Command::RemoveNode { node } => self.remove_node(now, node, facts),
            Command::SetPool(pool) => {
                if self
                    .pools
                    .get(&pool.name)
                    .is_none_or(|known| known.pool != **pool || known.origin != PoolOrigin::Api)
                {
                    self.emit(
                        Fact::PoolSet {
                            pool: pool.clone(),
                            origin: PoolOrigin::Api,
                        },
                        facts,
                    );
                }
            }
            Command::DeletePool { pool } => {
                if self
                    .pools
                    .get(pool)
                    .is_some_and(|entry| entry.origin != PoolOrigin::BuiltIn)
                {
                    self.emit(Fact::PoolDeleted { pool: pool.clone() }, facts);
                }
            }
            Command::SetShare {
                subject,
                weight,
                maximum,
            } => self.set_share(subject, *weight, *maximum, PoolOrigin::Api, facts),
            Command::Configure {
                pools,
                shares,
                defaults,
            } => {
                if self.defaults != **defaults {
                    self.emit(
                        Fact::DefaultsSet {
                            defaults: defaults.clone(),
                        },
                        facts,
                    );
                }
                self.configure_pools(pools, facts);
                self.configure_shares(shares, facts);
            }
        }
    }

    /// The file's pools replace the last file's; what the API set stands over them.
    fn configure_pools(&mut self, pools: &[Pool], facts: &mut Vec<Fact>) {
        let gone: Vec<PoolName> = self
            .pools
            .values()
            .filter(|entry| {
                entry.origin == PoolOrigin::File
                    && !pools.iter().any(|pool| pool.name == entry.pool.name)
            })
            .map(|entry| entry.pool.name.clone())
            .collect();
        for pool in gone {
            self.emit(Fact::PoolDeleted { pool }, facts);
        }
        for pool in pools {
            let known = self.pools.get(&pool.name);
            let stands = known.is_some_and(|known| {
                known.origin == PoolOrigin::Api
                    || (known.origin == PoolOrigin::File && known.pool == *pool)
            });
            if !stands {
                self.emit(
                    Fact::PoolSet {
                        pool: Box::new(pool.clone()),
                        origin: PoolOrigin::File,
                    },
                    facts,
                );
            }
        }
    }

    fn configure_shares(&mut self, shares: &[(String, u32, u32)], facts: &mut Vec<Fact>) {
        let gone: Vec<String> = self
            .shares
            .iter()
            .filter(|(subject, share)| {
                share.origin == PoolOrigin::File
                    && !shares
                        .iter()
                        .any(|(name, ..)| name.to_lowercase() == **subject)
            })
            .map(|(subject, _)| subject.clone())
            .collect();
        for subject in gone {
            self.set_share(&subject, 1, 0, PoolOrigin::File, facts);
        }
        for (subject, weight, maximum) in shares {
            let by_api = self
                .shares
                .get(&subject.to_lowercase())
                .is_some_and(|known| known.origin == PoolOrigin::Api);
            if !by_api {
                self.set_share(subject, *weight, *maximum, PoolOrigin::File, facts);
            }
        }
    }

    fn set_share(
        &mut self,
        subject: &str,
        weight: u32,
        maximum: u32,
        origin: PoolOrigin,
        facts: &mut Vec<Fact>,
    ) {
        let weight = weight.clamp(1, 1_000);
        let subject = subject.to_lowercase();
        let same = match self.shares.get(&subject) {
            Some(known) => (known.weight, known.maximum, known.origin) == (weight, maximum, origin),
            None => weight == 1 && maximum == 0,
        };
        if !same {
            self.emit(
                Fact::ShareSet {
                    subject,
                    weight,
                    maximum,
                    origin,
                },
                facts,
            );
        }
    }

    /// The pool whose labels include these, in the order pools are asked.
    fn pool_for_labels(&mut self, labels: &[String]) -> Option<PoolName> {
        self.ensure_index();
        self.capacity
            .pools
            .iter()
            .map(|plan| &plan.pool)
            .find(|pool| {
                pool.labels.is_empty()
                    || labels.iter().all(|label| {
                        label == "self-hosted"
                            || pool
                                .labels
                                .iter()
                                .any(|offered| offered.eq_ignore_ascii_case(label))
                    })
            })
            .map(|pool| pool.name.clone())
            .or_else(|| Some(PoolName::new(BUILT_IN_POOL)))
    }

    /// Its runners are over for us: replaced elsewhere, their registrations deleted.
    fn remove_node(&mut self, now: Now, name: &NodeName, facts: &mut Vec<Fact>) {
        let Some(ix) = self.node_ix(name) else {
            return;
        };
        for runner in self.runners_of(ix) {
            self.retire(now, &runner, None, RetireReason::NodeRemoved, facts);
        }
        self.emit(Fact::NodeRemoved { node: name.clone() }, facts);
    }

    /// Tells a runner to end. A reason that may wait never replaces one that may not.
    pub(crate) fn stop(
        &mut self,
        now: Now,
        name: &RunnerName,
        why: StopReason,
        facts: &mut Vec<Fact>,
    ) {
        let Some(runner) = self.runners.get(name) else {
            return;
        };
        let soft = matches!(why, StopReason::Idle | StopReason::Surplus);
        if runner.stopping.is_some() && (soft || !runner.stops_softly()) {
            return;
        }
        self.emit(
            Fact::RunnerStopping {
                runner: name.clone(),
                why,
                at: now.utc,
            },
            facts,
        );
    }
}
