//! The agent's one file of state: the highest generation and ends not yet let go.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agent_core::Durable;
use anyhow::Context;

/// Bytes kept for the day when the disk is full: an end that cannot be written cannot be
/// told, and what the job has on the disk stays until it is.
const RESERVE: usize = 1 << 20;
const LEAST_RESERVE: usize = 16 << 10;

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
        let state = Self { path, written };
        state.reserve();
        Ok(state)
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
        let bytes = serde_json::to_vec(durable)?;
        match self.write(&bytes, flush) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                fs::remove_file(self.reserved()).map_err(|_| error)?;
                let written = self.write(&bytes, flush);
                self.reserve();
                written?;
            }
            written => written?,
        }
        self.written = durable.clone();
        Ok(())
    }

    fn write(&self, bytes: &[u8], flush: bool) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        if flush {
            file.sync_all()?;
        }
        fs::rename(&temporary, &self.path)
    }

    fn reserved(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    /// Takes as much as there is, up to the whole reserve.
    fn reserve(&self) {
        let path = self.reserved();
        if fs::metadata(&path).is_ok_and(|kept| kept.len() == RESERVE as u64) {
            return;
        }
        let mut bytes = vec![0; RESERVE];
        while bytes.len() >= LEAST_RESERVE && fs::write(&path, &bytes).is_err() {
            bytes.truncate(bytes.len() / 2);
        }
        if bytes.len() < LEAST_RESERVE {
            let _ = fs::remove_file(&path);
        }
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
