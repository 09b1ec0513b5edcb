//! Where the scheduler is and how long to wait for it.

use std::time::Duration;

use tonic::transport::Endpoint;

use crate::{Client, Error};

/// The API listener of a scheduler on this host.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:9000";

/// Time for the TCP handshake; the scheduler is near, or it is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Deadline of one call, its retries included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How many times a read is tried in all.
const ATTEMPTS: usize = 4;
/// A silent connection is probed this often, so that a watch notices a dead peer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    address: String,
    connect_timeout: Duration,
    timeout: Duration,
    attempts: usize,
}

impl Builder {
    /// `address` is `http://HOST:PORT`; a bare `HOST:PORT` is accepted.
    pub fn new(address: impl Into<String>) -> Builder {
        Builder {
            address: address.into(),
            connect_timeout: CONNECT_TIMEOUT,
            timeout: CALL_TIMEOUT,
            attempts: ATTEMPTS,
        }
    }

    /// Time for the TCP handshake. Default 3 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// Deadline of one call, retries included. Default 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.timeout = timeout;
        self
    }

    /// How many times a read is tried in all; 1 means no retry. Default 4.
    pub fn attempts(mut self, attempts: usize) -> Builder {
        self.attempts = attempts.max(1);
        self
    }

    /// Checks the address and makes the client. Does not connect.
    pub fn build(self) -> Result<Client, Error> {
        let address = if self.address.contains("://") {
            self.address.trim_end_matches('/').to_owned()
        } else {
            format!("http://{}", self.address.trim_end_matches('/'))
        };
        let invalid = |problem: String| Error::Address {
            address: self.address.clone(),
            problem,
        };
        let uri: tonic::codegen::http::Uri =
            address.parse().map_err(|_| invalid("not a URL".into()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(other) => return Err(invalid(format!("scheme {other} is not supported"))),
            None => return Err(invalid("no scheme".into())),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(invalid("no host".into()));
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .user_agent(concat!("longshore-client/", env!("CARGO_PKG_VERSION")))
            .map_err(|e| invalid(e.to_string()))?;
        Ok(Client::new(
            endpoint.connect_lazy(),
            address,
            self.timeout,
            self.attempts,
        ))
    }
}
