//! What `/metrics` shows. Labels stay few: states, results, phases, credentials, nodes.

use std::{fmt::Write, sync::Arc};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter, exemplar::HistogramWithExemplars, family::Family, gauge::Gauge,
        histogram::Histogram,
    },
    registry::Registry,
};

/// One label of whatever name a family gives it.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabel {
    pub result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PhaseLabel {
    pub phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabel {
    pub state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct NodesLabel {
    pub state: &'static str,
    pub arch: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CredentialLabel {
    pub credential: String,
    pub resource: String,
}

/// Whose doing the end of a job was, and what ended it: words of the core.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct EndingLabel {
    pub kind: &'static str,
    pub reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TraceLabel {
    pub trace_id: String,
}

/// From the press of a button to a queue of hours.
const WAIT_BUCKETS: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0,
    7_200.0,
];
/// A commit or a decision.
const FAST_BUCKETS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 1.0, 8.0,
];

/// All metrics of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    pub webhooks: Family<ResultLabel, Counter>,
    pub queue_wait: HistogramWithExemplars<TraceLabel>,
    pub phases: Family<PhaseLabel, Histogram>,
    pub jobs: Family<StateLabel, Gauge>,
    pub runners: Family<StateLabel, Gauge>,
    pub nodes: Family<NodesLabel, Gauge>,
    pub oldest_queued: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub assignments: Family<ResultLabel, Counter>,
    pub github_remaining: Family<CredentialLabel, Gauge>,
    pub github_limit: Family<CredentialLabel, Gauge>,
    pub sweeps: Gauge,
    pub registrations: Family<ResultLabel, Counter>,
    pub job_endings: Family<EndingLabel, Counter>,
    pub commits: Histogram,
    pub steps: Histogram,
    pub batch: Histogram,
    pub facts: Counter,
    /// Commits that found the disk full and are tried again.
    pub full_disk: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Arc::default(),
            webhooks: Family::default(),
            queue_wait: HistogramWithExemplars::new(WAIT_BUCKETS.into_iter()),
            phases: Family::new_with_constructor(|| Histogram::new(WAIT_BUCKETS)),
            jobs: Family::default(),
            runners: Family::default(),
            nodes: Family::default(),
            oldest_queued: Gauge::default(),
            assignments: Family::default(),
            github_remaining: Family::default(),
            github_limit: Family::default(),
            sweeps: Gauge::default(),
            registrations: Family::default(),
            job_endings: Family::default(),
            commits: Histogram::new(FAST_BUCKETS),
            steps: Histogram::new(FAST_BUCKETS),
            batch: Histogram::new([1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 256.0, 512.0]),
            facts: Counter::default(),
            full_disk: Counter::default(),
        };
        metrics.registry = Arc::new(metrics.register());
        metrics
    }

    fn register(&self) -> Registry {
        let mut registry = Registry::with_prefix("longshore");
        let build = Family::<BuildLabel, Gauge>::default();
        build
            .get_or_create(&BuildLabel {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        registry.register("build_info", "Version of the scheduler", build);
        registry.register(
            "webhook_received",
            "Webhook requests by result",
            self.webhooks.clone(),
        );
        registry.register(
            "job_queue_duration_seconds",
            "From a job's creation at GitHub to its start",
            self.queue_wait.clone(),
        );
        registry.register(
            "job_phase_duration_seconds",
            "Time a runner spent in each phase on its way",
            self.phases.clone(),
        );
        registry.register("jobs", "Jobs by state", self.jobs.clone());
        registry.register("runners", "Runners by state", self.runners.clone());
        registry.register(
            "nodes",
            "Nodes by state and architecture",
            self.nodes.clone(),
        );
        registry.register(
            "oldest_queued_job_age_seconds",
            "Age of the job that has waited longest",
            self.oldest_queued.clone(),
        );
        registry.register(
            "assignments",
            "Runners placed, and how they ended",
            self.assignments.clone(),
        );
        registry.register(
            "github_rate_limit_remaining",
            "Calls left in GitHub's window",
            self.github_remaining.clone(),
        );
        registry.register(
            "github_rate_limit",
            "Calls GitHub allows in its window",
            self.github_limit.clone(),
        );
        registry.register(
            "github_sweeps",
            "Completed sweeps since start",
            self.sweeps.clone(),
        );
        registry.register(
            "registrations",
            "Runner registrations by result",
            self.registrations.clone(),
        );
        registry.register(
            "job_endings",
            "Jobs of our runners by whose doing their end was",
            self.job_endings.clone(),
        );
        registry.register(
            "commit_duration_seconds",
            "One durable commit",
            self.commits.clone(),
        );
        registry.register(
            "step_duration_seconds",
            "One step of the core",
            self.steps.clone(),
        );
        registry.register(
            "commits_waited_for_disk",
            "Tries of a commit that found the disk full",
            self.full_disk.clone(),
        );
        registry.register("batch_inputs", "Inputs per step", self.batch.clone());
        registry.register("facts", "Facts committed", self.facts.clone());
        registry
    }

    /// Counts one webhook request.
    pub fn webhook(&self, result: &'static str) {
        self.webhooks.get_or_create(&ResultLabel { result }).inc();
    }

    /// Observes a phase of a runner's way, from and to in UTC milliseconds.
    pub fn phase(&self, phase: &'static str, from: u64, to: u64) {
        self.phases
            .get_or_create(&PhaseLabel { phase })
            .observe(seconds(from, to));
    }

    /// Text in the OpenMetrics format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
            // A `String` takes every write; this line is for the type's sake.
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}

/// Seconds between two times in milliseconds; 0 when they are in the wrong order.
pub fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_prefix_and_counters_the_suffix() {
        let metrics = Metrics::new();
        metrics.webhook("accepted");
        metrics.phase("registering", 1_000, 1_500);
        let text = metrics.render();
        for line in [
            "longshore_webhook_received_total{result=\"accepted\"} 1",
            "longshore_job_phase_duration_seconds_count{phase=\"registering\"} 1",
            "longshore_build_info{version=",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }
}
