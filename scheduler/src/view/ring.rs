//! Which entities the last 65,536 facts changed, for watchers that resume.

use std::collections::VecDeque;

use scheduler_core::model::{JobId, NodeName, RunnerName};

/// Facts a watcher may be behind before it gets a snapshot.
pub(super) const FACTS: u64 = 65_536;

/// One changed entity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    Job(JobId),
    Runner(RunnerName),
    Node(NodeName),
}

/// A bounded memory of changes.
#[derive(Debug)]
pub(super) struct Ring {
    entries: VecDeque<(u64, Touched)>,
    /// Everything after this sequence is known.
    floor: u64,
    head: u64,
}

impl Ring {
    pub(super) fn new(head: u64) -> Self {
        Self {
            entries: VecDeque::new(),
            floor: head,
            head,
        }
    }

    pub(super) fn push(&mut self, sequence: u64, touched: Vec<Touched>) {
        self.head = sequence;
        let entries = touched.into_iter().map(|touched| (sequence, touched));
        self.entries.extend(entries);
        let floor = sequence.saturating_sub(FACTS);
        if floor > self.floor {
            self.floor = floor;
            while self.entries.front().is_some_and(|(at, _)| *at <= floor) {
                self.entries.pop_front();
            }
        }
    }

    /// Changes after a sequence; `None` when it is too old or not of this store.
    pub(super) fn after(&self, since: u64) -> Option<impl Iterator<Item = &(u64, Touched)>> {
        if since < self.floor || since > self.head {
            return None;
        }
        let start = self.entries.partition_point(|(at, _)| *at <= since);
        Some(self.entries.range(start..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_resumes_within_the_ring_and_is_refused_behind_it() {
        let mut ring = Ring::new(10);
        for sequence in 11..=FACTS + 20 {
            ring.push(sequence, vec![Touched::Job(JobId(sequence))]);
        }
        assert_eq!(ring.after(FACTS + 20).map(Iterator::count), Some(0));
        assert_eq!(ring.after(FACTS + 18).map(Iterator::count), Some(2));
        assert_eq!(ring.after(20).map(Iterator::count), Some(FACTS as usize));
        assert!(ring.after(19).is_none(), "older than the ring");
        assert!(ring.after(FACTS + 21).is_none(), "from the future");
    }

    #[test]
    fn nothing_before_the_start_is_known() {
        let ring = Ring::new(10);
        assert!(ring.after(9).is_none());
        assert_eq!(ring.after(10).map(Iterator::count), Some(0));
    }
}
