//! Who may stay when more connections come than there is room for. No clock, no socket.
//!
//! A connection that comes gets its place as long as one of the others is idle:
//! first goes who never asked anything, the longest first, then who asked and
//! has been quiet the longest. Who waits for an answer is never turned out. One
//! address off this host holds at most half of the places, so that a stranger's
//! flood turns out the stranger's own connections first.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

/// How long a connection may be idle.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until its first request is there: handshake, header and all.
    pub first: Duration,
    /// Between two requests.
    pub next: Duration,
}

/// The connections of one listener.
#[derive(Debug)]
pub struct Crowd {
    room: usize,
    patience: Patience,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    members: HashMap<u64, Member>,
    idle: Idle,
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Debug, Default)]
struct Address {
    members: usize,
    idle: Idle,
}

#[derive(Debug)]
struct Member {
    address: IpAddr,
    asked: bool,
    /// Of the connection, or of the end of its last request.
    since: Instant,
    busy: u32,
    leave: CancellationToken,
}

/// Idle connections, the longest idle first.
#[derive(Debug, Default)]
struct Idle {
    silent: BTreeSet<(Instant, u64)>,
    asked: BTreeSet<(Instant, u64)>,
}

impl Idle {
    fn kind(&mut self, asked: bool) -> &mut BTreeSet<(Instant, u64)> {
        match asked {
            true => &mut self.asked,
            false => &mut self.silent,
        }
    }

    /// Who goes first.
    fn first(&self) -> Option<u64> {
        let first = self.silent.first().or_else(|| self.asked.first());
        first.map(|(_, id)| *id)
    }

    /// Who came to rest at or before these times.
    fn overdue(&self, silent: Option<Instant>, asked: Option<Instant>) -> Option<u64> {
        let of = |kind: &BTreeSet<(Instant, u64)>, before: Option<Instant>| {
            let (since, id) = kind.first()?;
            (*since <= before?).then_some(*id)
        };
        of(&self.silent, silent).or_else(|| of(&self.asked, asked))
    }
}

impl State {
    /// Enters a connection without a request into the lists, or takes it out.
    fn list(&mut self, id: u64, idle: bool) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let entry = (member.since, id);
        let own = self.addresses.get_mut(&member.address).map(|a| &mut a.idle);
        for lists in own.into_iter().chain([&mut self.idle]) {
            let kind = lists.kind(member.asked);
            match idle {
                true => kind.insert(entry),
                false => kind.remove(&entry),
            };
        }
    }

    fn remove(&mut self, id: u64) {
        self.list(id, false);
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        if let Some(address) = self.addresses.get_mut(&member.address) {
            address.members -= 1;
            if address.members == 0 {
                self.addresses.remove(&member.address);
            }
        }
    }

    fn turn_out(&mut self, id: Option<u64>) -> Option<()> {
        let id = id?;
        self.members.get(&id)?.leave.cancel();
        self.remove(id);
        Some(())
    }
}

/// A connection's place; given back when the last clone goes.
#[derive(Clone, Debug)]
pub struct Place {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    crowd: Arc<Crowd>,
    id: u64,
    leave: CancellationToken,
}

/// A request under way: its connection stays.
#[derive(Debug)]
pub struct Busy {
    held: Arc<Held>,
}

impl Crowd {
    /// Room for so many connections.
    pub fn new(room: usize, patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            room: room.max(1),
            patience,
            state: Mutex::default(),
        })
    }

    /// No code panics while holding it; a poisoned state is still whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, an idle one's if need be; `None` when nobody is idle.
    pub fn enter(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Place> {
        let mut state = self.state();
        let share = match address.is_loopback() {
            // This host's own programs, a proxy with everybody behind it among them.
            true => self.room,
            false => (self.room / 2).max(1),
        };
        if let Some(own) = state.addresses.get(&address)
            && own.members >= share
        {
            let first = own.idle.first();
            state.turn_out(first)?;
        }
        if state.members.len() >= self.room {
            let first = state.idle.first();
            state.turn_out(first)?;
        }
        let id = state.next;
        state.next += 1;
        let leave = CancellationToken::new();
        let member = Member {
            address,
            asked: false,
            since: now,
            busy: 0,
            leave: leave.clone(),
        };
        state.members.insert(id, member);
        state.addresses.entry(address).or_default().members += 1;
        state.list(id, true);
        drop(state);
        let crowd = Arc::clone(self);
        Some(Place {
            held: Arc::new(Held { crowd, id, leave }),
        })
    }

    /// Turns out who has been idle for too long; how many they were.
    pub fn sweep(&self, now: Instant) -> usize {
        let silent = now.checked_sub(self.patience.first);
        let asked = now.checked_sub(self.patience.next);
        let mut state = self.state();
        let mut gone = 0;
        loop {
            let overdue = state.idle.overdue(silent, asked);
            if state.turn_out(overdue).is_none() {
                return gone;
            }
            gone += 1;
        }
    }

    /// Turns out the one that has to go first, if there is one.
    pub fn make_room(&self) {
        let mut state = self.state();
        let first = state.idle.first();
        state.turn_out(first);
    }

    /// Open connections.
    pub fn len(&self) -> usize {
        self.state().members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Place {
    /// Resolves when the place went to somebody else.
    pub async fn lost(&self) {
        self.held.leave.cancelled().await;
    }

    /// A request came: until the end of its answer the connection is not idle.
    pub fn busy(&self) -> Busy {
        let held = Arc::clone(&self.held);
        let mut state = held.crowd.state();
        let idle = state.members.get(&held.id).map(|member| member.busy == 0);
        if idle == Some(true) {
            state.list(held.id, false);
        }
        if let Some(member) = state.members.get_mut(&held.id) {
            member.busy += 1;
            member.asked = true;
        }
        drop(state);
        Busy { held }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.held.crowd.state();
        if let Some(member) = state.members.get_mut(&self.held.id) {
            member.busy -= 1;
            if member.busy == 0 {
                member.since = Instant::now();
                state.list(self.held.id, true);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.crowd.state().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const FIRST: Duration = Duration::from_secs(15);
    const NEXT: Duration = Duration::from_secs(300);

    fn crowd(room: usize) -> (Arc<Crowd>, Instant) {
        let patience = Patience {
            first: FIRST,
            next: NEXT,
        };
        (Crowd::new(room, patience), Instant::now())
    }

    fn lost(place: &Place) -> bool {
        place.held.leave.is_cancelled()
    }

    #[test]
    fn who_never_asked_goes_before_who_did_and_who_waits_stays() {
        let (crowd, now) = crowd(3);
        let waiting = crowd.enter(HERE, now).unwrap();
        let request = waiting.busy();
        let asked = crowd.enter(HERE, now).unwrap();
        drop(asked.busy());
        let silent = crowd.enter(HERE, now).unwrap();
        let fourth = crowd.enter(HERE, now).unwrap();
        assert_eq!((lost(&silent), lost(&asked)), (true, false));
        let fifth = crowd.enter(HERE, now).unwrap();
        assert_eq!((lost(&fourth), lost(&asked)), (true, false));
        let _busy = fifth.busy();
        let sixth = crowd.enter(HERE, now).unwrap();
        assert!(lost(&asked), "nobody else was idle");
        let _busy_too = sixth.busy();
        assert!(crowd.enter(HERE, now).is_none(), "all wait for an answer");
        drop(request);
        assert!(crowd.enter(HERE, now).is_some());
        assert!(lost(&waiting));
    }

    #[test]
    fn places_come_back_in_whatever_order_things_end() {
        let (crowd, now) = crowd(2);
        for _ in 0..100 {
            let place = crowd.enter(HERE, now).unwrap();
            let (one, two) = (place.busy(), place.busy());
            drop(place);
            drop(one);
            assert_eq!(crowd.len(), 1, "its answer is still under way");
            drop(two);
            assert!(crowd.is_empty());
        }
        let state = crowd.state();
        assert!(state.addresses.is_empty() && state.members.is_empty());
        assert!(state.idle.first().is_none());
    }

    #[test]
    fn a_stranger_turns_out_only_its_own_once_it_holds_half() {
        let (crowd, now) = crowd(10);
        let stranger = "192.0.2.7".parse().unwrap();
        let others: Vec<_> = (0..5).map(|_| crowd.enter(HERE, now).unwrap()).collect();
        let flood: Vec<_> = (0..100)
            .map(|_| crowd.enter(stranger, now).unwrap())
            .collect();
        assert!(others.iter().all(|place| !lost(place)));
        assert_eq!(flood.iter().filter(|place| !lost(place)).count(), 5);
    }

    #[test]
    fn idle_ones_leave_in_time_and_busy_ones_do_not() {
        let (crowd, now) = crowd(10);
        let silent = crowd.enter(HERE, now).unwrap();
        let asked = crowd.enter(HERE, now).unwrap();
        drop(asked.busy());
        let waiting = crowd.enter(HERE, now).unwrap();
        let _busy = waiting.busy();
        assert_eq!(crowd.sweep(now + FIRST - Duration::from_secs(1)), 0);
        assert_eq!(crowd.sweep(now + FIRST), 1);
        assert!(lost(&silent) && !lost(&asked));
        assert_eq!(crowd.sweep(Instant::now() + NEXT), 1);
        assert!(lost(&asked) && !lost(&waiting));
    }
}
