//! The agent's time: the machine's, or a simulation's.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_core::Now;
use tokio::time::Instant;

/// `mono` follows tokio's clock, so that a paused runtime moves it too.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// Fixed start of a simulated clock; none reads the machine's.
    simulated_utc_ms: Option<u64>,
}

impl Clock {
    pub fn system() -> Self {
        Self {
            start: Instant::now(),
            simulated_utc_ms: None,
        }
    }

    /// UTC moves with tokio's clock from this moment on.
    pub fn simulated(utc_ms: u64) -> Self {
        Self {
            start: Instant::now(),
            simulated_utc_ms: Some(utc_ms),
        }
    }

    pub fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let utc_ms = match self.simulated_utc_ms {
            Some(start) => start + mono_ms,
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        };
        Now { mono_ms, utc_ms }
    }

    /// The moment `mono_ms` of this clock.
    pub fn instant(&self, mono_ms: u64) -> Instant {
        self.start + std::time::Duration::from_millis(mono_ms)
    }
}
