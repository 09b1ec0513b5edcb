//! More connections than anybody needs.

use std::time::Duration;

use tokio::{net::TcpStream, time::Instant};

use super::victim::{Door, Victim, allow_files, meanwhile, until};

/// Idle connections on each listener.
const IDLE: usize = 5_000;
/// Memory that one of them may cost.
const EACH: u64 = 16 * 1024;

/// Both tests at once would need more files than many machines allow.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn connect(victim: &Victim, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count * Door::ALL.len());
    for at in 0..count {
        for door in Door::ALL {
            let stream = TcpStream::connect(victim.address(door)).await;
            streams.push(stream.unwrap_or_else(|error| panic!("{door:?}, number {at}: {error}")));
        }
    }
    streams
}

#[tokio::test]
async fn fifteen_thousand_that_say_nothing() {
    let _alone = ALONE.lock().await;
    allow_files(18_000);
    let victim = Victim::start().await;
    victim.serves().await;
    let (before, own) = (victim.resident(), victim.sockets());
    let begun = Instant::now();
    let idle = connect(&victim, IDLE).await;
    let (took, growth) = (begun.elapsed(), victim.resident().saturating_sub(before));
    let held = victim.sockets() - own;
    let longest = meanwhile(&victim, tokio::time::sleep(Duration::from_secs(3))).await;
    println!(
        "{} connected in {took:?}, {held} of them held, {} KiB more, longest call {longest:?}",
        idle.len(),
        growth >> 10
    );
    assert!(growth < EACH * idle.len() as u64, "{growth} bytes more");
    // Nobody who never asks stays.
    until("they are turned out", || victim.sockets() <= own + 3).await;
    drop(idle);
    victim.serves().await;
}

#[tokio::test]
async fn ten_times_the_connections_there_is_room_for() {
    // Room for 170 on each of three listeners.
    let _alone = ALONE.lock().await;
    allow_files(8_192);
    let victim = Victim::with_files(Some(1_024)).await;
    victim.serves().await;
    let before = victim.resident();
    let idle = connect(&victim, 1_700).await;
    until("the others are turned out", || victim.sockets() < 700).await;
    let longest = meanwhile(&victim, tokio::time::sleep(Duration::from_secs(2))).await;
    let growth = victim.resident().saturating_sub(before);
    println!("longest call {longest:?}, {} KiB more", growth >> 10);
    assert!(growth < EACH * 3 * 170 + (8 << 20), "{growth} bytes more");
    assert!(
        victim.log().contains("LimitNOFILE"),
        "a limit that is too low is named"
    );
    drop(idle);
}
