//! What only a file can get wrong.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use scheduler_core::{fact::Fact, model::JobId};
use scheduler_store::{
    AuditEntry, AuditQuery, Commit, Error, JobQuery, Options, Sqlite, Store,
    chain::{Broken, Verifier},
};
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::samples::every_fact;

async fn open(dir: &Path) -> Sqlite {
    Sqlite::open(Options::new(dir)).await.expect("open")
}

async fn raw(dir: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(dir.join("longshore.db"))
        .create_if_missing(true)
        .connect()
        .await
        .expect("open the file beside the store")
}

fn forgotten(id: u64) -> Fact {
    Fact::JobForgotten { job: JobId(id) }
}

fn commit(facts: Vec<Fact>) -> Commit {
    Commit {
        facts,
        ..Commit::default()
    }
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = open(dir.path()).await;
    let raised = store.raise_epoch(0, 1).await.expect("raise");
    let facts = Commit {
        expected_epoch: raised.epoch,
        ..commit(every_fact())
    };
    store.commit(facts).await.expect("commit");
    let before = store.load().await.expect("load");
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.load().await.expect("load"), before);
}

#[tokio::test]
async fn the_files_are_private() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let state = dir.path().join("state");
    let store = open(&state).await;
    store.commit(commit(every_fact())).await.expect("commit");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for name in ["longshore.db", "longshore.db-wal", "longshore.lock"] {
        assert_eq!(mode(&state.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_second_scheduler_is_refused_and_told_who_holds_the_folder() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let first = open(dir.path()).await;
    let error = Sqlite::open(Options::new(dir.path()))
        .await
        .expect_err("locked");
    match &error {
        Error::Locked { holder, .. } => assert_eq!(*holder, std::process::id().to_string()),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("--state-dir"), "{error}");
    drop(first);
    open(dir.path()).await;
}

#[tokio::test]
async fn a_full_disk_refuses_the_commit_and_keeps_what_was_there() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = Sqlite::open(Options {
        max_bytes: Some(400 * 1024),
        ..Options::new(dir.path())
    })
    .await
    .expect("open");
    let mut kept = 0;
    let error = loop {
        let facts = (0..2_000).map(forgotten).collect();
        match store.commit(commit(facts)).await {
            Ok(sequence) => kept = sequence,
            Err(error) => break error,
        }
        assert!(kept < 1_000_000, "the limit never bit");
    };
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert!(error.to_string().contains("free space"), "{error}");
    assert!(kept > 0);
    let loaded = store.load().await.expect("load");
    assert_eq!(loaded.sequence, kept);
    assert_eq!(loaded.facts.len() as u64, kept);
    // A snapshot makes room, and the same store goes on.
    store
        .write_snapshot(0, kept, vec![forgotten(1)])
        .await
        .expect("snapshot");
    let facts = (0..500).map(forgotten).collect();
    let sequence = store.commit(commit(facts)).await.expect("room again");
    assert_eq!(sequence, kept + 500);
}

#[tokio::test]
async fn a_state_folder_that_is_none_is_named() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let file = dir.path().join("file");
    fs::write(&file, b"").expect("write");
    let error = Sqlite::open(Options::new(file.join("state")))
        .await
        .expect_err("not a folder");
    let text = error.to_string();
    assert!(
        text.contains("file/state") && text.contains("--state-dir"),
        "{text}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    fs::write(dir.path().join("longshore.db"), vec![b'x'; 8_192]).expect("write");
    let error = Sqlite::open(Options::new(dir.path()))
        .await
        .expect_err("not a database");
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("backup"), "{error}");
}

#[tokio::test]
async fn tables_of_a_newer_release_are_refused_by_version() {
    let dir = tempfile::tempdir().expect("temporary folder");
    drop(open(dir.path()).await);
    let mut db = raw(dir.path()).await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (900, 'later', true, x'00', 0)",
    )
    .execute(&mut db)
    .await
    .expect("pretend");
    db.close().await.expect("close");
    let error = Sqlite::open(Options::new(dir.path()))
        .await
        .expect_err("newer");
    assert!(
        matches!(error, Error::NewerTables { found: 900, ours, .. } if ours < 900),
        "{error}"
    );
}

/// The dump is of tables of version 1 with a job, two facts and an audit entry.
#[tokio::test]
async fn a_file_of_version_1_is_upgraded_and_keeps_its_content() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut db = raw(dir.path()).await;
    sqlx::raw_sql(include_str!("../data/store-version-1.sql"))
        .execute(&mut db)
        .await
        .expect("restore the dump");
    db.close().await.expect("close");

    let store = open(dir.path()).await;
    let loaded = store.load().await.expect("load");
    assert_eq!(loaded.fleet_id, "dumpfleet");
    assert_eq!((loaded.epoch, loaded.sequence), (7, 2));
    assert_eq!(loaded.facts, [forgotten(70), forgotten(71)]);
    let jobs = store.jobs(JobQuery::default()).await.expect("jobs").items;
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].repository, "mona/web");
    assert_eq!(whole(&store).await, Ok(1));
    let next = Commit {
        expected_epoch: 7,
        ..commit(vec![forgotten(72)])
    };
    assert_eq!(store.commit(next).await.expect("commit"), 3);
}

#[tokio::test]
async fn the_database_itself_refuses_to_change_the_audit_log() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = open(dir.path()).await;
    let audited = Commit {
        audit: vec![AuditEntry {
            at: 50,
            actor: "local".into(),
            action: "a".into(),
            subject: "s".into(),
            outcome: "ok".into(),
            ..AuditEntry::default()
        }],
        ..Commit::default()
    };
    store.commit(audited).await.expect("commit");
    let mut db = raw(dir.path()).await;
    for sql in ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"] {
        let refused = sqlx::query(sql).execute(&mut db).await;
        assert!(refused.is_err(), "{sql}");
    }
    assert_eq!(whole(&store).await, Ok(1));
    // Positive control: retention may.
    assert_eq!(store.prune(0, 51, 9).await.expect("prune"), 1);
}

/// Walks the chain as `longshore audit verify` does.
async fn whole(store: &Sqlite) -> Result<u64, Broken> {
    let mut verifier = Verifier::new(store.audit_ends().await.expect("ends"));
    let mut after = 0;
    loop {
        let query = AuditQuery {
            after: Some(after),
            ..AuditQuery::default()
        };
        let rows = store.audit(query).await.expect("audit");
        let Some(last) = rows.last() else {
            return verifier.end();
        };
        after = last.id;
        for row in &rows {
            verifier.take(row)?;
        }
    }
}

#[tokio::test]
async fn what_is_done_to_the_audit_log_behind_the_scheduler_shows() {
    for (done, found) in [
        (
            "UPDATE audit SET actor = 'eve' WHERE id = 4",
            Broken::Changed(4),
        ),
        (
            "UPDATE audit SET at = at - 1 WHERE id = 1",
            Broken::Changed(1),
        ),
        (
            "UPDATE audit SET hash = x'00' WHERE id = 9",
            Broken::Changed(9),
        ),
        ("DELETE FROM audit WHERE id = 1", Broken::Missing(1)),
        ("DELETE FROM audit WHERE id = 5", Broken::Missing(5)),
        ("DELETE FROM audit WHERE id >= 8", Broken::Missing(8)),
        ("DELETE FROM audit", Broken::Missing(1)),
        (
            "UPDATE audit SET id = 100 WHERE id = 3; UPDATE audit SET id = 3 WHERE id = 6;
             UPDATE audit SET id = 6 WHERE id = 100",
            Broken::Changed(3),
        ),
        (
            "UPDATE audit SET id = id + 1000 WHERE id > 4;
             UPDATE audit SET id = id - 999 WHERE id > 1000;
             INSERT INTO audit SELECT 5, at, actor, action, subject, outcome, detail, request_id,
                    kind, credential, address, surface, trace, hash FROM audit WHERE id = 4",
            Broken::Changed(5),
        ),
        (
            "INSERT INTO audit SELECT 10, at, actor, action, subject, outcome, detail, request_id,
                    kind, credential, address, surface, trace, hash FROM audit WHERE id = 9",
            Broken::Foreign(10),
        ),
    ] {
        let dir = tempfile::tempdir().expect("temporary folder");
        let store = open(dir.path()).await;
        for n in 0..3 {
            let entry = |k: u64| AuditEntry {
                at: 100 + n,
                actor: "ada".into(),
                subject: format!("{n}.{k}"),
                ..AuditEntry::default()
            };
            let audit = (0..3).map(entry).collect();
            let commit = Commit {
                audit,
                ..Commit::default()
            };
            store.commit(commit).await.expect("commit");
        }
        assert_eq!(whole(&store).await, Ok(9));
        let mut db = raw(dir.path()).await;
        let tampered =
            format!("DROP TRIGGER audit_is_never_changed; DROP TRIGGER audit_is_kept; {done}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(tampered))
            .execute(&mut db)
            .await
            .expect(done);
        assert_eq!(whole(&store).await, Err(found), "{done}");
    }
}

#[tokio::test]
async fn an_older_log_is_chained_once_and_never_again() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut db = raw(dir.path()).await;
    sqlx::raw_sql(include_str!("../data/store-version-1.sql"))
        .execute(&mut db)
        .await
        .expect("restore the dump");
    db.close().await.expect("close");
    let store = open(dir.path()).await;
    assert_eq!(whole(&store).await, Ok(1));
    let first = store.audit_ends().await.expect("ends").last;
    store.close().await.expect("close");
    drop(store);
    // A row without a hash, slipped in while nobody looked, is not adopted at the next start.
    let mut db = raw(dir.path()).await;
    sqlx::raw_sql("INSERT INTO audit (at, actor, action, subject, outcome, detail, request_id) VALUES (1, 'eve', 'a', 's', 'ok', '', '')")
        .execute(&mut db)
        .await
        .expect("slipped in");
    db.close().await.expect("close");
    let store = open(dir.path()).await;
    assert_eq!(store.audit_ends().await.expect("ends").last, first);
    assert_eq!(whole(&store).await, Err(Broken::Foreign(first.0 + 1)));
}

#[tokio::test]
async fn half_a_snapshot_is_ignored_and_cleared() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = open(dir.path()).await;
    let at = store
        .commit(commit(vec![forgotten(1)]))
        .await
        .expect("commit");
    let mut db = raw(dir.path()).await;
    // What a crash between two parts leaves.
    sqlx::query("INSERT INTO snapshot_parts (sequence, part, batch) VALUES (1, 0, x'00')")
        .execute(&mut db)
        .await
        .expect("half a snapshot");
    assert_eq!(store.load().await.expect("load").facts, [forgotten(1)]);
    store
        .write_snapshot(0, at, vec![forgotten(5)])
        .await
        .expect("the whole one");
    assert_eq!(store.load().await.expect("load").snapshot, [forgotten(5)]);
}
