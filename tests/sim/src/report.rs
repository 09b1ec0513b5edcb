//! What a run showed.

use std::collections::BTreeMap;

/// Result of one seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    /// What must never happen, and did. Empty: the run is good.
    pub violations: Vec<String>,
    /// Faults that really happened.
    pub fired: BTreeMap<String, u64>,
    /// Steps of anything simulated.
    pub events: u64,
    /// Facts committed.
    pub facts: u64,
    pub jobs: u64,
    pub runnable: u64,
    /// Registrations GitHub ever made for us.
    pub registrations: u64,
    /// Runnable jobs that GitHub gave to a runner made for other labels.
    pub strayed: u64,
    /// Runners told to stop, by the reason's name.
    pub stops: BTreeMap<String, u64>,
    /// Of runnable jobs, from queued to in progress, milliseconds.
    pub waits: Vec<u64>,
    /// Everything was done this long after the last fault, milliseconds.
    pub settled_after: Option<u64>,
    /// Calls of the ports: what `crash_at_call` counts.
    pub calls: u64,
    /// Hash over everything that happened, for the determinism test.
    pub fingerprint: u64,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }

    /// Of the waits; 0 without any.
    pub fn wait_percentile(&self, percent: usize) -> u64 {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let at = waits.len().saturating_sub(1) * percent / 100;
        waits.get(at).copied().unwrap_or(0)
    }
}
