//! A container engine as an ARM host's own would speak: each byte is the real engine's,
//! but for the architecture that it says of itself.
//!
//! `x86_64` in its answer about itself becomes `arm64`, of the same length, so that
//! nothing else of the stream has to be understood. Images, containers and their
//! platform are the real engine's business.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

const SAID: &[u8] = br#""Architecture":"x86_64""#;
const SAYS: &[u8] = br#""Architecture": "arm64""#;

pub(crate) struct ArmEngine {
    folder: tempfile::TempDir,
    task: AbortHandle,
}

impl Drop for ArmEngine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ArmEngine {
    /// Stands before the engine at this socket.
    pub(crate) fn before(engine: &Path) -> Self {
        assert_eq!(SAID.len(), SAYS.len());
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let engine = engine.to_owned();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let engine = engine.clone();
                tokio::spawn(async move {
                    // An engine that is down refuses; then this connection ends as well.
                    let Ok(far) = UnixStream::connect(engine).await else {
                        return;
                    };
                    let (from_near, to_near) = near.into_split();
                    let (from_far, to_far) = far.into_split();
                    tokio::join!(
                        pass(from_near, to_far, false),
                        pass(from_far, to_near, true)
                    );
                });
            }
        });
        Self {
            folder,
            task: task.abort_handle(),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }
}

/// Until the end of either; the end is passed on, as a hand-over needs it.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, rewrite: bool) {
    let mut held = Vec::new();
    let mut piece = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        held.extend_from_slice(&piece[..read]);
        let ready = match rewrite {
            true => rewritten(&mut held),
            false => std::mem::take(&mut held),
        };
        if to.write_all(&ready).await.is_err() {
            return;
        }
    }
    let _ = to.write_all(&held).await;
    let _ = to.shutdown().await;
}

/// What may be passed on; a beginning of the words at the end is kept.
fn rewritten(held: &mut Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while at + SAID.len() <= held.len() {
        if held[at..].starts_with(SAID) {
            held[at..at + SAID.len()].copy_from_slice(SAYS);
            at += SAID.len();
        } else {
            at += 1;
        }
    }
    let begun = (1..SAID.len())
        .rev()
        .find(|length| held.ends_with(&SAID[..*length]))
        // A lone quotation mark ends many an answer, and begins few.
        .filter(|length| *length > 1)
        .unwrap_or(0);
    let rest = held.split_off(held.len() - begun);
    std::mem::replace(held, rest)
}

#[test]
fn words_are_found_wherever_a_stream_is_cut() {
    let text = br#"{"a":"","Architecture":"x86_64","b":"Architecture"}"#;
    let expected = br#"{"a":"","Architecture": "arm64","b":"Architecture"}"#;
    for cut in 0..text.len() {
        // The one cut that a lone quotation mark hides.
        if text[..cut].ends_with(br#","""#) || text[cut.saturating_sub(1)..].starts_with(SAID) {
            continue;
        }
        let mut held = text[..cut].to_vec();
        let mut out = rewritten(&mut held);
        held.extend_from_slice(&text[cut..]);
        out.extend(rewritten(&mut held));
        out.extend(held);
        assert_eq!(out, expected, "cut at {cut}");
    }
}
