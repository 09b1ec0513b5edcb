//! The audit log: appended, read, given up from its start, never changed.

use scheduler_core::model::UtcMillis;
use serde::Serialize;
use sqlx::{Connection, QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{Shared, commit::json, read::fetch, signed, unsigned};
use crate::{
    AuditEntry, AuditQuery, AuditRow, Error,
    chain::{self, Ends, Hash},
    rows::page_size,
};

/// Rows of an older release that get their hashes at once.
const ADOPTED: u32 = 1_000;

/// One row as it goes in, by position.
#[derive(Serialize)]
struct Cells<'a>(
    i64,
    i64,
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    String,
);

/// Writes entries behind the last one, in one statement.
pub(super) async fn append(
    shared: &Shared,
    db: &mut SqliteConnection,
    entries: &[AuditEntry],
) -> Result<(), Error> {
    let failed = |e| shared.failed("commit", e);
    if entries.is_empty() {
        return Ok(());
    }
    let (mut id, mut hash) = here(db).await.map_err(failed)?.last;
    let mut rows = Vec::with_capacity(entries.len());
    for e in entries {
        id += 1;
        hash = chain::link(&hash, id, e);
        rows.push(Cells(
            signed(id),
            signed(e.at),
            &e.actor,
            &e.kind,
            &e.credential,
            &e.action,
            &e.subject,
            &e.address,
            &e.surface,
            &e.outcome,
            &e.detail,
            &e.request_id,
            &e.trace,
            hex::encode(hash),
        ));
    }
    sqlx::query(
        "INSERT INTO audit (id, at, actor, kind, credential, action, subject, address, surface,
                            outcome, detail, request_id, trace, hash)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
                value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11,
                value ->> 12, unhex(value ->> 13)
         FROM json_each(?1) ORDER BY key",
    )
    .bind(json(&rows)?)
    .execute(&mut *db)
    .await
    .map_err(failed)?;
    ended_at(db, id, &hash).await.map_err(failed)
}

/// Gives up to `limit` rows before the first that is not older. Returns how many went.
pub(super) async fn prune(
    db: &mut SqliteConnection,
    before: UtcMillis,
    limit: u32,
) -> Result<u64, sqlx::Error> {
    // The plus keeps the planner on the rows' own order: it stops at the first that stays.
    let kept: Option<i64> =
        sqlx::query_scalar("SELECT id FROM audit WHERE +at >= ?1 ORDER BY id LIMIT 1")
            .bind(signed(before))
            .fetch_optional(&mut *db)
            .await?;
    let last = sqlx::query(
        "SELECT id, hash FROM (SELECT id, hash FROM audit WHERE id < ?1 ORDER BY id LIMIT ?2)
         ORDER BY id DESC LIMIT 1",
    )
    .bind(kept.unwrap_or(i64::MAX))
    .bind(i64::from(limit))
    .fetch_optional(&mut *db)
    .await?;
    let Some(last) = last else {
        return Ok(0);
    };
    let id: i64 = last.try_get(0)?;
    let hash: Vec<u8> = last.try_get(1)?;
    sqlx::query("UPDATE fleet SET audit_pruned_id = ?1, audit_pruned_hash = ?2")
        .bind(id)
        .bind(hash)
        .execute(&mut *db)
        .await?;
    let gone = sqlx::query("DELETE FROM audit WHERE id <= ?1")
        .bind(id)
        .execute(db)
        .await?;
    Ok(gone.rows_affected())
}

/// Chains what an earlier release wrote, once.
pub(super) async fn adopt(writer: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let done: bool = sqlx::query_scalar("SELECT audit_is_chained FROM fleet")
        .fetch_one(&mut *writer)
        .await?;
    if done {
        return Ok(());
    }
    let mut db = writer.begin().await?;
    let first: Option<i64> = sqlx::query_scalar("SELECT min(id) FROM audit")
        .fetch_one(&mut *db)
        .await?;
    let Ends { pruned, .. } = here(&mut db).await?;
    let start = first.map_or(0, |first| unsigned(first).saturating_sub(1));
    sqlx::query("UPDATE fleet SET audit_pruned_id = ?1, audit_pruned_hash = ?2")
        .bind(signed(start))
        .bind(pruned.1.to_vec())
        .execute(&mut *db)
        .await?;
    let (mut id, mut hash) = (start, pruned.1);
    loop {
        let rows = sqlx::query("SELECT * FROM audit WHERE id > ?1 ORDER BY id LIMIT ?2")
            .bind(signed(id))
            .bind(ADOPTED)
            .fetch_all(&mut *db)
            .await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let (found, entry) = entry(row)?;
            id = found;
            hash = chain::link(&hash, id, &entry);
            sqlx::query("UPDATE audit SET hash = ?1 WHERE id = ?2")
                .bind(hash.to_vec())
                .bind(signed(id))
                .execute(&mut *db)
                .await?;
        }
    }
    ended_at(&mut db, id, &hash).await?;
    sqlx::query("UPDATE fleet SET audit_is_chained = 1")
        .execute(&mut *db)
        .await?;
    db.commit().await
}

pub(super) async fn read(shared: &Shared, query: AuditQuery) -> Result<Vec<AuditRow>, Error> {
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM audit WHERE at >= ");
    sql.push_bind(signed(query.since));
    for (column, value) in [
        ("actor", query.actor),
        ("action", query.action),
        ("subject", query.subject),
        ("outcome", query.outcome),
    ] {
        if let Some(value) = value {
            sql.push(" AND ").push(column).push(" = ").push_bind(value);
        }
    }
    match query.after {
        Some(after) => sql
            .push(" AND id > ")
            .push_bind(signed(after))
            .push(" ORDER BY id"),
        None => sql
            .push(" AND id < ")
            .push_bind(query.before.map_or(i64::MAX, signed))
            .push(" ORDER BY id DESC"),
    };
    sql.push(" LIMIT ")
        .push_bind(i64::from(page_size(query.limit)));
    fetch(shared, "read the audit log", sql, |row| {
        let (id, entry) = entry(row)?;
        // A hash of another length is one that nobody wrote: it matches nothing.
        let hash: Vec<u8> = row.try_get("hash")?;
        let hash = hash.try_into().unwrap_or([0; 32]);
        Ok(AuditRow { id, entry, hash })
    })
    .await
}

pub(super) async fn ends(shared: &Shared) -> Result<Ends, Error> {
    let read = async {
        let mut db = shared.readers.acquire().await?;
        here(&mut db).await
    };
    read.await
        .map_err(|e| shared.failed("read the audit log", e))
}

async fn here(db: &mut SqliteConnection) -> Result<Ends, sqlx::Error> {
    let row = sqlx::query(
        "SELECT fleet_id, audit_pruned_id, audit_pruned_hash, audit_last_id, audit_last_hash
         FROM fleet",
    )
    .fetch_one(db)
    .await?;
    let fleet_id: String = row.try_get(0)?;
    let end = |id: &str, hash: &str| -> Result<(u64, Hash), sqlx::Error> {
        let bytes: Vec<u8> = row.try_get(hash)?;
        let hash = bytes
            .try_into()
            .unwrap_or_else(|_| chain::genesis(&fleet_id));
        Ok((unsigned(row.try_get(id)?), hash))
    };
    Ok(Ends {
        pruned: end("audit_pruned_id", "audit_pruned_hash")?,
        last: end("audit_last_id", "audit_last_hash")?,
    })
}

async fn ended_at(db: &mut SqliteConnection, id: u64, hash: &Hash) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE fleet SET audit_last_id = ?1, audit_last_hash = ?2")
        .bind(signed(id))
        .bind(hash.to_vec())
        .execute(db)
        .await
        .map(drop)
}

fn entry(row: &SqliteRow) -> Result<(u64, AuditEntry), sqlx::Error> {
    let entry = AuditEntry {
        at: unsigned(row.try_get("at")?),
        actor: row.try_get("actor")?,
        kind: row.try_get("kind")?,
        credential: row.try_get("credential")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        address: row.try_get("address")?,
        surface: row.try_get("surface")?,
        outcome: row.try_get("outcome")?,
        detail: row.try_get("detail")?,
        request_id: row.try_get("request_id")?,
        trace: row.try_get("trace")?,
    };
    Ok((unsigned(row.try_get("id")?), entry))
}
