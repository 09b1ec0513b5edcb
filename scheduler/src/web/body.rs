//! Reading a body within bounds: size, time, and memory over all requests.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::HeaderMap};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of all bodies being read at once.
#[derive(Debug)]
pub struct Budget {
    bytes: Arc<Semaphore>,
}

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
        }
    }
}

/// A body and its share of the budget, given back on drop.
#[derive(Debug)]
pub struct Whole {
    bytes: Vec<u8>,
    share: Option<OwnedSemaphorePermit>,
}

impl Whole {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is larger than GitHub's 25 MB")]
    TooLarge,
    #[error("the body did not arrive in time")]
    Slow,
    #[error("too many bodies at once")]
    Busy,
    #[error("the body broke off")]
    Broken,
}

/// Reads at most `limit` bytes; stops reading as soon as there are more.
pub async fn read(
    body: Body,
    headers: &HeaderMap,
    limit: usize,
    deadline: Duration,
    budget: &Budget,
) -> Result<Whole, BodyError> {
    let declared = headers
        .get(axum::http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(BodyError::TooLarge);
    }
    tokio::time::timeout(deadline, collect(body, limit, budget))
        .await
        .unwrap_or(Err(BodyError::Slow))
}

async fn collect(mut body: Body, limit: usize, budget: &Budget) -> Result<Whole, BodyError> {
    let mut whole = Whole {
        bytes: Vec::new(),
        share: None,
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| BodyError::Broken)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.bytes.len() + data.len() > limit {
            return Err(BodyError::TooLarge);
        }
        let size = u32::try_from(data.len()).map_err(|_| BodyError::TooLarge)?;
        let permit = Arc::clone(&budget.bytes)
            .try_acquire_many_owned(size)
            .map_err(|_| BodyError::Busy)?;
        match &mut whole.share {
            Some(share) => share.merge(permit),
            None => whole.share = Some(permit),
        }
        whole.bytes.extend_from_slice(&data);
    }
    Ok(whole)
}
