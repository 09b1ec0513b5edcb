//! One bounded log file for both processes.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::exit::Failure;

/// The file and its predecessor are at most this long each.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Longer lines are cut into pieces.
const MAX_LINE: usize = 16 * 1024;
/// Lines kept to say why a process ended.
const LAST_LINES: usize = 8;

/// Where both processes' output goes.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    written: u64,
    /// Also to stderr.
    verbose: bool,
}

impl Log {
    pub(super) fn open(path: &Path, verbose: bool) -> Result<Log, Failure> {
        let failed = |e: std::io::Error| {
            Failure::failed(
                format!("write the log {}: {e}", path.display()),
                "name a folder you may write with --state-dir",
            )
        };
        let file = append(path).map_err(failed)?;
        let written = file.metadata().map_err(failed)?.len();
        Ok(Log(Arc::new(Mutex::new(Inner {
            path: path.to_owned(),
            file,
            written,
            verbose,
        }))))
    }

    fn line(&self, name: &str, line: &[u8]) {
        let Ok(mut inner) = self.0.lock() else { return };
        let mut text = Vec::with_capacity(name.len() + line.len() + 3);
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(line);
        text.push(b'\n');
        if inner.verbose {
            // The fleet goes on when nobody reads stderr any more.
            let _ = std::io::stderr().write_all(&text);
        }
        // A full disk must not end the fleet either.
        let _ = inner.append(&text);
    }
}

impl Inner {
    fn append(&mut self, text: &[u8]) -> std::io::Result<()> {
        if self.written + text.len() as u64 > MAX_BYTES {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = append(&self.path)?;
            self.written = 0;
        }
        self.file.write_all(text)?;
        self.written += text.len() as u64;
        Ok(())
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// The last lines of one process.
#[derive(Clone, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: &[u8]) {
        if let Ok(mut lines) = self.0.lock() {
            if lines.len() == LAST_LINES {
                lines.pop_front();
            }
            lines.push_back(String::from_utf8_lossy(line).into_owned());
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        match self.0.lock() {
            Ok(lines) => lines.iter().cloned().collect(),
            Err(_) => Vec::new(),
        }
    }
}

/// Copies a process's output into the log until it ends.
pub(super) async fn pump(
    mut from: impl AsyncRead + Unpin,
    name: &'static str,
    log: Log,
    tail: Tail,
) {
    let mut pending: Vec<u8> = Vec::new();
    let mut chunk = [0_u8; 8 * 1024];
    loop {
        let n = match from.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        pending.extend_from_slice(&chunk[..n]);
        let mut start = 0;
        while let Some(end) = pending[start..].iter().position(|b| *b == b'\n') {
            log.line(name, &pending[start..start + end]);
            tail.push(&pending[start..start + end]);
            start += end + 1;
        }
        pending.drain(..start);
        if pending.len() >= MAX_LINE {
            log.line(name, &pending);
            tail.push(&pending);
            pending.clear();
        }
    }
    if !pending.is_empty() {
        log.line(name, &pending);
        tail.push(&pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_log_is_bounded_and_the_last_lines_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let log = Log::open(&path, false).unwrap();
        let tail = Tail::default();
        let line = vec![b'x'; MAX_LINE - 1];
        let mut input = Vec::new();
        for _ in 0..(2 * MAX_BYTES as usize / MAX_LINE + 10) {
            input.extend_from_slice(&line);
            input.push(b'\n');
        }
        input.extend_from_slice(b"the end");
        pump(input.as_slice(), "p", log, tail.clone()).await;
        let size = |p: &Path| std::fs::metadata(p).unwrap().len();
        assert!(size(&path) <= MAX_BYTES);
        assert!(size(&dir.path().join("x.log.1")) <= MAX_BYTES);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(tail.lines().last().unwrap(), "the end");
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .ends_with("p: the end\n")
        );
    }
}
