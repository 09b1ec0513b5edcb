//! Output of runners to the scheduler, on a connection of its own.
//!
//! Only what the newest intent subscribes to. A slow reader never holds up a
//! runner: the store forgets the oldest bytes and the next piece says how many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use longshore_proto::v1 as pb;
use longshore_proto::v1::node_service_client::NodeServiceClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::dial::Dial;
use crate::driver::Subscription;
use crate::link;
use crate::logstore::LogStore;

const PIECE: usize = 64 << 10;
const WAITING: usize = 16;
const PAUSE: Duration = Duration::from_secs(1);
/// The node's bound on what it pushes, all runners together.
const BYTES_PER_SECOND: u64 = 8 << 20;

pub struct Push {
    pub dial: Dial,
    pub logs: Arc<LogStore>,
    pub subscriptions: watch::Receiver<Vec<Subscription>>,
}

impl Push {
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let wanted = self.subscriptions.borrow_and_update().clone();
            let work = async {
                if wanted.is_empty() {
                    return self.subscriptions.changed().await.is_ok();
                }
                if let Err(error) = self.push(wanted).await {
                    debug!(error = format!("{error:#}"), "output is not pushed");
                    tokio::time::sleep(PAUSE).await;
                }
                true
            };
            tokio::select! {
                () = stop.cancelled() => return,
                go_on = work => if !go_on { return },
            }
        }
    }

    /// Pushes until the subscriptions change or the connection ends.
    async fn push(&mut self, wanted: Vec<Subscription>) -> anyhow::Result<()> {
        let channel = self.dial.connect().await?;
        let mut client =
            NodeServiceClient::new(channel).max_encoding_message_size(link::MAX_MESSAGE);
        let (up, outgoing) = mpsc::channel(WAITING);
        let mut answer = std::pin::pin!(client.push_logs(ReceiverStream::new(outgoing)));
        let mut offsets: BTreeMap<String, u64> =
            wanted.into_iter().map(|w| (w.runner, w.offset)).collect();
        let logs = self.logs.clone();
        let mut pump = std::pin::pin!(async {
            loop {
                let grown = logs.grown();
                let mut grown = std::pin::pin!(grown);
                // Asked for before reading, so that nothing written in between is missed.
                let _ = futures_util::poll!(grown.as_mut());
                let moved = pump_once(&logs, &mut offsets, &up).await?;
                if !moved {
                    grown.await;
                }
            }
            #[allow(unreachable_code)]
            anyhow::Ok(())
        });
        tokio::select! {
            result = &mut pump => result,
            answer = &mut answer => {
                answer.context("the scheduler ended the output stream")?;
                // Closed on purpose: wait for other wishes rather than pushing the same again.
                self.subscriptions.changed().await.map_err(|_| anyhow!("the agent is ending"))
            }
            changed = self.subscriptions.changed() => changed.map_err(|_| anyhow!("the agent is ending")),
        }
    }
}

/// One piece of each runner; true when anything was sent.
async fn pump_once(
    logs: &LogStore,
    offsets: &mut BTreeMap<String, u64>,
    up: &mpsc::Sender<pb::PushLogsRequest>,
) -> anyhow::Result<bool> {
    let mut sent = 0u64;
    let mut ended = Vec::new();
    for (runner, offset) in offsets.iter_mut() {
        let Some(piece) = logs.read(runner, *offset, PIECE)? else {
            continue;
        };
        *offset = piece.offset + piece.bytes.len() as u64;
        sent += piece.bytes.len() as u64 + 1;
        if piece.end {
            ended.push(runner.clone());
        }
        let request = pb::PushLogsRequest {
            runner: runner.clone(),
            offset: piece.offset,
            chunk: piece.bytes,
            skipped: piece.skipped,
            end: piece.end,
        };
        up.send(request)
            .await
            .map_err(|_| anyhow!("the output stream was closed"))?;
    }
    for runner in ended {
        offsets.remove(&runner);
    }
    if sent > 0 {
        tokio::time::sleep(Duration::from_millis(sent * 1_000 / BYTES_PER_SECOND)).await;
    }
    Ok(sent > 0)
}
