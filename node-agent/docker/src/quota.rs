//! Work folders with a hard size: a file with an ext4 file system in it, behind a loop
//! device that the engine mounts as the job's volume.
//!
//! Files are sparse and made ahead of their use, without a journal and with lazily
//! written tables, so a job pays for attaching a device only. A file goes with its
//! volume; one that a crash left is removed at the next start.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agent_core::sandbox::RUNNER_UID;
use tracing::{debug, warn};

use crate::loops::{self, Loop};
use crate::runtime::lock;

/// Files made ahead.
const SPARES: usize = 2;
const SUFFIX: &str = "img";
/// Less than this left counts as full: what a failed write leaves over.
pub(crate) const NOTHING_LEFT: u64 = 1 << 20;
/// Nothing to write the file system's own tables over while the job runs, and nothing
/// in it that could become another user or a device.
pub(crate) const MOUNT_OPTIONS: &str = "nosuid,nodev,noinit_itable";

/// Whether work folders have a hard size here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not tried yet.
    Untried,
    /// A file system was made and a device put over it.
    Works,
    /// Work folders are watched instead; why.
    Watched(String),
}

pub(crate) struct Quota {
    folder: PathBuf,
    /// Bytes; 0: no limit.
    limit: u64,
    state: Mutex<State>,
    /// The agent mounts folders itself, not the engine.
    by_agent: AtomicBool,
    number: AtomicU64,
}

impl Quota {
    pub(crate) fn new(state_dir: &Path, limit: u64) -> Self {
        Self {
            folder: state_dir.join("work"),
            limit,
            state: Mutex::new(State::Untried),
            by_agent: AtomicBool::new(false),
            number: AtomicU64::new(0),
        }
    }

    /// The limit of a work folder, hard or watched. None: there is no limit.
    pub(crate) fn limit(&self) -> Option<u64> {
        (self.limit > 0).then_some(self.limit)
    }

    pub(crate) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// The engine is not to be asked to mount devices.
    pub(crate) fn mount_by_agent(&self) {
        self.by_agent.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_by_agent(&self) -> bool {
        self.by_agent.load(Ordering::Relaxed)
    }

    /// From now on work folders are watched.
    pub(crate) fn give_up(&self, why: String) {
        let mut state = lock(&self.state);
        if !matches!(*state, State::Watched(_)) {
            warn!(
                why,
                "work folders have no hard size here and are watched instead"
            );
            *state = State::Watched(why);
        }
    }

    /// Finds out whether it works, by doing it. `problem` says why it cannot.
    pub(crate) fn prove(&self, problem: Option<String>) {
        if self.limit == 0 {
            *lock(&self.state) = State::Watched("job_disk is 0: no limit is set".into());
            return;
        }
        if let Some(problem) = problem {
            self.give_up(problem);
            return;
        }
        let tried = self.format("proof").and_then(|path| {
            let attached = attach(&path);
            let _ = fs::remove_file(&path);
            attached.map(drop)
        });
        match tried {
            Ok(()) => *lock(&self.state) = State::Works,
            Err(error) => self.give_up(error.to_string()),
        }
    }

    /// A fresh file system for this volume, attached. None where folders are watched.
    pub(crate) fn attach_for(&self, volume: &str) -> Option<Loop> {
        if self.state() != State::Works {
            return None;
        }
        let path = self.file(volume);
        let made = match self.take_spare(&path) {
            true => Ok(path.clone()),
            false => self.format(volume),
        };
        match made.and_then(|path| attach(&path)) {
            Ok(device) => Some(device),
            Err(error) => {
                self.forget(volume);
                self.give_up(error.to_string());
                None
            }
        }
    }

    /// Options of a local volume on this device.
    pub(crate) fn volume_options(device: &Loop) -> HashMap<String, String> {
        [
            ("type", "ext4".to_owned()),
            ("device", device.path.to_string_lossy().into_owned()),
            ("o", MOUNT_OPTIONS.to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// Whether this volume has a hard size.
    pub(crate) fn holds(&self, volume: &str) -> bool {
        !volume.is_empty() && self.file(volume).exists()
    }

    /// Bytes left in a volume that is not mounted any more.
    pub(crate) fn left(&self, volume: &str) -> Option<u64> {
        let file = File::open(self.file(volume)).ok()?;
        let mut block = [0; 1024];
        file.read_exact_at(&mut block, 1024).ok()?;
        free_of(&block)
    }

    /// The volume is gone.
    pub(crate) fn forget(&self, volume: &str) {
        if let Err(error) = fs::remove_file(self.file(volume))
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(volume, %error, "left the file of a work folder; it goes at the next start");
        }
    }

    /// Removes all files but those of the volumes in `keep`.
    pub(crate) fn sweep(&self, keep: &BTreeSet<String>) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            if !keep.contains(&*stem) && path.extension().is_some_and(|end| end == SUFFIX) {
                let _ = fs::remove_file(&path);
            }
        }
        if keep.is_empty() {
            // Fails while something is in it.
            let _ = fs::remove_dir(&self.folder);
        }
    }

    /// Makes a file ahead, when there are too few. To be called again and again.
    pub(crate) fn refill(&self) {
        if self.state() != State::Works || self.spares().len() >= SPARES {
            return;
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        // Under its name only once it is whole.
        let made = self.format(&format!("making-{number}")).and_then(|path| {
            fs::rename(&path, self.file(&format!("spare-{number}"))).map_err(Problem::Folder)
        });
        if let Err(error) = made {
            debug!(%error, "no work folder was made ahead");
        }
    }

    fn spares(&self) -> Vec<PathBuf> {
        let is_spare = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("spare-"))
        };
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(is_spare)
            .collect()
    }

    fn take_spare(&self, path: &Path) -> bool {
        // A rename succeeds for one of those who want the same.
        self.spares()
            .into_iter()
            .any(|spare| fs::rename(spare, path).is_ok())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{SUFFIX}"))
    }

    /// A sparse file with an empty file system that belongs to the runner's user.
    fn format(&self, name: &str) -> Result<PathBuf, Problem> {
        let path = self.file(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(Problem::Folder)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(Problem::Folder)?;
        file.set_len(self.limit).map_err(Problem::Folder)?;
        let owner = format!("lazy_itable_init=1,nodiscard,root_owner={RUNNER_UID}:{RUNNER_UID}");
        let made = run(
            "mkfs.ext4",
            &["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", &owner],
            &path,
        );
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        // Nobody looks for lost files in it; that the folder stays does no harm.
        if let Err(error) = run("debugfs", &["-w", "-R", "rmdir lost+found"], &path) {
            debug!(%error, "a work folder has a lost+found");
        }
        Ok(path)
    }
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("the folder work in state_dir: {0}")]
    Folder(io::Error),
    #[error("{0} cannot be run ({1}); install e2fsprogs")]
    Missing(&'static str, io::Error),
    #[error("{0}: {1}")]
    Refused(&'static str, String),
    #[error("no loop device: {0}; the agent needs root, /dev/loop-control and Linux 5.8")]
    Loop(io::Error),
}

fn attach(path: &Path) -> Result<Loop, Problem> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(Problem::Folder)?;
    loops::attach(&file).map_err(Problem::Loop)
}

fn run(program: &'static str, arguments: &[&str], path: &Path) -> Result<(), Problem> {
    // Both live outside the PATH of an ordinary user.
    let search = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program)
        .env("PATH", search)
        .args(arguments)
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Problem::Missing(program, error))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Problem::Refused(
            program,
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

/// Free bytes by an ext4 superblock.
fn free_of(block: &[u8; 1024]) -> Option<u64> {
    let word = |at: usize| {
        let bytes = block.get(at..at + 4)?;
        Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?)))
    };
    let magic = block.get(0x38..0x3a)?;
    if magic != [0x53, 0xef] {
        return None;
    }
    let free = word(0x0c)? | (word(0x158)? << 32);
    let all = word(0x04)? | (word(0x150)? << 32);
    // The kernel keeps these for its own tables: nobody else gets them.
    let kept = (all / 50).min(4_096);
    Some(free.saturating_sub(kept) << (10 + word(0x18)?.min(16)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(limit: u64) -> (tempfile::TempDir, Quota) {
        let dir = tempfile::tempdir().unwrap();
        let quota = Quota::new(dir.path(), limit);
        (dir, quota)
    }

    #[test]
    fn a_file_has_its_size_takes_little_and_tells_what_is_left() {
        let (_dir, quota) = quota(4 << 30);
        let path = quota.format("v").unwrap();
        let meta = fs::metadata(&path).unwrap();
        let taken = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
        assert_eq!(meta.len(), 4 << 30);
        assert!(taken < 8 << 20, "{taken}");
        let left = quota.left("v").unwrap();
        assert!((3 << 30..4 << 30).contains(&left), "{left}");
        assert!(quota.holds("v") && !quota.holds("w") && !quota.holds(""));
        quota.forget("v");
        assert!(!quota.holds("v"));
    }

    #[test]
    fn a_start_removes_what_a_crash_left_and_keeps_what_lives() {
        let (_dir, quota) = quota(64 << 20);
        for name in ["lives", "left", "making-3", "spare-1"] {
            quota.format(name).unwrap();
        }
        quota.sweep(&BTreeSet::from(["lives".to_owned()]));
        assert!(quota.holds("lives"));
        assert!(!quota.holds("left") && !quota.holds("making-3") && quota.spares().is_empty());
        quota.sweep(&BTreeSet::new());
        assert!(!quota.folder.exists());
    }

    #[test]
    fn where_it_cannot_work_the_reason_is_kept() {
        let (_dir, limited) = quota(64 << 20);
        limited.prove(Some("the engine is rootless".into()));
        assert_eq!(
            limited.state(),
            State::Watched("the engine is rootless".into())
        );
        assert!(limited.attach_for("v").is_none());
        let (_dir, open) = quota(0);
        open.prove(None);
        assert_eq!(open.limit(), None);
        assert!(matches!(open.state(), State::Watched(why) if why.contains("job_disk")));
    }
}
