//! What must hold after every step, checked from the records alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    fleet::{Fleet, NodeIx},
    model::{JobPhase, RunnerPhase},
};

impl Fleet {
    /// Recomputes from the records what the indexes claim, and returns every breach.
    pub fn check_invariants(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        self.check_nodes(&mut breaches);
        self.check_runners(&mut breaches);
        if !self.stale {
            self.check_capacity(&mut breaches);
            self.check_demand(&mut breaches);
        }
        self.check_owed(&mut breaches);
        breaches
    }

    fn check_nodes(&self, breaches: &mut Vec<String>) {
        for node in self.nodes() {
            let mut leased: BTreeMap<&str, &str> = BTreeMap::new();
            let mut cpu = 0_u64;
            let mut memory = 0_u64;
            for name in &node.runners {
                let Some(runner) = self.runners.get(name) else {
                    breaches.push(format!("{} lists {name}, which is not live", node.name));
                    continue;
                };
                if runner.placed.node != node.name {
                    breaches.push(format!("{name} moved to {}", node.name));
                }
                cpu += u64::from(runner.placed.resources.cpu_millis);
                memory += runner.placed.resources.memory_bytes;
                for uuid in &runner.placed.gpu_uuids {
                    if let Some(other) = leased.insert(uuid, name.as_str()) {
                        breaches.push(format!("GPU {uuid} is held by {name} and {other}"));
                    }
                }
            }
            if u64::from(node.used.cpu_millis) < cpu || node.used.memory_bytes < memory {
                breaches.push(format!("{} counts less than its runners hold", node.name));
            }
            for gpu in &node.capability.gpus {
                let whole = gpu.parent.as_deref().and_then(|whole| leased.get(whole));
                if let (Some(one), Some(other)) = (leased.get(gpu.uuid.as_str()), whole) {
                    breaches.push(format!(
                        "{one} holds {}, an instance of the GPU that {other} holds",
                        gpu.uuid
                    ));
                }
            }
            if node.leases.len() != leased.len() {
                breaches.push(format!("{} has leases without runners", node.name));
            }
            if node.generation.epoch > self.epoch {
                breaches.push(format!("{} is numbered above the epoch", node.name));
            }
        }
    }

    fn check_runners(&self, breaches: &mut Vec<String>) {
        for (name, runner) in self.runners.iter() {
            if runner.name() != name {
                breaches.push(format!("{name} is filed under another name"));
            }
            if self.node_ix(&runner.placed.node) != Some(runner.node) {
                breaches.push(format!("{name} carries another node's number"));
            }
            match self.node(&runner.placed.node) {
                None => breaches.push(format!("{name} is on a node nobody knows")),
                Some(node) if !node.runners.contains(name) => {
                    breaches.push(format!("{} does not list {name}", node.name));
                }
                Some(_) => {}
            }
            if runner.placed.gpu_uuids.len() != runner.placed.resources.gpus as usize {
                breaches.push(format!("{name} holds another number of GPUs than it takes"));
            }
        }
        let maximum = self.max_runners();
        let placed_now = self.soft.last.map(|now| now.utc);
        let over = maximum > 0 && self.runners.len() > maximum as usize;
        let newest = self.runners.values().map(|runner| runner.placed.at).max();
        if over && newest == placed_now && self.autoscaler.at != placed_now {
            breaches.push(format!("placed beyond the maximum of {maximum} runners"));
        }
    }

    fn check_capacity(&self, breaches: &mut Vec<String>) {
        let mut listed = 0;
        for (ix, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            if node.used != self.held_on(node) {
                breaches.push(format!("{} miscounts what its runners hold", node.name));
            }
            for (request, wanted) in self.capacity.requests.iter().enumerate() {
                let fits = if node.takes_new_runners() {
                    crate::feasible::fits(wanted, node)
                } else {
                    0
                };
                if node.fits.get(request).copied().unwrap_or(0) != fits {
                    breaches.push(format!("{} is listed with stale room", node.name));
                }
                if fits > 0 {
                    listed += 1;
                    if !self
                        .capacity
                        .is_listed(node.class, request, fits, ix as NodeIx)
                    {
                        breaches.push(format!("{} has room and is not listed", node.name));
                    }
                }
            }
        }
        breaches.extend(self.capacity.breaches());
        if listed != self.capacity.listed() {
            breaches.push("nodes are listed that have no room".to_owned());
        }
    }

    fn check_demand(&self, breaches: &mut Vec<String>) {
        let mut supply: BTreeMap<u32, u32> = BTreeMap::new();
        for spent in self.soft.spent.values() {
            *supply.entry(spent.group).or_default() += 1;
        }
        let mut live: BTreeMap<u32, u32> = BTreeMap::new();
        let mut reserved: BTreeMap<&str, u32> = BTreeMap::new();
        for (name, runner) in self.runners.iter() {
            if runner.counted {
                *supply.entry(runner.group).or_default() += 1;
                if !runner.is_supply() {
                    breaches.push(format!(
                        "{name} counts as supply in phase {:?}",
                        runner.phase()
                    ));
                }
            }
            if let Some(tenant) = runner.charged {
                *live.entry(tenant).or_default() += 1;
            }
            if runner.awaits_registration() {
                *reserved
                    .entry(runner.placed.credential.as_str())
                    .or_default() += 1;
            }
        }
        let mut runnable: BTreeMap<u32, u32> = BTreeMap::new();
        for job in self.jobs.values() {
            if let Some(unit) = job.unit {
                if job.phase() != JobPhase::Queued {
                    breaches.push(format!("{:?} is demand without being queued", job.seen.id));
                }
                let group = self.demand.units[unit as usize].group;
                *runnable.entry(group).or_default() += 1;
            }
        }
        for (ix, group) in self.demand.groups.iter().enumerate() {
            let ix = ix as u32;
            if group.supply != supply.get(&ix).copied().unwrap_or(0) {
                breaches.push(format!("supply of group {ix} is miscounted"));
            }
            if group.runnable != runnable.get(&ix).copied().unwrap_or(0) {
                breaches.push(format!("demand of group {ix} is miscounted"));
            }
        }
        for (ix, tenant) in self.demand.tenants.iter().enumerate() {
            if tenant.account.live != live.get(&(ix as u32)).copied().unwrap_or(0) {
                breaches.push(format!("runners of {} are miscounted", tenant.account.name));
            }
        }
        for credential in &self.demand.credentials {
            let wanted = reserved.get(credential.name.as_str()).copied().unwrap_or(0);
            if credential.reserved != wanted {
                breaches.push(format!(
                    "reservations of {} are miscounted",
                    credential.name
                ));
            }
        }
    }

    fn check_owed(&self, breaches: &mut Vec<String>) {
        let kept: Vec<_> = self.outstanding().cloned().collect();
        let recomputed = self.outstanding_recomputed();
        if kept != recomputed {
            breaches.push(format!(
                "owed effects differ: kept {kept:?}, recomputed {recomputed:?}"
            ));
        }
        let named: BTreeSet<_> = kept.iter().map(crate::effect::Effect::key).collect();
        if named.len() != kept.len() {
            breaches.push("an effect is owed twice".to_owned());
        }
        for runner in self.runners.values() {
            let registers =
                named.contains(&crate::effect::EffectKey::Register(runner.name().clone()));
            if registers && runner.phase() != RunnerPhase::Reserved {
                breaches.push(format!("{} would be registered twice", runner.name()));
            }
        }
    }
}
