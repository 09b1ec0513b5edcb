//! How many sandboxes a node keeps started before anybody asks for one, and of what shape.
//!
//! Pure: time is an argument, what is parked is an argument, the answer is what
//! to remove and what to make. A standby is free capacity: it is only ever
//! planned into room that no runner uses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::model::{Resources, RunnerSpec};

/// Arrivals are counted in windows of this length: about what a burst takes.
const WINDOW_MS: u64 = 10_000;
/// A window counts for so long; a shape nobody asked for meanwhile fades.
pub const FADE_MS: u64 = 10 * 60_000;
/// A standby is made anew after this, so that what it was started with (resolvers,
/// the time its life is counted from when the agent's own notes are lost) stays young.
pub const LONGEST_PARKED_MS: u64 = 60 * 60_000;
/// Less than this part of the host's memory is short, and never more than that.
const SHORT_PART: u64 = 32;
const SHORT_MOST: u64 = 512 << 20;
/// Shapes kept count of; the one asked for longest ago makes room.
const MAX_SHAPES: usize = 64;

/// What two runners must have in common to be served by the same standby, but the
/// image's digest. Never with a GPU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// As the scheduler names it: a tag or a digest.
    pub image: String,
    pub profile: String,
    pub platform: String,
    pub network_mode: String,
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// The container carries it for an agent that adopts it.
    pub lifetime_ms: u64,
    pub runtime: String,
}

impl Shape {
    /// None for a runner that no standby can serve.
    pub fn of(spec: &RunnerSpec) -> Option<Self> {
        if spec.resources.gpus > 0 || !spec.gpu_uuids.is_empty() {
            return None;
        }
        // What it may reach is told to its slot's proxy when it starts.
        if spec.network_mode == "allowlist" {
            return None;
        }
        let or =
            |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
        Some(Self {
            image: spec.image.clone(),
            profile: or(&spec.profile, "strict"),
            platform: spec.platform.clone(),
            network_mode: or(&spec.network_mode, "open"),
            cpu_millis: spec.resources.cpu_millis,
            memory_bytes: spec.resources.memory_bytes,
            lifetime_ms: spec.lifetime_ms,
            runtime: spec.runtime.clone(),
        })
    }

    /// A spec that has this shape and says nothing about a runner.
    pub fn spec(&self) -> RunnerSpec {
        RunnerSpec {
            image: self.image.clone(),
            profile: self.profile.clone(),
            resources: Resources {
                cpu_millis: self.cpu_millis,
                memory_bytes: self.memory_bytes,
                gpus: 0,
            },
            network_mode: self.network_mode.clone(),
            platform: self.platform.clone(),
            lifetime_ms: self.lifetime_ms,
            runtime: self.runtime.clone(),
            ..RunnerSpec::default()
        }
    }
}

/// Bounds a person sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Kept of each shape that is expected or was asked for lately.
    pub floor: u32,
    /// Most of one shape, whatever the rate.
    pub ceiling: u32,
}

/// What running sandboxes leave of the node. Standbys do not count as running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// Sandboxes: the smaller of the node's own maximum and the slot networks left.
    pub slots: u32,
}

impl Room {
    fn fits(&self, shape: &Shape) -> bool {
        self.slots > 0
            && self.cpu_millis >= shape.cpu_millis
            && self.memory_bytes >= shape.memory_bytes
    }

    fn take(&mut self, shape: &Shape) {
        self.slots -= 1;
        self.cpu_millis -= shape.cpu_millis;
        self.memory_bytes -= shape.memory_bytes;
    }
}

/// A sandbox that is started, or being started, for nobody yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// The caller's own name for it.
    pub id: u64,
    pub shape: Shape,
    /// `sha256:...` that it was made from.
    pub image_id: String,
    pub since_ms: u64,
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Parked ones that are stale, too many, too old or in the way.
    pub evict: Vec<u64>,
    /// The most urgent first; a shape as often as it is missing.
    pub make: Vec<Shape>,
}

#[derive(Clone, Debug, Default)]
struct Demand {
    /// Window number and arrivals in it, oldest first.
    windows: VecDeque<(u64, u32)>,
    last_ms: u64,
}

impl Demand {
    fn forget(&mut self, now_ms: u64) {
        let oldest = now_ms.saturating_sub(FADE_MS) / WINDOW_MS;
        while self.windows.front().is_some_and(|(at, _)| *at < oldest) {
            self.windows.pop_front();
        }
    }

    fn peak(&self) -> u32 {
        self.windows.iter().map(|(_, n)| *n).max().unwrap_or(0)
    }
}

/// Who asked lately, and who is expected to.
#[derive(Clone, Debug)]
pub struct Standby {
    limits: Limits,
    demand: BTreeMap<Shape, Demand>,
    expected: BTreeSet<Shape>,
}

impl Standby {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits: Limits {
                ceiling: limits.ceiling.max(limits.floor),
                ..limits
            },
            demand: BTreeMap::new(),
            expected: BTreeSet::new(),
        }
    }

    /// A runner of this shape was asked for.
    pub fn arrived(&mut self, shape: &Shape, now_ms: u64) {
        self.forget(now_ms);
        if !self.demand.contains_key(shape) && self.demand.len() >= MAX_SHAPES {
            let oldest = self.demand.iter().min_by_key(|(_, d)| d.last_ms);
            if let Some(oldest) = oldest.map(|(shape, _)| shape.clone()) {
                self.demand.remove(&oldest);
            }
        }
        let demand = self.demand.entry(shape.clone()).or_default();
        demand.last_ms = demand.last_ms.max(now_ms);
        let window = demand.last_ms / WINDOW_MS;
        match demand.windows.back_mut() {
            Some((at, count)) if *at == window => *count = count.saturating_add(1),
            _ => demand.windows.push_back((window, 1)),
        }
    }

    /// Shapes that the scheduler may ask for; those it named before and not now lose
    /// their floor.
    pub fn expect(&mut self, shapes: impl IntoIterator<Item = Shape>) {
        self.expected = shapes.into_iter().take(MAX_SHAPES).collect();
    }

    /// Shapes worth knowing the image of: expected, or asked for lately.
    pub fn shapes(&mut self, now_ms: u64) -> Vec<Shape> {
        self.forget(now_ms);
        let mut all = self.expected.clone();
        all.extend(self.demand.keys().cloned());
        all.into_iter().collect()
    }

    /// How many of this shape are worth keeping, room aside: as many as came at once
    /// lately, between floor and ceiling; none once it is neither asked for nor expected.
    pub fn wanted(&self, shape: &Shape) -> u32 {
        match self.demand.get(shape) {
            Some(demand) => demand.peak().clamp(self.limits.floor, self.limits.ceiling),
            None if self.expected.contains(shape) => self.limits.floor,
            None => 0,
        }
    }

    /// What to remove and what to make, given what is there. `image_of` tells the
    /// digest that a shape's image means now; without one nothing of it is kept.
    pub fn plan<'a>(
        &mut self,
        now_ms: u64,
        parked: &[Parked],
        mut room: Room,
        image_of: impl Fn(&Shape) -> Option<&'a str>,
    ) -> Plan {
        let mut shapes = self.shapes(now_ms);
        shapes.retain(|shape| image_of(shape).is_some());
        // Who was asked for last is served first.
        let last = |shape: &Shape| self.demand.get(shape).map_or(0, |demand| demand.last_ms);
        shapes.sort_by_key(|shape| std::cmp::Reverse(last(shape)));
        // One of each before a second of any.
        let mut granted: BTreeMap<&Shape, u32> = BTreeMap::new();
        for level in 1..=self.limits.ceiling {
            for shape in &shapes {
                if self.wanted(shape) >= level && room.fits(shape) {
                    room.take(shape);
                    *granted.entry(shape).or_default() += 1;
                }
            }
        }
        let mut plan = Plan::default();
        let mut left = granted.clone();
        // The youngest stay; ids break ties.
        let mut order: Vec<&Parked> = parked.iter().collect();
        order.sort_by_key(|one| (std::cmp::Reverse(one.since_ms), one.id));
        // One too old at a time, so that they are not all gone at once.
        let expired = order
            .last()
            .filter(|one| now_ms.saturating_sub(one.since_ms) >= LONGEST_PARKED_MS)
            .map(|one| one.id);
        for one in order {
            let current = image_of(&one.shape) == Some(one.image_id.as_str());
            match left.get_mut(&one.shape) {
                Some(more) if *more > 0 && current && expired != Some(one.id) => *more -= 1,
                _ => plan.evict.push(one.id),
            }
        }
        for shape in &shapes {
            for _ in 0..left.get(shape).copied().unwrap_or(0) {
                plan.make.push(shape.clone());
            }
        }
        plan
    }

    fn forget(&mut self, now_ms: u64) {
        self.demand.retain(|_, demand| {
            demand.forget(now_ms);
            !demand.windows.is_empty()
        });
    }
}

/// Memory of the host, in bytes, as the kernel counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
}

impl Memory {
    /// From the text of `/proc/meminfo`.
    pub fn of(meminfo: &str) -> Option<Self> {
        let bytes = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: u64 = line.strip_suffix("kB")?.trim().parse().ok()?;
            kib.checked_mul(1024)
        };
        Some(Self {
            total: bytes("MemTotal:")?,
            available: bytes("MemAvailable:")?,
        })
    }

    /// Too little is left for anything that nobody asked for. Where it `was` so, twice as
    /// much is needed to begin again.
    pub fn is_short(self, was: bool) -> bool {
        let floor = (self.total / SHORT_PART).min(SHORT_MOST);
        self.available < if was { floor * 2 } else { floor }
    }
}

#[cfg(test)]
mod tests;
