//! HTTP/2 turned against its server: each flood on each listener.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    time::timeout,
};

use super::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, SETTINGS, WINDOW, frame,
        get, opening,
    },
    victim::{Door, Victim, meanwhile},
};

/// A flood goes on for so long, or until the server has had enough.
const LENGTH: Duration = Duration::from_secs(4);
/// Memory a flood may cost, whatever it sends.
const GROWTH: u64 = 48 << 20;
/// Frames of one write.
const BATCH: u32 = 64;

/// Sends what `next` makes, for a stream number each, and reads all answers. True: the server ended it.
async fn flood(victim: &Victim, door: Door, mut next: impl FnMut(u32) -> Vec<u8>) -> bool {
    let (mut reader, mut writer) = split(victim.dial(door).await.expect("connects"));
    let sending = async {
        writer.write_all(&opening()).await?;
        let mut stream = 1;
        loop {
            let mut bytes = Vec::new();
            for _ in 0..BATCH {
                bytes.extend(next(stream));
                // 31 bits; nobody gets there.
                stream += 2;
            }
            writer.write_all(&bytes).await?;
            tokio::task::yield_now().await;
        }
    };
    let reading = async {
        let mut sink = vec![0; 64 * 1024];
        while reader.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    };
    let ended = async {
        tokio::select! {
            sent = sending => { let _: std::io::Result<()> = sent; }
            () = reading => {}
        }
    };
    timeout(LENGTH, ended).await.is_ok()
}

/// The flood on each listener in turn, with proper calls meanwhile; where the server ended it.
async fn on_each_door<F: FnMut(u32) -> Vec<u8>>(make: impl Fn() -> F) -> Vec<bool> {
    let victim = Victim::start().await;
    victim.serves().await;
    let before = victim.resident();
    let mut ended = Vec::new();
    for door in Door::ALL {
        let mut over = false;
        let longest = meanwhile(&victim, async {
            over = flood(&victim, door, make()).await;
        })
        .await;
        let growth = victim.resident().saturating_sub(before);
        println!(
            "{door:?}: ended {over}, longest call {longest:?}, {} KiB more",
            growth >> 10
        );
        assert!(growth < GROWTH, "{door:?}: {growth} bytes more");
        ended.push(over);
    }
    ended
}

#[tokio::test]
async fn requests_opened_and_reset_at_once() {
    on_each_door(|| {
        |stream| {
            let mut both = frame(HEADERS, END_STREAM | END_HEADERS, stream, &get());
            both.extend(frame(RESET, 0, stream, &8u32.to_be_bytes()));
            both
        }
    })
    .await;
}

#[tokio::test]
async fn requests_that_the_server_is_made_to_reset() {
    let ended = on_each_door(|| {
        |stream| {
            let mut both = frame(HEADERS, END_HEADERS, stream, &get());
            // No stream's window may be enlarged by nothing: an error of the stream.
            both.extend(frame(WINDOW, 0, stream, &0u32.to_be_bytes()));
            both
        }
    })
    .await;
    assert_eq!(ended, [true; 3], "the server has to have had enough");
}

#[tokio::test]
async fn a_header_without_an_end() {
    let ended = on_each_door(|| {
        let mut begun = false;
        move |_| {
            // A literal field of 8 KiB, again and again, on one stream.
            let mut field = vec![0x10, 1, b'x', 0x7f, 0x81, 0x3f];
            field.resize(field.len() + 8_192, b'a');
            if std::mem::replace(&mut begun, true) {
                return frame(CONTINUATION, 0, 1, &field);
            }
            let mut block = get();
            block.extend(field);
            frame(HEADERS, END_STREAM, 1, &block)
        }
    })
    .await;
    assert_eq!(ended, [true; 3], "the server has to have had enough");
}

#[tokio::test]
async fn settings_and_pings_without_end() {
    on_each_door(|| {
        |_| {
            // Header table size, back and forth; then a ping.
            let mut all = frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0x10, 0]);
            all.extend(frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]));
            all.extend(frame(PING, 0, 0, &[7; 8]));
            all
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_of_nothing_without_end() {
    on_each_door(|| {
        let mut begun = false;
        move |_| match std::mem::replace(&mut begun, true) {
            false => frame(HEADERS, END_HEADERS, 1, &get()),
            true => frame(DATA, 0, 1, &[]),
        }
    })
    .await;
}
