//! Logs as JSON lines on stderr with credentials blotted out, traces by OTLP.

pub mod redact;
pub mod trace;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, reload};

use redact::RedactingStderr;

/// Keeps the exporter alive; `shutdown` sends what is left.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "telemetry.log `{filter}` is not a filter: {detail}; try info or longshore_scheduler=debug"
    )]
    Filter { filter: String, detail: String },
    #[error(
        "telemetry.otlp_endpoint `{endpoint}` cannot be used: {detail}; write it like http://127.0.0.1:4317"
    )]
    Endpoint { endpoint: String, detail: String },
    #[error("telemetry was started twice in this process")]
    Twice,
}

impl Telemetry {
    /// Installs the process-wide subscriber. Call once, inside the runtime.
    pub fn start(filter: &str, otlp_endpoint: Option<&str>) -> Result<Self, TelemetryError> {
        let (log_filter, handle) = reload::Layer::new(read(filter)?);
        let log = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(RedactingStderr)
            .with_filter(log_filter);
        let provider = otlp_endpoint.map(provider).transpose()?;
        let spans = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("longshore-scheduler"))
                // Our own spans only: a span per HTTP/2 frame helps nobody.
                .with_filter(EnvFilter::new(
                    "off,longshore_scheduler=info,scheduler_github=info",
                ))
        });
        let subscriber = Registry::default().with(log).with(spans);
        tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
        Ok(Self {
            provider,
            filter: handle,
        })
    }

    /// Logs by another filter from now on; a wrong one changes nothing.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        let wanted = read(filter)?;
        let changed = self.filter.reload(wanted);
        changed.map_err(|error| TelemetryError::Filter {
            filter: filter.to_owned(),
            detail: error.to_string(),
        })
    }

    /// Sends finished spans now.
    pub fn flush(&self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.force_flush()
        {
            tracing::debug!(%error, "spans were not flushed");
        }
    }

    /// Sends what is left and ends the exporter. Blocks at most a few seconds.
    pub fn shutdown(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(std::time::Duration::from_secs(3))
        {
            eprintln!("spans were not all sent: {error}");
        }
    }
}

fn read(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|error| TelemetryError::Filter {
        filter: filter.to_owned(),
        detail: error.to_string(),
    })
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(std::time::Duration::from_secs(5))
        .build()
        .map_err(|error| TelemetryError::Endpoint {
            endpoint: endpoint.to_owned(),
            detail: error.to_string(),
        })?;
    let resource = Resource::builder()
        .with_service_name("longshore-scheduler")
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}
