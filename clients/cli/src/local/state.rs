//! The state folder, and the pid file whose lock says that a fleet is up.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::exit::{self, Failure};

use super::plan::absolute;

const PID_FILE: &str = "longshore.pid";
pub(super) const LOG_FILE: &str = "longshore.log";

/// The given folder, or /var/lib/longshore for root, or the user's own.
pub(crate) fn state_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        return Ok(absolute(given));
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/longshore".into());
    }
    let folder = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("longshore"))
        .ok_or_else(|| {
            Failure::usage(
                "no home folder is known",
                "name a folder for the state with --state-dir",
            )
        })
}

/// Makes the folder for its owner alone.
pub(super) fn make_dir(path: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| {
            Failure::failed(
                format!("make the state folder {}: {e}", path.display()),
                "name a folder you may write with --state-dir",
            )
        })
}

/// Held as long as the fleet is up. The lock ends with the process, however
/// it ends, so a stale file misleads nobody.
pub(super) struct PidFile {
    locked: File,
}

impl PidFile {
    pub(super) fn take(state: &Path) -> Result<PidFile, Failure> {
        let path = state.join(PID_FILE);
        let failed = |e: &dyn std::fmt::Display| {
            Failure::failed(
                format!("write {}: {e}", path.display()),
                "name a folder you may write with --state-dir",
            )
        };
        let mut file = open(&path, true).map_err(|e| failed(&e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::said(
                    exit::REFUSED,
                    format!(
                        "a fleet is already up with the state folder {}",
                        state.display()
                    ),
                    "stop it with `longshore down`, or name another folder with --state-dir",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(failed(&e)),
        }
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|e| failed(&e))?;
        Ok(PidFile { locked: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // The file stays, empty: removing it would race with the next `up`,
        // which may just have opened it.
        let _ = self.locked.set_len(0);
    }
}

/// A fleet that is up: its process and the file it holds locked.
pub(super) struct Holder {
    pub(super) pid: i32,
    pub(super) file: File,
}

/// The process that holds this state folder, if one does.
pub(super) fn holder(state: &Path) -> Option<Holder> {
    let mut file = open(&state.join(PID_FILE), false).ok()?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {}
        _ => return None,
    }
    let mut text = String::new();
    Read::by_ref(&mut file)
        .take(32)
        .read_to_string(&mut text)
        .ok()?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1)?;
    Some(Holder { pid, file })
}

/// Whether a fleet of the default state folder is up at this address's host.
pub(crate) fn is_up(scheduler: &str) -> bool {
    super::is_loopback(scheduler)
        && state_dir(
            std::env::var_os("LONGSHORE_HOME")
                .map(PathBuf::from)
                .as_deref(),
        )
        .is_ok_and(|state| holder(&state).is_some())
}

fn open(path: &Path, create: bool) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .open(path)
}
