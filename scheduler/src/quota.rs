//! Requests per caller: a token bucket for each, and never more buckets than a bound.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use http::{Extensions, HeaderValue, StatusCode, header};

use crate::{
    access::Who,
    api::errors,
    serve::{Caller, requests::is_grpc},
};

/// Callers known at once; when all of them are at work, the others share one bucket.
const CALLERS: usize = 4_096;
/// Callers' worth that one address may ask.
const CALLERS_BEHIND_ONE: u32 = 10;
/// Seconds' worth that may come at once.
const BURST: f64 = 2.0;

/// So many requests a second for each caller.
#[derive(Debug)]
pub struct Quota {
    per_second: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Quota {
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second: f64::from(per_second.max(1)),
            buckets: Mutex::default(),
        }
    }

    fn most(&self) -> f64 {
        self.per_second * BURST
    }

    fn left(&self, bucket: Bucket, now: Instant) -> f64 {
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.left + since * self.per_second).min(self.most())
    }

    /// Takes one for `caller`, or says when there will be one.
    pub fn take(&self, caller: &str, now: Instant) -> Result<(), Duration> {
        // No code panics while holding it; a poisoned map is still whole.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = caller;
        if buckets.len() >= CALLERS && !buckets.contains_key(key) {
            // A full bucket says as much as none.
            buckets.retain(|_, bucket| self.left(*bucket, now) < self.most());
            if buckets.len() >= CALLERS {
                key = "";
            }
        }
        let left = match buckets.get(key) {
            Some(bucket) => self.left(*bucket, now),
            None => self.most(),
        };
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) / self.per_second));
        }
        let bucket = Bucket {
            left: left - 1.0,
            at: now,
        };
        match buckets.get_mut(key) {
            Some(known) => *known = bucket,
            None => {
                buckets.insert(key.to_owned(), bucket);
            }
        }
        Ok(())
    }
}

/// Who a request is counted for: the holder of its token, else its address.
pub fn caller(extensions: &Extensions) -> String {
    let credential = extensions.get::<Who>().map(|who| &who.principal.credential);
    if let Some(credential) = credential.filter(|credential| !credential.is_empty()) {
        return credential.clone();
    }
    address(extensions)
}

/// The address a request came from.
fn address(extensions: &Extensions) -> String {
    extensions
        .get::<Caller>()
        .map_or_else(String::new, |caller| caller.address.ip().to_string())
}

/// A bound and whom it counts for.
struct Bound {
    quota: Quota,
    of: fn(&Extensions) -> String,
}

/// Bounds every route of `router` for each caller, inside whatever says who that is.
pub fn bounded(router: Router, per_second: u32) -> Router {
    limit(router, per_second, caller)
}

/// Bounds every route of `router` for each address, outside whatever says who
/// calls: guessing at tokens has a bound too. There may be many callers behind
/// one address, so it is a multiple of theirs.
pub fn bounded_by_address(router: Router, per_second: u32) -> Router {
    limit(
        router,
        per_second.saturating_mul(CALLERS_BEHIND_ONE),
        address,
    )
}

fn limit(router: Router, per_second: u32, of: fn(&Extensions) -> String) -> Router {
    let quota = Quota::new(per_second);
    router.layer(from_fn_with_state(Arc::new(Bound { quota, of }), look))
}

async fn look(State(bound): State<Arc<Bound>>, request: Request, next: Next) -> Response {
    // Whoever watches over the process is never told to come back later.
    if matches!(request.uri().path(), "/livez" | "/readyz") {
        return next.run(request).await;
    }
    let caller = (bound.of)(request.extensions());
    match bound.quota.take(&caller, Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(wait) => refusal(&request, wait),
    }
}

fn refusal(request: &Request, wait: Duration) -> Response {
    if is_grpc(request) {
        return errors::status(
            tonic::Code::ResourceExhausted,
            "too_many_requests",
            "more requests than one caller may make a second (listen.api_rate)",
            "wait a moment; to follow what happens use WatchFleet instead of asking again and again",
        )
        .into_http();
    }
    let text = "more requests than one caller may make a second (listen.api_rate); wait a moment\n";
    let mut response = (StatusCode::TOO_MANY_REQUESTS, text).into_response();
    let seconds = HeaderValue::from(wait.as_secs() + 1);
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(quota: &Quota, caller: &str, asked: usize, now: Instant) -> usize {
        (0..asked)
            .filter(|_| quota.take(caller, now).is_ok())
            .count()
    }

    #[test]
    fn each_caller_has_a_burst_and_then_the_rate() {
        let (quota, now) = (Quota::new(10), Instant::now());
        assert_eq!(taken(&quota, "a", 100, now), 20);
        let wait = quota.take("a", now).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        assert_eq!(taken(&quota, "b", 100, now), 20, "another's is untouched");
        let later = now + Duration::from_millis(500);
        assert_eq!(taken(&quota, "a", 100, later), 5);
    }

    #[test]
    fn ten_times_the_callers_need_no_more_room() {
        let (quota, now) = (Quota::new(10), Instant::now());
        for caller in 0..10 * CALLERS {
            let _ = quota.take(&caller.to_string(), now);
        }
        assert!(quota.buckets.lock().unwrap().len() <= CALLERS + 1);
        // Those above the bound share one bucket until the others have come to rest.
        assert!(quota.take("one more", now).is_err());
        let later = now + Duration::from_secs(2);
        assert!(quota.take("one more", later).is_ok());
        assert!(quota.buckets.lock().unwrap().len() < 10);
    }
}
