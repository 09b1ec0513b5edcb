//! `runner provision`.

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::{none_if_empty, time};
use crate::output::Listed;

#[derive(Debug, Serialize)]
pub(crate) struct Provisioned {
    repo: String,
    scope: String,
    labels: Vec<String>,
    count: u32,
    until: Option<String>,
    pub(crate) problem: Option<String>,
}

impl From<v1::Provisioned> for Provisioned {
    fn from(p: v1::Provisioned) -> Provisioned {
        Provisioned {
            repo: p.repo,
            scope: p.scope,
            labels: p.labels,
            count: p.count,
            until: time(p.until.as_ref()),
            problem: none_if_empty(p.problem),
        }
    }
}

impl Listed for Provisioned {
    const COLUMNS: &'static [&'static str] = &[
        "REPOSITORY",
        "SCOPE",
        "LABELS",
        "RUNNERS",
        "UNTIL",
        "PROBLEM",
    ];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.repo.clone(),
            self.scope.clone(),
            self.labels.join(","),
            self.count.to_string(),
            self.until.clone().unwrap_or_default(),
            self.problem.clone().unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        if self.repo.is_empty() {
            self.scope.clone()
        } else {
            self.repo.clone()
        }
    }
}
