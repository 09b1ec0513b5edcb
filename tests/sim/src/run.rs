//! One run from the first push to the last container.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use github_sim::machine::{DeliveryOutcome, Faults as GithubFaults, Outgoing, Status};
use longshore_scheduler::inbox::Inbox;
use scheduler_core::{Fleet, input::Input};
use scheduler_store::{Memory, Store};
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    dice::Dice,
    node::KEEPALIVE_MS,
    plan::{Fault, MINUTE, Plan, SECOND},
    process::Scheduler,
    report::Report,
    workload::{OTHER_FLEET, budgets, configuration, github, nodes},
    world::{CrashPlan, Event, Shared, World},
};

/// Between two looks whether everything is done.
const CHECK_MS: u64 = 5 * SECOND;
const LIST_RUNNERS_MS: u64 = MINUTE;
/// GitHub waits this long for the answer to a webhook.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a plan to its end. The same plan gives the same report.
pub fn simulate(plan: Plan) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(plan)),
        Err(error) => Report {
            seed: plan.seed,
            violations: vec![format!("no runtime: {error}")],
            ..Report::default()
        },
    }
}

async fn run(plan: Plan) -> Report {
    let seed = plan.seed;
    let (github, tokens) = match github(&plan) {
        Ok(made) => made,
        Err(error) => {
            return Report {
                seed,
                violations: vec![format!("the simulated GitHub could not be set up: {error}")],
                ..Report::default()
            };
        }
    };
    let nodes = nodes(&mut Dice::new(seed));
    let shared = Shared::new(World::new(plan, github, tokens, nodes));
    shared.lock().first_events();
    let memory = Memory::new("simfleet");
    let mut stage = Stage {
        begun: Instant::now(),
        shared,
        memory,
        scheduler: None,
        done: false,
    };
    while !stage.done {
        stage.turn().await;
    }
    stage.finish().await
}

struct Stage {
    begun: Instant,
    shared: Shared,
    memory: Memory,
    scheduler: Option<Scheduler>,
    done: bool,
}

impl World {
    fn first_events(&mut self) {
        self.plan_at(0, Event::SchedulerStart);
        for node in 0..self.nodes.len() {
            self.plan_within(
                0,
                5 * SECOND,
                Event::AgentStart {
                    node,
                    incarnation: 0,
                },
            );
        }
        let busy = self.plan.busy_ms;
        for _ in 0..self.plan.runs {
            let at = self.dice.below(busy);
            self.plan_at(at, Event::Push);
        }
        for (fault, most) in self.plan.faults.clone() {
            for _ in 0..most {
                let at = self.dice.below(busy);
                self.plan_at(at, Event::Fault(fault));
            }
        }
        let sweep = self.plan.sweep_ms;
        self.plan_at(sweep, Event::Sweep);
        self.plan_at(LIST_RUNNERS_MS / 2, Event::ListRunners);
        self.plan_at(busy, Event::Quiet);
    }

    /// From here on nothing goes wrong any more.
    fn quiet(&mut self) {
        self.note(|| "no more faults".to_owned());
        self.quiet = true;
        self.crash = CrashPlan::None;
        self.clock_error = 0;
        self.github.set_faults(GithubFaults::default());
        self.plan_in(CHECK_MS, Event::Check);
    }

    /// A fault on our side begins. What it needs of the stage is returned.
    fn fault(&mut self, fault: Fault) -> Option<Fault> {
        let n = self.dice.below(self.nodes.len() as u64) as usize;
        let name = self.nodes[n].name.clone();
        match fault {
            Fault::SchedulerCrash => {
                if self.alive == 0 {
                    return None;
                }
                self.alive = 0;
                self.crashed.notify_one();
            }
            Fault::SchedulerCrashAtCall => {
                // Counted when it really happens.
                self.crash = CrashPlan::In(self.dice.below(12));
                return None;
            }
            Fault::CommitFails | Fault::CommitAnswerLost => return Some(fault),
            Fault::CommitStalls => {
                self.stall_until = self.now + self.dice.between(500, 12_000);
            }
            Fault::Partition => {
                if self.nodes[n].partition.is_some() {
                    return None;
                }
                self.nodes[n].partitions += 1;
                let partition = self.nodes[n].partitions;
                self.nodes[n].partition = Some(partition);
                let lasts = match self.dice.below(2) {
                    0 => self.dice.between(SECOND, 15 * SECOND),
                    _ => self.dice.between(30 * SECOND, 4 * MINUTE),
                };
                self.plan_in(lasts, Event::Heal { node: n, partition });
                let session = self.nodes[n].agent.as_ref().and_then(|a| a.session);
                if let Some(session) = session.filter(|_| lasts > KEEPALIVE_MS) {
                    self.plan_in(KEEPALIVE_MS, Event::LinkDead { node: n, session });
                }
            }
            Fault::AgentCrash => {
                self.nodes[n].agent.as_ref()?;
                self.agent_dies(n);
            }
            Fault::HostCrash => {
                self.agent_dies(n);
                self.engine_dies(n);
            }
            Fault::EngineRestart => {
                if !self.nodes[n].engine.up {
                    return None;
                }
                self.engine_dies(n);
                self.nodes[n].engine.up = false;
                self.plan_within(2 * SECOND, 30 * SECOND, Event::EngineUp { node: n });
            }
            Fault::ClockStep => {
                let step = self.dice.between(1, 10 * MINUTE) as i64;
                let back = self.dice.below(2) == 0;
                self.clock_error = if back { -step } else { step };
                self.plan_within(10 * SECOND, 3 * MINUTE, Event::ClockRight);
            }
            Fault::PrepareFails | Fault::HandOverFails | Fault::LookFails | Fault::RunnerQuits => {
                return None;
            }
        }
        self.fired(fault);
        self.note(|| format!("FAULT {} ({name})", fault.name()));
        None
    }

    /// Everything is over and nothing is left.
    fn is_done(&self) -> bool {
        let nothing_left = self.nodes.iter().all(|n| n.engine.containers.is_empty())
            && !self.github.runners().any(|r| World::is_ours(&r.name));
        let fleet_idle = self.shadow.as_ref().is_some_and(|fleet| {
            fleet.runners().next().is_none() && fleet.orphans().next().is_none()
        });
        self.open_jobs() == 0 && nothing_left && fleet_idle
    }

    /// Why it is not done, for the report of a run that never settles.
    fn unfinished(&self) -> String {
        let jobs: Vec<String> = self
            .runnable
            .iter()
            .filter_map(|id| self.github.job(*id))
            .filter(|job| job.state.status != Status::Completed)
            .map(|job| format!("{} {} {:?}", job.id, job.state.status.text(), job.labels))
            .collect();
        let registrations: Vec<&str> = self
            .github
            .runners()
            .filter(|r| World::is_ours(&r.name))
            .map(|r| r.name.as_str())
            .collect();
        let containers: Vec<&str> = self
            .nodes
            .iter()
            .flat_map(|n| n.engine.containers.values())
            .map(|c| c.runner.as_str())
            .collect();
        let believed: Vec<String> = self
            .shadow
            .iter()
            .flat_map(|fleet| fleet.runners())
            .map(|r| format!("{} {}", r.name(), r.status_word()))
            .collect();
        let orphans: Vec<String> = self
            .shadow
            .iter()
            .flat_map(|fleet| fleet.orphans())
            .map(ToString::to_string)
            .collect();
        format!(
            "jobs {jobs:?}, registrations {registrations:?}, containers {containers:?}, \
             runners the scheduler believes in {believed:?}, orphans it knows {orphans:?}"
        )
    }
}

impl Stage {
    /// Waits for the next thing to happen, and lets it happen.
    async fn turn(&mut self) {
        let (at, crashed) = {
            let world = self.shared.lock();
            let github = world
                .github
                .next_timer_ms()
                .map(|at| at.saturating_sub(crate::world::START_UTC));
            // A delivery that waits for another one is due but cannot leave.
            let github = github.map(|at| if at <= world.now { world.now + 100 } else { at });
            let next = [world.next_event_at(), github].into_iter().flatten().min();
            (next.unwrap_or(world.now + SECOND), world.crashed.clone())
        };
        tokio::select! {
            biased;
            () = crashed.notified() => {}
            () = sleep_until(self.begun + Duration::from_millis(at)) => {}
        }
        let now = self.begun.elapsed().as_millis() as u64;
        self.shared.lock().advance(now);
        self.bury();
        loop {
            let event = self.shared.lock().take_due();
            let Some(event) = event else { break };
            let inputs = self.happen(event);
            if let Some(scheduler) = &self.scheduler
                && !inputs.is_empty()
            {
                scheduler.post(inputs).await;
            }
            self.bury();
        }
        self.deliver();
    }

    /// Clears away a process that died and plans the next one.
    fn bury(&mut self) {
        let mut world = self.shared.lock();
        if world.alive != 0 || self.scheduler.is_none() {
            return;
        }
        if let Some(scheduler) = self.scheduler.take() {
            scheduler.kill();
        }
        world.crash = CrashPlan::None;
        let streams: Vec<_> = std::mem::take(&mut world.links).into_iter().collect();
        for (name, session) in streams {
            if let Some(node) = world.node_index(&name) {
                world.plan_within(1, 500, Event::LinkDead { node, session });
            }
        }
        world.plan_within(200, 20 * SECOND, Event::SchedulerStart);
    }

    fn happen(&mut self, event: Event) -> Vec<Input> {
        let mut world = self.shared.lock();
        world.report.events += 1;
        match event {
            Event::SchedulerStart => {
                drop(world);
                self.scheduler = Some(Scheduler::start(&self.shared, &self.memory));
                let configured = configuration(&self.shared.lock().plan);
                let mut first = vec![Input::Command(configured)];
                first.extend(budgets());
                return first;
            }
            Event::Push => world.push(),
            Event::Cancel { run } => world.cancel(run),
            Event::Approve { run } => world.approve(run),
            Event::Sweep => {
                let every = world.plan.sweep_ms;
                world.plan_in(every, Event::Sweep);
                if world.alive != 0 {
                    return world.sweep();
                }
            }
            Event::ListRunners => {
                world.plan_in(LIST_RUNNERS_MS, Event::ListRunners);
                if world.alive != 0 {
                    let mut inputs = budgets();
                    inputs.extend(world.list_runners());
                    return inputs;
                }
            }
            Event::Fault(fault) => match world.fault(fault) {
                Some(Fault::CommitFails) => {
                    world.fired(Fault::CommitFails);
                    self.memory.faults().fail_before(1);
                }
                Some(Fault::CommitAnswerLost) => {
                    world.fired(Fault::CommitAnswerLost);
                    self.memory.faults().fail_after(1);
                }
                _ => {}
            },
            Event::ClockRight => world.clock_error = 0,
            Event::Quiet => {
                world.quiet();
                self.memory.faults().fail_before(0);
                self.memory.faults().fail_after(0);
            }
            Event::Check => self.done = world.check_done(),
            Event::Heal { node, partition } => world.heal(node, partition),
            Event::LinkDead { node, session } => {
                return world.link_dead(node, session).into_iter().collect();
            }
            Event::Attach { node, incarnation } => {
                return world.agent_attach(node, incarnation).into_iter().collect();
            }
            Event::AgentStart { node, incarnation } => world.agent_start(node, incarnation),
            Event::Heartbeat { node, incarnation } => world.agent_heartbeat(node, incarnation),
            Event::Report { node, incarnation } => world.agent_report(node, incarnation),
            Event::Reconcile { node, incarnation } => {
                if world.nodes[node].incarnation == incarnation {
                    world.agent_turn(node);
                }
            }
            Event::Down {
                node,
                session,
                message,
            } => world.agent_hears(node, session, message),
            Event::Up {
                node,
                session,
                input,
            } => {
                let name = world.nodes[node].name.clone();
                if world.links.get(&name) == Some(&session) {
                    return vec![*input];
                }
            }
            Event::Done {
                node,
                incarnation,
                done,
            } => world.agent_done(node, incarnation, done.0),
            Event::EngineUp { node } => {
                world.nodes[node].engine.up = true;
                world.agent_turn(node);
            }
            Event::Runner {
                node,
                container,
                step,
            } => world.runner_step(node, container, step),
        }
        Vec::new()
    }

    /// Webhooks leave GitHub and arrive a little later, or nowhere.
    fn deliver(&self) {
        let deliveries = self.shared.lock().github.take_deliveries();
        for delivery in deliveries {
            let inbox = self.scheduler.as_ref().map(|s| s.inbox.clone());
            tokio::spawn(deliver(self.shared.clone(), inbox, delivery));
        }
    }

    async fn finish(self) -> Report {
        let loaded = self.memory.load().await;
        if let Some(scheduler) = self.scheduler {
            scheduler.kill();
        }
        let mut world = self.shared.lock();
        match loaded {
            Ok(loaded) => {
                let mut fresh = Fleet::new(loaded.fleet_id.as_str());
                for fact in loaded.all() {
                    fresh.apply(fact);
                }
                let same = world
                    .shadow
                    .as_ref()
                    .is_none_or(|shadow| shadow.snapshot() == fresh.snapshot());
                if !same {
                    world.violation("a fresh load gives another state than the view".to_owned());
                }
            }
            Err(error) => world.violation(format!("the store cannot be loaded: {error}")),
        }
        world.last_checks();
        std::mem::take(&mut world.report)
    }
}

async fn deliver(shared: Shared, inbox: Option<Inbox>, delivery: Outgoing) {
    let wait = shared.lock().dice.between(10, 150);
    tokio::time::sleep(Duration::from_millis(wait)).await;
    let Outgoing {
        attempt,
        event,
        body,
        ..
    } = delivery;
    let inputs = shared.lock().delivered(&event, &body);
    let failed = |why: &str| DeliveryOutcome::Failed {
        why: why.to_owned(),
        duration_ms: wait,
    };
    let outcome = match inbox {
        None => failed("failed to connect to host"),
        Some(inbox) => match timeout(DELIVERY_TIMEOUT, inbox.submit(inputs)).await {
            Ok(Ok(_)) => DeliveryOutcome::Answered {
                status: 202,
                duration_ms: wait,
                body: String::new(),
            },
            Ok(Err(_)) => failed("failed to connect to host"),
            Err(_) => failed("timed out"),
        },
    };
    shared.lock().github.delivery_done(attempt, outcome);
}

impl World {
    fn check_done(&mut self) -> bool {
        self.sort_jobs();
        let since = self.now.saturating_sub(self.plan.busy_ms);
        if self.is_done() {
            self.report.settled_after = Some(since);
            return true;
        }
        if since > self.plan.settle_ms {
            let left = self.unfinished();
            self.violation(format!(
                "not everything was done {} minutes after the last fault: {left}",
                self.plan.settle_ms / MINUTE
            ));
            return true;
        }
        self.plan_in(CHECK_MS, Event::Check);
        false
    }

    fn last_checks(&mut self) {
        let mut problems: Vec<String> = self.github.check();
        for id in &self.runnable {
            let Some(job) = self.github.job(*id) else {
                continue;
            };
            let good = job.state.conclusion.as_deref() == Some("success");
            let over = job.state.status == Status::Completed;
            if over && !good && !self.excused.contains(id) {
                problems.push(format!(
                    "job {id} ended as {:?} although nothing happened to it",
                    job.state.conclusion
                ));
            }
            if let (Some(queued), Some(started)) = (job.queued_ms, job.state.started_ms)
                && good
            {
                self.report.waits.push(started.saturating_sub(queued));
            }
        }
        for id in &self.unrunnable {
            if let Some(job) = self.github.job(*id)
                && !job.assignments.is_empty()
            {
                problems.push(format!(
                    "job {id} for {:?} was given to {:?}",
                    job.labels, job.assignments
                ));
            }
        }
        if !self.github.runners().any(|r| r.name == OTHER_FLEET) {
            problems.push("the other fleet's registration was deleted".to_owned());
        }
        self.report.jobs = (self.runnable.len() + self.unrunnable.len()) as u64;
        self.report.runnable = self.runnable.len() as u64;
        let ours = self.github.registrations_ever();
        self.report.registrations = ours.filter(|r| World::is_ours(&r.name)).count() as u64;
        self.report.strayed = self.strayed();
        for (name, count) in self.github.faults_fired() {
            self.report.fired.insert((*name).to_owned(), *count);
        }
        for problem in problems {
            self.violation(problem);
        }
    }

    /// Jobs whose runner carries other labels than they ask for.
    fn strayed(&self) -> u64 {
        let folded = |labels: &[String]| -> BTreeSet<String> {
            labels.iter().map(|label| label.to_lowercase()).collect()
        };
        let made_for: BTreeMap<&str, BTreeSet<String>> = self
            .github
            .registrations_ever()
            .map(|runner| (runner.name.as_str(), folded(&runner.labels)))
            .collect();
        let jobs = self.runnable.iter().filter_map(|id| self.github.job(*id));
        let strayed = jobs.filter(|job| {
            job.assignments
                .last()
                .and_then(|runner| made_for.get(runner.as_str()))
                .is_some_and(|labels| *labels != folded(&job.labels))
        });
        strayed.count() as u64
    }
}
