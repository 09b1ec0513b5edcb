//! The node's reconciler: intent and observations in, actions out.
//!
//! Level-triggered and idempotent. The node decides nothing: it makes what the
//! newest accepted intent says, and what an intent does not name is left alone.

use std::collections::BTreeMap;

use crate::exit::classify;
use crate::lifecycle::{LIFETIME_GRACE_MS, RETRY_MS, Runner, Stage, Step, UNWANTED_SANDBOX_MS};
use crate::model::{
    Cause, Desired, Durable, Exit, Generation, Intent, Now, ObservedRunner, RunnerError, RunnerSpec,
};
use crate::names::is_runner_name;
use crate::runtime::{Found, Outcome, Processes};

/// Most runners a node keeps track of; an intent with more is cut off there.
pub const MAX_RUNNERS: usize = 10_000;

/// What the shell has to do. At most one per runner is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make and start a sandbox. Answer with `Prepared` or `PrepareFailed`.
    Prepare {
        runner: String,
        spec: Box<RunnerSpec>,
    },
    /// Rename, write the registration, close the input. Answer `HandedOver` or `HandOverFailed`.
    HandOver { runner: String },
    /// Look for a worker. Answer `Looked` or `LookFailed`.
    Look { runner: String },
    /// Interrupt it, kill it after the grace. Answer `EndAsked`.
    End { runner: String, grace_ms: u64 },
    /// End it if it still runs and read how it ended. Answer `Collected` or `CollectFailed`.
    Collect { runner: String },
    /// Remove everything of it. Comes after `Collected` was written down. Answer `Removed` or `RemoveFailed`.
    Remove { runner: String },
    /// Drop what is held in memory for it.
    Forget { runner: String },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    RegistrationHeld {
        runner: String,
    },
    Prepared {
        runner: String,
        container_id: String,
    },
    PrepareFailed {
        runner: String,
        error: RunnerError,
    },
    HandedOver {
        runner: String,
    },
    HandOverFailed {
        runner: String,
        detail: String,
    },
    /// Not begun, because the firewall was found missing.
    HandOverPostponed {
        runner: String,
    },
    /// The runner program says that it listens for jobs.
    Online {
        runner: String,
    },
    /// Its processes were seen without an action having asked for it.
    Seen {
        runner: String,
        processes: Processes,
    },
    /// The answer to `Look`: begun after the action was given.
    Looked {
        runner: String,
        processes: Processes,
    },
    LookFailed {
        runner: String,
    },
    EndAsked {
        runner: String,
    },
    Died {
        runner: String,
    },
    Collected {
        runner: String,
        outcome: Outcome,
    },
    CollectFailed {
        runner: String,
    },
    Removed {
        runner: String,
    },
    RemoveFailed {
        runner: String,
    },
    /// Whether the firewall rules were verified; no hand-over without.
    Firewall {
        in_place: bool,
    },
}

/// The answer to an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    Accepted,
    /// Older than one that was accepted before: nothing of it is done.
    Stale,
}

/// The whole state of a node.
#[derive(Clone, Debug)]
pub struct Node {
    highest: Generation,
    cordoned: bool,
    runners: BTreeMap<String, Runner>,
    /// Registrations that came before the intent which names their runner.
    early_registrations: std::collections::BTreeSet<String>,
    lease_ms: u64,
    last_contact_ms: Option<u64>,
    firewall: bool,
    changes: u64,
}

impl Node {
    /// An empty node that remembers what its last process wrote down.
    pub fn new(durable: Durable, lease_ms: u64) -> Self {
        let mut runners = BTreeMap::new();
        for observed in durable.finished {
            if observed.phase.is_over() {
                runners.insert(observed.name.clone(), Runner::restored(observed));
            }
        }
        for observed in durable.live {
            runners
                .entry(observed.name.clone())
                .or_insert_with(|| Runner::restored(observed));
        }
        Self {
            highest: durable.highest,
            cordoned: false,
            runners,
            early_registrations: Default::default(),
            lease_ms,
            last_contact_ms: None,
            firewall: false,
            changes: 0,
        }
    }

    /// Highest generation ever accepted.
    pub fn highest(&self) -> Generation {
        self.highest
    }

    /// Counts changes a report would show; the shell reports when it moved.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn set_lease(&mut self, lease_ms: u64) {
        self.lease_ms = lease_ms;
    }

    /// The scheduler was heard of now.
    pub fn contact(&mut self, now: Now) {
        self.last_contact_ms = Some(now.mono_ms);
    }

    /// New sandboxes and hand-overs are allowed: the lease has not run out.
    pub fn may_start(&self, now: Now) -> bool {
        self.last_contact_ms
            .is_some_and(|at| now.mono_ms.saturating_sub(at) <= self.lease_ms)
    }

    /// True while any runner has, or may soon have, a sandbox.
    pub fn has_live_runners(&self) -> bool {
        self.runners.values().any(Runner::has_sandbox)
    }

    /// Some operation was given out and has not been answered.
    pub fn has_step_under_way(&self) -> bool {
        self.runners.values().any(|runner| runner.step.is_some())
    }

    pub fn runner(&self, name: &str) -> Option<ObservedRunner> {
        self.runners.get(name).map(Runner::observed)
    }

    pub fn spec(&self, name: &str) -> Option<&RunnerSpec> {
        self.runners
            .get(name)
            .and_then(|runner| runner.spec.as_ref())
    }

    /// Names of runners that hold a registration and have not ended.
    pub fn handed_over(&self) -> impl Iterator<Item = &str> {
        self.runners
            .values()
            .filter(|runner| runner.lives())
            .map(|runner| runner.name.as_str())
    }

    /// Takes what was found in the engine at start. `recover` has removed every
    /// sandbox that never started its runner program, except from this list.
    pub fn adopt(&mut self, found: Found, now: Now) {
        // Observations of the earlier process are unknown, so number far above them.
        let base = now.utc_ms.max(1);
        let name = found.name.clone();
        let runner = self
            .runners
            .entry(name.clone())
            .or_insert_with(|| Runner::new(&name));
        if runner.is_over() {
            // Its end was written down; only the remains are collected again.
            runner.stage = Stage::Ending;
        }
        runner.observation = runner.observation.max(base);
        runner.container_id = found.container_id;
        runner.consumed = true;
        runner.times.created.get_or_insert(found.started_utc_ms);
        runner.times.ready.get_or_insert(found.started_utc_ms);
        runner.foreign = true;
        if !found.running {
            runner.stage = Stage::Ending;
        } else if !found.processes.listener && !found.processes.worker {
            runner.ending = Some((
                Cause::NeverStarted,
                "the agent restarted during the hand-over; the runner program never started".into(),
            ));
            runner.stage = Stage::Ending;
        } else {
            runner.times.consumed.get_or_insert(found.started_utc_ms);
            runner.stage = Stage::Consumed;
            // What an earlier process saw says nothing about now.
            runner.worker = false;
            // A sandbox may have waited long before its hand-over.
            let began = runner.times.consumed.unwrap_or(found.started_utc_ms);
            let age = now.utc_ms.saturating_sub(began.max(found.started_utc_ms));
            let lifetime = if found.lifetime_ms == 0 {
                runner.lifetime_ms()
            } else {
                found.lifetime_ms
            };
            runner.deadline_ms = Some(now.mono_ms + lifetime.saturating_sub(age));
            runner.online(now);
            runner.saw(found.processes.worker, now);
        }
        self.changes += 1;
    }

    /// The engine was asked: what was alive before and is not in it has ended.
    pub fn recovered(&mut self, found: Vec<Found>, now: Now) {
        let names: std::collections::BTreeSet<String> =
            found.iter().map(|found| found.name.clone()).collect();
        for found in found {
            self.adopt(found, now);
        }
        for runner in self.runners.values_mut() {
            if runner.lives() && runner.step.is_none() && !names.contains(&runner.name) {
                runner.observation = runner.observation.max(now.utc_ms);
                runner.stage = Stage::Ending;
                runner.changed();
            }
        }
        self.changes += 1;
    }

    /// Takes an intent. Runners it does not name go on as they are.
    pub fn accept(&mut self, intent: Intent, now: Now) -> (Accept, Vec<Action>) {
        if intent.generation < self.highest {
            return (Accept::Stale, Vec::new());
        }
        self.highest = intent.generation;
        self.cordoned = intent.cordoned;
        self.changes += 1;
        let mut forget = Vec::new();
        self.runners.retain(|name, runner| {
            let named = intent.runners.contains_key(name);
            let keep = named || !(runner.is_over() && runner.end_reported);
            if !keep {
                forget.push(Action::Forget {
                    runner: name.clone(),
                });
            }
            keep
        });
        for (name, runner) in &mut self.runners {
            if !intent.runners.contains_key(name) {
                runner.desired = None;
                runner.foreign = true;
                runner.unwanted_since_ms.get_or_insert(now.mono_ms);
            }
        }
        for (name, desired) in intent.runners {
            if !is_runner_name(&name)
                || (!self.runners.contains_key(&name) && self.runners.len() >= MAX_RUNNERS)
            {
                continue;
            }
            let early = self.early_registrations.remove(&name);
            let runner = self
                .runners
                .entry(name.clone())
                .or_insert_with(|| Runner::new(&name));
            runner.registration |= early;
            runner.foreign = false;
            runner.unwanted_since_ms = None;
            if runner.spec.is_none()
                && let Desired::Run(spec) = &desired
            {
                runner.spec = Some(spec.clone());
            }
            let was_idle_stop = matches!(runner.desired, Some(Desired::StopIfIdle));
            if !(was_idle_stop && desired == Desired::StopIfIdle) {
                runner.looked_for_idle = false;
            }
            if matches!(desired, Desired::Run(_)) {
                runner.remove_refused = false;
            }
            runner.desired = Some(desired);
        }
        (Accept::Accepted, forget)
    }

    /// Takes what happened.
    pub fn observe(&mut self, event: Event, now: Now) {
        self.changes += 1;
        match event {
            Event::Firewall { in_place } => self.firewall = in_place,
            Event::RegistrationHeld { runner } => match self.runners.get_mut(&runner) {
                Some(runner) => runner.registration = true,
                None => {
                    if self.early_registrations.len() < MAX_RUNNERS {
                        self.early_registrations.insert(runner);
                    }
                }
            },
            Event::Prepared {
                runner,
                container_id,
            } => self.with(&runner, |r| {
                r.step = None;
                if r.stage == Stage::Preparing {
                    r.stage = Stage::Ready;
                    r.container_id = container_id;
                    r.times.ready = Some(now.utc_ms);
                    r.changed();
                }
            }),
            Event::PrepareFailed { runner, error } => self.with(&runner, |r| {
                r.step = None;
                r.stage = Stage::Failed;
                r.error = Some(error);
                r.registration = false;
                r.changed();
            }),
            Event::HandedOver { runner } => self.with(&runner, |r| {
                r.step = None;
                r.registration = false;
                r.consumed = true;
                r.times.consumed = Some(now.utc_ms);
                r.deadline_ms = Some(now.mono_ms + r.lifetime_ms());
                if r.stage == Stage::HandingOver {
                    r.stage = Stage::Consumed;
                }
                r.changed();
            }),
            Event::HandOverFailed { runner, detail } => self.with(&runner, |r| {
                // The registration may be half inside: the sandbox cannot be used again.
                r.step = None;
                r.registration = false;
                r.ending = Some((Cause::NeverStarted, detail));
                r.stage = Stage::Ending;
                r.changed();
            }),
            Event::HandOverPostponed { runner } => self.with(&runner, |r| {
                r.step = None;
                if r.stage == Stage::HandingOver {
                    r.stage = Stage::Ready;
                }
            }),
            Event::Online { runner } => self.with(&runner, |r| r.online(now)),
            Event::Seen { runner, processes } => {
                self.with(&runner, |r| r.saw(processes.worker, now))
            }
            Event::Looked { runner, processes } => self.with(&runner, |r| {
                if r.step == Some(Step::Look) {
                    r.step = None;
                    r.saw(processes.worker, now);
                    r.after_look(processes.worker);
                }
            }),
            Event::LookFailed { runner } => self.with(&runner, |r| {
                if r.step == Some(Step::Look) {
                    r.step = None;
                    r.retry_not_before_ms = now.mono_ms + RETRY_MS;
                }
            }),
            Event::EndAsked { runner } => self.with(&runner, |r| {
                if r.step == Some(Step::End) {
                    r.step = None;
                }
            }),
            Event::Died { runner } => self.with(&runner, |r| {
                if r.has_sandbox() && r.stage != Stage::Preparing {
                    if r.stage == Stage::HandingOver {
                        // Its answer will come; until then nothing else is done.
                        r.consumed = true;
                    }
                    if r.stage != Stage::Removing {
                        r.stage = Stage::Ending;
                    }
                    if r.step == Some(Step::Look) || r.step == Some(Step::End) {
                        r.step = None;
                    }
                    r.changed();
                }
            }),
            Event::Collected { runner, outcome } => {
                self.with(&runner, |r| r.collected(outcome, now))
            }
            Event::Removed { runner } => self.with(&runner, |r| {
                r.step = None;
                r.stage = Stage::Exited;
                r.changed();
            }),
            Event::CollectFailed { runner } | Event::RemoveFailed { runner } => {
                self.with(&runner, |r| {
                    r.step = None;
                    r.retry_not_before_ms = now.mono_ms + RETRY_MS;
                })
            }
        }
    }

    fn with(&mut self, name: &str, change: impl FnOnce(&mut Runner)) {
        if let Some(runner) = self.runners.get_mut(name) {
            change(runner);
        }
    }

    /// What is owed now. Each action is returned once, until its answer comes.
    pub fn reconcile(&mut self, now: Now) -> Vec<Action> {
        let may_start = self.may_start(now);
        let context = Context {
            now,
            may_prepare: may_start && !self.cordoned,
            may_hand_over: may_start && self.firewall,
        };
        let mut actions = Vec::new();
        for runner in self.runners.values_mut() {
            if let Some(action) = runner.next(&context) {
                actions.push(action);
                self.changes += 1;
            }
        }
        actions
    }

    /// When `reconcile` has to be called next although nothing happened.
    pub fn next_deadline_ms(&self, now: Now) -> Option<u64> {
        self.runners
            .values()
            .filter(|runner| !runner.is_over())
            .flat_map(|runner| {
                let retry = (runner.step.is_none() && runner.retry_not_before_ms > now.mono_ms)
                    .then_some(runner.retry_not_before_ms);
                let unwanted = (runner.stage == Stage::Ready)
                    .then(|| runner.unwanted_since_ms.map(|at| at + UNWANTED_SANDBOX_MS))
                    .flatten();
                [
                    if runner.end_asked {
                        None
                    } else {
                        runner.deadline_ms
                    },
                    retry,
                    unwanted,
                ]
            })
            .flatten()
            .map(|at| at.max(now.mono_ms))
            .min()
    }

    /// A report with these went out: the ends in it count as told.
    pub fn told(&mut self, report: &[ObservedRunner]) {
        for observed in report.iter().filter(|observed| observed.phase.is_over()) {
            if let Some(runner) = self.runners.get_mut(&observed.name) {
                runner.end_reported |= runner.is_over();
            }
        }
    }

    /// Everything observed, in the order of names.
    pub fn observed(&self) -> Vec<ObservedRunner> {
        self.runners.values().map(Runner::observed).collect()
    }

    /// What has to survive this process.
    pub fn durable(&self) -> Durable {
        Durable {
            highest: self.highest,
            live: self
                .runners
                .values()
                .filter(|runner| {
                    runner.lives() || (runner.stage == Stage::Ending && runner.consumed)
                })
                .map(Runner::observed)
                .collect(),
            finished: self
                .runners
                .values()
                .filter(|runner| runner.is_over() || runner.stage == Stage::Removing)
                .map(Runner::ended)
                .collect(),
        }
    }
}

struct Context {
    now: Now,
    may_prepare: bool,
    may_hand_over: bool,
}

impl Runner {
    /// The one place that decides what is done for a runner.
    fn next(&mut self, context: &Context) -> Option<Action> {
        if self.step.is_some() {
            return None;
        }
        let runner = self.name.clone();
        match self.stage {
            Stage::Exited | Stage::Failed => None,
            Stage::Wanted => self.next_wanted(context),
            Stage::Preparing | Stage::HandingOver => None,
            Stage::Ready => self.next_ready(context),
            Stage::Ending => self.due(context.now).then(|| {
                self.step = Some(Step::Collect);
                Action::Collect { runner }
            }),
            Stage::Removing => self.due(context.now).then(|| {
                self.step = Some(Step::Remove);
                Action::Remove { runner }
            }),
            Stage::Consumed | Stage::Online | Stage::Busy => self.next_alive(context),
        }
    }

    fn next_wanted(&mut self, context: &Context) -> Option<Action> {
        match &self.desired {
            Some(Desired::Run(spec)) => context.may_prepare.then(|| {
                let spec = Box::new(spec.clone());
                self.stage = Stage::Preparing;
                self.step = Some(Step::Prepare);
                self.times.created = Some(context.now.utc_ms);
                Action::Prepare {
                    runner: self.name.clone(),
                    spec,
                }
            }),
            Some(Desired::Kill { reason, .. }) => {
                let reason = reason.clone();
                self.finish_unstarted(Cause::NeverStarted, &reason, context.now);
                None
            }
            Some(Desired::StopIfIdle | Desired::Remove { .. }) => {
                self.finish_unstarted(
                    Cause::NeverStarted,
                    "no sandbox of it is on this node",
                    context.now,
                );
                None
            }
            // Never begun and no longer named: there is nothing to leave alone.
            None => {
                self.finish_unstarted(
                    Cause::NeverStarted,
                    "no longer wanted before it began",
                    context.now,
                );
                None
            }
        }
    }

    fn next_ready(&mut self, context: &Context) -> Option<Action> {
        let give_up = |this: &mut Self, cause: Cause, detail: &str| {
            this.ending = Some((cause, detail.to_owned()));
            this.stage = Stage::Ending;
            this.registration = false;
            this.step = Some(Step::Collect);
            Some(Action::Collect {
                runner: this.name.clone(),
            })
        };
        match self.desired.clone() {
            Some(Desired::Run(_)) if self.registration && context.may_hand_over => {
                self.stage = Stage::HandingOver;
                self.step = Some(Step::HandOver);
                Some(Action::HandOver {
                    runner: self.name.clone(),
                })
            }
            Some(Desired::Run(_)) => None,
            // No registration went in, so no job can be in it: no look is needed.
            Some(Desired::StopIfIdle | Desired::Remove { .. }) => give_up(
                self,
                Cause::Idle,
                "not needed any more before it got a registration",
            ),
            Some(Desired::Kill { reason, .. }) => give_up(self, Cause::Killed, &reason),
            None => match self.unwanted_since_ms {
                Some(since) if context.now.mono_ms.saturating_sub(since) >= UNWANTED_SANDBOX_MS => {
                    give_up(self, Cause::Idle, "no scheduler asked for it any more")
                }
                _ => None,
            },
        }
    }

    fn next_alive(&mut self, context: &Context) -> Option<Action> {
        if let Some(Desired::Kill { reason, grace_ms }) = self.desired.clone()
            && !self.end_asked
        {
            return Some(self.end((Cause::Killed, reason), grace_ms));
        }
        if !self.end_asked && self.deadline_ms.is_some_and(|at| context.now.mono_ms >= at) {
            let detail = format!(
                "reached its longest life of {} s",
                self.lifetime_ms() / 1_000
            );
            return Some(self.end((Cause::Lifetime, detail), LIFETIME_GRACE_MS));
        }
        if self.end_asked {
            return None;
        }
        match self.desired {
            Some(Desired::StopIfIdle) if !self.looked_for_idle => {}
            // An older observation than the newest proves nothing about now.
            Some(Desired::Remove { observation }) if observation == self.observation => {}
            _ => return None,
        }
        if !self.due(context.now) {
            return None;
        }
        self.step = Some(Step::Look);
        Some(Action::Look {
            runner: self.name.clone(),
        })
    }

    fn end(&mut self, why: (Cause, String), grace_ms: u64) -> Action {
        self.ending = Some(why);
        self.end_asked = true;
        self.step = Some(Step::End);
        Action::End {
            runner: self.name.clone(),
            grace_ms,
        }
    }

    /// Decides on what a look was for.
    fn after_look(&mut self, worker: bool) {
        if !self.lives() || self.end_asked {
            return;
        }
        match self.desired {
            Some(Desired::StopIfIdle) if !self.looked_for_idle => {
                // The fresh observation is what the scheduler's removal will name.
                self.looked_for_idle = true;
                self.changed();
            }
            Some(Desired::Remove { .. }) if worker && !self.remove_refused => {
                self.remove_refused = true;
                self.changed();
            }
            Some(Desired::Remove { .. }) if worker => {}
            Some(Desired::Remove { observation }) if observation == self.observation => {
                self.ending = Some((Cause::Idle, "idle, and its registration was deleted".into()));
                self.stage = Stage::Ending;
                self.changed();
            }
            _ => {}
        }
    }

    fn collected(&mut self, outcome: Outcome, now: Now) {
        self.step = None;
        let mut ended = outcome.ended;
        ended.consumed = self.consumed;
        ended.ended_by_us = self.ending.clone();
        let (cause, detail) = classify(&ended);
        let ran = !matches!(cause, Cause::NeverStarted) && self.consumed;
        // An end that an earlier process wrote down stands: it saw more.
        if self.exit.is_none() {
            self.exit = Some(Exit {
                code: ended.code.filter(|_| ran),
                cause,
                detail,
                usage: outcome.usage,
                finished_utc_ms: if outcome.finished_utc_ms == 0 {
                    now.utc_ms
                } else {
                    outcome.finished_utc_ms
                },
                denied: outcome.denied,
            });
        }
        self.stage = Stage::Removing;
        self.worker = false;
        self.registration = false;
        self.changed();
    }

    fn due(&self, now: Now) -> bool {
        now.mono_ms >= self.retry_not_before_ms
    }
}

#[cfg(test)]
mod tests;
