//! A runner's output, while it runs and after it is gone.

use futures_util::{StreamExt, stream};
use longshore_proto::v1;
use tokio::sync::watch;
use tonic::Status;

use super::{Answering, Fleets};
use crate::{
    access::Who,
    api::{errors, watchers::Place},
    logs::{Head, Logs, Piece},
    ports::{Demand, Store},
};

/// Bytes of one message, at most.
const CHUNK: usize = 64 * 1024;

/// A reader on its way through a log.
struct Reader {
    logs: Logs,
    runner: String,
    position: u64,
    /// Kept while following; `None` reads what is there.
    head: Option<watch::Receiver<Head>>,
    stop: tokio_util::sync::CancellationToken,
    _place: Place,
}

impl<S: Store, D: Demand> Fleets<S, D> {
    pub(super) async fn output(
        &self,
        who: &Who,
        asked: v1::StreamRunnerLogsRequest,
        place: Place,
    ) -> Result<Answering<v1::StreamRunnerLogsResponse>, Status> {
        let row = self.runner_row(who, &asked.name).await?;
        let live = self.is_live(&row.name);
        let runner = row.name.to_string();
        let logs = self.parts.logs.clone();
        let opened = {
            let (logs, runner) = (logs.clone(), runner.clone());
            blocking(move || {
                let head = logs.head(&runner)?;
                let follow = asked.follow && !head.ended && (live || logs.is_open(&runner));
                let follower = follow.then(|| logs.follow(&runner)).transpose()?;
                Ok((head, follower))
            })
        };
        let (head, follower) = opened.await?;
        let position = match asked.tail_bytes {
            0 => 0,
            tail => head.end().saturating_sub(tail),
        };
        let reader = Reader {
            logs,
            runner,
            position,
            head: follower,
            stop: self.parts.stop.clone(),
            _place: place,
        };
        let pieces = stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(None) => None,
                Ok(Some(piece)) => {
                    let message = v1::StreamRunnerLogsResponse {
                        chunk: piece.bytes,
                        skipped: piece.skipped,
                    };
                    Some((Ok(message), Some(reader)))
                }
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(pieces.boxed())
    }
}

impl Reader {
    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Piece>, Status> {
        loop {
            // Marked as seen before the read: what comes after it wakes us again.
            let ended = self
                .head
                .as_mut()
                .is_none_or(|head| head.borrow_and_update().ended);
            let (logs, runner, position) = (self.logs.clone(), self.runner.clone(), self.position);
            let piece = blocking(move || logs.read(&runner, position, CHUNK)).await?;
            self.position = piece.next;
            if !piece.bytes.is_empty() || piece.skipped > 0 {
                return Ok(Some(piece));
            }
            if ended {
                return Ok(None);
            }
            if let Some(head) = &mut self.head {
                tokio::select! {
                    changed = head.changed() => {
                        if changed.is_err() {
                            self.head = None;
                        }
                    }
                    () = self.stop.cancelled() => return Err(errors::stopping()),
                }
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let unreadable = |detail: &dyn std::fmt::Display| {
        tracing::warn!(%detail, "a log cannot be read");
        errors::status(
            tonic::Code::Unavailable,
            "log_unreadable",
            "the runner's output cannot be read",
            "see the scheduler's log",
        )
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(unreadable(&error)),
        Err(error) => Err(unreadable(&error)),
    }
}
