//! One accept loop for all listeners: bounded connections, deadlines for everything a peer may leave out, graceful end.

pub mod crowd;
pub mod descriptors;
pub mod requests;
mod stalled;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::Router;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::ServerConfig;
use scheduler_identity::authority::{NodeCertificate, node_certificate};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::MissedTickBehavior,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crowd::{Crowd, Patience, Place};
use requests::{Requests, Whole};
use stalled::Stalled;

/// Bytes of a request's header, at most, and of what is buffered of HTTP/1.
const HEADERS: usize = 16 * 1024;
/// Bytes an HTTP/2 peer may send on one stream before they are read ...
const STREAM_WINDOW: u32 = 128 * 1024;
/// ... and on all streams of one connection.
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Bytes of one stream's answer that wait for the peer.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a peer opened and reset before they were looked at (CVE-2023-44487);
/// with more the connection is ended.
const RESET_UNSEEN: usize = 20;
/// Streams ended for the peer's mistakes; with more the connection is ended.
const RESET_FOR_ERRORS: usize = 256;
/// A peer that takes nothing of its answer for so long is given up.
const STALLED: Duration = Duration::from_secs(30);
/// Time between two looks for idle connections.
const SWEEP: Duration = Duration::from_secs(1);
/// How a TLS connection begins.
const TLS_RECORD: [u8; 2] = [22, 3];
/// Room after a failed accept, and before the next one.
const BREATH: Duration = Duration::from_millis(50);

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once; a further one takes an idle one's place.
    pub connections: usize,
    /// A TLS handshake, and each request's header, must be complete after this.
    pub header_timeout: Duration,
    /// The first request must have come after this, whatever else did; later ones after `idle`.
    pub first: Duration,
    /// A connection without a request for so long is closed.
    pub idle: Duration,
    /// HTTP/2 streams per connection.
    pub streams: u32,
    /// Requests being answered at once, over all connections.
    pub requests: usize,
    /// What a request's body may be; `None`: the service behind sees to it.
    pub body: Option<Whole>,
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
        let crowd = Crowd::new(
            bounds.connections,
            Patience {
                first: bounds.first,
                next: bounds.idle,
            },
        );
        let serving = Arc::new(Serving {
            name: self.name,
            tls: self.tls,
            builder: builder(bounds),
            patience: bounds.header_timeout,
            requests: Requests::new(bounds.requests, bounds.body),
            stop: stop.clone(),
            router,
        });
        let full = Sometimes::new();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (stream, address) = tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, or the peer left at once: breathe, go on.
                        tracing::warn!(listener = self.name, %error, "accept failed");
                        crowd.make_room();
                        tokio::time::sleep(BREATH).await;
                        continue;
                    }
                },
                _ = sweep.tick() => {
                    crowd.sweep(Instant::now());
                    continue;
                }
                () = stop.cancelled() => break,
            };
            let Some(place) = crowd.enter(address.ip(), Instant::now()) else {
                if full.again() {
                    tracing::warn!(
                        listener = self.name,
                        %address,
                        connections = crowd.len(),
                        "a connection was refused: all others wait for an answer"
                    );
                }
                continue;
            };
            let (serving, watcher) = (Arc::clone(&serving), graceful.watcher());
            tokio::spawn(async move {
                tokio::select! {
                    () = serving.connection(stream, address, place.clone(), watcher) => {}
                    () = place.lost() => {}
                }
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
    requests: Requests,
    stop: CancellationToken,
    router: Router,
}

impl Serving {
    async fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        place: Place,
        watcher: Watcher,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let greeting = async {
            let mut first = [0; 2];
            let plain = self.tls.is_none();
            (plain && stream.peek(&mut first).await.is_ok() && first == TLS_RECORD).then_some(())
        };
        tokio::select! {
            tls = greeting => if tls.is_some() {
                return self.unexpected_tls(address);
            },
            // Nobody waits at the end for who has said nothing yet.
            () = self.stop.cancelled() => return,
        }
        let stream = Stalled::new(stream, STALLED);
        let Some(tls) = &self.tls else {
            let caller = Caller {
                address,
                node: None,
            };
            return self.converse(stream, caller, place, watcher).await;
        };
        let handshake = tokio::time::timeout(self.patience, tls.accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = self.stop.cancelled() => return,
        };
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.no_handshake(address, &error.to_string()),
            Err(_) => return self.no_handshake(address, "it took too long"),
        };
        let shown = stream.get_ref().1.peer_certificates();
        let node = shown.and_then(|shown| node_certificate(shown.first()?));
        let caller = Caller { address, node };
        self.converse(stream, caller, place, watcher).await;
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

    /// As `no_handshake`, of the reverse.
    fn unexpected_tls(&self, address: SocketAddr) {
        static SAID: Sometimes = Sometimes::new();
        if SAID.again() {
            tracing::warn!(
                listener = self.name,
                %address,
                "a TLS handshake where plain HTTP is spoken: use an http:// address, or give this listener a certificate"
            );
        }
    }

    async fn converse<I>(&self, io: I, caller: Caller, place: Place, watcher: Watcher)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, requests) = (self.router.clone(), self.requests.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            let (requests, router, place) = (requests.clone(), router.clone(), place.clone());
            async move { Ok::<_, Infallible>(requests.answer(router, place, request).await) }
        });
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(io), service);
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
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADERS as u32)
        .max_pending_accept_reset_streams(RESET_UNSEEN)
        .max_local_error_reset_streams(RESET_FOR_ERRORS)
        .keep_alive_interval(bounds.keepalive)
        .keep_alive_timeout(bounds.keepalive);
    builder
}
