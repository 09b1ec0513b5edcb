//! How long to wait before a read is tried again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// First pause; doubles, with jitter.
const FIRST: Duration = Duration::from_millis(50);
/// Longest pause between the tries of one call.
const LONGEST: Duration = Duration::from_millis(800);
/// Longest pause between the reconnections of a watch.
const LONGEST_RECONNECT: Duration = Duration::from_secs(10);

/// The pauses between `attempts` tries of one call.
pub(crate) fn pauses(attempts: usize) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST)
        .with_max_delay(LONGEST)
        .with_max_times(attempts.saturating_sub(1))
        .with_jitter()
        .build()
}

/// The endless pauses of a watch that reconnects.
pub(crate) fn reconnect_pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST)
        .with_max_delay(LONGEST_RECONNECT)
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_attempt_means_no_pause() {
        assert_eq!(pauses(1).count(), 0);
        assert_eq!(pauses(4).count(), 3);
    }

    #[test]
    fn a_watch_never_gives_up_and_never_waits_long() {
        let pauses: Vec<_> = reconnect_pauses().take(1_000).collect();
        assert_eq!(pauses.len(), 1_000);
        // Jitter adds at most one minimum-to-current pause on top.
        assert!(pauses.iter().all(|p| *p <= LONGEST_RECONNECT * 2));
    }
}
