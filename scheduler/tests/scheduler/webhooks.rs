//! Each kind of bad webhook request, with the answer GitHub and the operator see.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use longshore_proto::v1::ListJobsRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    harness::{PATIENCE, Scheduler, World, queued, send, sign, until},
    node::Node,
};

async fn post(
    scheduler: &Scheduler,
    event: &str,
    signature: Option<&str>,
    body: &str,
) -> StatusCode {
    let url = format!("http://{}/webhooks/github", scheduler.webhooks());
    let mut headers = vec![("x-github-event", event)];
    headers.extend(signature.map(|signature| ("x-hub-signature-256", signature)));
    send("POST", &url, &headers, Bytes::from(body.to_owned()))
        .await
        .0
}

async fn jobs(scheduler: &Scheduler) -> usize {
    let mut fleet = scheduler.fleet().await;
    let jobs = fleet.list_jobs(ListJobsRequest::default()).await;
    jobs.expect("lists").into_inner().jobs.len()
}

async fn counted(scheduler: &Scheduler, result: &str) -> f64 {
    let line = format!("longshore_webhook_received_total{{result=\"{result}\"}}");
    scheduler.metric(&line).await
}

#[tokio::test]
async fn a_missing_or_wrong_signature_is_401_stores_nothing_and_is_counted() {
    let world = World::new();
    let scheduler = world.start().await;
    let body = queued(1).to_string();
    let before = world.store.faults().commits();
    assert_eq!(
        post(&scheduler, "workflow_job", None, &body).await,
        StatusCode::UNAUTHORIZED
    );
    let wrong = sign(b"another body");
    for signature in [wrong.as_str(), "sha256=", "sha1=abc", "nonsense"] {
        assert_eq!(
            post(&scheduler, "workflow_job", Some(signature), &body).await,
            StatusCode::UNAUTHORIZED,
            "{signature}"
        );
    }
    assert_eq!(jobs(&scheduler).await, 0);
    // The fake's budget may commit meanwhile; no job does.
    assert!(world.store.faults().commits() <= before + 1);
    assert_eq!(counted(&scheduler, "unsigned").await, 1.0);
    assert_eq!(counted(&scheduler, "bad_signature").await, 4.0);
    // The same request with the right signature passes: nothing else refused it.
    let right = sign(body.as_bytes());
    assert_eq!(
        post(&scheduler, "workflow_job", Some(&right), &body).await,
        StatusCode::ACCEPTED
    );
    assert_eq!(jobs(&scheduler).await, 1);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_right_signature_on_broken_json_is_400() {
    let scheduler = World::new().start().await;
    let body = "{\"action\": ";
    let signature = sign(body.as_bytes());
    assert_eq!(
        post(&scheduler, "workflow_job", Some(&signature), body).await,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(counted(&scheduler, "malformed").await, 1.0);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn an_unknown_event_is_accepted_and_ignored() {
    let scheduler = World::new().start().await;
    let body = "{\"zen\":\"Keep it logically awesome.\"}";
    let signature = sign(body.as_bytes());
    assert_eq!(
        post(&scheduler, "sponsorship", Some(&signature), body).await,
        StatusCode::ACCEPTED
    );
    assert_eq!(jobs(&scheduler).await, 0);
    assert_eq!(counted(&scheduler, "ignored").await, 1.0);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn nothing_but_the_one_path_is_there() {
    let scheduler = World::new().start().await;
    let base = format!("http://{}", scheduler.webhooks());
    for path in ["/", "/metrics", "/livez", "/webhooks", "/webhooks/github/x"] {
        let (status, _) = send("POST", &format!("{base}{path}"), &[], Bytes::new()).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    let (status, _) = send("GET", &format!("{base}/webhooks/github"), &[], Bytes::new()).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    scheduler.shutdown().await;
}

/// Writes a request by hand and returns the status line's code.
async fn raw(scheduler: &Scheduler, head: &str, body: &[u8]) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(scheduler.webhooks())
        .await
        .expect("connects");
    stream.write_all(head.as_bytes()).await.expect("written");
    // The answer may come before all is written; that is the point.
    let _ = stream.write_all(body).await;
    let mut answer = [0; 64];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await;
    let length = read.expect("answered in time").expect("readable");
    let line = String::from_utf8_lossy(&answer[..length]).into_owned();
    let code = line.split(' ').nth(1).unwrap_or_default().to_owned();
    (code, stream)
}

#[tokio::test]
async fn a_declared_size_over_the_limit_is_413_before_a_byte_is_read() {
    let scheduler = World::new().start().await;
    let length = 25 * 1024 * 1024 + 1;
    let head = format!(
        "POST /webhooks/github HTTP/1.1\r\nhost: x\r\nx-github-event: workflow_job\r\n\
         x-hub-signature-256: sha256=00\r\ncontent-length: {length}\r\n\r\n"
    );
    // Not one byte of the body is sent: the answer cannot wait for it.
    let (code, mut stream) = raw(&scheduler, &head, b"").await;
    assert_eq!(code, "413");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection is closed");
    assert_eq!(counted(&scheduler, "too_large").await, 1.0);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn an_undeclared_body_is_cut_off_at_the_limit() {
    let mut world = World::new();
    world.bounds.body = 10_000;
    let scheduler = world.start().await;
    let head = "POST /webhooks/github HTTP/1.1\r\nhost: x\r\nx-github-event: workflow_job\r\n\
                x-hub-signature-256: sha256=00\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 6_000, "x".repeat(6_000));
    // Two chunks pass the limit; the end of the body is never sent.
    let (code, _) = raw(&scheduler, head, format!("{chunk}{chunk}").as_bytes()).await;
    assert_eq!(code, "413");
    // One chunk and its end stay below: the signature decides then.
    let (code, _) = raw(&scheduler, head, format!("{chunk}0\r\n\r\n").as_bytes()).await;
    assert_eq!(code, "401");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let mut world = World::new();
    world.bounds.body_timeout = Duration::from_millis(100);
    let scheduler = world.start().await;
    let head = "POST /webhooks/github HTTP/1.1\r\nhost: x\r\nx-hub-signature-256: sha256=00\r\n\
                content-length: 100\r\n\r\n";
    let (code, _) = raw(&scheduler, head, b"a few bytes").await;
    assert_eq!(code, "408");
    assert_eq!(counted(&scheduler, "slow_body").await, 1.0);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn more_requests_than_the_rate_get_429() {
    let scheduler = World::new()
        .with_flags(&["--webhook-rate", "5"])
        .start()
        .await;
    let mut limited = 0;
    for id in 0..20 {
        if scheduler.deliver(&queued(id)).await == StatusCode::TOO_MANY_REQUESTS {
            limited += 1;
        }
    }
    assert!(limited > 0, "20 at once at 5 a second");
    assert_eq!(
        counted(&scheduler, "rate_limited").await,
        f64::from(limited)
    );
    scheduler.shutdown().await;
}

#[tokio::test]
async fn too_much_memory_for_bodies_is_503_and_recovers() {
    let mut world = World::new();
    world.bounds.bodies = 100;
    let scheduler = world.start().await;
    let big = serde_json::json!({"id": 1, "status": "queued", "labels": ["x64"], "name": "x".repeat(500)});
    assert_eq!(
        scheduler.deliver(&big).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let small = serde_json::json!({"id": 2, "status": "queued", "labels": ["x64"]});
    assert_eq!(scheduler.deliver(&small).await, StatusCode::ACCEPTED);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_stalled_store_is_503_and_nothing_is_half_done() {
    let mut world = World::new();
    world.bounds.commit_timeout = Duration::from_millis(200);
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    world.store.faults().stall(true);
    assert_eq!(
        scheduler.deliver(&queued(1)).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert!(
        world.github.registered().is_empty(),
        "no effect before its commit"
    );
    assert_eq!(counted(&scheduler, "timed_out").await, 1.0);
    assert_eq!(
        world.github.distrusted(),
        1,
        "the sweep does not take it as told"
    );
    world.store.faults().stall(false);
    // GitHub's redelivery and the late commit meet in one job and one runner.
    assert_eq!(scheduler.deliver(&queued(1)).await, StatusCode::ACCEPTED);
    node.first_runner().await;
    assert_eq!(jobs(&scheduler).await, 1);
    assert_eq!(world.github.names().len(), 1);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn the_default_patience_with_the_store_is_eight_seconds() {
    assert_eq!(
        World::new().bounds.commit_timeout,
        Duration::from_secs(8),
        "GitHub gives up at ten"
    );
}

#[tokio::test]
async fn the_same_delivery_twice_and_after_a_restart_makes_one_runner() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    for _ in 0..2 {
        assert_eq!(scheduler.deliver(&queued(1)).await, StatusCode::ACCEPTED);
    }
    let runner = node.first_runner().await;
    node.observe(
        &runner,
        longshore_proto::v1::observed_runner::Phase::Consumed,
    )
    .await;
    until("the consumed registration", || async {
        let runners = scheduler.running.view.fleet(|fleet| {
            fleet
                .runners()
                .filter(|runner| runner.is_consumed())
                .count()
        });
        (runners == 1).then_some(())
    })
    .await;
    scheduler.kill().await;

    let scheduler = world.start().await;
    let mut node = Node::attach_with(
        &scheduler,
        "n1",
        node.intent.as_ref().and_then(|intent| intent.generation),
    )
    .await
    .expect("attaches again");
    node.observe(
        &runner,
        longshore_proto::v1::observed_runner::Phase::Consumed,
    )
    .await;
    assert_eq!(scheduler.deliver(&queued(1)).await, StatusCode::ACCEPTED);
    node.until(|node| node.intent.is_some()).await;
    assert_eq!(node.wanted(), vec![runner]);
    assert_eq!(world.github.names().len(), 1, "one registration in all");
    assert_eq!(jobs(&scheduler).await, 1);
    assert_eq!(
        world.github.remembered().len(),
        1,
        "the sweep asks about it"
    );
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_job_with_empty_labels_matches_nothing() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    let empty = serde_json::json!({"id": 1, "status": "queued", "labels": []});
    assert_eq!(scheduler.deliver(&empty).await, StatusCode::ACCEPTED);
    // A job that matches shows that the node would have been used.
    assert_eq!(scheduler.deliver(&queued(2)).await, StatusCode::ACCEPTED);
    node.first_runner().await;
    assert_eq!(world.github.names().len(), 1);
    scheduler.shutdown().await;
}
