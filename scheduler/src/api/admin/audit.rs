//! The audit log as AdminService shows it: paged, filtered, and checked row by row.

use std::sync::Arc;

use longshore_proto::v1;
use scheduler_store::{
    AuditQuery, AuditRow, Error, PAGE_MAX,
    chain::{Broken, Ends, Verifier},
};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::{
    api::{convert, errors},
    ports::Store,
};

/// Retention may take rows away while a log is checked; then it is checked again, so many times.
const TRIES: usize = 3;

/// The audit log of a store.
#[derive(Debug)]
pub struct Audit<S> {
    store: Arc<S>,
    /// Checking reads everything: once at a time.
    checking: Semaphore,
}

/// What a check found.
enum Found {
    Whole(u64),
    Broken(Broken),
}

impl<S: Store> Audit<S> {
    pub fn new(store: Arc<S>) -> Self {
        Self {
            store,
            checking: Semaphore::new(1),
        }
    }

    /// Newest first.
    pub(super) async fn list(
        &self,
        asked: v1::ListAuditRequest,
    ) -> Result<v1::ListAuditResponse, Status> {
        let before = match asked.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| errors::bad_page_token())?),
        };
        let some = |text: String| (!text.is_empty()).then_some(text);
        let size = match asked.page_size {
            0 => 100,
            size => size.min(PAGE_MAX),
        };
        let query = AuditQuery {
            before,
            actor: some(asked.actor),
            action: some(asked.action),
            subject: some(asked.subject),
            outcome: some(asked.outcome),
            since: asked.since.as_ref().map_or(0, millis),
            limit: size,
            ..AuditQuery::default()
        };
        let rows = self.store.audit(query).await;
        let rows = rows.map_err(|error| errors::store(&error))?;
        let full = rows.len() == size as usize;
        let next = rows.last().filter(|_| full).map(|row| row.id.to_string());
        Ok(v1::ListAuditResponse {
            entries: rows.into_iter().map(shown).collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }

    /// Walks the whole log.
    pub(super) async fn verify(
        &self,
        asked: &v1::VerifyAuditRequest,
    ) -> Result<v1::VerifyAuditResponse, Status> {
        let Ok(_turn) = self.checking.try_acquire() else {
            return Err(errors::status(
                Code::ResourceExhausted,
                "check_under_way",
                "somebody else has the log checked",
                "try again in a moment",
            ));
        };
        let expected = expected(asked)?;
        let failed = |error: Error| errors::store(&error);
        for _ in 0..TRIES {
            let ends = self.store.audit_ends().await.map_err(failed)?;
            if let Some((id, _)) = expected
                && id < ends.pruned.0
            {
                return Err(errors::precondition(
                    "entry_pruned",
                    &format!("entry {id} is gone by retention: it cannot be compared"),
                    "note a newer one",
                ));
            }
            let found = self.walk(ends, expected).await.map_err(failed)?;
            let moved = self.store.audit_ends().await.map_err(failed)?.pruned != ends.pruned;
            if moved && matches!(found, Found::Broken(_)) {
                continue;
            }
            return Ok(answer(ends, found));
        }
        Err(errors::status(
            Code::Unavailable,
            "log_pruned",
            "retention took rows away while they were read",
            "try again in a moment",
        ))
    }

    async fn walk(&self, ends: Ends, expected: Option<(u64, [u8; 32])>) -> Result<Found, Error> {
        let mut verifier = Verifier::new(ends);
        let differs = |id: u64, hash: &[u8; 32]| {
            expected.is_some_and(|(at, noted)| at == id && noted != *hash)
        };
        if differs(ends.pruned.0, &ends.pruned.1) {
            return Ok(Found::Broken(Broken::Changed(ends.pruned.0)));
        }
        let mut after = 0;
        loop {
            let query = AuditQuery {
                after: Some(after),
                limit: PAGE_MAX,
                ..AuditQuery::default()
            };
            let rows = self.store.audit(query).await?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            for row in &rows {
                // What was written since the check began is for the next one.
                if row.id > ends.last.0 && self.grown_past(row).await? {
                    break;
                }
                if let Err(broken) = verifier.take(row) {
                    return Ok(Found::Broken(broken));
                }
                if differs(row.id, &row.hash) {
                    return Ok(Found::Broken(Broken::Changed(row.id)));
                }
            }
            if after >= ends.last.0 {
                break;
            }
        }
        if expected.is_some_and(|(id, _)| id > ends.last.0) {
            return Ok(Found::Broken(Broken::Missing(ends.last.0 + 1)));
        }
        Ok(match verifier.end() {
            Ok(rows) => Found::Whole(rows),
            Err(broken) => Found::Broken(broken),
        })
    }

    /// Whether the log's own end has moved past this row meanwhile.
    async fn grown_past(&self, row: &AuditRow) -> Result<bool, Error> {
        Ok(self.store.audit_ends().await?.last.0 >= row.id)
    }
}

/// What the caller noted of an earlier state of the log.
fn expected(asked: &v1::VerifyAuditRequest) -> Result<Option<(u64, [u8; 32])>, Status> {
    if asked.expected_hash.is_empty() {
        return Ok(None);
    }
    let mut hash = [0; 32];
    hex::decode_to_slice(&asked.expected_hash, &mut hash).map_err(|_| {
        errors::invalid(
            "expected_hash",
            "it is not 64 hexadecimal digits",
            "copy it as `longshore audit verify` printed it",
        )
    })?;
    Ok(Some((asked.expected_id, hash)))
}

fn answer(ends: Ends, found: Found) -> v1::VerifyAuditResponse {
    let (entries, broken) = match found {
        Found::Whole(entries) => (entries, None),
        Found::Broken(broken) => (0, Some(broken)),
    };
    v1::VerifyAuditResponse {
        whole: broken.is_none(),
        entries,
        pruned_id: ends.pruned.0,
        last_id: ends.last.0,
        last_hash: hex::encode(ends.last.1),
        broken_id: broken.map_or(0, Broken::id),
        problem: broken.map(|broken| broken.to_string()).unwrap_or_default(),
    }
}

fn millis(time: &prost_types::Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let rest = u64::try_from(time.nanos).unwrap_or(0) / 1_000_000;
    seconds.saturating_mul(1_000).saturating_add(rest)
}

fn shown(row: AuditRow) -> v1::AuditEntry {
    let entry = row.entry;
    v1::AuditEntry {
        id: row.id,
        time: Some(convert::time(entry.at)),
        actor: entry.actor,
        kind: entry.kind,
        credential: entry.credential,
        action: entry.action,
        subject: entry.subject,
        address: entry.address,
        surface: entry.surface,
        outcome: entry.outcome,
        detail: entry.detail,
        request_id: entry.request_id,
        trace: entry.trace,
        hash: hex::encode(row.hash),
    }
}
