//! What durable ingest costs at least on this machine: a server that reads, verifies, appends in groups, flushes, and answers 202.

use std::{io::Write, sync::mpsc};

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

/// About what the facts of one delivery take in the store's log.
const RECORD: usize = 512;
/// Deliveries of one flush, at most.
const GROUP: usize = 512;

type Written = oneshot::Sender<()>;

/// The server; ends when it is dropped.
pub(crate) struct Floor {
    pub(crate) address: String,
    accepting: JoinHandle<()>,
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Floor {
    pub(crate) async fn start(secret: &[u8]) -> Result<Self> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (records, taken) = mpsc::sync_channel::<Written>(4_096);
        let file = tempfile::tempfile().context("a file for the floor")?;
        std::thread::spawn(move || flush(file, &taken));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, key.clone(), records.clone()));
            }
        });
        Ok(Self { address, accepting })
    }
}

/// Appends whatever waits, flushes once, answers all.
fn flush(mut file: std::fs::File, taken: &mpsc::Receiver<Written>) {
    let record = [7u8; RECORD];
    while let Ok(first) = taken.recv() {
        let mut group = vec![first];
        group.extend(taken.try_iter().take(GROUP - 1));
        let bytes = record.repeat(group.len());
        if file
            .write_all(&bytes)
            .and_then(|()| file.sync_data())
            .is_err()
        {
            return;
        }
        for written in group {
            // A sender that has gone waits for nothing.
            let _ = written.send(());
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    key: hmac::Key,
    records: mpsc::SyncSender<Written>,
) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut read = Vec::with_capacity(16 * 1024);
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        };
        let head = std::str::from_utf8(&read[..end]).ok()?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length: usize = field("content-length: ")?.parse().ok()?;
        let tag = hex::decode(field("x-hub-signature-256: sha256=")?).ok()?;
        while read.len() < end + length {
            if stream.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        }
        hmac::verify(&key, &read[end..end + length], &tag).ok()?;
        read.drain(..end + length);
        let (written, flushed) = oneshot::channel();
        records.try_send(written).ok()?;
        flushed.await.ok()?;
        stream
            .write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
            .await
            .ok()?;
    }
}
