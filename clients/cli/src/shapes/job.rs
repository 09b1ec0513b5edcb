//! `job list`, `job describe`.

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::{Denied, none_if_empty, time};
use crate::output::{Described, Listed, Page};
use crate::units;

#[derive(Debug, Serialize)]
pub(crate) struct Job {
    id: u64,
    run_id: u64,
    attempt: u32,
    repo: String,
    name: String,
    workflow: String,
    labels: Vec<String>,
    state: String,
    conclusion: Option<String>,
    runner: Option<String>,
    node: Option<String>,
    scope: String,
    waiting_reason: Option<String>,
    queued_at: Option<String>,
    started_at: Option<String>,
    completed_at: Option<String>,
    cpu_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
    read_bytes: Option<u64>,
    written_bytes: Option<u64>,
    gpus: Option<u32>,
    peak_gpu_memory_bytes: Option<u64>,
    ending: Option<Ending>,
    html_url: String,
    denied: Option<Denied>,
    #[serde(skip)]
    queued: Option<prost_types::Timestamp>,
}

/// Whose doing its end was.
#[derive(Debug, Serialize)]
struct Ending {
    kind: &'static str,
    reason: String,
    detail: Option<String>,
    exit_code: Option<i32>,
}

impl From<v1::JobEnding> for Ending {
    fn from(e: v1::JobEnding) -> Ending {
        use v1::job_ending::Kind;
        Ending {
            kind: match e.kind() {
                Kind::Unspecified => "unknown",
                Kind::Result => "result",
                Kind::Infrastructure => "infrastructure",
                Kind::Cancelled => "cancelled",
            },
            reason: e.reason,
            detail: none_if_empty(e.detail),
            exit_code: e.exit_code,
        }
    }
}

impl Ending {
    /// `infrastructure: out_of_memory: the memory limit was reached ...`
    fn text(&self) -> String {
        let mut text = format!("{}: {}", self.kind, self.reason);
        if let Some(detail) = &self.detail {
            text.push_str(": ");
            text.push_str(detail);
        }
        text
    }
}

/// What nobody could tell is said, not left out.
fn bytes_or_unknown(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), units::show_bytes)
}

impl From<v1::Job> for Job {
    fn from(j: v1::Job) -> Job {
        let usage = j.usage.filter(|u| u.known);
        Job {
            id: j.id,
            run_id: j.run_id,
            attempt: j.attempt,
            repo: j.repo,
            name: j.name,
            workflow: j.workflow,
            labels: j.labels,
            state: j.state,
            conclusion: none_if_empty(j.conclusion),
            runner: none_if_empty(j.runner),
            node: none_if_empty(j.node),
            scope: j.scope,
            waiting_reason: none_if_empty(j.waiting_reason),
            queued_at: time(j.queued_at.as_ref()),
            started_at: time(j.started_at.as_ref()),
            completed_at: time(j.completed_at.as_ref()),
            cpu_seconds: usage
                .as_ref()
                .and_then(|u| u.cpu.as_ref())
                .map(units::seconds),
            peak_memory_bytes: usage.as_ref().map(|u| u.peak_memory_bytes),
            read_bytes: usage.as_ref().and_then(|u| u.read_bytes),
            written_bytes: usage.as_ref().and_then(|u| u.written_bytes),
            gpus: usage.as_ref().map(|u| u.gpus),
            peak_gpu_memory_bytes: usage.as_ref().and_then(|u| u.peak_gpu_memory_bytes),
            ending: j.ending.map(Ending::from),
            html_url: j.html_url,
            denied: j.denied.map(Denied::from),
            queued: j.queued_at,
        }
    }
}

impl Job {
    /// `completed (failure)`.
    fn state_text(&self) -> String {
        match &self.conclusion {
            Some(conclusion) => format!("{} ({conclusion})", self.state),
            None => self.state.clone(),
        }
    }

    /// The lines that `explain` shows too.
    pub(super) fn heading(&self, page: &mut Page, now: Timestamp) {
        page.line("Job", format!("{} {}", self.id, self.name));
        page.line("Repository", self.repo.clone());
        page.line("State", self.state_text());
        page.line("Labels", self.labels.join(", "));
        if self.state == "queued" {
            page.line("Waits for", units::age(self.queued.as_ref(), now));
        }
    }
}

impl Listed for Job {
    const COLUMNS: &'static [&'static str] = &[
        "JOB",
        "REPOSITORY",
        "NAME",
        "STATE",
        "REASON",
        "NODE",
        "AGE",
    ];
    const WIDE: &'static [&'static str] = &["LABELS", "RUNNER", "WORKFLOW", "RUN", "ATTEMPT"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.repo.clone(),
            self.name.clone(),
            self.state_text(),
            self.waiting_reason.clone().unwrap_or_default(),
            self.node.clone().unwrap_or_default(),
            units::age(self.queued.as_ref(), now),
        ]
    }

    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.labels.join(","),
            self.runner.clone().unwrap_or_default(),
            self.workflow.clone(),
            self.run_id.to_string(),
            self.attempt.to_string(),
        ]
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

impl Described for Job {
    fn describe(&self, page: &mut Page, now: Timestamp) {
        self.heading(page, now);
        page.line("Reason", self.waiting_reason.clone().unwrap_or_default());
        page.line("Workflow", self.workflow.clone());
        page.line("Run", format!("{}, attempt {}", self.run_id, self.attempt));
        page.line("Scope", self.scope.clone());
        page.line("Runner", self.runner.clone().unwrap_or_default());
        page.line("Node", self.node.clone().unwrap_or_default());
        page.line("Queued", self.queued_at.clone().unwrap_or_default());
        page.line("Started", self.started_at.clone().unwrap_or_default());
        page.line("Completed", self.completed_at.clone().unwrap_or_default());
        if let Some(ending) = &self.ending {
            page.line("Ended by", ending.text());
        }
        if let Some(cpu) = self.cpu_seconds {
            page.line("CPU", format!("{cpu:.1} s"));
        }
        if let Some(bytes) = self.peak_memory_bytes {
            page.line("Peak memory", units::show_bytes(bytes));
            page.line("Read from disk", bytes_or_unknown(self.read_bytes));
            page.line("Written to disk", bytes_or_unknown(self.written_bytes));
        }
        if self.gpus.is_some_and(|gpus| gpus > 0) {
            let peak = bytes_or_unknown(self.peak_gpu_memory_bytes);
            page.line("Peak GPU memory", peak);
        }
        page.line("Page", self.html_url.clone());
        if let Some(denied) = &self.denied {
            denied.show(page);
        }
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}
