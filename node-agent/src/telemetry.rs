//! Logs to standard error, and spans to an OTLP receiver when one is named.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use agent_core::RunnerSpec;
use anyhow::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

/// Flushes what was not exported yet.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    filter: Refilter,
}

/// Puts another filter in force.
type Refilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

impl Telemetry {
    pub fn start(node: &str, log: &str, otlp_endpoint: Option<&str>) -> anyhow::Result<Self> {
        let (filter, handle) = reload::Layer::new(read(log)?);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            // Escape sequences are for terminals, not for log files.
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_filter(filter);
        let provider = otlp_endpoint
            .map(|endpoint| provider(node, endpoint))
            .transpose()?;
        let spans = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("longshore-agent"))
                .with_filter(EnvFilter::new("off,longshore_agent=info"))
        });
        tracing_subscriber::registry()
            .with(spans)
            .with(lines)
            .try_init()
            .context("logging was set up before")?;
        Ok(Self {
            provider,
            filter: Box::new(move |filter| handle.reload(filter)),
        })
    }

    /// Logs by another filter from now on; a wrong one changes nothing.
    pub fn set_filter(&self, log: &str) -> anyhow::Result<()> {
        (self.filter)(read(log)?).context("the log filter was not changed")
    }

    pub fn stop(self) {
        if let Some(provider) = self.provider {
            // An exporter that is gone has nothing to take.
            let _ = provider.shutdown_with_timeout(Duration::from_secs(2));
        }
    }
}

fn read(log: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(log)
        .with_context(|| format!("log {log:?} is not a filter such as info or debug"))
}

fn provider(node: &str, endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()
        .with_context(|| format!("cannot export spans to {endpoint}"))?;
    let resource = Resource::builder()
        .with_service_name("longshore-agent")
        .with_attribute(opentelemetry::KeyValue::new("host.name", node.to_owned()))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// The span of one runner on this node, joined to the demand that caused it.
pub fn runner_span(runner: &str, spec: &RunnerSpec) -> Span {
    let span = tracing::info_span!(
        "runner",
        runner,
        pool = spec.pool,
        scope = spec.scope,
        image = spec.image
    );
    if !spec.traceparent.is_empty() {
        let carrier = HashMap::from([("traceparent".to_owned(), spec.traceparent.clone())]);
        let parent = TraceContextPropagator::new().extract(&carrier);
        // Fails only when no exporter is set; then there is no trace to join.
        let _ = span.set_parent(parent);
    }
    span
}
