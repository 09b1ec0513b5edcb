//! `/livez`, `/readyz` and `/metrics` of the API listener.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use tokio::sync::watch;

/// How far the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Ready,
    /// SIGTERM came, or the driver ended.
    Stopping,
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Makes the text of `/metrics`.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Routes for probes and scrapes.
pub fn router(stage: watch::Receiver<Stage>, render: Render) -> Router {
    let readiness = move || {
        let stage = *stage.borrow();
        async move {
            match stage {
                Stage::Ready => (StatusCode::OK, "ready\n"),
                Stage::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
            }
        }
    };
    let metrics = move || {
        let text = render();
        async move { ([(header::CONTENT_TYPE, OPENMETRICS)], text) }
    };
    Router::new()
        // Whoever answers lives: a dead driver takes the whole process with it.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
}
