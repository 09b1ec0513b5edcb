//! Peers that take their time: headers, bodies and answers, a byte now and then or never.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::victim::{Door, PATIENCE, Victim, meanwhile, until};

/// Peers on each listener.
const PEERS: usize = 200;
/// Between two of their bytes.
const PAUSE: Duration = Duration::from_millis(200);

/// Sends `begin`, then a byte now and then; ends when the server has ended it.
async fn trickle(mut stream: TcpStream, begin: Vec<u8>) {
    let mut answer = [0; 1_024];
    let mut sent = stream.write_all(&begin).await.is_ok();
    while sent {
        match timeout(PAUSE, stream.read(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(_)) => {}
            Err(_) => sent = stream.write_all(b"a").await.is_ok(),
        }
    }
}

async fn all_are_ended(doors: &[Door], begin: impl Fn(Door) -> Vec<u8>) {
    let victim = Victim::start().await;
    victim.serves().await;
    let mut peers = JoinSet::new();
    for door in doors {
        for _ in 0..PEERS {
            let stream = TcpStream::connect(victim.address(*door)).await;
            peers.spawn(trickle(stream.expect("connects"), begin(*door)));
        }
    }
    let attack = async {
        let all = timeout(PATIENCE, async {
            while peers.join_next().await.is_some() {}
        });
        assert!(all.await.is_ok(), "some are still connected");
    };
    let longest = meanwhile(&victim, attack).await;
    println!("longest call {longest:?}");
}

#[tokio::test]
async fn headers_that_do_not_end() {
    all_are_ended(&Door::ALL, |door| match door {
        // A handshake's record that claims more than ever comes.
        Door::Nodes => vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        _ => b"POST /webhooks/github HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: ".to_vec(),
    })
    .await;
}

#[tokio::test]
async fn the_first_bytes_of_http_2_and_no_more() {
    all_are_ended(&[Door::Api, Door::Webhooks], |_| b"PRI * HT".to_vec()).await;
}

#[tokio::test]
async fn bodies_that_do_not_end() {
    all_are_ended(&[Door::Api, Door::Webhooks], |door| {
        let (path, kind) = match door {
            Door::Webhooks => ("/webhooks/github", "application/json"),
            _ => ("/longshore.v1.FleetService/GetStatus", "application/grpc-web+proto"),
        };
        format!(
            "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: {kind}\r\n\
             x-github-event: ping\r\nx-hub-signature-256: sha256=00\r\ncontent-length: 100000\r\n\r\n"
        )
        .into_bytes()
    })
    .await;
}

#[tokio::test]
async fn answers_that_are_not_read() {
    let victim = Victim::start().await;
    victim.serves().await;
    let before = victim.resident();
    let sockets = victim.sockets();
    let mut peers = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(victim.address(Door::Api))
            .await
            .expect("connects");
        let request = b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".repeat(256);
        // Until neither side takes any more.
        while let Ok(Ok(())) = timeout(Duration::from_secs(1), stream.write_all(&request)).await {}
        peers.push(stream);
    }
    victim.serves().await;
    until("they are given up", || victim.sockets() <= sockets + 1).await;
    let growth = victim.resident().saturating_sub(before);
    assert!(growth < 32 << 20, "{growth} bytes more");
}
