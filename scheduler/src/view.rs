//! All reads: a second fleet fed by committed facts, so that no reader stops the driver.

mod ring;

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use scheduler_core::{
    Fleet,
    fact::Fact,
    input::ObservedPhase,
    model::{JobPhase, RunnerName},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    driver::Committed,
    endings::Endings,
    metrics::{Metrics, ResultLabel, TraceLabel, seconds},
    ports::Store,
};
use ring::Ring;
pub use ring::Touched;

/// Batches of facts that may wait for the view.
pub const BEHIND: usize = 1_024;
/// A snapshot after this many facts ...
const SNAPSHOT_FACTS: u64 = 100_000;
/// ... or after this long with any.
const SNAPSHOT_AGE: Duration = Duration::from_secs(3_600);

/// Reads of the fleet. Cheap to clone.
#[derive(Clone)]
pub struct View {
    shared: Arc<Shared>,
}

struct Shared {
    state: RwLock<State>,
    head: watch::Sender<u64>,
    metrics: Metrics,
}

struct State {
    fleet: Fleet,
    sequence: u64,
    ring: Ring,
    /// Placed before this process started.
    placed_before: u64,
    endings: Endings,
}

/// What changed since a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    Keys {
        /// Everything up to here is among them.
        sequence: u64,
        touched: BTreeSet<Touched>,
    },
    /// Too old, or from another store: start from a snapshot.
    Lost,
}

impl View {
    /// A view of a recovered fleet at its sequence.
    pub fn new(mut fleet: Fleet, sequence: u64, metrics: Metrics) -> Self {
        fleet.settle();
        let placed_before = fleet.status().placed;
        Self {
            shared: Arc::new(Shared {
                state: RwLock::new(State {
                    fleet,
                    sequence,
                    ring: Ring::new(sequence),
                    placed_before,
                    endings: Endings::default(),
                }),
                head: watch::Sender::new(sequence),
                metrics,
            }),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.shared
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the fleet. `read` must not wait: committed facts wait for it.
    pub fn fleet<T>(&self, read: impl FnOnce(&Fleet) -> T) -> T {
        read(&self.read().fleet)
    }

    /// Reads the fleet together with the sequence it stands at.
    pub fn at<T>(&self, read: impl FnOnce(&Fleet, u64) -> T) -> T {
        let state = self.read();
        read(&state.fleet, state.sequence)
    }

    /// Runners placed since this process started.
    pub fn placed(&self) -> u64 {
        let state = self.read();
        state
            .fleet
            .status()
            .placed
            .saturating_sub(state.placed_before)
    }

    /// Announces each new sequence.
    pub fn head(&self) -> watch::Receiver<u64> {
        self.shared.head.subscribe()
    }

    /// Waits until what is durable at `sequence` can be read.
    pub async fn reached(&self, sequence: u64) {
        let mut head = self.head();
        // Ends early only when the process ends.
        let _ = head.wait_for(|head| *head >= sequence).await;
    }

    /// Which entities changed after `since`: about `most` of them, the rest by asking again.
    pub fn changes(&self, since: u64, most: usize) -> Changes {
        let state = self.read();
        let Some(after) = state.ring.after(since) else {
            return Changes::Lost;
        };
        let mut reached = since;
        let mut touched = BTreeSet::new();
        for (sequence, entity) in after {
            // Whole sequences only: the reader goes on behind the last one.
            if touched.len() >= most && *sequence > reached {
                return Changes::Keys {
                    sequence: reached,
                    touched,
                };
            }
            reached = *sequence;
            touched.insert(entity.clone());
        }
        Changes::Keys {
            sequence: state.sequence,
            touched,
        }
    }

    /// Takes in committed facts, without a task of its own.
    pub fn take(&self, committed: &Committed) {
        let mut state = self
            .shared
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let first = committed
            .sequence
            .saturating_sub(committed.facts.len().saturating_sub(1) as u64);
        for (sequence, fact) in (first..).zip(&committed.facts) {
            observe(&self.shared.metrics, &state.fleet, fact);
            let State { endings, fleet, .. } = &mut *state;
            endings.see(&self.shared.metrics, fleet, fact);
            let touched = touched(&state.fleet, fact);
            state.fleet.apply(fact);
            state.ring.push(sequence, touched);
        }
        state.fleet.settle();
        state.sequence = committed.sequence;
        drop(state);
        self.shared.head.send_replace(committed.sequence);
    }

    /// Follows the driver and writes snapshots off its path. Ends with the driver.
    pub async fn run<S: Store>(
        self,
        mut committed: mpsc::Receiver<Committed>,
        store: Arc<S>,
        snapshot_sequence: u64,
    ) {
        let mut last = (snapshot_sequence, Instant::now());
        let mut writing: Option<tokio::task::JoinHandle<()>> = None;
        while let Some(batch) = committed.recv().await {
            self.take(&batch);
            let new = batch.sequence.saturating_sub(last.0);
            let due = new >= SNAPSHOT_FACTS || last.1.elapsed() >= SNAPSHOT_AGE;
            if due && writing.as_ref().is_none_or(|task| task.is_finished()) {
                last = (batch.sequence, Instant::now());
                writing = Some(tokio::spawn(self.clone().snapshot(Arc::clone(&store))));
            }
        }
        if let Some(writing) = writing
            && let Err(error) = writing.await
        {
            tracing::error!(%error, "the snapshot task failed");
        }
    }

    /// Writes one snapshot now.
    pub async fn snapshot<S: Store>(self, store: Arc<S>) {
        let begun = Instant::now();
        let (facts, sequence, epoch) =
            self.at(|fleet, sequence| (fleet.snapshot(), sequence, fleet.epoch()));
        let count = facts.len();
        match store.write_snapshot(epoch, sequence, facts).await {
            Ok(()) => tracing::info!(
                sequence,
                facts = count,
                elapsed_ms = begun.elapsed().as_millis() as u64,
                "snapshot written"
            ),
            // The older snapshot and the facts after it stay in force.
            Err(error) => tracing::error!(%error, "no snapshot was written"),
        }
    }

    /// Sets the gauges and renders everything.
    pub fn render_metrics(&self, now: u64) -> String {
        let metrics = &self.shared.metrics;
        self.fleet(|fleet| gauges(metrics, fleet, now));
        metrics.render()
    }
}

fn gauges(metrics: &Metrics, fleet: &Fleet, now: u64) {
    use crate::metrics::{NodesLabel, StateLabel};
    for state in ["waiting", "queued", "in_progress", "completed"] {
        metrics.jobs.get_or_create(&StateLabel { state }).set(0);
    }
    let mut oldest = None;
    for job in fleet.jobs() {
        let state = phase_word(job.phase());
        metrics.jobs.get_or_create(&StateLabel { state }).inc();
        if job.phase() == JobPhase::Queued {
            let created = job.seen.created_at;
            oldest = Some(oldest.map_or(created, |oldest: u64| oldest.min(created)));
        }
    }
    let age = oldest.map_or(0.0, |created| seconds(created, now));
    metrics.oldest_queued.set(age);
    metrics.runners.clear();
    for runner in fleet.runners() {
        let state = runner.status_word();
        metrics.runners.get_or_create(&StateLabel { state }).inc();
    }
    metrics.nodes.clear();
    for node in fleet.nodes() {
        let label = NodesLabel {
            state: node.state_word(),
            arch: node.capability.arch.clone(),
        };
        metrics.nodes.get_or_create(&label).inc();
    }
}

/// GitHub's word for a job's state.
pub fn phase_word(phase: JobPhase) -> &'static str {
    match phase {
        JobPhase::Waiting => "waiting",
        JobPhase::Queued => "queued",
        JobPhase::InProgress => "in_progress",
        JobPhase::Completed => "completed",
    }
}

fn observed_word(phase: ObservedPhase) -> &'static str {
    match phase {
        ObservedPhase::Preparing => "preparing",
        ObservedPhase::Ready => "ready",
        ObservedPhase::Consumed => "starting",
        ObservedPhase::Online => "idle",
        ObservedPhase::Busy => "busy",
        ObservedPhase::Exited => "exited",
        ObservedPhase::Failed => "failed",
    }
}

/// Histograms and counters from a fact, before it is applied.
fn observe(metrics: &Metrics, fleet: &Fleet, fact: &Fact) {
    let count = |result: &'static str| {
        metrics
            .assignments
            .get_or_create(&ResultLabel { result })
            .inc();
    };
    match fact {
        Fact::RunnerPlaced(_) => count("placed"),
        Fact::RunnerRegistered { runner, at, .. } => {
            if let Some(runner) = fleet.runner(runner) {
                metrics.phase("registering", runner.placed.at, *at);
            }
        }
        Fact::RunnerObserved {
            runner, phase, at, ..
        } => {
            let Some(runner) = fleet.runner(runner) else {
                return;
            };
            match &runner.observed {
                Some(before) if before.phase != *phase => {
                    metrics.phase(observed_word(before.phase), before.at, *at);
                }
                Some(_) => {}
                None => metrics.phase("reaching_node", runner.placed.at, *at),
            }
        }
        Fact::RunnerRetired {
            runner, why, at, ..
        } => {
            count(why.word());
            if let Some(before) = fleet.runner(runner).and_then(|r| r.observed.as_ref()) {
                metrics.phase(observed_word(before.phase), before.at, *at);
            }
        }
        Fact::JobPhaseChanged {
            job,
            phase: JobPhase::InProgress,
            at,
            ..
        } => {
            if let Some(job) = fleet.job(*job) {
                let trace = job.seen.traceparent.as_deref();
                let trace_id = trace.and_then(|text| text.split('-').nth(1));
                let label = trace_id.map(|id| TraceLabel {
                    trace_id: id.to_owned(),
                });
                metrics
                    .queue_wait
                    .observe(seconds(job.seen.created_at, *at), label, None);
            }
        }
        _ => {}
    }
}

/// The entities a reader sees changed by a fact, before it is applied.
fn touched(fleet: &Fleet, fact: &Fact) -> Vec<Touched> {
    let with_node = |runner: &RunnerName| {
        let node = fleet.runner(runner).map(|known| &known.placed.node);
        std::iter::once(Touched::Runner(runner.clone()))
            .chain(node.cloned().map(Touched::Node))
            .collect()
    };
    match fact {
        Fact::JobLearnt { job, .. } => vec![Touched::Job(job.id)],
        Fact::JobPhaseChanged { job, .. }
        | Fact::OriginLearnt { job, .. }
        | Fact::JobForgotten { job } => vec![Touched::Job(*job)],
        Fact::JobBound { job, runner, .. } => {
            vec![Touched::Job(*job), Touched::Runner(runner.clone())]
        }
        Fact::NodeJoined { node, .. }
        | Fact::CapabilityChanged { node, .. }
        | Fact::ConditionsChanged { node, .. }
        | Fact::NodeReachable { node }
        | Fact::NodeUnreachable { node, .. }
        | Fact::NodeCordoned { node }
        | Fact::NodeUncordoned { node }
        | Fact::NodeDraining { node, .. }
        | Fact::NodeRemoved { node }
        | Fact::ForeignSeen { node, .. } => vec![Touched::Node(node.clone())],
        Fact::RunnerPlaced(placed) => vec![
            Touched::Runner(placed.runner.clone()),
            Touched::Node(placed.node.clone()),
        ],
        Fact::RunnerRetired { runner, .. } => with_node(runner),
        Fact::RunnerRegistered { runner, .. }
        | Fact::RunnerObserved { runner, .. }
        | Fact::RunnerStopping { runner, .. }
        | Fact::RunnerDeregistered { runner, .. } => vec![Touched::Runner(runner.clone())],
        Fact::RepositoryGone { id, full_name } => fleet
            .jobs()
            .filter(|job| {
                job.seen.repository.id == *id || job.seen.repository.full_name() == *full_name
            })
            .map(|job| Touched::Job(job.seen.id))
            .collect(),
        _ => Vec::new(),
    }
}
