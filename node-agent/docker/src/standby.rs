//! Sandboxes that are started before a runner asks for one, and blocked on standard input.
//!
//! A standby is made by the same code as a cold start and has a slot network and a
//! work volume of its own, but no runner's name and no registration. When this
//! process ends, its input ends with it and so does it; what is left of it is
//! removed like everything that was never handed over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use agent_core::model::{Resources, RunnerSpec};
use agent_core::runtime::{Outlook, RuntimeError};
use agent_core::standby::{Limits, Memory, Parked, Plan, Room, Shape, Standby};
use bollard::Docker;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::engine::EngineFacts;
use crate::runtime::{For, Handle, Inner, lock};
use crate::slots::Kind;

/// Looked at without an occasion this often: old ones go, demand fades.
const LOOK: Duration = Duration::from_secs(15);
/// An image's digest is asked for again after this, besides at the engine's word.
const IMAGE_KNOWN: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// After a hand-over the processors belong to the runner that starts.
const SETTLE: Duration = Duration::from_millis(250);
/// A standby that was taken holds refills up until its hand-over, but no longer.
const AWAITED: Duration = Duration::from_secs(10);
/// How long a cold start waits for a slot that a standby gives back.
const SLOT: Duration = Duration::from_secs(30);
/// How long the last ones are waited for when the agent ends.
const END: Duration = Duration::from_secs(3);

/// A sandbox for whoever comes first.
struct Spare {
    parked: Parked,
    handle: Handle,
}

#[derive(Default)]
struct Image {
    id: Option<String>,
    asked: Option<Instant>,
    asking: bool,
    /// The engine said that some image changed.
    doubtful: bool,
}

struct State {
    policy: Standby,
    outlook: Outlook,
    spares: BTreeMap<u64, Spare>,
    making: BTreeMap<u64, Parked>,
    /// To be removed; tried until it works.
    dying: Vec<Handle>,
    /// After a removal that failed.
    bury_after: Option<Instant>,
    /// Being removed, and being made with a slot of their own.
    removing: usize,
    starting: usize,
    /// A slot was taken since a network was last made ahead.
    spare_network: bool,
    /// By reference and platform.
    images: BTreeMap<(String, String), Image>,
    /// Shapes that could not be made: not before this, and the pause after that.
    failed: BTreeMap<Shape, (Instant, Duration)>,
    /// Cold starts under way and what they take.
    cold: BTreeMap<u64, Resources>,
    /// Taken and not handed over yet.
    awaited: BTreeMap<String, Instant>,
    given: Option<Instant>,
    next: u64,
    /// Why the host has nothing left for what nobody asked for.
    pressed: Option<Pressure>,
    closed: bool,
}

/// What a host may run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pressure {
    Memory,
    Disk,
}

/// All standbys of this process.
pub(crate) struct Pool {
    on: bool,
    began: Instant,
    state: Mutex<State>,
    wake: Notify,
    /// Something was given back, or nothing is left.
    freed: Notify,
    /// A job needs the processors less than before.
    calm: Notify,
    lanes: Semaphore,
}

impl Pool {
    /// Keeps none without limits. `lanes` are made at the same time at most.
    pub(crate) fn new(limits: Option<Limits>, lanes: usize) -> Self {
        let none = Limits {
            floor: 0,
            ceiling: 0,
        };
        Self {
            on: limits.is_some(),
            began: Instant::now(),
            state: Mutex::new(State {
                policy: Standby::new(limits.unwrap_or(none)),
                outlook: Outlook::default(),
                spares: BTreeMap::new(),
                making: BTreeMap::new(),
                dying: Vec::new(),
                bury_after: None,
                removing: 0,
                starting: 0,
                spare_network: false,
                images: BTreeMap::new(),
                failed: BTreeMap::new(),
                cold: BTreeMap::new(),
                awaited: BTreeMap::new(),
                given: None,
                next: 0,
                pressed: None,
                closed: false,
            }),
            wake: Notify::new(),
            freed: Notify::new(),
            calm: Notify::new(),
            lanes: Semaphore::new(lanes.max(1)),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What may come, and how much of the node it may take.
    pub(crate) fn outlook(&self, outlook: Outlook) {
        let mut state = self.state();
        if state.outlook == outlook {
            return;
        }
        let shapes: Vec<Shape> = outlook.expected.iter().filter_map(Shape::of).collect();
        state.policy.expect(shapes);
        state.outlook = outlook;
        drop(state);
        self.wake.notify_one();
    }

    /// A runner like this was asked for.
    pub(crate) fn arrived(&self, shape: &Shape) {
        let now = self.now_ms();
        self.state().policy.arrived(shape, now);
        self.wake.notify_one();
    }

    /// A living standby of this shape and digest, the oldest first.
    pub(crate) fn take(&self, shape: &Shape, image_id: &str, runner: &str) -> Option<Handle> {
        let mut state = self.state();
        let found = loop {
            let id = state
                .spares
                .iter()
                .find(|(_, spare)| {
                    spare.parked.shape == *shape && spare.parked.image_id == image_id
                })
                .map(|(id, _)| *id)?;
            let spare = state.spares.remove(&id)?;
            if !spare.handle.is_dead() {
                break spare.handle;
            }
            debug!(container = spare.handle.container, "a standby is dead");
            state.dying.push(spare.handle);
        };
        state.awaited.insert(runner.to_owned(), Instant::now());
        drop(state);
        self.wake.notify_one();
        Some(found)
    }

    /// The runner was handed over, or will not be.
    pub(crate) fn served(&self, runner: &str) {
        let mut state = self.state();
        if state.awaited.remove(runner).is_some() {
            state.given = Some(Instant::now());
            drop(state);
            self.calm.notify_waiters();
        }
    }

    /// A cold start begins: nothing is refilled before it ends, and what stands in
    /// its way goes.
    pub(crate) fn cold(&self, takes: Resources) -> Cold<'_> {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.cold.insert(id, takes);
        drop(state);
        self.wake.notify_one();
        Cold { pool: self, id }
    }

    /// A container ended by itself. True when it was a standby.
    pub(crate) fn died(&self, container: &str) -> bool {
        let mut state = self.state();
        let id = state
            .spares
            .iter()
            .find(|(_, spare)| spare.handle.container == container)
            .map(|(id, _)| *id);
        let Some(spare) = id.and_then(|id| state.spares.remove(&id)) else {
            return false;
        };
        info!(container, "a standby ended by itself");
        state.dying.push(spare.handle);
        drop(state);
        self.wake.notify_one();
        true
    }

    /// None of them is good any more: the engine was away, or the fleet is another.
    pub(crate) fn lose_all(&self) {
        let mut state = self.state();
        let all = std::mem::take(&mut state.spares);
        state
            .dying
            .extend(all.into_values().map(|spare| spare.handle));
        // Those being made as well: they are looked up here once they are there.
        for parked in state.making.values_mut() {
            parked.image_id.clear();
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Containers of standbys, for whoever asks the engine about each.
    pub(crate) fn containers(&self) -> Vec<String> {
        self.state()
            .spares
            .values()
            .map(|spare| spare.handle.container.clone())
            .collect()
    }

    /// Some image came, went or got another name.
    pub(crate) fn images_changed(&self) {
        for image in self.state().images.values_mut() {
            image.doubtful = true;
        }
        self.wake.notify_one();
    }

    /// A job is gone, and what it took can be used again.
    pub(crate) fn room_came(&self) {
        self.wake.notify_one();
    }

    /// The engine answers after it did not: what failed meanwhile is tried at once.
    pub(crate) fn engine_is_back(&self) {
        self.state().failed.clear();
        self.images_changed();
    }

    fn press(&self, pressed: Option<Pressure>) {
        let mut state = self.state();
        if state.pressed == pressed {
            return;
        }
        match pressed {
            Some(why) => warn!(?why, "little is left; standbys go"),
            None => info!("there is room for standbys again"),
        }
        state.pressed = pressed;
        drop(state);
        self.wake.notify_one();
    }

    fn image(&self, shape: &Shape, id: Option<&str>) {
        let key = (shape.image.clone(), shape.platform.clone());
        let mut state = self.state();
        let image = state.images.entry(key).or_default();
        image.asking = false;
        image.asked = Some(Instant::now());
        if image.id.as_deref() != id {
            image.id = id.map(str::to_owned);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Nobody needs the processors more than a refill does.
    fn quiet_in(&self) -> Option<Duration> {
        let mut state = self.state();
        state.awaited.retain(|_, since| since.elapsed() < AWAITED);
        if state.closed {
            return None;
        }
        if !state.cold.is_empty() {
            return Some(AWAITED);
        }
        let awaited = state
            .awaited
            .values()
            .map(|since| AWAITED.saturating_sub(since.elapsed()));
        let settle = state.given.map(|at| SETTLE.saturating_sub(at.elapsed()));
        awaited.chain(settle).max().filter(|wait| !wait.is_zero())
    }

    /// Waits for its turn among the refills.
    async fn turn(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let lane = self.lanes.acquire().await.ok()?;
        loop {
            // Asked for before the look, so that no word is missed.
            let calm = self.calm.notified();
            let Some(wait) = self.quiet_in() else {
                return Some(lane);
            };
            let _ = tokio::time::timeout(wait, calm).await;
        }
    }

    fn holds_slots(&self) -> bool {
        let state = self.state();
        !state.spares.is_empty() || !state.dying.is_empty() || state.starting + state.removing > 0
    }

    /// Gives one up so that a cold start gets its slot.
    fn sacrifice(&self) {
        let mut state = self.state();
        if let Some((_, spare)) = state.spares.pop_first() {
            state.dying.push(spare.handle);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Makes no more, and waits until those that are there are removed.
    pub(crate) async fn close(&self) {
        self.state().closed = true;
        self.calm.notify_waiters();
        self.wake.notify_one();
        let gone = async {
            loop {
                let freed = self.freed.notified();
                if !self.holds_slots() {
                    return;
                }
                freed.await;
            }
        };
        if tokio::time::timeout(END, gone).await.is_err() {
            info!("left standbys to end by themselves; the next start removes them");
        }
    }
}

/// A cold start under way.
pub(crate) struct Cold<'a> {
    pool: &'a Pool,
    id: u64,
}

impl Drop for Cold<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.cold.remove(&self.id);
        state.spare_network = self.pool.on;
        drop(state);
        self.pool.calm.notify_waiters();
        self.pool.wake.notify_one();
    }
}

/// Keeps as many ready as the policy wants, until the runtime is dropped.
pub(crate) async fn keep(inner: Weak<Inner>, pool: Arc<Pool>) {
    if !pool.on {
        return;
    }
    let mut work: JoinSet<()> = JoinSet::new();
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        if let Some(docker) = strong.docker() {
            strong.look_at_images(&docker, &mut work);
            strong.carry_out(&docker, &mut work);
        }
        drop(strong);
        tokio::select! {
            () = pool.wake.notified() => {}
            Some(done) = work.join_next(), if !work.is_empty() => {
                if let Err(error) = done {
                    warn!(%error, "work on a standby was aborted");
                }
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl Inner {
    /// Looks at what the host has left; to be called again and again.
    pub(crate) fn press_standbys(&self, facts: &EngineFacts) {
        let pool = &self.standby;
        if !pool.on {
            return;
        }
        let was = pool.state().pressed == Some(Pressure::Memory);
        let memory = std::fs::read_to_string(&self.config.meminfo)
            .ok()
            .and_then(|text| Memory::of(&text));
        let pressed = if memory.is_some_and(|memory| memory.is_short(was)) {
            Some(Pressure::Memory)
        } else if self.enough_disk(facts).is_err() {
            Some(Pressure::Disk)
        } else {
            None
        };
        pool.press(pressed);
    }

    /// Asks for the digest of each image that matters, pulling what is missing.
    fn look_at_images(self: &Arc<Self>, docker: &Docker, work: &mut JoinSet<()>) {
        let now = self.standby.now_ms();
        let mut state = self.standby.state();
        if state.closed {
            return;
        }
        let shapes = state.policy.shapes(now);
        let wanted: Vec<_> = shapes
            .iter()
            .map(|shape| (shape.image.clone(), shape.platform.clone()))
            .collect();
        state
            .images
            .retain(|key, image| image.asking || wanted.contains(key));
        for shape in shapes {
            let key = (shape.image.clone(), shape.platform.clone());
            let image = state.images.entry(key).or_default();
            let known = image.asked.is_some_and(|at| at.elapsed() < IMAGE_KNOWN);
            if image.asking || (known && !image.doubtful) {
                continue;
            }
            image.asking = true;
            image.doubtful = false;
            let (inner, docker) = (self.clone(), docker.clone());
            work.spawn(async move {
                let found = inner.image_of(&docker, &shape).await;
                if let Err(error) = &found {
                    debug!(%error, image = shape.image, "no standby of this image");
                }
                inner.standby.image(&shape, found.ok().as_deref());
            });
        }
    }

    /// The digest, once the image and its runner program are on the node.
    async fn image_of(&self, docker: &Docker, shape: &Shape) -> Result<String, RuntimeError> {
        let id = self
            .images
            .ensure(docker, &shape.image, &shape.platform, self.config.pull)
            .await?;
        self.volumes.program(docker, &id, &shape.platform).await?;
        Ok(id)
    }

    fn room(&self, state: &State) -> Room {
        let running: Vec<Resources> = self
            .takes()
            .into_iter()
            .chain(state.cold.values().copied())
            .collect();
        let capacity = state.outlook.capacity.unwrap_or(Resources {
            cpu_millis: u32::MAX,
            memory_bytes: u64::MAX,
            gpus: 0,
        });
        let cpu = running
            .iter()
            .fold(0u32, |sum, one| sum.saturating_add(one.cpu_millis));
        let memory = running
            .iter()
            .fold(0u64, |sum, one| sum.saturating_add(one.memory_bytes));
        let slots = match state.outlook.max_runners {
            0 => self.slots.usable(),
            most => self.slots.usable().min(most),
        };
        let taken = u32::try_from(running.len()).unwrap_or(u32::MAX);
        Room {
            cpu_millis: capacity.cpu_millis.saturating_sub(cpu),
            memory_bytes: capacity.memory_bytes.saturating_sub(memory),
            slots: slots.saturating_sub(taken),
        }
    }

    /// Plans, and begins what the plan says.
    fn carry_out(self: &Arc<Self>, docker: &Docker, work: &mut JoinSet<()>) {
        let pool = &self.standby;
        let now = pool.now_ms();
        let mut state = pool.state();
        let mut room = self.room(&state);
        if state.closed || state.outlook.cordoned || state.pressed.is_some() {
            room.slots = 0;
        }
        let there: Vec<Parked> = state
            .spares
            .values()
            .map(|spare| spare.parked.clone())
            .chain(state.making.values().cloned())
            .collect();
        let images: BTreeMap<(String, String), String> = state
            .images
            .iter()
            .filter_map(|(key, image)| Some((key.clone(), image.id.clone()?)))
            .collect();
        let plan: Plan = state.policy.plan(now, &there, room, |shape| {
            images
                .get(&(shape.image.clone(), shape.platform.clone()))
                .map(String::as_str)
        });
        for id in plan.evict {
            if let Some(spare) = state.spares.remove(&id) {
                debug!(container = spare.handle.container, "a standby goes");
                state.dying.push(spare.handle);
            } else if let Some(parked) = state.making.get_mut(&id) {
                // Of no digest: it goes as soon as it is there.
                parked.image_id.clear();
            }
        }
        if state.bury_after.is_none_or(|at| Instant::now() >= at) {
            for handle in std::mem::take(&mut state.dying) {
                state.removing += 1;
                let (inner, docker) = (self.clone(), docker.clone());
                work.spawn(async move { inner.unpark(&docker, handle).await });
            }
        }
        state
            .failed
            .retain(|_, (until, pause)| until.elapsed() < *pause);
        for shape in plan.make {
            let paused = state
                .failed
                .get(&shape)
                .is_some_and(|(until, _)| *until > Instant::now());
            let Some(image_id) = images.get(&(shape.image.clone(), shape.platform.clone())) else {
                continue;
            };
            if paused || state.closed {
                continue;
            }
            let id = state.next;
            state.next += 1;
            let parked = Parked {
                id,
                shape: shape.clone(),
                image_id: image_id.clone(),
                since_ms: now,
            };
            state.making.insert(id, parked);
            let inner = self.clone();
            work.spawn(async move { inner.park(id, shape).await });
        }
        if !state.closed && room.slots > 0 && std::mem::take(&mut state.spare_network) {
            let (inner, docker) = (self.clone(), docker.clone());
            work.spawn(async move { inner.spare_network(&docker).await });
        }
        drop(state);
        pool.freed.notify_waiters();
    }

    /// Standbys use the networks that were made beforehand: the next cold start is not to
    /// wait for one.
    async fn spare_network(&self, docker: &Docker) {
        let _lane = self.standby.turn().await;
        if let Err(error) = self.slots.spare(docker).await {
            debug!(%error, "no network was made ahead");
        }
    }

    /// Makes one when nobody needs the engine more.
    async fn park(self: Arc<Self>, id: u64, shape: Shape) {
        let pool = &self.standby;
        let made = async {
            let _lane = pool.turn().await;
            {
                let mut state = pool.state();
                // Somebody may want it no more.
                let wanted = state
                    .making
                    .get(&id)
                    .is_some_and(|one| !one.image_id.is_empty());
                if state.closed || !wanted {
                    return Ok(None);
                }
                state.starting += 1;
            }
            let made = self.start_sandbox(&shape.spec(), For::Nobody).await;
            pool.state().starting -= 1;
            made.map(Some)
        }
        .await;
        let mut state = pool.state();
        let parked = state.making.remove(&id);
        state.spare_network = true;
        match (made, parked) {
            (Ok(Some((handle, image_id))), Some(parked)) => {
                state.failed.remove(&shape);
                let spare = Spare {
                    parked: Parked {
                        since_ms: pool.now_ms(),
                        ..parked
                    },
                    handle,
                };
                if spare.parked.image_id == image_id && !state.closed {
                    debug!(
                        container = spare.handle.container,
                        image = shape.image,
                        "a standby waits"
                    );
                    state.spares.insert(id, spare);
                } else {
                    state.dying.push(spare.handle);
                }
            }
            (Ok(Some((handle, _))), None) => state.dying.push(handle),
            (Ok(None), _) => {}
            (Err(error), _) => {
                let pause = state
                    .failed
                    .get(&shape)
                    .map_or(FIRST_PAUSE, |(_, pause)| (*pause * 2).min(LONGEST_PAUSE));
                warn!(%error, image = shape.image, pause_s = pause.as_secs(), "a standby could not be made");
                state.failed.insert(shape, (Instant::now() + pause, pause));
            }
        }
        drop(state);
        pool.wake.notify_one();
        pool.freed.notify_waiters();
    }

    /// Removes one and gives its slot back.
    async fn unpark(self: Arc<Self>, docker: &Docker, handle: Handle) {
        let removed = self.discard(docker, &handle).await;
        if let Some(slot) = handle.slot.filter(|_| removed) {
            self.give_back(slot, handle.kind).await;
        }
        let mut state = self.standby.state();
        state.removing -= 1;
        state.bury_after = None;
        if !removed {
            state.bury_after = Some(Instant::now() + FIRST_PAUSE);
            state.dying.push(handle);
        }
        drop(state);
        self.standby.freed.notify_waiters();
    }

    /// Takes a standby for this runner, when there is one.
    pub(crate) async fn take_standby(
        &self,
        docker: &Docker,
        runner: &str,
        spec: &RunnerSpec,
    ) -> Result<Option<Handle>, RuntimeError> {
        let pool = &self.standby;
        let Some(shape) = Shape::of(spec).filter(|_| pool.on) else {
            return Ok(None);
        };
        pool.arrived(&shape);
        let image_id = self
            .images
            .ensure(docker, &shape.image, &shape.platform, self.config.pull)
            .await?;
        pool.image(&shape, Some(&image_id));
        Ok(pool.take(&shape, &image_id, runner))
    }

    /// A slot for a cold start; when there is none left, a standby gives its own.
    pub(crate) async fn slot_for_a_job(
        &self,
        docker: &Docker,
        kind: Kind,
    ) -> Result<u32, RuntimeError> {
        let pool = &self.standby;
        let deadline = tokio::time::Instant::now() + SLOT;
        loop {
            // Asked for before the look, so that no slot is missed.
            let freed = pool.freed.notified();
            let refusal = match self.slots.take(docker, kind).await {
                Err(error) if error.reason == agent_core::ErrorReason::OutOfSlots => error,
                other => return other,
            };
            if !pool.holds_slots() {
                return Err(refusal);
            }
            info!("a standby gives its slot to a job");
            pool.sacrifice();
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                return Err(refusal);
            }
        }
    }
}
