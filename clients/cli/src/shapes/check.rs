//! `node check`.

use jiff::Timestamp;
use longshore_proto::v1;
use longshore_proto::v1::property::State;
use serde::Serialize;

use super::time;
use crate::output::{Described, Page, Table};
use crate::units;

#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    pub(crate) node: String,
    profile: String,
    network_mode: String,
    /// Job image that was looked from; empty for one that the agent made.
    image: String,
    checked_at: Option<String>,
    took_seconds: Option<f64>,
    passed: usize,
    failed: usize,
    not_guaranteed: usize,
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Check {
    row: u32,
    name: String,
    state: &'static str,
    detail: String,
}

const PASS: &str = "pass";
const FAIL: &str = "fail";
const NOT_GUARANTEED: &str = "not_guaranteed";

fn word(state: State) -> &'static str {
    match state {
        State::Guaranteed => PASS,
        State::Failed => FAIL,
        State::NotGuaranteed | State::Unspecified => NOT_GUARANTEED,
    }
}

impl From<v1::CheckNodeResponse> for Checked {
    fn from(told: v1::CheckNodeResponse) -> Checked {
        let checks: Vec<Check> = told
            .checks
            .into_iter()
            .map(|check| Check {
                row: check.row,
                state: word(check.state()),
                name: check.name,
                detail: check.detail,
            })
            .collect();
        let count = |state| checks.iter().filter(|check| check.state == state).count();
        Checked {
            node: told.node,
            profile: told.profile,
            network_mode: told.network_mode,
            image: told.image,
            checked_at: time(told.checked_at.as_ref()),
            took_seconds: told.took.as_ref().map(units::seconds),
            passed: count(PASS),
            failed: count(FAIL),
            not_guaranteed: count(NOT_GUARANTEED),
            checks,
        }
    }
}

impl Checked {
    /// Names of what is promised and does not hold.
    pub(crate) fn broken(&self) -> Vec<&str> {
        let broken = self.checks.iter().filter(|check| check.state == FAIL);
        broken.map(|check| check.name.as_str()).collect()
    }
}

impl Described for Checked {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        page.line("Node", self.node.clone());
        page.line("Profile", self.profile.clone());
        page.line("Network", self.network_mode.clone());
        page.line("Image", self.image.clone());
        page.line("Checked", self.checked_at.clone().unwrap_or_default());
        if let Some(took) = self.took_seconds {
            page.line("Took", format!("{took:.1} s"));
        }
        page.line(
            "Result",
            format!(
                "{} pass, {} fail, {} not guaranteed",
                self.passed, self.failed, self.not_guaranteed
            ),
        );
        let mut table = Table::new(&["ROW", "PROPERTY", "STATE", "DETAIL"]);
        for check in &self.checks {
            table.row(vec![
                check.row.to_string(),
                check.name.clone(),
                check.state.to_owned(),
                check.detail.clone(),
            ]);
        }
        page.table("Sandbox", table);
    }

    fn name(&self) -> String {
        self.node.clone()
    }
}
