//! `runner list-workflows`: the predecessor's five fields, then ours.

use std::collections::BTreeMap;

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::sorted;
use crate::output::Listed;

#[derive(Debug, Serialize)]
pub(crate) struct Queue {
    repo: String,
    total_workflows: u32,
    running: u32,
    failed: u32,
    pending: u32,
    filtered: BTreeMap<String, u32>,
    forecast: BTreeMap<String, u32>,
}

impl From<v1::WorkflowQueue> for Queue {
    fn from(q: v1::WorkflowQueue) -> Queue {
        Queue {
            repo: q.repo,
            total_workflows: q.total_workflows,
            running: q.running,
            failed: q.failed,
            pending: q.pending,
            filtered: sorted(q.filtered),
            forecast: sorted(q.forecast),
        }
    }
}

impl Listed for Queue {
    const COLUMNS: &'static [&'static str] = &[
        "REPOSITORY",
        "TOTAL",
        "RUNNING",
        "FAILED",
        "PENDING",
        "FILTERED",
    ];
    const WIDE: &'static [&'static str] = &["FORECAST"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.repo.clone(),
            self.total_workflows.to_string(),
            self.running.to_string(),
            self.failed.to_string(),
            self.pending.to_string(),
            counts(&self.filtered),
        ]
    }

    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        vec![counts(&self.forecast)]
    }

    fn name(&self) -> String {
        self.repo.clone()
    }
}

/// `12 arm64, 2 gpu`.
fn counts(map: &BTreeMap<String, u32>) -> String {
    let parts: Vec<_> = map.iter().map(|(k, n)| format!("{n} {k}")).collect();
    parts.join(", ")
}
