//! Where the scheduler is and how long to wait for it.

use std::time::Duration;

use secrecy::SecretString;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::bearer::{Bearer, Connection};
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
    token: Option<SecretString>,
    authority: Option<String>,
    program: &'static str,
}

impl Builder {
    /// `address` is `http://HOST:PORT` or `https://HOST:PORT`; a bare `HOST:PORT` is plain.
    pub fn new(address: impl Into<String>) -> Builder {
        Builder {
            address: address.into(),
            connect_timeout: CONNECT_TIMEOUT,
            timeout: CALL_TIMEOUT,
            attempts: ATTEMPTS,
            token: None,
            authority: None,
            program: concat!("longshore-client/", env!("CARGO_PKG_VERSION")),
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

    /// The bearer token that every call shows. Over plain HTTP it goes to this host only.
    pub fn token(mut self, token: SecretString) -> Builder {
        self.token = Some(token);
        self
    }

    /// What the audit log names as the caller's program, as `name/version`.
    pub fn program(mut self, program: &'static str) -> Builder {
        self.program = program;
        self
    }

    /// The authority, PEM, that an `https://` scheduler's certificate comes from.
    pub fn ca(mut self, pem: impl Into<String>) -> Builder {
        self.authority = Some(pem.into());
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
            Some("http" | "https") => {}
            Some(other) => return Err(invalid(format!("scheme {other} is not supported"))),
            None => return Err(invalid("no scheme".into())),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(invalid("no host".into()));
        }
        let is_plain = uri.scheme_str() == Some("http");
        if is_plain && self.token.is_some() && !is_this_host(uri.host().unwrap_or_default()) {
            return Err(invalid(
                "a token would travel there in clear; write https://".into(),
            ));
        }
        let bearer = match &self.token {
            Some(token) => Bearer::new(token)
                .ok_or_else(|| invalid("the token has characters that none has".into()))?,
            None => Bearer::default(),
        };
        let mut endpoint = Endpoint::from(uri)
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .user_agent(self.program)
            .map_err(|e| invalid(e.to_string()))?;
        if !is_plain {
            let pem = self.authority.as_deref().ok_or_else(|| {
                invalid("https needs the authority of the scheduler's certificate".into())
            })?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|e| invalid(e.to_string()))?;
        }
        Ok(Client::new(
            Connection::new(endpoint.connect_lazy(), bearer),
            address,
            self.timeout,
            self.attempts,
        ))
    }
}

/// What is sent to these addresses does not leave the host.
fn is_this_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_never_leaves_the_host_in_clear() {
        let token = || SecretString::from("lst_1_secret");
        let build = |address: &str| Builder::new(address).token(token()).build();
        for address in ["http://127.0.0.1:1", "localhost:1", "http://[::1]:1"] {
            assert!(build(address).is_ok(), "{address}");
        }
        for address in ["http://10.0.0.1:1", "fleet.example:1", "https://10.0.0.1:1"] {
            let refused = build(address).unwrap_err().to_string();
            assert!(!refused.contains("secret"), "{refused}");
        }
        // Without a token nothing is given away.
        assert!(Builder::new("http://10.0.0.1:1").build().is_ok());
        let builder = Builder::new("http://127.0.0.1:1").token(token());
        assert!(!format!("{builder:?}").contains("secret"));
    }
}
