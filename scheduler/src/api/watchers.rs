//! Streams that are being followed: so many in all, and so many of one caller.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tonic::{Code, Request, Status};

use super::errors;
use crate::quota;

/// WatchFleet and StreamRunnerLogs at once, at most.
pub const WATCHERS: usize = 2_048;
/// Of one caller, at most.
pub const OF_ONE: usize = 512;

/// Who follows what.
#[derive(Debug, Default)]
pub struct Watchers {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    callers: BTreeMap<String, usize>,
}

/// A place among them, given back on drop.
#[derive(Debug)]
pub struct Place {
    watchers: Arc<Watchers>,
    caller: String,
}

impl Watchers {
    /// No code panics while holding it; poisoned counts are still whole.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for whoever sent this request.
    pub fn enter<T>(self: &Arc<Self>, request: &Request<T>) -> Result<Place, Status> {
        self.place(quota::caller(request.extensions()))
    }

    fn place(self: &Arc<Self>, caller: String) -> Result<Place, Status> {
        let mut counts = self.counts();
        let own = counts.callers.get(&caller).copied().unwrap_or(0);
        if counts.all >= WATCHERS || own >= OF_ONE {
            return Err(errors::status(
                Code::ResourceExhausted,
                "too_many_watchers",
                &format!(
                    "{own} streams of this caller and {} in all are open",
                    counts.all
                ),
                "end some; one WatchFleet tells everything about the fleet",
            ));
        }
        counts.all += 1;
        counts.callers.insert(caller.clone(), own + 1);
        drop(counts);
        let watchers = Arc::clone(self);
        Ok(Place { watchers, caller })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.watchers.counts();
        counts.all -= 1;
        if let Some(own) = counts.callers.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                counts.callers.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_cannot_take_all_places_and_places_come_back() {
        let watchers = Arc::new(Watchers::default());
        let enter = |caller: usize| watchers.place(caller.to_string());
        let mine: Vec<_> = (0..OF_ONE).map(|_| enter(0).unwrap()).collect();
        let refused = enter(0).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let others: Vec<_> = (OF_ONE..WATCHERS)
            .map(|at| enter(1 + at / OF_ONE).unwrap())
            .collect();
        assert!(enter(99).is_err(), "all places are taken");
        drop((mine, others));
        assert!(enter(99).is_ok());
        assert!(watchers.counts().callers.is_empty());
    }
}
