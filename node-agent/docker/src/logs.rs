//! Follows a runner's output by the logs API and hands it on, bounded.

use std::time::Duration;

use agent_core::runtime::Notice;
use bollard::Docker;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use crate::engine::status;

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

/// Reads until the container ends. A slow reader slows this down and nothing
/// else: the engine's own bounded log file takes what is not read.
pub(crate) fn follow(
    docker: Docker,
    container: String,
    runner: String,
    to: mpsc::Sender<Notice>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut tail = "all";
        // An engine that truncates its log under a fast writer breaks off the reading.
        let mut had = false;
        while !read(&docker, &container, &runner, &to, tail, &mut had).await {
            tail = AGAIN;
            let notice = Notice::Output {
                runner: runner.clone(),
                chunk: GAP.to_vec(),
                skipped: 0,
            };
            // Said once, however often an absent engine is asked again.
            if std::mem::take(&mut had) && to.send(notice).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let _ = to.send(Notice::OutputEnd { runner }).await;
    })
}

/// Reads until the container ends, or until nobody listens. False when the engine broke it off.
async fn read(
    docker: &Docker,
    container: &str,
    runner: &str,
    to: &mpsc::Sender<Notice>,
    tail: &str,
    had: &mut bool,
) -> bool {
    let options = LogsOptionsBuilder::new()
        .follow(true)
        .stdout(true)
        .stderr(true)
        .tail(tail)
        .build();
    // Many short lines become few notices.
    let mut output = std::pin::pin!(docker.logs(container, Some(options)).ready_chunks(READY));
    while let Some(pieces) = output.next().await {
        let mut together = Vec::new();
        let mut broken = None;
        for piece in pieces {
            match piece {
                Ok(piece) => together.extend_from_slice(&piece.into_bytes()),
                Err(error) => broken = Some(error),
            }
        }
        *had |= !together.is_empty();
        for chunk in together.chunks(MAX_CHUNK) {
            let notice = Notice::Output {
                runner: runner.to_owned(),
                chunk: chunk.to_vec(),
                skipped: 0,
            };
            if to.send(notice).await.is_err() {
                return true;
            }
        }
        if let Some(error) = broken {
            debug!(runner, %error, "the output was broken off");
            // A container that is gone has no more of it.
            return status(&error).is_some_and(|status| status == 404 || status == 409);
        }
    }
    true
}
