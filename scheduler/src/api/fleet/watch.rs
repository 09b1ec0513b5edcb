//! WatchFleet: a snapshot, then changes. A watcher that falls behind gets a snapshot again.
//!
//! There is no queue per watcher: it holds a sequence, and asks what changed
//! since. However slow it is, it costs nobody else anything.

use std::collections::{BTreeSet, VecDeque};

use futures_util::{StreamExt, stream};
use longshore_proto::v1::WatchFleetResponse;
use scheduler_core::model::Now;
use tokio::sync::watch;
use tonic::Status;

use super::{Answering, Fleets, status::shows_runner};
use crate::{
    access::{Scope, Who},
    api::{convert, vitals::Vitals, watchers::Place as WatcherPlace},
    ports::{Demand, Store},
    view::{Changes, Touched, View},
};

/// Entities of one message, at most. Nothing else of them waits for a watcher.
const ENTITIES: usize = 500;
/// Keys of changes that wait for a watcher, about.
const KEYS: usize = 4_096;

struct Watcher<S, D> {
    fleets: Fleets<S, D>,
    /// What of it is shown; `None`: everything.
    within: Option<Within>,
    /// Everything up to here was sent; `None`: nothing was.
    seen: Option<u64>,
    head: watch::Receiver<u64>,
    sending: Sending,
    _place: WatcherPlace,
}

/// What goes out next: keys only, read when their turn comes. What changes
/// meanwhile is newer than told, and comes again as a change.
#[derive(Default)]
struct Sending {
    keys: VecDeque<Touched>,
    /// The sequence that is reached with the last of them.
    sequence: u64,
    snapshot: bool,
    /// The next message is the first of a snapshot.
    first: bool,
}

impl<S: Store, D: Demand> Fleets<S, D> {
    pub(super) fn watch(
        &self,
        who: &Who,
        resume_token: u64,
        place: WatcherPlace,
    ) -> Answering<WatchFleetResponse> {
        let within = Within::of(who.scope());
        // What a watcher with a scope was shown by an earlier watch nobody knows: it starts over.
        let resumes = resume_token > 0 && within.is_none();
        let watcher = Watcher {
            fleets: self.clone(),
            within,
            seen: resumes.then_some(resume_token),
            head: self.parts.view.head(),
            sending: Sending::default(),
            _place: place,
        };
        stream::unfold(watcher, |mut watcher| async move {
            let message = watcher.next().await?;
            Some((Ok::<_, Status>(message), watcher))
        })
        .boxed()
    }
}

impl<S: Store, D: Demand> Watcher<S, D> {
    /// The next message; `None` when the process ends.
    async fn next(&mut self) -> Option<WatchFleetResponse> {
        loop {
            let parts = &self.fleets.parts;
            if self.sending.first || !self.sending.keys.is_empty() {
                let now = self.fleets.now();
                let message = self.sending.message(&parts.view, &parts.vitals, now);
                if self.sending.keys.is_empty() {
                    self.seen = Some(self.sending.sequence);
                }
                let shown = match &mut self.within {
                    Some(within) => within.filter(message),
                    None => Some(message),
                };
                match shown {
                    Some(message) => return Some(message),
                    None => continue,
                }
            }
            let head = *self.head.borrow_and_update();
            match self.seen {
                None => self.sending = Sending::everything(&parts.view),
                Some(seen) if seen != head => match parts.view.changes(seen, KEYS) {
                    Changes::Lost => self.sending = Sending::everything(&parts.view),
                    Changes::Keys { sequence, touched } if touched.is_empty() => {
                        self.seen = Some(sequence);
                    }
                    Changes::Keys { sequence, touched } => {
                        self.sending = Sending {
                            keys: touched.into_iter().collect(),
                            sequence,
                            ..Sending::default()
                        };
                    }
                },
                Some(_) => {
                    tokio::select! {
                        changed = self.head.changed() => changed.ok()?,
                        () = parts.stop.cancelled() => return None,
                    }
                }
            }
        }
    }
}

/// A watcher with a scope: what it is shown, and what it was.
struct Within {
    scope: Scope,
    jobs: BTreeSet<u64>,
    runners: BTreeSet<String>,
}

impl Within {
    fn of(scope: &Scope) -> Option<Self> {
        (!scope.is_fleet()).then(|| Self {
            scope: scope.clone(),
            jobs: BTreeSet::new(),
            runners: BTreeSet::new(),
        })
    }

    /// What is left of a message; `None` when that is nothing.
    fn filter(&mut self, mut message: WatchFleetResponse) -> Option<WatchFleetResponse> {
        if message.snapshot {
            self.jobs.clear();
            self.runners.clear();
        }
        message.jobs.retain(|job| self.scope.covers(&job.repo));
        let scope = &self.scope;
        message.runners.retain(|runner| shows_runner(scope, runner));
        message.nodes.clear();
        message.removed_nodes.clear();
        self.jobs.extend(message.jobs.iter().map(|job| job.id));
        let names = message.runners.iter().map(|runner| runner.name.clone());
        self.runners.extend(names);
        message.removed_jobs.retain(|id| self.jobs.remove(id));
        message
            .removed_runners
            .retain(|name| self.runners.remove(name));
        let has_something = message.snapshot
            || !message.jobs.is_empty()
            || !message.runners.is_empty()
            || !message.removed_jobs.is_empty()
            || !message.removed_runners.is_empty();
        has_something.then_some(message)
    }
}

impl Sending {
    fn everything(view: &View) -> Self {
        view.at(|fleet, sequence| {
            let jobs = fleet.jobs().map(|job| Touched::Job(job.seen.id));
            let runners = fleet
                .runners()
                .map(|runner| Touched::Runner(runner.name().clone()));
            let nodes = fleet.nodes().map(|node| Touched::Node(node.name.clone()));
            Self {
                keys: jobs.chain(runners).chain(nodes).collect(),
                sequence,
                snapshot: true,
                first: true,
            }
        })
    }

    /// The next entities as they are now. Only the last message carries the
    /// token, so that a watch broken off in between starts over.
    fn message(&mut self, view: &View, vitals: &Vitals, now: Now) -> WatchFleetResponse {
        let mut message = WatchFleetResponse {
            snapshot: std::mem::take(&mut self.first),
            ..WatchFleetResponse::default()
        };
        let count = self.keys.len().min(ENTITIES);
        view.fleet(|fleet| {
            let mut reasons = convert::Reasons::default();
            for key in self.keys.drain(..count) {
                match key {
                    Touched::Job(id) => match fleet.job(id) {
                        Some(job) => {
                            let reason = reasons.of(fleet, job, now);
                            message.jobs.push(convert::job(fleet, job, reason));
                        }
                        None => message.removed_jobs.push(id.0),
                    },
                    Touched::Runner(name) => match fleet.runner(&name) {
                        Some(runner) => message.runners.push(convert::runner(fleet, runner)),
                        None => message.removed_runners.push(name.to_string()),
                    },
                    Touched::Node(name) => match fleet.node(&name) {
                        Some(node) => message.nodes.push(convert::node(node, vitals.of(&name))),
                        None => message.removed_nodes.push(name.to_string()),
                    },
                }
            }
        });
        if self.snapshot {
            // Gone since the list was made: never told, so not told as removed either.
            message.removed_jobs.clear();
            message.removed_runners.clear();
            message.removed_nodes.clear();
        }
        if self.keys.is_empty() {
            message.resume_token = self.sequence;
        }
        message
    }
}
