//! Denials on their way to the audit log: never in a call's way, never without a bound.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use scheduler_store::AuditEntry;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use crate::{
    clock::utc,
    inbox::{Inbox, Request},
};

/// Denials that may wait; more are only counted.
const WAITING: usize = 1_024;
/// How often is said what was not written.
const SUMMARY: Duration = Duration::from_secs(600);

/// Where denials go in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Denials {
    sender: mpsc::Sender<AuditEntry>,
    lost: Arc<AtomicU64>,
}

/// Where they come out, for [`write`].
#[derive(Debug)]
pub struct Waiting {
    receiver: mpsc::Receiver<AuditEntry>,
    lost: Arc<AtomicU64>,
}

/// Both ends.
pub fn denials() -> (Denials, Waiting) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let lost = Arc::new(AtomicU64::new(0));
    let denials = Denials {
        sender,
        lost: Arc::clone(&lost),
    };
    (denials, Waiting { receiver, lost })
}

impl Denials {
    /// Hands one in; never waits.
    pub fn record(&self, entry: AuditEntry) {
        if self.sender.try_send(entry).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes what the ledger lets through, until `stop`.
pub async fn write(mut waiting: Waiting, inbox: Inbox, stop: CancellationToken) {
    let mut ledger = Ledger::new(utc());
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + SUMMARY, SUMMARY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut summarise = false;
        let first = tokio::select! {
            entry = waiting.receiver.recv() => entry,
            _ = tick.tick() => { summarise = true; None }
            () = stop.cancelled() => { summarise = true; None }
        };
        let more = std::iter::from_fn(|| waiting.receiver.try_recv().ok());
        let mut audit: Vec<AuditEntry> = first
            .into_iter()
            .chain(more.take(WAITING))
            .filter_map(|entry| ledger.take(entry))
            .collect();
        if summarise {
            let lost = waiting.lost.swap(0, Ordering::Relaxed);
            audit.extend(ledger.summaries(lost, utc()));
        }
        if !audit.is_empty() {
            let request = Request {
                audit,
                ..Request::default()
            };
            if inbox.post(request).await.is_err() {
                return;
            }
        }
        if stop.is_cancelled() {
            return;
        }
    }
}
