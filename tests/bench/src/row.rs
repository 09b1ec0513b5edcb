//! One measured number beside its reference, as `make bench` collects it.

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What it is compared with, taken in the same run.
    pub(crate) reference: &'static str,
    pub(crate) reference_value: f64,
    pub(crate) ratio: f64,
    pub(crate) n: usize,
    /// One-minute load average when it was taken.
    pub(crate) load: f64,
}

impl Row {
    pub(crate) fn new(
        name: &'static str,
        (value, unit): (f64, &'static str),
        (reference, reference_value): (&'static str, f64),
        n: usize,
    ) -> Self {
        Self {
            name,
            value,
            unit,
            reference,
            reference_value,
            ratio: value / reference_value,
            n,
            load: load(),
        }
    }
}

fn load() -> f64 {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

/// CPU time of this thread, nanoseconds.
pub(crate) fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call to fill.
    #[expect(unsafe_code, reason = "std has no thread CPU clock")]
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "the thread CPU clock exists on Linux");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
