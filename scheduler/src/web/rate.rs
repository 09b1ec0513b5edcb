//! A token bucket: so many per second, with a second's worth in reserve.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Takes at most `per_second`, on average and in one burst.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    state: Mutex<(f64, Instant)>,
}

impl Rate {
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self {
            per_second,
            state: Mutex::new((per_second, Instant::now())),
        }
    }

    /// Takes one, if there is one.
    pub fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, last) = *state;
        let refill = now.saturating_duration_since(last).as_secs_f64() * self.per_second;
        let left = (left + refill).min(self.per_second);
        let taken = left >= 1.0;
        *state = (if taken { left - 1.0 } else { left }, now);
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_bounded_and_refills() {
        let rate = Rate::new(10);
        let start = Instant::now() + Duration::from_secs(1);
        let taken = (0..100).filter(|_| rate.take_at(start)).count();
        assert_eq!(taken, 10);
        let later = start + Duration::from_millis(500);
        let taken = (0..100).filter(|_| rate.take_at(later)).count();
        assert_eq!(taken, 5);
    }
}
