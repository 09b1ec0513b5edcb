//! One job is one trace: from the webhook's request to the node's spec, at a real OTLP receiver.

use std::sync::{Arc, Mutex};

use longshore_proto::v1::runner_intent::Desired;
use longshore_scheduler::telemetry::Telemetry;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tonic::{Request, Response, Status};

use super::{
    harness::{World, queued, until},
    node::Node,
};

#[derive(Clone, Default)]
struct Receiver {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans);
        self.spans.lock().expect("whole").extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    /// The spans of one trace, by name.
    fn of(&self, trace: &[u8]) -> Vec<Span> {
        let spans = self.spans.lock().expect("whole");
        spans
            .iter()
            .filter(|span| span.trace_id == trace)
            .cloned()
            .collect()
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex"))
        .collect()
}

/// The only test that installs the process's telemetry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_one_trace_from_the_webhook_to_the_node() {
    let receiver = Receiver::default();
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let endpoint = format!("http://{}", socket.local_addr().expect("an address"));
    let service = TraceServiceServer::new(receiver.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(socket)),
    );
    let telemetry = Telemetry::start("off", Some(&endpoint)).expect("starts");

    let scheduler = World::new().start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    scheduler.deliver(&queued(77)).await;
    node.first_runner().await;
    let intent = node.intent.clone().expect("an intent");
    let Some(Desired::Run(spec)) = &intent.runners[0].desired else {
        panic!("a runner to run, not {:?}", intent.runners[0]);
    };
    let parts: Vec<&str> = spec.traceparent.split('-').collect();
    assert_eq!(parts.len(), 4, "{}", spec.traceparent);
    let (trace, parent) = (bytes(parts[1]), bytes(parts[2]));

    let spans = until("both spans of the trace", || async {
        telemetry.flush();
        let spans = receiver.of(&trace);
        (spans.len() >= 2).then_some(spans)
    })
    .await;
    let named = |name: &str| spans.iter().find(|span| span.name == name);
    let webhook = named("webhook").expect("the request");
    assert!(webhook.parent_span_id.is_empty(), "the trace begins there");
    assert_eq!(webhook.span_id, parent, "the node goes on from the request");
    let register = named("register").expect("the call to GitHub");
    assert_eq!(register.parent_span_id, parent);
    scheduler.shutdown().await;
}
