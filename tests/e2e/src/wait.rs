//! Waiting for a condition with a deadline: what tests use in place of a sleep.

use std::{fmt::Display, future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Time between two looks. Short beside everything that is waited for, long beside the cost of a look.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` gives a value, or fails after `limit` with the text of the last look.
pub async fn until<T, S, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    S: Display,
    F: Future<Output = Result<T, S>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(seen) if Instant::now() >= deadline => {
                bail!("waited {limit:?} for {what}; last seen: {seen}")
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_true_is_returned_at_once() {
        let mut looks = 0;
        let got = until("three", Duration::from_secs(5), || {
            looks += 1;
            std::future::ready(if looks == 3 {
                Ok(looks)
            } else {
                Err("not yet")
            })
        })
        .await;
        assert_eq!(got.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_condition_that_never_comes_true_says_what_was_seen_last() {
        let got = until("rain", Duration::from_millis(120), || {
            std::future::ready(Err::<(), _>("sunshine"))
        })
        .await;
        let text = got.unwrap_err().to_string();
        assert!(text.contains("rain") && text.contains("sunshine"), "{text}");
    }
}
