//! A receiver of spans, and one job as one trace through scheduler and agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use longshore_e2e::wait;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use crate::rig::{Rig, SOON, Settings, job, native};

/// Spans with the program that sent them.
#[derive(Clone, Default)]
pub(crate) struct Receiver {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for sent in request.into_inner().resource_spans {
            let resource = sent.resource.unwrap_or_default();
            let name = resource.attributes.iter().find(|a| a.key == "service.name");
            let service = match name.and_then(|a| a.value.as_ref()?.value.as_ref()) {
                Some(Value::StringValue(name)) => name.clone(),
                other => return Err(Status::invalid_argument(format!("no service: {other:?}"))),
            };
            let spans = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let named = spans.map(|span| (service.clone(), span));
            self.spans.lock().expect("whole").extend(named);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    /// Listens on loopback; where.
    pub(crate) async fn start(&self) -> String {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", socket.local_addr().unwrap());
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(socket)),
        );
        endpoint
    }

    /// Everything that was sent, as text; and how many spans it is.
    pub(crate) fn text(&self) -> (usize, String) {
        let spans = self.spans.lock().expect("whole");
        (spans.len(), format!("{spans:?}"))
    }

    /// The spans of the trace in which this runner stands, by name; `None` before it is known.
    fn trace_of(&self, runner: &str) -> Option<BTreeMap<String, (String, Span)>> {
        let spans = self.spans.lock().expect("whole");
        let says = |span: &Span| {
            let values = span.attributes.iter().filter_map(|a| a.value.as_ref());
            values
                .filter_map(|v| v.value.as_ref())
                .any(|v| matches!(v, Value::StringValue(text) if text == runner))
        };
        let trace = &spans.iter().find(|(_, span)| says(span))?.1.trace_id;
        let same = spans.iter().filter(|(_, span)| span.trace_id == *trace);
        Some(
            same.map(|(from, span)| (span.name.clone(), (from.clone(), span.clone())))
                .collect(),
        )
    }
}

#[tokio::test]
async fn one_job_is_one_trace_from_the_webhook_to_the_end_of_its_container() {
    let receiver = Receiver::default();
    let mut rig = Rig::start(Settings {
        otlp: Some(receiver.start().await),
        ..Settings::default()
    })
    .await;
    let jobs = ["first", "second"].map(|name| job(name, &native(), &["true"]));
    let pushed = rig.push("acme/web", jobs.to_vec()).await;
    rig.all_end(&pushed.jobs, "success", SOON).await;

    let wanted = [
        ("webhook", "longshore-scheduler"),
        ("register", "longshore-scheduler"),
        ("runner", "longshore-agent"),
        ("prepare", "longshore-agent"),
        ("hand_over", "longshore-agent"),
        ("collect", "longshore-agent"),
        ("remove", "longshore-agent"),
    ];
    let mut traces = Vec::new();
    for id in &pushed.jobs {
        let runner = rig.job(*id).await["runner_name"].clone();
        let runner = runner.as_str().unwrap();
        let trace = wait::until("the whole trace of the job", SOON, || async {
            let trace = receiver.trace_of(runner).unwrap_or_default();
            match wanted.iter().all(|(name, _)| trace.contains_key(*name)) {
                true => Ok(trace),
                false => Err(format!("{:?}", trace.keys())),
            }
        })
        .await
        .unwrap();
        for (name, from) in wanted {
            assert_eq!(trace[name].0, from, "{name}");
        }
        let span = |name: &str| &trace[name].1;
        let webhook = span("webhook");
        assert!(webhook.parent_span_id.is_empty(), "the trace begins there");
        for (child, parent) in [
            ("register", "webhook"),
            ("runner", "webhook"),
            ("prepare", "runner"),
            ("hand_over", "runner"),
            ("collect", "runner"),
            ("remove", "runner"),
        ] {
            let (child, parent) = (span(child), span(parent));
            assert_eq!(child.parent_span_id, parent.span_id, "{}", child.name);
            assert!(child.start_time_unix_nano >= webhook.start_time_unix_nano);
        }
        // The node's span lasts as long as what it tells of.
        let (whole, last) = (span("runner"), span("remove"));
        assert!(whole.end_time_unix_nano >= last.end_time_unix_nano);
        traces.push(webhook.trace_id.clone());
    }
    assert_ne!(traces[0], traces[1], "each job has its own");
    rig.finish().await;
}
