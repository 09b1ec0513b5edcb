//! A node: the real rules of the agent around a simulated engine and stream.

use std::collections::{BTreeMap, BTreeSet};

use agent_core::{
    Accept, Action, Desired, Durable, Event as Happened, Generation, Intent, Node, Now, Phase,
    Resources, RunnerSpec,
};
use scheduler_core::{
    effect::{Desired as Wanted, NodeIntent},
    input::{Input, NodeAttached, NodeReported, ObservedPhase, ObservedRunner},
    model::{self, Capability, Condition, NodeName, RunnerName, Usage},
};

use crate::{
    engine::Engine,
    plan::SECOND,
    world::{Event, World},
};

const HEARTBEAT_MS: u64 = 10 * SECOND;
const LEASE_MS: u64 = 30 * SECOND;
/// A link without an answer for this long is given up by both ends.
pub(crate) const KEEPALIVE_MS: u64 = 20 * SECOND;

/// What goes down a stream.
#[derive(Debug)]
pub(crate) enum ToAgent {
    Intent(NodeIntent),
    Registration { runner: String, jit: String },
}

#[derive(Debug)]
pub(crate) struct SimNode {
    pub(crate) name: NodeName,
    pub(crate) labels: BTreeSet<String>,
    pub(crate) capability: Capability,
    pub(crate) engine: Engine,
    /// Survives the agent's process.
    pub(crate) durable: Durable,
    pub(crate) agent: Option<Agent>,
    /// Grows with every process of the agent: late answers of an older one are dropped.
    pub(crate) incarnation: u64,
    /// Number of the partition in force.
    pub(crate) partition: Option<u64>,
    pub(crate) partitions: u64,
    /// Messages the network holds back meanwhile.
    held: Vec<Event>,
    down_last: u64,
    up_last: u64,
}

/// A process of the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) node: Node,
    registrations: BTreeMap<String, String>,
    pub(crate) session: Option<u64>,
    reported: u64,
    report_planned: bool,
    /// True time at which it started, for its monotonic clock.
    started: u64,
}

impl SimNode {
    pub(crate) fn new(name: &str, capability: Capability) -> Self {
        Self {
            name: NodeName::new(name),
            labels: capability.labels.clone(),
            capability,
            engine: Engine {
                up: true,
                ..Engine::default()
            },
            durable: Durable::default(),
            agent: None,
            incarnation: 0,
            partition: None,
            partitions: 0,
            held: Vec::new(),
            down_last: 0,
            up_last: 0,
        }
    }
}

impl World {
    fn agent_now(&self, n: usize) -> Now {
        let started = self.nodes[n].agent.as_ref().map_or(0, |a| a.started);
        Now {
            mono_ms: self.now - started + 1,
            utc_ms: self.utc(),
        }
    }

    pub(crate) fn agent_start(&mut self, n: usize, incarnation: u64) {
        if self.nodes[n].incarnation != incarnation || self.nodes[n].agent.is_some() {
            return;
        }
        if !self.nodes[n].engine.up {
            return self.plan_in(
                SECOND,
                Event::AgentStart {
                    node: n,
                    incarnation,
                },
            );
        }
        let name = self.nodes[n].name.clone();
        self.note(|| format!("{name} agent starts"));
        let started = self.now;
        let found = self.nodes[n].engine.recover();
        let durable = self.nodes[n].durable.clone();
        self.nodes[n].agent = Some(Agent {
            node: Node::new(durable, LEASE_MS),
            registrations: BTreeMap::new(),
            session: None,
            reported: 0,
            report_planned: false,
            started,
        });
        let now = self.agent_now(n);
        if let Some(agent) = &mut self.nodes[n].agent {
            agent.node.recovered(found, now);
            agent
                .node
                .observe(Happened::Firewall { in_place: true }, now);
        }
        self.agent_turn(n);
        self.plan_within(
            10,
            1_000,
            Event::Attach {
                node: n,
                incarnation,
            },
        );
        self.plan_in(
            HEARTBEAT_MS,
            Event::Heartbeat {
                node: n,
                incarnation,
            },
        );
    }

    /// The process dies: its memory is gone, what it wrote down and the engine stay.
    pub(crate) fn agent_dies(&mut self, n: usize) {
        let Some(agent) = self.nodes[n].agent.take() else {
            return;
        };
        let name = self.nodes[n].name.clone();
        self.note(|| format!("{name} agent dies"));
        self.nodes[n].incarnation += 1;
        if let Some(session) = agent.session {
            self.plan_within(1, 500, Event::LinkDead { node: n, session });
        }
        let incarnation = self.nodes[n].incarnation;
        self.plan_within(
            500,
            20_000,
            Event::AgentStart {
                node: n,
                incarnation,
            },
        );
    }

    /// Reconciles, carries out, writes down, and reports when something changed.
    pub(crate) fn agent_turn(&mut self, n: usize) {
        let now = self.agent_now(n);
        let incarnation = self.nodes[n].incarnation;
        let Some(agent) = &mut self.nodes[n].agent else {
            return;
        };
        let actions = agent.node.reconcile(now);
        self.nodes[n].durable = agent.node.durable();
        for action in actions {
            self.carry_out(n, action);
        }
        let Some(agent) = &mut self.nodes[n].agent else {
            return;
        };
        let deadline = agent.node.next_deadline_ms(now);
        if agent.node.changes() != agent.reported && !agent.report_planned {
            agent.report_planned = true;
            self.plan_in(
                20,
                Event::Report {
                    node: n,
                    incarnation,
                },
            );
        }
        if let Some(at) = deadline {
            let wait = at.saturating_sub(now.mono_ms).max(50);
            self.plan_in(
                wait,
                Event::Reconcile {
                    node: n,
                    incarnation,
                },
            );
        }
    }

    fn carry_out(&mut self, n: usize, action: Action) {
        let name = self.nodes[n].name.clone();
        self.note(|| format!("{name} {}", brief(&action)));
        match action {
            Action::Prepare { runner, spec } => self.engine_prepare(n, runner, *spec),
            Action::HandOver { runner } => {
                let agent = self.nodes[n].agent.as_mut();
                let jit = agent.and_then(|a| a.registrations.remove(&runner));
                self.engine_hand_over(n, runner, jit);
            }
            Action::Look { runner } => self.engine_look(n, runner),
            Action::End { runner, grace_ms } => self.engine_end(n, runner, grace_ms),
            Action::Collect { runner } => self.engine_collect(n, runner),
            Action::Remove { runner } => self.engine_remove(n, runner),
            Action::Forget { runner } => {
                if let Some(agent) = &mut self.nodes[n].agent {
                    agent.registrations.remove(&runner);
                }
            }
        }
    }

    pub(crate) fn agent_done(&mut self, n: usize, incarnation: u64, happened: Happened) {
        if self.nodes[n].incarnation != incarnation {
            return;
        }
        let now = self.agent_now(n);
        if let Some(agent) = &mut self.nodes[n].agent {
            agent.node.observe(happened, now);
            self.agent_turn(n);
        }
    }

    /// Tries to open a stream; the input is what the scheduler hears of it.
    pub(crate) fn agent_attach(&mut self, n: usize, incarnation: u64) -> Option<Input> {
        let again = Event::Attach {
            node: n,
            incarnation,
        };
        let node = &self.nodes[n];
        if node.incarnation != incarnation || node.agent.as_ref()?.session.is_some() {
            return None;
        }
        if self.alive == 0 || node.partition.is_some() {
            self.plan_within(500, 4_000, again);
            return None;
        }
        self.sessions += 1;
        let session = self.sessions;
        let now = self.agent_now(n);
        let offset = -self.clock_error;
        let node = &mut self.nodes[n];
        let agent = node.agent.as_mut()?;
        agent.session = Some(session);
        agent.node.contact(now);
        agent.report_planned = true;
        let highest = agent.node.highest();
        let attached = NodeAttached {
            node: node.name.clone(),
            session,
            highest: to_model(highest),
            capability: node.capability.clone(),
            clock_offset_ms: offset,
        };
        let name = node.name.clone();
        self.links.insert(name.clone(), session);
        self.note(|| format!("{name} attaches, session {session}"));
        self.plan_within(
            1,
            30,
            Event::Report {
                node: n,
                incarnation,
            },
        );
        Some(Input::NodeAttached(Box::new(attached)))
    }

    pub(crate) fn agent_heartbeat(&mut self, n: usize, incarnation: u64) {
        if self.nodes[n].incarnation != incarnation {
            return;
        }
        self.plan_in(
            HEARTBEAT_MS,
            Event::Heartbeat {
                node: n,
                incarnation,
            },
        );
        self.agent_report(n, incarnation);
    }

    /// Sends everything observed, if a stream is open.
    pub(crate) fn agent_report(&mut self, n: usize, incarnation: u64) {
        if self.nodes[n].incarnation != incarnation {
            return;
        }
        let now = self.agent_now(n);
        let reachable = self.nodes[n].partition.is_none();
        let clock_offset_ms = -self.clock_error;
        let node = &mut self.nodes[n];
        let conditions = match node.engine.up {
            true => Vec::new(),
            false => vec![Condition {
                kind: "engine_down".to_owned(),
                detail: "the engine does not answer".to_owned(),
                next_step: "start it".to_owned(),
                image: None,
            }],
        };
        let Some(agent) = &mut node.agent else { return };
        agent.report_planned = false;
        let Some(session) = agent.session else { return };
        if reachable {
            agent.node.contact(now);
        }
        let seen = agent.node.observed();
        agent.node.told(&seen);
        let runners = seen.into_iter().map(observed).collect();
        agent.reported = agent.node.changes();
        let input = Input::NodeReported(Box::new(NodeReported {
            node: node.name.clone(),
            session,
            accepted: to_model(agent.node.highest()),
            capability: None,
            conditions,
            runners,
            clock_offset_ms,
        }));
        let at = self.now + self.dice.between(1, 30);
        let at = at.max(self.nodes[n].up_last);
        self.nodes[n].up_last = at;
        let event = Event::Up {
            node: n,
            session,
            input: Box::new(input),
        };
        self.transmit(n, at, event);
        // A lease that came back may allow what was held.
        self.agent_turn(n);
    }

    /// Down a node's stream, in order.
    pub(crate) fn send_down(&mut self, name: &NodeName, message: ToAgent) {
        let (Some(n), Some(session)) = (self.node_index(name), self.links.get(name).copied())
        else {
            return;
        };
        let at = self.now + self.dice.between(1, 30);
        let at = at.max(self.nodes[n].down_last);
        self.nodes[n].down_last = at;
        self.transmit(
            n,
            at,
            Event::Down {
                node: n,
                session,
                message,
            },
        );
    }

    fn transmit(&mut self, n: usize, at: u64, event: Event) {
        if self.nodes[n].partition.is_some() {
            self.nodes[n].held.push(event);
        } else {
            self.plan_at(at, event);
        }
    }

    pub(crate) fn heal(&mut self, n: usize, partition: u64) {
        if self.nodes[n].partition != Some(partition) {
            return;
        }
        self.nodes[n].partition = None;
        let name = self.nodes[n].name.clone();
        self.note(|| format!("{name} is reachable again"));
        let held = std::mem::take(&mut self.nodes[n].held);
        let at = self.now + 5;
        for event in held {
            self.plan_at(at, event);
        }
    }

    /// A stream is given up by whoever still holds it.
    pub(crate) fn link_dead(&mut self, n: usize, session: u64) -> Option<Input> {
        let name = self.nodes[n].name.clone();
        let incarnation = self.nodes[n].incarnation;
        if let Some(agent) = &mut self.nodes[n].agent
            && agent.session == Some(session)
        {
            agent.session = None;
            self.plan_within(
                200,
                3_000,
                Event::Attach {
                    node: n,
                    incarnation,
                },
            );
        }
        if self.links.get(&name) == Some(&session) {
            self.links.remove(&name);
            self.note(|| format!("{name} is lost, session {session}"));
            return Some(Input::NodeLost {
                node: name,
                session,
            });
        }
        None
    }

    pub(crate) fn agent_hears(&mut self, n: usize, session: u64, message: ToAgent) {
        let now = self.agent_now(n);
        let current = self.nodes[n].agent.as_ref().and_then(|a| a.session) == Some(session);
        if !current {
            return;
        }
        let name = self.nodes[n].name.clone();
        let Some(agent) = &mut self.nodes[n].agent else {
            return;
        };
        agent.node.contact(now);
        match message {
            ToAgent::Intent(intent) => {
                let generation = intent.generation;
                let highest = agent.node.highest();
                let (accept, actions) = agent.node.accept(to_intent(intent), now);
                if accept == Accept::Stale {
                    self.violation(format!(
                        "{name} refused generation {generation:?} of its own scheduler: it knows {highest:?}"
                    ));
                }
                self.note(|| format!("{name} hears generation {generation:?}"));
                for action in actions {
                    self.carry_out(n, action);
                }
            }
            ToAgent::Registration { runner, jit } => {
                agent.registrations.insert(runner.clone(), jit);
                agent.node.observe(
                    Happened::RegistrationHeld {
                        runner: runner.clone(),
                    },
                    now,
                );
                self.note(|| format!("{name} holds the registration of {runner}"));
            }
        }
        self.agent_turn(n);
    }
}

fn brief(action: &Action) -> String {
    match action {
        Action::Prepare { runner, .. } => format!("prepares {runner}"),
        Action::HandOver { runner } => format!("hands over to {runner}"),
        Action::Look { runner } => format!("looks at {runner}"),
        Action::End { runner, .. } => format!("ends {runner}"),
        Action::Collect { runner } => format!("collects {runner}"),
        Action::Remove { runner } => format!("removes {runner}"),
        Action::Forget { runner } => format!("forgets {runner}"),
    }
}

fn to_model(generation: Generation) -> model::Generation {
    model::Generation {
        epoch: generation.epoch,
        counter: generation.counter,
    }
}

fn to_intent(intent: NodeIntent) -> Intent {
    let runners = intent.runners.into_iter().map(|runner| {
        let desired = match runner.desired {
            Wanted::Run(placed) => Desired::Run(RunnerSpec {
                image: placed.image.clone(),
                profile: placed.profile.clone(),
                resources: Resources {
                    cpu_millis: placed.resources.cpu_millis,
                    memory_bytes: placed.resources.memory_bytes,
                    gpus: placed.resources.gpus,
                },
                gpu_uuids: placed.gpu_uuids.clone(),
                network_mode: placed.network_mode.clone(),
                allowed_domains: placed.allowed_domains.clone(),
                platform: placed.platform.clone(),
                lifetime_ms: placed.lifetime_ms,
                traceparent: placed.traceparent.clone().unwrap_or_default(),
                pool: placed.pool.to_string(),
                scope: placed.scope.to_string(),
                runtime: placed.runtime.clone(),
            }),
            Wanted::StopIfIdle => Desired::StopIfIdle,
            Wanted::Remove { observation } => Desired::Remove { observation },
            Wanted::Kill { reason, grace_ms } => Desired::Kill { reason, grace_ms },
        };
        (runner.name.to_string(), desired)
    });
    Intent {
        generation: Generation {
            epoch: intent.generation.epoch,
            counter: intent.generation.counter,
        },
        cordoned: intent.cordoned,
        runners: runners.collect(),
        expected: Vec::new(),
    }
}

fn observed(runner: agent_core::ObservedRunner) -> ObservedRunner {
    use agent_core::Cause;
    ObservedRunner {
        name: RunnerName::new(&runner.name),
        phase: match runner.phase {
            Phase::Preparing => ObservedPhase::Preparing,
            Phase::Ready => ObservedPhase::Ready,
            Phase::Consumed => ObservedPhase::Consumed,
            Phase::Online => ObservedPhase::Online,
            Phase::Busy => ObservedPhase::Busy,
            Phase::Exited => ObservedPhase::Exited,
            Phase::Failed => ObservedPhase::Failed,
        },
        observation: runner.observation,
        worker: runner.worker,
        container_id: runner.container_id,
        foreign: runner.foreign,
        remove_refused: runner.remove_refused,
        exit: runner.exit.map(|exit| model::Exit {
            code: exit.code,
            cause: match exit.cause {
                Cause::Finished => "finished",
                Cause::RunnerRefused => "runner_refused",
                Cause::OutOfMemory => "out_of_memory",
                Cause::Lifetime => "lifetime",
                Cause::Idle => "idle",
                Cause::Killed => "killed",
                Cause::Engine => "engine",
                Cause::NeverStarted => "never_started",
                Cause::VersionDeprecated => "version_deprecated",
                Cause::SessionConflict => "session_conflict",
                Cause::DiskFull => "disk_full",
            }
            .to_owned(),
            detail: exit.detail,
            usage: exit.usage.map(|usage| Usage {
                cpu: std::time::Duration::from_nanos(usage.cpu_ns),
                peak_memory_bytes: usage.peak_memory_bytes,
                read_bytes: usage.read_bytes,
                written_bytes: usage.written_bytes,
                peak_gpu_memory_bytes: usage.peak_gpu_memory_bytes,
            }),
            denied: None,
        }),
        error: runner
            .error
            .map(|error| (error.reason.word().to_owned(), error.detail)),
    }
}
