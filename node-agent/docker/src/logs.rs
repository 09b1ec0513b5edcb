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
        let mut output = std::pin::pin!(docker.logs(&container, Some(options)));
        while let Some(piece) = output.next().await {
            match piece {
                Ok(piece) => {
                    let bytes = piece.into_bytes();
                    for chunk in bytes.chunks(MAX_CHUNK) {
                        let notice = Notice::Output {
                            runner: runner.clone(),
                            chunk: chunk.to_vec(),
                            skipped: 0,
                        };
                        if to.send(notice).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    debug!(runner, %error, "the output ended early");
                    break;
                }
            }
        }
        let _ = to.send(Notice::OutputEnd { runner }).await;
    })
}
