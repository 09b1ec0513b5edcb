//! One suite for every store.

use std::sync::Arc;

use scheduler_core::{
    fact::{Fact, RetireReason, StopReason},
    input::ObservedPhase,
    model::{Conclusion, JobId, JobPhase, RunnerName},
};
use scheduler_store::{
    AuditEntry, AuditQuery, AuditRow, Commit, Error, JobQuery, Memory, Options, RecordChange,
    RunnerQuery, RunnerStage, Sqlite, Store, TokenChange, TokenRow, chain::Verifier,
};

use super::samples::{every_fact, exit, job, placed};

/// A fresh store and what must outlive it.
async fn sqlite() -> (Sqlite, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = Sqlite::open(Options::new(dir.path())).await.expect("open");
    (store, dir)
}

async fn memory() -> (Memory, ()) {
    (Memory::new("testfleet"), ())
}

macro_rules! suite {
    ($($check:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $check() {
                let (store, _kept) = super::sqlite().await;
                super::$check(&store).await;
            })+
        }
        mod on_memory {
            $(#[tokio::test]
            async fn $check() {
                let (store, _kept) = super::memory().await;
                super::$check(&store).await;
            })+
        }
    };
}

suite!(
    a_fresh_store_knows_its_fleet_and_nothing_else,
    facts_come_back_in_the_order_of_their_commits,
    a_commit_under_an_old_epoch_keeps_nothing,
    raising_the_epoch_is_recorded_and_fences_the_one_before,
    a_snapshot_replaces_the_facts_before_it,
    a_snapshot_of_many_parts_is_read_whole,
    an_old_snapshot_changes_nothing,
    facts_are_followed_in_slices,
    a_job_is_shown_through_its_life,
    a_late_echo_never_takes_a_job_back,
    a_runner_is_shown_through_its_life,
    a_refused_removal_shows_the_runner_busy_again,
    an_organisation_runner_takes_the_repository_of_its_job,
    facts_about_unknown_jobs_and_runners_make_no_rows,
    the_jobs_of_a_repository_that_is_gone_are_over,
    jobs_are_paged_newest_first,
    runners_are_paged_newest_first,
    a_page_token_of_somebody_else_is_refused,
    runners_are_found_by_prefix,
    runs_are_counted_per_repository,
    settings_are_written_with_a_commit,
    records_are_written_with_a_commit_and_read_by_kind,
    the_audit_log_is_read_newest_first,
    the_audit_log_is_filtered_and_read_from_its_start,
    the_audit_chain_holds_through_commits_and_retention,
    tokens_are_made_used_revoked_and_forgotten,
    lists_stay_within_an_owner_or_a_repository,
    retention_deletes_what_ended_and_nothing_else,
    commits_of_many_callers_take_turns,
    a_dropped_commit_is_whole_or_absent,
);

fn commit_of(epoch: u64, facts: Vec<Fact>) -> Commit {
    Commit {
        expected_epoch: epoch,
        at: 5_000,
        facts,
        ..Commit::default()
    }
}

fn learnt(id: u64, phase: JobPhase) -> Fact {
    Fact::JobLearnt {
        job: Arc::new(job(id, phase)),
        at: 1,
    }
}

fn changed(id: u64, phase: JobPhase, conclusion: Option<Conclusion>, at: u64) -> Fact {
    Fact::JobPhaseChanged {
        job: JobId(id),
        phase,
        conclusion,
        at,
    }
}

fn forgotten(id: u64) -> Fact {
    Fact::JobForgotten { job: JobId(id) }
}

fn observed(runner: &str, phase: ObservedPhase, at: u64) -> Fact {
    Fact::RunnerObserved {
        runner: RunnerName::new(runner),
        phase,
        observation: 1,
        worker: phase == ObservedPhase::Busy,
        container_id: "c0ffee".into(),
        at,
    }
}

fn retired(runner: &str, at: u64) -> Fact {
    Fact::RunnerRetired {
        runner: RunnerName::new(runner),
        exit: Some(exit()),
        why: RetireReason::Finished,
        deregister: false,
        at,
    }
}

async fn put(store: &impl Store, facts: Vec<Fact>) -> u64 {
    store.commit(commit_of(0, facts)).await.expect("commit")
}

async fn a_fresh_store_knows_its_fleet_and_nothing_else(store: &impl Store) {
    let loaded = store.load().await.expect("load");
    assert!(loaded.fleet_id.len() >= 8, "{:?}", loaded.fleet_id);
    assert!(
        loaded
            .fleet_id
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    );
    assert_eq!((loaded.epoch, loaded.sequence), (0, 0));
    assert_eq!(loaded.all().count(), 0);
}

async fn facts_come_back_in_the_order_of_their_commits(store: &impl Store) {
    let facts = every_fact();
    let mut sequence = 0;
    for batch in facts.chunks(7) {
        sequence += batch.len() as u64;
        assert_eq!(put(store, batch.to_vec()).await, sequence);
    }
    assert_eq!(put(store, Vec::new()).await, sequence, "an empty commit");
    let loaded = store.load().await.expect("load");
    assert_eq!(loaded.sequence, sequence);
    assert_eq!(loaded.facts, facts);
}

async fn a_commit_under_an_old_epoch_keeps_nothing(store: &impl Store) {
    store.raise_epoch(0, 1).await.expect("raise");
    let before = store.load().await.expect("load");
    let stale = Commit {
        settings: vec![("a".into(), Some("b".into()))],
        audit: vec![entry("x", 1)],
        ..commit_of(0, vec![learnt(1, JobPhase::Queued)])
    };
    let error = store.commit(stale).await.expect_err("fenced");
    assert!(
        matches!(
            error,
            Error::Fenced {
                expected: 0,
                found: 1
            }
        ),
        "{error}"
    );
    assert_eq!(store.load().await.expect("load"), before);
    assert_eq!(store.job(JobId(1)).await.expect("job"), None);
    assert_eq!(store.setting("a").await.expect("setting"), None);
    assert!(newest(store, None, 10).await.is_empty());
    let snapshot = store.write_snapshot(0, 1, Vec::new()).await;
    assert!(matches!(snapshot, Err(Error::Fenced { .. })));
}

async fn raising_the_epoch_is_recorded_and_fences_the_one_before(store: &impl Store) {
    let first = store.raise_epoch(0, 0).await.expect("raise");
    assert_eq!((first.epoch, first.sequence), (1, 1));
    // A node has seen epoch 9.
    let second = store.raise_epoch(1, 9).await.expect("raise");
    assert_eq!((second.epoch, second.sequence), (9, 2));
    assert!(matches!(
        store.raise_epoch(1, 20).await,
        Err(Error::Fenced {
            expected: 1,
            found: 9
        })
    ));
    let loaded = store.load().await.expect("load");
    assert_eq!(loaded.epoch, 9);
    assert_eq!(
        loaded.facts,
        [
            Fact::EpochRaised { epoch: 1 },
            Fact::EpochRaised { epoch: 9 }
        ]
    );
}

async fn a_snapshot_replaces_the_facts_before_it(store: &impl Store) {
    let at = put(store, vec![forgotten(1), forgotten(2)]).await;
    put(store, vec![forgotten(3)]).await;
    store
        .write_snapshot(0, at, vec![forgotten(100)])
        .await
        .expect("snapshot");
    let loaded = store.load().await.expect("load");
    assert_eq!(loaded.snapshot, [forgotten(100)]);
    assert_eq!(loaded.snapshot_sequence, at);
    assert_eq!(loaded.facts, [forgotten(3)]);
    assert_eq!(loaded.sequence, 3);
    assert!(matches!(
        store.facts_after(1, 10).await,
        Err(Error::Compacted {
            after: 1,
            oldest: 2
        })
    ));
    assert_eq!(
        store.facts_after(2, 10).await.expect("facts"),
        [(3, forgotten(3))]
    );
    // And once more over it.
    store
        .write_snapshot(0, 3, vec![forgotten(200)])
        .await
        .expect("snapshot");
    let loaded = store.load().await.expect("load");
    assert_eq!(loaded.snapshot, [forgotten(200)]);
    assert!(loaded.facts.is_empty());
}

async fn a_snapshot_of_many_parts_is_read_whole(store: &impl Store) {
    let at = put(store, vec![forgotten(1)]).await;
    let facts: Vec<_> = (0..12_345).map(forgotten).collect();
    store
        .write_snapshot(0, at, facts.clone())
        .await
        .expect("snapshot");
    assert_eq!(store.load().await.expect("load").snapshot, facts);
}

async fn an_old_snapshot_changes_nothing(store: &impl Store) {
    put(store, vec![forgotten(1)]).await;
    let at = put(store, vec![forgotten(2)]).await;
    store
        .write_snapshot(0, at, vec![forgotten(100)])
        .await
        .expect("snapshot");
    for older in [1, at] {
        store
            .write_snapshot(0, older, vec![forgotten(7)])
            .await
            .expect("ignored");
    }
    let loaded = store.load().await.expect("load");
    assert_eq!(loaded.snapshot, [forgotten(100)]);
    assert_eq!(loaded.snapshot_sequence, at);
}

async fn facts_are_followed_in_slices(store: &impl Store) {
    for id in 0..30 {
        put(store, vec![forgotten(id), forgotten(id + 100)]).await;
    }
    let mut after = 3;
    let mut seen = Vec::new();
    loop {
        let slice = store.facts_after(after, 7).await.expect("facts");
        let Some((last, _)) = slice.last() else { break };
        after = *last;
        seen.extend(slice.into_iter().map(|(sequence, _)| sequence));
    }
    assert_eq!(seen, (4..=60).collect::<Vec<_>>());
}

async fn a_job_is_shown_through_its_life(store: &impl Store) {
    put(store, vec![learnt(70, JobPhase::Queued)]).await;
    let row = store.job(JobId(70)).await.expect("job").expect("row");
    assert_eq!(row.phase, JobPhase::Queued);
    assert_eq!(row.repository, "mona/web");
    assert_eq!(row.labels, ["self-hosted", "linux"]);
    assert_eq!((row.started_at, row.completed_at), (None, None));

    let bound = Fact::JobBound {
        job: JobId(70),
        runner: RunnerName::new("ls-f-1"),
        ours: true,
        at: 2_000,
    };
    put(
        store,
        vec![changed(70, JobPhase::InProgress, None, 2_000), bound],
    )
    .await;
    let row = store.job(JobId(70)).await.expect("job").expect("row");
    assert_eq!(row.phase, JobPhase::InProgress);
    assert_eq!(row.runner.as_deref(), Some("ls-f-1"));
    assert!(row.ours);
    assert_eq!(row.started_at, Some(2_000));

    put(
        store,
        vec![changed(
            70,
            JobPhase::Completed,
            Some(Conclusion::Failure),
            3_000,
        )],
    )
    .await;
    // GitHub's own times arrive with the next sweep and stand over ours.
    let mut seen = job(70, JobPhase::Completed);
    seen.started_at = Some(1_990);
    put(
        store,
        vec![Fact::JobLearnt {
            job: Arc::new(seen),
            at: 3_100,
        }],
    )
    .await;
    let row = store.job(JobId(70)).await.expect("job").expect("row");
    assert_eq!(row.conclusion.as_deref(), Some("failure"));
    assert_eq!(row.started_at, Some(1_990));
    assert_eq!(row.completed_at, Some(3_000));
    assert_eq!(row.runner.as_deref(), Some("ls-f-1"));

    put(store, vec![forgotten(70)]).await;
    let kept = store.job(JobId(70)).await.expect("job").expect("row");
    assert_eq!(kept.completed_at, Some(3_000), "history keeps it");
}

async fn a_late_echo_never_takes_a_job_back(store: &impl Store) {
    put(store, vec![learnt(70, JobPhase::Completed)]).await;
    put(store, vec![learnt(70, JobPhase::Queued)]).await;
    let row = store.job(JobId(70)).await.expect("job").expect("row");
    assert_eq!(row.phase, JobPhase::Completed);
}

async fn a_runner_is_shown_through_its_life(store: &impl Store) {
    let name = "ls-f-1";
    let runner = RunnerName::new(name);
    put(store, vec![learnt(70, JobPhase::Queued)]).await;
    let stage = async || {
        let mut page = store.runners(RunnerQuery {
            include_finished: true,
            ..RunnerQuery::default()
        });
        let _ = &mut page;
        page.await.expect("runners").items.remove(0)
    };
    put(
        store,
        vec![Fact::RunnerPlaced(Arc::new(placed(name, "n1", 100)))],
    )
    .await;
    let row = stage().await;
    assert_eq!(row.stage, RunnerStage::Reserved);
    assert_eq!(row.resources.gpus, 1);
    assert_eq!(row.gpu_uuids, ["GPU-1"]);
    assert_eq!(row.repository.as_deref(), Some("mona/web"));

    put(
        store,
        vec![
            observed(name, ObservedPhase::Ready, 110),
            Fact::RunnerRegistered {
                runner: runner.clone(),
                github_id: 9,
                at: 120,
            },
        ],
    )
    .await;
    let row = stage().await;
    assert_eq!(row.stage, RunnerStage::Registered);
    assert_eq!((row.github_id, row.registered_at), (Some(9), Some(120)));
    assert_eq!(row.container_id.as_deref(), Some("c0ffee"));

    put(store, vec![observed(name, ObservedPhase::Consumed, 130)]).await;
    assert_eq!(stage().await.stage, RunnerStage::Starting);
    put(store, vec![observed(name, ObservedPhase::Online, 140)]).await;
    let row = stage().await;
    assert_eq!((row.stage, row.online_at), (RunnerStage::Idle, Some(140)));

    let bound = Fact::JobBound {
        job: JobId(70),
        runner: runner.clone(),
        ours: true,
        at: 150,
    };
    put(store, vec![bound, observed(name, ObservedPhase::Busy, 160)]).await;
    let row = stage().await;
    assert_eq!(row.stage, RunnerStage::Busy);
    assert_eq!((row.busy_at, row.job), (Some(150), Some(JobId(70))));

    put(store, vec![retired(name, 170)]).await;
    // A late word of the node changes nothing any more.
    put(
        store,
        vec![observed(name, ObservedPhase::Busy, 180), retired(name, 190)],
    )
    .await;
    let row = stage().await;
    assert_eq!(
        (row.stage, row.retired_at),
        (RunnerStage::Retired, Some(170))
    );
    assert_eq!(row.retire_reason.as_deref(), Some("finished"));
    assert_eq!(row.exit_code, Some(-9));
    assert_eq!(row.exit_cause.as_deref(), Some("out_of_memory"));
    assert_eq!(row.usage, exit().usage);
    assert_eq!(row.denied, exit().denied);
    let alive = store.runners(RunnerQuery::default()).await.expect("alive");
    assert!(alive.items.is_empty());
}

async fn a_refused_removal_shows_the_runner_busy_again(store: &impl Store) {
    let name = "ls-f-1";
    put(
        store,
        vec![
            Fact::RunnerPlaced(Arc::new(placed(name, "n1", 100))),
            observed(name, ObservedPhase::Online, 110),
            Fact::RunnerStopping {
                runner: RunnerName::new(name),
                why: StopReason::Idle,
                at: 120,
            },
        ],
    )
    .await;
    let stage = async || {
        let page = store
            .runners(RunnerQuery::default())
            .await
            .expect("runners");
        let row = page.items[0].clone();
        (row.stage, row.stop_reason)
    };
    assert_eq!(
        stage().await,
        (RunnerStage::Stopping, Some("idle".to_owned()))
    );
    put(store, vec![observed(name, ObservedPhase::Online, 125)]).await;
    assert_eq!(stage().await.0, RunnerStage::Stopping);
    put(store, vec![observed(name, ObservedPhase::Busy, 130)]).await;
    assert_eq!(stage().await.0, RunnerStage::Busy);
}

async fn an_organisation_runner_takes_the_repository_of_its_job(store: &impl Store) {
    let mut there = placed("ls-f-1", "n1", 100);
    *Arc::make_mut(&mut there.scope) = scheduler_core::model::Scope::Organization {
        login: "mona".into(),
    };
    there.repository = Some("mona/other".into());
    let bound = Fact::JobBound {
        job: JobId(70),
        runner: RunnerName::new("ls-f-1"),
        ours: true,
        at: 150,
    };
    put(store, vec![Fact::RunnerPlaced(Arc::new(there))]).await;
    put(store, vec![learnt(70, JobPhase::Queued), bound]).await;
    let of = async |repository: &str| {
        let query = RunnerQuery {
            repository: Some(repository.to_owned()),
            ..RunnerQuery::default()
        };
        store.runners(query).await.expect("runners").items.len()
    };
    assert_eq!((of("mona/web").await, of("mona/other").await), (1, 0));
}

async fn facts_about_unknown_jobs_and_runners_make_no_rows(store: &impl Store) {
    put(
        store,
        vec![
            changed(1, JobPhase::Queued, None, 1),
            retired("ls-f-1", 1),
            forgotten(2),
        ],
    )
    .await;
    let jobs = store.jobs(JobQuery::default()).await.expect("jobs");
    assert!(jobs.items.is_empty());
    let all = RunnerQuery {
        include_finished: true,
        ..RunnerQuery::default()
    };
    assert!(store.runners(all).await.expect("runners").items.is_empty());
}

async fn the_jobs_of_a_repository_that_is_gone_are_over(store: &impl Store) {
    put(
        store,
        vec![learnt(1, JobPhase::Queued), learnt(2, JobPhase::InProgress)],
    )
    .await;
    let gone = Fact::RepositoryGone {
        id: 77,
        full_name: "mona/web".into(),
    };
    put(store, vec![learnt(3, JobPhase::Waiting), gone]).await;
    let phases: Vec<_> = store
        .jobs(JobQuery::default())
        .await
        .expect("jobs")
        .items
        .iter()
        .map(|job| (job.id.0, job.phase, job.completed_at))
        .collect();
    assert_eq!(
        phases,
        [
            (3, JobPhase::Completed, Some(5_000)),
            (2, JobPhase::InProgress, None),
            (1, JobPhase::Completed, Some(5_000)),
        ]
    );
}

async fn jobs_are_paged_newest_first(store: &impl Store) {
    let facts = (1..=250).map(|id| {
        learnt(
            id,
            if id % 2 == 0 {
                JobPhase::Queued
            } else {
                JobPhase::Completed
            },
        )
    });
    put(store, facts.collect()).await;
    let mut seen = Vec::new();
    let mut query = JobQuery {
        phase: Some(JobPhase::Queued),
        repository: Some("mona/web".into()),
        page_size: 50,
        ..JobQuery::default()
    };
    let mut pages = 0;
    loop {
        let page = store.jobs(query.clone()).await.expect("page");
        pages += 1;
        assert!(page.items.len() <= 50);
        seen.extend(page.items.iter().map(|job| job.id.0));
        match page.next {
            Some(token) => query.page_token = Some(token),
            None => break,
        }
    }
    assert_eq!(pages, 3);
    assert_eq!(seen, (1..=125).rev().map(|n| n * 2).collect::<Vec<u64>>());
    let other = JobQuery {
        repository: Some("mona/other".into()),
        ..JobQuery::default()
    };
    assert!(store.jobs(other).await.expect("page").items.is_empty());
}

async fn runners_are_paged_newest_first(store: &impl Store) {
    let mut facts: Vec<_> = (0..25)
        .map(|n| {
            let node = if n % 5 == 0 { "n2" } else { "n1" };
            // Several of one moment, so that the name decides.
            Fact::RunnerPlaced(Arc::new(placed(&format!("ls-f-{n:02}"), node, n / 4)))
        })
        .collect();
    facts.push(retired("ls-f-24", 1));
    put(store, facts).await;
    let mut seen = Vec::new();
    let mut query = RunnerQuery {
        node: Some("n1".into()),
        page_size: 7,
        ..RunnerQuery::default()
    };
    loop {
        let page = store.runners(query.clone()).await.expect("page");
        seen.extend(page.items.iter().map(|r| r.name.to_string()));
        match page.next {
            Some(token) => query.page_token = Some(token),
            None => break,
        }
    }
    let want: Vec<_> = (0..24)
        .rev()
        .filter(|n| n % 5 != 0)
        .map(|n| format!("ls-f-{n:02}"))
        .collect();
    assert_eq!(seen, want);
}

async fn a_page_token_of_somebody_else_is_refused(store: &impl Store) {
    let jobs = JobQuery {
        page_token: Some("x'; DROP TABLE jobs".into()),
        ..JobQuery::default()
    };
    assert!(matches!(store.jobs(jobs).await, Err(Error::BadPageToken)));
    let runners = RunnerQuery {
        page_token: Some("nothing".into()),
        ..RunnerQuery::default()
    };
    assert!(matches!(
        store.runners(runners).await,
        Err(Error::BadPageToken)
    ));
}

async fn runners_are_found_by_prefix(store: &impl Store) {
    put(
        store,
        vec![
            Fact::RunnerPlaced(Arc::new(placed("ls-f-aa", "n1", 1))),
            Fact::RunnerPlaced(Arc::new(placed("ls-f-ab", "n1", 2))),
            observed("ls-f-ab", ObservedPhase::Ready, 3),
        ],
    )
    .await;
    let find = async |prefix: &str| -> Vec<String> {
        let found = store.runners_by_prefix(prefix, 2).await.expect("find");
        found.iter().map(|r| r.name.to_string()).collect()
    };
    assert_eq!(find("ls-f-a").await, ["ls-f-ab", "ls-f-aa"]);
    assert_eq!(find("ls-f-aa").await, ["ls-f-aa"]);
    assert_eq!(find("c0ff").await, ["ls-f-ab"]);
    assert!(find("ls-f-_").await.is_empty(), "no wildcards");
    assert!(find("%").await.is_empty(), "no wildcards");
}

async fn runs_are_counted_per_repository(store: &impl Store) {
    let mut other = job(41, JobPhase::InProgress);
    other.repository.name = "api".into();
    put(
        store,
        vec![
            // Run 1: two jobs failed. Run 2: one waits, one queued.
            learnt(10, JobPhase::Queued),
            learnt(11, JobPhase::Queued),
            changed(10, JobPhase::Completed, Some(Conclusion::Failure), 9),
            changed(11, JobPhase::Completed, Some(Conclusion::TimedOut), 9),
            learnt(20, JobPhase::Queued),
            learnt(21, JobPhase::Waiting),
            Fact::JobLearnt {
                job: Arc::new(other),
                at: 1,
            },
        ],
    )
    .await;
    let counts = store.repository_counts(0, None).await.expect("counts");
    let flat: Vec<_> = counts
        .iter()
        .map(|c| {
            (
                c.repository.as_str(),
                c.runs,
                c.running,
                c.pending,
                c.failed,
            )
        })
        .collect();
    assert_eq!(flat, [("mona/api", 1, 1, 0, 0), ("mona/web", 2, 0, 1, 1)]);
    let after = store.repository_counts(0, Some("mona/api".into())).await;
    assert_eq!(after.expect("counts").len(), 1);
    // Created at 1,000 + id.
    let late = store.repository_counts(1_021, None).await.expect("counts");
    let flat: Vec<_> = late
        .iter()
        .map(|c| (c.repository.as_str(), c.runs))
        .collect();
    assert_eq!(flat, [("mona/api", 1), ("mona/web", 1)]);
}

async fn settings_are_written_with_a_commit(store: &impl Store) {
    let set = |key: &str, value: Option<&str>| Commit {
        settings: vec![(key.to_owned(), value.map(str::to_owned))],
        ..commit_of(0, Vec::new())
    };
    for value in [Some("{\"max\":1}"), Some("{\"max\":2}"), None] {
        store.commit(set("autoscaler", value)).await.expect("set");
        let read = store.setting("autoscaler").await.expect("setting");
        assert_eq!(read.as_deref(), value);
    }
}

async fn records_are_written_with_a_commit_and_read_by_kind(store: &impl Store) {
    let set = |kind: &'static str, key: &str, value: Option<&str>| RecordChange {
        kind,
        key: key.to_owned(),
        value: value.map(str::to_owned),
    };
    let commit = async |records: Vec<RecordChange>| {
        let commit = Commit {
            records,
            ..commit_of(0, Vec::new())
        };
        store.commit(commit).await.expect("commit")
    };
    commit(vec![
        set("token", "b", Some("1")),
        set("token", "a", Some("2")),
        set("tokens", "c", Some("3")),
    ])
    .await;
    commit(vec![set("token", "b", Some("4")), set("tokens", "c", None)]).await;
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let read = store.records("token").await.expect("records");
    assert_eq!(read, [pair("a", "2"), pair("b", "4")]);
    assert!(store.records("tokens").await.expect("records").is_empty());
}

fn entry(subject: &str, at: u64) -> AuditEntry {
    AuditEntry {
        at,
        actor: "local".into(),
        action: "FleetService/StopRunner".into(),
        subject: subject.into(),
        outcome: "ok".into(),
        detail: "quote \" and \u{1F600}".into(),
        request_id: "r-1".into(),
        ..AuditEntry::default()
    }
}

async fn newest(store: &impl Store, before: Option<u64>, limit: u32) -> Vec<AuditRow> {
    let query = AuditQuery {
        before,
        limit,
        ..AuditQuery::default()
    };
    store.audit(query).await.expect("audit")
}

async fn the_audit_log_is_read_newest_first(store: &impl Store) {
    for n in 0..3 {
        let commit = Commit {
            audit: vec![entry(&format!("{n}a"), n), entry(&format!("{n}b"), n)],
            ..commit_of(0, Vec::new())
        };
        store.commit(commit).await.expect("commit");
    }
    let first = newest(store, None, 4).await;
    let subjects = |rows: &[scheduler_store::AuditRow]| -> Vec<String> {
        rows.iter().map(|r| r.entry.subject.clone()).collect()
    };
    assert_eq!(subjects(&first), ["2b", "2a", "1b", "1a"]);
    assert_eq!(first[0].entry, entry("2b", 2));
    let rest = newest(store, Some(first[3].id), 4).await;
    assert_eq!(subjects(&rest), ["0b", "0a"]);
}

async fn record(store: &impl Store, entries: Vec<AuditEntry>) {
    let commit = Commit {
        audit: entries,
        ..commit_of(0, Vec::new())
    };
    store.commit(commit).await.expect("commit");
}

async fn the_audit_log_is_filtered_and_read_from_its_start(store: &impl Store) {
    let by = |actor: &str, outcome: &str, at| AuditEntry {
        actor: actor.into(),
        outcome: outcome.into(),
        ..entry("s", at)
    };
    let entries = vec![
        by("ada", "ok", 1),
        by("eve", "denied", 2),
        by("ada", "denied", 3),
    ];
    record(store, entries).await;
    let ids = |query: AuditQuery| async {
        let rows = store.audit(query).await.expect("audit");
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    let any = AuditQuery::default;
    let ada = Some("ada".to_owned());
    let denied = Some("denied".to_owned());
    assert_eq!(ids(any()).await, [3, 2, 1]);
    assert_eq!(
        ids(AuditQuery {
            actor: ada.clone(),
            ..any()
        })
        .await,
        [3, 1]
    );
    assert_eq!(
        ids(AuditQuery {
            outcome: denied.clone(),
            ..any()
        })
        .await,
        [3, 2]
    );
    let both = AuditQuery {
        actor: ada,
        outcome: denied,
        ..any()
    };
    assert_eq!(ids(both).await, [3]);
    assert_eq!(ids(AuditQuery { since: 2, ..any() }).await, [3, 2]);
    let action = AuditQuery {
        action: Some("other".into()),
        ..any()
    };
    assert!(ids(action).await.is_empty());
    let subject = AuditQuery {
        subject: Some("s".into()),
        limit: 1,
        ..any()
    };
    assert_eq!(ids(subject).await, [3]);
    assert_eq!(
        ids(AuditQuery {
            after: Some(0),
            limit: 2,
            ..any()
        })
        .await,
        [1, 2]
    );
    assert_eq!(
        ids(AuditQuery {
            after: Some(2),
            ..any()
        })
        .await,
        [3]
    );
}

async fn verify(store: &impl Store) -> u64 {
    let mut verifier = Verifier::new(store.audit_ends().await.expect("ends"));
    let mut after = 0;
    loop {
        let query = AuditQuery {
            after: Some(after),
            limit: 2,
            ..AuditQuery::default()
        };
        let rows = store.audit(query).await.expect("audit");
        let Some(last) = rows.last() else { break };
        after = last.id;
        for row in &rows {
            verifier.take(row).expect("whole");
        }
    }
    verifier.end().expect("whole")
}

async fn the_audit_chain_holds_through_commits_and_retention(store: &impl Store) {
    assert_eq!(verify(store).await, 0);
    record(store, vec![entry("a", 10), entry("b", 20)]).await;
    // Its time is older than that of the row before: it is kept as long as that one.
    record(store, vec![entry("c", 15)]).await;
    record(store, vec![entry("d", 40)]).await;
    assert_eq!(verify(store).await, 4);
    assert_eq!(store.prune(0, 18, 10).await.expect("prune"), 1);
    assert_eq!(verify(store).await, 3);
    assert_eq!(store.prune(0, 30, 1).await.expect("prune"), 1);
    assert_eq!(store.prune(0, 30, 1).await.expect("prune"), 1);
    assert_eq!(store.prune(0, 30, 1).await.expect("prune"), 0);
    assert_eq!(verify(store).await, 1);
    assert_eq!(store.prune(0, 100, 10).await.expect("prune"), 1);
    assert_eq!(verify(store).await, 0);
    record(store, vec![entry("e", 200)]).await;
    assert_eq!(verify(store).await, 1);
    assert_eq!(newest(store, None, 9).await[0].id, 5);
}

async fn tokens_are_made_used_revoked_and_forgotten(store: &impl Store) {
    let row = |id: &str, at| TokenRow {
        id: id.into(),
        name: "ci".into(),
        hash: [7; 32],
        role: "viewer".into(),
        scope: "acme/web".into(),
        created_at: at,
        created_by: "local".into(),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    };
    let change = |changes: Vec<TokenChange>| async {
        let commit = Commit {
            tokens: changes,
            ..commit_of(0, Vec::new())
        };
        store.commit(commit).await.expect("commit");
    };
    let short = TokenRow {
        expires_at: Some(900),
        ..row("c", 3)
    };
    change(vec![
        TokenChange::Made(row("b", 2)),
        TokenChange::Made(row("a", 1)),
        TokenChange::Made(short.clone()),
    ])
    .await;
    let of = |id: &str, at| (id.to_owned(), at);
    let tokens = store.tokens().await.expect("tokens");
    assert_eq!(tokens, [row("a", 1), row("b", 2), short]);
    for (id, at) in [of("a", 50), of("a", 40), of("nobody", 1)] {
        change(vec![TokenChange::Used { id, at }]).await;
    }
    for (id, at) in [of("b", 60), of("b", 70), of("nobody", 1)] {
        change(vec![TokenChange::Revoked { id, at }]).await;
    }
    let tokens = store.tokens().await.expect("tokens");
    assert_eq!(tokens[0].last_used_at, Some(50));
    assert_eq!(tokens[1].revoked_at, Some(60));
    assert_eq!(store.prune(60, 0, 10).await.expect("prune"), 0);
    assert_eq!(store.prune(61, 0, 10).await.expect("prune"), 1);
    assert_eq!(store.prune(901, 0, 10).await.expect("prune"), 1);
    let left = store.tokens().await.expect("tokens");
    assert_eq!(
        left.iter().map(|t| t.id.as_str()).collect::<Vec<_>>(),
        ["a"]
    );
}

async fn lists_stay_within_an_owner_or_a_repository(store: &impl Store) {
    let of = |id: u64, owner: &str, name: &str| {
        let mut seen = job(id, JobPhase::Queued);
        seen.repository.owner = owner.into();
        seen.repository.name = name.into();
        Fact::JobLearnt {
            job: Arc::new(seen),
            at: 1,
        }
    };
    let runner = |name: &str, at, scope| {
        let mut placed = placed(name, "n1", at);
        placed.scope = Arc::new(scope);
        placed.repository = None;
        Fact::RunnerPlaced(Arc::new(placed))
    };
    let repository = |owner: &str, repo: &str| scheduler_core::model::Scope::Repository {
        owner: owner.into(),
        repo: repo.into(),
    };
    let organization = |login: &str| scheduler_core::model::Scope::Organization {
        login: login.into(),
    };
    put(
        store,
        vec![
            of(1, "Acme", "web"),
            of(2, "acme", "api"),
            of(3, "acme2", "web"),
            of(4, "acmeX", "web"),
            runner("ls-f-1", 1, repository("acme", "Web")),
            runner("ls-f-2", 2, repository("acme2", "web")),
            runner("ls-f-3", 3, organization("ACME")),
            runner("ls-f-4", 4, organization("other")),
        ],
    )
    .await;
    for (within, jobs, runners) in [
        ("acme", vec![2, 1], vec!["ls-f-3", "ls-f-1"]),
        ("acme/web", vec![1], vec!["ls-f-1"]),
        ("acme_", vec![], vec![]),
        ("acme%", vec![], vec![]),
        ("acm", vec![], vec![]),
    ] {
        let within = Some(within.to_owned());
        let query = JobQuery {
            within: within.clone(),
            ..JobQuery::default()
        };
        let found = store.jobs(query).await.expect("jobs").items;
        let ids: Vec<u64> = found.iter().map(|job| job.id.0).collect();
        assert_eq!(ids, jobs, "{within:?}");
        let query = RunnerQuery {
            within: within.clone(),
            ..RunnerQuery::default()
        };
        let found = store.runners(query).await.expect("runners").items;
        let names: Vec<&str> = found.iter().map(|runner| runner.name.as_str()).collect();
        assert_eq!(names, runners, "{within:?}");
    }
}

async fn retention_deletes_what_ended_and_nothing_else(store: &impl Store) {
    let commit = Commit {
        audit: vec![entry("old", 10), entry("new", 5_000)],
        ..commit_of(
            0,
            vec![
                learnt(1, JobPhase::Queued),
                learnt(2, JobPhase::Queued),
                learnt(3, JobPhase::Queued),
                changed(2, JobPhase::Completed, None, 100),
                changed(3, JobPhase::Completed, None, 5_000),
                Fact::RunnerPlaced(Arc::new(placed("ls-f-1", "n1", 1))),
                Fact::RunnerPlaced(Arc::new(placed("ls-f-2", "n1", 2))),
                Fact::RunnerPlaced(Arc::new(placed("ls-f-3", "n1", 3))),
                retired("ls-f-2", 100),
                retired("ls-f-3", 5_000),
            ],
        )
    };
    store.commit(commit).await.expect("commit");
    assert_eq!(store.prune(1_000, 1_000, 10).await.expect("prune"), 3);
    assert_eq!(store.prune(1_000, 1_000, 10).await.expect("prune"), 0);
    let jobs = store.jobs(JobQuery::default()).await.expect("jobs").items;
    assert_eq!(jobs.iter().map(|j| j.id.0).collect::<Vec<_>>(), [3, 1]);
    let all = RunnerQuery {
        include_finished: true,
        ..RunnerQuery::default()
    };
    let runners = store.runners(all).await.expect("runners").items;
    let names: Vec<_> = runners.iter().map(|r| r.name.to_string()).collect();
    assert_eq!(names, ["ls-f-3", "ls-f-1"]);
    let audit = newest(store, None, 10).await;
    assert_eq!(audit.len(), 1);
    assert_eq!(audit[0].entry.subject, "new");
    // The facts stay: they are the truth.
    assert_eq!(store.load().await.expect("load").facts.len(), 10);
}

async fn commits_of_many_callers_take_turns(store: &impl Store) {
    let commits = (0..40).map(|n| {
        store.commit(commit_of(
            0,
            vec![learnt(n, JobPhase::Queued), forgotten(1_000 + n)],
        ))
    });
    let mut sequences: Vec<_> = futures_util::future::join_all(commits)
        .await
        .into_iter()
        .map(|done| done.expect("commit"))
        .collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=40).map(|n| n * 2).collect::<Vec<u64>>());
    assert_eq!(store.load().await.expect("load").facts.len(), 80);
}

async fn a_dropped_commit_is_whole_or_absent(store: &impl Store) {
    use futures_util::FutureExt;
    for n in 0..20 {
        let facts = vec![learnt(n, JobPhase::Queued), forgotten(1_000 + n)];
        // Polled once, so that it has begun, then dropped.
        let _ = store.commit(commit_of(0, facts)).now_or_never();
    }
    let sequence = put(store, vec![forgotten(9_999)]).await;
    let loaded = store.load().await.expect("load");
    assert_eq!(loaded.sequence, sequence);
    assert_eq!(loaded.facts.len() as u64, sequence);
    assert_eq!(loaded.facts.len() % 2, 1, "pairs and the last one");
    let rows = store.jobs(JobQuery::default()).await.expect("jobs").items;
    assert_eq!(rows.len(), loaded.facts.len() / 2);
}
