//! `runner status`: the predecessor's seven fields, then ours.

use std::collections::BTreeMap;

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::{none_if_empty, sorted, time};
use crate::output::{Described, Page, filtered_lines};
use crate::units;

#[derive(Debug, Serialize)]
pub(crate) struct Status {
    running: bool,
    start_time: Option<String>,
    iterations: u64,
    active_runners: u32,
    queued_workflows: u32,
    repositories_monitored: u32,
    last_check: Option<String>,
    provisioned_runners: u64,
    filtered: BTreeMap<String, u32>,
    nodes_ready: u32,
    nodes_total: u32,
    settings: Settings,
    credentials: Vec<Credential>,
    version: String,
    fleet: String,
    #[serde(skip)]
    last_check_time: Option<prost_types::Timestamp>,
}

/// What the scaling runs with, under the names of its flags.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Settings {
    owners: Vec<String>,
    poll_interval: Option<f64>,
    since_days: u32,
    max_runners: u32,
    image: String,
}

#[derive(Debug, Serialize)]
struct Credential {
    name: String,
    remaining: i64,
    limit: i64,
    reset_at: Option<String>,
    problem: Option<String>,
}

impl From<v1::AutoscalerSettings> for Settings {
    fn from(s: v1::AutoscalerSettings) -> Settings {
        Settings {
            owners: s.owners,
            poll_interval: s.poll_interval.as_ref().map(units::seconds),
            since_days: s.since_days,
            max_runners: s.max_runners,
            image: s.image,
        }
    }
}

impl Settings {
    pub(crate) fn describe(&self, page: &mut Page) {
        let owners = if self.owners.is_empty() {
            "all accessible repositories".to_owned()
        } else {
            self.owners.join(", ")
        };
        page.line("Watches", owners);
        if let Some(seconds) = self.poll_interval {
            page.line("Sweep", format!("every {seconds} s"));
        }
        if self.since_days > 0 {
            page.line("Window", format!("{} d", self.since_days));
        }
        if self.max_runners > 0 {
            page.line("Most runners", self.max_runners.to_string());
        }
        page.line("Image", self.image.clone());
    }
}

impl From<v1::GetStatusResponse> for Status {
    fn from(s: v1::GetStatusResponse) -> Status {
        Status {
            running: s.running,
            start_time: time(s.start_time.as_ref()),
            iterations: s.iterations,
            active_runners: s.active_runners,
            queued_workflows: s.queued_workflows,
            repositories_monitored: s.repositories_monitored,
            last_check: time(s.last_check.as_ref()),
            provisioned_runners: s.provisioned_runners,
            filtered: sorted(s.filtered),
            nodes_ready: s.nodes_ready,
            nodes_total: s.nodes_total,
            settings: s.settings.unwrap_or_default().into(),
            credentials: s
                .credentials
                .into_iter()
                .map(|c| Credential {
                    name: c.name,
                    remaining: c.remaining,
                    limit: c.limit,
                    reset_at: time(c.reset_at.as_ref()),
                    problem: none_if_empty(c.problem),
                })
                .collect(),
            version: s.version,
            fleet: s.fleet,
            last_check_time: s.last_check,
        }
    }
}

impl Described for Status {
    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.line("Scaling", if self.running { "on" } else { "off" });
        page.line("Since", self.start_time.clone().unwrap_or_default());
        page.line("Queued jobs", self.queued_workflows.to_string());
        page.line(
            "Runners",
            format!(
                "{} active, {} provisioned",
                self.active_runners, self.provisioned_runners
            ),
        );
        page.line(
            "Nodes",
            format!("{} of {} ready", self.nodes_ready, self.nodes_total),
        );
        page.line("Repositories", self.repositories_monitored.to_string());
        let last = match &self.last_check_time {
            Some(t) => format!(", last {} ago", units::age(Some(t), now)),
            None => String::new(),
        };
        page.line("Sweeps", format!("{}{last}", self.iterations));
        self.settings.describe(page);
        for c in &self.credentials {
            page.line(
                "Credential",
                match &c.problem {
                    Some(problem) => format!("{}: {problem}", c.name),
                    None => format!("{}: {} of {} calls left", c.name, c.remaining, c.limit),
                },
            );
        }
        page.line("Fleet", self.fleet.clone());
        page.line("Version", self.version.clone());
        if self.nodes_total == 0 {
            // Which label it lacks says nothing while there is none.
            page.sentence("no node is attached: start longshore-agent on a host");
            return;
        }
        for line in filtered_lines(&self.filtered) {
            page.sentence(&line);
        }
    }

    fn name(&self) -> String {
        self.fleet.clone()
    }
}
