//! What is done by the hour, off every path: logs that ended, retention.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use scheduler_core::model::RunnerName;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{admission::Admissions, clock::utc, logs::Logs, ports::Store, view::View};

/// How often logs of gone runners are looked for.
const LOOK: Duration = Duration::from_secs(10);
/// Output may follow a runner's end for this long.
const GRACE: Duration = Duration::from_secs(30);
/// How often retention is applied.
const PRUNE: Duration = Duration::from_secs(3_600);
/// The audit log is kept longer than what it is about.
const AUDIT: Duration = Duration::from_secs(400 * 86_400);
/// Rows deleted at once.
const ROWS: u32 = 1_000;

/// Runs until `stop`.
pub async fn run<S: Store>(
    store: Arc<S>,
    view: View,
    logs: Logs,
    admissions: Arc<Admissions>,
    retention: Duration,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut gone: BTreeMap<String, Instant> = BTreeMap::new();
    let mut pruned: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        end_logs(&view, &logs, &mut gone).await;
        if pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
            pruned = Some(Instant::now());
            prune(&*store, &logs, retention).await;
            // Refused only when the driver is gone.
            let _ = admissions.prune(utc()).await;
        }
    }
}

/// Closes the logs of runners that ended without their node saying so.
async fn end_logs(view: &View, logs: &Logs, gone: &mut BTreeMap<String, Instant>) {
    let mut over = logs.open_ones();
    view.fleet(|fleet| over.retain(|name| fleet.runner(&RunnerName::new(name)).is_none()));
    gone.retain(|name, _| over.contains(name));
    for name in over {
        let since = *gone.entry(name.clone()).or_insert_with(Instant::now);
        if since.elapsed() < GRACE {
            continue;
        }
        let logs = logs.clone();
        let ended = tokio::task::spawn_blocking(move || logs.end(&name)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "a runner's log was not closed");
        }
    }
}

async fn prune<S: Store>(store: &S, logs: &Logs, retention: Duration) {
    let now = utc();
    let before = |age: Duration| now.saturating_sub(age.as_millis() as u64);
    loop {
        match store.prune(before(retention), before(AUDIT), ROWS).await {
            Ok(0) => break,
            Ok(rows) => tracing::debug!(rows, "history beyond its retention deleted"),
            Err(error) => {
                tracing::warn!(%error, "history was not pruned; it is tried again");
                break;
            }
        }
    }
    let logs = logs.clone();
    match tokio::task::spawn_blocking(move || logs.prune(retention)).await {
        Ok(Ok(0)) => {}
        Ok(Ok(files)) => tracing::debug!(files, "logs beyond their retention deleted"),
        Ok(Err(error)) => tracing::warn!(%error, "logs were not pruned"),
        Err(error) => tracing::error!(%error, "pruning logs panicked"),
    }
}
