//! Facts in, state out: the only way anything here changes.

mod index;
mod jobs;
mod nodes;
mod runners;
mod settings;

use std::sync::Arc;

pub(crate) use runners::{NO_GROUP, Stand};
pub(crate) use settings::BUILT_IN_POOL;

use crate::{
    fact::Fact,
    fleet::{Fleet, NodeIx},
    input::Deregistration,
    model::{Generation, RunnerName},
    state::{Budget, Drain, Floor, Observed, Orphan, PoolEntry, Rest, Share},
    timers::{Due, Often},
    unassigned::{InVain, MOST_IN_VAIN},
};

/// Jobs forgotten lately, remembered by id against late echoes.
pub(crate) const ENDED_KEPT: usize = 65_536;
/// Retired runners remembered for answers that arrive late.
const GRAVES_KEPT: usize = 4_096;

impl Fleet {
    /// Changes the state by one fact. Facts of unknown subjects change nothing.
    pub fn apply(&mut self, fact: &Fact) {
        match fact {
            Fact::EpochRaised { epoch } => self.apply_epoch(*epoch),
            Fact::JobLearnt { job, at } => self.apply_job(job, *at),
            Fact::JobPhaseChanged {
                job,
                phase,
                conclusion,
                at,
            } => {
                self.change_job(*job, false, |entry| {
                    let seen = Arc::make_mut(&mut entry.seen);
                    seen.phase = *phase;
                    seen.conclusion = conclusion.clone();
                    entry.phase_at = *at;
                });
            }
            Fact::OriginLearnt { job, origin } => {
                self.change_job(*job, true, |entry| {
                    Arc::make_mut(&mut entry.seen).origin = origin.clone();
                });
            }
            Fact::JobForgotten { job } => {
                self.drop_job(*job);
                if self.ended_ids.insert(*job) {
                    self.ended.push_back(*job);
                    if self.ended.len() > ENDED_KEPT
                        && let Some(oldest) = self.ended.pop_front()
                    {
                        self.ended_ids.remove(&oldest);
                    }
                }
            }
            Fact::JobBound {
                job,
                runner,
                ours,
                at,
            } => self.apply_bound(*job, runner, *ours, *at),
            Fact::NodeJoined { node, capability } => {
                let ix = self.node_slot(node);
                self.change_capability(ix, capability);
            }
            Fact::CapabilityChanged { node, capability } => {
                if let Some(ix) = self.node_ix(node) {
                    self.change_capability(ix, capability);
                }
            }
            Fact::ConditionsChanged { node, conditions } => {
                if let Some(ix) = self.change_node(node, |node| {
                    node.conditions = conditions.clone();
                }) {
                    self.reclass(ix);
                }
            }
            Fact::NodeReachable { node } => {
                self.change_reach(node, None);
            }
            Fact::NodeUnreachable { node, since } => {
                self.change_reach(node, Some(*since));
            }
            Fact::NodeCordoned { node } => self.change_willingness(node, |node| {
                node.cordoned = true;
            }),
            Fact::NodeUncordoned { node } => self.change_willingness(node, |node| {
                node.cordoned = false;
                node.draining = None;
            }),
            Fact::NodeDraining { node, deadline } => self.change_willingness(node, |node| {
                node.draining = Some(Drain {
                    deadline: *deadline,
                });
            }),
            Fact::NodeRemoved { node } => self.apply_node_removed(node),
            Fact::RunnerPlaced(placed) => self.apply_placed(placed, None),
            Fact::RunnerRegistered {
                runner,
                github_id,
                at,
            } => self.apply_registered(runner, *github_id, *at),
            Fact::RunnerObserved {
                runner,
                phase,
                observation,
                worker,
                container_id,
                at,
            } => {
                let seen = Observed {
                    phase: *phase,
                    observation: *observation,
                    worker: *worker,
                    container_id: container_id.clone(),
                    at: *at,
                };
                self.apply_observed(runner, seen);
            }
            Fact::RunnerStopping { runner, why, at } => {
                self.change_runner(runner, true, |runner| {
                    runner.stopping = Some((why.clone(), *at));
                    runner.deregistered = None;
                    runner.soft.checked = false;
                    runner.soft.stop_generation = Generation::default();
                });
            }
            Fact::RunnerDeregistered {
                runner,
                outcome,
                at,
            } => {
                self.change_runner(runner, true, |runner| {
                    runner.deregistered = Some((*outcome, *at));
                    if *outcome == Deregistration::Busy && runner.stops_softly() {
                        runner.stopping = None;
                        runner.soft.idle_since = None;
                    }
                });
            }
            Fact::RunnerRetired {
                runner,
                deregister,
                at,
                ..
            } => self.apply_retired(runner, *deregister, *at),
            Fact::OrphanSeen {
                runner,
                scope,
                credential,
                github_id,
                at,
            } => {
                self.orphans.insert(
                    runner.clone(),
                    Orphan {
                        scope: scope.clone(),
                        credential: credential.clone(),
                        github_id: (*github_id != 0).then_some(*github_id),
                        at: *at,
                    },
                );
                self.owe_deregistration(runner);
            }
            Fact::OrphanGone { runner } => {
                self.orphans.remove(runner);
                self.soft.orphan_rests.remove(runner);
                self.owe_deregistration(runner);
            }
            Fact::BudgetChanged {
                credential,
                scopes,
                registrations,
                limited_until,
                problem,
            } => {
                let budget = Budget {
                    scopes: scopes.clone(),
                    registrations: Some(*registrations),
                    limited_until: *limited_until,
                    problem: problem.clone(),
                };
                let before = self.budgets.insert(credential.clone(), budget);
                if before.is_none_or(|before| before.scopes != *scopes)
                    && self.pools.values().any(|entry| entry.pool.idle_floor > 0)
                {
                    self.stale = true;
                }
                self.owe_registrations(credential);
                self.touch(Due::Credential(credential.clone()));
            }
            Fact::ImageBlocked {
                image,
                node,
                until,
                detail,
                failures,
            } => {
                self.images.insert(
                    (image.clone(), node.clone()),
                    Rest {
                        until: *until,
                        detail: detail.clone(),
                        failures: *failures,
                        resting: true,
                    },
                );
                self.image_changed(image, node.as_ref());
                self.touch(Due::Image(image.clone(), node.clone()));
            }
            Fact::ImageCleared { image, node } => {
                self.images.remove(&(image.clone(), node.clone()));
                self.image_changed(image, node.as_ref());
            }
            Fact::ScopeRests {
                scope,
                until,
                detail,
                failures,
            } => {
                self.rests.insert(
                    scope.clone(),
                    Rest {
                        until: *until,
                        detail: detail.clone(),
                        failures: *failures,
                        resting: true,
                    },
                );
                let ix = self.demand.scope(scope);
                self.demand.set_resting(ix, true);
                self.touch(Due::Scope(scope.clone()));
            }
            Fact::ScopeCleared { scope } => {
                self.rests.remove(scope);
                let ix = self.demand.scope(scope);
                self.demand.set_resting(ix, false);
            }
            Fact::DemandRests {
                scope,
                repository,
                labels,
                until,
                runners,
            } => {
                let key = (scope.clone(), repository.clone(), labels.clone());
                let rest = InVain {
                    runners: *runners,
                    until: *until,
                    resting: *runners >= MOST_IN_VAIN,
                };
                self.in_vain.insert(key.clone(), rest);
                self.relist_demand(&key);
                self.touch(Due::Demand(key));
            }
            Fact::DemandCleared {
                scope,
                repository,
                labels,
            } => {
                let key = (scope.clone(), repository.clone(), labels.clone());
                self.in_vain.remove(&key);
                self.relist_demand(&key);
            }
            Fact::FloorSet {
                scope,
                credential,
                pool,
                labels,
                count,
                until,
            } => {
                let key = (scope.clone(), pool.clone(), labels.clone());
                self.touch(Due::Floor(key.clone()));
                self.floors.insert(
                    key,
                    Floor {
                        credential: credential.clone(),
                        count: *count,
                        until: *until,
                    },
                );
                self.stale = true;
            }
            Fact::FloorEnded {
                scope,
                pool,
                labels,
            } => {
                self.floors
                    .remove(&(scope.clone(), pool.clone(), labels.clone()));
                self.stale = true;
            }
            Fact::AutoscalerStarted {
                max_runners,
                image,
                at,
            } => {
                self.stale |= self.autoscaler.image != *image;
                self.autoscaler = crate::state::Autoscaler {
                    running: true,
                    max_runners: *max_runners,
                    image: image.clone(),
                    at: Some(*at),
                };
                self.touch_runners();
            }
            Fact::AutoscalerStopped { at } => {
                self.autoscaler.running = false;
                self.autoscaler.at = Some(*at);
                self.touch_runners();
            }
            Fact::PoolSet { pool, origin } => {
                self.pools.insert(
                    pool.name.clone(),
                    PoolEntry {
                        pool: (**pool).clone(),
                        origin: *origin,
                    },
                );
                self.pools_changed();
            }
            Fact::PoolDeleted { pool } => {
                self.pools.remove(pool);
                self.pools_changed();
            }
            Fact::ShareSet {
                subject,
                weight,
                maximum,
                origin,
            } => {
                let subject = subject.to_lowercase();
                if *weight == 1 && *maximum == 0 {
                    self.shares.remove(&subject);
                } else {
                    self.shares.insert(
                        subject.clone(),
                        Share {
                            weight: *weight,
                            maximum: *maximum,
                            origin: *origin,
                        },
                    );
                }
                self.share_changed(&subject);
            }
            Fact::DefaultsSet { defaults } => {
                self.defaults = (**defaults).clone();
                self.pools_changed();
            }
            Fact::RepositoryGone { id, full_name } => self.apply_repository_gone(*id, full_name),
            Fact::ForeignSeen { node, runners } => {
                if let Some(ix) = self.change_node(node, |node| {
                    node.foreign = runners.clone();
                }) {
                    self.recount_node(ix);
                    self.relist(ix);
                }
            }
            Fact::IntentNumbered { node, generation } => {
                if let Some(ix) = self.change_node(node, |node| node.generation = *generation) {
                    self.owe_intent(ix);
                }
            }
            Fact::ShareServed {
                subject,
                virtual_time,
                served,
                credit,
            } => {
                if subject.is_empty() {
                    self.demand.wipe_shares();
                    self.demand.served = *served;
                } else {
                    let account = if subject.contains('/') {
                        let ix = self.demand.tenant(subject);
                        &mut self.demand.tenants[ix as usize].account
                    } else {
                        let ix = self.demand.owner(subject);
                        &mut self.demand.owners[ix as usize].account
                    };
                    account.virtual_time = *virtual_time;
                    account.served = *served;
                    account.credit = *credit;
                }
                // Listed keys may now be too high.
                self.stale = true;
            }
        }
    }

    fn apply_epoch(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
        let generation = Generation {
            epoch: self.epoch,
            counter: 1,
        };
        for ix in 0..self.nodes.len() {
            if let Some(node) = &mut self.nodes[ix] {
                node.generation = generation;
                self.owe_intent(ix as NodeIx);
            }
        }
        for runner in self.runners.values_mut() {
            runner.soft.checked = false;
            runner.soft.stop_generation = Generation::default();
        }
    }

    // Jobs.

    // Nodes.

    // Runners.

    // Settings.

    pub(crate) fn touch(&mut self, due: Due) {
        self.timers.touch_seldom(due);
    }

    pub(crate) fn touch_runner(&mut self, name: &RunnerName) {
        if let Some(slot) = self.runners.slot(name) {
            self.timers.touch(Often::Runner(slot));
        }
    }

    fn touch_runners(&mut self) {
        let names: Vec<RunnerName> = self.runners.keys().cloned().collect();
        for name in names {
            self.touch_runner(&name);
        }
    }

    fn touch_runners_of(&mut self, ix: NodeIx) {
        for runner in self.runners_of(ix) {
            self.touch_runner(&runner);
        }
    }
}
