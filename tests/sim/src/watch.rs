//! What must never happen, checked against the world.

use std::collections::{BTreeMap, BTreeSet};

use github_sim::machine::Status;

use crate::world::World;

/// What has been seen so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Node of each runner that ever had a sandbox.
    sandboxes: BTreeMap<String, usize>,
    /// Runners that got a registration.
    handed_over: BTreeSet<String>,
    /// Label sets somebody ever queued a job for, with their scope.
    demanded: BTreeSet<(String, Vec<String>)>,
}

impl World {
    /// A sandbox is about to exist: once per runner and node, within the node's means.
    pub(crate) fn check_sandbox(&mut self, n: usize, container: u64) {
        let node = &self.nodes[n];
        let Some(new) = node.engine.containers.get(&container) else {
            return;
        };
        let runner = new.runner.clone();
        let mut problems = Vec::new();
        let (mut cpu, mut memory) = (0u64, 0u64);
        let mut leased: BTreeMap<&str, u32> = BTreeMap::new();
        for held in node.engine.containers.values() {
            cpu += u64::from(held.spec.resources.cpu_millis);
            memory += held.spec.resources.memory_bytes;
            for gpu in &held.spec.gpu_uuids {
                *leased.entry(gpu).or_default() += 1;
            }
        }
        let capacity = node.capability.capacity;
        if cpu > u64::from(capacity.cpu_millis) || memory > capacity.memory_bytes {
            problems.push(format!(
                "capacity of {} exceeded by {runner}: {cpu} of {} mCPU, {memory} of {} bytes",
                node.name, capacity.cpu_millis, capacity.memory_bytes
            ));
        }
        let most = node.capability.max_runners as usize;
        if most > 0 && node.engine.containers.len() > most {
            problems.push(format!(
                "{} holds {} sandboxes, at most {most} are allowed",
                node.name,
                node.engine.containers.len()
            ));
        }
        for (gpu, holders) in &leased {
            let gpu = *gpu;
            if *holders > 1 {
                problems.push(format!("GPU {gpu} of {} has two holders", node.name));
            }
            let known = node.capability.gpus.iter().find(|known| known.uuid == gpu);
            let Some(known) = known else {
                problems.push(format!("{} has no GPU {gpu}", node.name));
                continue;
            };
            if let Some(whole) = &known.parent
                && leased.contains_key(whole.as_str())
            {
                problems.push(format!("{gpu} and its GPU {whole} are both held"));
            }
        }
        if new.spec.resources.gpus as usize != new.spec.gpu_uuids.len() {
            problems.push(format!("{runner} got another number of GPUs than it takes"));
        }
        match self.watch.sandboxes.insert(runner.clone(), n) {
            Some(before) if before != n => problems.push(format!(
                "{runner} was placed twice: on {} and on {}",
                self.nodes[before].name, self.nodes[n].name
            )),
            _ => {}
        }
        for problem in problems {
            self.violation(problem);
        }
    }

    /// A registration goes into a sandbox: once per runner, where its labels are true.
    pub(crate) fn check_hand_over(&mut self, n: usize, runner: &str, github_id: u64) {
        if !self.watch.handed_over.insert(runner.to_owned()) {
            self.violation(format!("{runner} was handed its registration twice"));
        }
        let Some(registered) = self.github.runner(github_id) else {
            self.violation(format!("{runner} was handed a registration nobody made"));
            return;
        };
        if registered.name != runner {
            let name = registered.name.clone();
            self.violation(format!("{runner} was handed the registration of {name}"));
            return;
        }
        let missing: Vec<String> = registered
            .labels
            .iter()
            .filter(|label| !self.nodes[n].labels.contains(&label.to_lowercase()))
            .cloned()
            .collect();
        if !missing.is_empty() {
            let node = self.nodes[n].name.clone();
            self.violation(format!("{runner} runs on {node}, which has no {missing:?}"));
        }
    }

    /// A registration is asked for: only for what is in the store, only by the
    /// process that placed the runner (what an earlier one asked for is unknown, so
    /// its runner is lost and never used again), and only for labels that somebody
    /// queued a job for and some node can carry.
    pub(crate) fn check_registration(
        &mut self,
        process: u64,
        runner: &scheduler_core::model::RunnerName,
        scope: &str,
        labels: &[String],
    ) {
        match self.committed_runners.get(runner) {
            None => self.violation(format!("{runner} was registered before it was committed")),
            Some(placed_by) if *placed_by != process => self.violation(format!(
                "{runner}, lost with scheduler {placed_by}, was used again by scheduler {process}"
            )),
            Some(_) => {}
        }
        let mut wanted: Vec<String> = labels.iter().map(|l| l.to_lowercase()).collect();
        wanted.sort();
        self.learn_demand();
        if !self
            .watch
            .demanded
            .contains(&(scope.to_owned(), wanted.clone()))
        {
            self.violation(format!(
                "{runner} was registered in {scope} for {wanted:?}: nobody queued such a job"
            ));
        }
        let carried = self
            .nodes
            .iter()
            .any(|node| wanted.iter().all(|label| node.labels.contains(label)));
        if !carried {
            self.violation(format!(
                "{runner} was registered for {wanted:?}: no node can run such a job"
            ));
        }
    }

    fn learn_demand(&mut self) {
        let mut demanded = std::mem::take(&mut self.watch.demanded);
        for job in self.github.jobs() {
            let repository = self.github.repository_name(job.repo).unwrap_or_default();
            let mut labels: Vec<String> = job.labels.iter().map(|l| l.to_lowercase()).collect();
            labels.sort();
            demanded.insert((crate::workload::scope_text(repository), labels));
        }
        self.watch.demanded = demanded;
    }

    /// A running sandbox is about to be ended by our own hand.
    pub(crate) fn check_end(&mut self, n: usize, container: u64, how: &str) {
        let Some(held) = self.nodes[n].engine.containers.get(&container) else {
            return;
        };
        let (running, runner) = (held.running, held.runner.clone());
        let job = held.job.as_ref().map(|(job, _)| *job);
        let Some(job) = job.filter(|_| running) else {
            return;
        };
        let lives = self
            .github
            .job(job)
            .is_some_and(|job| job.state.status == Status::InProgress);
        if lives && !self.excused.contains(&job) {
            self.violation(format!(
                "{runner} was ended ({how}) in the middle of job {job}"
            ));
        }
    }
}
