//! Where there is room: per class and request, the nodes ordered by how many fit.
//!
//! An entry exists exactly while the node takes new runners and at least one
//! fits, so the first entry is the best fit and an absent one means full.

use std::collections::BTreeMap;

use crate::{
    feasible::{
        Class, ClassIx, ClassKey, PoolIx, Request, RequestIx, Shape, ShapeIx, fits, request,
    },
    fleet::{Fleet, NodeIx},
    labels::{Bits, Labels, SignatureIx},
    model::{Placement, Pool, PoolName},
    ordered::Ordered,
    state::Node,
};

#[derive(Debug, Default)]
pub(crate) struct Capacity {
    pub(crate) classes: Vec<Class>,
    by_key: BTreeMap<ClassKey, ClassIx>,
    pub(crate) requests: Vec<Request>,
    /// `[class][request]`: (how many fit, node).
    room: Vec<Vec<Ordered<(u32, NodeIx)>>>,
    /// `[request][class]`: the first of its room, the best fit.
    best: Vec<Vec<Option<(u32, NodeIx)>>>,
    /// Per request: classes with room.
    open: Vec<Bits>,
    /// `[request][class]`: shapes of this request that the class can carry.
    carried: Vec<Vec<Bits>>,
    /// Shapes that some node can take now, unless `moved`.
    roomy: Bits,
    /// A class opened or closed since.
    moved: bool,
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
    /// Shapes of its runners.
    pub(crate) shapes: Bits,
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
        capacity.best = vec![Vec::new(); capacity.requests.len()];
        capacity.carried = vec![Vec::new(); capacity.requests.len()];
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
        self.room
            .push(vec![Ordered::default(); self.requests.len()]);
        self.best.iter_mut().for_each(|best| best.push(None));
        self.carried
            .iter_mut()
            .for_each(|carried| carried.push(Bits::default()));
        for (at, shape) in self.shapes.iter_mut().enumerate() {
            let pool = &self.pools[shape.pool as usize].pool;
            if admit_class(shape, ix, &self.classes[ix as usize], labels, pool) {
                self.carried[shape.request as usize][ix as usize].insert(at as ShapeIx);
            }
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
        let made = self.shapes.len() as ShapeIx;
        for (ix, class) in self.classes.iter().enumerate() {
            if admit_class(&mut shape, ix as ClassIx, class, labels, plan) {
                self.carried[request as usize][ix].insert(made);
            }
        }
        self.moved = true;
        self.by_shape.insert((signature, pool), made);
        self.pools[pool as usize].shapes.insert(made);
        self.shapes.push(shape);
        made
    }

    pub(crate) fn has_any_room(&self) -> bool {
        self.open.iter().any(|classes| !classes.is_empty())
    }

    /// Some node can take a runner of this shape now.
    pub(crate) fn has_room(&self, shape: ShapeIx) -> bool {
        let shape = &self.shapes[shape as usize];
        shape.classes.meets(&self.open[shape.request as usize])
    }

    /// Brings `narrow` up to date with the rooms that opened or closed.
    pub(crate) fn look(&mut self) {
        if !std::mem::take(&mut self.moved) {
            return;
        }
        self.roomy.clear();
        for (carried, open) in self.carried.iter().zip(&self.open) {
            for class in open.iter() {
                self.roomy.add(&carried[class as usize]);
            }
        }
    }

    /// Leaves the shapes that some node and their pool can take now.
    pub(crate) fn narrow(&self, shapes: &mut Bits) {
        debug_assert!(!self.moved, "looked before");
        shapes.keep(&self.roomy);
        for plan in self.pools.iter().filter(|plan| !plan.has_room()) {
            shapes.take_out(&plan.shapes);
        }
    }

    /// The node that takes it: first tier first, then best fit or the emptiest.
    pub(crate) fn choose(&self, shape: ShapeIx) -> Option<NodeIx> {
        let shape = &self.shapes[shape as usize];
        let open = &self.open[shape.request as usize];
        let placement = self.pools[shape.pool as usize].pool.placement;
        [&shape.first, &shape.second].into_iter().find_map(|tier| {
            let classes = tier.both(open);
            match placement {
                Placement::Pack => {
                    let best = &self.best[shape.request as usize];
                    classes.filter_map(|class| best[class as usize]).min()
                }
                Placement::Spread => classes
                    .filter_map(|class| {
                        let room = &self.room[class as usize][shape.request as usize];
                        room.last()
                    })
                    .max_by_key(|(fits, node)| (*fits, std::cmp::Reverse(*node))),
            }
            .map(|(_, node)| node)
        })
    }

    /// Moves the node to where its free capacity puts it now.
    pub(crate) fn relist(&mut self, ix: NodeIx, node: &mut Node) {
        let open_for_work = node.takes_new_runners();
        node.fits.resize(self.requests.len(), 0);
        for request in 0..self.requests.len() {
            let now = if open_for_work {
                fits(&self.requests[request], node)
            } else {
                0
            };
            let before = std::mem::replace(&mut node.fits[request], now);
            if before == now {
                continue;
            }
            let room = &mut self.room[node.class as usize][request];
            if before > 0 {
                room.remove((before, ix));
            }
            if now > 0 {
                room.insert((now, ix));
            }
            self.note_first(node.class, request);
        }
    }

    /// The room of a class changed: its best fit, and whether it is open.
    fn note_first(&mut self, class: ClassIx, request: usize) {
        let first = self.room[class as usize][request].first();
        let before = std::mem::replace(&mut self.best[request][class as usize], first);
        if before.is_some() == first.is_some() {
            return;
        }
        if first.is_some() {
            self.open[request].insert(class);
        } else {
            self.open[request].remove(class);
        }
        self.moved = true;
    }

    /// Takes the node out of every list, before it changes class or leaves.
    pub(crate) fn unlist(&mut self, ix: NodeIx, node: &mut Node) {
        for (request, fits) in node.fits.iter_mut().enumerate() {
            let before = std::mem::take(fits);
            if before == 0 {
                continue;
            }
            self.room[node.class as usize][request].remove((before, ix));
            self.note_first(node.class, request);
        }
    }

    pub(crate) fn is_listed(&self, class: ClassIx, request: usize, fits: u32, ix: NodeIx) -> bool {
        self.room[class as usize][request].contains((fits, ix))
    }

    /// The kept room of shapes and best fits, computed anew: what differs.
    pub(crate) fn breaches(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        for (ix, shape) in self.shapes.iter().enumerate() {
            let request = shape.request as usize;
            let open = shape
                .classes
                .both(&self.open[request])
                .any(|class| !self.room[class as usize][request].is_empty());
            if !self.moved && self.roomy.contains(ix as ShapeIx) != open {
                breaches.push(format!("shape {ix} is misjudged: room is {open}"));
            }
        }
        for (class, rooms) in self.room.iter().enumerate() {
            for (request, room) in rooms.iter().enumerate() {
                if self.best[request][class] != room.first()
                    || self.open[request].contains(class as ClassIx) == room.is_empty()
                {
                    breaches.push(format!("the best fit of class {class} is stale"));
                }
            }
        }
        breaches
    }

    pub(crate) fn listed(&self) -> usize {
        self.room.iter().flatten().map(Ordered::len).sum()
    }
}

/// Whether the class can carry the shape.
fn admit_class(
    shape: &mut Shape,
    ix: ClassIx,
    class: &Class,
    labels: &Labels,
    pool: &Pool,
) -> bool {
    if !class.carries(labels, shape.signature, pool) {
        return false;
    }
    shape.classes.insert(ix);
    let needs_gpu = pool.resources.gpus > 0 || labels.get(shape.signature).wants_gpu;
    if class.is_second_tier(needs_gpu) {
        shape.second.insert(ix);
    } else {
        shape.first.insert(ix);
    }
    true
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
