//! One accept loop for all listeners: bounded connections, header timeouts, graceful end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

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

/// A bound listener: the address is known before anything is served.
pub struct Listener {
    pub name: &'static str,
    pub address: SocketAddr,
    socket: TcpListener,
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
    #[error(
        "{address} for {name} is not a loopback address; use 127.0.0.1 until callers have identities"
    )]
    NotLoopback {
        name: &'static str,
        address: SocketAddr,
    },
}

impl Listener {
    /// Binds, and refuses everything but loopback: the last line behind the configuration's check.
    pub async fn bind(
        name: &'static str,
        flag: &'static str,
        address: SocketAddr,
    ) -> Result<Self, ListenError> {
        if !address.ip().is_loopback() {
            return Err(ListenError::NotLoopback { name, address });
        }
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
        })
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
        let builder = builder(bounds);
        loop {
            let permit = tokio::select! {
                permit = Arc::clone(&permits).acquire_owned() => match permit {
                    Ok(permit) => permit,
                    Err(_) => break,
                },
                () = stop.cancelled() => break,
            };
            let stream = tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of file descriptors, or the peer left at once: breathe, go on.
                        tracing::warn!(listener = self.name, %error, "accept failed");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "no TCP_NODELAY");
            }
            let service = TowerToHyperService::new(router.clone());
            let connection = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .into_owned();
            let connection = graceful.watch(connection);
            let name = self.name;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(listener = name, %error, "connection ended");
                }
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
