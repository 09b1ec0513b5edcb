//! A runner's output as it arrives.

use std::time::Duration;

use longshore_proto::v1::StreamRunnerLogsResponse;
use tonic::Streaming;

use crate::Error;

/// Some output of a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// Bytes as the job wrote them: not trusted, perhaps not UTF-8.
    pub bytes: Vec<u8>,
    /// How many bytes were lost before these.
    pub skipped: u64,
}

/// Output of one runner, oldest first.
#[derive(Debug)]
pub struct LogStream {
    stream: Streaming<StreamRunnerLogsResponse>,
    address: String,
}

impl LogStream {
    pub(crate) fn new(stream: Streaming<StreamRunnerLogsResponse>, address: String) -> LogStream {
        LogStream { stream, address }
    }

    /// The next output; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<LogChunk>, Error> {
        match self.stream.message().await {
            Ok(Some(m)) => Ok(Some(LogChunk {
                bytes: m.chunk,
                skipped: m.skipped,
            })),
            Ok(None) => Ok(None),
            Err(status) => Err(Error::from_status(&status, &self.address)),
        }
    }

    /// The same, but not longer than `limit`.
    pub async fn next_within(&mut self, limit: Duration) -> Result<Option<LogChunk>, Error> {
        match tokio::time::timeout(limit, self.next()).await {
            Ok(next) => next,
            Err(_) => Err(Error::TimedOut {
                address: self.address.clone(),
                call: "StreamRunnerLogs",
                after: limit,
            }),
        }
    }
}
