//! The agent's one file of state: the highest generation and ends not yet let go.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agent_core::Durable;
use anyhow::Context;

pub struct StateFile {
    path: PathBuf,
    written: Durable,
}

impl StateFile {
    /// Reads what the last process left. A file that cannot be read is an
    /// error: guessing would start finished runners again.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| {
                format!(
                    "cannot make the state folder {}; set state_dir to one that is writable",
                    dir.display()
                )
            })?;
        let path = dir.join("agent.json");
        let written = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is damaged; move it away if no runner is on this node",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Durable::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Ok(Self { path, written })
    }

    pub fn loaded(&self) -> Durable {
        self.written.clone()
    }

    /// Writes what changed. Ends are flushed to the disk before the caller goes
    /// on to remove anything; a generation alone is not worth a flush.
    pub fn save(&mut self, durable: &Durable) -> io::Result<()> {
        if *durable == self.written {
            return Ok(());
        }
        let flush = durable.finished != self.written.finished;
        let temporary = self.path.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(durable)?)?;
        if flush {
            file.sync_all()?;
        }
        fs::rename(&temporary, &self.path)?;
        self.written = durable.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_core::Generation;

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_not_guessed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = StateFile::open(dir.path()).unwrap();
        let durable = Durable {
            highest: Generation {
                epoch: 3,
                counter: 9,
            },
            ..Durable::default()
        };
        state.save(&durable).unwrap();
        assert_eq!(StateFile::open(dir.path()).unwrap().loaded(), durable);
        fs::write(dir.path().join("agent.json"), "{").unwrap();
        assert!(StateFile::open(dir.path()).is_err());
    }
}
