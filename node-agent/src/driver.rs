//! Owns the node's state: takes inputs, carries out what the core owes, tells what changed.
//!
//! One task. Operations on the engine run beside it, at most one per runner,
//! and come back as events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent_core::probe::Probed;
use agent_core::runtime::{Found, Notice, Outcome, Outlook, Processes, Runtime, RuntimeError};
use agent_core::sandbox::RuntimeClass;
use agent_core::{
    Accept, Action, Condition, Desired, ErrorReason, Event, Generation, Intent, Node,
    ObservedRunner, Phase, Resources, RunnerError, RunnerSpec,
};
use agent_detect::nvidia::meter::Meter;
use longshore_proto::v1 as pb;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, error, info, warn};

use crate::clock::Clock;
use crate::findings::Findings;
use crate::logstore::LogStore;
use crate::probing::{Probing, Wanted};
use crate::secrets::{Secret, Secrets};
use crate::state::StateFile;
use crate::telemetry;

/// Inputs waiting for the driver; a scheduler that sends more waits.
pub const INPUTS: usize = 1_024;
/// Inputs and notices taken before the core is asked again.
const BATCH: usize = 256;
/// Operations on the engine at the same time, all kinds together.
const PARALLEL: usize = 64;
/// Firewall, conditions and processes are looked at this often.
const CHECK: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// How long running operations are waited for when the agent is told to go.
const DETACH: Duration = Duration::from_secs(4);
/// Said to who asks for a look while one is under way.
const BUSY: &str = "another look at a sandbox is under way on this node";
/// Clocks further apart than this break registrations (facts.md 5, row 14).
const MAX_CLOCK_OFFSET_MS: i64 = 60_000;

/// What comes from the link.
#[derive(Debug)]
pub enum Input {
    Attached {
        fleet: String,
        lease_ms: Option<u64>,
        /// This node's clock minus the scheduler's.
        clock_offset_ms: i64,
    },
    /// The stream is known to be alive now.
    Alive,
    Intent {
        intent: Intent,
        logs: Vec<Subscription>,
    },
    Registration {
        runner: String,
        secret: Secret,
    },
    /// What this node offers changed: its capability is made anew.
    Devices,
    /// This report went out on the stream.
    Told(Vec<ObservedRunner>),
    /// Somebody wants to know what a sandbox here holds, now.
    Check(Wanted),
    /// Somebody wants to know whether the driver still works through its inputs.
    Asked(oneshot::Sender<()>),
}

/// Output of a runner that the scheduler wants, from an offset on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub runner: String,
    pub offset: u64,
}

/// Everything a report is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub accepted: Generation,
    pub runners: Vec<ObservedRunner>,
    pub conditions: Vec<Condition>,
    pub capability: Arc<pb::Capability>,
}

/// What the driver gives away to its neighbours.
pub struct Outlets {
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub subscriptions: watch::Sender<Vec<Subscription>>,
    /// How often the engine became ready.
    pub engine: watch::Sender<u64>,
}

/// Builds the capability; asked again after each recovery of the engine.
pub type Fingerprint = Box<dyn Fn() -> pb::Capability + Send + Sync>;

pub struct Driver<R: Runtime> {
    runtime: Arc<R>,
    node: Node,
    clock: Clock,
    secrets: Secrets,
    state: Option<StateFile>,
    logs: Arc<LogStore>,
    fingerprint: Fingerprint,
    outlets: Outlets,
    parallel: Arc<Semaphore>,
    work: JoinSet<Done>,
    spans: BTreeMap<String, Span>,
    /// Runners whose processes are being looked at without an order.
    looking: BTreeSet<String>,
    recovered: bool,
    engine_problem: Option<String>,
    retry: Duration,
    clock_offset_ms: i64,
    runtime_conditions: Vec<Condition>,
    state_problem: Option<String>,
    capability: Arc<pb::Capability>,
    /// Runners that may be asked for, and whether none may start.
    outlook: (Vec<RunnerSpec>, bool),
    probing: Probing,
    findings: Arc<Findings>,
    gpu_memory: Arc<Meter>,
}

/// What an operation on the engine came to.
enum Done {
    Event(Event),
    HandOverPostponed {
        runner: String,
    },
    Seen {
        runner: String,
        processes: Option<Processes>,
    },
    Recovered(Result<Vec<Found>, RuntimeError>),
    Probed {
        wanted: Wanted,
        result: Result<Option<Probed>, RuntimeError>,
    },
    Checked {
        firewall: bool,
        conditions: Vec<Condition>,
    },
}

impl<R: Runtime> Driver<R> {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        runtime: Arc<R>,
        clock: Clock,
        state: Option<StateFile>,
        logs: Arc<LogStore>,
        fingerprint: Fingerprint,
        findings: Arc<Findings>,
        gpu_memory: Arc<Meter>,
        outlets: Outlets,
        lease_ms: u64,
    ) -> Self {
        let durable = state.as_ref().map(StateFile::loaded).unwrap_or_default();
        let capability = Arc::new(fingerprint());
        Self {
            runtime,
            node: Node::new(durable, lease_ms),
            clock,
            secrets: Secrets::default(),
            state,
            logs,
            fingerprint,
            outlets,
            parallel: Arc::new(Semaphore::new(PARALLEL)),
            work: JoinSet::new(),
            spans: BTreeMap::new(),
            looking: BTreeSet::new(),
            recovered: false,
            engine_problem: None,
            retry: FIRST_RETRY,
            clock_offset_ms: 0,
            runtime_conditions: Vec::new(),
            state_problem: None,
            capability,
            outlook: (Vec::new(), false),
            probing: Probing::default(),
            findings,
            gpu_memory,
        }
    }

    /// Runs until `stop`; containers run on.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut checks = tokio::time::interval(CHECK);
        checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.recover_after(Duration::ZERO);
        self.publish();
        loop {
            let now = self.clock.now();
            let deadline = self
                .node
                .next_deadline_ms(now)
                .into_iter()
                .chain(self.probing.deadline().filter(|_| self.may_probe()))
                .min()
                .map(|at| self.clock.instant(at));
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let runtime = self.runtime.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.work.join_next(), if !self.work.is_empty() => self.done(done),
                notice = runtime.notice() => self.notice(notice),
                input = inputs.recv() => match input {
                    Some(input) => {
                        self.input(input);
                        // What is ready already is one step.
                        for _ in 0..BATCH {
                            let Ok(input) = inputs.try_recv() else { break };
                            self.input(input);
                        }
                    }
                    None => break,
                },
                _ = checks.tick() => self.check(),
                () = timer => {}
            }
            self.step();
        }
        self.detach().await;
    }

    /// Decides, writes down, acts, tells: in this order.
    fn step(&mut self) {
        let now = self.clock.now();
        let actions = if self.recovered {
            self.node.reconcile(now)
        } else {
            Vec::new()
        };
        self.save();
        for action in actions {
            // Nothing of a finished runner is removed before its end is on disk.
            if self.state_problem.is_some()
                && let Action::Remove { runner } = action
            {
                self.node.observe(Event::RemoveFailed { runner }, now);
                continue;
            }
            self.act(action);
        }
        self.probe_if_due();
        self.publish();
    }

    fn may_probe(&self) -> bool {
        self.recovered && self.engine_problem.is_none()
    }

    /// Looks at a sandbox from inside when it is time. Beside everything else: no
    /// job waits for it but those whose profile nobody has seen to hold yet.
    fn probe_if_due(&mut self) {
        if !self.may_probe() {
            return;
        }
        let now = self.clock.now().mono_ms;
        let busy = self
            .node
            .observed()
            .iter()
            .any(|runner| runner.phase == Phase::Preparing);
        let looked_from = self.findings.image();
        let Some(wanted) = self.probing.next(now, looked_from.as_deref(), busy) else {
            return;
        };
        let runtime = self.runtime.clone();
        self.work.spawn(async move {
            let result = runtime.probe(&wanted.spec).await;
            Done::Probed { wanted, result }
        });
    }

    fn probed(&mut self, wanted: Wanted, result: Result<Option<Probed>, RuntimeError>) {
        let now = self.clock.now();
        let image = &wanted.spec.image;
        let class = RuntimeClass::parse(&wanted.spec.runtime);
        match (class, wanted.answer.is_some()) {
            (Some(class), false) => {
                self.probing
                    .runtime_ended(now.mono_ms, class, result.is_ok());
            }
            _ => self.probing.ended(now.mono_ms, image, result.is_ok()),
        }
        match &result {
            Ok(Some(probed)) => {
                let failed = probed.failed();
                if failed.is_empty() {
                    info!(
                        image,
                        runtime = wanted.spec.runtime,
                        took_ms = probed.took_ms,
                        "the sandbox holds what it promises"
                    );
                } else {
                    error!(
                        image,
                        runtime = wanted.spec.runtime,
                        ?failed,
                        "the sandbox does not hold what it promises"
                    );
                }
                match (wanted.publish, class) {
                    (true, None) => self.findings.found(probed, now.utc_ms),
                    (true, Some(class)) => {
                        self.findings.found_under(class, Ok(probed), now.utc_ms);
                    }
                    (false, _) => {}
                }
            }
            Ok(None) => {}
            Err(error) => {
                warn!(image, runtime = wanted.spec.runtime, %error, "the sandbox could not be looked at");
                match (wanted.publish, class) {
                    (true, None) => self.findings.failed(error.detail.clone()),
                    (true, Some(class)) => {
                        let why = Err(error.detail.clone());
                        self.findings.found_under(class, why, now.utc_ms);
                    }
                    (false, _) => {}
                }
            }
        }
        if wanted.publish {
            self.capability = Arc::new((self.fingerprint)());
            if class.is_none() {
                self.probing.look_at_runtimes(&self.findings.to_look_at());
            }
        }
        if let Some(answer) = wanted.answer {
            let told = match result {
                Ok(Some(probed)) => Ok(probed),
                Ok(None) => Err(RunnerError {
                    reason: ErrorReason::SpecRefused,
                    detail: "this runtime's sandboxes cannot be looked at from inside".into(),
                }),
                Err(error) => Err(RunnerError::from(error)),
            };
            // Whoever asked may be gone.
            let _ = answer.send(told);
        }
    }

    fn input(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Attached {
                fleet,
                lease_ms,
                clock_offset_ms,
            } => {
                self.runtime.set_fleet(&fleet);
                if let Some(lease) = lease_ms {
                    self.node.set_lease(lease);
                }
                self.clock_offset_ms = clock_offset_ms;
                self.node.contact(now);
            }
            Input::Alive => self.node.contact(now),
            Input::Intent { mut intent, logs } => {
                self.node.contact(now);
                for desired in intent.runners.values() {
                    if let Desired::Run(spec) = desired {
                        self.probing.saw(&spec.image, &spec.platform);
                    }
                }
                let generation = intent.generation;
                let expected = std::mem::take(&mut intent.expected);
                for spec in &expected {
                    self.probing.saw(&spec.image, &spec.platform);
                }
                let cordoned = intent.cordoned;
                let (answer, actions) = self.node.accept(intent, now);
                match answer {
                    Accept::Accepted => {
                        self.outlets.subscriptions.send_if_modified(|current| {
                            let changed = *current != logs;
                            *current = logs;
                            changed
                        });
                        self.outlook = (expected, cordoned);
                        self.look_ahead();
                    }
                    Accept::Stale => {
                        warn!(?generation, highest = ?self.node.highest(), "refused an older intent")
                    }
                }
                for action in actions {
                    self.act(action);
                }
            }
            Input::Registration { runner, secret } => {
                self.node.contact(now);
                // Sent again after a reconnect: a runner that has one keeps it.
                let wanted = self.node.runner(&runner).is_none_or(|observed| {
                    matches!(observed.phase, Phase::Preparing | Phase::Ready)
                });
                if wanted && self.secrets.hold(&runner, secret) {
                    self.node.observe(Event::RegistrationHeld { runner }, now);
                }
            }
            Input::Devices => self.capability = Arc::new((self.fingerprint)()),
            Input::Told(report) => self.node.told(&report),
            Input::Asked(answer) => {
                // Whoever asked may have left.
                let _ = answer.send(());
            }
            Input::Check(wanted) => {
                let refused = if self.may_probe() {
                    match self.probing.ask(wanted) {
                        Ok(()) => None,
                        Err(wanted) => Some((wanted, ErrorReason::OutOfSlots, BUSY.to_owned())),
                    }
                } else {
                    let why = self.engine_problem.clone();
                    let why = why.unwrap_or_else(|| "the engine is not ready yet".into());
                    Some((Box::new(wanted), ErrorReason::EngineDown, why))
                };
                if let Some((wanted, reason, detail)) = refused
                    && let Some(answer) = wanted.answer
                {
                    let _ = answer.send(Err(RunnerError { reason, detail }));
                }
            }
        }
    }

    /// Tells the runtime what it may get ready for.
    fn look_ahead(&self) {
        let (expected, cordoned) = self.outlook.clone();
        let capacity = self.capability.capacity.as_ref();
        self.runtime.outlook(Outlook {
            expected,
            cordoned,
            capacity: capacity.map(|offered| Resources {
                cpu_millis: offered.cpu_millis,
                memory_bytes: offered.memory_bytes,
                gpus: 0,
            }),
            max_runners: self.capability.max_runners,
        });
    }

    fn notice(&mut self, notice: Notice) {
        let now = self.clock.now();
        match notice {
            Notice::Died { runner } => self.node.observe(Event::Died { runner }, now),
            Notice::Output {
                runner,
                chunk,
                skipped,
            } => self.output(runner, &chunk, skipped),
            Notice::OutputEnd { runner } => self.logs.close(&runner),
            Notice::Engine { problem } => {
                if problem.is_none() {
                    self.probing.engine_is_back(now.mono_ms);
                    self.outlets.engine.send_modify(|times| *times += 1);
                    self.capability = Arc::new((self.fingerprint)());
                }
                self.engine_problem = problem;
            }
        }
    }

    fn output(&mut self, runner: String, chunk: &[u8], skipped: u64) {
        let mut kept = Ok(());
        if skipped > 0 {
            kept = self
                .logs
                .append(&runner, format!("[{skipped} bytes lost]\n").as_bytes());
        }
        if let Err(error) = kept.and_then(|()| self.logs.append(&runner, chunk)) {
            debug!(runner, %error, "output was not kept");
        }
        // The program's own words are a hint when to look, never a fact about a job.
        let says = |words: &str| {
            chunk
                .windows(words.len())
                .any(|window| window == words.as_bytes())
        };
        match self.node.runner(&runner).map(|observed| observed.phase) {
            Some(Phase::Consumed) if says("Listening for Jobs") => {
                self.node.observe(
                    Event::Online {
                        runner: runner.clone(),
                    },
                    self.clock.now(),
                );
            }
            Some(Phase::Consumed | Phase::Online) if says("Running job") => {}
            _ => return,
        }
        if says("Running job") {
            self.look_unasked(runner);
        }
    }

    /// Looks at a runner's processes because something suggests a change.
    fn look_unasked(&mut self, runner: String) {
        if !self.looking.insert(runner.clone()) {
            return;
        }
        let runtime = self.runtime.clone();
        self.work.spawn(async move {
            let processes = runtime.look(&runner).await.ok();
            Done::Seen { runner, processes }
        });
    }

    fn check(&mut self) {
        self.logs.sweep(SystemTime::now());
        if !self.recovered {
            return;
        }
        let runtime = self.runtime.clone();
        self.work.spawn(async move {
            let firewall = runtime.assert_firewall().await.is_ok();
            Done::Checked {
                firewall,
                conditions: runtime.conditions().await,
            }
        });
        // The word of the program may be missing; its processes are not.
        let quiet: Vec<String> = self.node.handed_over().map(str::to_owned).collect();
        for runner in quiet {
            self.look_unasked(runner);
        }
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let now = self.clock.now();
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                // A panic in an operation is a bug; what it was for stays under way and visible.
                error!(%error, "an operation on the engine was aborted");
                return;
            }
        };
        match done {
            Done::Event(event) => self.event(event),
            Done::HandOverPostponed { runner } => {
                self.node.observe(Event::Firewall { in_place: false }, now);
                self.node.observe(Event::HandOverPostponed { runner }, now);
            }
            Done::Seen { runner, processes } => {
                self.looking.remove(&runner);
                if let Some(processes) = processes {
                    self.node.observe(Event::Seen { runner, processes }, now);
                }
            }
            Done::Recovered(Ok(found)) => {
                info!(runners = found.len(), "the engine is ready");
                for found in &found {
                    // Its whole output comes again.
                    if let Err(error) = self.logs.reset(&found.name) {
                        debug!(%error, "old output was not removed");
                    }
                }
                self.node.recovered(found, now);
                self.recovered = true;
                self.engine_problem = None;
                self.retry = FIRST_RETRY;
                self.outlets.engine.send_modify(|times| *times += 1);
                self.capability = Arc::new((self.fingerprint)());
                self.look_ahead();
                self.probing.engine_is_back(now.mono_ms);
                self.check();
            }
            Done::Probed { wanted, result } => self.probed(wanted, result),
            Done::Recovered(Err(error)) => {
                if self.engine_problem.as_ref() != Some(&error.detail) {
                    warn!(%error, "no container engine");
                }
                self.engine_problem = Some(error.detail);
                let pause = self.retry;
                self.retry = (self.retry * 2).min(LONGEST_RETRY);
                self.recover_after(pause);
            }
            Done::Checked {
                firewall,
                conditions,
            } => {
                self.runtime_conditions = conditions;
                // What a host can may turn out to be less than it seemed.
                let capability = (self.fingerprint)();
                if *self.capability != capability {
                    self.capability = Arc::new(capability);
                }
                self.node
                    .observe(Event::Firewall { in_place: firewall }, now);
            }
        }
    }

    fn event(&mut self, event: Event) {
        match &event {
            Event::HandedOver { runner } => {
                self.secrets.drop_for(runner);
                info!(runner, "handed over");
            }
            Event::HandOverFailed { runner, detail } => {
                self.secrets.drop_for(runner);
                warn!(runner, detail, "hand-over failed");
            }
            Event::PrepareFailed { runner, error } => {
                self.secrets.drop_for(runner);
                self.gpu_memory.forget(runner);
                warn!(
                    runner,
                    reason = error.reason.word(),
                    detail = error.detail,
                    "could not be prepared"
                );
                if error.reason == ErrorReason::ImageUnavailable {
                    self.check();
                }
            }
            _ => {}
        }
        let removed = match &event {
            Event::Removed { runner } => Some(runner.clone()),
            _ => None,
        };
        self.node.observe(event, self.clock.now());
        if let Some(runner) = removed {
            self.secrets.drop_for(&runner);
            self.gpu_memory.forget(&runner);
            self.logs.close(&runner);
            if let Some(exit) = self.node.runner(&runner).and_then(|observed| observed.exit) {
                info!(runner, cause = ?exit.cause, code = exit.code, detail = exit.detail, "ended");
            }
            // Dropping the span ends it: from the intent to the removed container.
            self.spans.remove(&runner);
        }
    }

    fn recover_after(&mut self, pause: Duration) {
        let runtime = self.runtime.clone();
        self.work.spawn(async move {
            tokio::time::sleep(pause).await;
            Done::Recovered(runtime.recover().await)
        });
    }

    /// Starts one operation; its answer comes back as an event.
    fn act(&mut self, action: Action) {
        let runtime = self.runtime.clone();
        let parallel = self.parallel.clone();
        match action {
            Action::Forget { runner } => {
                self.secrets.drop_for(&runner);
                self.gpu_memory.forget(&runner);
                self.spans.remove(&runner);
            }
            Action::Prepare { runner, spec } => {
                let span = telemetry::runner_span(&runner, &spec);
                let child = tracing::info_span!(parent: &span, "prepare", runner = %runner);
                self.spans.insert(runner.clone(), span);
                self.gpu_memory.begin(&runner, &spec.gpu_uuids);
                let work = async move {
                    let event = match runtime.prepare(&runner, &spec).await {
                        Ok(prepared) => Event::Prepared {
                            runner,
                            container_id: prepared.container_id,
                        },
                        Err(error) => Event::PrepareFailed {
                            runner,
                            error: RunnerError::from(error),
                        },
                    };
                    Done::Event(event)
                };
                // Not under the common limit: a pull must not hold up hand-overs and removals.
                self.work.spawn(work.instrument(child));
            }
            Action::HandOver { runner } => {
                let secret = self.secrets.get(&runner);
                let child = self.child(&runner, "hand_over");
                let work = async move {
                    let Some(secret) = secret else {
                        let detail = "the registration is not in memory any more".to_owned();
                        return Done::Event(Event::HandOverFailed { runner, detail });
                    };
                    if let Err(error) = runtime.assert_firewall().await {
                        warn!(runner, %error, "no hand-over without firewall");
                        return Done::HandOverPostponed { runner };
                    }
                    Done::Event(match runtime.hand_over(&runner, secret.expose()).await {
                        Ok(()) => Event::HandedOver { runner },
                        Err(error) => Event::HandOverFailed {
                            runner,
                            detail: error.detail,
                        },
                    })
                };
                self.work.spawn(work.instrument(child));
            }
            Action::Look { runner } => {
                self.work.spawn(async move {
                    Done::Event(match runtime.look(&runner).await {
                        Ok(processes) => Event::Looked { runner, processes },
                        Err(_) => Event::LookFailed { runner },
                    })
                });
            }
            Action::End { runner, grace_ms } => {
                self.work.spawn(async move {
                    if let Err(error) = runtime.end(&runner, Duration::from_millis(grace_ms)).await
                    {
                        warn!(runner, %error, "could not be interrupted");
                    }
                    Done::Event(Event::EndAsked { runner })
                });
            }
            Action::Collect { runner } => {
                let child = self.child(&runner, "collect");
                let gpu_memory = self.gpu_memory.clone();
                let work = async move {
                    let _turn = parallel.acquire().await;
                    Done::Event(match runtime.collect(&runner).await {
                        Ok(outcome) => {
                            let outcome = with_gpu_memory(outcome, gpu_memory, &runner).await;
                            Event::Collected { runner, outcome }
                        }
                        Err(error) => {
                            warn!(runner, %error, "its end could not be read; trying again");
                            Event::CollectFailed { runner }
                        }
                    })
                };
                self.work.spawn(work.instrument(child));
            }
            Action::Remove { runner } => {
                let child = self.child(&runner, "remove");
                let work = async move {
                    let _turn = parallel.acquire().await;
                    Done::Event(match runtime.remove(&runner).await {
                        Ok(()) => Event::Removed { runner },
                        Err(error) => {
                            warn!(runner, %error, "could not be removed; trying again");
                            Event::RemoveFailed { runner }
                        }
                    })
                };
                self.work.spawn(work.instrument(child));
            }
        }
    }

    fn child(&self, runner: &str, name: &'static str) -> Span {
        match self.spans.get(runner) {
            Some(parent) => tracing::info_span!(parent: parent, "step", otel.name = name, runner),
            None => Span::none(),
        }
    }

    fn save(&mut self) {
        let Some(state) = &mut self.state else { return };
        self.state_problem = match state.save(&self.node.durable()) {
            Ok(()) => None,
            Err(error) => {
                if self.state_problem.is_none() {
                    error!(%error, "the state file cannot be written");
                }
                Some(error.to_string())
            }
        };
    }

    fn publish(&mut self) {
        let snapshot = Snapshot {
            accepted: self.node.highest(),
            runners: self.node.observed(),
            conditions: self.conditions(),
            capability: self.capability.clone(),
        };
        self.outlets.snapshots.send_if_modified(|current| {
            let changed = **current != snapshot;
            if changed {
                *current = Arc::new(snapshot);
            }
            changed
        });
    }

    fn conditions(&self) -> Vec<Condition> {
        let mut list = self.runtime_conditions.clone();
        if let Some(problem) = &self.engine_problem {
            list.push(condition(
                "engine_down",
                problem.clone(),
                "start the container engine, restart it if it hangs, or fix engine_socket and the agent's permission on it",
            ));
        }
        if let Some(problem) = &self.state_problem {
            list.push(condition(
                "disk_full",
                format!("the agent's state file cannot be written: {problem}"),
                "free space on the disk of state_dir and check its permissions",
            ));
        }
        if self.clock_offset_ms.abs() > MAX_CLOCK_OFFSET_MS {
            let detail = format!(
                "this node's clock is {} s off the scheduler's",
                self.clock_offset_ms / 1_000
            );
            list.push(condition(
                "clock_offset",
                detail,
                "synchronise the clock (timedatectl set-ntp true)",
            ));
        }
        list.sort();
        list
    }

    /// Lets what is under way end, and leaves the containers to themselves.
    async fn detach(&mut self) {
        // Beside each other: all of it has to fit into the time that is left.
        let runtime = self.runtime.clone();
        let wait = async {
            while let Some(done) = self.work.join_next().await {
                if let Ok(Done::Event(event)) = done {
                    self.event(event);
                }
                if !self.node.has_step_under_way() {
                    break;
                }
            }
        };
        let both = async { tokio::join!(wait, runtime.detach()) };
        if tokio::time::timeout(DETACH, both).await.is_err() {
            info!("left operations to the engine");
        }
        self.work.abort_all();
        self.save();
        info!("detached; running jobs go on");
    }
}

/// Adds what a job had of its GPUs' memory. One that an earlier process of this agent
/// began has a peak that nobody saw.
async fn with_gpu_memory(mut outcome: Outcome, meter: Arc<Meter>, runner: &str) -> Outcome {
    if let Some(usage) = &mut outcome.usage
        && meter.holds(runner)
    {
        let runner = runner.to_owned();
        // A panic in it leaves the figure unknown.
        let peak = tokio::task::spawn_blocking(move || meter.end(&runner)).await;
        usage.peak_gpu_memory_bytes = peak.ok().flatten();
    }
    outcome
}

fn condition(kind: &'static str, detail: String, next_step: &str) -> Condition {
    Condition {
        kind,
        detail,
        next_step: next_step.to_owned(),
        image: String::new(),
    }
}
