//! Runs, jobs and workflows.

use serde_json::{Value, json};

use super::super::model::{Run, Status};
use super::super::text::parse_date;
use super::super::tokens::Level;
use super::super::world::World;
use super::{Answer, Ctx, Response, not_found, with_link};

/// With any filter no more than this many results are given.
const FILTERED_CAP: usize = 1_000;

fn repo(w: &mut World, c: &Ctx, level: Level) -> Result<u64, Response> {
    let id = w
        .repo_id(&format!("{}/{}", c.param(0), c.param(1)))
        .map_err(|_| not_found())?;
    w.allow_repo(&c.caller, id, "actions", level)?;
    Ok(id)
}

fn run_in_path(w: &World, c: &Ctx, repo: u64) -> Result<u64, Response> {
    let id = c.id(2).ok_or_else(not_found)?;
    match w.runs.get(&id) {
        Some(r) if r.repo == repo => Ok(id),
        _ => Err(not_found()),
    }
}

pub(crate) fn runs(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let ids: Vec<u64> = w
        .repos
        .get(&repo)
        .map(|r| r.runs.iter().rev().copied().collect())
        .unwrap_or_default();
    list_runs(w, c, ids)
}

pub(crate) fn workflow_runs(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let workflow = workflow_in_path(w, c, repo)?.1;
    let ids: Vec<u64> = w
        .repos
        .get(&repo)
        .map(|r| r.runs.iter().rev().copied().collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .filter(|id| w.runs.get(id).is_some_and(|r| r.workflow_id == workflow))
        .collect();
    list_runs(w, c, ids)
}

fn list_runs(w: &mut World, c: &Ctx, ids: Vec<u64>) -> Answer {
    const STATUSES: [&str; 14] = [
        "completed",
        "action_required",
        "cancelled",
        "failure",
        "neutral",
        "skipped",
        "stale",
        "success",
        "timed_out",
        "in_progress",
        "queued",
        "requested",
        "waiting",
        "pending",
    ];
    let status = c.query("status");
    if let Some(s) = status
        && !STATUSES.contains(&s)
    {
        return Err(Response::invalid("Validation Failed", &["Invalid status."]));
    }
    let created = match c.query("created") {
        Some(text) => Some(
            created_range(text)
                .ok_or_else(|| Response::invalid("Validation Failed", &["Invalid created."]))?,
        ),
        None => None,
    };
    let filtered = [
        "status",
        "created",
        "event",
        "branch",
        "actor",
        "head_sha",
        "check_suite_id",
    ]
    .iter()
    .any(|f| c.query(f).is_some());
    let matches = |w: &World, r: &Run| {
        let Some(seen) = w.seen_run(r) else {
            return false;
        };
        let by_status =
            status.is_none_or(|s| seen.status == s || seen.conclusion.as_deref() == Some(s));
        by_status
            && created.is_none_or(|(from, to)| r.created_ms >= from && r.created_ms <= to)
            && c.query("event").is_none_or(|e| r.event == e)
            && c.query("branch").is_none_or(|b| r.head_branch == b)
            && c.query("head_sha").is_none_or(|s| r.head_sha == s)
            && c.query("actor").is_none_or(|a| {
                w.owners
                    .get(&r.actor)
                    .is_some_and(|o| o.login.eq_ignore_ascii_case(a))
            })
            && c.query("check_suite_id")
                .is_none_or(|s| s == (r.id + 1).to_string())
    };
    let mut found: Vec<u64> = ids
        .into_iter()
        .filter(|id| w.runs.get(id).is_some_and(|r| matches(w, r)))
        .collect();
    let total = found.len();
    if filtered {
        found.truncate(FILTERED_CAP);
    }
    let (page, link) = w.page(c, &found);
    let runs: Vec<Value> = page
        .iter()
        .filter_map(|id| w.runs.get(id))
        .filter_map(|r| w.seen_run(r).map(|seen| w.run_json(&c.urls, r, seen)))
        .collect();
    Ok(with_link(
        Response::json(200, &json!({"total_count": total, "workflow_runs": runs})),
        link,
    ))
}

/// `>=2026-01-31T00:00:00Z`, `<..`, `a..b`, or one day; bounds are included.
fn created_range(text: &str) -> Option<(u64, u64)> {
    if let Some((a, b)) = text.split_once("..") {
        let from = if a == "*" { 0 } else { parse_date(a)? };
        let to = if b == "*" { u64::MAX } else { end_of(b)? };
        return Some((from, to));
    }
    for (sign, side) in [(">=", 0), ("<=", 1), (">", 2), ("<", 3)] {
        if let Some(rest) = text.strip_prefix(sign) {
            return Some(match side {
                0 => (parse_date(rest)?, u64::MAX),
                1 => (0, end_of(rest)?),
                2 => (end_of(rest)? + 1, u64::MAX),
                _ => (0, parse_date(rest)?.checked_sub(1)?),
            });
        }
    }
    Some((parse_date(text)?, end_of(text)?))
}

/// The last millisecond of a second or of a day.
fn end_of(text: &str) -> Option<u64> {
    let start = parse_date(text)?;
    Some(start + if text.contains('T') { 999 } else { 86_399_999 })
}

pub(crate) fn run(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let id = run_in_path(w, c, repo)?;
    let r = w.runs.get(&id).ok_or_else(not_found)?;
    let seen = w.seen_run(r).ok_or_else(not_found)?;
    Ok(Response::json(200, &w.run_json(&c.urls, r, seen)))
}

pub(crate) fn run_attempt(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let id = run_in_path(w, c, repo)?;
    let r = w.runs.get(&id).ok_or_else(not_found)?;
    let attempt = c
        .id(3)
        .filter(|n| *n >= 1 && *n <= r.attempts.len() as u64)
        .ok_or_else(not_found)?;
    let latest = w.seen_run(r).ok_or_else(not_found)?;
    let seen = if latest.attempt == attempt {
        latest.clone()
    } else {
        let last = r
            .history
            .iter()
            .rev()
            .find(|(_, s)| s.attempt == attempt)
            .map(|(_, s)| s.clone());
        last.unwrap_or_else(|| super::super::model::RunState {
            attempt,
            ..latest.clone()
        })
    };
    Ok(Response::json(200, &w.run_json(&c.urls, r, &seen)))
}

pub(crate) fn run_jobs(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let id = run_in_path(w, c, repo)?;
    let r = w.runs.get(&id).ok_or_else(not_found)?;
    let ids: Vec<u64> = match c.query("filter") {
        Some("all") => r.attempts.iter().flatten().copied().collect(),
        None | Some("latest") => r.jobs().to_vec(),
        Some(_) => {
            return Err(Response::invalid(
                "Validation Failed",
                &["filter is latest or all."],
            ));
        }
    };
    list_jobs(w, c, &ids)
}

pub(crate) fn attempt_jobs(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let id = run_in_path(w, c, repo)?;
    let r = w.runs.get(&id).ok_or_else(not_found)?;
    let n = c.id(3).filter(|n| *n >= 1).ok_or_else(not_found)?;
    let ids = r
        .attempts
        .get(n as usize - 1)
        .cloned()
        .ok_or_else(not_found)?;
    list_jobs(w, c, &ids)
}

fn list_jobs(w: &mut World, c: &Ctx, ids: &[u64]) -> Answer {
    let seen: Vec<u64> = ids
        .iter()
        .copied()
        .filter(|id| w.jobs.get(id).is_some_and(|j| w.seen_job(j).is_some()))
        .collect();
    let total = seen.len();
    let (page, link) = w.page(c, &seen);
    let jobs: Vec<Value> = page
        .iter()
        .filter_map(|id| w.jobs.get(id))
        .filter_map(|j| w.seen_job(j).map(|s| w.job_json(&c.urls, j, s)))
        .collect();
    Ok(with_link(
        Response::json(200, &json!({"total_count": total, "jobs": jobs})),
        link,
    ))
}

pub(crate) fn job(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let id = c.id(2).ok_or_else(not_found)?;
    let j = w
        .jobs
        .get(&id)
        .filter(|j| j.repo == repo)
        .ok_or_else(not_found)?;
    let seen = w.seen_job(j).ok_or_else(not_found)?;
    Ok(Response::json(200, &w.job_json(&c.urls, j, seen)))
}

fn cancel_with(w: &mut World, c: &Ctx, force: bool) -> Answer {
    let repo = repo(w, c, Level::Write)?;
    let id = run_in_path(w, c, repo)?;
    match w.cancel_run(id, force) {
        Ok(true) => Ok(Response::json(202, &json!({}))),
        _ => Err(Response::error(
            409,
            "Cannot cancel a workflow run that is completed.",
        )),
    }
}

pub(crate) fn cancel(w: &mut World, c: &Ctx) -> Answer {
    cancel_with(w, c, false)
}

pub(crate) fn force_cancel(w: &mut World, c: &Ctx) -> Answer {
    cancel_with(w, c, true)
}

fn rerun_with(w: &mut World, c: &Ctx, only_failed: bool) -> Answer {
    let repo = repo(w, c, Level::Write)?;
    let id = run_in_path(w, c, repo)?;
    match w.rerun(id, only_failed, None) {
        Ok(()) => Ok(Response::json(201, &json!({}))),
        Err(e) => Err(Response::error(403, &e.to_string())),
    }
}

pub(crate) fn rerun(w: &mut World, c: &Ctx) -> Answer {
    rerun_with(w, c, false)
}

pub(crate) fn rerun_failed(w: &mut World, c: &Ctx) -> Answer {
    rerun_with(w, c, true)
}

pub(crate) fn rerun_job(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Write)?;
    let id = c.id(2).ok_or_else(not_found)?;
    let run = w
        .jobs
        .get(&id)
        .filter(|j| j.repo == repo)
        .map(|j| j.run)
        .ok_or_else(not_found)?;
    match w.rerun(run, false, Some(id)) {
        Ok(()) => Ok(Response::json(201, &json!({}))),
        Err(e) => Err(Response::error(403, &e.to_string())),
    }
}

pub(crate) fn pending_deployments(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let id = run_in_path(w, c, repo)?;
    let r = w.runs.get(&id).ok_or_else(not_found)?;
    let mut names: Vec<&str> = r
        .jobs()
        .iter()
        .filter_map(|j| w.jobs.get(j))
        .filter(|j| j.state.status == Status::Waiting)
        .filter_map(|j| j.spec.environment.as_deref())
        .collect();
    names.dedup();
    let full_name = w.repos.get(&repo).map_or("", |r| r.full_name.as_str());
    let list: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            json!({
                "environment": {
                    "id": 161_088_068 + i,
                    "node_id": super::super::text::node_id("EN", i as u64),
                    "name": name,
                    "url": format!("{}/repos/{full_name}/environments/{name}", c.urls.api),
                    "html_url": format!("{}/{full_name}/deployments/activity_log?environments_filter={name}", c.urls.html),
                },
                "wait_timer": 0,
                "wait_timer_started_at": null,
                "current_user_can_approve": true,
                "reviewers": [],
            })
        })
        .collect();
    Ok(Response::json(200, &Value::Array(list)))
}

fn workflow_in_path(w: &World, c: &Ctx, repo: u64) -> Result<(String, u64), Response> {
    let r = w.repos.get(&repo).ok_or_else(not_found)?;
    let wanted = c.param(2);
    r.workflows
        .iter()
        .find(|(name, id)| {
            id.to_string() == wanted
                || format!("{}.yml", super::super::render::slug(name)) == wanted
        })
        .map(|(n, id)| (n.clone(), *id))
        .ok_or_else(not_found)
}

pub(crate) fn workflow(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let (name, id) = workflow_in_path(w, c, repo)?;
    let r = w.repos.get(&repo).ok_or_else(not_found)?;
    Ok(Response::json(200, &w.workflow_json(&c.urls, r, &name, id)))
}

pub(crate) fn workflows(w: &mut World, c: &Ctx) -> Answer {
    let repo = repo(w, c, Level::Read)?;
    let r = w.repos.get(&repo).ok_or_else(not_found)?;
    let all: Vec<Value> = r
        .workflows
        .iter()
        .map(|(n, id)| w.workflow_json(&c.urls, r, n, *id))
        .collect();
    let (page, link) = w.page(c, &all);
    Ok(with_link(
        Response::json(200, &json!({"total_count": all.len(), "workflows": page})),
        link,
    ))
}

#[cfg(test)]
mod tests {
    use super::created_range;

    #[test]
    fn dates_of_a_search_include_their_bounds() {
        let day = 86_400_000;
        assert_eq!(created_range(">=1970-01-02"), Some((day, u64::MAX)));
        assert_eq!(created_range("<1970-01-02"), Some((0, day - 1)));
        assert_eq!(
            created_range("1970-01-02..1970-01-03"),
            Some((day, 3 * day - 1))
        );
        assert_eq!(
            created_range(">1970-01-02T00:00:00Z"),
            Some((day + 1000, u64::MAX))
        );
        assert_eq!(created_range("yesterday"), None);
    }
}
