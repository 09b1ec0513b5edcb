//! Classes of nodes and shapes of runners, and which class can carry which shape.
//!
//! Computed once per new class or shape; never per job, never per node.

use std::collections::BTreeSet;

use crate::{
    labels::{Bits, Labels, SignatureIx, is_gpu, must_be_proven},
    model::{Gpu, GpuNeeds, Pool, Resources},
    profile,
    state::Node,
};

pub(crate) type ClassIx = u32;
pub(crate) type ShapeIx = u32;
pub(crate) type PoolIx = u32;
pub(crate) type RequestIx = u32;

/// Everything about a node that decides what it can carry, apart from how much.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClassKey {
    arch: String,
    labels: BTreeSet<String>,
    properties: BTreeSet<String>,
    /// One of each kind of the GPUs that may be leased, without what tells two of a kind apart.
    gpus: BTreeSet<Gpu>,
    blocked_images: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub(crate) key: ClassKey,
    labels: Bits,
}

/// What one kind of runner asks of a node.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) signature: SignatureIx,
    pub(crate) pool: PoolIx,
    pub(crate) request: RequestIx,
    /// Classes that can carry it; those of the second tier only when the first is full.
    pub(crate) classes: Bits,
    pub(crate) first: Bits,
    pub(crate) second: Bits,
}

impl ClassKey {
    pub(crate) fn of(node: &Node, blocked_images: BTreeSet<String>) -> Self {
        Self {
            arch: node.capability.arch.clone(),
            labels: proven_labels(node),
            properties: node.capability.properties.clone(),
            gpus: node.leasable_gpus().map(kind).collect(),
            blocked_images,
        }
    }
}

fn kind(gpu: &Gpu) -> Gpu {
    Gpu {
        product: gpu.product.clone(),
        memory_mib: gpu.memory_mib,
        compute_capability: gpu.compute_capability.clone(),
        ..Gpu::default()
    }
}

/// What one runner takes, and what each of its GPUs must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) resources: Resources,
    pub(crate) gpu: GpuNeeds,
}

/// Labels a node really answers: `cuda` and `gpu` only with a GPU that it offers.
pub(crate) fn proven_labels(node: &Node) -> BTreeSet<String> {
    let has_gpu = node.leasable_gpus().next().is_some();
    node.capability
        .labels
        .iter()
        .map(|label| label.to_lowercase())
        .filter(|label| has_gpu || !is_gpu(label))
        .chain(["self-hosted".to_owned()])
        .collect()
}

/// A pool may grant labels of its own; hardware and system are proven by the node.
pub(crate) fn grants(pool: &Pool, label: &str) -> bool {
    !must_be_proven(label)
        && pool
            .labels
            .iter()
            .any(|granted| granted.eq_ignore_ascii_case(label))
}

/// What a runner of this pool takes for this signature.
pub(crate) fn request(pool: &Pool, wants_gpu: bool) -> Request {
    let gpus = pool.resources.gpus.max(u32::from(wants_gpu));
    Request {
        resources: Resources {
            gpus,
            ..pool.resources
        },
        // What a GPU must have says nothing of a runner without one.
        gpu: if gpus > 0 {
            pool.gpu.clone()
        } else {
            GpuNeeds::default()
        },
    }
}

/// What the runner takes on this node: clamped, so that one fits an empty node.
pub(crate) fn clamp(request: Resources, node: &Node) -> Resources {
    let capacity = node.capability.capacity;
    Resources {
        cpu_millis: request.cpu_millis.min(capacity.cpu_millis),
        memory_bytes: request.memory_bytes.min(capacity.memory_bytes),
        gpus: request.gpus,
    }
}

/// How many such runners the node can take now.
pub(crate) fn fits(request: &Request, node: &Node) -> u32 {
    let Request {
        resources: request,
        gpu: needs,
    } = request;
    let request = *request;
    let capacity = node.capability.capacity;
    if (request.cpu_millis > 0 && capacity.cpu_millis == 0)
        || (request.memory_bytes > 0 && capacity.memory_bytes == 0)
    {
        return 0;
    }
    let need = clamp(request, node);
    let free = node.free();
    let mut fits = node.free_slots().unwrap_or(u32::MAX);
    // Nothing asked, nothing limits.
    let by_cpu = free.cpu_millis.checked_div(need.cpu_millis);
    let by_memory = free.memory_bytes.checked_div(need.memory_bytes);
    // Counted only for who takes some.
    let by_gpu = (need.gpus > 0).then(|| {
        let suitable = node.free_gpus().filter(|gpu| needs.admits(gpu));
        suitable.count() as u32 / need.gpus
    });
    for limit in [
        by_cpu,
        by_memory.map(|fits| u32::try_from(fits).unwrap_or(u32::MAX)),
        by_gpu,
    ] {
        fits = fits.min(limit.unwrap_or(u32::MAX));
    }
    fits
}

impl Class {
    pub(crate) fn new(key: ClassKey, labels: &mut Labels) -> Self {
        let mut bits = Bits::default();
        for label in &key.labels {
            bits.insert(labels.id(label));
        }
        Self { key, labels: bits }
    }

    pub(crate) fn carries(&self, labels: &Labels, signature: SignatureIx, pool: &Pool) -> bool {
        let signature = labels.get(signature);
        let labelled = signature.bits.is_subset(&self.labels)
            || signature
                .ids
                .iter()
                .zip(signature_labels(labels, signature))
                .all(|(id, label)| self.labels.contains(*id) || grants(pool, label));
        labelled
            && self.has_gpus_for(pool, signature.wants_gpu)
            && profile::missing(pool, &self.key.properties).is_empty()
            && !self.key.blocked_images.contains(&pool.image)
    }

    /// One of the right kind at least; how many there are is a matter of room.
    fn has_gpus_for(&self, pool: &Pool, wants_gpu: bool) -> bool {
        (pool.resources.gpus == 0 && !wants_gpu)
            || self.key.gpus.iter().any(|gpu| pool.gpu.admits(gpu))
    }

    /// CPU work goes to nodes with GPUs last.
    pub(crate) fn is_second_tier(&self, needs_gpu: bool) -> bool {
        !self.key.gpus.is_empty() && !needs_gpu
    }
}

fn signature_labels<'a>(
    labels: &'a Labels,
    signature: &'a crate::labels::Signature,
) -> impl Iterator<Item = &'a str> {
    signature.ids.iter().map(|id| labels.name(*id))
}
