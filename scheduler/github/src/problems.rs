//! What is wrong now, kept until it is right again.

use std::{collections::BTreeMap, sync::Mutex};

use scheduler_core::model::UtcMillis;

use crate::{credential::lock, status::Problem};

/// Told at most; the rest is in the log.
const MOST: usize = 200;

#[derive(Debug, Default)]
pub(crate) struct Problems {
    known: Mutex<BTreeMap<String, Problem>>,
}

impl Problems {
    pub(crate) fn set(&self, subject: &str, detail: String, now: UtcMillis) {
        let mut known = lock(&self.known);
        if let Some(problem) = known.get_mut(subject) {
            problem.detail = detail;
        } else if known.len() < MOST {
            tracing::warn!(subject, detail, "GitHub problem");
            let subject = subject.to_owned();
            let problem = Problem {
                subject: subject.clone(),
                detail,
                since: now,
            };
            known.insert(subject, problem);
        }
    }

    pub(crate) fn clear(&self, subject: &str) {
        if lock(&self.known).remove(subject).is_some() {
            tracing::info!(subject, "GitHub problem solved");
        }
    }

    /// Discovery itself failed somewhere.
    pub(crate) fn in_discovery(&self) -> bool {
        lock(&self.known).keys().any(|subject| {
            subject.starts_with("credential ") || subject.starts_with("installation on ")
        })
    }

    pub(crate) fn all(&self) -> Vec<Problem> {
        lock(&self.known).values().cloned().collect()
    }
}
