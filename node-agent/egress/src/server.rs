//! The proxy's process: its control socket and its open slots.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tracing::{info, warn};

use crate::control::{Answer, MAX_LINE, Request};
use crate::slot::Slot;

/// More than a host has slots.
const MAX_SLOTS: usize = 4_096;
/// Callers at once; one agent asks one after the other.
const CALLERS: usize = 16;
const LINE_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks whether anybody needs it.
const LOOK: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Proxy {
    slots: Mutex<BTreeMap<SocketAddr, Slot>>,
}

/// Serves until it is told to stop, or until it had no slot and no caller for `linger`.
pub async fn serve(
    listener: net::UnixListener,
    socket: &Path,
    linger: Option<Duration>,
) -> Result<(), String> {
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(listener))
        .map_err(|error| format!("listening on {}: {error}", socket.display()))?;
    info!(socket = %socket.display(), "the egress proxy listens");
    let proxy = Arc::new(Proxy::default());
    let callers = Arc::new(Semaphore::new(CALLERS));
    let (stop, mut stopped) = mpsc::channel::<()>(1);
    let mut used = Instant::now();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.recv() => break,
            () = tokio::time::sleep(linger.unwrap_or(LOOK).min(LOOK)) => {
                if !proxy.slots.lock().await.is_empty() {
                    used = Instant::now();
                }
                if linger.is_some_and(|linger| used.elapsed() >= linger) {
                    info!("nobody needs the egress proxy");
                    break;
                }
                continue;
            }
        };
        used = Instant::now();
        match (accepted, callers.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(permit)) => {
                let (proxy, stop) = (proxy.clone(), stop.clone());
                tokio::spawn(async move {
                    if let Err(error) = proxy.caller(stream, stop).await {
                        warn!(%error, "a caller was not answered");
                    }
                    drop(permit);
                });
            }
            (Err(error), _) => {
                warn!(%error, "a caller could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (Ok(_), Err(_)) => warn!("too many callers"),
        }
    }
    // A new proxy may have taken the place already only after this one is gone. Who gave
    // up root's rights may not remove it: then whoever started it does.
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// Takes the place of the control socket, with the rights of whoever starts the program.
pub fn listen(socket: &Path) -> Result<net::UnixListener, String> {
    let failed =
        |what: &str, error: std::io::Error| format!("{what} {}: {error}", socket.display());
    let folder = socket.parent().ok_or("the socket has no folder")?;
    // Nobody else may look into the folder, so the socket is its owner's from its first moment.
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(failed("making the folder of", error));
        }
        _ => {}
    }
    if net::UnixStream::connect(socket).is_ok() {
        return Err(format!("another proxy listens on {}", socket.display()));
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("removing the old", error));
        }
        _ => {}
    }
    let listener =
        net::UnixListener::bind(socket).map_err(|error| failed("listening on", error))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| failed("closing", error))?;
    Ok(listener)
}

impl Proxy {
    async fn caller(&self, stream: UnixStream, stop: mpsc::Sender<()>) -> Result<(), String> {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let mut reader = BufReader::new(read.take(MAX_LINE));
        match tokio::time::timeout(LINE_WITHIN, reader.read_line(&mut line)).await {
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("it said nothing".into()),
        }
        let mut stops = false;
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(request) => {
                stops = request == Request::Stop;
                self.answer(request).await
            }
            Err(error) => Err(format!("not a request: {error}")),
        };
        let answer = answer.unwrap_or_else(|error| Answer {
            error: Some(error),
            ..Answer::default()
        });
        let mut text = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
        text.push(b'\n');
        let wrote = tokio::time::timeout(LINE_WITHIN, write.write_all(&text)).await;
        if stops {
            // Already told is as good.
            let _ = stop.try_send(());
        }
        match wrote {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it does not read its answer".into()),
        }
    }

    async fn answer(&self, request: Request) -> Result<Answer, String> {
        let mut slots = self.slots.lock().await;
        match request {
            Request::List | Request::Stop => Ok(Answer {
                open: slots.keys().copied().collect(),
                pid: std::process::id(),
                ..Answer::default()
            }),
            Request::Open(open) => {
                if slots
                    .get(&open.listen)
                    .is_some_and(|slot| slot.open == open)
                {
                    return Ok(Answer::default());
                }
                if slots.len() >= MAX_SLOTS {
                    return Err(format!("{MAX_SLOTS} slots are open already"));
                }
                // The old one has to let go of the address first.
                if let Some(old) = slots.remove(&open.listen) {
                    old.close().await;
                }
                let slot = Slot::start(open).await?;
                slots.insert(slot.open.listen, slot);
                Ok(Answer::default())
            }
            Request::Denied(listen) => match slots.get(&listen) {
                Some(slot) => Ok(Answer {
                    denied: Some(slot.denied()),
                    ..Answer::default()
                }),
                None => Err(format!("no slot is open at {listen}")),
            },
            Request::Close(listen) => {
                let denied = match slots.remove(&listen) {
                    Some(slot) => {
                        let denied = slot.denied();
                        slot.close().await;
                        Some(denied)
                    }
                    None => None,
                };
                Ok(Answer {
                    denied,
                    ..Answer::default()
                })
            }
        }
    }
}
