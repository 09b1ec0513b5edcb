//! What people and programs read. Never on the writing connection.

use std::time::Duration;

use scheduler_core::model::{Denied, JobId, JobPhase, Resources, RunnerName, Usage, UtcMillis};
use sqlx::{QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

use super::{Shared, signed, unsigned};
use crate::{
    Error, JobQuery, JobRow, Page, RepositoryCounts, RunnerQuery, RunnerRow, RunnerStage,
    rows::{RunnerCursor, job_cursor, page_size},
};

pub(super) async fn jobs(shared: &Shared, query: JobQuery) -> Result<Page<JobRow>, Error> {
    let before = job_cursor(query.page_token.as_deref())?;
    let size = page_size(query.page_size);
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM jobs WHERE id < ");
    sql.push_bind(before.map_or(i64::MAX, |id| signed(id.0)));
    if let Some(repository) = query.repository {
        sql.push(" AND repository = ").push_bind(repository);
    }
    if let Some(within) = &query.within {
        sql.push(" AND repository LIKE ").push_bind(pattern(within));
        sql.push(" ESCAPE '\\'");
    }
    if let Some(phase) = query.phase {
        sql.push(" AND phase = ").push_bind(phase as i64);
        if phase != JobPhase::Completed {
            // Lets the planner take the index of unfinished jobs.
            sql.push(" AND phase < 3");
        }
    }
    sql.push(" ORDER BY id DESC LIMIT ")
        .push_bind(i64::from(size) + 1);
    let rows = fetch(shared, "list jobs", sql, job_row).await?;
    Ok(page(rows, size, |job| job.id.0.to_string()))
}

pub(super) async fn job(shared: &Shared, id: JobId) -> Result<Option<JobRow>, Error> {
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM jobs WHERE id = ");
    sql.push_bind(signed(id.0));
    Ok(fetch(shared, "read a job", sql, job_row).await?.pop())
}

pub(super) async fn runners(shared: &Shared, query: RunnerQuery) -> Result<Page<RunnerRow>, Error> {
    let before = RunnerCursor::parse(query.page_token.as_deref())?;
    let size = page_size(query.page_size);
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM runners WHERE true");
    if let Some(before) = before {
        sql.push(" AND (placed_at, name) < (")
            .push_bind(signed(before.placed_at))
            .push(", ")
            .push_bind(before.name)
            .push(")");
    }
    if !query.include_finished {
        sql.push(" AND stage < 6");
    }
    if let Some(node) = query.node {
        sql.push(" AND node = ").push_bind(node);
    }
    if let Some(repository) = query.repository {
        sql.push(" AND repository = ").push_bind(repository);
    }
    if let Some(within) = query.within {
        sql.push(" AND (repository LIKE ")
            .push_bind(pattern(&within));
        sql.push(" ESCAPE '\\' OR (repository IS NULL AND scope = ");
        sql.push_bind(within).push(" COLLATE NOCASE))");
    }
    sql.push(" ORDER BY placed_at DESC, name DESC LIMIT ")
        .push_bind(i64::from(size) + 1);
    let rows = fetch(shared, "list runners", sql, runner_row).await?;
    Ok(page(rows, size, |r| RunnerCursor::of(r).to_string()))
}

pub(super) async fn runners_by_prefix(
    shared: &Shared,
    prefix: &str,
    limit: u32,
) -> Result<Vec<RunnerRow>, Error> {
    // Names and container ids are ASCII, so this is above all that begin with it.
    let end = format!("{prefix}\u{10ffff}");
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM runners WHERE (name >= ");
    sql.push_bind(prefix.to_owned())
        .push(" AND name < ")
        .push_bind(end.clone())
        .push(") OR (container_id IS NOT NULL AND container_id >= ")
        .push_bind(prefix.to_owned())
        .push(" AND container_id < ")
        .push_bind(end)
        .push(") ORDER BY placed_at DESC, name DESC LIMIT ")
        .push_bind(i64::from(page_size(limit)));
    fetch(shared, "find a runner", sql, runner_row).await
}

pub(super) async fn repository_counts(
    shared: &Shared,
    since: UtcMillis,
    after: Option<String>,
) -> Result<Vec<RepositoryCounts>, Error> {
    let mut sql = QueryBuilder::<Sqlite>::new(
        "SELECT repository, count(DISTINCT run_id), sum(phase = 2), sum(phase = 1),
                count(DISTINCT CASE WHEN conclusion IN ('failure', 'timed_out') THEN run_id END)
         FROM jobs WHERE repository > ",
    );
    sql.push_bind(after.unwrap_or_default())
        .push(" AND created_at >= ")
        .push_bind(signed(since))
        .push(" GROUP BY repository ORDER BY repository LIMIT ")
        .push_bind(i64::from(crate::PAGE_MAX));
    fetch(shared, "count runs", sql, |row| {
        Ok(RepositoryCounts {
            repository: row.try_get(0)?,
            runs: row.try_get(1)?,
            running: row.try_get(2)?,
            pending: row.try_get(3)?,
            failed: row.try_get(4)?,
        })
    })
    .await
}

pub(super) async fn setting(shared: &Shared, key: &str) -> Result<Option<String>, Error> {
    sqlx::query_scalar("SELECT value FROM settings WHERE key = ?1")
        .bind(key)
        .fetch_optional(&shared.readers)
        .await
        .map_err(|e| shared.failed("read a setting", e))
}

pub(super) async fn records(shared: &Shared, kind: &str) -> Result<Vec<(String, String)>, Error> {
    sqlx::query_as("SELECT key, value FROM records WHERE kind = ?1 ORDER BY key")
        .bind(kind)
        .fetch_all(&shared.readers)
        .await
        .map_err(|e| shared.failed("read records", e))
}

pub(super) async fn fetch<T>(
    shared: &Shared,
    action: &'static str,
    mut sql: QueryBuilder<Sqlite>,
    read: impl Fn(&SqliteRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, Error> {
    let rows = sql.build().fetch_all(&shared.readers).await;
    rows.map_err(|e| shared.failed(action, e))?
        .iter()
        .map(|row| read(row).map_err(|e| shared.failed(action, e)))
        .collect()
}

/// What lies within an owner or is one repository. LIKE compares ASCII whatever the case, as GitHub does.
fn pattern(within: &str) -> String {
    let mut pattern = String::with_capacity(within.len() + 2);
    for letter in within.chars() {
        if matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    if !within.contains('/') {
        pattern.push_str("/%");
    }
    pattern
}

fn page<T>(mut items: Vec<T>, size: u32, token: impl Fn(&T) -> String) -> Page<T> {
    let more = items.len() > size as usize;
    items.truncate(size as usize);
    let next = more.then(|| items.last().map(token)).flatten();
    Page { items, next }
}

fn job_row(row: &SqliteRow) -> Result<JobRow, sqlx::Error> {
    let phase: i64 = row.try_get("phase")?;
    Ok(JobRow {
        id: JobId(unsigned(row.try_get("id")?)),
        run_id: unsigned(row.try_get("run_id")?),
        attempt: row.try_get("attempt")?,
        repository: row.try_get("repository")?,
        scope: row.try_get("scope")?,
        name: row.try_get("name")?,
        workflow: row.try_get("workflow")?,
        labels: list(row, "labels")?,
        phase: [
            JobPhase::Waiting,
            JobPhase::Queued,
            JobPhase::InProgress,
            JobPhase::Completed,
        ]
        .into_iter()
        .find(|p| *p as i64 == phase)
        .ok_or_else(|| unreadable("phase", phase))?,
        conclusion: row.try_get("conclusion")?,
        runner: row.try_get("runner")?,
        ours: row.try_get("ours")?,
        created_at: unsigned(row.try_get("created_at")?),
        started_at: number(row, "started_at")?,
        completed_at: number(row, "completed_at")?,
        html_url: row.try_get("html_url")?,
        changed_at: unsigned(row.try_get("changed_at")?),
    })
}

fn runner_row(row: &SqliteRow) -> Result<RunnerRow, sqlx::Error> {
    let stage: i64 = row.try_get("stage")?;
    let cpu: Option<i64> = row.try_get("cpu_ns")?;
    let peak: Option<i64> = row.try_get("peak_memory")?;
    let (read_bytes, written_bytes) = (number(row, "read_bytes")?, number(row, "written_bytes")?);
    let peak_gpu_memory_bytes = number(row, "gpu_memory")?;
    let name: String = row.try_get("name")?;
    Ok(RunnerRow {
        name: RunnerName::new(name),
        node: row.try_get("node")?,
        pool: row.try_get("pool")?,
        scope: row.try_get("scope")?,
        repository: row.try_get("repository")?,
        labels: list(row, "labels")?,
        resources: Resources {
            cpu_millis: row.try_get("cpu_millis")?,
            memory_bytes: unsigned(row.try_get("memory_bytes")?),
            gpus: row.try_get("gpus")?,
        },
        gpu_uuids: list(row, "gpu_uuids")?,
        image: row.try_get("image")?,
        profile: row.try_get("profile")?,
        stage: RunnerStage::from_rank(stage).ok_or_else(|| unreadable("stage", stage))?,
        github_id: number(row, "github_id")?,
        container_id: row.try_get("container_id")?,
        job: number(row, "job")?.map(JobId),
        placed_at: unsigned(row.try_get("placed_at")?),
        registered_at: number(row, "registered_at")?,
        online_at: number(row, "online_at")?,
        busy_at: number(row, "busy_at")?,
        stopping_at: number(row, "stopping_at")?,
        stop_reason: row.try_get("stop_reason")?,
        retired_at: number(row, "retired_at")?,
        retire_reason: row.try_get("retire_reason")?,
        exit_code: row.try_get("exit_code")?,
        exit_cause: row.try_get("exit_cause")?,
        exit_detail: row.try_get("exit_detail")?,
        usage: cpu.zip(peak).map(|(cpu, peak)| Usage {
            cpu: Duration::from_nanos(unsigned(cpu)),
            peak_memory_bytes: unsigned(peak),
            read_bytes,
            written_bytes,
            peak_gpu_memory_bytes,
        }),
        denied: denied(row)?,
    })
}

fn denied(row: &SqliteRow) -> Result<Option<Denied>, sqlx::Error> {
    let text: Option<&str> = row.try_get("denied")?;
    let read = text.map(serde_json::from_str).transpose();
    let row: Option<super::denied::Row> = read.map_err(|e| sqlx::Error::ColumnDecode {
        index: "denied".to_owned(),
        source: e.into(),
    })?;
    Ok(row.map(super::denied::back))
}

/// A number that may be absent: a time or an id.
fn number(row: &SqliteRow, column: &'static str) -> Result<Option<u64>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(unsigned))
}

fn list(row: &SqliteRow, column: &'static str) -> Result<Vec<String>, sqlx::Error> {
    let text: &str = row.try_get(column)?;
    serde_json::from_str(text).map_err(|e| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: e.into(),
    })
}

fn unreadable(column: &str, found: i64) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: format!("unknown number {found}").into(),
    }
}
