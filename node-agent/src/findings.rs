//! What the last look at a sandbox found: kept over a restart, published with its time.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_core::probe::{self, Probed};
use agent_detect::properties::{Proof, Property, proven};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// Shared by the driver, which writes, and the fingerprint, which reads.
pub struct Findings {
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Finding>,
    /// Why the last try came to nothing.
    problem: Option<String>,
    /// Engine, kernel and agent as they are now.
    host: String,
}

/// One look, on disk as the program wrote it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finding {
    host: String,
    at: String,
    image: String,
    output: String,
}

impl Findings {
    /// Reads what the last process found. A damaged file is as good as none: the
    /// probe runs anyway.
    pub fn open(state_dir: &Path) -> Self {
        let file = state_dir.join("probe.json");
        let last = std::fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            file,
            state: Mutex::new(State {
                last,
                ..State::default()
            }),
        }
    }

    /// Properties as they may be published on this host. A finding of another
    /// engine, kernel or agent counts for nothing.
    pub fn over(&self, properties: Vec<Property>, host: &str) -> Vec<Property> {
        let mut state = self.lock();
        state.host = host.to_owned();
        if properties.is_empty() {
            return properties;
        }
        let finding = state.last.as_ref().filter(|last| last.host == host);
        match (finding, &state.problem) {
            (Some(finding), _) => proven(
                properties,
                Proof::Seen {
                    checks: &probe::parse(&finding.output),
                    at: &finding.at,
                },
            ),
            (None, Some(problem)) => proven(properties, Proof::Impossible(problem)),
            (None, None) => proven(properties, Proof::Awaited),
        }
    }

    /// Image of the job that the last look was made from; none before the first.
    pub fn image(&self) -> Option<String> {
        let state = self.lock();
        let last = state.last.as_ref().filter(|last| last.host == state.host);
        last.map(|last| last.image.clone())
    }

    pub fn found(&self, probed: &Probed, utc_ms: u64) {
        let at = i64::try_from(utc_ms)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_second(ms / 1_000).ok())
            .map_or_else(String::new, |at| at.to_string());
        let mut state = self.lock();
        let finding = Finding {
            host: state.host.clone(),
            at,
            image: probed.image.clone(),
            output: probe::lines(&probed.checks),
        };
        if let Err(error) = self.write(&finding) {
            // Then the next process waits for its own probe, which is slow but right.
            warn!(path = %self.file.display(), %error, "cannot keep what the probe found");
        }
        state.last = Some(finding);
        state.problem = None;
    }

    /// What was found before stays true until something else is found.
    pub fn failed(&self, why: String) {
        self.lock().problem = Some(why);
    }

    fn write(&self, finding: &Finding) -> std::io::Result<()> {
        let temporary = self.file.with_extension("new");
        std::fs::write(&temporary, serde_json::to_vec(finding)?)?;
        std::fs::rename(&temporary, &self.file)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use agent_detect::Engine;
    use agent_detect::properties::{self, of_engine};

    use super::*;

    fn published(findings: &Findings, host: &str) -> properties::State {
        let engine = Engine {
            kind: "docker".into(),
            ..Engine::default()
        };
        let list = findings.over(of_engine(&engine), host);
        list.iter().find(|p| p.name == "non_root").unwrap().state
    }

    #[test]
    fn a_finding_outlives_the_process_but_not_its_engine() {
        let folder = tempfile::tempdir().unwrap();
        let findings = Findings::open(folder.path());
        assert_eq!(published(&findings, "a"), properties::State::NotGuaranteed);
        let probed = Probed {
            checks: probe::parse("PASS 1 non_root user 1001\n"),
            image: "x".into(),
            took_ms: 1,
        };
        findings.found(&probed, 1_795_291_200_000);
        assert_eq!(published(&findings, "a"), properties::State::Guaranteed);

        let again = Findings::open(folder.path());
        assert_eq!(published(&again, "a"), properties::State::Guaranteed);
        assert_eq!(again.image().as_deref(), Some("x"));
        assert_eq!(published(&again, "b"), properties::State::NotGuaranteed);
        assert_eq!(again.image(), None);
        // A failure to look takes nothing back that was seen here.
        again.failed("no slot".into());
        assert_eq!(published(&again, "a"), properties::State::Guaranteed);

        std::fs::write(folder.path().join("probe.json"), "{").unwrap();
        let damaged = Findings::open(folder.path());
        assert_eq!(published(&damaged, "a"), properties::State::NotGuaranteed);
    }
}
