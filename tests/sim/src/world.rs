//! Everything simulated, in one place behind one lock, and the events to come.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use github_sim::machine::World as GitHubWorld;
use scheduler_core::{
    Fleet,
    input::Input,
    model::{NodeName, RunnerName},
};
use tokio::sync::Notify;

use crate::{
    dice::Dice,
    engine::RunnerStep,
    node::{SimNode, ToAgent},
    plan::{Fault, Plan},
    report::Report,
    watch::Watch,
};

/// 2026-01-01T00:00:00Z
pub(crate) const START_UTC: u64 = 1_767_225_600_000;

/// One thing that happens at its time.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody pushes.
    Push,
    Cancel {
        run: u64,
    },
    /// Somebody approves the deployment its jobs wait for.
    Approve {
        run: u64,
    },
    Sweep,
    ListRunners,
    Fault(Fault),
    /// The scheduler's wall clock is right again.
    ClockRight,
    /// No more faults from here on.
    Quiet,
    /// Is everything done?
    Check,
    /// The process comes back.
    SchedulerStart,
    Heal {
        node: usize,
        partition: u64,
    },
    /// A silent link is noticed at both ends.
    LinkDead {
        node: usize,
        session: u64,
    },
    Attach {
        node: usize,
        incarnation: u64,
    },
    AgentStart {
        node: usize,
        incarnation: u64,
    },
    Heartbeat {
        node: usize,
        incarnation: u64,
    },
    Report {
        node: usize,
        incarnation: u64,
    },
    Reconcile {
        node: usize,
        incarnation: u64,
    },
    /// A message of a stream arrives at the agent.
    Down {
        node: usize,
        session: u64,
        message: ToAgent,
    },
    /// A report arrives at the scheduler.
    Up {
        node: usize,
        session: u64,
        input: Box<Input>,
    },
    /// An engine call of an agent's process ends.
    Done {
        node: usize,
        incarnation: u64,
        done: crate::engine::Done,
    },
    EngineUp {
        node: usize,
    },
    Runner {
        node: usize,
        container: u64,
        step: RunnerStep,
    },
}

/// Orders events by time, then by when they were planned.
struct Planned {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What a call of a port may not survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPlan {
    None,
    /// After this many further calls.
    In(u64),
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    /// Milliseconds since the start, of true time.
    pub(crate) now: u64,
    /// What the scheduler's wall clock is wrong by.
    pub(crate) clock_error: i64,
    pub(crate) github: GitHubWorld,
    /// Tokens by credential.
    pub(crate) tokens: BTreeMap<String, String>,
    /// What readers of the committed facts believe.
    pub(crate) shadow: Option<Fleet>,
    pub(crate) nodes: Vec<SimNode>,
    queue: BinaryHeap<Reverse<Planned>>,
    order: u64,
    pub(crate) sessions: u64,
    /// Open streams as the scheduler sees them.
    pub(crate) links: BTreeMap<NodeName, u64>,
    /// Number of the scheduler's process that lives; 0: none.
    pub(crate) alive: u64,
    pub(crate) processes: u64,
    pub(crate) crash: CrashPlan,
    pub(crate) crashed: Arc<Notify>,
    pub(crate) stall_until: u64,
    /// Registrations by their secret: which runner of GitHub.
    pub(crate) jits: BTreeMap<String, (u64, String)>,
    /// In the store for sure, with the process that placed them.
    pub(crate) committed_runners: BTreeMap<RunnerName, u64>,
    pub(crate) committed_stops: BTreeSet<RunnerName>,
    pub(crate) committed_deregistrations: BTreeSet<RunnerName>,
    pub(crate) runnable: BTreeSet<u64>,
    pub(crate) unrunnable: BTreeSet<u64>,
    /// Jobs that a fault or a person may end badly.
    pub(crate) excused: BTreeSet<u64>,
    pub(crate) watch: Watch,
    pub(crate) report: Report,
    pub(crate) quiet: bool,
}

/// The world, shared with the ports.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    pub(crate) fn new(
        plan: Plan,
        github: GitHubWorld,
        tokens: BTreeMap<String, String>,
        nodes: Vec<SimNode>,
    ) -> Self {
        let dice = Dice::new(plan.seed);
        let report = Report {
            seed: plan.seed,
            ..Report::default()
        };
        Self {
            plan,
            dice,
            now: 0,
            clock_error: 0,
            github,
            tokens,
            shadow: None,
            nodes,
            queue: BinaryHeap::new(),
            order: 0,
            sessions: 0,
            links: BTreeMap::new(),
            alive: 0,
            processes: 0,
            crash: CrashPlan::None,
            crashed: Arc::new(Notify::new()),
            stall_until: 0,
            jits: BTreeMap::new(),
            committed_runners: BTreeMap::new(),
            committed_stops: BTreeSet::new(),
            committed_deregistrations: BTreeSet::new(),
            runnable: BTreeSet::new(),
            unrunnable: BTreeSet::new(),
            excused: BTreeSet::new(),
            watch: Watch::default(),
            report,
            quiet: false,
        }
    }

    /// What the scheduler's wall clock shows.
    pub(crate) fn scheduler_utc(&self) -> u64 {
        (START_UTC + self.now).saturating_add_signed(self.clock_error)
    }

    pub(crate) fn utc(&self) -> u64 {
        START_UTC + self.now
    }

    pub(crate) fn plan_at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Planned {
            at: at.max(self.now),
            order: self.order,
            event,
        }));
    }

    pub(crate) fn plan_in(&mut self, delay: u64, event: Event) {
        self.plan_at(self.now + delay, event);
    }

    /// After a random delay.
    pub(crate) fn plan_within(&mut self, low: u64, high: u64, event: Event) {
        let delay = self.dice.between(low, high);
        self.plan_in(delay, event);
    }

    pub(crate) fn next_event_at(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse(planned)| planned.at)
    }

    pub(crate) fn take_due(&mut self) -> Option<Event> {
        if self.next_event_at()? > self.now {
            return None;
        }
        self.queue.pop().map(|Reverse(planned)| planned.event)
    }

    /// Moves the world to this time.
    pub(crate) fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.github.advance(self.utc());
    }

    pub(crate) fn fired(&mut self, fault: Fault) {
        *self
            .report
            .fired
            .entry(fault.name().to_owned())
            .or_default() += 1;
    }

    /// Something that must never happen did.
    pub(crate) fn violation(&mut self, text: String) {
        const MOST: usize = 20;
        if self.report.violations.len() < MOST {
            let at = self.now as f64 / 1_000.0;
            self.report.violations.push(format!("{at:.3} s: {text}"));
        }
    }

    /// Counts a step, and prints it when asked to.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        self.report.events += 1;
        if self.plan.trace {
            eprintln!("{:>10.3} {}", self.now as f64 / 1_000.0, text());
        }
    }

    /// Mixes something into the fingerprint of the run.
    pub(crate) fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mixed = self.report.fingerprint ^ u64::from(*byte);
            self.report.fingerprint = mixed.wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn node_index(&self, name: &NodeName) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == *name)
    }

    /// Runnable jobs that are not over.
    pub(crate) fn open_jobs(&self) -> usize {
        use github_sim::machine::Status;
        self.runnable
            .iter()
            .filter(|id| {
                self.github
                    .job(**id)
                    .is_some_and(|job| job.state.status != Status::Completed)
            })
            .count()
    }

    /// Learns what a run's jobs are, as they appear.
    pub(crate) fn sort_jobs(&mut self) {
        let new: Vec<(u64, Vec<String>)> = self
            .github
            .jobs()
            .filter(|job| {
                !self.runnable.contains(&job.id)
                    && !self.unrunnable.contains(&job.id)
                    && !job.carried
            })
            .map(|job| (job.id, job.labels.clone()))
            .collect();
        for (id, labels) in new {
            let can = self.nodes.iter().any(|node| {
                labels
                    .iter()
                    .all(|l| node.labels.contains(&l.to_lowercase()))
            });
            if can && !labels.is_empty() {
                self.runnable.insert(id);
            } else {
                self.unrunnable.insert(id);
            }
        }
    }

    /// `ls-<fleet>-` of our own fleet.
    pub(crate) fn is_ours(name: &str) -> bool {
        name.starts_with("ls-simfleet-")
    }
}
