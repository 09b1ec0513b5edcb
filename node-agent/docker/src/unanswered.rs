//! What the engine was asked to make and never said it had.
//!
//! An engine that hangs may make it long after nobody waits for it any more. So its names
//! are kept, its slot is given to nobody, and once the engine answers again it is removed,
//! and looked for again until what was asked long ago must have been done.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use agent_core::model::Condition;
use agent_core::runtime::RuntimeError;
use bollard::Docker;
use tracing::{debug, info};

use crate::ending::remove_group;
use crate::engine::remove_container;
use crate::runtime::{Inner, lock};
use crate::slots::Kind;

/// After the first look that found it gone, a late one may still come for this long.
const LATE: Duration = Duration::from_secs(30);
/// More are not remembered; they are swept at the agent's next start.
const MOST: usize = 1_024;

/// A sandbox that may or may not come to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unanswered {
    pub(crate) container: String,
    pub(crate) work_volume: String,
    pub(crate) cgroup_parent: String,
    /// Given to nobody until then.
    pub(crate) slot: Option<(u32, Kind)>,
    /// What the engine did not answer.
    pub(crate) why: String,
}

/// All of them, each with the time when it was first found gone.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Vec<(Unanswered, Option<Instant>)>>);

impl Ledger {
    /// False when there is no room for it.
    pub(crate) fn enter(&self, one: Unanswered) -> bool {
        let mut list = lock(&self.0);
        let room = list.len() < MOST;
        if room {
            list.push((one, None));
        }
        room
    }

    fn all(&self) -> Vec<Unanswered> {
        lock(&self.0).iter().map(|(one, _)| one.clone()).collect()
    }

    /// It is not there now. True when it is not expected any more either; then it is
    /// struck out.
    fn is_gone(&self, one: &Unanswered, now: Instant) -> bool {
        let mut list = lock(&self.0);
        let Some(at) = list.iter().position(|(other, _)| other == one) else {
            return false;
        };
        let first = *list[at].1.get_or_insert(now);
        let over = now.saturating_duration_since(first) >= LATE;
        if over {
            list.swap_remove(at);
        }
        over
    }

    /// Keeps new work away until the engine was asked for each of them. What may still come
    /// late holds its slot and nothing else.
    pub(crate) fn condition(&self) -> Option<Condition> {
        let list = lock(&self.0);
        let unasked = list.iter().filter(|(_, gone)| gone.is_none());
        let (last, _) = unasked.clone().next_back()?;
        Some(Condition {
            kind: "engine_down",
            detail: format!(
                "the engine left {} of this agent's calls without an answer, the last: {}",
                unasked.count(),
                last.why
            ),
            next_step:
                "look at the engine's log and load (journalctl -u docker); restart it if it hangs"
                    .into(),
            image: String::new(),
        })
    }
}

impl Inner {
    /// Removes what an engine that answers again has made meanwhile.
    pub(crate) async fn settle(&self, docker: &Docker) -> Result<(), RuntimeError> {
        for one in self.unanswered.all() {
            remove_container(docker, &one.container).await?;
            self.volumes.delete(docker, &one.work_volume).await?;
            if self.unanswered.is_gone(&one, Instant::now()) {
                remove_group(&one.cgroup_parent).await;
                if let Some((slot, kind)) = one.slot {
                    self.give_back(slot, kind).await;
                }
                info!(
                    container = one.container,
                    "nothing came of an unanswered call"
                );
            } else {
                debug!(container = one.container, "not there; it may still come");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_answered_is_expected_for_a_while_and_told() {
        let one = |name: &str| Unanswered {
            container: name.into(),
            work_volume: String::new(),
            cgroup_parent: String::new(),
            slot: None,
            why: format!("making container {name}: no answer"),
        };
        let ledger = Ledger::default();
        assert_eq!(ledger.condition(), None);
        assert!(ledger.enter(one("a")) && ledger.enter(one("b")));
        let told = ledger.condition().unwrap();
        assert_eq!(told.kind, "engine_down");
        assert!(told.detail.contains("2 of") && told.detail.contains("container b"));
        let begin = Instant::now();
        assert!(!ledger.is_gone(&one("a"), begin), "it may still come");
        let told = ledger.condition().unwrap();
        assert!(told.detail.contains("1 of"), "one was not asked for yet");
        assert!(!ledger.is_gone(&one("a"), begin + LATE / 2));
        assert!(!ledger.is_gone(&one("b"), begin + LATE), "its own time");
        assert_eq!(
            ledger.condition(),
            None,
            "what may come late holds its slot only"
        );
        assert!(ledger.is_gone(&one("a"), begin + LATE));
        assert!(!ledger.is_gone(&one("a"), begin + LATE), "struck out");
        assert!(ledger.is_gone(&one("b"), begin + 2 * LATE));
        assert_eq!(ledger.condition(), None);
        for at in 0..MOST {
            assert!(ledger.enter(one(&at.to_string())));
        }
        assert!(!ledger.enter(one("one too many")));
    }
}
