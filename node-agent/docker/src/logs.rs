//! Follows a runner's output by the logs API and hands it on, bounded.

use agent_core::runtime::Notice;
use bollard::Docker;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

/// Largest piece handed on at once.
const MAX_CHUNK: usize = 64 << 10;
/// Lines that are there already are taken together, at most so many; the engine's
/// are no longer than 16 KiB.
const READY: usize = 64;

/// Reads until the container ends. A slow reader slows this down and nothing
/// else: the engine's own bounded log file takes what is not read.
pub(crate) fn follow(
    docker: Docker,
    container: String,
    runner: String,
    to: mpsc::Sender<Notice>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let options = LogsOptionsBuilder::new()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .tail("all")
            .build();
        // Many short lines become few notices.
        let output = docker.logs(&container, Some(options));
        let mut output = std::pin::pin!(output.ready_chunks(READY));
        while let Some(pieces) = output.next().await {
            let mut together = Vec::new();
            let mut ended = None;
            for piece in pieces {
                match piece {
                    Ok(piece) => together.extend_from_slice(&piece.into_bytes()),
                    Err(error) => {
                        ended = Some(error);
                        break;
                    }
                }
            }
            for chunk in together.chunks(MAX_CHUNK) {
                let notice = Notice::Output {
                    runner: runner.clone(),
                    chunk: chunk.to_vec(),
                    skipped: 0,
                };
                if to.send(notice).await.is_err() {
                    return;
                }
            }
            if let Some(error) = ended {
                debug!(runner, %error, "the output ended early");
                break;
            }
        }
        let _ = to.send(Notice::OutputEnd { runner }).await;
    })
}
