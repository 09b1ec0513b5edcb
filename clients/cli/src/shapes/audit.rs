//! `audit ...`.

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::time;
use crate::output::{Described, Listed, Page};

#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    id: u64,
    time: Option<String>,
    actor: String,
    kind: String,
    credential: String,
    action: String,
    subject: String,
    address: String,
    surface: String,
    outcome: String,
    detail: String,
    request_id: String,
    trace: String,
    hash: String,
}

impl From<v1::AuditEntry> for Entry {
    fn from(e: v1::AuditEntry) -> Entry {
        Entry {
            id: e.id,
            time: time(e.time.as_ref()),
            actor: e.actor,
            kind: e.kind,
            credential: e.credential,
            action: e.action,
            subject: e.subject,
            address: e.address,
            surface: e.surface,
            outcome: e.outcome,
            detail: e.detail,
            request_id: e.request_id,
            trace: e.trace,
            hash: e.hash,
        }
    }
}

impl Listed for Entry {
    const COLUMNS: &'static [&'static str] =
        &["TIME", "WHO", "WHAT", "ON", "FROM", "RESULT", "DETAIL"];
    const WIDE: &'static [&'static str] =
        &["ID", "KIND", "CREDENTIAL", "SURFACE", "REQUEST", "TRACE"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        let actor = match self.actor.as_str() {
            "" => "(unknown)",
            actor => actor,
        };
        vec![
            self.time.clone().unwrap_or_default(),
            actor.to_owned(),
            self.action.clone(),
            self.subject.clone(),
            self.address.clone(),
            self.outcome.clone(),
            self.detail.clone(),
        ]
    }

    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.kind.clone(),
            self.credential.clone(),
            self.surface.clone(),
            self.request_id.clone(),
            self.trace.clone(),
        ]
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

/// `audit verify`.
#[derive(Debug, Serialize)]
pub(crate) struct Verified {
    pub(crate) whole: bool,
    entries: u64,
    pruned_id: u64,
    last_id: u64,
    last_hash: String,
    broken_id: u64,
    pub(crate) problem: String,
}

impl From<v1::VerifyAuditResponse> for Verified {
    fn from(v: v1::VerifyAuditResponse) -> Verified {
        Verified {
            whole: v.whole,
            entries: v.entries,
            pruned_id: v.pruned_id,
            last_id: v.last_id,
            last_hash: v.last_hash,
            broken_id: v.broken_id,
            problem: v.problem,
        }
    }
}

impl Described for Verified {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        if self.whole {
            page.line("Whole", format!("yes, {} entries", self.entries));
        } else {
            page.line("Whole", "no");
            page.line("First bad entry", self.broken_id.to_string());
            page.line("Problem", self.problem.clone());
        }
        if self.pruned_id > 0 {
            page.line(
                "Given up by retention",
                format!("up to entry {}", self.pruned_id),
            );
        }
        page.line(
            "Note for --expect",
            format!("{}:{}", self.last_id, self.last_hash),
        );
    }

    fn name(&self) -> String {
        self.last_id.to_string()
    }
}
