//! WatchFleet: a snapshot, changes, and going on where a watcher broke off.

use longshore_proto::v1::{WatchFleetRequest, WatchFleetResponse};
use tonic::Streaming;

use super::{
    harness::{PATIENCE, Scheduler, World, deliver_to, queued},
    node::Node,
};

async fn watch(scheduler: &Scheduler, resume_token: u64) -> Streaming<WatchFleetResponse> {
    let mut fleet = scheduler.fleet().await;
    let stream = fleet.watch_fleet(WatchFleetRequest { resume_token }).await;
    stream.expect("watches").into_inner()
}

async fn next(stream: &mut Streaming<WatchFleetResponse>) -> WatchFleetResponse {
    tokio::time::timeout(PATIENCE, stream.message())
        .await
        .expect("a message in time")
        .expect("no error")
        .expect("the stream goes on")
}

/// Reads on until a job shows; returns the last message.
async fn until_job(stream: &mut Streaming<WatchFleetResponse>, id: u64) -> WatchFleetResponse {
    loop {
        let message = next(stream).await;
        if message.jobs.iter().any(|job| job.id == id) {
            return message;
        }
    }
}

#[tokio::test]
async fn a_snapshot_comes_first_and_changes_follow() {
    let scheduler = World::new().start().await;
    scheduler.deliver(&queued(1)).await;
    let mut stream = watch(&scheduler, 0).await;
    let first = next(&mut stream).await;
    assert!(first.snapshot);
    assert_eq!(first.jobs.len(), 1);
    assert_eq!(first.jobs[0].waiting_reason, "no_nodes");
    scheduler.deliver(&queued(2)).await;
    let second = until_job(&mut stream, 2).await;
    assert!(!second.snapshot);
    assert!(second.resume_token > first.resume_token);
    let _node = Node::attach(&scheduler, "n1").await;
    loop {
        let message = next(&mut stream).await;
        if message.nodes.iter().any(|node| node.name == "n1") {
            break;
        }
    }
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_watcher_goes_on_where_it_broke_off_without_a_snapshot() {
    let scheduler = World::new().start().await;
    scheduler.deliver(&queued(1)).await;
    let mut stream = watch(&scheduler, 0).await;
    let token = next(&mut stream).await.resume_token;
    drop(stream);
    scheduler.deliver(&queued(2)).await;
    let mut stream = watch(&scheduler, token).await;
    let missed = until_job(&mut stream, 2).await;
    assert!(!missed.snapshot);
    assert!(
        missed.jobs.iter().all(|job| job.id != 1),
        "what was seen is not sent again"
    );
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_token_from_before_a_restart_or_from_nowhere_gets_a_snapshot() {
    let world = World::new();
    let scheduler = world.start().await;
    scheduler.deliver(&queued(1)).await;
    let mut stream = watch(&scheduler, 0).await;
    let token = next(&mut stream).await.resume_token;
    scheduler.deliver(&queued(2)).await;
    scheduler.kill().await;
    let scheduler = world.start().await;
    for token in [token, u64::MAX] {
        let mut stream = watch(&scheduler, token).await;
        let first = next(&mut stream).await;
        assert!(first.snapshot, "{token}");
        assert_eq!(first.jobs.len(), 2);
    }
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_watcher_that_does_not_read_blocks_nobody() {
    let scheduler = World::new().start().await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(watch(&scheduler, 0).await);
    }
    for id in 1..=200 {
        assert!(scheduler.deliver(&queued(id)).await.is_success());
    }
    // The one that reads late has them all.
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 200 {
        let message = next(&mut idle[0]).await;
        seen.extend(message.jobs.iter().map(|job| job.id));
    }
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_large_snapshot_comes_in_pieces_and_only_the_last_can_be_resumed() {
    const JOBS: u64 = 1_200;
    let scheduler = World::new().start().await;
    let address = scheduler.webhooks();
    for first in (1..=JOBS).step_by(100) {
        let mut deliveries = tokio::task::JoinSet::new();
        for id in first..first + 100 {
            deliveries.spawn(async move { deliver_to(address, &queued(id)).await });
        }
        while let Some(answer) = deliveries.join_next().await {
            assert!(answer.expect("no panic").expect("an answer").is_success());
        }
    }
    let mut stream = watch(&scheduler, 0).await;
    // It is read slowly: what happens meanwhile comes after it.
    let first = next(&mut stream).await;
    scheduler.deliver(&queued(JOBS + 1)).await;
    let mut seen: std::collections::BTreeSet<u64> = first.jobs.iter().map(|job| job.id).collect();
    assert!(first.snapshot && first.resume_token == 0);
    let mut messages = 1;
    let mut last = first;
    while last.resume_token == 0 {
        assert!(last.jobs.len() <= 500, "{} at once", last.jobs.len());
        last = next(&mut stream).await;
        assert!(!last.snapshot, "only the first begins one");
        seen.extend(last.jobs.iter().map(|job| job.id));
        messages += 1;
    }
    assert_eq!((messages, seen.len() as u64), (3, JOBS));
    until_job(&mut stream, JOBS + 1).await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_ends_the_watch() {
    let scheduler = World::new().start().await;
    let mut stream = watch(&scheduler, 0).await;
    next(&mut stream).await;
    scheduler.shutdown().await;
    let end = tokio::time::timeout(PATIENCE, async {
        while let Ok(Some(_)) = stream.message().await {}
    });
    assert!(end.await.is_ok());
}
