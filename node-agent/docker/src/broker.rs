//! The agent's side of the container hook: one door per job, on its slot's gateway.
//!
//! A request is the job's secret and one line of JSON. The answer is lines with a
//! letter in front: `o` and `p` output with and without its line end, `e` an error,
//! `f` and `r` the answer's file and content, `k` nothing, `x` the exit code.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_core::containers::{self, MAX_REQUEST, PORT};
use agent_core::runtime::RuntimeError;
use aws_lc_rs::{constant_time, hmac};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, warn};
use zeroize::Zeroizing;

use crate::engine::refused;
use crate::runtime::lock;

mod coming_up;
pub(crate) mod desk;
pub(crate) mod key;
mod steps;

use desk::{Desk, Ongoing};

/// Requests of one job at the same time.
const AT_ONCE: usize = 8;
const ASK: Duration = Duration::from_secs(10);
/// A hook that is gone is noticed after two of these.
const ALIVE: Duration = Duration::from_secs(2);
/// After a failed `accept`.
const PAUSE: Duration = Duration::from_millis(200);

/// Listens until it is dropped.
pub(crate) struct Door {
    task: JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The secret of one job, the same after a restart of the agent.
pub(crate) fn secret(key: &hmac::Key, container: &str) -> Zeroizing<String> {
    Zeroizing::new(hex::encode(hmac::sign(key, container.as_bytes())))
}

/// The file by which the hook finds the door.
pub(crate) fn letter(gateway: Ipv4Addr, secret: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{gateway} {PORT} {secret}\n"))
}

impl Door {
    pub(crate) async fn open(
        gateway: Ipv4Addr,
        secret: Zeroizing<String>,
        desk: Desk,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind((gateway, PORT)).await?;
        let secret = Arc::new(secret);
        let desk = Arc::new(desk);
        let task = tokio::spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let accepted = listener.accept().await;
                while served.try_join_next().is_some() {}
                match accepted {
                    Ok((stream, _)) if served.len() < AT_ONCE => {
                        served.spawn(serve(stream, secret.clone(), desk.clone()));
                    }
                    Ok(_) => debug!("a job asks for too much at once"),
                    Err(error) => {
                        warn!(%error, "a job's request for containers was not accepted");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        Ok(Self { task })
    }
}

async fn serve(stream: TcpStream, secret: Arc<Zeroizing<String>>, desk: Arc<Desk>) {
    let (read, write) = stream.into_split();
    let reply = Reply(tokio::sync::Mutex::new(write));
    let request = match tokio::time::timeout(ASK, ask(read, &secret)).await {
        Ok(Ok(request)) => request,
        Ok(Err(why)) => return reply.refuse(why).await,
        Err(_) => return reply.refuse("the request did not come in time").await,
    };
    let (command, file) = match containers::parse(&request) {
        Ok(parsed) => parsed,
        Err(refusal) => return reply.refuse(&refusal.to_string()).await,
    };
    drop(request);
    let ongoing = Mutex::new(None);
    let result = tokio::select! {
        result = desk.carry_out(command, &reply, &ongoing) => result,
        () = reply.until_gone() => {
            let left: Option<Ongoing> = lock(&ongoing).take();
            if let Some(left) = left {
                desk.abandon(left).await;
            }
            return;
        }
    };
    // Nobody left to tell is no failure.
    let _ = match result {
        Ok(done) => reply.done(file, done).await,
        Err(error) => {
            reply.refuse(&error.detail).await;
            Ok(())
        }
    };
}

/// The request of somebody who knows the secret.
async fn ask(read: OwnedReadHalf, secret: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let most = MAX_REQUEST as u64 + 256;
    let mut reader = BufReader::new(read.take(most));
    let mut said = Zeroizing::new(Vec::new());
    let mut request = Zeroizing::new(Vec::new());
    for line in [&mut said, &mut request] {
        reader
            .read_until(b'\n', line)
            .await
            .map_err(|_| "the request broke off")?;
    }
    let said = said.strip_suffix(b"\n").unwrap_or(&said);
    if constant_time::verify_slices_are_equal(said, secret.as_bytes()).is_err() {
        return Err("the secret is not this job's");
    }
    if request.last() != Some(&b'\n') {
        return Err("the request is longer than 1 MiB or was cut");
    }
    Ok(request)
}

/// What a request comes to.
pub(crate) struct Done {
    pub(crate) code: i64,
    pub(crate) answer: Option<serde_json::Value>,
}

/// Writes the answer's lines.
pub(crate) struct Reply(tokio::sync::Mutex<OwnedWriteHalf>);

impl Reply {
    async fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.lock().await.write_all(bytes).await
    }

    async fn line(&self, letter: char, text: &str) -> std::io::Result<()> {
        self.send(format!("{letter} {text}\n").as_bytes()).await
    }

    /// Output of a container; what has no line end yet stays in `rest`.
    pub(crate) async fn output(&self, piece: &[u8], rest: &mut Vec<u8>) -> std::io::Result<()> {
        let mut lines = Vec::with_capacity(piece.len() + 64);
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            rest.extend_from_slice(part);
            // A line without an end is passed on before it grows large.
            let whole = rest.ends_with(b"\n");
            if whole || rest.len() > 8_192 {
                lines.extend_from_slice(if whole { b"o " } else { b"p " });
                lines.append(rest);
                if !whole {
                    lines.push(b'\n');
                }
            }
        }
        self.send(&lines).await
    }

    pub(crate) async fn rest(&self, rest: &[u8]) -> std::io::Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        self.send(&[b"p ", rest, b"\n"].concat()).await
    }

    pub(crate) async fn tell(&self, text: &str) -> std::io::Result<()> {
        for line in text.lines() {
            self.line('o', line).await?;
        }
        Ok(())
    }

    async fn refuse(&self, why: &str) {
        // Nobody left to tell is no failure.
        for line in why.lines() {
            let _ = self.line('e', &format!("longshore: {line}")).await;
        }
        let _ = self.line('x', "1").await;
    }

    async fn done(&self, file: Option<String>, done: Done) -> std::io::Result<()> {
        if let (Some(file), Some(answer)) = (file, done.answer) {
            self.line('f', &file).await?;
            self.line('r', &answer.to_string()).await?;
        }
        self.line('x', &done.code.to_string()).await
    }

    /// Returns when nobody reads the answer any more.
    async fn until_gone(&self) {
        loop {
            tokio::time::sleep(ALIVE).await;
            if self.send(b"k \n").await.is_err() {
                return;
            }
        }
    }
}

/// An answer that nobody took.
pub(crate) fn unheard(error: std::io::Error) -> RuntimeError {
    refused(format!("telling the job: {error}"))
}

#[cfg(test)]
mod tests;
