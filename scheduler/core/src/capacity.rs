//! Where there is room: per class and request, the nodes ordered by how many fit.
//!
//! An entry exists exactly while the node takes new runners and at least one
//! fits, so the first entry is the best fit and an absent one means full.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    feasible::{Class, ClassIx, ClassKey, PoolIx, RequestIx, Shape, ShapeIx, fits, request},
    fleet::{Fleet, NodeIx},
    labels::{Bits, Labels, SignatureIx},
    model::{Placement, Pool, PoolName, Resources},
    state::Node,
};

#[derive(Debug, Default)]
pub(crate) struct Capacity {
    pub(crate) classes: Vec<Class>,
    by_key: BTreeMap<ClassKey, ClassIx>,
    pub(crate) requests: Vec<Resources>,
    /// `[class][request]`: (how many fit, node).
    room: Vec<Vec<BTreeSet<(u32, NodeIx)>>>,
    /// Per request: classes with room.
    pub(crate) open: Vec<Bits>,
    pub(crate) shapes: Vec<Shape>,
    by_shape: BTreeMap<(SignatureIx, PoolIx), ShapeIx>,
    /// In the order they are asked: precedence, then name.
    pub(crate) pools: Vec<PoolPlan>,
    pub(crate) pool_ix: BTreeMap<PoolName, PoolIx>,
}

/// A pool in force, with what the fleet's settings fill in.
#[derive(Clone, Debug)]
pub(crate) struct PoolPlan {
    pub(crate) pool: Pool,
    pub(crate) live: u32,
    /// Its image rests everywhere.
    pub(crate) image_rests: bool,
}

impl PoolPlan {
    pub(crate) fn has_room(&self) -> bool {
        !self.image_rests && (self.pool.maximum == 0 || self.live < self.pool.maximum)
    }
}

impl Capacity {
    pub(crate) fn with_pools(pools: Vec<PoolPlan>) -> Self {
        let mut capacity = Self::default();
        for plan in &pools {
            for wants_gpu in [false, true] {
                let wanted = request(&plan.pool, wants_gpu);
                if !capacity.requests.contains(&wanted) {
                    capacity.requests.push(wanted);
                }
            }
        }
        capacity.open = vec![Bits::default(); capacity.requests.len()];
        capacity.pool_ix = pools
            .iter()
            .enumerate()
            .map(|(ix, plan)| (plan.pool.name.clone(), ix as PoolIx))
            .collect();
        capacity.pools = pools;
        capacity
    }

    pub(crate) fn class(&mut self, key: ClassKey, labels: &mut Labels) -> ClassIx {
        if let Some(known) = self.by_key.get(&key) {
            return *known;
        }
        let ix = self.classes.len() as ClassIx;
        self.by_key.insert(key.clone(), ix);
        self.classes.push(Class::new(key, labels));
        self.room.push(vec![BTreeSet::new(); self.requests.len()]);
        for shape in &mut self.shapes {
            let pool = &self.pools[shape.pool as usize].pool;
            admit_class(shape, ix, &self.classes[ix as usize], labels, pool);
        }
        ix
    }

    pub(crate) fn shape(
        &mut self,
        signature: SignatureIx,
        pool: PoolIx,
        labels: &Labels,
    ) -> ShapeIx {
        if let Some(known) = self.by_shape.get(&(signature, pool)) {
            return *known;
        }
        let plan = &self.pools[pool as usize].pool;
        let wanted = request(plan, labels.get(signature).wants_gpu);
        let request = self
            .requests
            .iter()
            .position(|known| *known == wanted)
            .expect("every pool's requests were listed when the pools were set")
            as RequestIx;
        let mut shape = Shape {
            signature,
            pool,
            request,
            classes: Bits::default(),
            first: Bits::default(),
            second: Bits::default(),
        };
        for (ix, class) in self.classes.iter().enumerate() {
            admit_class(&mut shape, ix as ClassIx, class, labels, plan);
        }
        let ix = self.shapes.len() as ShapeIx;
        self.by_shape.insert((signature, pool), ix);
        self.shapes.push(shape);
        ix
    }

    pub(crate) fn has_any_room(&self) -> bool {
        self.open.iter().any(|classes| !classes.is_empty())
    }

    /// Some node can take a runner of this shape now.
    pub(crate) fn has_room(&self, shape: ShapeIx) -> bool {
        let shape = &self.shapes[shape as usize];
        shape.classes.meets(&self.open[shape.request as usize])
    }

    /// The node that takes it: first tier first, then best fit or the emptiest.
    pub(crate) fn choose(&self, shape: ShapeIx) -> Option<NodeIx> {
        let shape = &self.shapes[shape as usize];
        let open = &self.open[shape.request as usize];
        let placement = self.pools[shape.pool as usize].pool.placement;
        [&shape.first, &shape.second].into_iter().find_map(|tier| {
            let rooms = tier
                .both(open)
                .map(|class| &self.room[class as usize][shape.request as usize]);
            match placement {
                Placement::Pack => rooms.filter_map(|room| room.first()).min(),
                Placement::Spread => rooms
                    .filter_map(|room| room.last())
                    .max_by_key(|(fits, node)| (*fits, std::cmp::Reverse(*node))),
            }
            .map(|(_, node)| *node)
        })
    }

    /// Moves the node to where its free capacity puts it now.
    pub(crate) fn relist(&mut self, ix: NodeIx, node: &mut Node) {
        let open_for_work = node.takes_new_runners();
        node.fits.resize(self.requests.len(), 0);
        for (request, wanted) in self.requests.iter().enumerate() {
            let now = if open_for_work {
                fits(*wanted, node)
            } else {
                0
            };
            let before = std::mem::replace(&mut node.fits[request], now);
            if before == now {
                continue;
            }
            let room = &mut self.room[node.class as usize][request];
            if before > 0 {
                room.remove(&(before, ix));
            }
            if now > 0 {
                room.insert((now, ix));
            }
            if room.is_empty() {
                self.open[request].remove(node.class);
            } else {
                self.open[request].insert(node.class);
            }
        }
    }

    /// Takes the node out of every list, before it changes class or leaves.
    pub(crate) fn unlist(&mut self, ix: NodeIx, node: &mut Node) {
        for (request, fits) in node.fits.iter_mut().enumerate() {
            let before = std::mem::take(fits);
            if before == 0 {
                continue;
            }
            let room = &mut self.room[node.class as usize][request];
            room.remove(&(before, ix));
            if room.is_empty() {
                self.open[request].remove(node.class);
            }
        }
    }

    pub(crate) fn is_listed(&self, class: ClassIx, request: usize, fits: u32, ix: NodeIx) -> bool {
        self.room[class as usize][request].contains(&(fits, ix))
    }

    pub(crate) fn listed(&self) -> usize {
        self.room.iter().flatten().map(BTreeSet::len).sum()
    }
}

fn admit_class(shape: &mut Shape, ix: ClassIx, class: &Class, labels: &Labels, pool: &Pool) {
    if !class.carries(labels, shape.signature, pool) {
        return;
    }
    shape.classes.insert(ix);
    let needs_gpu = request(pool, labels.get(shape.signature).wants_gpu).gpus > 0;
    if class.is_second_tier(needs_gpu) {
        shape.second.insert(ix);
    } else {
        shape.first.insert(ix);
    }
}

impl Fleet {
    /// After anything that changes a node's free capacity or willingness.
    pub(crate) fn relist(&mut self, ix: NodeIx) {
        if self.stale {
            return;
        }
        if let Some(node) = &mut self.nodes[ix as usize] {
            self.capacity.relist(ix, node);
        }
    }

    /// After anything that changes what a node can carry.
    pub(crate) fn reclass(&mut self, ix: NodeIx) {
        if self.stale {
            return;
        }
        let Some(node) = &mut self.nodes[ix as usize] else {
            return;
        };
        let blocked = node
            .conditions
            .iter()
            .filter_map(|condition| condition.image.clone())
            .chain(
                self.images
                    .iter()
                    .filter(|((_, at), rest)| rest.resting && at.as_ref() == Some(&node.name))
                    .map(|((image, _), _)| image.clone()),
            )
            .collect();
        self.capacity.unlist(ix, node);
        let key = ClassKey::of(node, blocked);
        node.class = self.capacity.class(key, &mut self.labels);
        self.capacity.relist(ix, node);
    }
}
