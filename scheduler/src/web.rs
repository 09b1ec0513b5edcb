//! The webhook listener: one path, everything bounded, 202 only after the commit.

pub mod body;
pub mod health;
pub mod rate;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use scheduler_github::webhook::MAX_BODY;
use tokio::{sync::Semaphore, time::Instant};
use tracing::Instrument;

use crate::{
    inbox::Inbox,
    metrics::Metrics,
    ports::{Delivery, Demand, WebhookError},
    telemetry::trace,
};
use body::{BodyError, Budget, read};
use rate::Rate;

/// Bounds of the webhook listener.
#[derive(Clone, Copy, Debug)]
pub struct WebhookBounds {
    /// Largest body, in bytes; more is refused before it is read.
    pub body: usize,
    /// Bytes of all bodies being read at once.
    pub bodies: usize,
    /// Requests being answered at once.
    pub concurrency: usize,
    /// Requests taken per second.
    pub rate: u32,
    /// A body must have arrived whole after this.
    pub body_timeout: Duration,
    /// GitHub gives up 10 s after it began; so we say 503 before.
    pub commit_timeout: Duration,
}

impl Default for WebhookBounds {
    fn default() -> Self {
        Self {
            body: MAX_BODY,
            bodies: 4 * MAX_BODY,
            concurrency: 1_024,
            rate: 20_000,
            body_timeout: Duration::from_secs(7),
            commit_timeout: Duration::from_secs(8),
        }
    }
}

/// What the handler needs.
struct Webhooks<D> {
    demand: D,
    inbox: Inbox,
    metrics: Metrics,
    bounds: WebhookBounds,
    concurrency: Semaphore,
    budget: Arc<Budget>,
    rate: Rate,
}

/// Routes of the webhook listener. Everything but the one path is 404.
pub fn router<D: Demand>(
    demand: D,
    inbox: Inbox,
    metrics: Metrics,
    bounds: WebhookBounds,
) -> Router {
    let webhooks = Arc::new(Webhooks {
        demand,
        inbox,
        metrics,
        bounds,
        concurrency: Semaphore::new(bounds.concurrency),
        budget: Arc::new(Budget::new(bounds.bodies)),
        rate: Rate::new(bounds.rate),
    });
    Router::new()
        .route("/webhooks/github", post(receive::<D>))
        .with_state(webhooks)
}

/// How a request ended: status, counter, text.
struct Answer {
    status: StatusCode,
    result: &'static str,
    text: String,
}

impl Answer {
    fn new(status: StatusCode, result: &'static str, text: impl Into<String>) -> Self {
        Self {
            status,
            result,
            text: text.into(),
        }
    }
}

async fn receive<D: Demand>(
    State(webhooks): State<Arc<Webhooks<D>>>,
    request: Request,
) -> Response {
    let headers = request.headers();
    let span = tracing::info_span!(
        "webhook",
        otel.kind = "server",
        event = %shown(headers, "x-github-event"),
        delivery = %shown(headers, "x-github-delivery"),
        result = tracing::field::Empty,
    );
    async move {
        let answer = webhooks.answer(request).await;
        tracing::Span::current().record("result", answer.result);
        webhooks.metrics.webhook(answer.result);
        match answer.status {
            StatusCode::ACCEPTED => {
                tracing::debug!(result = answer.result, "webhook answered");
            }
            status => {
                tracing::warn!(status = status.as_u16(), result = answer.result, reason = %answer.text, "webhook refused");
            }
        }
        response(answer)
    }
    .instrument(span)
    .await
}

fn response(answer: Answer) -> Response {
    let mut response = (answer.status, answer.text).into_response();
    if matches!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
    ) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if matches!(
        answer.status,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT
    ) {
        // What is left of the body is not read: the connection has no further use.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A header for a log line: short, and nothing that a terminal would obey.
fn shown(headers: &HeaderMap, name: &str) -> String {
    let value = header(headers, name).unwrap_or("-");
    let start: String = value.chars().take(64).collect();
    start.escape_debug().to_string()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

impl<D: Demand> Webhooks<D> {
    async fn answer(&self, request: Request<Body>) -> Answer {
        let begun = Instant::now();
        if !self.rate.take() {
            return Answer::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "too many requests per second",
            );
        }
        let Ok(_permit) = self.concurrency.try_acquire() else {
            return Answer::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "too many requests at once",
            );
        };
        let (parts, body) = request.into_parts();
        // Without a signature nothing of the body can matter: do not read it.
        if header(&parts.headers, "x-hub-signature-256").is_none_or(|text| text.trim().is_empty()) {
            return refusal(WebhookError::Unsigned);
        }
        let body = read(
            body,
            &parts.headers,
            self.bounds.body,
            self.bounds.body_timeout,
            &self.budget,
        );
        let body = match body.await {
            Ok(body) => body,
            Err(error) => return unread(error),
        };
        let traceparent = trace::traceparent(&tracing::Span::current());
        let delivery = Delivery {
            event: header(&parts.headers, "x-github-event").unwrap_or(""),
            guid: header(&parts.headers, "x-github-delivery"),
            hook_id: header(&parts.headers, "x-github-hook-id"),
            hook_target: header(&parts.headers, "x-github-hook-installation-target-type"),
            signature: header(&parts.headers, "x-hub-signature-256"),
            content_type: header(&parts.headers, "content-type"),
            body: body.bytes(),
            traceparent: traceparent.as_deref(),
        };
        let commit = async {
            let inputs = match self.demand.receive(delivery).await {
                Ok(inputs) => inputs,
                Err(error) => return refusal(error),
            };
            if inputs.is_empty() {
                return Answer::new(StatusCode::ACCEPTED, "ignored", "");
            }
            match self.inbox.submit(inputs).await {
                Ok(_) => Answer::new(StatusCode::ACCEPTED, "accepted", ""),
                Err(stopped) => Answer::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "stopping",
                    stopped.to_string(),
                ),
            }
        };
        // What the body took is gone from what the commit may take.
        let left = self.bounds.commit_timeout.saturating_sub(begun.elapsed());
        match tokio::time::timeout(left, commit).await {
            Ok(answer) => answer,
            Err(_) => {
                self.demand.distrust();
                Answer::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "timed_out",
                    "not stored in time; deliver again",
                )
            }
        }
    }
}

fn refusal(error: WebhookError) -> Answer {
    let (status, result) = match error {
        WebhookError::NoSecret => (StatusCode::UNAUTHORIZED, "no_secret"),
        WebhookError::Unsigned => (StatusCode::UNAUTHORIZED, "unsigned"),
        WebhookError::BadSignature => (StatusCode::UNAUTHORIZED, "bad_signature"),
        WebhookError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
        WebhookError::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed"),
    };
    Answer::new(status, result, error.to_string())
}

fn unread(error: BodyError) -> Answer {
    let (status, result) = match error {
        BodyError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
        BodyError::Slow => (StatusCode::REQUEST_TIMEOUT, "slow_body"),
        BodyError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
        BodyError::Broken => (StatusCode::BAD_REQUEST, "broken_body"),
    };
    Answer::new(status, result, error.to_string())
}
