//! The process's clock: the only place that reads time for the core.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use scheduler_core::model::{Now, UtcMillis};

use crate::ports::Clock;

/// Monotonic since its creation, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now {
            // One past zero, so that 0 stays "never".
            mono: self.start.elapsed().as_millis() as u64 + 1,
            utc: utc(),
        }
    }
}

/// Milliseconds since 1970-01-01 UTC; 0 for a clock set before that.
pub fn utc() -> UtcMillis {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|since| since.as_millis() as u64)
        .unwrap_or(0)
}
