//! The proxy of one slot: a listener on its gateway, its list, its count of refusals.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_core::denied::Denied;
use agent_core::ranges::Range;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tracing::debug;

use crate::control::Open;
use crate::ledger::Ledger;
use crate::{address, plain, tunnel};
use agent_core::domains::{Allowed, Refusal, normal};

/// Connections of one job at once; more are answered 503.
const CONNECTIONS: usize = 256;
const HEADERS: usize = 100;
const HEADER_BYTES: usize = 32 * 1024;
const HEADERS_WITHIN: Duration = Duration::from_secs(15);

type Body = BoxBody<Bytes, hyper::Error>;

struct Shared {
    subnet: Range,
    allowed: Allowed,
    ranges: Vec<Range>,
    ledger: Ledger,
    room: Arc<Semaphore>,
}

/// An open slot. Dropping it closes the listener and every connection of it.
pub(crate) struct Slot {
    pub(crate) open: Open,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Its connections are in a set that goes with it.
        self.task.abort();
    }
}

impl Slot {
    pub(crate) async fn start(open: Open) -> Result<Self, String> {
        let allowed = Allowed::parse(open.allowed.iter().map(String::as_str))
            .map_err(|error| error.to_string())?;
        let ranges: Result<Vec<Range>, String> =
            open.ranges.iter().map(|r| Range::allowable(r)).collect();
        let listener = TcpListener::bind(open.listen)
            .await
            .map_err(|error| format!("listening on {}: {error}", open.listen))?;
        let shared = Arc::new(Shared {
            subnet: open.subnet.parse()?,
            allowed,
            ranges: ranges?,
            ledger: Ledger::default(),
            room: Arc::new(Semaphore::new(CONNECTIONS)),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { open, shared, task })
    }

    /// Returns once the listener is closed.
    pub(crate) async fn close(mut self) {
        self.task.abort();
        // Aborted or not: it is over.
        let _ = (&mut self.task).await;
    }

    pub(crate) fn denied(&self) -> Denied {
        self.shared.ledger.denied()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file handles, for one: not for ever.
                debug!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if !is_of(&shared, from) {
            continue;
        }
        // Beyond its bound a job's connections are closed unanswered, and counted.
        let Ok(permit) = shared.room.clone().try_acquire_owned() else {
            shared.ledger.refused("", "connection", 0, Refusal::TooMany);
            continue;
        };
        connections.spawn(serve(stream, shared.clone(), permit));
    }
}

/// Another slot's job could ask by this slot's gateway: it has its own list.
fn is_of(shared: &Shared, from: SocketAddr) -> bool {
    match from {
        SocketAddr::V4(v4) => shared.subnet.holds(*v4.ip()),
        SocketAddr::V6(_) => false,
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, permit: OwnedSemaphorePermit) {
    // A tunnel outlives the HTTP connection that asked for it, and ends with the slot all the same.
    let tunnels = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
    let service = service_fn(|request| answer(request, shared.clone(), tunnels.clone()));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
    let mut tunnels = std::mem::take(&mut *tunnels.lock().await);
    while tunnels.join_next().await.is_some() {}
    drop(permit);
}

async fn answer(
    mut request: Request<Incoming>,
    shared: Arc<Shared>,
    tunnels: Arc<tokio::sync::Mutex<JoinSet<()>>>,
) -> Result<Response<Body>, Infallible> {
    let connects = request.method() == Method::CONNECT;
    let protocol = if connects { "connect" } else { "http" };
    let (host, port) = match target(&request, connects) {
        Some(target) => target,
        None => return Ok(refuse(&shared, "", protocol, 0, Refusal::Malformed)),
    };
    if let Err(why) = shared.allowed.check(&host, port) {
        return Ok(refuse(&shared, &host, protocol, port, why));
    }
    let addresses = match address::resolve(&host, port, &shared.ranges).await {
        Ok(addresses) => addresses,
        Err(why) => return Ok(refuse(&shared, &host, protocol, port, why)),
    };
    let server = match address::connect(&addresses).await {
        Ok(server) => server,
        Err(why) => {
            debug!(host, to = tunnel::places(&addresses), why, "not reached");
            return Ok(say(StatusCode::BAD_GATEWAY, &format!("{host}: {why}")));
        }
    };
    if !connects {
        return Ok(match plain::forward(request, server, &host, port).await {
            Ok(response) => response.map(BodyExt::boxed),
            Err(why) => say(StatusCode::BAD_GATEWAY, &format!("{host}: {why}")),
        });
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let work = async move {
        let Ok(client) = upgrade.await else { return };
        if let Err(why) = tunnel::run(TokioIo::new(client), server, &host).await {
            shared.ledger.refused(&host, "connect", port, why);
            debug!(host, why = why.word(), "a tunnel was closed");
        }
    };
    tunnels.lock().await.spawn(work);
    Ok(Response::new(empty()))
}

/// Host and port that a request is for; none when it is not for a forward proxy.
fn target(request: &Request<Incoming>, connects: bool) -> Option<(String, u16)> {
    let uri = request.uri();
    let authority = uri.authority()?;
    let plain = uri.scheme_str() == Some("http");
    let named = authority.as_str().contains('@');
    if named || (!connects && !plain) {
        return None;
    }
    let port = match authority.port_u16() {
        Some(port) => port,
        None if connects => return None,
        None => 80,
    };
    Some((normal(authority.host())?, port))
}

fn refuse(
    shared: &Shared,
    host: &str,
    protocol: &'static str,
    port: u16,
    why: Refusal,
) -> Response<Body> {
    shared.ledger.refused(host, protocol, port, why);
    let status = match why {
        Refusal::Malformed => StatusCode::BAD_REQUEST,
        Refusal::Unresolved => StatusCode::BAD_GATEWAY,
        _ => StatusCode::FORBIDDEN,
    };
    say(status, &format!("{host}:{port} is not reached: {why}"))
}

fn say(status: StatusCode, why: &str) -> Response<Body> {
    let text = Bytes::from(format!("longshore: {why}\n"));
    let mut response = Response::new(Full::new(text).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}

fn empty() -> Body {
    Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed()
}
