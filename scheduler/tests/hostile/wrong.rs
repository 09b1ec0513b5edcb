//! The wrong language at a door: told in the log, and no hang.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::victim::{Door, PATIENCE, Victim, until};

/// Says `words` and reads until the other side has ended it.
async fn say(victim: &Victim, door: Door, words: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(victim.address(door))
        .await
        .expect("connects");
    stream.write_all(words).await.expect("written");
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // Reset or closed: both are an end.
    let _ = ended.expect("the connection is ended");
    answer
}

#[tokio::test]
async fn plain_text_where_tls_is_spoken_is_ended_and_told() {
    let victim = Victim::start().await;
    say(&victim, Door::Nodes, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    say(&victim, Door::Nodes, &super::frames::opening()).await;
    until("a line in the log", || {
        victim.log().contains("this listener takes TLS only")
    })
    .await;
    victim.serves().await;
}

#[tokio::test]
async fn tls_where_plain_text_is_spoken_is_ended_and_told() {
    let victim = Victim::start().await;
    // The begin of a ClientHello.
    let hello = [22, 3, 1, 0, 5, 1, 0, 0, 1, 3];
    for door in [Door::Api, Door::Webhooks] {
        say(&victim, door, &hello).await;
    }
    until("a line in the log", || {
        victim
            .log()
            .contains("a TLS handshake where plain HTTP is spoken")
    })
    .await;
    victim.serves().await;
}
