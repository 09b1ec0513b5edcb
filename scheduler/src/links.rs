//! Streams to the nodes: one outbox per attached node, always holding the newest word only.

use std::{
    collections::{BTreeMap, VecDeque},
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

/// Fenced agents remembered of one node.
const FENCED: usize = 16;

/// All open streams of this process.
#[derive(Debug, Default)]
pub struct Links {
    nodes: Mutex<BTreeMap<NodeName, Arc<Outbox>>>,
    sessions: AtomicU64,
    /// Agents whose stream was taken over by another one with the same identity.
    fenced: Mutex<BTreeMap<NodeName, VecDeque<String>>>,
    /// Looks at sandboxes that somebody waits for.
    pub checks: Checks,
}

/// What waits to be sent to one node. At most one intent and one registration
/// per runner: bounded by the node's runners, whatever the reader does.
#[derive(Debug)]
pub struct Outbox {
    pub session: u64,
    /// Which start of an agent opened it; empty for agents that do not say.
    instance: String,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    intent: Option<NodeIntent>,
    registrations: BTreeMap<RunnerName, SecretString>,
    check: Option<CheckSandbox>,
    closed: Option<Closed>,
}

/// Why a stream ends from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The process goes down, or the agent left.
    Stream,
    /// Another agent came with the same identity.
    Replaced,
    /// The node was removed.
    Removed,
}

/// Another agent came with this one's identity: only a restart lets this one in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced;

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
    /// Opens a stream for a node; an older one of the same name ends. When it was another
    /// agent's, that one is fenced: two agents with one identity do not take turns.
    pub fn open(&self, node: &NodeName, instance: &str) -> Result<Arc<Outbox>, Fenced> {
        let mut fenced = lock(&self.fenced);
        let before = fenced.get(node).into_iter().flatten();
        if before.into_iter().any(|fenced| fenced == instance) {
            return Err(Fenced);
        }
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let outbox = Arc::new(Outbox {
            session,
            instance: instance.to_owned(),
            waiting: Mutex::default(),
            wake: Notify::new(),
        });
        let older = lock(&self.nodes).insert(node.clone(), Arc::clone(&outbox));
        if let Some(older) = older {
            let other = older.instance != instance && !older.instance.is_empty();
            if other && !instance.is_empty() {
                let of_node = fenced.entry(node.clone()).or_default();
                of_node.push_back(older.instance.clone());
                if of_node.len() > FENCED {
                    of_node.pop_front();
                }
            }
            older.close(Closed::Replaced);
        }
        Ok(outbox)
    }

    /// Forgets a stream that ended, unless a newer one took its place.
    pub fn close(&self, node: &NodeName, session: u64) {
        let mut nodes = lock(&self.nodes);
        if nodes.get(node).is_some_and(|open| open.session == session)
            && let Some(outbox) = nodes.remove(node)
        {
            outbox.close(Closed::Stream);
        }
    }

    /// Ends a node's stream: it is removed.
    pub fn end(&self, node: &NodeName) {
        lock(&self.fenced).remove(node);
        if let Some(outbox) = lock(&self.nodes).remove(node) {
            outbox.close(Closed::Removed);
        }
    }

    /// Ends every stream: the process goes down, agents carry on and come back.
    pub fn close_all(&self) {
        for outbox in std::mem::take(&mut *lock(&self.nodes)).into_values() {
            outbox.close(Closed::Stream);
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
    /// The next message, intent before registrations, until it is closed.
    pub async fn next(&self) -> Result<Outgoing, Closed> {
        loop {
            {
                let mut waiting = lock(&self.waiting);
                if let Some(closed) = waiting.closed {
                    return Err(closed);
                }
                if let Some(intent) = waiting.intent.take() {
                    return Ok(Outgoing::Intent(intent));
                }
                if let Some((runner, jit)) = waiting.registrations.pop_first() {
                    return Ok(Outgoing::Registration { runner, jit });
                }
                if let Some(check) = waiting.check.take() {
                    return Ok(Outgoing::Check(Box::new(check)));
                }
            }
            self.wake.notified().await;
        }
    }

    fn close(&self, why: Closed) {
        lock(&self.waiting).closed.get_or_insert(why);
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
        let outbox = links.open(&node, "a").unwrap();
        links.send_registration(&node, &RunnerName::new("r"), SecretString::from("s"));
        for counter in 1..=1_000 {
            links.send_intent(&node, intent(counter));
        }
        let first = outbox.next().await;
        assert!(matches!(first, Ok(Outgoing::Intent(i)) if i.generation.counter == 1_000));
        let second = outbox.next().await;
        assert!(matches!(second, Ok(Outgoing::Registration { .. })));
    }

    #[tokio::test]
    async fn a_newer_stream_ends_the_older_and_late_closing_changes_nothing() {
        let links = Links::default();
        let node = NodeName::new("n1");
        let older = links.open(&node, "a").unwrap();
        let newer = links.open(&node, "a").unwrap();
        assert_eq!(older.next().await.unwrap_err(), Closed::Replaced);
        links.close(&node, older.session);
        assert_eq!(links.session(&node), Some(newer.session));
        links.close_all();
        assert_eq!(newer.next().await.unwrap_err(), Closed::Stream);
        assert!(links.is_empty());
    }

    #[test]
    fn of_two_agents_with_one_identity_the_older_stays_out_until_it_starts_again() {
        let links = Links::default();
        let node = NodeName::new("n1");
        links.open(&node, "a").unwrap();
        links.open(&node, "b").unwrap();
        assert_eq!(links.open(&node, "a").unwrap_err(), Fenced);
        let newest = links.open(&node, "b").unwrap();
        assert_eq!(links.session(&node), Some(newest.session));
        links.open(&node, "a again").unwrap();
        assert_eq!(links.open(&node, "b").unwrap_err(), Fenced);
        for start in 0..100 {
            links.open(&node, &start.to_string()).unwrap();
        }
        assert_eq!(lock(&links.fenced)[&node].len(), FENCED);
        // A node that was removed begins anew.
        links.end(&node);
        links.open(&node, "99").unwrap();
        // Agents that do not say who they are fence nobody.
        links.open(&node, "").unwrap();
        links.open(&node, "99").unwrap();
    }
}
