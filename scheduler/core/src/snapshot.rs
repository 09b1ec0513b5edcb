//! The state as a compact list of facts that rebuilds it from empty.

use crate::{
    fact::{Fact, PoolOrigin},
    fleet::Fleet,
    input::Defaults,
};

impl Fleet {
    /// Facts that, applied to `Fleet::new`, give this state again.
    pub fn snapshot(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        if self.epoch > 0 {
            facts.push(Fact::EpochRaised { epoch: self.epoch });
        }
        self.snapshot_settings(&mut facts);
        self.snapshot_nodes(&mut facts);
        for job in self.jobs.values() {
            facts.push(Fact::JobLearnt {
                job: job.seen.clone(),
                at: job.learnt_at,
            });
            if job.phase_at != job.learnt_at {
                facts.push(Fact::JobPhaseChanged {
                    job: job.seen.id,
                    phase: job.seen.phase,
                    conclusion: job.seen.conclusion.clone(),
                    at: job.phase_at,
                });
            }
        }
        self.snapshot_runners(&mut facts);
        for job in self.jobs.values() {
            if let Some(bound) = &job.bound {
                facts.push(Fact::JobBound {
                    job: job.seen.id,
                    runner: bound.runner.clone(),
                    ours: bound.ours,
                    at: bound.at,
                });
            }
        }
        self.snapshot_floors(&mut facts);
        for (name, orphan) in self.orphans.iter() {
            facts.push(Fact::OrphanSeen {
                runner: name.clone(),
                scope: orphan.scope.clone(),
                credential: orphan.credential.clone(),
                github_id: orphan.github_id.unwrap_or(0),
                at: orphan.at,
            });
        }
        for job in &self.ended {
            facts.push(Fact::JobForgotten { job: *job });
        }
        self.snapshot_shares(&mut facts);
        for node in self.nodes() {
            facts.push(Fact::IntentNumbered {
                node: node.name.clone(),
                generation: node.generation,
            });
        }
        facts
    }

    fn snapshot_settings(&self, facts: &mut Vec<Fact>) {
        if self.defaults != Defaults::default() {
            facts.push(Fact::DefaultsSet {
                defaults: Box::new(self.defaults.clone()),
            });
        }
        for entry in self.pools.values() {
            if entry.origin != PoolOrigin::BuiltIn {
                facts.push(Fact::PoolSet {
                    pool: Box::new(entry.pool.clone()),
                    origin: entry.origin,
                });
            }
        }
        for (subject, share) in &self.shares {
            facts.push(Fact::ShareSet {
                subject: subject.clone(),
                weight: share.weight,
                maximum: share.maximum,
                origin: share.origin,
            });
        }
        if let Some(at) = self.autoscaler.at {
            // Stopping keeps the settings of the last start.
            facts.push(Fact::AutoscalerStarted {
                max_runners: self.autoscaler.max_runners,
                image: self.autoscaler.image.clone(),
                at,
            });
            if !self.autoscaler.running {
                facts.push(Fact::AutoscalerStopped { at });
            }
        }
        for (credential, budget) in &self.budgets {
            facts.push(Fact::BudgetChanged {
                credential: credential.clone(),
                scopes: budget.scopes.clone(),
                registrations: budget.registrations.unwrap_or(0),
                limited_until: budget.limited_until,
                problem: budget.problem.clone(),
            });
        }
        for ((scope, repository, labels), rest) in &self.in_vain {
            facts.push(Fact::DemandRests {
                scope: scope.clone(),
                repository: repository.clone(),
                labels: labels.clone(),
                until: rest.until,
                runners: rest.runners,
            });
        }
        for (scope, rest) in &self.rests {
            facts.push(Fact::ScopeRests {
                scope: scope.clone(),
                until: rest.until,
                detail: rest.detail.clone(),
                failures: rest.failures,
            });
        }
    }

    fn snapshot_nodes(&self, facts: &mut Vec<Fact>) {
        for node in self.nodes() {
            let name = || node.name.clone();
            facts.push(Fact::NodeJoined {
                node: name(),
                capability: Box::new(node.capability.clone()),
            });
            if !node.conditions.is_empty() {
                facts.push(Fact::ConditionsChanged {
                    node: name(),
                    conditions: node.conditions.clone(),
                });
            }
            if let Some(since) = node.unreachable_since {
                facts.push(Fact::NodeUnreachable {
                    node: name(),
                    since,
                });
            }
            if node.cordoned {
                facts.push(Fact::NodeCordoned { node: name() });
            }
            if let Some(drain) = node.draining {
                facts.push(Fact::NodeDraining {
                    node: name(),
                    deadline: drain.deadline,
                });
            }
            if !node.foreign.is_empty() {
                facts.push(Fact::ForeignSeen {
                    node: name(),
                    runners: node.foreign.clone(),
                });
            }
        }
        for ((image, node), rest) in &self.images {
            facts.push(Fact::ImageBlocked {
                image: image.clone(),
                node: node.clone(),
                until: rest.until,
                detail: rest.detail.clone(),
                failures: rest.failures,
            });
        }
    }

    fn snapshot_runners(&self, facts: &mut Vec<Fact>) {
        for (name, runner) in self.runners.iter() {
            facts.push(Fact::RunnerPlaced(runner.placed.clone()));
            if let Some(registered) = runner.registered {
                facts.push(Fact::RunnerRegistered {
                    runner: name.clone(),
                    github_id: registered.github_id,
                    at: registered.at,
                });
            }
            if let Some(seen) = &runner.observed {
                facts.push(Fact::RunnerObserved {
                    runner: name.clone(),
                    phase: seen.phase,
                    observation: seen.observation,
                    worker: seen.worker,
                    container_id: seen.container_id.clone(),
                    at: seen.at,
                });
            }
            if let Some((why, at)) = &runner.stopping {
                facts.push(Fact::RunnerStopping {
                    runner: name.clone(),
                    why: why.clone(),
                    at: *at,
                });
            }
            if let Some((outcome, at)) = &runner.deregistered {
                facts.push(Fact::RunnerDeregistered {
                    runner: name.clone(),
                    outcome: *outcome,
                    at: *at,
                });
            }
        }
        // Registrations counted off while the runners above were applied.
        for (credential, budget) in &self.budgets {
            facts.push(Fact::BudgetChanged {
                credential: credential.clone(),
                scopes: budget.scopes.clone(),
                registrations: budget.registrations.unwrap_or(0),
                limited_until: budget.limited_until,
                problem: budget.problem.clone(),
            });
        }
    }

    fn snapshot_floors(&self, facts: &mut Vec<Fact>) {
        for ((scope, pool, labels), floor) in &self.floors {
            facts.push(Fact::FloorSet {
                scope: scope.clone(),
                credential: floor.credential.clone(),
                pool: pool.clone(),
                labels: labels.clone(),
                count: floor.count,
                until: floor.until,
            });
        }
    }

    fn snapshot_shares(&self, facts: &mut Vec<Fact>) {
        let fact = |account: &crate::demand::Account| {
            let blank = account.virtual_time == 0 && account.served == 0 && account.credit == 0;
            (!blank).then(|| Fact::ShareServed {
                subject: account.name.to_string(),
                virtual_time: account.virtual_time,
                served: account.served,
                credit: account.credit,
            })
        };
        let demand = &self.demand;
        let owners = demand.owners.iter().map(|owner| &owner.account);
        let tenants = demand.tenants.iter().map(|tenant| &tenant.account);
        let mut shares: Vec<Fact> = owners.chain(tenants).filter_map(fact).collect();
        shares.sort_by(|a, b| match (a, b) {
            (Fact::ShareServed { subject: a, .. }, Fact::ShareServed { subject: b, .. }) => {
                a.cmp(b)
            }
            _ => std::cmp::Ordering::Equal,
        });
        // First: it wipes what placing the runners above has charged.
        facts.push(Fact::ShareServed {
            subject: String::new(),
            virtual_time: 0,
            served: demand.served,
            credit: 0,
        });
        facts.extend(shares);
    }
}
