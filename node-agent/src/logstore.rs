//! The last output of each runner, on disk, bounded, for a day.
//!
//! Two files per runner: the one being written and the one before it. A file
//! is named `RUNNER.START`, where START is the offset of its first byte since
//! the runner began, so that a reader's offset means the same after a restart.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

/// Bytes of one file. At least this much of a runner's last output is kept.
pub const SEGMENT: u64 = 1 << 20;
pub const KEEP_FOR: Duration = Duration::from_secs(24 * 3_600);
/// Runners whose output is kept; the oldest go first.
pub const MAX_RUNNERS: usize = 1_000;

#[derive(Clone, Debug, Default)]
struct Entry {
    /// Offset of the first byte of the current file.
    start: u64,
    /// Offset after the last byte.
    end: u64,
    /// Offset of the first byte of the previous file, when there is one.
    previous: Option<u64>,
    closed: bool,
}

impl Entry {
    fn first(&self) -> u64 {
        self.previous.unwrap_or(self.start)
    }
}

/// A piece of a runner's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub bytes: Vec<u8>,
    /// Bytes before `offset` that the reader asked for and that are gone.
    pub skipped: u64,
    /// Nothing follows.
    pub end: bool,
}

pub struct LogStore {
    dir: PathBuf,
    entries: Mutex<BTreeMap<String, Entry>>,
    grown: Notify,
}

impl LogStore {
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("logs");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for file in fs::read_dir(&dir)?.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some((runner, start)) = name.rsplit_once('.') else {
                continue;
            };
            let (Ok(start), Ok(meta)) = (start.parse::<u64>(), file.metadata()) else {
                continue;
            };
            let end = start + meta.len();
            entries
                .entry(runner.to_owned())
                .and_modify(|entry| {
                    if start > entry.start {
                        *entry = Entry {
                            start,
                            end,
                            previous: Some(entry.start),
                            closed: true,
                        };
                    } else {
                        entry.previous = Some(start);
                    }
                })
                .or_insert(Entry {
                    start,
                    end,
                    previous: None,
                    closed: true,
                });
        }
        Ok(Self {
            dir,
            entries: Mutex::new(entries),
            grown: Notify::new(),
        })
    }

    /// Begins a runner's output anew.
    pub fn reset(&self, runner: &str) -> io::Result<()> {
        let mut entries = self.lock();
        if let Some(old) = entries.remove(runner) {
            self.delete(runner, &old);
        }
        entries.insert(runner.to_owned(), Entry::default());
        Ok(())
    }

    pub fn append(&self, runner: &str, bytes: &[u8]) -> io::Result<()> {
        let mut entries = self.lock();
        let entry = entries.entry(runner.to_owned()).or_default();
        if entry.end - entry.start >= SEGMENT {
            if let Some(previous) = entry.previous {
                let _ = fs::remove_file(self.path(runner, previous));
            }
            entry.previous = Some(entry.start);
            entry.start = entry.end;
        }
        let mut file = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.path(runner, entry.start))?;
        file.write_all(bytes)?;
        entry.end += bytes.len() as u64;
        entry.closed = false;
        drop(entries);
        self.grown.notify_waiters();
        Ok(())
    }

    /// The runner's output is complete.
    pub fn close(&self, runner: &str) {
        self.lock().entry(runner.to_owned()).or_default().closed = true;
        self.grown.notify_waiters();
    }

    /// At most `limit` bytes from `offset` on; none when there is nothing new.
    pub fn read(&self, runner: &str, offset: u64, limit: usize) -> io::Result<Option<Piece>> {
        let entries = self.lock();
        let Some(entry) = entries.get(runner) else {
            return Ok(None);
        };
        let from = offset.max(entry.first());
        if from >= entry.end {
            let end = entry.closed;
            return Ok(end.then_some(Piece {
                offset: entry.end,
                bytes: vec![],
                skipped: 0,
                end,
            }));
        }
        let file_start = if from >= entry.start {
            entry.start
        } else {
            entry.previous.unwrap_or(entry.start)
        };
        let mut file = File::open(self.path(runner, file_start))?;
        file.seek(SeekFrom::Start(from - file_start))?;
        let mut bytes = Vec::new();
        file.take(limit as u64).read_to_end(&mut bytes)?;
        Ok(Some(Piece {
            offset: from,
            bytes,
            skipped: from.saturating_sub(offset),
            end: false,
        }))
    }

    /// Waits until something was appended or closed.
    pub fn grown(&self) -> impl Future<Output = ()> + '_ {
        self.grown.notified()
    }

    /// Removes what is older than a day, and the oldest beyond the bound.
    pub fn sweep(&self, now: SystemTime) {
        let mut entries = self.lock();
        let mut ages: Vec<(SystemTime, String)> = entries
            .iter()
            .filter(|(_, entry)| entry.closed)
            .map(|(runner, entry)| {
                let touched =
                    fs::metadata(self.path(runner, entry.start)).and_then(|meta| meta.modified());
                (touched.unwrap_or(SystemTime::UNIX_EPOCH), runner.clone())
            })
            .collect();
        ages.sort();
        let surplus = entries.len().saturating_sub(MAX_RUNNERS);
        for (n, (touched, runner)) in ages.into_iter().enumerate() {
            let old = now.duration_since(touched).is_ok_and(|age| age > KEEP_FOR);
            if (old || n < surplus)
                && let Some(entry) = entries.remove(&runner)
            {
                self.delete(&runner, &entry);
            }
        }
    }

    fn delete(&self, runner: &str, entry: &Entry) {
        for start in [Some(entry.start), entry.previous].into_iter().flatten() {
            let _ = fs::remove_file(self.path(runner, start));
        }
    }

    fn path(&self, runner: &str, start: u64) -> PathBuf {
        self.dir.join(format!("{runner}.{start}"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_megabyte_is_kept_and_the_gap_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(dir.path()).unwrap();
        let chunk = vec![b'x'; 64 << 10];
        for _ in 0..80 {
            store.append("ls-a", &chunk).unwrap();
        }
        let total = 80 * chunk.len() as u64;
        let piece = store.read("ls-a", 0, 10).unwrap().unwrap();
        assert!(
            piece.skipped > 0 && piece.skipped <= total - SEGMENT,
            "{}",
            piece.skipped
        );
        assert_eq!(piece.offset, piece.skipped);
        let disk: u64 = fs::read_dir(dir.path().join("logs"))
            .unwrap()
            .map(|f| f.unwrap().metadata().unwrap().len())
            .sum();
        assert!(disk <= 2 * SEGMENT + chunk.len() as u64, "{disk}");
    }

    #[test]
    fn reading_goes_on_over_both_files_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(dir.path()).unwrap();
        for n in 0..40u8 {
            store.append("ls-a", &vec![n; 50_000]).unwrap();
        }
        store.close("ls-a");
        let mut offset = 0;
        let mut last = 0;
        loop {
            let piece = store.read("ls-a", offset, 30_000).unwrap().unwrap();
            assert_eq!(piece.offset, offset + piece.skipped);
            if piece.end {
                break;
            }
            assert_eq!(u64::from(piece.bytes[0]), piece.offset / 50_000);
            last = *piece.bytes.last().unwrap();
            offset = piece.offset + piece.bytes.len() as u64;
        }
        assert_eq!((last, offset), (39, 2_000_000));
    }

    #[test]
    fn output_survives_a_restart_with_its_offsets_and_ends_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(dir.path()).unwrap();
        store.append("ls-a", b"hello").unwrap();
        drop(store);
        let store = LogStore::open(dir.path()).unwrap();
        let piece = store.read("ls-a", 2, 100).unwrap().unwrap();
        assert_eq!((piece.bytes.as_slice(), piece.offset), (&b"llo"[..], 2));
        store.sweep(SystemTime::now());
        assert!(store.read("ls-a", 0, 1).unwrap().is_some());
        store.sweep(SystemTime::now() + KEEP_FOR + Duration::from_secs(60));
        assert!(store.read("ls-a", 0, 1).unwrap().is_none());
    }

    #[test]
    fn output_of_jobs_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(dir.path()).unwrap();
        store.append("ls-a", b"x").unwrap();
        let file = fs::read_dir(dir.path().join("logs"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
