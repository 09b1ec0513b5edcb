//! The one world behind its lock, the clock, and who is told of changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, watch};

use super::webhooks::Sender;
use crate::machine::{Outgoing, World};

/// Deliveries that are sent at the same time.
const SENDERS: usize = 64;

/// Milliseconds since the epoch by the machine's clock.
pub(super) fn real_now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

struct Clock {
    is_virtual: bool,
}

pub(super) struct Shared {
    world: Mutex<World>,
    clock: Mutex<Clock>,
    /// Counts up when the state may have changed.
    changed: watch::Sender<u64>,
    /// Counts up with every request as well.
    seen: watch::Sender<u64>,
    sender: Sender,
    permits: Arc<Semaphore>,
    /// Requests that are open, by credential.
    open: Mutex<BTreeMap<String, u64>>,
    ending: AtomicBool,
}

fn held<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // a panic of a handler leaves the world readable: the next check of a test tells
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(world: World, is_virtual: bool) -> Self {
        Self {
            world: Mutex::new(world),
            clock: Mutex::new(Clock { is_virtual }),
            changed: watch::Sender::new(0),
            seen: watch::Sender::new(0),
            sender: Sender::new(),
            permits: Arc::new(Semaphore::new(SENDERS)),
            open: Mutex::new(BTreeMap::new()),
            ending: AtomicBool::new(false),
        }
    }

    pub(super) fn is_virtual(&self) -> bool {
        held(&self.clock).is_virtual
    }

    pub(super) fn set_virtual(&self, on: bool) {
        held(&self.clock).is_virtual = on;
    }

    fn advance(&self, world: &mut World) {
        if !self.is_virtual() {
            world.advance(real_now_ms());
        }
    }

    /// Changes the world, sends what is due, wakes who waits.
    pub(super) fn with<T>(this: &Arc<Self>, f: impl FnOnce(&mut World) -> T) -> T {
        let (value, due) = {
            let mut world = held(&this.world);
            this.advance(&mut world);
            let value = f(&mut world);
            (value, world.take_deliveries())
        };
        Self::send(this, due);
        this.changed.send_modify(|n| *n += 1);
        this.seen.send_modify(|n| *n += 1);
        value
    }

    /// The same for what changes nothing that anybody waits for.
    pub(super) fn quietly<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        let mut world = held(&self.world);
        self.advance(&mut world);
        f(&mut world)
    }

    /// The server ends: long polls and waits are answered now.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.changed.send_modify(|n| *n += 1);
        self.seen.send_modify(|n| *n += 1);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    pub(super) fn note_seen(&self) {
        self.seen.send_modify(|n| *n += 1);
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn sightings(&self) -> watch::Receiver<u64> {
        self.seen.subscribe()
    }

    fn send(this: &Arc<Self>, due: Vec<Outgoing>) {
        for delivery in due {
            let this = Arc::clone(this);
            tokio::spawn(async move {
                let attempt = delivery.attempt;
                let outcome = {
                    let Ok(_permit) = this.permits.acquire().await else {
                        return;
                    };
                    this.sender.send(delivery).await
                };
                Self::with(&this, |w| w.delivery_done(attempt, outcome));
            });
        }
    }

    /// Counts a request of this credential as open until the guard is dropped; gives the count with this one.
    pub(super) fn enter(self: &Arc<Self>, credential: &str) -> (u64, Open) {
        let mut open = held(&self.open);
        let n = open.entry(credential.to_owned()).or_default();
        *n += 1;
        (
            *n,
            Open {
                shared: Arc::clone(self),
                credential: credential.to_owned(),
            },
        )
    }
}

pub(super) struct Open {
    shared: Arc<Shared>,
    credential: String,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = held(&self.shared.open);
        if let Some(n) = open.get_mut(&self.credential) {
            *n -= 1;
            if *n == 0 {
                open.remove(&self.credential);
            }
        }
    }
}

/// Moves the clock when a timer is due or a delivery that was held back must leave.
pub(super) async fn run_timers(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut changed = shared.changes();
    loop {
        changed.borrow_and_update();
        let (now, next) = shared.quietly(|w| (w.now_ms(), w.next_timer_ms()));
        let wait = match next {
            Some(_) if shared.is_virtual() => Duration::from_secs(3600),
            Some(t) => Duration::from_millis(t.saturating_sub(now).clamp(1, 3_600_000)),
            None => Duration::from_secs(3600),
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => Shared::with(&shared, |_| ()),
            _ = changed.changed() => {}
            _ = stopped.wait_for(|s| *s) => return,
        }
    }
}
