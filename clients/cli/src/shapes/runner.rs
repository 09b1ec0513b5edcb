//! `runner list-containers`: the predecessor's four fields, then ours.

use jiff::Timestamp;
use longshore_proto::v1;
use longshore_proto::v1::runner_exit::Cause;
use serde::Serialize;

use super::{Denied, Resources, none_if_empty, time};
use crate::output::{Described, Listed, Page};
use crate::units;

/// As many characters of a container id as people and scripts are used to.
const SHORT_ID: usize = 12;

#[derive(Debug, Serialize)]
pub(crate) struct Container {
    container_id: String,
    repo: String,
    /// The engine's word, as the predecessor printed it.
    status: &'static str,
    created_at: Option<String>,
    name: String,
    /// Our finer word.
    state: String,
    node: String,
    pool: String,
    scope: String,
    labels: Vec<String>,
    job_id: Option<u64>,
    started_at: Option<String>,
    finished_at: Option<String>,
    image: String,
    resources: Resources,
    exit: Option<Exit>,
    #[serde(skip)]
    created: Option<prost_types::Timestamp>,
}

#[derive(Debug, Serialize)]
struct Exit {
    code: Option<i32>,
    cause: &'static str,
    detail: Option<String>,
    cpu_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
    read_bytes: Option<u64>,
    written_bytes: Option<u64>,
    gpus: Option<u32>,
    peak_gpu_memory_bytes: Option<u64>,
    denied: Denied,
}

impl From<v1::Runner> for Container {
    fn from(r: v1::Runner) -> Container {
        Container {
            container_id: r.container_id.chars().take(SHORT_ID).collect(),
            repo: r.repo,
            status: engine_word(&r.status),
            created_at: time(r.created_at.as_ref()),
            name: r.name,
            state: r.status,
            node: r.node,
            pool: r.pool,
            scope: r.scope,
            labels: r.labels,
            job_id: (r.job_id != 0).then_some(r.job_id),
            started_at: time(r.started_at.as_ref()),
            finished_at: time(r.finished_at.as_ref()),
            image: r.image,
            resources: r.resources.unwrap_or_default().into(),
            exit: r.exit.map(Exit::from),
            created: r.created_at,
        }
    }
}

impl From<v1::RunnerExit> for Exit {
    fn from(e: v1::RunnerExit) -> Exit {
        let usage = e.usage.filter(|u| u.known);
        Exit {
            code: e.code,
            cause: cause_word(e.cause()),
            detail: none_if_empty(e.detail),
            cpu_seconds: usage
                .as_ref()
                .and_then(|u| u.cpu.as_ref())
                .map(units::seconds),
            peak_memory_bytes: usage.as_ref().map(|u| u.peak_memory_bytes),
            read_bytes: usage.as_ref().and_then(|u| u.read_bytes),
            written_bytes: usage.as_ref().and_then(|u| u.written_bytes),
            gpus: usage.as_ref().map(|u| u.gpus),
            peak_gpu_memory_bytes: usage.as_ref().and_then(|u| u.peak_gpu_memory_bytes),
            denied: e.denied.unwrap_or_default().into(),
        }
    }
}

/// The words of a container engine, which old scripts compare with.
fn engine_word(state: &str) -> &'static str {
    match state {
        "ready" | "starting" | "idle" | "busy" => "running",
        "stopping" => "removing",
        "exited" => "exited",
        _ => "created",
    }
}

fn cause_word(cause: Cause) -> &'static str {
    match cause {
        Cause::Unspecified => "unknown",
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
}

impl Container {
    fn job(&self) -> String {
        self.job_id.map(|id| id.to_string()).unwrap_or_default()
    }
}

impl Listed for Container {
    const COLUMNS: &'static [&'static str] = &[
        "CONTAINER",
        "RUNNER",
        "REPOSITORY",
        "STATE",
        "NODE",
        "JOB",
        "AGE",
    ];
    const WIDE: &'static [&'static str] = &["POOL", "LABELS", "IMAGE", "EXIT"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.container_id.clone(),
            self.name.clone(),
            self.repo.clone(),
            self.state.clone(),
            self.node.clone(),
            self.job(),
            units::age(self.created.as_ref(), now),
        ]
    }

    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.pool.clone(),
            self.labels.join(","),
            self.image.clone(),
            self.exit
                .as_ref()
                .map(|e| e.cause.to_owned())
                .unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Described for Container {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        page.line("Runner", self.name.clone());
        page.line("Container", self.container_id.clone());
        page.line("Repository", self.repo.clone());
        page.line("State", self.state.clone());
        page.line("Node", self.node.clone());
        page.line("Job", self.job());
        if let Some(exit) = &self.exit {
            page.line("Ended", exit.cause.to_owned());
            page.line("Because", exit.detail.clone().unwrap_or_default());
            exit.denied.show(page);
        }
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
