//! Follows a runner's output by the logs API and hands it on, bounded.
//!
//! An engine keeps a bounded file and truncates it under a fast writer. That breaks the
//! reading off, with an error or as if the container had ended: then it is followed again.

use std::time::Duration;

use agent_core::runtime::Notice;
use bollard::Docker;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use crate::engine::{bounded, status};
use crate::recover::{inspect, is_running};

/// Largest piece handed on at once.
const MAX_CHUNK: usize = 64 << 10;
/// Lines that are there already are taken together, at most so many; the engine's
/// are no longer than 16 KiB.
const READY: usize = 64;
/// Lines before the present that are read again after a gap.
const AGAIN: &str = "50";
/// How many bytes went nobody knows: the engine has dropped them.
const GAP: &[u8] = b"\n[some output was lost: the engine dropped it before it was read]\n";
/// At most so often: four gaps a second.
const PAUSE: Duration = Duration::from_millis(250);
/// The engine's file is no larger (`log_options` of the sandbox): with less output it
/// was never truncated.
const NEVER_TRUNCATED: u64 = 1 << 20;
/// Longest line of the engine's, and what it may put around it.
const LONGEST_LINE: usize = 20 << 10;

/// Reads until the container ends. A slow reader slows this down and nothing
/// else: the engine's own bounded log file takes what is not read.
pub(crate) fn follow(
    docker: Docker,
    container: String,
    runner: String,
    to: mpsc::Sender<Notice>,
) -> JoinHandle<()> {
    let mut reader = Reader {
        docker,
        container,
        runner,
        to,
        had: false,
        total: 0,
        last: Vec::new(),
    };
    tokio::spawn(async move {
        let mut tail = "all";
        loop {
            match reader.read(tail).await {
                End::Over => break,
                End::NobodyListens => return,
                End::BrokenOff => {}
            }
            tail = AGAIN;
            // Said once, however often an absent engine is asked again.
            if std::mem::take(&mut reader.had) && !reader.hand_on(GAP.to_vec()).await {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let runner = reader.runner;
        let _ = reader.to.send(Notice::OutputEnd { runner }).await;
    })
}

enum End {
    Over,
    BrokenOff,
    NobodyListens,
}

struct Reader {
    docker: Docker,
    container: String,
    runner: String,
    to: mpsc::Sender<Notice>,
    /// There was output since the last gap.
    had: bool,
    /// Bytes read.
    total: u64,
    /// The last of them.
    last: Vec<u8>,
}

impl Reader {
    async fn read(&mut self, tail: &str) -> End {
        let options = LogsOptionsBuilder::new()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .tail(tail)
            .build();
        let docker = self.docker.clone();
        let container = self.container.clone();
        // Many short lines become few notices.
        let mut output = std::pin::pin!(docker.logs(&container, Some(options)).ready_chunks(READY));
        while let Some(pieces) = output.next().await {
            let mut together = Vec::new();
            let mut broken = None;
            for piece in pieces {
                match piece {
                    Ok(piece) => together.extend_from_slice(&piece.into_bytes()),
                    Err(error) => broken = Some(error),
                }
            }
            self.note(&together);
            for chunk in together.chunks(MAX_CHUNK) {
                if !self.hand_on(chunk.to_vec()).await {
                    return End::NobodyListens;
                }
            }
            if let Some(error) = broken {
                debug!(runner = self.runner, %error, "the output was broken off");
                // A container that is gone has no more of it.
                return match status(&error) {
                    Some(404 | 409) => End::Over,
                    _ => End::BrokenOff,
                };
            }
        }
        match self.total < NEVER_TRUNCATED || self.was_whole().await {
            true => End::Over,
            false => End::BrokenOff,
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.had |= !bytes.is_empty();
        self.total += bytes.len() as u64;
        self.last.extend_from_slice(bytes);
        let surplus = self.last.len().saturating_sub(LONGEST_LINE);
        self.last.drain(..surplus);
    }

    async fn hand_on(&self, chunk: Vec<u8>) -> bool {
        let runner = self.runner.clone();
        let notice = Notice::Output {
            runner,
            chunk,
            skipped: 0,
        };
        self.to.send(notice).await.is_ok()
    }

    /// After an end without an error: whether the container has ended, and its last line
    /// was read.
    async fn was_whole(&self) -> bool {
        match inspect(&self.docker, &self.container).await {
            // Gone, or nobody knows: there is nothing more to be had.
            Ok(None) | Err(_) => return true,
            Ok(Some(container)) if is_running(&container) => return false,
            Ok(Some(_)) => {}
        }
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail("1")
            .build();
        let line = bounded("reading the last line of a runner", async {
            let mut pieces =
                std::pin::pin!(self.docker.logs(&self.container, Some(options)).take(READY));
            let mut line = Vec::new();
            while let Some(piece) = pieces.next().await {
                line.extend_from_slice(&piece?.into_bytes());
            }
            Ok(line)
        })
        .await;
        line.map_or(true, |line| self.last.ends_with(&line))
    }
}
