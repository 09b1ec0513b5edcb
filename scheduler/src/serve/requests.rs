//! A connection's requests: counted, only so many at once, and a body is awaited only so long.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tower::ServiceExt;

use super::crowd::{Busy, Place};
use crate::api::errors;

/// What a request's body may be.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// All of it must have come after this.
    pub within: Duration,
    /// Bytes, at most.
    pub bytes: usize,
}

/// What all requests of a listener share.
#[derive(Clone, Debug)]
pub struct Requests {
    /// Requests being answered at once, streams among them.
    room: Arc<Semaphore>,
    body: Option<Whole>,
}

impl Requests {
    pub fn new(at_once: usize, body: Option<Whole>) -> Self {
        Self {
            room: Arc::new(Semaphore::new(at_once)),
            body,
        }
    }

    /// Answers one request of the connection at `place`.
    pub async fn answer<B>(
        &self,
        router: Router,
        place: Place,
        request: Request<B>,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let busy = place.busy();
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            return too_many(&request);
        };
        let request = match self.body {
            None => request.map(Body::new),
            Some(whole) => request.map(|inner| {
                Body::new(Bounded {
                    inner,
                    left: whole.bytes,
                    deadline: Box::pin(tokio::time::sleep(whole.within)),
                })
            }),
        };
        // A router has an answer for everything.
        let response = match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        response.map(|inner| {
            Body::new(Held {
                inner,
                _busy: busy,
                _permit: permit,
            })
        })
    }
}

/// Speaks gRPC or grpc-web.
pub(crate) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn too_many<B>(request: &Request<B>) -> Response<Body> {
    if is_grpc(request) {
        return errors::status(
            tonic::Code::Unavailable,
            "too_many_requests_at_once",
            "this listener answers as many requests as it can",
            "try again in a moment",
        )
        .into_http();
    }
    let mut response = Response::new(Body::from(
        "too many requests at once; try again in a moment\n",
    ));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// A request's body with a size and a deadline for all of it.
struct Bounded<B> {
    inner: B,
    left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<B> HttpBody for Bounded<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let size = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(match self.left.checked_sub(size) {
                    Some(left) => {
                        self.left = left;
                        Ok(frame)
                    }
                    None => Err("the request's body is too large".into()),
                }))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => self
                .deadline
                .as_mut()
                .poll(context)
                .map(|()| Some(Err("the request's body did not come in time".into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body: until its end the request counts.
struct Held {
    inner: Body,
    _busy: Busy,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
