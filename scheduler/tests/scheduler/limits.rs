//! Ten times what may be asked: refused in words, and everybody else is served as before.

use bytes::Bytes;
use http::StatusCode;
use longshore_proto::v1::{
    AttachRequest, GetStatusRequest, Hello, Pool, SetPoolRequest, WatchFleetRequest,
    attach_request, fleet_service_client::FleetServiceClient,
};
use longshore_scheduler::api::watchers::OF_ONE;
use tonic::Code;

use super::harness::{Scheduler, World, channel, send};

/// A call by grpc-web, whose message is made by hand; what came back, as text.
async fn call(scheduler: &Scheduler, method: &str, message: &[u8]) -> String {
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let url = format!(
        "http://{}/longshore.v1.FleetService/{method}",
        scheduler.running.addresses.api
    );
    let bearer = format!("Bearer {}", scheduler.token());
    let kind = [
        ("content-type", "application/grpc-web+proto"),
        ("authorization", bearer.as_str()),
    ];
    let (status, text) = send("POST", &url, &kind, Bytes::from(body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    text
}

#[tokio::test]
async fn fields_of_a_later_release_are_passed_over() {
    let scheduler = World::new().start().await;
    // Field 1999, a text.
    let later = [0xfa, 0x7c, 5, b'l', b'a', b't', b'e', b'r'];
    let answer = call(&scheduler, "GetStatus", &later).await;
    assert!(answer.contains("grpc-status:0"), "{answer:?}");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_message_nested_without_end_is_an_error_and_no_more() {
    let scheduler = World::new().start().await;
    // Groups of an unknown field, each in the one before.
    let nested = [0xfb, 0x7c].repeat(50_000);
    let answer = call(&scheduler, "GetStatus", &nested).await;
    assert!(!answer.contains("grpc-status:0"), "{answer:?}");
    let answer = call(&scheduler, "GetStatus", &[]).await;
    assert!(answer.contains("grpc-status:0"), "{answer:?}");
    scheduler.shutdown().await;
}

fn pool(labels: usize, label: &str) -> SetPoolRequest {
    SetPoolRequest {
        pool: Some(Pool {
            name: "many".to_owned(),
            labels: vec![label.to_owned(); labels],
            ..Pool::default()
        }),
        ..SetPoolRequest::default()
    }
}

#[tokio::test]
async fn ten_times_the_labels_and_ten_times_the_message_are_refused() {
    let scheduler = World::new().start().await;
    let mut fleet = scheduler.fleet().await;
    let label = "x".repeat(64);
    for (asked, code) in [
        (pool(5_000, "x"), Code::InvalidArgument),
        (pool(1, &"x".repeat(2_560)), Code::InvalidArgument),
        (pool(40_000, &label), Code::OutOfRange),
    ] {
        let refused = fleet.set_pool(asked).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{refused}");
    }
    fleet.set_pool(pool(20, &label)).await.expect("fits");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn ten_times_the_message_of_a_node_is_refused() {
    let scheduler = World::new().start().await;
    let hello = |bytes: usize| AttachRequest {
        message: Some(attach_request::Message::Hello(Hello {
            node: "n1".to_owned(),
            agent_version: "x".repeat(bytes),
            ..Hello::default()
        })),
    };
    let mut nodes = scheduler.nodes("n1").await;
    let refused = nodes.attach(tokio_stream::iter([hello(40 << 20)])).await;
    let refused = refused.map(|_| ()).expect_err("too large");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    // The same with a message of a usual size is let in.
    let attached = nodes.attach(tokio_stream::iter([hello(10)])).await;
    attached.expect("attaches");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_caller_follows_so_much_at_once_and_may_again_when_it_lets_go() {
    let scheduler = World::new().start().await;
    let mut open = Vec::new();
    let mut clients = Vec::new();
    // Connections carry fewer streams than a caller may follow.
    for _ in 0..4 {
        clients.push(scheduler.fleet().await);
    }
    for at in 0..OF_ONE {
        let watch = clients[at % 4].watch_fleet(WatchFleetRequest::default());
        open.push(watch.await.expect("there is room"));
    }
    for client in &mut clients {
        let refused = client.watch_fleet(WatchFleetRequest::default()).await;
        let refused = refused.expect_err("one too many");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(
            refused
                .message()
                .contains("one WatchFleet tells everything")
        );
    }
    clients[0]
        .get_status(GetStatusRequest::default())
        .await
        .expect("other calls go on");
    drop(open);
    super::harness::until("a place", || {
        let mut client = clients[0].clone();
        async move {
            let watch = client.watch_fleet(WatchFleetRequest::default()).await;
            watch.ok().map(|_| ())
        }
    })
    .await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_asks_ten_times_its_rate_is_told_to_wait() {
    let scheduler = World::new().with_flags(&["--api-rate", "5"]).start().await;
    let mut fleet = scheduler.fleet().await;
    let mut refused = 0;
    for _ in 0..100 {
        if let Err(status) = fleet.get_status(GetStatusRequest::default()).await {
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().contains("listen.api_rate"), "{status}");
            refused += 1;
        }
    }
    assert!(refused > 0, "100 calls at 5 a second");
    let (status, text) = scheduler.get("/metrics").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{text}");
    // Whoever watches over the process is always answered.
    assert_eq!(scheduler.get("/readyz").await.0, StatusCode::OK);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn guessing_at_tokens_has_a_bound_too() {
    let scheduler = World::new().with_flags(&["--api-rate", "5"]).start().await;
    let channel = channel(scheduler.running.addresses.api).await;
    let mut stranger = FleetServiceClient::new(channel);
    let mut codes = Vec::new();
    for _ in 0..500 {
        let answer = stranger.get_status(GetStatusRequest::default()).await;
        codes.push(answer.expect_err("no token, no answer").code());
    }
    assert_eq!(codes[0], Code::Unauthenticated);
    assert!(
        codes.contains(&Code::ResourceExhausted),
        "500 at 50 a second"
    );
    scheduler.shutdown().await;
}
