//! Webhook administration: hooks, their deliveries, redelivery.

use serde_json::{Map, Value, json};

use super::super::model::{Delivery, Hook, HookTarget, Scope};
use super::super::tokens::Level;
use super::super::world::World;
use super::apps::app_id;
use super::route::LevelOf;
use super::{Answer, Ctx, Response, not_found, with_link};

const MAX_HOOKS: usize = 20;

fn target(w: &mut World, c: &Ctx, level: &LevelOf, need: Level) -> Result<HookTarget, Response> {
    match (level.scope)(w, c).ok_or_else(not_found)? {
        Scope::Repository(r) => {
            w.allow_repo(&c.caller, r, level.hook_permission, need)?;
            Ok(HookTarget::Repository(r))
        }
        Scope::Organization(o) => {
            w.allow_owner(&c.caller, o, level.hook_permission, need)?;
            Ok(HookTarget::Organization(o))
        }
        Scope::Enterprise(_) => Err(not_found()),
    }
}

fn hook_in_path(w: &mut World, c: &Ctx, level: &LevelOf, need: Level) -> Result<u64, Response> {
    let t = target(w, c, level, need)?;
    let id = c.id(level.params).ok_or_else(not_found)?;
    match w.hooks.get(&id) {
        Some(h) if h.target == t => Ok(id),
        _ => Err(not_found()),
    }
}

pub(crate) fn list(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let t = target(w, c, level, Level::Read)?;
    let all: Vec<Value> = w
        .hooks
        .values()
        .filter(|h| h.target == t)
        .map(|h| w.hook_json(&c.urls, h))
        .collect();
    let (page, link) = w.page(c, &all);
    Ok(with_link(Response::json(200, &Value::Array(page)), link))
}

pub(crate) fn get(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let id = hook_in_path(w, c, level, Level::Read)?;
    let h = w.hooks.get(&id).ok_or_else(not_found)?;
    Ok(Response::json(200, &w.hook_json(&c.urls, h)))
}

fn text(v: &Value, key: &str) -> Option<String> {
    match v.get(key) {
        Some(Value::String(s)) => Some(s.clone()),
        Some(Value::Number(n)) => Some(n.to_string()),
        _ => None,
    }
}

fn names(v: Option<&Value>) -> Option<Vec<String>> {
    v.and_then(Value::as_array).map(|l| {
        l.iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    })
}

pub(crate) fn create(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let t = target(w, c, level, Level::Write)?;
    let config = c.body.get("config").cloned().unwrap_or(Value::Null);
    let organization = matches!(t, HookTarget::Organization(_));
    if organization && c.body.get("name").and_then(Value::as_str) != Some("web") {
        return Err(Response::invalid_field("Hook", "name", "missing_field"));
    }
    let Some(url) =
        text(&config, "url").filter(|u| u.starts_with("http://") || u.starts_with("https://"))
    else {
        return Err(Response::invalid_field("Hook", "url", "missing_field"));
    };
    let events = names(c.body.get("events")).unwrap_or_else(|| vec!["push".into()]);
    // the default is a form
    let content_type = text(&config, "content_type").unwrap_or_else(|| "form".into());
    if !matches!(content_type.as_str(), "json" | "form") {
        return Err(Response::invalid_field("Hook", "content_type", "invalid"));
    }
    let same: Vec<&Hook> = w.hooks.values().filter(|h| h.target == t).collect();
    let collides = same.iter().any(|h| {
        h.url == url
            && h.content_type == content_type
            && h.events.iter().any(|e| events.contains(e))
    });
    let full = events
        .iter()
        .any(|e| same.iter().filter(|h| h.events.contains(e)).count() >= MAX_HOOKS);
    if collides || full {
        let mut r = Response::invalid_field("Hook", "config", "custom");
        if let Ok(mut body) = serde_json::from_slice::<Value>(&r.body) {
            body["errors"][0]["message"] = json!(if collides {
                "Hook already exists on this target"
            } else {
                "The maximum number of hooks for an event is 20"
            });
            r.body = body.to_string().into_bytes();
        }
        return Err(r);
    }
    let id = w.fresh_id();
    let hook = Hook {
        id,
        target: t,
        url,
        secret: text(&config, "secret"),
        events,
        content_type,
        insecure_ssl: text(&config, "insecure_ssl").unwrap_or_else(|| "0".into()),
        active: c
            .body
            .get("active")
            .and_then(Value::as_bool)
            .unwrap_or(true),
        created_ms: w.now,
        updated_ms: w.now,
        last: None,
    };
    let shown = w.hook_json(&c.urls, &hook);
    let active = hook.active;
    w.hooks.insert(id, hook);
    if active {
        w.emit_ping(id);
    }
    let mut r = Response::json(201, &shown);
    if let Some(u) = shown.get("url").and_then(Value::as_str) {
        r.headers.push(("location".into(), u.to_owned()));
    }
    Ok(r)
}

pub(crate) fn update(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let id = hook_in_path(w, c, level, Level::Write)?;
    let now = w.now;
    let h = w.hooks.get_mut(&id).ok_or_else(not_found)?;
    if let Some(config) = c.body.get("config") {
        if let Some(u) = text(config, "url") {
            h.url = u;
        }
        if let Some(t) = text(config, "content_type") {
            h.content_type = t;
        }
        // a configuration without a secret removes it
        h.secret = text(config, "secret");
    }
    if let Some(e) = names(c.body.get("events")) {
        h.events = e;
    }
    if let Some(add) = names(c.body.get("add_events")) {
        for e in add {
            if !h.events.contains(&e) {
                h.events.push(e);
            }
        }
    }
    if let Some(drop) = names(c.body.get("remove_events")) {
        h.events.retain(|e| !drop.contains(e));
    }
    if let Some(a) = c.body.get("active").and_then(Value::as_bool) {
        h.active = a;
    }
    h.updated_ms = now;
    let h = h.clone();
    Ok(Response::json(200, &w.hook_json(&c.urls, &h)))
}

pub(crate) fn delete(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let id = hook_in_path(w, c, level, Level::Write)?;
    w.hooks.remove(&id);
    Ok(Response::empty(204))
}

pub(crate) fn ping(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let id = hook_in_path(w, c, level, Level::Read)?;
    w.emit_ping(id);
    Ok(Response::empty(204))
}

fn list_deliveries(w: &mut World, c: &Ctx, hook: u64) -> Answer {
    let per_page = match c.query("per_page").and_then(|v| v.parse::<usize>().ok()) {
        None | Some(0) => 30,
        Some(n) => n.min(100),
    };
    // newest first; the cursor is opaque to callers
    let before = match c.query("cursor") {
        None => u64::MAX,
        Some(text) => match text.strip_prefix("v1_").and_then(|t| t.parse().ok()) {
            Some(id) => id,
            None => return Err(Response::error(400, "Invalid cursor")),
        },
    };
    let wanted = c.query("status").map(str::to_owned);
    if wanted
        .as_deref()
        .is_some_and(|s| !matches!(s, "success" | "failure"))
    {
        return Err(Response::invalid_field("Delivery", "status", "invalid"));
    }
    let fits = |d: &&Delivery| {
        let code = d.status_code;
        d.hook == hook
            && d.id < before
            && d.sent_ms.is_some()
            && d.status != "in flight"
            && match wanted.as_deref() {
                Some("success") => (200..400).contains(&code),
                Some("failure") => (400..600).contains(&code),
                _ => true,
            }
    };
    let found: Vec<Delivery> = w
        .outbox
        .all
        .values()
        .rev()
        .filter(fits)
        .take(per_page + 1)
        .cloned()
        .collect();
    let page: Vec<Value> = found
        .iter()
        .take(per_page)
        .map(|d| w.delivery_json(d))
        .collect();
    let mut link = None;
    if found.len() > per_page
        && let Some(last) = found.get(per_page - 1)
    {
        let status = wanted.map_or(String::new(), |s| format!("&status={s}"));
        link = Some(format!(
            "<{}{}?per_page={per_page}&cursor=v1_{}{status}>; rel=\"next\"",
            c.urls.api, c.link_path, last.id
        ));
    }
    Ok(with_link(Response::json(200, &Value::Array(page)), link))
}

fn one_delivery(w: &World, hook: u64, id: Option<u64>) -> Answer {
    let d = id
        .and_then(|id| w.outbox.all.get(&id))
        .filter(|d| d.hook == hook)
        .ok_or_else(not_found)?;
    let mut v = w.delivery_json(d);
    let headers: Map<String, Value> = d
        .headers
        .iter()
        .map(|(k, v)| (k.clone(), json!(v)))
        .collect();
    let payload: Value = serde_json::from_slice(&d.body).unwrap_or_else(|_| json!({}));
    v["url"] = json!(w.hooks.get(&hook).map_or("", |h| h.url.as_str()));
    v["request"] = json!({"headers": headers, "payload": payload});
    v["response"] = json!({"headers": {}, "payload": d.response_body});
    Ok(Response::json(200, &v))
}

fn redeliver_one(w: &mut World, hook: u64, id: Option<u64>) -> Answer {
    let id = id.ok_or_else(not_found)?;
    if w.outbox.all.get(&id).is_none_or(|d| d.hook != hook) {
        return Err(not_found());
    }
    match w.redeliver(hook, id) {
        Some(_) => Ok(Response::json(202, &json!({}))),
        None => Err(Response::invalid_field("Delivery", "id", "invalid")),
    }
}

pub(crate) fn deliveries(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let hook = hook_in_path(w, c, level, Level::Read)?;
    list_deliveries(w, c, hook)
}

pub(crate) fn delivery(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let hook = hook_in_path(w, c, level, Level::Read)?;
    one_delivery(w, hook, c.id(level.params + 1))
}

pub(crate) fn redeliver(w: &mut World, c: &Ctx, level: &LevelOf) -> Answer {
    let hook = hook_in_path(w, c, level, Level::Write)?;
    redeliver_one(w, hook, c.id(level.params + 1))
}

fn app_hook(w: &World, c: &Ctx) -> Result<u64, Response> {
    let app = app_id(c)?;
    w.apps.get(&app).and_then(|a| a.hook).ok_or_else(not_found)
}

pub(crate) fn app_deliveries(w: &mut World, c: &Ctx) -> Answer {
    let hook = app_hook(w, c)?;
    list_deliveries(w, c, hook)
}

pub(crate) fn app_delivery(w: &mut World, c: &Ctx) -> Answer {
    let hook = app_hook(w, c)?;
    one_delivery(w, hook, c.id(0))
}

pub(crate) fn app_redeliver(w: &mut World, c: &Ctx) -> Answer {
    let hook = app_hook(w, c)?;
    redeliver_one(w, hook, c.id(0))
}
