//! What a node may be asked for soon: so that it can get ready before the first job.

use crate::{
    effect::Expected,
    feasible::{clamp, proven_labels, request},
    fleet::Fleet,
    labels::{is_gpu, must_be_proven},
    model::Pool,
    place::platform,
    profile,
    state::Node,
};

/// Most kinds told to one node.
const MOST: usize = 8;
/// Pools looked at for it: an intent is made often, and there may be many.
const LOOKED_AT: usize = 16;

impl Fleet {
    /// The kinds of runner that pools may place on this node, the most preferred first.
    /// Nothing is decided by it: what is not in it may be asked for as well.
    pub(crate) fn expected(&self, node: &Node) -> Vec<Expected> {
        let capacity = node.capability.capacity;
        if capacity.cpu_millis == 0 || capacity.memory_bytes == 0 {
            return Vec::new();
        }
        let mut all: Vec<Expected> = Vec::new();
        let plans = self.capacity.pools.iter().take(LOOKED_AT);
        for plan in plans.filter(|plan| !plan.image_rests && serves(&plan.pool, node)) {
            let pool = &plan.pool;
            let expected = Expected {
                pool: pool.name.clone(),
                image: pool.image.clone(),
                profile: pool.profile.clone(),
                network_mode: pool.network_mode.clone(),
                runtime: pool.runtime.clone(),
                platform: platform(&node.capability.arch, &[]).into_owned(),
                resources: clamp(request(pool, false).resources, node),
                lifetime_ms: pool.lifetime.as_millis() as u64,
            };
            let known = all.iter().any(|one| one.is_like(&expected));
            if !known && all.len() < MOST {
                all.push(expected);
            }
        }
        all
    }
}

/// Whether an ordinary job of this pool could run there.
fn serves(pool: &Pool, node: &Node) -> bool {
    if pool.resources.gpus > 0 || !profile::missing(pool, &node.capability.properties).is_empty() {
        return false;
    }
    // A pool that names kinds of hardware or system serves nodes that have one of each kind
    // it names; one that names a GPU without asking for it serves others too.
    let proven = proven_labels(node);
    let named: Vec<String> = pool
        .labels
        .iter()
        .map(|label| label.to_lowercase())
        .collect();
    let kinds: [&[&str]; 2] = [
        &["linux", "windows", "macos"],
        &["x64", "x86", "arm64", "arm"],
    ];
    let has_its_kinds = kinds.iter().all(|kind| {
        let mut asked = named
            .iter()
            .filter(|label| kind.contains(&label.as_str()))
            .peekable();
        asked.peek().is_none() || asked.any(|label| proven.contains(label))
    });
    let only_gpu = !named.is_empty()
        && named
            .iter()
            .all(|label| is_gpu(label) || !must_be_proven(label))
        && named.iter().any(|label| is_gpu(label));
    has_its_kinds && !only_gpu
}
