//! A CONNECT tunnel: TLS to the host that was asked for, and nothing else.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hello;
use agent_core::domains::{Refusal, normal};

/// A tunnel in which nothing moved for so long is closed.
const IDLE: Duration = Duration::from_secs(15 * 60);
const PIECE: usize = 16 * 1024;

/// Whether the handshake names the host of the CONNECT.
fn same_host(host: &str, name: Option<&str>) -> Result<(), Refusal> {
    match name {
        // A handshake with an address has no name in it.
        None if host.parse::<IpAddr>().is_ok() => Ok(()),
        None => Err(Refusal::SniMissing),
        Some(name) if normal(name).as_deref() == Some(host) => Ok(()),
        Some(_) => Err(Refusal::SniMismatch),
    }
}

/// Joins a client with the host, once its handshake names that host.
pub(crate) async fn run(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut server: TcpStream,
    host: &str,
) -> Result<(), Refusal> {
    let hello = hello::read(&mut client).await?;
    same_host(host, hello.name.as_deref())?;
    if server.write_all(&hello.bytes).await.is_ok() {
        join(client, server).await;
    }
    Ok(())
}

async fn join(client: impl AsyncRead + AsyncWrite + Unpin, server: TcpStream) {
    let begin = Instant::now();
    let moved = Arc::new(AtomicU64::new(0));
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = server.into_split();
    let both = async {
        tokio::join!(
            copy(client_read, server_write, &moved, begin),
            copy(server_read, client_write, &moved, begin)
        )
    };
    let idle = async {
        loop {
            let quiet = begin
                .elapsed()
                .saturating_sub(Duration::from_millis(moved.load(Ordering::Relaxed)));
            match IDLE.checked_sub(quiet) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    };
    tokio::select! {
        _ = both => {}
        () = idle => {}
    }
}

/// One direction, until its end; the other side is told.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &AtomicU64,
    begin: Instant,
) {
    let mut piece = vec![0_u8; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let now = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        moved.store(now, Ordering::Relaxed);
        if to.write_all(&piece[..length]).await.is_err() {
            break;
        }
    }
    // Already closed is as good.
    let _ = to.shutdown().await;
}

/// For messages: where a tunnel leads.
pub(crate) fn places(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_must_name_the_host_of_the_tunnel() {
        assert_eq!(same_host("a.test", Some("A.test")), Ok(()));
        assert_eq!(same_host("a.test", Some("a.test.")), Ok(()));
        assert_eq!(
            same_host("a.test", Some("b.test")),
            Err(Refusal::SniMismatch)
        );
        assert_eq!(same_host("a.test", None), Err(Refusal::SniMissing));
        assert_eq!(same_host("9.9.9.9", None), Ok(()));
        assert_eq!(
            same_host("9.9.9.9", Some("a.test")),
            Err(Refusal::SniMismatch)
        );
    }
}
