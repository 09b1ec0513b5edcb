//! Output of runners: the last mebibyte of each, in a file, until retention.
//!
//! Files keep the memory flat and survive restarts. A file starts with a fixed
//! header (how much of the runner's output was taken in, how much of what was
//! kept has been dropped again, whether the end was seen), then the bytes.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

/// Bytes kept per runner. Up to twice that may lie in the file before it is trimmed.
pub const KEEP: u64 = 1 << 20;
/// Files kept in all; the oldest go first.
const FILES_MAX: usize = 10_000;
const MAGIC: &[u8; 8] = b"lslog\0\0\x01";
const HEADER: u64 = 32;

/// All logs of this scheduler. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Logs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    /// One writer per file at a time: by name, so that few share a lock.
    writers: [Mutex<()>; 16],
    live: Mutex<BTreeMap<String, watch::Sender<Head>>>,
}

/// How far a log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the runner's output taken in so far: where a push goes on.
    pub taken: u64,
    /// Bytes dropped from the front of what was kept.
    pub dropped: u64,
    /// Bytes in the file now.
    pub kept: u64,
    /// No more will follow.
    pub ended: bool,
}

impl Head {
    /// Position behind the last byte.
    pub fn end(&self) -> u64 {
        self.dropped + self.kept
    }
}

/// A piece of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub bytes: Vec<u8>,
    /// Bytes lost before this piece.
    pub skipped: u64,
    /// Where to read on.
    pub next: u64,
}

impl Logs {
    /// Opens the folder, making it when missing.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self {
            shared: Arc::new(Shared {
                folder: folder.to_owned(),
                writers: Default::default(),
                live: Mutex::default(),
            }),
        })
    }

    fn path(&self, runner: &str) -> io::Result<PathBuf> {
        let plain = !runner.is_empty()
            && runner.len() <= 128
            && runner
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !plain {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a runner name",
            ));
        }
        Ok(self.shared.folder.join(format!("{runner}.log")))
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Head>>> {
        self.shared
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self, runner: &str) -> MutexGuard<'_, ()> {
        let sum = runner.bytes().fold(0usize, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(usize::from(byte))
        });
        let writers = &self.shared.writers;
        writers[sum % writers.len()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How far this runner's log goes; all zero when there is none. Blocking.
    pub fn head(&self, runner: &str) -> io::Result<Head> {
        if let Some(live) = self.live().get(runner) {
            return Ok(*live.borrow());
        }
        match File::open(self.path(runner)?) {
            Ok(mut file) => read_header(&mut file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Head::default()),
            Err(error) => Err(error),
        }
    }

    /// Where a push should go on, from memory only.
    pub fn taken(&self, runner: &str) -> u64 {
        self.live()
            .get(runner)
            .map_or(0, |live| live.borrow().taken)
    }

    /// Runners whose output goes on, or is followed.
    pub fn open_ones(&self) -> Vec<String> {
        self.live().keys().cloned().collect()
    }

    /// More output may come.
    pub fn is_open(&self, runner: &str) -> bool {
        self.live().contains_key(runner)
    }

    /// A log exists, be it empty. Blocking.
    pub fn exists(&self, runner: &str) -> bool {
        self.live().contains_key(runner) || self.path(runner).is_ok_and(|path| path.exists())
    }

    /// Changes of the head, for followers.
    pub fn follow(&self, runner: &str) -> io::Result<watch::Receiver<Head>> {
        let head = self.head(runner)?;
        let mut live = self.live();
        let sender = live
            .entry(runner.to_owned())
            .or_insert_with(|| watch::Sender::new(head));
        Ok(sender.subscribe())
    }

    /// Takes in output that starts at `offset` of the runner's whole output.
    ///
    /// What is known already is dropped; a gap becomes a marker line. Blocking.
    pub fn append(&self, runner: &str, offset: u64, chunk: &[u8], end: bool) -> io::Result<Head> {
        let _writing = self.writer(runner);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(runner)?)?;
        let mut head = read_header(&mut file)?;
        let mut fresh = chunk;
        let mut marker = Vec::new();
        if offset < head.taken {
            let known = usize::try_from(head.taken - offset).unwrap_or(usize::MAX);
            fresh = chunk.get(known..).unwrap_or_default();
        } else if offset > head.taken {
            marker = format!("\n[skipped {} bytes]\n", offset - head.taken).into_bytes();
        }
        head.taken = head.taken.max(offset.saturating_add(chunk.len() as u64));
        head.ended |= end;
        file.seek(SeekFrom::Start(HEADER + head.kept))?;
        file.write_all(&marker)?;
        file.write_all(fresh)?;
        head.kept += (marker.len() + fresh.len()) as u64;
        if head.kept > 2 * KEEP || (head.ended && head.kept > KEEP) {
            trim(&mut file, &mut head)?;
        }
        write_header(&mut file, &head)?;
        self.publish(runner, head);
        Ok(head)
    }

    /// No more output will come; followers end. Blocking.
    pub fn end(&self, runner: &str) -> io::Result<()> {
        let taken = self.head(runner)?.taken;
        self.append(runner, taken, &[], true)?;
        Ok(())
    }

    fn publish(&self, runner: &str, head: Head) {
        let mut live = self.live();
        if head.ended {
            // Followers hold the channel; nobody else needs it any more.
            if let Some(sender) = live.remove(runner) {
                sender.send_replace(head);
            }
            return;
        }
        live.entry(runner.to_owned())
            .or_insert_with(|| watch::Sender::new(head))
            .send_replace(head);
    }

    /// Reads at most `limit` bytes from a position. Blocking.
    pub fn read(&self, runner: &str, position: u64, limit: usize) -> io::Result<Piece> {
        let mut file = match File::open(self.path(runner)?) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Piece {
                    next: position,
                    ..Piece::default()
                });
            }
            Err(error) => return Err(error),
        };
        let head = read_header(&mut file)?;
        let start = position.clamp(head.dropped, head.end());
        file.seek(SeekFrom::Start(HEADER + (start - head.dropped)))?;
        let mut bytes = Vec::new();
        let length = (head.end() - start).min(limit as u64);
        file.take(length).read_to_end(&mut bytes)?;
        Ok(Piece {
            next: start + bytes.len() as u64,
            skipped: start.saturating_sub(position),
            bytes,
        })
    }

    /// Deletes logs untouched for `retention`, and the oldest above the count. Blocking.
    pub fn prune(&self, retention: Duration) -> io::Result<usize> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.shared.folder)? {
            let entry = entry?;
            let changed = entry.metadata()?.modified()?;
            files.push((changed, entry.path()));
        }
        files.sort();
        let surplus = files.len().saturating_sub(FILES_MAX);
        let now = SystemTime::now();
        let mut gone = 0;
        for (index, (changed, path)) in files.into_iter().enumerate() {
            let old = now.duration_since(changed).is_ok_and(|age| age > retention);
            if index < surplus || old {
                std::fs::remove_file(path)?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

fn read_header(file: &mut File) -> io::Result<Head> {
    let length = file.metadata()?.len();
    if length < HEADER {
        return Ok(Head::default());
    }
    let mut header = [0; HEADER as usize];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut header)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if header[..8] != *MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a log of ours",
        ));
    }
    Ok(Head {
        taken: number(8),
        dropped: number(16),
        ended: number(24) != 0,
        kept: length - HEADER,
    })
}

fn write_header(file: &mut File, head: &Head) -> io::Result<()> {
    let mut header = Vec::with_capacity(HEADER as usize);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&head.taken.to_le_bytes());
    header.extend_from_slice(&head.dropped.to_le_bytes());
    header.extend_from_slice(&u64::from(head.ended).to_le_bytes());
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header)
}

/// Keeps the last mebibyte.
fn trim(file: &mut File, head: &mut Head) -> io::Result<()> {
    let drop = head.kept - KEEP;
    let mut tail = Vec::with_capacity(KEEP as usize);
    file.seek(SeekFrom::Start(HEADER + drop))?;
    file.read_to_end(&mut tail)?;
    file.seek(SeekFrom::Start(HEADER))?;
    file.write_all(&tail)?;
    file.set_len(HEADER + tail.len() as u64)?;
    head.dropped += drop;
    head.kept = tail.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs() -> (tempfile::TempDir, Logs) {
        let folder = tempfile::tempdir().expect("a folder");
        let logs = Logs::open(&folder.path().join("logs")).expect("opens");
        (folder, logs)
    }

    fn all(logs: &Logs, runner: &str) -> (Vec<u8>, u64) {
        let piece = logs.read(runner, 0, usize::MAX).expect("reads");
        (piece.bytes, piece.skipped)
    }

    #[test]
    fn what_is_pushed_again_is_taken_once_and_gaps_are_marked() {
        let (_folder, logs) = logs();
        logs.append("r", 0, b"hello ", false).expect("appends");
        logs.append("r", 3, b"lo wor", false).expect("appends");
        logs.append("r", 9, b"ld", false).expect("appends");
        assert_eq!(all(&logs, "r").0, b"hello world");
        logs.append("r", 20, b"!", true).expect("appends");
        assert_eq!(all(&logs, "r").0, b"hello world\n[skipped 9 bytes]\n!");
        assert!(logs.head("r").expect("a head").ended);
    }

    #[test]
    fn two_streams_of_one_runner_do_not_tear_its_log() {
        let (_folder, logs) = logs();
        let whole: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (index, chunk) in whole.chunks(1_000).enumerate() {
                        let offset = index as u64 * 1_000;
                        logs.append("r", offset, chunk, false).expect("appends");
                    }
                });
            }
        });
        assert_eq!(all(&logs, "r").0, whole);
    }

    #[test]
    fn a_log_survives_a_restart_and_goes_on_where_it_was() {
        let (folder, logs) = logs();
        logs.append("r", 0, b"one", false).expect("appends");
        drop(logs);
        let logs = Logs::open(&folder.path().join("logs")).expect("opens");
        assert_eq!(logs.head("r").expect("a head").taken, 3);
        logs.append("r", 0, b"one two", true).expect("appends");
        assert_eq!(all(&logs, "r").0, b"one two");
    }

    #[test]
    fn only_the_last_mebibyte_stays_and_the_loss_is_told() {
        let (_folder, logs) = logs();
        let chunk = vec![b'x'; 300_000];
        let mut offset = 0;
        for _ in 0..20 {
            logs.append("r", offset, &chunk, false).expect("appends");
            offset += chunk.len() as u64;
            assert!(logs.head("r").expect("a head").kept <= 2 * KEEP);
        }
        logs.append("r", offset, b"end", true).expect("appends");
        let (bytes, skipped) = all(&logs, "r");
        assert_eq!(bytes.len() as u64, KEEP);
        assert!(bytes.ends_with(b"end"));
        assert_eq!(skipped + bytes.len() as u64, offset + 3);
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        let (_folder, logs) = logs();
        for name in ["../x", "a/b", "", "a\0b", "."] {
            assert!(logs.append(name, 0, b"x", false).is_err(), "{name:?}");
        }
    }

    #[test]
    fn retention_deletes_what_is_old() {
        let (_folder, logs) = logs();
        logs.append("r", 0, b"x", true).expect("appends");
        assert_eq!(logs.prune(Duration::from_secs(60)).expect("prunes"), 0);
        assert!(logs.exists("r"));
        let changed = SystemTime::now() - Duration::from_secs(120);
        let path = logs.path("r").expect("a path");
        File::open(path)
            .and_then(|file| file.set_modified(changed))
            .expect("aged");
        assert_eq!(logs.prune(Duration::from_secs(60)).expect("prunes"), 1);
        assert!(!logs.exists("r"));
    }
}
