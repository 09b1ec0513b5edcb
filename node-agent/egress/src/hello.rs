//! Reads the name in a TLS ClientHello, and keeps its bytes for the one it is meant for.

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

use agent_core::domains::Refusal;

/// Longer ones are not made by any client; post-quantum key shares fit.
const MAX_HELLO: usize = 32 * 1024;
const WITHIN: Duration = Duration::from_secs(10);

/// What a client said first.
pub(crate) struct Hello {
    /// Everything read so far, to be sent on as it is.
    pub(crate) bytes: Vec<u8>,
    /// The host it asks for, as it wrote it.
    pub(crate) name: Option<String>,
}

/// The first bytes of a tunnel, if they are a whole ClientHello.
pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Hello, Refusal> {
    match tokio::time::timeout(WITHIN, read_slowly(from)).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::NotTls),
    }
}

async fn read_slowly(from: &mut (impl AsyncRead + Unpin)) -> Result<Hello, Refusal> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::with_capacity(2_048);
    let mut piece = [0_u8; 4_096];
    loop {
        let length = match from.read(&mut piece).await {
            Ok(0) | Err(_) => return Err(Refusal::NotTls),
            Ok(length) => length,
        };
        bytes.extend_from_slice(&piece[..length]);
        let mut rest = &piece[..length];
        while !rest.is_empty() {
            match acceptor.read_tls(&mut rest) {
                Ok(0) => return Err(Refusal::NotTls),
                Ok(_) => {}
                // Its own buffer is full: what it holds is looked at first.
                Err(error) if error.kind() == io::ErrorKind::Other => {}
                Err(_) => return Err(Refusal::NotTls),
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    return Ok(Hello { bytes, name });
                }
                Ok(None) if bytes.len() > MAX_HELLO => return Err(Refusal::NotTls),
                Ok(None) => {}
                Err(_) => return Err(Refusal::NotTls),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_tls_is_refused() {
        for said in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"SSH-2.0-x\r\n",
            b"",
            b"\x16\x03",
        ] {
            let mut said = said;
            assert!(
                read(&mut said)
                    .await
                    .is_err_and(|why| why == Refusal::NotTls)
            );
        }
    }

    #[tokio::test]
    async fn a_record_that_never_ends_is_not_read_for_ever() {
        let mut endless = tokio::io::repeat(0x16);
        assert!(read(&mut endless).await.is_err());
    }
}
