//! REST and the control API on one socket.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Request as HttpRequest, StatusCode};
use axum::response::Response as HttpResponse;
use axum::{Router, response::IntoResponse as _};

use super::control_api;
use super::shared::Shared;
use crate::machine::{Request, Response};

const MAX_BODY: usize = 1024 * 1024;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .nest("/_sim", control_api::router(Arc::clone(&shared)))
        .fallback(rest)
        .with_state(shared)
}

async fn rest(State(shared): State<Arc<Shared>>, request: HttpRequest<Body>) -> HttpResponse {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return (
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is larger than 1 MiB",
        )
            .into_response();
    };
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(n, v)| {
            (
                n.as_str().to_owned(),
                String::from_utf8_lossy(v.as_bytes()).into_owned(),
            )
        })
        .collect();
    let credential = headers
        .iter()
        .find(|(n, _)| n == "authorization")
        .map_or("anonymous", |(_, v)| v.as_str())
        .to_owned();
    let (concurrent, open) = shared.enter(&credential);
    let path = parts
        .uri
        .path_and_query()
        .map_or("/", |p| p.as_str())
        .to_owned();
    let reads = parts.method == http::Method::GET;
    let request = Request {
        method: parts.method.to_string(),
        path,
        headers,
        body: body.to_vec(),
        concurrent,
    };
    let response = if reads {
        let r = shared.quietly(|w| w.call(&request));
        shared.note_seen();
        r
    } else {
        Shared::with(&shared, |w| w.call(&request))
    };
    if response.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(response.delay_ms)).await;
    }
    drop(open);
    into_http(response)
}

pub(super) fn into_http(response: Response) -> HttpResponse {
    let mut out = HttpResponse::new(Body::from(response.body));
    *out.status_mut() =
        StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in response.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            out.headers_mut().append(name, value);
        }
    }
    out
}
