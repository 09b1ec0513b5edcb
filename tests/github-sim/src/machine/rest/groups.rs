//! Runner groups, and the organisation's switch for self-hosted runners.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::model::{Group, Scope, Visibility};
use super::super::tokens::Level;
use super::super::world::World;
use super::registrations::scope;
use super::route::{LevelOf, ORGANIZATION};
use super::{Answer, Ctx, Response, not_found, with_link};

fn group_in_path(w: &World, c: &Ctx, level: &LevelOf, scope: Scope) -> Result<Group, Response> {
    let id = c.id(level.params).ok_or_else(not_found)?;
    w.groups.get(&(scope, id)).cloned().ok_or_else(not_found)
}

pub(crate) fn list(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Read)?;
    let all: Vec<Value> = w
        .groups_of(scope)
        .map(|g| w.group_json(&c.urls, scope, g))
        .collect();
    let (page, link) = w.page(c, &all);
    Ok(with_link(
        Response::json(
            200,
            &json!({"total_count": all.len(), "runner_groups": page}),
        ),
        link,
    ))
}

pub(crate) fn get(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Read)?;
    let g = group_in_path(w, c, level, scope)?;
    Ok(Response::json(200, &w.group_json(&c.urls, scope, &g)))
}

fn apply(c: &Ctx, g: &mut Group) -> Result<(), Response> {
    if let Some(name) = c.body.get("name").and_then(Value::as_str) {
        g.name = name.to_owned();
    }
    if let Some(v) = c.body.get("visibility").and_then(Value::as_str) {
        g.visibility = Visibility::parse(v).ok_or_else(|| {
            Response::invalid("Invalid request.", &["\"visibility\" is not known."])
        })?;
    }
    if let Some(b) = c
        .body
        .get("allows_public_repositories")
        .and_then(Value::as_bool)
    {
        g.allows_public = b;
    }
    for field in ["selected_repository_ids", "selected_organization_ids"] {
        if let Some(ids) = c.body.get(field).and_then(Value::as_array) {
            g.selected = ids.iter().filter_map(Value::as_u64).collect();
        }
    }
    Ok(())
}

pub(crate) fn create(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Write)?;
    let name = c.body.get("name").and_then(Value::as_str).unwrap_or("");
    if name.is_empty() {
        return Err(Response::invalid(
            "Invalid request.",
            &["\"name\" wasn't supplied."],
        ));
    }
    if w.groups_of(scope)
        .any(|g| g.name.eq_ignore_ascii_case(name))
    {
        return Err(Response::error(
            409,
            "Already exists - A runner group with this name already exists.",
        ));
    }
    let id = w.next_group_id(scope);
    let mut g = Group {
        id,
        name: name.to_owned(),
        visibility: Visibility::All,
        selected: BTreeSet::new(),
        allows_public: false,
        is_default: false,
    };
    apply(c, &mut g)?;
    w.groups.insert((scope, id), g.clone());
    if let Some(runners) = c.body.get("runners").and_then(Value::as_array) {
        for r in runners.iter().filter_map(Value::as_u64) {
            if let Some(r) = w.runners.get_mut(&r).filter(|r| r.scope == scope) {
                r.group = id;
            }
        }
    }
    w.assign_idle_runners();
    Ok(Response::json(201, &w.group_json(&c.urls, scope, &g)))
}

pub(crate) fn update(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Write)?;
    let mut g = group_in_path(w, c, level, scope)?;
    apply(c, &mut g)?;
    w.groups.insert((scope, g.id), g.clone());
    w.assign_idle_runners();
    Ok(Response::json(200, &w.group_json(&c.urls, scope, &g)))
}

pub(crate) fn delete(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Write)?;
    let g = group_in_path(w, c, level, scope)?;
    if g.is_default {
        return Err(Response::invalid(
            "Invalid request.",
            &["The default group cannot be deleted."],
        ));
    }
    w.groups.remove(&(scope, g.id));
    for r in w
        .runners
        .values_mut()
        .filter(|r| r.scope == scope && r.group == g.id)
    {
        r.group = 1;
    }
    Ok(Response::empty(204))
}

pub(crate) fn runners(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let scope = scope(w, c, level, Level::Read)?;
    let g = group_in_path(w, c, level, scope)?;
    let mut ids = w.seen_runners(scope);
    ids.retain(|id| w.runners.get(id).is_some_and(|r| r.group == g.id));
    let total = ids.len();
    let (page, link) = w.page(c, &ids);
    let list: Vec<Value> = page.into_iter().map(|id| w.runner_json(id)).collect();
    Ok(with_link(
        Response::json(200, &json!({"total_count": total, "runners": list})),
        link,
    ))
}

pub(crate) fn repositories(w: &mut World, c: &Ctx) -> Answer {
    let scope = scope(w, c, &ORGANIZATION, Level::Read)?;
    let g = group_in_path(w, c, &ORGANIZATION, scope)?;
    let all: Vec<Value> = g
        .selected
        .iter()
        .filter_map(|id| w.repos.get(id))
        .map(|r| w.repo_json(&c.urls, r))
        .collect();
    let (page, link) = w.page(c, &all);
    Ok(with_link(
        Response::json(
            200,
            &json!({"total_count": all.len(), "repositories": page}),
        ),
        link,
    ))
}

pub(crate) fn set_repositories(w: &mut World, c: &Ctx) -> Answer {
    let scope = scope(w, c, &ORGANIZATION, Level::Write)?;
    let g = group_in_path(w, c, &ORGANIZATION, scope)?;
    if let Some(g) = w.groups.get_mut(&(scope, g.id)) {
        apply(c, g)?;
    }
    w.assign_idle_runners();
    Ok(Response::empty(204))
}

pub(crate) fn runner_permissions(w: &mut World, c: &Ctx) -> Answer {
    let scope = scope(w, c, &ORGANIZATION, Level::Read)?;
    let Scope::Organization(o) = scope else {
        return Err(not_found());
    };
    let enabled = w
        .owners
        .get(&o)
        .map_or("all", |o| o.runners_enabled.as_str())
        .to_owned();
    let mut body = json!({"enabled_repositories": enabled});
    if enabled == "selected" {
        body["selected_repositories_url"] = json!(format!(
            "{}/orgs/{}/actions/permissions/self-hosted-runners/repositories",
            c.urls.api,
            c.param(0)
        ));
    }
    Ok(Response::json(200, &body))
}

pub(crate) fn set_runner_permissions(w: &mut World, c: &Ctx) -> Answer {
    let scope = scope(w, c, &ORGANIZATION, Level::Write)?;
    let Scope::Organization(o) = scope else {
        return Err(not_found());
    };
    match c.body.get("enabled_repositories").and_then(Value::as_str) {
        Some(v @ ("all" | "selected" | "none")) => {
            if let Some(o) = w.owners.get_mut(&o) {
                o.runners_enabled = v.to_owned();
            }
            Ok(Response::empty(204))
        }
        _ => Err(Response::invalid_field(
            "Organization",
            "enabled_repositories",
            "invalid",
        )),
    }
}
