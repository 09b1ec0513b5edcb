//! Resolves a host and keeps the addresses that a sandbox may reach through the proxy.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use agent_core::ranges::{Range, is_private};
use tokio::net::TcpStream;

use agent_core::domains::Refusal;

const RESOLVE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const TRIED: usize = 4;

/// The public addresses of a host. Connections go to these and not to the name again,
/// so that a second answer of the resolver changes nothing.
pub(crate) async fn resolve(
    host: &str,
    port: u16,
    allowed: &[Range],
) -> Result<Vec<SocketAddr>, Refusal> {
    let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(address) => vec![(address, port).into()],
        Err(_) => {
            match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, port))).await {
                Ok(Ok(found)) => found.collect(),
                Ok(Err(_)) | Err(_) => return Err(Refusal::Unresolved),
            }
        }
    };
    if found.is_empty() {
        return Err(Refusal::Unresolved);
    }
    let public: Vec<SocketAddr> = found
        .into_iter()
        .filter(|address| !is_private(address.ip(), allowed) && !is_own(address.ip()))
        .take(TRIED)
        .collect();
    if public.is_empty() {
        return Err(Refusal::Private);
    }
    Ok(public)
}

/// An address of this host: its kernel would talk to itself from that very address.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        // Sends nothing: it only asks for the route.
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

/// A connection to the first address that answers.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut last = "no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Small records should not wait for each other.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer within {} s", CONNECT.as_secs()),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_lead_here_or_to_private_addresses_are_refused() {
        for host in [
            "localhost",
            "127.0.0.1",
            "10.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
        ] {
            assert_eq!(
                resolve(host, 80, &[]).await,
                Err(Refusal::Private),
                "{host}"
            );
        }
        let allowed = [Range::allowable("10.0.0.0/24").unwrap()];
        assert!(resolve("10.0.0.1", 80, &allowed).await.is_ok());
        assert_eq!(
            resolve("no-such-host.invalid", 80, &[]).await,
            Err(Refusal::Unresolved)
        );
    }

    #[test]
    fn own_addresses_are_known() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_own("203.0.113.7".parse().unwrap()));
    }
}
