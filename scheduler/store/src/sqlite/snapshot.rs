//! Recovery: snapshots in parts, and the facts that follow one.

use scheduler_core::fact::Fact;
use sqlx::{Row, SqliteConnection};

use super::{Shared, commit::advance, signed, unsigned};
use crate::{Error, Loaded, PAGE_MAX, format};

/// Facts of one part: some milliseconds of work between two commits.
const PART: usize = 5_000;
/// Old rows deleted at once, for the same reason.
const SLICE: i64 = 1_000;

pub(super) async fn load(shared: &Shared) -> Result<Loaded, Error> {
    const ACTION: &str = "load";
    shared
        .transaction(ACTION, async |db| {
            let failed = |e| shared.failed(ACTION, e);
            let fleet =
                sqlx::query("SELECT fleet_id, epoch, sequence, snapshot_sequence FROM fleet")
                    .fetch_one(&mut *db)
                    .await
                    .map_err(failed)?;
            let snapshot_sequence: i64 = fleet.try_get(3).map_err(failed)?;
            let mut snapshot = Vec::new();
            let parts =
                sqlx::query("SELECT batch FROM snapshot_parts WHERE sequence = ?1 ORDER BY part")
                    .bind(snapshot_sequence)
                    .fetch_all(&mut *db)
                    .await
                    .map_err(failed)?;
            for part in parts {
                let batch: &[u8] = part.try_get(0).map_err(failed)?;
                snapshot.append(&mut format::decode(batch)?.1);
            }
            let mut facts = Vec::new();
            let mut after = unsigned(snapshot_sequence);
            loop {
                let page = following(shared, db, after).await?;
                match page.last() {
                    Some((last, _)) => after = *last,
                    None => break,
                }
                facts.extend(page.into_iter().map(|(_, fact)| fact));
            }
            Ok(Loaded {
                fleet_id: fleet.try_get(0).map_err(failed)?,
                epoch: unsigned(fleet.try_get(1).map_err(failed)?),
                sequence: unsigned(fleet.try_get(2).map_err(failed)?),
                snapshot_sequence: unsigned(snapshot_sequence),
                snapshot,
                facts,
            })
        })
        .await
}

/// The next commits' facts after a sequence, at most [`SLICE`] commits.
async fn following(
    shared: &Shared,
    db: &mut SqliteConnection,
    after: u64,
) -> Result<Vec<(u64, Fact)>, Error> {
    let failed = |e| shared.failed("read facts", e);
    let batches = sqlx::query("SELECT batch FROM facts WHERE last > ?1 ORDER BY last LIMIT ?2")
        .bind(signed(after))
        .bind(SLICE)
        .fetch_all(db)
        .await
        .map_err(failed)?;
    let mut found = Vec::new();
    for row in batches {
        let (first, facts) = format::decode(row.try_get(0).map_err(failed)?)?;
        found.extend(
            (first..)
                .zip(facts)
                .filter(|(sequence, _)| *sequence > after),
        );
    }
    Ok(found)
}

pub(super) async fn facts_after(
    shared: &Shared,
    after: u64,
    limit: u32,
) -> Result<Vec<(u64, Fact)>, Error> {
    let failed = |e| shared.failed("read facts", e);
    let mut db = shared.readers.begin().await.map_err(failed)?;
    let oldest: i64 = sqlx::query_scalar("SELECT snapshot_sequence FROM fleet")
        .fetch_one(&mut *db)
        .await
        .map_err(failed)?;
    if signed(after) < oldest {
        return Err(Error::Compacted {
            after,
            oldest: unsigned(oldest),
        });
    }
    let mut found = Vec::new();
    let mut last = after;
    while found.len() < limit as usize {
        let page = following(shared, &mut db, last).await?;
        match page.last() {
            Some((sequence, _)) => last = *sequence,
            None => break,
        }
        found.extend(page);
    }
    Ok(found)
}

pub(super) async fn write(
    shared: &Shared,
    expected_epoch: u64,
    sequence: u64,
    facts: &[Fact],
) -> Result<(), Error> {
    const ACTION: &str = "write a snapshot";
    let _one_at_a_time = shared.snapshotting.lock().await;
    let failed = |e| shared.failed(ACTION, e);

    let in_force = shared
        .transaction(ACTION, async |db| {
            advance(shared, db, expected_epoch, 0).await?;
            let in_force: i64 = sqlx::query_scalar("SELECT snapshot_sequence FROM fleet")
                .fetch_one(&mut *db)
                .await
                .map_err(failed)?;
            Ok(unsigned(in_force))
        })
        .await?;
    if sequence <= in_force {
        return Ok(());
    }
    // What a broken-off snapshot left.
    sweep_parts(shared, in_force).await?;

    for (part, facts) in facts.chunks(PART).enumerate() {
        let batch = format::encode(0, facts);
        shared
            .transaction(ACTION, async |db| {
                advance(shared, db, expected_epoch, 0).await?;
                sqlx::query(
                    "INSERT INTO snapshot_parts (sequence, part, batch) VALUES (?1, ?2, ?3)",
                )
                .bind(signed(sequence))
                .bind(signed(part as u64))
                .bind(batch)
                .execute(db)
                .await
                .map(drop)
                .map_err(failed)
            })
            .await?;
    }
    shared
        .transaction(ACTION, async |db| {
            advance(shared, db, expected_epoch, 0).await?;
            sqlx::query("UPDATE fleet SET snapshot_sequence = ?1")
                .bind(signed(sequence))
                .execute(db)
                .await
                .map(drop)
                .map_err(failed)
        })
        .await?;

    sweep_parts(shared, sequence).await?;
    let old_facts = "DELETE FROM facts WHERE last IN
        (SELECT last FROM facts WHERE last <= ?1 ORDER BY last LIMIT ?2)";
    while sweep(shared, old_facts, sequence, SLICE).await? > 0 {}
    Ok(())
}

/// Deletes every part that does not belong to this snapshot.
async fn sweep_parts(shared: &Shared, keep: u64) -> Result<(), Error> {
    let old_parts = "DELETE FROM snapshot_parts WHERE rowid IN
        (SELECT rowid FROM snapshot_parts WHERE sequence <> ?1 LIMIT ?2)";
    while sweep(shared, old_parts, keep, 4).await? > 0 {}
    Ok(())
}

async fn sweep(
    shared: &Shared,
    sql: &'static str,
    sequence: u64,
    limit: i64,
) -> Result<u64, Error> {
    debug_assert!(limit <= i64::from(PAGE_MAX));
    shared
        .transaction("clear what a snapshot replaced", async |db| {
            let deleted = sqlx::query(sql)
                .bind(signed(sequence))
                .bind(limit)
                .execute(db)
                .await;
            deleted
                .map(|done| done.rows_affected())
                .map_err(|e| shared.failed("clear what a snapshot replaced", e))
        })
        .await
}
