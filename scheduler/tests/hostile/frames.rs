//! HTTP/2 by hand: what no proper client would send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::victim::Wire;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// One frame (RFC 9113, 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What a connection begins with: the preface and empty settings.
pub(crate) fn opening() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes
}

/// GET of a path that is not there (RFC 7541: indexed fields, then literals never indexed).
pub(crate) fn get() -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    for (name, value) in [(0x14, "/nothing"), (0x11, "127.0.0.1")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.as_bytes());
    }
    block
}

/// Asks once and waits for the head of the answer.
pub(crate) async fn answered(stream: &mut Box<dyn Wire>) -> std::io::Result<()> {
    let mut request = opening();
    request.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &get()));
    stream.write_all(&request).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        if head[3] == HEADERS && head[8] == 1 {
            return Ok(());
        }
    }
}
