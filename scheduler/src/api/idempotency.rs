//! `request_id`: the same request twice has its effect once and the same answer.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prost::Message;
use tonic::{Code, Status};

use super::errors;
use crate::access::Who;

/// Answers remembered.
const MOST: usize = 10_000;
/// For how long.
const AGE: Duration = Duration::from_secs(3_600);
/// Longest id.
const LENGTH: usize = 128;

/// Bytes of remembered requests, at most.
const BYTES: usize = 16 << 20;

/// Answers to requests with an id. In memory: every write is also idempotent by
/// its meaning, so a restart in between repeats a state, not an event.
#[derive(Debug, Default)]
pub struct Answers {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    answers: BTreeMap<String, Entry>,
    order: VecDeque<(Instant, String)>,
    /// Of the requests; an answer repeats its request at most.
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    call: &'static str,
    request: Vec<u8>,
    /// Filled once; a second caller waits for the first.
    answer: Arc<tokio::sync::Mutex<Option<Vec<u8>>>>,
}

impl Answers {
    /// Runs `work` unless this id was answered before.
    pub async fn once<R, A, F>(
        &self,
        who: &Who,
        call: &'static str,
        id: &str,
        request: &R,
        work: F,
    ) -> Result<A, Status>
    where
        R: Message,
        A: Message + Default,
        F: Future<Output = Result<A, Status>>,
    {
        if id.is_empty() {
            return work.await;
        }
        if id.len() > LENGTH {
            return Err(errors::invalid(
                "request_id",
                "it is longer than 128 bytes",
                "use a UUID",
            ));
        }
        // Another caller's ids are no business of this one's.
        let id = format!("{}/{id}", who.principal.credential);
        let slot = self.slot(call, &id, request.encode_to_vec())?;
        let mut slot = slot.lock().await;
        if let Some(answer) = slot.as_deref() {
            return A::decode(answer).map_err(|_| errors::stopping());
        }
        let answer = work.await?;
        *slot = Some(answer.encode_to_vec());
        Ok(answer)
    }

    fn slot(
        &self,
        call: &'static str,
        id: &str,
        request: Vec<u8>,
    ) -> Result<Arc<tokio::sync::Mutex<Option<Vec<u8>>>>, Status> {
        let now = Instant::now();
        let mut known = self.lock();
        known.forget_old(now, request.len());
        if let Some(entry) = known.answers.get(id) {
            if entry.call != call || entry.request != request {
                return Err(errors::status(
                    Code::AlreadyExists,
                    "request_id_reused",
                    "this request_id came with another request before",
                    "use a fresh one for each request",
                ));
            }
            return Ok(Arc::clone(&entry.answer));
        }
        let answer = Arc::default();
        known.order.push_back((now, id.to_owned()));
        known.bytes += request.len();
        known.answers.insert(
            id.to_owned(),
            Entry {
                call,
                request,
                answer: Arc::clone(&answer),
            },
        );
        Ok(answer)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Makes room for a request of so many bytes.
    fn forget_old(&mut self, now: Instant, coming: usize) {
        while let Some((at, _)) = self.order.front() {
            let old = now.saturating_duration_since(*at) > AGE;
            if !old && self.order.len() < MOST && self.bytes + coming <= BYTES {
                break;
            }
            if let Some((_, id)) = self.order.pop_front()
                && let Some(entry) = self.answers.remove(&id)
            {
                self.bytes -= entry.request.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use longshore_proto::v1::{CordonNodeRequest, GetNodeRequest, SetShareResponse};

    use super::*;

    fn who() -> Who {
        Who::for_test("t1")
    }

    #[tokio::test]
    async fn the_same_id_works_once_and_another_request_under_it_is_refused() {
        let answers = Answers::default();
        let runs = AtomicU32::new(0);
        let work = || async {
            runs.fetch_add(1, Ordering::Relaxed);
            Ok(SetShareResponse {})
        };
        let request = CordonNodeRequest {
            name: "n1".to_owned(),
            request_id: "a".to_owned(),
        };
        for _ in 0..3 {
            answers
                .once(&who(), "CordonNode", "a", &request, work())
                .await
                .expect("answered");
        }
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let other = GetNodeRequest {
            name: "n2".to_owned(),
        };
        let refused = answers
            .once(&who(), "CordonNode", "a", &other, work())
            .await;
        assert_eq!(
            refused.map_err(|status| status.code()),
            Err(Code::AlreadyExists)
        );
    }

    #[tokio::test]
    async fn ten_times_the_requests_need_no_more_room() {
        let answers = Answers::default();
        let request = CordonNodeRequest {
            name: "x".repeat(BYTES / 100),
            request_id: String::new(),
        };
        for id in 0..1_000 {
            let work = async { Ok(SetShareResponse {}) };
            let (who, id) = (who(), id.to_string());
            let done = answers.once(&who, "CordonNode", &id, &request, work);
            done.await.expect("answered");
        }
        let known = answers.lock();
        assert!(known.bytes <= BYTES && known.answers.len() < 101);
        let held: usize = known
            .answers
            .values()
            .map(|entry| entry.request.len())
            .sum();
        assert_eq!(held, known.bytes);
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let answers = Answers::default();
        let request = CordonNodeRequest::default();
        let failed: Result<SetShareResponse, Status> = answers
            .once(&who(), "CordonNode", "a", &request, async {
                Err(errors::stopping())
            })
            .await;
        assert!(failed.is_err());
        let retried: Result<SetShareResponse, Status> = answers
            .once(&who(), "CordonNode", "a", &request, async {
                Ok(SetShareResponse {})
            })
            .await;
        assert!(retried.is_ok());
    }
}
