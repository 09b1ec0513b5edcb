//! WatchFleet: a snapshot, then changes. A watcher that falls behind gets a snapshot again.
//!
//! There is no queue per watcher: it holds a sequence, and asks what changed
//! since. However slow it is, it costs nobody else anything.

use std::collections::VecDeque;

use futures_util::{StreamExt, stream};
use longshore_proto::v1::{self, WatchFleetResponse};
use scheduler_core::model::Now;
use tokio::sync::watch;
use tonic::Status;

use super::{Answering, Fleets};
use crate::{
    api::{convert, vitals::Vitals},
    ports::{Demand, Store},
    view::{Changes, View},
};

/// Entities of one message, at most.
const ENTITIES: usize = 1_000;

struct Watcher<S, D> {
    fleets: Fleets<S, D>,
    /// Everything up to here was sent; `None`: nothing was.
    seen: Option<u64>,
    head: watch::Receiver<u64>,
    waiting: VecDeque<WatchFleetResponse>,
}

impl<S: Store, D: Demand> Fleets<S, D> {
    pub(super) fn watch(&self, resume_token: u64) -> Answering<WatchFleetResponse> {
        let watcher = Watcher {
            fleets: self.clone(),
            seen: (resume_token > 0).then_some(resume_token),
            head: self.parts.view.head(),
            waiting: VecDeque::new(),
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
            if let Some(message) = self.waiting.pop_front() {
                return Some(message);
            }
            let parts = &self.fleets.parts;
            let now = self.fleets.now();
            let head = *self.head.borrow_and_update();
            match self.seen {
                None => self.start_over(now),
                Some(seen) if seen != head => match parts.view.changes(seen) {
                    Changes::Lost => self.start_over(now),
                    changes => {
                        let (messages, sequence) = deltas(&parts.view, &parts.vitals, changes, now);
                        self.seen = Some(sequence);
                        self.waiting = messages;
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

    fn start_over(&mut self, now: Now) {
        let parts = &self.fleets.parts;
        let (messages, sequence) = snapshot(&parts.view, &parts.vitals, now);
        self.seen = Some(sequence);
        self.waiting = messages;
    }
}

/// Messages of at most so many entities; only the last carries the token, so
/// that a watch broken off in between starts over.
struct Pages {
    messages: VecDeque<WatchFleetResponse>,
    page: WatchFleetResponse,
    count: usize,
}

impl Pages {
    fn new(snapshot: bool) -> Self {
        Self {
            messages: VecDeque::new(),
            page: WatchFleetResponse {
                snapshot,
                ..WatchFleetResponse::default()
            },
            count: 0,
        }
    }

    fn add(&mut self, put: impl FnOnce(&mut WatchFleetResponse)) {
        if self.count == ENTITIES {
            self.messages.push_back(std::mem::take(&mut self.page));
            self.count = 0;
        }
        put(&mut self.page);
        self.count += 1;
    }

    fn end(mut self, resume_token: u64) -> VecDeque<WatchFleetResponse> {
        self.page.resume_token = resume_token;
        self.messages.push_back(self.page);
        self.messages
    }
}

fn snapshot(view: &View, vitals: &Vitals, now: Now) -> (VecDeque<WatchFleetResponse>, u64) {
    view.at(|fleet, sequence| {
        let mut pages = Pages::new(true);
        let mut reasons = convert::Reasons::default();
        for job in fleet.jobs() {
            let reason = reasons.of(fleet, job, now);
            pages.add(|page| page.jobs.push(convert::job(fleet, job, reason)));
        }
        for runner in fleet.runners() {
            pages.add(|page| page.runners.push(convert::runner(fleet, runner)));
        }
        for node in fleet.nodes() {
            pages.add(|page| page.nodes.push(convert::node(node, vitals.of(&node.name))));
        }
        (pages.end(sequence), sequence)
    })
}

fn deltas(
    view: &View,
    vitals: &Vitals,
    changes: Changes,
    now: Now,
) -> (VecDeque<v1::WatchFleetResponse>, u64) {
    let Changes::Keys {
        sequence,
        jobs,
        runners,
        nodes,
    } = changes
    else {
        return (VecDeque::new(), 0);
    };
    view.fleet(|fleet| {
        let mut pages = Pages::new(false);
        let mut reasons = convert::Reasons::default();
        for id in jobs {
            match fleet.job(id) {
                Some(job) => {
                    let reason = reasons.of(fleet, job, now);
                    pages.add(|page| page.jobs.push(convert::job(fleet, job, reason)));
                }
                None => pages.add(|page| page.removed_jobs.push(id.0)),
            }
        }
        for name in runners {
            match fleet.runner(&name) {
                Some(runner) => {
                    pages.add(|page| page.runners.push(convert::runner(fleet, runner)));
                }
                None => pages.add(|page| page.removed_runners.push(name.to_string())),
            }
        }
        for name in nodes {
            match fleet.node(&name) {
                Some(node) => {
                    pages.add(|page| page.nodes.push(convert::node(node, vitals.of(&name))));
                }
                None => pages.add(|page| page.removed_nodes.push(name.to_string())),
            }
        }
        (pages.end(sequence), sequence)
    })
}
