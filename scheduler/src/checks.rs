//! Looks at a node's sandbox that somebody waits for: one at a time for each node.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use longshore_proto::v1::SandboxChecked;
use scheduler_core::model::NodeName;
use tokio::sync::oneshot;

/// All looks under way. Bounded by the number of nodes.
#[derive(Debug, Default)]
pub struct Checks {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    waiting: BTreeMap<NodeName, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    answer: oneshot::Sender<SandboxChecked>,
}

impl Checks {
    /// Begins one; none while another of this node is waited for.
    pub fn begin(&self, node: &NodeName) -> Option<(u64, oneshot::Receiver<SandboxChecked>)> {
        let mut state = self.lock();
        // Whoever left is no reason to refuse the next.
        state
            .waiting
            .retain(|_, waiting| !waiting.answer.is_closed());
        if state.waiting.contains_key(node) {
            return None;
        }
        state.last += 1;
        let id = state.last;
        let (answer, answered) = oneshot::channel();
        state.waiting.insert(node.clone(), Waiting { id, answer });
        Some((id, answered))
    }

    /// A node's answer. One that nobody waits for is dropped.
    pub fn answered(&self, node: &NodeName, told: SandboxChecked) {
        let mut state = self.lock();
        if state
            .waiting
            .get(node)
            .is_some_and(|waiting| waiting.id == told.id)
            && let Some(waiting) = state.waiting.remove(node)
        {
            // Whoever asked may have left.
            let _ = waiting.answer.send(told);
        }
    }

    /// The node's stream ended: its answer will not come.
    pub fn lost(&self, node: &NodeName) {
        self.lock().waiting.remove(node);
    }

    /// No code panics while holding the lock; a poisoned one is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_only_its_own_answer() {
        let checks = Checks::default();
        let (one, two) = (NodeName::new("n1"), NodeName::new("n2"));
        let (id, mut first) = checks.begin(&one).unwrap();
        assert!(checks.begin(&one).is_none());
        let (other, _second) = checks.begin(&two).unwrap();
        let told = |id| SandboxChecked {
            id,
            ..SandboxChecked::default()
        };
        checks.answered(&one, told(other));
        assert!(first.try_recv().is_err(), "another's answer");
        checks.answered(&one, told(id));
        assert_eq!(first.try_recv().unwrap().id, id);
        assert!(checks.begin(&one).is_some());
    }

    #[test]
    fn who_left_and_who_lost_the_stream_block_nobody() {
        let checks = Checks::default();
        let node = NodeName::new("n1");
        drop(checks.begin(&node));
        let (_, mut waiting) = checks.begin(&node).unwrap();
        checks.lost(&node);
        assert!(waiting.try_recv().is_err());
        assert!(checks.begin(&node).is_some());
    }
}
