//! What changes the database: commits, epochs, retention.

use scheduler_core::{
    fact::Fact,
    model::{JobId, RunnerName, UtcMillis},
};
use serde::Serialize;
use sqlx::{Row, SqliteConnection};

use super::{Shared, audit, database, signed, tokens, unsigned};
use crate::{
    Commit, Error, Raised, format,
    project::{JobPatch, Patches, RunnerPatch, repository_of},
};

/// Letters and digits that are hard to mistake; 32 of them, so that a byte's
/// low five bits choose one.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Names the fleet once: eight random characters.
pub(super) async fn ensure_fleet(writer: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random)
        .map_err(|e| sqlx::Error::Io(std::io::Error::other(e.to_string())))?;
    let fleet_id: String = random
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect();
    sqlx::query("INSERT INTO fleet (one, fleet_id) VALUES (1, ?1) ON CONFLICT DO NOTHING")
        .bind(fleet_id)
        .execute(writer)
        .await
        .map(drop)
}

pub(super) async fn commit(shared: &Shared, commit: Commit) -> Result<u64, Error> {
    const ACTION: &str = "commit";
    let patches = Patches::of(&commit.facts, commit.at);
    let jobs = job_rows(&patches, commit.at)?;
    let runners = runner_rows(&patches)?;
    shared
        .transaction(ACTION, async |db| {
            let failed = |e| shared.failed(ACTION, e);
            let sequence = advance(shared, db, commit.expected_epoch, commit.facts.len()).await?;
            append(db, sequence, &commit.facts, commit.at)
                .await
                .map_err(failed)?;
            if !patches.repositories_gone.is_empty() {
                sqlx::query(DROP_UNSTARTED)
                    .bind(json(&patches.repositories_gone)?)
                    .bind(signed(commit.at))
                    .execute(&mut *db)
                    .await
                    .map_err(failed)?;
            }
            // Jobs first: a runner takes its repository from the job it was given.
            if let Some(jobs) = &jobs {
                let merged = sqlx::query(MERGE_JOBS).bind(jobs).execute(&mut *db).await;
                merged.map_err(failed)?;
            }
            if let Some(runners) = &runners {
                let merged = sqlx::query(MERGE_RUNNERS)
                    .bind(runners)
                    .execute(&mut *db)
                    .await;
                merged.map_err(failed)?;
            }
            settings(db, &commit).await.map_err(failed)?;
            records(db, &commit).await.map_err(failed)?;
            audit::append(shared, db, &commit.audit).await?;
            tokens::change(db, &commit.tokens).await.map_err(failed)?;
            Ok(sequence)
        })
        .await
}

pub(super) async fn raise_epoch(
    shared: &Shared,
    expected: u64,
    at_least: u64,
) -> Result<Raised, Error> {
    const ACTION: &str = "raise the epoch";
    let epoch = at_least.max(expected + 1);
    shared
        .transaction(ACTION, async |db| {
            let sequence = advance(shared, db, expected, 1).await?;
            append(db, sequence, &[Fact::EpochRaised { epoch }], 0)
                .await
                .map_err(|e| shared.failed(ACTION, e))?;
            sqlx::query("UPDATE fleet SET epoch = ?1")
                .bind(signed(epoch))
                .execute(db)
                .await
                .map_err(|e| shared.failed(ACTION, e))?;
            Ok(Raised { epoch, sequence })
        })
        .await
}

pub(super) async fn prune(
    shared: &Shared,
    history_before: UtcMillis,
    audit_before: UtcMillis,
    limit: u32,
) -> Result<u64, Error> {
    const ACTION: &str = "prune";
    const JOBS: &str = "DELETE FROM jobs WHERE id IN
        (SELECT id FROM jobs WHERE phase = 3 AND completed_at < ?1 LIMIT ?2)";
    const RUNNERS: &str = "DELETE FROM runners WHERE name IN
        (SELECT name FROM runners WHERE stage = 6 AND retired_at < ?1 LIMIT ?2)";
    const TOKENS: &str = "DELETE FROM tokens WHERE id IN
        (SELECT id FROM tokens WHERE revoked_at < ?1 OR expires_at < ?1 LIMIT ?2)";
    shared
        .transaction(ACTION, async |db| {
            let failed = |e| shared.failed(ACTION, e);
            sqlx::query("UPDATE fleet SET audit_before = max(audit_before, ?1)")
                .bind(signed(audit_before))
                .execute(&mut *db)
                .await
                .map_err(failed)?;
            let mut gone = audit::prune(db, audit_before, limit)
                .await
                .map_err(failed)?;
            for sql in [JOBS, RUNNERS, TOKENS] {
                let deleted = sqlx::query(sql)
                    .bind(signed(history_before))
                    .bind(i64::from(limit))
                    .execute(&mut *db)
                    .await;
                gone += deleted.map_err(failed)?.rows_affected();
            }
            Ok(gone)
        })
        .await
}

/// Takes `count` sequence numbers, if the epoch still holds; returns the last.
pub(super) async fn advance(
    shared: &Shared,
    db: &mut SqliteConnection,
    expected_epoch: u64,
    count: usize,
) -> Result<u64, Error> {
    let failed = |e| shared.failed("check the epoch", e);
    let taken = sqlx::query(
        "UPDATE fleet SET sequence = sequence + ?1 WHERE epoch = ?2 RETURNING sequence",
    )
    .bind(signed(count as u64))
    .bind(signed(expected_epoch))
    .fetch_optional(&mut *db)
    .await
    .map_err(failed)?;
    match taken {
        Some(row) => Ok(unsigned(row.try_get(0).map_err(failed)?)),
        None => {
            let found: i64 = sqlx::query_scalar("SELECT epoch FROM fleet")
                .fetch_one(db)
                .await
                .map_err(failed)?;
            Err(Error::Fenced {
                expected: expected_epoch,
                found: unsigned(found),
            })
        }
    }
}

async fn append(
    db: &mut SqliteConnection,
    last: u64,
    facts: &[Fact],
    at: UtcMillis,
) -> Result<(), sqlx::Error> {
    if facts.is_empty() {
        return Ok(());
    }
    let first = last + 1 - facts.len() as u64;
    sqlx::query("INSERT INTO facts (last, at, batch) VALUES (?1, ?2, ?3)")
        .bind(signed(last))
        .bind(signed(at))
        .bind(format::encode(first, facts))
        .execute(db)
        .await
        .map(drop)
}

async fn settings(db: &mut SqliteConnection, commit: &Commit) -> Result<(), sqlx::Error> {
    // A handful per day at most: one statement each.
    for (key, value) in &commit.settings {
        let sql = match value {
            Some(_) => {
                "INSERT INTO settings (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            }
            None => "DELETE FROM settings WHERE key = ?1",
        };
        let mut query = sqlx::query(sql).bind(key);
        if let Some(value) = value {
            query = query.bind(value);
        }
        query.execute(&mut *db).await?;
    }
    Ok(())
}

async fn records(db: &mut SqliteConnection, commit: &Commit) -> Result<(), sqlx::Error> {
    // A host joins, a certificate is renewed: few, one statement each.
    for change in &commit.records {
        let sql = match change.value {
            Some(_) => {
                "INSERT INTO records (kind, key, value) VALUES (?1, ?2, ?3)
                 ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value"
            }
            None => "DELETE FROM records WHERE kind = ?1 AND key = ?2",
        };
        let mut query = sqlx::query(sql).bind(change.kind).bind(&change.key);
        if let Some(value) = &change.value {
            query = query.bind(value);
        }
        query.execute(&mut *db).await?;
    }
    Ok(())
}

pub(super) fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|e| database("write rows", e))
}

const DROP_UNSTARTED: &str = "UPDATE jobs
    SET phase = 3, completed_at = coalesce(completed_at, ?2), changed_at = ?2
    WHERE phase < 2 AND repository IN (SELECT value FROM json_each(?1))";

/// Repeats `JobPatch::merge`.
const MERGE_JOBS: &str = "
WITH p AS (
    SELECT value ->> 'id' AS id, value ->> 'run_id' AS run_id, value ->> 'attempt' AS attempt,
           value ->> 'repository' AS repository, value ->> 'scope' AS scope,
           value ->> 'name' AS name, value ->> 'workflow' AS workflow,
           value ->> 'labels' AS labels, value ->> 'phase' AS phase,
           value ->> 'phase_set' AS phase_set, value ->> 'conclusion' AS conclusion,
           value ->> 'runner' AS runner, value ->> 'ours' AS ours,
           value ->> 'created_at' AS created_at, value ->> 'started_at' AS started_at,
           value ->> 'started_fallback' AS started_fallback,
           value ->> 'completed_at' AS completed_at,
           value ->> 'completed_fallback' AS completed_fallback,
           value ->> 'html_url' AS html_url, value ->> 'changed_at' AS changed_at
    FROM json_each(?1)
)
INSERT INTO jobs (id, run_id, attempt, repository, scope, name, workflow, labels, phase,
                  conclusion, runner, ours, created_at, started_at, completed_at, html_url,
                  changed_at)
SELECT p.id, coalesce(p.run_id, j.run_id), coalesce(p.attempt, j.attempt),
       coalesce(p.repository, j.repository), coalesce(p.scope, j.scope),
       coalesce(p.name, j.name), coalesce(p.workflow, j.workflow), coalesce(p.labels, j.labels),
       CASE WHEN p.phase IS NULL THEN j.phase
            WHEN p.phase_set THEN p.phase
            ELSE max(p.phase, coalesce(j.phase, 0)) END,
       coalesce(p.conclusion, j.conclusion), coalesce(p.runner, j.runner),
       coalesce(p.ours, j.ours, 0), coalesce(p.created_at, j.created_at),
       coalesce(p.started_at, j.started_at, p.started_fallback),
       coalesce(p.completed_at, j.completed_at, p.completed_fallback),
       coalesce(p.html_url, j.html_url), p.changed_at
FROM p LEFT JOIN jobs j ON j.id = p.id
WHERE p.run_id IS NOT NULL OR j.id IS NOT NULL
ON CONFLICT (id) DO UPDATE SET
    run_id = excluded.run_id, attempt = excluded.attempt, repository = excluded.repository,
    scope = excluded.scope, name = excluded.name, workflow = excluded.workflow,
    labels = excluded.labels, phase = excluded.phase, conclusion = excluded.conclusion,
    runner = excluded.runner, ours = excluded.ours, created_at = excluded.created_at,
    started_at = excluded.started_at, completed_at = excluded.completed_at,
    html_url = excluded.html_url, changed_at = excluded.changed_at";

/// Repeats `RunnerPatch::merge`.
const MERGE_RUNNERS: &str = "
WITH p AS (
    SELECT value ->> 'name' AS name, value ->> 'node' AS node, value ->> 'pool' AS pool,
           value ->> 'scope' AS scope, value ->> 'repository' AS repository,
           value ->> 'labels' AS labels, value ->> 'cpu_millis' AS cpu_millis,
           value ->> 'memory_bytes' AS memory_bytes, value ->> 'gpus' AS gpus,
           value ->> 'gpu_uuids' AS gpu_uuids, value ->> 'image' AS image,
           value ->> 'profile' AS profile, value ->> 'stage' AS stage,
           value ->> 'stage_set' AS stage_set, value ->> 'github_id' AS github_id,
           value ->> 'container_id' AS container_id, value ->> 'job' AS job,
           value ->> 'placed_at' AS placed_at, value ->> 'registered_at' AS registered_at,
           value ->> 'online_at' AS online_at, value ->> 'busy_at' AS busy_at,
           value ->> 'stopping_at' AS stopping_at, value ->> 'stop_reason' AS stop_reason,
           value ->> 'retired_at' AS retired_at, value ->> 'retire_reason' AS retire_reason,
           value ->> 'exit_code' AS exit_code, value ->> 'exit_cause' AS exit_cause,
           value ->> 'exit_detail' AS exit_detail, value ->> 'cpu_ns' AS cpu_ns,
           value ->> 'peak_memory' AS peak_memory, value ->> 'read_bytes' AS read_bytes,
           value ->> 'written_bytes' AS written_bytes, value ->> 'gpu_memory' AS gpu_memory,
           value ->> 'denied' AS denied
    FROM json_each(?1)
)
INSERT INTO runners (name, node, pool, scope, repository, labels, cpu_millis, memory_bytes, gpus,
                     gpu_uuids, image, profile, stage, github_id, container_id, job, placed_at,
                     registered_at, online_at, busy_at, stopping_at, stop_reason, retired_at,
                     retire_reason, exit_code, exit_cause, exit_detail, cpu_ns, peak_memory,
                     read_bytes, written_bytes, gpu_memory, denied)
SELECT p.name, coalesce(r.node, p.node), coalesce(r.pool, p.pool), coalesce(r.scope, p.scope),
       coalesce((SELECT j.repository FROM jobs j WHERE j.id = p.job),
                CASE WHEN r.name IS NULL THEN p.repository ELSE r.repository END),
       coalesce(r.labels, p.labels), coalesce(r.cpu_millis, p.cpu_millis),
       coalesce(r.memory_bytes, p.memory_bytes), coalesce(r.gpus, p.gpus),
       coalesce(r.gpu_uuids, p.gpu_uuids), coalesce(r.image, p.image),
       coalesce(r.profile, p.profile),
       CASE WHEN r.stage = 6 THEN 6
            WHEN p.stage IS NULL THEN r.stage
            WHEN p.stage_set THEN p.stage
            ELSE max(p.stage, coalesce(r.stage, 0)) END,
       coalesce(p.github_id, r.github_id), coalesce(p.container_id, r.container_id),
       coalesce(p.job, r.job), coalesce(r.placed_at, p.placed_at),
       coalesce(r.registered_at, p.registered_at), coalesce(r.online_at, p.online_at),
       coalesce(r.busy_at, p.busy_at),
       coalesce(r.stopping_at, p.stopping_at),
       CASE WHEN r.stopping_at IS NULL THEN p.stop_reason ELSE r.stop_reason END,
       coalesce(r.retired_at, p.retired_at),
       CASE WHEN r.retired_at IS NULL THEN p.retire_reason ELSE r.retire_reason END,
       CASE WHEN r.retired_at IS NULL THEN p.exit_code ELSE r.exit_code END,
       CASE WHEN r.retired_at IS NULL THEN p.exit_cause ELSE r.exit_cause END,
       CASE WHEN r.retired_at IS NULL THEN p.exit_detail ELSE r.exit_detail END,
       CASE WHEN r.retired_at IS NULL THEN p.cpu_ns ELSE r.cpu_ns END,
       CASE WHEN r.retired_at IS NULL THEN p.peak_memory ELSE r.peak_memory END,
       CASE WHEN r.retired_at IS NULL THEN p.read_bytes ELSE r.read_bytes END,
       CASE WHEN r.retired_at IS NULL THEN p.written_bytes ELSE r.written_bytes END,
       CASE WHEN r.retired_at IS NULL THEN p.gpu_memory ELSE r.gpu_memory END,
       CASE WHEN r.retired_at IS NULL THEN p.denied ELSE r.denied END
FROM p LEFT JOIN runners r ON r.name = p.name
WHERE p.node IS NOT NULL OR r.name IS NOT NULL
ON CONFLICT (name) DO UPDATE SET
    repository = excluded.repository, stage = excluded.stage, github_id = excluded.github_id,
    container_id = excluded.container_id, job = excluded.job,
    registered_at = excluded.registered_at, online_at = excluded.online_at,
    busy_at = excluded.busy_at, stopping_at = excluded.stopping_at,
    stop_reason = excluded.stop_reason, retired_at = excluded.retired_at,
    retire_reason = excluded.retire_reason, exit_code = excluded.exit_code,
    exit_cause = excluded.exit_cause, exit_detail = excluded.exit_detail,
    cpu_ns = excluded.cpu_ns, peak_memory = excluded.peak_memory,
    read_bytes = excluded.read_bytes, written_bytes = excluded.written_bytes,
    gpu_memory = excluded.gpu_memory,
    denied = excluded.denied";

#[derive(Default, Serialize)]
struct JobJson<'a> {
    id: i64,
    run_id: Option<i64>,
    attempt: Option<u32>,
    repository: Option<String>,
    scope: Option<String>,
    name: Option<&'a str>,
    workflow: Option<&'a str>,
    labels: Option<String>,
    phase: Option<i64>,
    phase_set: bool,
    conclusion: Option<&'a str>,
    runner: Option<&'a str>,
    ours: Option<bool>,
    created_at: Option<i64>,
    started_at: Option<i64>,
    started_fallback: Option<i64>,
    completed_at: Option<i64>,
    completed_fallback: Option<i64>,
    html_url: Option<&'a str>,
    changed_at: i64,
}

fn job_rows(patches: &Patches, at: UtcMillis) -> Result<Option<String>, Error> {
    if patches.jobs.is_empty() {
        return Ok(None);
    }
    let rows = patches
        .jobs
        .iter()
        .map(|(id, patch)| job_row(*id, patch, at))
        .collect::<Result<Vec<_>, Error>>()?;
    json(&rows).map(Some)
}

fn job_row(id: JobId, patch: &JobPatch, at: UtcMillis) -> Result<JobJson<'_>, Error> {
    let mut row = JobJson {
        id: signed(id.0),
        phase: patch.phase.map(|(phase, _)| phase as i64),
        phase_set: patch.phase.is_some_and(|(_, set)| set),
        conclusion: patch.conclusion.as_deref(),
        runner: patch.runner.as_ref().map(|(runner, _)| runner.as_str()),
        ours: patch.runner.as_ref().map(|(_, ours)| *ours),
        started_fallback: patch.started_fallback.map(signed),
        completed_fallback: patch.completed_fallback.map(signed),
        changed_at: signed(at),
        ..JobJson::default()
    };
    if let Some(job) = &patch.described {
        row.run_id = Some(signed(job.run_id));
        row.attempt = Some(job.attempt);
        row.repository = Some(job.repository.full_name());
        row.scope = Some(job.scope.to_string());
        row.name = Some(&job.name);
        row.workflow = Some(&job.workflow);
        row.labels = Some(json(&job.labels)?);
        row.created_at = Some(signed(job.created_at));
        row.started_at = job.started_at.map(signed);
        row.completed_at = job.completed_at.map(signed);
        row.html_url = Some(&job.html_url);
    }
    Ok(row)
}

#[derive(Default, Serialize)]
struct RunnerJson<'a> {
    name: &'a str,
    node: Option<&'a str>,
    pool: Option<&'a str>,
    scope: Option<String>,
    repository: Option<String>,
    labels: Option<String>,
    cpu_millis: Option<u32>,
    memory_bytes: Option<i64>,
    gpus: Option<u32>,
    gpu_uuids: Option<String>,
    image: Option<&'a str>,
    profile: Option<&'a str>,
    stage: Option<i64>,
    stage_set: bool,
    github_id: Option<i64>,
    container_id: Option<&'a str>,
    job: Option<i64>,
    placed_at: Option<i64>,
    registered_at: Option<i64>,
    online_at: Option<i64>,
    busy_at: Option<i64>,
    stopping_at: Option<i64>,
    stop_reason: Option<&'a str>,
    retired_at: Option<i64>,
    retire_reason: Option<&'a str>,
    exit_code: Option<i32>,
    exit_cause: Option<&'a str>,
    exit_detail: Option<String>,
    cpu_ns: Option<i64>,
    peak_memory: Option<i64>,
    read_bytes: Option<i64>,
    written_bytes: Option<i64>,
    gpu_memory: Option<i64>,
    denied: Option<String>,
}

fn runner_rows(patches: &Patches) -> Result<Option<String>, Error> {
    if patches.runners.is_empty() {
        return Ok(None);
    }
    let rows = patches
        .runners
        .iter()
        .map(|(name, patch)| runner_row(name, patch))
        .collect::<Result<Vec<_>, Error>>()?;
    json(&rows).map(Some)
}

fn runner_row<'a>(name: &'a RunnerName, patch: &'a RunnerPatch) -> Result<RunnerJson<'a>, Error> {
    let mut row = RunnerJson {
        name: name.as_str(),
        stage: patch.stage.map(|(stage, _)| stage.rank()),
        stage_set: patch.stage.is_some_and(|(_, set)| set),
        github_id: patch.github_id.map(signed),
        container_id: patch.container_id.as_deref(),
        job: patch.job.map(|job| signed(job.0)),
        registered_at: patch.registered_at.map(signed),
        online_at: patch.online_at.map(signed),
        busy_at: patch.busy_at.map(signed),
        stopping_at: patch.stopping.as_ref().map(|(at, _)| signed(*at)),
        stop_reason: patch.stopping.as_ref().map(|(_, why)| why.as_str()),
        ..RunnerJson::default()
    };
    if let Some(placed) = &patch.placed {
        row.node = Some(placed.node.as_str());
        row.pool = Some(placed.pool.as_str());
        row.scope = Some(placed.scope.to_string());
        row.repository = repository_of(placed);
        row.labels = Some(json(&placed.labels)?);
        row.cpu_millis = Some(placed.resources.cpu_millis);
        row.memory_bytes = Some(signed(placed.resources.memory_bytes));
        row.gpus = Some(placed.resources.gpus);
        row.gpu_uuids = Some(json(&placed.gpu_uuids)?);
        row.image = Some(&placed.image);
        row.profile = Some(&placed.profile);
        row.placed_at = Some(signed(placed.at));
    }
    if let Some(retired) = &patch.retired {
        row.retired_at = Some(signed(retired.at));
        row.retire_reason = Some(retired.reason);
        row.exit_code = retired.exit_code();
        row.exit_cause = retired.exit.as_ref().map(|exit| exit.cause.as_str());
        row.exit_detail = retired.detail();
        let usage = retired.exit.as_ref().and_then(|exit| exit.usage);
        row.cpu_ns = usage.map(|u| i64::try_from(u.cpu.as_nanos()).unwrap_or(i64::MAX));
        row.peak_memory = usage.map(|u| signed(u.peak_memory_bytes));
        row.read_bytes = usage.and_then(|u| u.read_bytes).map(signed);
        row.written_bytes = usage.and_then(|u| u.written_bytes).map(signed);
        row.gpu_memory = usage.and_then(|u| u.peak_gpu_memory_bytes).map(signed);
        let denied = retired.exit.as_ref().and_then(|exit| exit.denied.as_ref());
        row.denied = denied
            .map(|denied| json(&super::denied::row(denied)))
            .transpose()?;
    }
    Ok(row)
}
