//! What facts about runners change: what they stand for, count as and hold.

use std::sync::Arc;

use super::GRAVES_KEPT;
use crate::{
    demand::{CredentialIx, GroupIx, GroupKey, TenantIx, UnitIx},
    fact::RunnerPlaced,
    feasible::PoolIx,
    fleet::Fleet,
    input::ObservedPhase,
    model::{Generation, Resources, RunnerName, RunnerPhase, Scope},
    state::{Node, Observed, Orphan, Registered, Runner, RunnerSoft},
    table::Slot,
    timers::Often,
};

/// What a runner stands for: which demand, in whose name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) pool: Option<PoolIx>,
    /// `NO_GROUP` without a pool.
    pub(crate) group: GroupIx,
    pub(crate) cover: Option<UnitIx>,
    pub(crate) tenant: Option<TenantIx>,
    pub(crate) credential: CredentialIx,
}

/// A runner whose pool is gone stands for no demand.
pub(crate) const NO_GROUP: GroupIx = GroupIx::MAX;

impl Runner {
    /// On its way to a job, waiting for one, or at one that GitHub has not named yet:
    /// that job still counts as queued, and must not ask for a second runner.
    pub(crate) fn is_supply(&self) -> bool {
        match self.phase() {
            RunnerPhase::Reserved
            | RunnerPhase::Registered
            | RunnerPhase::Starting
            | RunnerPhase::Idle => true,
            RunnerPhase::Busy => self.is_taken() && !self.soft.unclaimed,
            RunnerPhase::Stopping | RunnerPhase::Retired => false,
        }
    }

    /// A worker runs in it, and GitHub has not said for which job.
    pub(crate) fn is_taken(&self) -> bool {
        self.job.is_none() && self.has_worker()
    }

    /// GitHub has not answered for it, and still may.
    pub(crate) fn awaits_registration(&self) -> bool {
        self.registered.is_none()
            && self.stopping.is_none()
            && self.deregistered.is_none()
            && self.job.is_none()
            && !self.is_consumed()
    }
}

impl Fleet {
    /// `stand`: the demand it is placed for, when that is known already.
    pub(crate) fn apply_placed(&mut self, placed: &Arc<RunnerPlaced>, stand: Option<Stand>) {
        self.ensure_index();
        let Some(ix) = self.node_ix(&placed.node) else {
            return;
        };
        if self.runners.contains_key(&placed.runner) {
            return;
        }
        self.soft.placed += 1;
        self.soft.orders += 1;
        let runner = Runner {
            placed: Arc::clone(placed),
            registered: None,
            observed: None,
            job: None,
            stopping: None,
            deregistered: None,
            group: 0,
            cover: None,
            counted: false,
            charged: None,
            node: ix,
            soft: RunnerSoft {
                order: self.soft.orders,
                ..RunnerSoft::default()
            },
        };
        let slot = self.runners.add(placed.runner.clone(), runner);
        if let Some(node) = &mut self.nodes[ix as usize] {
            node.runners.push(placed.runner.clone());
            node.slots.push(slot);
            add(&mut node.used, placed.resources);
            for uuid in &placed.gpu_uuids {
                node.leases.insert(uuid.clone(), placed.runner.clone());
            }
            node.generation = node.generation.max(placed.generation);
        }
        self.relist(ix);
        self.owe_intent(ix);
        self.attach_runner(slot, stand);
        if let Some((_, runner)) = self.runners.at(slot)
            && let Some(tenant) = runner.charged
        {
            self.demand.serve(runner.cover, tenant, placed.at);
        }
        self.recount_at(slot);
        self.owe_registration_at(slot);
        self.timers.touch(Often::Runner(slot));
    }

    /// Finds the demand a runner stands for, and counts it in its pool and among
    /// the reservations. Not supply yet.
    pub(super) fn attach_runner(&mut self, slot: Slot, stand: Option<Stand>) {
        let stand = match stand {
            Some(known) => {
                debug_assert_eq!(Some(known), self.stand_of(slot));
                known
            }
            None => match self.stand_of(slot) {
                Some(found) => found,
                None => return,
            },
        };
        if let Some(pool) = stand.pool {
            self.capacity.pools[pool as usize].live += 1;
        }
        let Some(runner) = self.runners.at_mut(slot) else {
            return;
        };
        runner.group = stand.group;
        runner.cover = stand.cover;
        runner.counted = false;
        runner.charged = stand.tenant;
        if runner.awaits_registration() {
            self.demand.credentials[stand.credential as usize].reserved += 1;
        }
    }

    fn stand_of(&mut self, slot: Slot) -> Option<Stand> {
        let (_, runner) = self.runners.at(slot)?;
        let placed = &runner.placed;
        let tenant = placed
            .repository
            .as_ref()
            .map(|name| self.demand.tenant(&name.to_lowercase()));
        let credential = self.demand.credential(&placed.credential);
        let pool = self.capacity.pool_ix.get(&placed.pool).copied();
        let signature = self.labels.signature(&placed.labels);
        let (pool, group) = match (pool, signature) {
            (Some(pool), Some(signature)) => {
                let shape = self.capacity.shape(signature, pool, &self.labels);
                let group = self.demand.group(&GroupKey {
                    scope: &placed.scope,
                    signature,
                    pool,
                    credential: &placed.credential,
                    shape,
                    priority: self.capacity.pools[pool as usize].pool.priority,
                });
                (Some(pool), group)
            }
            _ => (None, NO_GROUP),
        };
        let cover = tenant
            .filter(|_| pool.is_some())
            .map(|tenant| self.demand.unit(group, tenant));
        if let Some(tenant) = tenant {
            self.adopt_share(tenant);
        }
        Some(Stand {
            pool,
            group,
            cover,
            tenant,
            credential,
        })
    }

    /// Counts the runner as supply exactly while it is.
    pub(crate) fn recount(&mut self, name: &RunnerName) {
        if let Some(slot) = self.runners.slot(name) {
            self.recount_at(slot);
        }
    }

    pub(crate) fn recount_at(&mut self, slot: Slot) {
        let Some((_, runner)) = self.runners.at(slot) else {
            return;
        };
        let reachable = self.node_of(runner).is_some_and(Node::is_reachable);
        let counts = runner.group != NO_GROUP && reachable && runner.is_supply();
        if counts == runner.counted {
            return;
        }
        let (group, cover) = (runner.group, runner.cover);
        if counts {
            self.demand.add_supply(group, cover);
        } else {
            self.demand.remove_supply(group, cover);
        }
        if let Some(runner) = self.runners.at_mut(slot) {
            runner.counted = counts;
        }
    }

    /// Changes a runner and everything that follows. `intent`: its node must hear.
    pub(crate) fn change_runner(
        &mut self,
        name: &RunnerName,
        intent: bool,
        change: impl FnOnce(&mut Runner),
    ) {
        self.ensure_index();
        let Some(runner) = self.runners.get_mut(name) else {
            return;
        };
        let awaited = runner.awaits_registration();
        let was = runner.stopping.is_some();
        change(runner);
        let awaits = runner.awaits_registration();
        let stops = runner.stopping.is_some();
        let ix = runner.node;
        if awaited != awaits {
            let credential = self.demand.credential(&runner.placed.credential);
            let entry = &mut self.demand.credentials[credential as usize];
            if awaits {
                entry.reserved += 1;
            } else {
                entry.reserved -= 1;
            }
        }
        self.recount(name);
        if intent && (was || stops) {
            self.bump(ix);
            let generation = self.nodes[ix as usize]
                .as_ref()
                .map(|node| node.generation)
                .unwrap_or_default();
            if let Some(runner) = self.runners.get_mut(name)
                && runner.stopping.is_some()
                && runner.soft.stop_generation == Generation::default()
            {
                runner.soft.stop_generation = generation;
            }
        }
        self.owe_registration(name);
        self.owe_deregistration(name);
        self.touch_runner(name);
    }

    pub(super) fn apply_registered(&mut self, name: &RunnerName, github_id: u64, at: u64) {
        let credential = self
            .runners
            .get(name)
            .map(|runner| runner.placed.credential.clone());
        self.change_runner(name, false, |runner| {
            runner.registered = Some(Registered { github_id, at });
        });
        if let Some(credential) = credential
            && let Some(budget) = self.budgets.get_mut(&credential)
            && let Some(left) = &mut budget.registrations
        {
            *left = left.saturating_sub(1);
        }
    }

    pub(super) fn apply_observed(&mut self, name: &RunnerName, seen: Observed) {
        let reopen = seen.worker || seen.phase == ObservedPhase::Busy;
        let intent = self.runners.get(name).is_some_and(|runner| {
            matches!(self.desired(runner), crate::effect::Desired::Remove { .. })
        }) || reopen;
        self.change_runner(name, intent, |runner| {
            runner.observed = Some(seen);
            if reopen && runner.stops_softly() {
                runner.stopping = None;
            }
            if reopen {
                runner.soft.idle_since = None;
            }
        });
    }

    pub(super) fn apply_retired(&mut self, name: &RunnerName, deregister: bool, at: u64) {
        self.ensure_index();
        let Some(slot) = self.runners.slot(name) else {
            return;
        };
        let Some(runner) = self.runners.remove(name) else {
            return;
        };
        let softly = runner.stops_softly();
        if runner.counted {
            self.demand.remove_supply(runner.group, runner.cover);
        }
        if runner.awaits_registration() {
            let credential = self.demand.credential(&runner.placed.credential);
            self.demand.credentials[credential as usize].reserved -= 1;
        }
        if let Some(tenant) = runner.charged {
            self.demand.remove_live(tenant);
        }
        if let Some(pool) = self.capacity.pool_ix.get(&runner.placed.pool) {
            self.capacity.pools[*pool as usize].live -= 1;
        }
        let ix = runner.node;
        let mut exact = true;
        if let Some(node) = &mut self.nodes[ix as usize] {
            if let Some(at) = node.slots.iter().position(|known| *known == slot) {
                node.slots.swap_remove(at);
                node.runners.swap_remove(at);
            }
            for uuid in &runner.placed.gpu_uuids {
                node.leases.remove(uuid);
            }
            exact = take(&mut node.used, runner.placed.resources);
        }
        if !exact {
            self.recount_node(ix);
        }
        self.relist(ix);
        self.bump(ix);
        if deregister {
            self.orphans.insert(
                name.clone(),
                Orphan {
                    scope: Scope::clone(&runner.placed.scope),
                    credential: runner.placed.credential.clone(),
                    github_id: runner.registered.map(|registered| registered.github_id),
                    at,
                },
            );
        }
        self.soft.grave_order.push_back(name.clone());
        if self.soft.grave_order.len() > GRAVES_KEPT
            && let Some(oldest) = self.soft.grave_order.pop_front()
        {
            self.soft.graves.remove(&oldest);
        }
        self.unowe_registration(name, &runner);
        self.soft.graves.insert(name.clone(), runner.placed);
        if deregister || softly {
            self.owe_deregistration(name);
        }
    }
}

pub(super) fn add(sum: &mut Resources, more: Resources) {
    sum.cpu_millis = sum.cpu_millis.saturating_add(more.cpu_millis);
    sum.memory_bytes = sum.memory_bytes.saturating_add(more.memory_bytes);
    sum.gpus = sum.gpus.saturating_add(more.gpus);
}

/// What is left after one of those added leaves; false when the sum was cut off.
pub(super) fn take(sum: &mut Resources, less: Resources) -> bool {
    let exact = sum.cpu_millis < u32::MAX && sum.memory_bytes < u64::MAX && sum.gpus < u32::MAX;
    sum.cpu_millis = sum.cpu_millis.saturating_sub(less.cpu_millis);
    sum.memory_bytes = sum.memory_bytes.saturating_sub(less.memory_bytes);
    sum.gpus = sum.gpus.saturating_sub(less.gpus);
    exact
}
