//! Connections to the scheduler: every address it may be at, TLS always, and the node's certificate.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use hyper_util::rt::TokioIo;
use longshore_proto::SCHEDULER_NAME;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::identity::Identity;

const CONNECT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Most addresses of one scheduler.
pub const MAX_ADDRESSES: usize = 16;

/// `HOST:PORT` of a scheduler's node listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Reads `https://HOST:PORT`.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.starts_with("http://") {
            return Err(
                "must begin with https://: a scheduler's node listener takes TLS only".into(),
            );
        }
        let authority = url
            .strip_prefix("https://")
            .ok_or("must begin with https://, for example https://scheduler.example.org:9001")?
            .trim_end_matches('/');
        let (host, port) = authority
            .rsplit_once(':')
            .ok_or("must name a port, for example https://127.0.0.1:9001")?;
        port.parse::<u16>()
            .map_err(|_| "must end in a port number")?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        match ServerName::try_from(host) {
            Ok(_) => Ok(Self(authority.to_owned())),
            Err(_) => Err(format!("{host:?} is neither a host name nor an address")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.0)
    }
}

/// Where the scheduler is and who this node is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dial {
    addresses: Arc<[Address]>,
    /// The one that answered last.
    preferred: Arc<AtomicUsize>,
    identity: Arc<Identity>,
}

impl Dial {
    pub fn new(addresses: Vec<Address>, identity: Identity) -> Self {
        Self {
            addresses: addresses.into(),
            preferred: Arc::default(),
            identity: Arc::new(identity),
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A channel with this product's bounds and the node's certificate as it is on disk now:
    /// a renewed one counts with the next connection.
    pub async fn connect(&self) -> anyhow::Result<Channel> {
        let tls = Arc::new(self.identity.client_config()?);
        let first = self.preferred.load(Ordering::Relaxed);
        connect(&self.addresses, first, &tls)
            .await
            .map(|(channel, index)| {
                self.preferred.store(index, Ordering::Relaxed);
                channel
            })
    }
}

/// The first of these addresses that answers, from `first` on, and which it was.
pub async fn connect(
    addresses: &[Address],
    first: usize,
    tls: &Arc<ClientConfig>,
) -> anyhow::Result<(Channel, usize)> {
    let mut failures = Vec::new();
    for index in 0..addresses.len() {
        let index = (first + index) % addresses.len();
        match open(&addresses[index], Arc::clone(tls)).await {
            Ok(channel) => return Ok((channel, index)),
            Err(error) => failures.push(format!("{}: {error:#}", addresses[index])),
        }
    }
    Err(anyhow!("no scheduler at {}", failures.join("; ")))
}

async fn open(address: &Address, tls: Arc<ClientConfig>) -> anyhow::Result<Channel> {
    let authority = address.0.clone();
    let connector = service_fn(move |_| {
        let (authority, tls) = (authority.clone(), TlsConnector::from(Arc::clone(&tls)));
        async move { handshake(&authority, tls).await.map(TokioIo::new) }
    });
    // TLS is the connector's: to tonic the scheme says that there is none left to do.
    let channel = Endpoint::from_shared(format!("http://{}", address.0))?
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await;
    // tonic says only "transport error"; the reason is what a person needs.
    channel.map_err(|error| {
        let mut reason: &dyn std::error::Error = &error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        anyhow!("{reason}")
    })
}

async fn handshake(
    authority: &str,
    tls: TlsConnector,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
    let stream = timeout(CONNECT, TcpStream::connect(authority))
        .await
        .map_err(late)??;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(SCHEDULER_NAME).map_err(std::io::Error::other)?;
    timeout(CONNECT, tls.connect(name, stream))
        .await
        .map_err(late)?
}

/// Reads a comma-separated list.
pub fn addresses(text: &str) -> Result<Vec<Address>, String> {
    let urls = text.split(',').map(str::trim).filter(|url| !url.is_empty());
    let addresses: Vec<Address> = urls.map(Address::parse).collect::<Result<_, _>>()?;
    match addresses.len() {
        0 => Err("must name the scheduler, for example https://scheduler.example.org:9001".into()),
        1..=MAX_ADDRESSES => Ok(addresses),
        _ => Err(format!("must be at most {MAX_ADDRESSES} addresses")),
    }
}

/// A call that the scheduler answered with an error.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
pub struct Refused {
    pub code: Code,
    said: String,
}

impl Refused {
    /// Asking again at once brings the same answer: a person has to do something.
    pub fn is_decision(&self) -> bool {
        matches!(
            self.code,
            Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition
        )
    }
}

/// What a refused call says, in one line.
pub fn refusal(status: &tonic::Status) -> anyhow::Error {
    anyhow::Error::new(Refused {
        code: status.code(),
        said: status.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_every_form() {
        for good in [
            "https://127.0.0.1:1",
            "https://localhost:9001/",
            "https://[::1]:2",
            "https://ci.example.org:9001",
            "https://10.0.0.1:9001, https://10.0.0.2:9001",
        ] {
            assert!(addresses(good).is_ok(), "{good}");
        }
        for (bad, word) in [
            ("http://127.0.0.1:1", "TLS only"),
            ("ci.example.org:9001", "https://"),
            ("https://127.0.0.1", "port"),
            ("https://two words:1", "host name"),
            ("", "scheduler"),
        ] {
            let told = addresses(bad).unwrap_err();
            assert!(told.contains(word), "{bad}: {told}");
        }
    }
}
