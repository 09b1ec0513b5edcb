//! Every index built anew from the records, after what is rare: pools, defaults, floors.

use crate::{
    capacity::Capacity,
    demand::{GroupIx, GroupKey},
    feasible::PoolIx,
    fleet::{Fleet, NodeIx},
    model::{JobId, Pool, RunnerName, Scope},
};

impl Fleet {
    pub(crate) fn ensure_index(&mut self) {
        if self.stale {
            self.reindex();
        }
    }

    /// Builds every index anew from the records. Rare: pools, defaults, floors.
    pub(crate) fn reindex(&mut self) {
        self.stale = false;
        if self.pools.is_empty() {
            self.pools_changed();
            self.stale = false;
        }
        self.capacity = Capacity::with_pools(self.plans());
        self.demand = self.demand.emptied(self.defaults.ageing.as_millis() as u64);
        self.soft.spent.clear();
        for (scope, rest) in &self.rests {
            let ix = self.demand.scope(scope);
            self.demand.set_resting(ix, rest.resting);
        }
        for ix in 0..self.nodes.len() as NodeIx {
            if let Some(node) = &mut self.nodes[ix as usize] {
                node.fits.clear();
                self.recount_node(ix);
                self.reclass(ix);
            }
        }
        let names: Vec<RunnerName> = self.runners.keys().cloned().collect();
        for name in names {
            let charged = self.runners[&name].charged;
            if let Some(slot) = self.runners.slot(&name) {
                self.attach_runner(slot, None);
            }
            if let Some(runner) = self.runners.get_mut(&name) {
                // Who pays was settled when GitHub named the job.
                runner.charged = match runner.job.and_then(|id| self.jobs.get(&id)) {
                    Some(job) => Some(self.demand.tenant_of(&job.seen.repository)),
                    None => charged.or(runner.charged),
                };
                if let Some(tenant) = runner.charged {
                    self.demand.add_live(tenant);
                }
            }
            self.recount(&name);
        }
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.unit = None;
            }
            self.list_job(id, false);
        }
        self.index_floors();
        self.owe_everything();
    }

    fn index_floors(&mut self) {
        let mut wanted: Vec<(
            Scope,
            crate::model::CredentialName,
            PoolIx,
            Vec<String>,
            u32,
        )> = Vec::new();
        for ((scope, pool, labels), floor) in &self.floors {
            if let Some(pool) = self.capacity.pool_ix.get(pool) {
                wanted.push((
                    scope.clone(),
                    floor.credential.clone(),
                    *pool,
                    labels.clone(),
                    floor.count,
                ));
            }
        }
        for (ix, plan) in self.capacity.pools.iter().enumerate() {
            if plan.pool.idle_floor == 0 || plan.pool.labels.is_empty() {
                continue;
            }
            for (credential, budget) in &self.budgets {
                for scope in &budget.scopes {
                    if standing_floor_applies(&plan.pool, scope) {
                        wanted.push((
                            scope.clone(),
                            credential.clone(),
                            ix as PoolIx,
                            plan.pool.labels.iter().cloned().collect(),
                            plan.pool.idle_floor,
                        ));
                    }
                }
            }
        }
        let mut totals: std::collections::BTreeMap<GroupIx, u32> = Default::default();
        for (scope, credential, pool, labels, count) in wanted {
            let Some(signature) = self.labels.signature(&labels) else {
                continue;
            };
            let shape = self.capacity.shape(signature, pool, &self.labels);
            let plan = &self.capacity.pools[pool as usize].pool;
            let group = self.demand.group(&GroupKey {
                scope: &scope,
                signature,
                pool,
                credential: &credential,
                shape,
                priority: plan.priority,
            });
            *totals.entry(group).or_default() += count;
        }
        for (group, count) in totals {
            self.demand.set_floor(group, count);
        }
    }
}

/// A pool's own idle floor stands where its runners could serve: in organisations
/// and enterprises it admits, and in repositories it names in full.
fn standing_floor_applies(pool: &Pool, scope: &Scope) -> bool {
    match scope {
        Scope::Repository { owner, repo } => {
            let name = format!("{owner}/{repo}");
            pool.repositories
                .iter()
                .any(|pattern| pattern.eq_ignore_ascii_case(&name))
        }
        Scope::Organization { login } => {
            pool.repositories.is_empty()
                || pool.repositories.iter().any(|pattern| {
                    pattern
                        .split('/')
                        .next()
                        .is_some_and(|owner| owner == "*" || owner.eq_ignore_ascii_case(login))
                })
        }
        Scope::Enterprise { .. } => true,
    }
}
