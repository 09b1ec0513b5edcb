//! What settings change: pools, shares, images.

use crate::{
    capacity::PoolPlan,
    demand::TenantIx,
    fact::PoolOrigin,
    fleet::Fleet,
    input::Defaults,
    labels::Bits,
    model::{NodeName, Pool, PoolName},
    state::PoolEntry,
};

/// Name of the pool that exists without any configuration.
pub(crate) const BUILT_IN_POOL: &str = "default";

impl Fleet {
    pub(super) fn pools_changed(&mut self) {
        let built_in = PoolName::new(BUILT_IN_POOL);
        if self
            .pools
            .get(&built_in)
            .is_none_or(|entry| entry.origin == PoolOrigin::BuiltIn)
        {
            let pool = built_in_pool(&self.defaults);
            self.pools.insert(
                built_in,
                PoolEntry {
                    pool,
                    origin: PoolOrigin::BuiltIn,
                },
            );
        }
        self.stale = true;
        self.touch_runners();
    }

    pub(super) fn share_changed(&mut self, subject: &str) {
        self.ensure_index();
        let (weight, maximum) = self
            .shares
            .get(subject)
            .map_or((1, 0), |share| (share.weight, share.maximum));
        if subject.contains('/') {
            let ix = self.demand.tenant(subject);
            let account = &mut self.demand.tenants[ix as usize].account;
            (account.weight, account.maximum) = (weight, maximum);
            self.demand.unpark_tenant(ix);
        } else {
            let ix = self.demand.owner(subject);
            let account = &mut self.demand.owners[ix as usize].account;
            (account.weight, account.maximum) = (weight, maximum);
            self.demand.unpark_owner(ix);
        }
    }

    /// A repository seen for the first time may have a share configured.
    pub(super) fn adopt_share(&mut self, tenant: TenantIx) {
        if self.shares.is_empty() {
            return;
        }
        let entry = &mut self.demand.tenants[tenant as usize];
        if let Some(share) = self.shares.get(&*entry.account.name) {
            (entry.account.weight, entry.account.maximum) = (share.weight, share.maximum);
        }
        let owner = &mut self.demand.owners[entry.owner as usize].account;
        if let Some(share) = self.shares.get(&*owner.name) {
            (owner.weight, owner.maximum) = (share.weight, share.maximum);
        }
    }

    pub(crate) fn image_changed(&mut self, image: &str, node: Option<&NodeName>) {
        match node {
            Some(name) => {
                if let Some(ix) = self.node_ix(name) {
                    self.reclass(ix);
                }
            }
            None => {
                let rests = self
                    .images
                    .get(&(image.to_owned(), None))
                    .is_some_and(|rest| rest.resting);
                for plan in &mut self.capacity.pools {
                    if plan.pool.image == image {
                        plan.image_rests = rests;
                    }
                }
            }
        }
    }

    pub(crate) fn plans(&self) -> Vec<PoolPlan> {
        let mut plans: Vec<PoolPlan> = self
            .pools
            .values()
            .map(|entry| {
                let mut pool = entry.pool.clone();
                if entry.origin == PoolOrigin::BuiltIn || pool.image.is_empty() {
                    pool.image = self
                        .autoscaler
                        .image
                        .clone()
                        .unwrap_or_else(|| self.defaults.image.clone());
                }
                if pool.resources.cpu_millis == 0 {
                    pool.resources.cpu_millis = self.defaults.resources.cpu_millis;
                }
                if pool.resources.memory_bytes == 0 {
                    pool.resources.memory_bytes = self.defaults.resources.memory_bytes;
                }
                let image_rests = self
                    .images
                    .get(&(pool.image.clone(), None))
                    .is_some_and(|rest| rest.resting);
                PoolPlan {
                    pool,
                    live: 0,
                    shapes: Bits::default(),
                    image_rests,
                }
            })
            .collect();
        plans.sort_by(|a, b| {
            (b.pool.precedence, &a.pool.name).cmp(&(a.pool.precedence, &b.pool.name))
        });
        plans
    }
}

/// The pool that makes zero configuration work: whatever the nodes prove.
fn built_in_pool(defaults: &Defaults) -> Pool {
    Pool {
        image: defaults.image.clone(),
        precedence: i32::MIN,
        ..defaults.pool(BUILT_IN_POOL)
    }
}
