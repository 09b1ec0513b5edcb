//! What a command that changes something reports.

use jiff::Timestamp;
use serde::Serialize;

use super::status::Settings;
use crate::output::{Described, Page};

/// `runner start`.
#[derive(Debug, Serialize)]
pub(crate) struct Started {
    pub(crate) running: bool,
    pub(crate) was_running: bool,
    pub(crate) dry_run: bool,
    pub(crate) settings: Settings,
}

impl Described for Started {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        let state = match (self.dry_run, self.was_running) {
            (true, _) => "the settings are good; nothing was changed",
            (false, true) => "was on already; the settings are in force",
            (false, false) => "on",
        };
        page.line("Scaling", state);
        self.settings.describe(page);
    }

    fn name(&self) -> String {
        "started".into()
    }
}

/// `runner stop`.
#[derive(Debug, Serialize)]
pub(crate) struct Stopped {
    pub(crate) running: bool,
    pub(crate) was_running: bool,
}

impl Described for Stopped {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        let state = if self.was_running {
            "off; running jobs finish"
        } else {
            "was off already"
        };
        page.line("Scaling", state);
    }

    fn name(&self) -> String {
        "stopped".into()
    }
}

/// `runner stop-container`.
#[derive(Debug, Serialize)]
pub(crate) struct StoppedContainer {
    #[serde(flatten)]
    pub(crate) container: super::runner::Container,
    pub(crate) job_cancelled: bool,
}

impl Described for StoppedContainer {
    fn describe(&self, page: &mut Page, now: Timestamp) {
        self.container.describe(page, now);
        if self.job_cancelled {
            page.line("Cancelled", "the job that ran in it");
        }
    }

    fn name(&self) -> String {
        Described::name(&self.container)
    }
}

/// Something that is gone or set, by name.
#[derive(Debug, Serialize)]
pub(crate) struct Done {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) done: &'static str,
}

impl Described for Done {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        page.sentence(&format!("{} {} {}", self.kind, self.name, self.done));
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// `up`, `runner start --background`: where things are.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub(crate) struct Places {
    pub(crate) ready: bool,
    pub(crate) api: String,
    pub(crate) nodes: String,
    pub(crate) webhooks: String,
    /// Holds the token of this fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<String>,
    pub(crate) state: String,
    pub(crate) log: String,
    pub(crate) pid: u32,
}

impl Described for Places {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        page.line("API", format!("http://{}", self.api));
        page.line("Nodes", format!("https://{}", self.nodes));
        page.line(
            "Webhooks",
            format!("http://{}/webhooks/github", self.webhooks),
        );
        if let Some(file) = &self.token_file {
            page.line("Token file", file.clone());
        }
        page.line("State", self.state.clone());
        page.line("Log", self.log.clone());
        page.line("Process", self.pid.to_string());
    }

    fn name(&self) -> String {
        self.pid.to_string()
    }
}
