//! Everything on the API listener that is not FleetService: probes, metrics, health, reflection, grpc-web.

use bytes::Bytes;
use http::StatusCode;
use prost::Message;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::harness::{self, Authorized, Scheduler, World, queued, send};

/// A connection that shows this host's token.
async fn channel(scheduler: &Scheduler) -> Authorized {
    let channel = harness::channel(scheduler.running.addresses.api).await;
    Authorized::new(channel, scheduler.bearer())
}

#[tokio::test]
async fn probes_and_metrics_answer() {
    let scheduler = World::new().start().await;
    scheduler.deliver(&queued(1)).await;
    assert_eq!(scheduler.get("/livez").await.0, StatusCode::OK);
    assert_eq!(scheduler.get("/readyz").await.0, StatusCode::OK);
    assert_eq!(scheduler.get("/nothing").await.0, StatusCode::NOT_FOUND);
    for (line, value) in [
        ("longshore_jobs{state=\"queued\"}", 1.0),
        ("longshore_webhook_received_total{result=\"accepted\"}", 1.0),
        (
            "longshore_github_rate_limit_remaining{credential=\"token\",resource=\"core\"}",
            4_321.0,
        ),
        ("longshore_github_sweeps", 3.0),
    ] {
        assert_eq!(scheduler.metric(line).await, value, "{line}");
    }
    scheduler.shutdown().await;
}

#[tokio::test]
async fn grpc_health_says_serving_and_at_the_end_that_it_is_over() {
    let scheduler = World::new().start().await;
    let mut health = HealthClient::new(channel(&scheduler).await);
    for service in ["", "longshore.v1.FleetService"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.expect("answers").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = HealthCheckRequest {
        service: "longshore.v1.FleetService".to_owned(),
    };
    let mut words = health.watch(request).await.expect("answers").into_inner();
    let now = words.message().await.expect("a word").expect("a word");
    assert_eq!(now.status(), ServingStatus::Serving);
    scheduler.shutdown().await;
    let last = words.message().await.expect("a word").expect("a word");
    assert_eq!(last.status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let scheduler = World::new().start().await;
    let mut client = ServerReflectionClient::new(channel(&scheduler).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answer = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("answers")
        .into_inner()
        .message()
        .await
        .expect("no error")
        .expect("one answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("a list of services, not {answer:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"longshore.v1.FleetService"), "{names:?}");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_browser_speaks_grpc_web_over_http_1() {
    let scheduler = World::new().start().await;
    let url = format!(
        "http://{}/longshore.v1.FleetService/GetStatus",
        scheduler.running.addresses.api
    );
    // An empty message: no compression, length 0.
    let bearer = format!("Bearer {}", scheduler.token());
    let headers = [
        ("content-type", "application/grpc-web+proto"),
        ("authorization", bearer.as_str()),
    ];
    let (status, _) = send("POST", &url, &headers, Bytes::from_static(&[0; 5])).await;
    assert_eq!(status, StatusCode::OK);
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http();
    let request = http::Request::post(&url)
        .header("content-type", "application/grpc-web+proto")
        .header("authorization", &bearer)
        .body(http_body_util::Full::new(Bytes::from_static(&[0; 5])))
        .expect("a request");
    let response = client.request(request).await.expect("answers");
    assert_eq!(response.version(), http::Version::HTTP_11);
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .expect("a body")
        .to_bytes();
    let length = u32::from_be_bytes([body[1], body[2], body[3], body[4]]) as usize;
    let status =
        longshore_proto::v1::GetStatusResponse::decode(&body[5..5 + length]).expect("a status");
    assert_eq!(status.fleet, "f1");
    assert!(status.running);
    scheduler.shutdown().await;
}
