//! The only writer: drain what is ready, decide, commit once, and only then answer and act.
//!
//! A commit that fails ends the driver, and with it the process: what is in
//! memory then is ahead of the store, so the next start loads again. Nothing was
//! answered or sent for the failed batch. A full disk is waited out instead:
//! the same commit is tried until it succeeds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use scheduler_core::{
    Entropy, Fleet,
    effect::{Effect, EffectKey},
    fact::Fact,
    input::{Input, ObservedPhase},
    model::{Generation, NodeName, RunnerName},
};
use scheduler_store::{AuditEntry, Commit, Error as StoreError, Loaded, RecordChange, TokenChange};
use secrecy::SecretString;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    effects::{Effects, Settled, split},
    inbox::{Envelope, Outlet},
    metrics::Metrics,
    ports::{Clock, GitHub, NodeLink, Store},
};

/// Inputs of one step, at most (a single request may exceed it).
const BATCH: usize = 512;
/// Longest sleep without a deadline: a guard, never on a job's path.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Shortest sleep on a deadline that a step did not move.
const SHORTEST_SLEEP: Duration = Duration::from_millis(5);
/// Between two tries of a commit on a full disk.
const FULL_DISK_REST: Duration = Duration::from_secs(1);

/// Facts that are durable now.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Of the last fact.
    pub sequence: u64,
    pub facts: Vec<Fact>,
    /// UTC milliseconds of the commit.
    pub at: u64,
}

/// Why the driver ended.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("failed to {0}")]
    Store(#[from] StoreError),
    #[error("the view ended before the driver")]
    ViewEnded,
}

/// State as the store has it, under a fresh epoch.
#[derive(Debug)]
pub struct Recovered {
    pub fleet: Fleet,
    pub sequence: u64,
    /// Sequence of the snapshot it began with.
    pub snapshot_sequence: u64,
}

impl Recovered {
    /// Loads and takes over: the epoch is raised and committed before anything is decided.
    pub async fn load<S: Store>(store: &S) -> Result<(Self, Fleet), StoreError> {
        let loaded = store.load().await?;
        let mut fleet = rebuild(&loaded);
        let mut view = rebuild(&loaded);
        let raised = store.raise_epoch(loaded.epoch, fleet.epoch() + 1).await?;
        let fact = Fact::EpochRaised {
            epoch: raised.epoch,
        };
        fleet.apply(&fact);
        view.apply(&fact);
        let recovered = Self {
            fleet,
            sequence: raised.sequence,
            snapshot_sequence: loaded.snapshot_sequence,
        };
        Ok((recovered, view))
    }
}

fn rebuild(loaded: &Loaded) -> Fleet {
    let mut fleet = Fleet::new(&*loaded.fleet_id);
    for fact in loaded.all() {
        fleet.apply(fact);
    }
    fleet
}

/// What the driver works with.
pub struct Parts<S, G, L, C> {
    pub store: Arc<S>,
    pub github: G,
    pub link: Arc<L>,
    pub clock: C,
    pub outlet: Outlet,
    /// Where committed facts go.
    pub view: mpsc::Sender<Committed>,
    pub entropy: Entropy,
    pub metrics: Metrics,
}

/// The one loop that decides and writes.
pub struct Driver<S, G, L, C> {
    store: Arc<S>,
    link: Arc<L>,
    clock: C,
    outlet: Outlet,
    view: mpsc::Sender<Committed>,
    entropy: Entropy,
    metrics: Metrics,
    fleet: Fleet,
    sequence: u64,
    effects: Effects<G>,
    /// Registrations not yet consumed. Memory only; gone with the process.
    registrations: BTreeMap<RunnerName, SecretString>,
    /// The last intent handed to each node's stream.
    sent: BTreeMap<NodeName, (u64, Generation)>,
}

/// What one turn works through.
#[derive(Default)]
struct Batch {
    inputs: Vec<Input>,
    settings: Vec<(String, Option<String>)>,
    audit: Vec<AuditEntry>,
    tokens: Vec<TokenChange>,
    records: Vec<RecordChange>,
    waiting: Vec<oneshot::Sender<u64>>,
    settled: Vec<EffectKey>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.inputs.len() >= BATCH
    }

    fn add(&mut self, envelope: Envelope) {
        let Envelope { request, done } = envelope;
        self.inputs.extend(request.inputs);
        self.settings.extend(request.settings);
        self.audit.extend(request.audit);
        self.tokens.extend(request.tokens);
        self.records.extend(request.records);
        self.waiting.extend(done);
    }
}

impl<S: Store, G: GitHub, L: NodeLink, C: Clock> Driver<S, G, L, C> {
    pub fn new(recovered: Recovered, parts: Parts<S, G, L, C>) -> Self {
        Self {
            effects: Effects::new(parts.github, parts.metrics.clone()),
            store: parts.store,
            link: parts.link,
            clock: parts.clock,
            outlet: parts.outlet,
            view: parts.view,
            entropy: parts.entropy,
            metrics: parts.metrics,
            fleet: recovered.fleet,
            sequence: recovered.sequence,
            registrations: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    /// The state, for tests and the simulation.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Runs until `stop`, the inbox's end, or a commit that failed.
    ///
    /// On `stop` what was handed in before is still committed and answered.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), DriverError> {
        let mut first = Batch::default();
        first.inputs.extend(self.lost_registrations());
        self.turn(first, &stop).await?;
        loop {
            let mut batch = Batch::default();
            let sleep = self.sleep();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                settled = self.effects.next() => {
                    if let Some(settled) = settled {
                        self.settle(settled, &mut batch);
                    }
                }
                envelope = self.outlet.recv() => match envelope {
                    Some(envelope) => batch.add(envelope),
                    None => break,
                },
                () = tokio::time::sleep(sleep) => batch.inputs.push(Input::Tick),
            }
            self.drain(&mut batch);
            self.turn(batch, &stop).await?;
        }
        self.outlet.close();
        let mut last = Batch::default();
        while let Some(envelope) = self.outlet.recv().await {
            last.add(envelope);
        }
        self.turn(last, &stop).await
    }

    /// The registrations of runners placed by an earlier process are gone with it.
    fn lost_registrations(&self) -> Option<Input> {
        let runners: Vec<RunnerName> = self
            .fleet
            .runners()
            .filter(|runner| !runner.is_consumed())
            .map(|runner| runner.name().clone())
            .collect();
        (!runners.is_empty()).then_some(Input::RegistrationsLost { runners })
    }

    fn sleep(&self) -> Duration {
        let now = self.clock.now().mono;
        let wait = self
            .fleet
            .next_deadline()
            .map(|deadline| Duration::from_millis(deadline.saturating_sub(now)));
        wait.unwrap_or(LONGEST_SLEEP)
            .clamp(SHORTEST_SLEEP, LONGEST_SLEEP)
    }

    fn drain(&mut self, batch: &mut Batch) {
        while !batch.is_full() {
            if let Some(settled) = self.effects.try_next() {
                self.settle(settled, batch);
            } else if let Ok(envelope) = self.outlet.try_recv() {
                batch.add(envelope);
            } else {
                break;
            }
        }
    }

    fn settle(&mut self, settled: Settled, batch: &mut Batch) {
        let (input, key, secret) = split(settled);
        batch.inputs.push(input);
        batch.settled.push(key);
        self.registrations.extend(secret);
    }

    /// One step, one commit, then everything the commit allows.
    async fn turn(&mut self, batch: Batch, stop: &CancellationToken) -> Result<(), DriverError> {
        let Batch {
            inputs,
            settings,
            audit,
            tokens,
            records,
            waiting,
            settled,
        } = batch;
        self.outrank(&inputs).await?;
        let now = self.clock.now();
        let begun = Instant::now();
        let facts = self.fleet.step(now, &mut self.entropy, &inputs);
        self.metrics.steps.observe(begun.elapsed().as_secs_f64());
        self.metrics.batch.observe(inputs.len() as f64);
        let nothing = settings.is_empty() && audit.is_empty() && tokens.is_empty();
        if !(facts.is_empty() && records.is_empty() && nothing) {
            let commit = Commit {
                expected_epoch: self.fleet.epoch(),
                at: now.utc,
                facts,
                settings,
                audit,
                tokens,
                records,
            };
            let facts = self.commit(commit, stop).await?;
            self.after(waiting, &settled);
            self.drop_registrations(&facts);
            self.publish(facts, now.utc).await?;
        } else {
            self.after(waiting, &settled);
        }
        if !stop.is_cancelled() {
            self.deliver(&inputs);
            self.dispatch();
        }
        Ok(())
    }

    /// Answers who waited and frees what was settled: everything is durable.
    fn after(&mut self, waiting: Vec<oneshot::Sender<u64>>, settled: &[EffectKey]) {
        for done in waiting {
            // The caller may have given up waiting.
            let _ = done.send(self.sequence);
        }
        for key in settled {
            self.effects.forget(key);
        }
    }

    /// A node that heard a higher generation than ours: our epoch is raised above it first.
    async fn outrank(&mut self, inputs: &[Input]) -> Result<(), DriverError> {
        let epoch = self.fleet.epoch();
        let above = inputs
            .iter()
            .filter_map(|input| match input {
                Input::NodeAttached(attached) => {
                    let node = self.fleet.node(&attached.node);
                    let ours = Generation {
                        epoch,
                        counter: node
                            .filter(|node| node.generation.epoch == epoch)
                            .map_or(0, |node| node.generation.counter),
                    };
                    (attached.highest > ours).then_some(attached.highest.epoch + 1)
                }
                _ => None,
            })
            .max();
        let Some(at_least) = above else {
            return Ok(());
        };
        let raised = self.store.raise_epoch(epoch, at_least).await?;
        tracing::warn!(
            epoch = raised.epoch,
            "a node knew a newer scheduler; epoch raised above it"
        );
        let fact = Fact::EpochRaised {
            epoch: raised.epoch,
        };
        self.fleet.apply(&fact);
        self.sequence = raised.sequence;
        let at = self.clock.now().utc;
        self.publish(vec![fact], at).await
    }

    /// Makes a batch durable. A full disk is waited out, everything else ends the driver.
    async fn commit(
        &mut self,
        commit: Commit,
        stop: &CancellationToken,
    ) -> Result<Vec<Fact>, DriverError> {
        let begun = Instant::now();
        loop {
            match self.store.commit(commit.clone()).await {
                Ok(sequence) => {
                    self.sequence = sequence;
                    self.metrics.commits.observe(begun.elapsed().as_secs_f64());
                    self.metrics.facts.inc_by(commit.facts.len() as u64);
                    return Ok(commit.facts);
                }
                Err(error @ StoreError::Full { .. }) if !stop.is_cancelled() => {
                    self.metrics.full_disk.inc();
                    tracing::error!(%error, "nothing new is accepted until the disk has room");
                    tokio::select! {
                        () = tokio::time::sleep(FULL_DISK_REST) => {}
                        () = stop.cancelled() => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn publish(&self, facts: Vec<Fact>, at: u64) -> Result<(), DriverError> {
        if facts.is_empty() {
            return Ok(());
        }
        let committed = Committed {
            sequence: self.sequence,
            facts,
            at,
        };
        self.view
            .send(committed)
            .await
            .map_err(|_| DriverError::ViewEnded)
    }

    /// Secrets live no longer than they are needed.
    fn drop_registrations(&mut self, facts: &[Fact]) {
        for fact in facts {
            match fact {
                Fact::RunnerObserved { runner, phase, .. } if *phase >= ObservedPhase::Consumed => {
                    self.registrations.remove(runner);
                }
                Fact::RunnerRetired { runner, .. } | Fact::RunnerStopping { runner, .. } => {
                    self.registrations.remove(runner);
                }
                _ => {}
            }
        }
    }

    /// Hands fresh registrations to their nodes, and all of them to a node that came back.
    fn deliver(&mut self, inputs: &[Input]) {
        let mut attached = BTreeSet::new();
        for input in inputs {
            match input {
                Input::RegistrationReady { runner, .. } => self.hand_over(&runner.clone()),
                Input::NodeAttached(node) => {
                    attached.insert(node.node.clone());
                }
                _ => {}
            }
        }
        for node in attached {
            self.sent.remove(&node);
            self.send_intent(&node);
            let runners: Vec<RunnerName> = self
                .fleet
                .node(&node)
                .into_iter()
                .flat_map(|node| node.runners.iter().cloned())
                .filter(|runner| self.registrations.contains_key(runner))
                .collect();
            for runner in runners {
                self.hand_over(&runner);
            }
        }
    }

    fn hand_over(&mut self, runner: &RunnerName) {
        let wanted = self
            .fleet
            .runner(runner)
            .filter(|known| known.stopping.is_none() && !known.is_consumed())
            .map(|known| known.placed.node.clone());
        let Some(node) = wanted else {
            self.registrations.remove(runner);
            return;
        };
        if let Some(secret) = self.registrations.get(runner) {
            self.link.send_registration(&node, runner, secret.clone());
        }
    }

    fn send_intent(&mut self, node: &NodeName) {
        let Some(session) = self.link.session(node) else {
            return;
        };
        let Some(intent) = self.fleet.intent(node) else {
            return;
        };
        let word = (session, intent.generation);
        if self.sent.get(node) != Some(&word) {
            self.sent.insert(node.clone(), word);
            self.link.send_intent(node, intent);
        }
    }

    /// Starts whatever is owed and not under way.
    fn dispatch(&mut self) {
        let mut intents = Vec::new();
        let mut calls = Vec::new();
        for effect in self.fleet.outstanding() {
            match effect {
                Effect::SendIntent { node, .. } => intents.push(node.clone()),
                call if !self.effects.is_in_flight(&call.key()) => calls.push(call.clone()),
                _ => {}
            }
        }
        for node in intents {
            self.send_intent(&node);
        }
        for call in calls {
            let traceparent = match &call {
                Effect::Register { runner, .. } => self
                    .fleet
                    .runner(runner)
                    .and_then(|runner| runner.placed.traceparent.clone()),
                _ => None,
            };
            self.effects.start(call, traceparent.as_deref());
        }
    }
}
