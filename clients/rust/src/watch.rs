//! Every change of the fleet, across broken connections.

use std::time::Duration;

use longshore_proto::v1::fleet_service_client::FleetServiceClient;
use longshore_proto::v1::{WatchFleetRequest, WatchFleetResponse};
use tonic::{Code, Streaming};

use crate::Error;
use crate::bearer::Connection;
use crate::retry::reconnect_pauses;

/// One message of the watch: a snapshot, or what changed since the last.
pub type Change = WatchFleetResponse;

/// A watch that reconnects and goes on where it was. When the scheduler no
/// longer knows the resume token, the next change is a new snapshot.
#[derive(Debug)]
pub struct Watch {
    inner: FleetServiceClient<Connection>,
    address: String,
    timeout: Duration,
    resume_token: u64,
    stream: Option<Streaming<WatchFleetResponse>>,
    pauses: backon::ExponentialBackoff,
    broken: Option<Error>,
}

impl Watch {
    pub(crate) fn new(
        inner: FleetServiceClient<Connection>,
        address: String,
        timeout: Duration,
        resume_token: u64,
    ) -> Watch {
        Watch {
            inner,
            address,
            timeout,
            resume_token,
            stream: None,
            pauses: reconnect_pauses(),
            broken: None,
        }
    }

    /// Where a later watch can go on.
    pub fn resume_token(&self) -> u64 {
        self.resume_token
    }

    /// Why the connection is broken at the moment, if it is.
    pub fn broken(&self) -> Option<&Error> {
        self.broken.as_ref()
    }

    /// The next change. Waits through outages; returns an error only when the
    /// scheduler refuses the watch, which trying again would not change.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            let error = match self.try_next().await {
                Ok(change) => {
                    self.resume_token = change.resume_token;
                    self.pauses = reconnect_pauses();
                    self.broken = None;
                    return Ok(change);
                }
                Err(error) => error,
            };
            self.stream = None;
            if is_final(&error) {
                return Err(error);
            }
            self.broken = Some(error);
            if let Some(pause) = self.pauses.next() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn try_next(&mut self) -> Result<Change, Error> {
        if self.stream.is_none() {
            let open = self.inner.watch_fleet(WatchFleetRequest {
                resume_token: self.resume_token,
            });
            let opened = tokio::time::timeout(self.timeout, open).await;
            let response = opened.map_err(|_| Error::TimedOut {
                address: self.address.clone(),
                call: "WatchFleet",
                after: self.timeout,
            })?;
            let response = response.map_err(|s| Error::from_status(&s, &self.address))?;
            self.stream = Some(response.into_inner());
        }
        let ended = || Error::Unreachable {
            address: self.address.clone(),
            problem: "it ended the watch".into(),
            refused: false,
        };
        match self.stream.as_mut() {
            None => Err(ended()),
            Some(stream) => match stream.message().await {
                Ok(Some(change)) => Ok(change),
                Ok(None) => Err(ended()),
                Err(status) => Err(Error::from_status(&status, &self.address)),
            },
        }
    }
}

/// Errors that the same request would meet again.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::TimedOut { .. } => false,
        Error::Address { .. } => true,
        Error::Api(api) => matches!(
            api.code,
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented
                | Code::NotFound
        ),
    }
}
