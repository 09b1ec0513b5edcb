//! Runners at repository, organisation and enterprise level.

use serde_json::{Value, json};

use super::super::model::{RemovedBy, Scope};
use super::super::render::label_type;
use super::super::runners::CURRENT_VERSION;
use super::super::text::iso;
use super::super::tokens::Level;
use super::super::world::{HOUR, World};
use super::route::LevelOf;
use super::{Answer, Ctx, Response, not_found, with_link};

/// The scope in the path, if the caller may touch its runners.
pub(crate) fn scope(
    w: &mut World,
    c: &Ctx,
    level: &LevelOf,
    need: Level,
) -> Result<Scope, Response> {
    let scope = (level.scope)(w, c).ok_or_else(not_found)?;
    match scope {
        Scope::Repository(r) => w.allow_repo(&c.caller, r, level.permission, need)?,
        Scope::Organization(o) | Scope::Enterprise(o) => {
            w.allow_owner(&c.caller, o, level.permission, need)?
        }
    }
    Ok(scope)
}

fn runner_in_path(w: &World, c: &Ctx, level: &LevelOf, scope: Scope) -> Result<u64, Response> {
    let id = c.id(level.params).ok_or_else(not_found)?;
    match w.runners.get(&id) {
        Some(r) if r.scope == scope && r.removed.is_none() => Ok(id),
        _ => Err(not_found()),
    }
}

pub(crate) fn list(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Read)?;
    let mut ids = w.seen_runners(scope);
    if let Some(name) = c.query("name") {
        ids.retain(|id| w.runners.get(id).is_some_and(|r| r.name == name));
    }
    let total = ids.len();
    let (page, link) = w.page(c, &ids);
    let runners: Vec<Value> = page.into_iter().map(|id| w.runner_json(id)).collect();
    Ok(with_link(
        Response::json(200, &json!({"total_count": total, "runners": runners})),
        link,
    ))
}

pub(crate) fn get(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Read)?;
    let id = runner_in_path(w, c, level, scope)?;
    Ok(Response::json(200, &w.runner_json(id)))
}

pub(crate) fn delete(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Write)?;
    let id = runner_in_path(w, c, level, scope)?;
    let refuse = || {
        Response::invalid(
            "Bad request - Runner is currently running a job and cannot be deleted.",
            &[],
        )
    };
    if w.roll(w.cfg.faults.delete_always_422, "delete_always_422") {
        return Err(refuse());
    }
    if w.runners.get(&id).is_some_and(|r| r.job.is_some())
        && !w.roll(w.cfg.faults.delete_busy_succeeds, "delete_busy_succeeds")
    {
        return Err(refuse());
    }
    w.delete_registration(id);
    Ok(Response::empty(204))
}

pub(crate) fn token(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    scope(w, c, level, Level::Write)?;
    let token = format!("A{}", w.chance.alphanumeric(28).to_uppercase());
    Ok(Response::json(
        201,
        &json!({"token": token, "expires_at": iso(w.now + HOUR)}),
    ))
}

pub(crate) fn jit(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Write)?;
    let name = c
        .body
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned();
    let group = c.body.get("runner_group_id").and_then(Value::as_u64);
    let labels: Option<Vec<String>> = c.body.get("labels").and_then(Value::as_array).map(|l| {
        l.iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    });
    let work_folder = c
        .body
        .get("work_folder")
        .and_then(Value::as_str)
        .unwrap_or("_work")
        .to_owned();
    if name.is_empty() {
        return Err(Response::invalid(
            "Invalid request.",
            &["\"name\" wasn't supplied."],
        ));
    }
    if name.chars().count() > 64 {
        return Err(Response::invalid(
            "Invalid request.",
            &["\"name\" is too long (maximum is 64 characters)."],
        ));
    }
    let Some(group) = group else {
        return Err(Response::invalid(
            "Invalid request.",
            &["\"runner_group_id\" wasn't supplied."],
        ));
    };
    let Some(labels) =
        labels.filter(|l| (1..=100).contains(&l.len()) && l.iter().all(|x| !x.is_empty()))
    else {
        return Err(Response::invalid(
            "Invalid request.",
            &["\"labels\" needs 1 to 100 names."],
        ));
    };
    let group_known = match scope {
        Scope::Repository(_) => group == 1,
        other => w.groups.contains_key(&(other, group)),
    };
    if !group_known {
        return Err(not_found());
    }
    let enabled = match scope {
        Scope::Repository(r) => {
            let owner = w.repos.get(&r).map_or(0, |r| r.owner);
            w.owners
                .get(&owner)
                .is_none_or(|o| o.runners_enabled == "all")
        }
        _ => true,
    };
    if !enabled {
        return Err(Response::error(
            403,
            "Repository level self-hosted runners are disabled on this repository.",
        ));
    }
    if w.roll(w.cfg.faults.jit_500_before_create, "jit_500_before_create") {
        return Err(Response::json(500, &json!({"message": "Server Error"})));
    }
    let taken = w.names.contains_key(&(scope, name.to_lowercase()));
    if taken || w.roll(w.cfg.faults.jit_409, "jit_409") {
        return Err(Response::error(
            409,
            "Already exists - A runner with the name *** already exists.",
        ));
    }
    if !w.registration_allowed(scope) {
        let mut r = Response::error(
            403,
            "You have exceeded a secondary rate limit. Too many runner registrations.",
        );
        r.headers.push(("retry-after".into(), "60".into()));
        return Err(r);
    }
    let id = w.register(scope, &name, &labels, group, &work_folder, true);
    if w.roll(w.cfg.faults.jit_500_after_create, "jit_500_after_create") {
        return Err(Response::json(502, &json!({"message": "Server Error"})));
    }
    let encoded = w.jit_config(id);
    let body = json!({"runner": w.runner_json(id), "encoded_jit_config": encoded});
    let mut response = Response::json(201, &body);
    if w.cfg.faults.jit_delay_ms > 0 {
        w.count_fault("jit_delay_ms");
        response.delay_ms = w.cfg.faults.jit_delay_ms;
    }
    Ok(response)
}

pub(crate) fn downloads(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    scope(w, c, level, Level::Read)?;
    let v = CURRENT_VERSION;
    let one = |os: &str, arch: &str, file_os: &str, ext: &str| {
        let filename = format!("actions-runner-{file_os}-{arch}-{v}.{ext}");
        json!({
            "os": os,
            "architecture": arch,
            "download_url": format!("https://github.com/actions/runner/releases/download/v{v}/{filename}"),
            "filename": filename,
            "sha256_checksum": hex::encode([0x5a_u8; 32]),
        })
    };
    let all = vec![
        one("osx", "x64", "osx", "tar.gz"),
        one("osx", "arm64", "osx", "tar.gz"),
        one("linux", "x64", "linux", "tar.gz"),
        one("linux", "arm", "linux", "tar.gz"),
        one("linux", "arm64", "linux", "tar.gz"),
        one("win", "x64", "win", "zip"),
    ];
    Ok(Response::json(200, &Value::Array(all)))
}

pub(crate) fn deprecation(w: &mut World, c: &Ctx) -> Answer {
    scope(w, c, &super::route::ENTERPRISE, Level::Read)?;
    Ok(Response::json(
        200,
        &json!({"runner_version": c.param(1), "registration_deprecates_at": null, "runtime_deprecates_at": null}),
    ))
}

fn labels_body(w: &mut World, id: u64) -> Value {
    let labels = w.runner_json(id)["labels"].clone();
    json!({"total_count": labels.as_array().map_or(0, Vec::len), "labels": labels})
}

pub(crate) fn labels(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Read)?;
    let id = runner_in_path(w, c, level, scope)?;
    Ok(Response::json(200, &labels_body(w, id)))
}

fn change_labels(
    w: &mut World,
    c: &Ctx,
    level: &LevelOf,
    change: impl Fn(&mut Vec<String>),
) -> Answer {
    let scope = scope(w, c, level, Level::Write)?;
    let id = runner_in_path(w, c, level, scope)?;
    if let Some(r) = w.runners.get_mut(&id) {
        change(&mut r.labels);
        r.folded = r.labels.iter().map(|l| l.to_lowercase()).collect();
    }
    w.assign_runner(id);
    Ok(Response::json(200, &labels_body(w, id)))
}

fn sent_labels(c: &Ctx, least: usize) -> Result<Vec<String>, Response> {
    let list: Vec<String> = c
        .body
        .get("labels")
        .and_then(Value::as_array)
        .map(|l| {
            l.iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default();
    if list.len() < least || list.len() > 100 || c.body.get("labels").is_none() {
        return Err(Response::invalid(
            "Invalid request.",
            &["\"labels\" has a wrong number of names."],
        ));
    }
    Ok(list)
}

fn is_custom(label: &str) -> bool {
    label_type(label) == "custom"
}

pub(crate) fn add_labels(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let sent = sent_labels(c, 1)?;
    change_labels(w, c, level, |labels| {
        for l in &sent {
            if !labels.iter().any(|x| x.eq_ignore_ascii_case(l)) {
                labels.push(l.clone());
            }
        }
    })
}

pub(crate) fn set_labels(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let sent = sent_labels(c, 0)?;
    change_labels(w, c, level, |labels| {
        labels.retain(|l| !is_custom(l));
        labels.extend(sent.iter().cloned());
    })
}

pub(crate) fn clear_labels(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    change_labels(w, c, level, |labels| labels.retain(|l| !is_custom(l)))
}

pub(crate) fn drop_label(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let name = c.param(level.params + 1).to_owned();
    let scope_here = scope(w, c, level, Level::Write)?;
    let id = runner_in_path(w, c, level, scope_here)?;
    let has = w
        .runners
        .get(&id)
        .is_some_and(|r| r.folded.contains(&name.to_lowercase()));
    if !has {
        return Err(not_found());
    }
    if !is_custom(&name) {
        return Err(Response::invalid(
            "Invalid request.",
            &["A read-only label cannot be removed."],
        ));
    }
    change_labels(w, c, level, |labels| {
        labels.retain(|l| !l.eq_ignore_ascii_case(&name))
    })
}

impl World {
    /// Removes a registration as DELETE does. The job of a busy one runs on until its lock ends.
    pub(crate) fn delete_registration(&mut self, id: u64) {
        let job = self.runners.get(&id).and_then(|r| r.job);
        self.remove_runner(id, RemovedBy::Deleted);
        // what it was given but had not taken goes back to the queue
        if let Some(job) = job
            && self
                .jobs
                .get(&job)
                .is_some_and(|j| j.state.status == super::super::model::Status::Queued)
        {
            if let Some(j) = self.jobs.get_mut(&job) {
                j.assigned_ms = Some(0);
            }
            self.job_not_picked_up(job);
        }
    }
}
