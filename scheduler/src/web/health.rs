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

/// Every path of [`router`].
pub const PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

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
    let [live, ready, numbers] = PATHS;
    Router::new()
        // Whoever answers lives: a dead driver takes the whole process with it.
        .route(live, get(|| async { "ok\n" }))
        .route(ready, get(readiness))
        .route(numbers, get(metrics))
}
