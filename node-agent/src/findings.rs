//! What the last look at a sandbox found: kept over a restart, published with its time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_core::probe::{self, Probed};
use agent_core::sandbox::RuntimeClass;
use agent_detect::properties::{Proof, Property, proven};
use agent_detect::runtimes::{self, Look, Runtimes};
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
    /// By class: what a sandbox of that runtime was seen to be, or why none was.
    runtimes: BTreeMap<RuntimeClass, Look>,
    /// Classes at which a look of their own is due.
    to_look_at: Vec<RuntimeClass>,
}

/// One look, on disk as the program wrote it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finding {
    host: String,
    at: String,
    image: String,
    output: String,
    /// By the word of a class.
    #[serde(default)]
    runtimes: BTreeMap<String, OfRuntime>,
}

/// A look at a sandbox of a runtime that is not the engine's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct OfRuntime {
    at: String,
    output: String,
}

impl Findings {
    /// Reads what the last process found. A damaged file is as good as none: the
    /// probe runs anyway.
    pub fn open(state_dir: &Path) -> Self {
        let file = state_dir.join("probe.json");
        let last: Option<Finding> = std::fs::read(&file)
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
    pub fn over(
        &self,
        properties: Vec<Property>,
        host: &str,
        runtimes: &Runtimes,
    ) -> Vec<Property> {
        let mut state = self.lock();
        if state.host != host {
            state.runtimes.clear();
        }
        state.host = host.to_owned();
        if properties.is_empty() {
            return properties;
        }
        state.to_look_at = runtimes.to_look_at().collect();
        state.recall_runtimes();
        let by_engine = properties.clone();
        let mut list = state.over(properties, host);
        let told = runtimes::told(runtimes, &state.runtimes, &by_engine, &list);
        list.extend(told);
        list
    }

    /// Runtimes at which a look of their own is due.
    pub fn to_look_at(&self) -> Vec<RuntimeClass> {
        self.lock().to_look_at.clone()
    }

    /// What a look at a sandbox of a runtime came to.
    pub fn found_under(&self, class: RuntimeClass, result: Result<&Probed, String>, utc_ms: u64) {
        let mut state = self.lock();
        let look = match result {
            Ok(probed) => Look::Seen {
                checks: probed.checks.clone(),
                at: time(utc_ms),
            },
            // Unlike the engine's own, nothing else shows that it makes sandboxes still.
            Err(why) => Look::Impossible(why),
        };
        state.runtimes.insert(class, look);
        let kept = state.kept_runtimes();
        if let Some(last) = &mut state.last {
            last.runtimes = kept;
            let last = last.clone();
            self.keep(&last);
        }
    }

    fn keep(&self, finding: &Finding) {
        if let Err(error) = self.write(finding) {
            // Then the next process waits for its own probe, which is slow but right.
            warn!(path = %self.file.display(), %error, "cannot keep what the probe found");
        }
    }

    /// Image of the job that the last look was made from; none before the first.
    pub fn image(&self) -> Option<String> {
        let state = self.lock();
        let last = state.last.as_ref().filter(|last| last.host == state.host);
        last.map(|last| last.image.clone())
    }

    pub fn found(&self, probed: &Probed, utc_ms: u64) {
        let mut state = self.lock();
        let finding = Finding {
            host: state.host.clone(),
            at: time(utc_ms),
            image: probed.image.clone(),
            output: probe::lines(&probed.checks),
            runtimes: state.kept_runtimes(),
        };
        self.keep(&finding);
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

impl State {
    /// Properties of the engine's own runtime.
    fn over(&self, properties: Vec<Property>, host: &str) -> Vec<Property> {
        let finding = self.last.as_ref().filter(|last| last.host == host);
        match (finding, &self.problem) {
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

    /// What the last process saw of other runtimes on this very host.
    fn recall_runtimes(&mut self) {
        let host = self.host.as_str();
        let Some(last) = self.last.as_ref().filter(|last| last.host == host) else {
            return;
        };
        for (word, seen) in &last.runtimes {
            if let Some(class) = RuntimeClass::parse(word) {
                self.runtimes.entry(class).or_insert_with(|| Look::Seen {
                    checks: probe::parse(&seen.output),
                    at: seen.at.clone(),
                });
            }
        }
    }

    fn kept_runtimes(&self) -> BTreeMap<String, OfRuntime> {
        self.runtimes
            .iter()
            .filter_map(|(class, look)| match look {
                Look::Seen { checks, at } => {
                    let seen = OfRuntime {
                        at: at.clone(),
                        output: probe::lines(checks),
                    };
                    Some((class.word().to_owned(), seen))
                }
                Look::Impossible(_) => None,
            })
            .collect()
    }
}

/// For people.
fn time(utc_ms: u64) -> String {
    i64::try_from(utc_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_second(ms / 1_000).ok())
        .map_or_else(String::new, |at| at.to_string())
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
        let list = findings.over(of_engine(&engine), host, &Runtimes::default());
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

    #[test]
    fn what_a_runtime_was_seen_to_be_is_kept_too_and_a_failure_takes_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let runtimes = Runtimes {
            own: Some(RuntimeClass::Runc),
            offered: vec![
                (RuntimeClass::Runc, "runc".into()),
                (RuntimeClass::Crun, "crun".into()),
            ],
        };
        let engine = Engine {
            kind: "docker".into(),
            ..Engine::default()
        };
        let crun = |findings: &Findings, host: &str| {
            let list = findings.over(of_engine(&engine), host, &runtimes);
            let told = list.into_iter().find(|p| p.name == "runtime_crun");
            told.map(|told| told.state)
        };
        let probed = Probed {
            checks: probe::parse("PASS 1 non_root user 1001\n"),
            image: String::new(),
            took_ms: 1,
        };
        let findings = Findings::open(folder.path());
        assert_eq!(crun(&findings, "a"), Some(properties::State::NotGuaranteed));
        assert_eq!(findings.to_look_at(), [RuntimeClass::Crun]);
        findings.found(&probed, 0);
        findings.found_under(RuntimeClass::Crun, Ok(&probed), 0);
        assert_eq!(crun(&findings, "a"), Some(properties::State::Guaranteed));

        let again = Findings::open(folder.path());
        assert_eq!(crun(&again, "a"), Some(properties::State::Guaranteed));
        assert_eq!(crun(&again, "b"), Some(properties::State::NotGuaranteed));
        let again = Findings::open(folder.path());
        crun(&again, "a");
        again.found_under(RuntimeClass::Crun, Err("gone".into()), 0);
        assert_eq!(crun(&again, "a"), Some(properties::State::NotGuaranteed));
    }
}
