//! A small vocabulary to tell stories about a fleet.
//!
//! Every step checks the invariants, that the facts replay to the same state and
//! that a snapshot rebuilds it.

use std::collections::{BTreeMap, BTreeSet};

use scheduler_core::{
    Entropy, Fleet, Runner,
    effect::{Desired, Effect},
    fact::Fact,
    input::*,
    model::*,
};

pub(crate) const MINUTE: u64 = 60_000;
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) struct World {
    pub(crate) fleet: Fleet,
    /// Hears only facts, as the view does.
    pub(crate) replay: Fleet,
    pub(crate) entropy: Entropy,
    pub(crate) now: Now,
    pub(crate) facts: Vec<Fact>,
    sessions: BTreeMap<NodeName, u64>,
    /// What each node would report, by runner.
    pub(crate) seen: BTreeMap<NodeName, BTreeMap<RunnerName, ObservedRunner>>,
    next_session: u64,
    next_github_id: u64,
}

pub(crate) fn labels(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn label_set(words: &str) -> BTreeSet<String> {
    labels(words).into_iter().collect()
}

/// An x64 machine with room for four default runners.
pub(crate) fn machine() -> Capability {
    Capability {
        arch: "x64".to_owned(),
        labels: label_set("self-hosted linux x64 docker"),
        capacity: Resources {
            cpu_millis: 8_000,
            memory_bytes: 16 * GIB,
            gpus: 0,
        },
        properties: scheduler_core::profile::of_a_full_node(),
        ..Capability::default()
    }
}

pub(crate) fn arm_machine() -> Capability {
    Capability {
        arch: "arm64".to_owned(),
        labels: label_set("self-hosted linux arm64"),
        ..machine()
    }
}

pub(crate) fn gpu_machine(gpus: &[&str], proven: bool) -> Capability {
    Capability {
        labels: label_set("self-hosted linux x64 docker cuda gpu"),
        gpus: gpus
            .iter()
            .map(|uuid| Gpu {
                uuid: (*uuid).to_owned(),
                product: "Test GPU".to_owned(),
                memory_mib: 16_384,
                compute_capability: "8.0".to_owned(),
                proven,
                ..Gpu::default()
            })
            .collect(),
        ..machine()
    }
}

/// A GPU that is cut into instances. The node says of all three that they are
/// offered: what is safe must not depend on its word.
pub(crate) fn cut_machine() -> Capability {
    let mut capability = gpu_machine(&["whole", "part-1", "part-2"], true);
    for gpu in &mut capability.gpus[1..] {
        gpu.parent = Some("whole".to_owned());
        gpu.memory_mib = 8_192;
    }
    capability
}

/// Why a node does not offer a GPU.
pub(crate) fn withheld(kind: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        detail: format!("told as {kind}"),
        next_step: format!("end {kind}"),
        image: None,
    }
}

pub(crate) fn repository_scope(full_name: &str) -> Scope {
    let (owner, repo) = full_name.split_once('/').expect("owner/name");
    Scope::Repository {
        owner: owner.to_owned(),
        repo: repo.to_owned(),
    }
}

pub(crate) fn credential() -> CredentialName {
    CredentialName::new("main")
}

/// A queued push job of a private repository that registers for itself.
pub(crate) fn job(id: u64, full_name: &str, words: &str) -> JobSeen {
    let (owner, name) = full_name.split_once('/').expect("owner/name");
    JobSeen {
        id: JobId(id),
        run_id: id / 100,
        attempt: 1,
        repository: Repository {
            id: 0,
            owner: owner.to_owned(),
            name: name.to_owned(),
            private: Some(true),
        },
        scope: repository_scope(full_name),
        credential: credential(),
        name: "build".to_owned(),
        workflow: "ci".to_owned(),
        labels: labels(words),
        phase: JobPhase::Queued,
        conclusion: None,
        runner_name: None,
        runner_id: None,
        origin: Origin {
            event: Some("push".to_owned()),
            head_repository: None,
        },
        created_at: 1_999_900_000 + id,
        started_at: None,
        completed_at: None,
        html_url: String::new(),
        traceparent: None,
    }
}

pub(crate) fn organization(mut job: JobSeen) -> JobSeen {
    job.scope = Scope::Organization {
        login: job.repository.owner.clone(),
    };
    job
}

pub(crate) fn pool(name: &str) -> Pool {
    Pool {
        image: "runner:1".to_owned(),
        ..Defaults::default().pool(name)
    }
}

pub(crate) fn node_name(name: &str) -> NodeName {
    NodeName::new(name)
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            fleet: Fleet::new("test"),
            replay: Fleet::new("test"),
            entropy: Entropy::from_seed(1),
            now: Now {
                mono: 50_000,
                utc: 2_000_000_000,
            },
            facts: Vec::new(),
            sessions: BTreeMap::new(),
            seen: BTreeMap::new(),
            next_session: 1,
            next_github_id: 1,
        }
    }

    /// Started as the shell starts it: epoch raised first.
    pub(crate) fn started() -> Self {
        let mut world = Self::new();
        let facts = world.fleet.raise_epoch(0);
        world.record(facts);
        world
    }

    fn record(&mut self, facts: Vec<Fact>) {
        for fact in &facts {
            self.replay.apply(fact);
        }
        self.facts.extend(facts);
    }

    pub(crate) fn step(&mut self, inputs: &[Input]) -> Vec<Fact> {
        let facts = self.fleet.step(self.now, &mut self.entropy, inputs);
        self.record(facts.clone());
        self.check();
        facts
    }

    pub(crate) fn check(&mut self) {
        let breaches = self.fleet.check_invariants();
        assert!(breaches.is_empty(), "invariants: {breaches:#?}");
        self.replay.settle();
        let replayed = self.replay.check_invariants();
        assert!(
            replayed.is_empty(),
            "invariants of the replay: {replayed:#?}"
        );
        let snapshot = self.fleet.snapshot();
        same(
            &snapshot,
            &self.replay.snapshot(),
            "facts replay differently",
        );
        let mut rebuilt = Fleet::new("test");
        snapshot.iter().for_each(|fact| rebuilt.apply(fact));
        assert_eq!(
            snapshot,
            rebuilt.snapshot(),
            "snapshot rebuilds differently"
        );
        rebuilt.settle();
        let rebuilt = rebuilt.check_invariants();
        assert!(
            rebuilt.is_empty(),
            "invariants of the rebuilt: {rebuilt:#?}"
        );
    }

    pub(crate) fn see(&mut self, job: &JobSeen) -> Vec<Fact> {
        self.step(&[Input::JobSeen(std::sync::Arc::new(job.clone()))])
    }

    pub(crate) fn command(&mut self, command: Command) -> Vec<Fact> {
        self.step(&[Input::Command(command)])
    }

    pub(crate) fn join(&mut self, name: &str, capability: Capability) -> Vec<Fact> {
        let node = node_name(name);
        let session = self.next_session;
        self.next_session += 1;
        self.sessions.insert(node.clone(), session);
        self.seen.entry(node.clone()).or_default();
        self.step(&[Input::NodeAttached(Box::new(NodeAttached {
            node,
            session,
            highest: Generation::default(),
            capability,
            clock_offset_ms: 0,
        }))])
    }

    /// The node accepts its newest intent and reports all it sees.
    pub(crate) fn report(&mut self, name: &str) -> Vec<Fact> {
        let report = self.report_of(name);
        self.step(&[Input::NodeReported(Box::new(report))])
    }

    pub(crate) fn report_of(&self, name: &str) -> NodeReported {
        let node = node_name(name);
        NodeReported {
            session: self.sessions[&node],
            accepted: self
                .fleet
                .intent(&node)
                .map(|intent| intent.generation)
                .unwrap_or_default(),
            capability: None,
            conditions: Vec::new(),
            runners: self.seen[&node].values().cloned().collect(),
            clock_offset_ms: 0,
            node,
        }
    }

    pub(crate) fn lose(&mut self, name: &str) -> Vec<Fact> {
        let node = node_name(name);
        let session = self.sessions[&node];
        self.step(&[Input::NodeLost { node, session }])
    }

    /// Time passes in steps short enough for leases to run as they do in life.
    pub(crate) fn pass(&mut self, ms: u64) -> Vec<Fact> {
        let mut facts = Vec::new();
        let mut left = ms;
        while left > 0 {
            let slice = left.min(9_000);
            left -= slice;
            self.now.mono += slice;
            self.now.utc += slice;
            facts.extend(self.step(&[Input::Tick]));
        }
        facts
    }

    /// Time passes while every attached node keeps reporting.
    pub(crate) fn live(&mut self, ms: u64) -> Vec<Fact> {
        let mut facts = Vec::new();
        let mut left = ms;
        while left > 0 {
            let slice = left.min(9_000);
            left -= slice;
            self.now.mono += slice;
            self.now.utc += slice;
            let names: Vec<NodeName> = self.sessions.keys().cloned().collect();
            let reports: Vec<Input> = names
                .iter()
                .filter(|node| self.fleet.node(node).is_some())
                .map(|node| Input::NodeReported(Box::new(self.report_of(node.as_str()))))
                .chain([Input::Tick])
                .collect();
            facts.extend(self.step(&reports));
        }
        facts
    }

    pub(crate) fn runners(&self) -> Vec<&Runner> {
        self.fleet.runners().collect()
    }

    pub(crate) fn only_runner(&self) -> RunnerName {
        let runners = self.runners();
        assert_eq!(runners.len(), 1, "expected one runner");
        runners[0].name().clone()
    }

    pub(crate) fn on(&self, node: &str) -> usize {
        self.fleet
            .node(&node_name(node))
            .map_or(0, |node| node.runners.len())
    }

    /// GitHub answers every registration owed.
    pub(crate) fn register(&mut self) -> Vec<Fact> {
        let ready: Vec<Input> = self
            .fleet
            .outstanding()
            .filter_map(|effect| match effect {
                Effect::Register { runner, .. } => Some(runner.clone()),
                _ => None,
            })
            .map(|runner| {
                self.next_github_id += 1;
                Input::RegistrationReady {
                    runner,
                    github_id: self.next_github_id,
                }
            })
            .collect();
        self.step(&ready)
    }

    /// Its node sees the runner in this phase from now on, and reports.
    pub(crate) fn observe(&mut self, runner: &RunnerName, phase: ObservedPhase) -> Vec<Fact> {
        self.observe_with(runner, |seen| {
            seen.phase = phase;
            seen.worker = phase == ObservedPhase::Busy;
        })
    }

    pub(crate) fn observe_with(
        &mut self,
        runner: &RunnerName,
        change: impl FnOnce(&mut ObservedRunner),
    ) -> Vec<Fact> {
        let node = self.fleet.runner(runner).expect("live").placed.node.clone();
        let entry = self
            .seen
            .get_mut(&node)
            .expect("joined")
            .entry(runner.clone())
            .or_insert_with(|| ObservedRunner {
                name: runner.clone(),
                phase: ObservedPhase::Preparing,
                observation: 0,
                worker: false,
                container_id: "c0ffee".to_owned(),
                foreign: false,
                remove_refused: false,
                exit: None,
                error: None,
            });
        entry.observation += 1;
        change(entry);
        let facts = self.report(node.as_str());
        // A node drops what is over once an intent without it was accepted.
        if self.fleet.runner(runner).is_none() {
            self.seen.get_mut(&node).expect("joined").remove(runner);
        }
        facts
    }

    pub(crate) fn exit(&mut self, runner: &RunnerName, cause: &str, code: i32) -> Vec<Fact> {
        self.observe_with(runner, |seen| {
            seen.phase = ObservedPhase::Exited;
            seen.worker = false;
            seen.exit = Some(Exit {
                code: Some(code),
                cause: cause.to_owned(),
                detail: String::new(),
                usage: None,
                denied: None,
            });
        })
    }

    /// From placed to listening.
    pub(crate) fn bring_up(&mut self, runner: &RunnerName) {
        self.register();
        for phase in [
            ObservedPhase::Ready,
            ObservedPhase::Consumed,
            ObservedPhase::Online,
        ] {
            self.observe(runner, phase);
        }
    }

    pub(crate) fn start(&mut self, job: &JobSeen, runner: &RunnerName) -> Vec<Fact> {
        let mut job = job.clone();
        job.phase = JobPhase::InProgress;
        job.runner_name = Some(runner.as_str().to_owned());
        job.runner_id = Some(7);
        self.see(&job)
    }

    pub(crate) fn complete(&mut self, job: &JobSeen, runner: Option<&RunnerName>) -> Vec<Fact> {
        let mut job = job.clone();
        job.phase = JobPhase::Completed;
        job.conclusion = Some(Conclusion::Success);
        job.runner_name = runner.map(|runner| runner.as_str().to_owned());
        job.completed_at = Some(self.now.utc);
        self.see(&job)
    }

    pub(crate) fn desired(&self, runner: &RunnerName) -> Desired {
        let node = &self.fleet.runner(runner).expect("live").placed.node;
        self.fleet
            .intent(node)
            .expect("known node")
            .runners
            .into_iter()
            .find(|wanted| wanted.name == *runner)
            .expect("in the intent")
            .desired
    }

    pub(crate) fn owes(&self, matches: impl Fn(&Effect) -> bool) -> usize {
        self.fleet
            .outstanding()
            .filter(|owed| matches(owed))
            .count()
    }

    pub(crate) fn reason(&self, id: u64) -> scheduler_core::explain::ReasonCode {
        self.fleet
            .explain(JobId(id), self.now)
            .expect("a known job")
            .reason
    }

    pub(crate) fn explain(&self, id: u64) -> scheduler_core::explain::Explanation {
        self.fleet
            .explain(JobId(id), self.now)
            .expect("a known job")
    }
}

pub(crate) fn is_register(effect: &Effect) -> bool {
    matches!(effect, Effect::Register { .. })
}

pub(crate) fn is_deregister(effect: &Effect) -> bool {
    matches!(effect, Effect::Deregister { .. })
}

pub(crate) fn is_intent(effect: &Effect) -> bool {
    matches!(effect, Effect::SendIntent { .. })
}

/// Two lists of facts are equal, or the first difference is shown.
pub(crate) fn same(left: &[Fact], right: &[Fact], what: &str) {
    if left != right {
        let at = left
            .iter()
            .zip(right)
            .position(|(a, b)| a != b)
            .unwrap_or(left.len().min(right.len()));
        panic!(
            "{what} at {at}: {:?} against {:?}",
            left.get(at),
            right.get(at)
        );
    }
}
