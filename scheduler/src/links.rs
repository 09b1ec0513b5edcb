//! Streams to the nodes: one outbox per attached node, always holding the newest word only.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use longshore_proto::v1::CheckSandbox;
use scheduler_core::{
    effect::NodeIntent,
    model::{NodeName, RunnerName},
};
use secrecy::SecretString;
use tokio::sync::Notify;

use crate::{checks::Checks, ports::NodeLink};

/// All open streams of this process.
#[derive(Debug, Default)]
pub struct Links {
    nodes: Mutex<BTreeMap<NodeName, Arc<Outbox>>>,
    sessions: AtomicU64,
    /// Looks at sandboxes that somebody waits for.
    pub checks: Checks,
}

/// What waits to be sent to one node. At most one intent and one registration
/// per runner: bounded by the node's runners, whatever the reader does.
#[derive(Debug)]
pub struct Outbox {
    pub session: u64,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    intent: Option<NodeIntent>,
    registrations: BTreeMap<RunnerName, SecretString>,
    check: Option<CheckSandbox>,
    closed: bool,
}

/// One message for a node.
#[derive(Debug)]
pub enum Outgoing {
    Intent(NodeIntent),
    Registration {
        runner: RunnerName,
        jit: SecretString,
    },
    Check(Box<CheckSandbox>),
}

impl Links {
    /// Opens a stream for a node; an older one of the same name ends.
    pub fn open(&self, node: &NodeName) -> Arc<Outbox> {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let outbox = Arc::new(Outbox {
            session,
            waiting: Mutex::default(),
            wake: Notify::new(),
        });
        let older = lock(&self.nodes).insert(node.clone(), Arc::clone(&outbox));
        if let Some(older) = older {
            older.close();
        }
        outbox
    }

    /// Forgets a stream that ended, unless a newer one took its place.
    pub fn close(&self, node: &NodeName, session: u64) {
        let mut nodes = lock(&self.nodes);
        if nodes.get(node).is_some_and(|open| open.session == session)
            && let Some(outbox) = nodes.remove(node)
        {
            outbox.close();
        }
    }

    /// Ends every stream: the process goes down, agents carry on and come back.
    pub fn close_all(&self) {
        for outbox in std::mem::take(&mut *lock(&self.nodes)).into_values() {
            outbox.close();
        }
    }

    /// Number of open streams.
    pub fn len(&self) -> usize {
        lock(&self.nodes).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks a node to look at a sandbox. Only the newest question waits.
    pub fn send_check(&self, node: &NodeName, check: CheckSandbox) {
        self.with(node, |waiting| waiting.check = Some(check));
    }

    fn with(&self, node: &NodeName, change: impl FnOnce(&mut Waiting)) {
        let outbox = lock(&self.nodes).get(node).cloned();
        if let Some(outbox) = outbox {
            change(&mut lock(&outbox.waiting));
            outbox.wake.notify_one();
        }
    }
}

impl NodeLink for Links {
    fn session(&self, node: &NodeName) -> Option<u64> {
        lock(&self.nodes).get(node).map(|outbox| outbox.session)
    }

    fn send_intent(&self, node: &NodeName, intent: NodeIntent) {
        self.with(node, |waiting| waiting.intent = Some(intent));
    }

    fn send_registration(&self, node: &NodeName, runner: &RunnerName, jit: SecretString) {
        self.with(node, |waiting| {
            waiting.registrations.insert(runner.clone(), jit);
        });
    }
}

impl Outbox {
    /// The next message, intent before registrations; `None` once closed.
    pub async fn next(&self) -> Option<Outgoing> {
        loop {
            {
                let mut waiting = lock(&self.waiting);
                if waiting.closed {
                    return None;
                }
                if let Some(intent) = waiting.intent.take() {
                    return Some(Outgoing::Intent(intent));
                }
                if let Some((runner, jit)) = waiting.registrations.pop_first() {
                    return Some(Outgoing::Registration { runner, jit });
                }
                if let Some(check) = waiting.check.take() {
                    return Some(Outgoing::Check(Box::new(check)));
                }
            }
            self.wake.notified().await;
        }
    }

    fn close(&self) {
        lock(&self.waiting).closed = true;
        self.wake.notify_one();
    }
}

/// No code panics while holding these locks; a poisoned one is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use scheduler_core::model::Generation;

    use super::*;

    fn intent(counter: u64) -> NodeIntent {
        NodeIntent {
            generation: Generation { epoch: 1, counter },
            cordoned: false,
            runners: Vec::new(),
            expected: Vec::new(),
        }
    }

    #[tokio::test]
    async fn only_the_newest_intent_waits_and_it_goes_before_registrations() {
        let links = Links::default();
        let node = NodeName::new("n1");
        let outbox = links.open(&node);
        links.send_registration(&node, &RunnerName::new("r"), SecretString::from("s"));
        for counter in 1..=1_000 {
            links.send_intent(&node, intent(counter));
        }
        let first = outbox.next().await;
        assert!(matches!(first, Some(Outgoing::Intent(i)) if i.generation.counter == 1_000));
        let second = outbox.next().await;
        assert!(matches!(second, Some(Outgoing::Registration { .. })));
    }

    #[tokio::test]
    async fn a_newer_stream_ends_the_older_and_late_closing_changes_nothing() {
        let links = Links::default();
        let node = NodeName::new("n1");
        let older = links.open(&node);
        let newer = links.open(&node);
        assert!(older.next().await.is_none());
        links.close(&node, older.session);
        assert_eq!(links.session(&node), Some(newer.session));
        links.close_all();
        assert!(newer.next().await.is_none());
        assert!(links.is_empty());
    }
}
