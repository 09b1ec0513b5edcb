//! Opens connections: direct or through a proxy, with TLS where the target asks for it.

use std::{
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    config::ConfigError,
    proxy::{Hop, Rules},
};

/// Longest wait for TCP, proxy and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer head a proxy may give to CONNECT.
const MAX_PROXY_HEAD: usize = 8 * 1024;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection with its way of being asked.
pub(crate) struct Link {
    io: TokioIo<Box<dyn Stream>>,
    /// Requests are sent in absolute form (plain http through a proxy).
    absolute_form: bool,
}

#[derive(Clone)]
pub(crate) struct Connector {
    tls: Arc<ClientConfig>,
    rules: Arc<Rules>,
}

impl Connector {
    pub(crate) fn new(rules: Arc<Rules>, tls: Arc<ClientConfig>) -> Self {
        Self { tls, rules }
    }
}

/// TLS settings: the system's roots and those of the CA file. The system's are
/// loaded only when something is reached over TLS at all.
pub(crate) fn tls_config(
    system_roots: bool,
    ca_file: Option<&Path>,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let mut roots = RootCertStore::empty();
    if system_roots {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
    }
    if let Some(path) = ca_file {
        let unusable = |why: String| ConfigError::Unusable {
            what: "CA certificate",
            origin: path.display().to_string(),
            why,
        };
        let pem = std::fs::read(path).map_err(|error| ConfigError::Unreadable {
            what: "the CA file",
            path: path.to_owned(),
            error: error.to_string(),
        })?;
        let mut added = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| unusable(format!("not PEM: {error}")))?;
            roots
                .add(certificate)
                .map_err(|error| unusable(error.to_string()))?;
            added += 1;
        }
        if added == 0 {
            return Err(unusable("it holds no PEM certificate".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Unusable {
            what: "TLS",
            origin: "this build".to_owned(),
            why: error.to_string(),
        })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl tower::Service<Uri> for Connector {
    type Response = Link;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Link>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, this.open(&target))
                .await
                .map_err(|_| {
                    io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
                    )
                })?
        })
    }
}

impl Connector {
    async fn open(&self, target: &Uri) -> io::Result<Link> {
        let host = target
            .host()
            .ok_or_else(|| io::Error::other("the URL names no host"))?
            .trim_matches(['[', ']']);
        let https = target.scheme_str() == Some("https");
        let port = target.port_u16().unwrap_or(if https { 443 } else { 80 });
        let hop = self.rules.hop_for(target);
        let mut stream = match hop {
            Some(hop) => self.open_hop(hop).await?,
            None => Box::new(dial(host, port).await?) as Box<dyn Stream>,
        };
        if https {
            if let Some(hop) = hop {
                tunnel(&mut stream, hop, host, port).await?;
            }
            stream = self.secure(stream, host).await?;
        }
        Ok(Link {
            io: TokioIo::new(stream),
            absolute_form: hop.is_some() && !https,
        })
    }

    async fn open_hop(&self, hop: &Hop) -> io::Result<Box<dyn Stream>> {
        let stream = dial(&hop.host, hop.port).await.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("proxy {}:{}: {error}", hop.host, hop.port),
            )
        })?;
        if hop.tls {
            self.secure(Box::new(stream), &hop.host).await
        } else {
            Ok(Box::new(stream))
        }
    }

    async fn secure(&self, stream: Box<dyn Stream>, host: &str) -> io::Result<Box<dyn Stream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(name, stream)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("TLS with {host}: {error}")))?;
        Ok(Box::new(stream))
    }
}

async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks the proxy for a tunnel to `host:port`.
async fn tunnel(stream: &mut Box<dyn Stream>, hop: &Hop, host: &str, port: u16) -> io::Result<()> {
    let target = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(authorization) = &hop.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut head = Vec::with_capacity(256);
    let mut byte = [0_u8; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_PROXY_HEAD {
            return Err(io::Error::other(
                "the proxy's answer to CONNECT is too long",
            ));
        }
        if stream.read(&mut byte).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "proxy {}:{} closed the connection on CONNECT",
                    hop.host, hop.port
                ),
            ));
        }
        head.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some(code) if code.len() == 3 && code.starts_with('2') => Ok(()),
        Some("407") => Err(io::Error::other(format!(
            "proxy {}:{} wants authentication (407); put user:password into HTTPS_PROXY",
            hop.host, hop.port
        ))),
        _ => Err(io::Error::other(format!(
            "proxy {}:{} refused CONNECT {target}: {line}",
            hop.host, hop.port
        ))),
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.absolute_form)
    }
}

impl hyper::rt::Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
