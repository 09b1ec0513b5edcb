//! The chain of the audit log: each row's hash covers the row and the hash before it.
//!
//! Whoever changes, removes, inserts or reorders rows behind the scheduler's
//! back breaks it, and [`Verifier`] names the first row where that shows. It is
//! no signature: who can write the whole store can write a whole new chain. A
//! hash noted elsewhere (`Ends::last`) shows that too.

use aws_lc_rs::digest::{Context, SHA256};

use crate::{AuditEntry, AuditRow};

/// SHA-256.
pub type Hash = [u8; 32];

/// What the first row of a fleet's log follows.
pub fn genesis(fleet_id: &str) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(b"longshore audit chain 1\n");
    text(&mut context, fleet_id);
    finish(context)
}

/// The hash of a row. Every field is preceded by its length, so that no two rows read the same.
pub fn link(previous: &Hash, id: u64, entry: &AuditEntry) -> Hash {
    let AuditEntry {
        at,
        actor,
        kind,
        credential,
        action,
        subject,
        address,
        surface,
        outcome,
        detail,
        request_id,
        trace,
    } = entry;
    let mut context = Context::new(&SHA256);
    context.update(previous);
    context.update(&id.to_be_bytes());
    context.update(&at.to_be_bytes());
    for field in [
        actor, kind, credential, action, subject, address, surface, outcome, detail, request_id,
        trace,
    ] {
        text(&mut context, field);
    }
    finish(context)
}

fn text(context: &mut Context, text: &str) {
    context.update(&(text.len() as u64).to_be_bytes());
    context.update(text.as_bytes());
}

fn finish(context: Context) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Between which rows the log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The last row retention gave up and its hash; (0, genesis) when it gave up none.
    pub pruned: (u64, Hash),
    /// The last row written and its hash; equal to `pruned` when the log is empty.
    pub last: (u64, Hash),
}

/// Where the chain does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("entry {0} is missing")]
    Missing(u64),
    #[error("entry {0} is not what was written, or not where it was written")]
    Changed(u64),
    #[error("entry {0} was not written by the scheduler")]
    Foreign(u64),
}

impl Broken {
    /// The first bad row.
    pub fn id(self) -> u64 {
        match self {
            Self::Missing(id) | Self::Changed(id) | Self::Foreign(id) => id,
        }
    }
}

/// Walks a log from its oldest row on.
#[derive(Clone, Debug)]
pub struct Verifier {
    ends: Ends,
    at: (u64, Hash),
}

impl Verifier {
    pub fn new(ends: Ends) -> Self {
        Self {
            ends,
            at: ends.pruned,
        }
    }

    /// The next row.
    pub fn take(&mut self, row: &AuditRow) -> Result<(), Broken> {
        let (before, hash) = self.at;
        if row.id <= before || row.id > self.ends.last.0 {
            return Err(Broken::Foreign(row.id));
        }
        if row.id > before + 1 {
            return Err(Broken::Missing(before + 1));
        }
        if link(&hash, row.id, &row.entry) != row.hash {
            return Err(Broken::Changed(row.id));
        }
        self.at = (row.id, row.hash);
        Ok(())
    }

    /// No more rows. Returns how many there were.
    pub fn end(self) -> Result<u64, Broken> {
        let (id, hash) = self.at;
        if id < self.ends.last.0 {
            return Err(Broken::Missing(id + 1));
        }
        if hash != self.ends.last.1 {
            return Err(Broken::Changed(id));
        }
        Ok(id - self.ends.pruned.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> AuditEntry {
        AuditEntry {
            at: n,
            actor: "ada".into(),
            subject: format!("s{n}"),
            ..AuditEntry::default()
        }
    }

    fn log(rows: u64) -> (Vec<AuditRow>, Ends) {
        let start = genesis("f1");
        let mut hash = start;
        let rows: Vec<AuditRow> = (1..=rows)
            .map(|id| {
                hash = link(&hash, id, &entry(id));
                AuditRow {
                    id,
                    entry: entry(id),
                    hash,
                }
            })
            .collect();
        let last = (rows.len() as u64, hash);
        let ends = Ends {
            pruned: (0, start),
            last,
        };
        (rows, ends)
    }

    fn verify(rows: &[AuditRow], ends: Ends) -> Result<u64, Broken> {
        let mut verifier = Verifier::new(ends);
        for row in rows {
            verifier.take(row)?;
        }
        verifier.end()
    }

    #[test]
    fn a_whole_log_holds_from_its_start_and_from_where_it_was_pruned() {
        let (rows, ends) = log(9);
        assert_eq!(verify(&rows, ends), Ok(9));
        let pruned = Ends {
            pruned: (4, rows[3].hash),
            ..ends
        };
        assert_eq!(verify(&rows[4..], pruned), Ok(5));
        let empty = Ends {
            pruned: ends.last,
            ..ends
        };
        assert_eq!(verify(&[], empty), Ok(0));
    }

    #[test]
    fn each_field_counts_and_no_byte_moves_between_fields() {
        let previous = genesis("f1");
        let plain = entry(1);
        let hash = link(&previous, 1, &plain);
        type Change = fn(&mut AuditEntry);
        let changes: [Change; 12] = [
            |e| e.at += 1,
            |e| e.actor.push('x'),
            |e| e.kind.push('x'),
            |e| e.credential.push('x'),
            |e| e.action.push('x'),
            |e| e.subject.push('x'),
            |e| e.address.push('x'),
            |e| e.surface.push('x'),
            |e| e.outcome.push('x'),
            |e| e.detail.push('x'),
            |e| e.request_id.push('x'),
            |e| e.trace.push('x'),
        ];
        let mut seen = vec![hash];
        for change in changes {
            let mut other = plain.clone();
            change(&mut other);
            let other = link(&previous, 1, &other);
            assert!(!seen.contains(&other));
            seen.push(other);
        }
        assert!(!seen.contains(&link(&previous, 2, &plain)));
        assert!(!seen.contains(&link(&genesis("f2"), 1, &plain)));
    }

    #[test]
    fn the_first_bad_row_is_named() {
        let (rows, ends) = log(9);
        let with = |change: &dyn Fn(&mut Vec<AuditRow>)| {
            let mut rows = rows.clone();
            change(&mut rows);
            verify(&rows, ends)
        };
        let changed = with(&|rows| rows[4].entry.actor = "eve".into());
        assert_eq!(changed, Err(Broken::Changed(5)));
        let deleted = with(&|rows| drop(rows.remove(4)));
        assert_eq!(deleted, Err(Broken::Missing(5)));
        let first = with(&|rows| drop(rows.remove(0)));
        assert_eq!(first, Err(Broken::Missing(1)));
        let last = with(&|rows| drop(rows.pop()));
        assert_eq!(last, Err(Broken::Missing(9)));
        let swapped = with(&|rows| {
            let (third, fifth) = (rows[2].entry.clone(), rows[4].entry.clone());
            rows[2].entry = fifth;
            rows[4].entry = third;
        });
        assert_eq!(swapped, Err(Broken::Changed(3)));
        let appended = with(&|rows| {
            let last = rows[8].clone();
            let hash = link(&last.hash, 10, &entry(10));
            rows.push(AuditRow {
                id: 10,
                entry: entry(10),
                hash,
            });
        });
        assert_eq!(appended, Err(Broken::Foreign(10)));
        // One whose own hash was made anew breaks the row behind it.
        let rehashed = with(&|rows| {
            rows[4].entry.actor = "eve".into();
            rows[4].hash = link(&rows[3].hash, 5, &rows[4].entry);
        });
        assert_eq!(rehashed, Err(Broken::Changed(6)));
    }
}
