//! The agent is the last of a host's Longshore processes that a shortage of memory kills.

use tracing::info;

/// A sandbox has 500 and a job's steps 900 (`agent_core::sandbox`).
const SCORE: i32 = -500;
const FILE: &str = "/proc/self/oom_score_adj";

/// Lowers this process's score, unless it is lower already or that is not permitted.
pub(crate) fn from_memory_shortage() {
    let now = std::fs::read_to_string(FILE)
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now <= SCORE) {
        return;
    }
    if let Err(error) = std::fs::write(FILE, SCORE.to_string()) {
        info!(%error, "keeps the usual chance to be killed when memory runs out; OOMScoreAdjust in the unit changes it");
    }
}
