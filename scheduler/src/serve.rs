//! One accept loop for all listeners: bounded connections, header timeouts, graceful end.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, extract::Request};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use scheduler_identity::authority::{NodeCertificate, node_certificate};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Bytes of a request's header, at most, and of what is buffered per connection.
const HEADERS: usize = 64 * 1024;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// A request's header must be complete after this.
    pub header_timeout: Duration,
    /// HTTP/2 streams per connection.
    pub streams: u32,
    /// HTTP/2 pings keep dead peers from holding a connection.
    pub keepalive: Duration,
}

/// Who is at the other end of a request's connection: an extension of every request.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: SocketAddr,
    /// The node whose certificate was shown; its chain holds.
    pub node: Option<NodeCertificate>,
}

/// A bound listener: the address is known before anything is served.
pub struct Listener {
    pub name: &'static str,
    pub address: SocketAddr,
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "cannot listen on {address} for {name}: {source}; is another scheduler running? `--{flag} 127.0.0.1:0` picks a free port"
    )]
    Bind {
        name: &'static str,
        flag: &'static str,
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("{address} for {name} is not a loopback address; use 127.0.0.1, or give it TLS")]
    NotLoopback {
        name: &'static str,
        address: SocketAddr,
    },
}

impl Listener {
    /// Binds, and refuses everything but loopback: the last line behind the configuration's check.
    pub async fn local(
        name: &'static str,
        flag: &'static str,
        address: SocketAddr,
    ) -> Result<Self, ListenError> {
        if !address.ip().is_loopback() {
            return Err(ListenError::NotLoopback { name, address });
        }
        Self::bind(name, flag, address).await
    }

    /// Binds an address whose callers identify themselves otherwise.
    pub async fn bind(
        name: &'static str,
        flag: &'static str,
        address: SocketAddr,
    ) -> Result<Self, ListenError> {
        let bound = async {
            let socket = TcpListener::bind(address).await?;
            Ok((socket.local_addr()?, socket))
        };
        let (address, socket) = bound.await.map_err(|source| ListenError::Bind {
            name,
            flag,
            address,
            source,
        })?;
        Ok(Self {
            name,
            address,
            socket,
            tls: None,
        })
    }

    /// Takes TLS connections only.
    pub fn with_tls(mut self, config: Arc<ServerConfig>) -> Self {
        self.tls = Some(TlsAcceptor::from(config));
        self
    }

    /// Serves until `stop`; then no new connections, open requests get `drain` to end.
    pub async fn serve(
        self,
        router: Router,
        bounds: Bounds,
        stop: CancellationToken,
        drain: Duration,
    ) {
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(bounds.connections));
        let serving = Arc::new(Serving {
            name: self.name,
            tls: self.tls,
            builder: builder(bounds),
            patience: bounds.header_timeout,
            router,
        });
        loop {
            let permit = tokio::select! {
                permit = Arc::clone(&permits).acquire_owned() => match permit {
                    Ok(permit) => permit,
                    Err(_) => break,
                },
                () = stop.cancelled() => break,
            };
            let (stream, address) = tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, or the peer left at once: breathe, go on.
                        tracing::warn!(listener = self.name, %error, "accept failed");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            let (serving, watcher) = (Arc::clone(&serving), graceful.watcher());
            tokio::spawn(async move {
                serving.connection(stream, address, watcher).await;
                drop(permit);
            });
        }
        drop(self.socket);
        if tokio::time::timeout(drain, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!(
                listener = self.name,
                "connections were cut after the drain time"
            );
        }
    }
}

/// What the connections of a listener share.
struct Serving {
    name: &'static str,
    tls: Option<TlsAcceptor>,
    builder: auto::Builder<TokioExecutor>,
    /// A TLS handshake must be complete after this.
    patience: Duration,
    router: Router,
}

impl Serving {
    async fn connection(&self, stream: TcpStream, address: SocketAddr, watcher: Watcher) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let Some(tls) = &self.tls else {
            let caller = Caller {
                address,
                node: None,
            };
            return self.converse(stream, caller, watcher).await;
        };
        let stream = match tokio::time::timeout(self.patience, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.no_handshake(address, &error.to_string()),
            Err(_) => return self.no_handshake(address, "it took too long"),
        };
        let shown = stream.get_ref().1.peer_certificates();
        let node = shown.and_then(|shown| node_certificate(shown.first()?));
        let caller = Caller { address, node };
        self.converse(stream, caller, watcher).await;
    }

    /// Said once a while only: whoever knocks may knock often.
    fn no_handshake(&self, address: SocketAddr, why: &str) {
        static SAID: Sometimes = Sometimes::new();
        let listener = self.name;
        if SAID.again() {
            tracing::warn!(
                listener,
                %address,
                why,
                "no TLS handshake: this listener takes TLS only; if it was an agent, give it an https:// address and look at its clock"
            );
        } else {
            tracing::debug!(listener, %address, why, "no TLS handshake");
        }
    }

    async fn converse<I>(&self, io: I, caller: Caller, watcher: Watcher)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self
            .router
            .clone()
            .map_request(move |mut request: Request<_>| {
                request.extensions_mut().insert(caller.clone());
                request
            });
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(io), TowerToHyperService::new(router));
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(listener = self.name, %error, "connection ended");
        }
    }
}

/// True at most once in ten seconds.
struct Sometimes(Mutex<Option<Instant>>);

impl Sometimes {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn again(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() > Duration::from_secs(10));
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

fn builder(bounds: Bounds) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(HEADERS)
        .header_read_timeout(bounds.header_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.streams)
        .keep_alive_interval(bounds.keepalive)
        .keep_alive_timeout(bounds.keepalive);
    builder
}
