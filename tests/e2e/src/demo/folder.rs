//! `target/demo`: what a demo writes and where the checker reads it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};

/// The folder of one demo.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// `path` as a demo's folder.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Who this demo is: names, addresses, marks.
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity.json")
    }
    /// The jobs and how each must end, written before anything starts.
    pub fn declared(&self) -> PathBuf {
        self.0.join("declared.json")
    }
    /// The host before the demo.
    pub fn before(&self) -> PathBuf {
        self.0.join("host-before.json")
    }
    /// The host after the demo.
    pub fn after(&self) -> PathBuf {
        self.0.join("host-after.json")
    }
    /// The engine's event stream, one JSON object a line.
    pub fn events(&self) -> PathBuf {
        self.0.join("engine-events.jsonl")
    }
    /// What the simulator says about jobs, runners and requests.
    pub fn github(&self) -> PathBuf {
        self.0.join("github.json")
    }
    /// The verdict.
    pub fn summary(&self) -> PathBuf {
        self.0.join("summary.json")
    }
    /// Everything that was not as declared, in words.
    pub fn findings(&self) -> PathBuf {
        self.0.join("findings.json")
    }
    /// One folder per job: step outputs, exit codes, explanation.
    pub fn jobs(&self) -> PathBuf {
        self.0.join("jobs")
    }
    /// Logs of the programs.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }
    /// State of the programs.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }
}

/// Writes `value` as JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}

/// Reads JSON back.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what was expected", path.display()))
}
