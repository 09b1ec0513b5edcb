//! Users, organisations, repositories, limits.

use serde_json::{Value, json};

use super::super::model::{OwnerKind, Repo};
use super::super::render::{organization_full, private_user, public_user};
use super::super::tokens::{Caller, Holder, Level};
use super::super::world::World;
use super::{Answer, Ctx, Response, VERSIONS, not_found, with_link};

pub(crate) fn root(_: &mut World, c: &Ctx) -> Answer {
    let api = &c.urls.api;
    Ok(Response::json(
        200,
        &json!({"current_user_url": format!("{api}/user"), "rate_limit_url": format!("{api}/rate_limit")}),
    ))
}

pub(crate) fn meta(_: &mut World, _: &Ctx) -> Answer {
    Ok(Response::json(
        200,
        &json!({"verifiable_password_authentication": false}),
    ))
}

pub(crate) fn versions(_: &mut World, _: &Ctx) -> Answer {
    Ok(Response::json(200, &json!(VERSIONS)))
}

pub(crate) fn rate_limit(w: &mut World, c: &Ctx) -> Answer {
    let key = c.caller.key();
    let mut one = |resource: &str| match w.standing(&key, resource, 0) {
        Some(s) => json!({
            "limit": s.limit, "used": s.used, "remaining": s.limit.saturating_sub(s.used), "reset": s.reset_s,
            "resource": s.resource,
        }),
        None => Value::Null,
    };
    let core = one("core");
    if core.is_null() {
        // what a server without limits says
        return Err(Response::error(404, "Rate limiting is not enabled."));
    }
    let strip = |mut v: Value| {
        if let Some(m) = v.as_object_mut() {
            m.remove("resource");
        }
        v
    };
    let registration = one("actions_runner_registration");
    let fixed = |n: u64| json!({"limit": n, "used": 0, "remaining": n, "reset": core["reset"]});
    let mut body = json!({"resources": {
        "core": strip(core.clone()),
        "search": fixed(30),
        "graphql": fixed(5000),
        "actions_runner_registration": if registration.is_null() { fixed(10_000) } else { strip(registration) },
    }});
    if !c.newest {
        body["rate"] = strip(core);
    }
    Ok(Response::json(200, &body))
}

fn counts(w: &World, owner: u64) -> (u64, u64) {
    let of = |private| {
        w.repos
            .values()
            .filter(|r| r.owner == owner && r.private == private)
            .count() as u64
    };
    (of(false), of(true))
}

pub(crate) fn me(w: &mut World, c: &Ctx) -> Answer {
    let Some(id) = c.caller.user() else {
        return Err(match c.caller {
            Caller::Anonymous => Response::error(401, "Requires authentication"),
            _ => Response::error(403, "Resource not accessible by integration"),
        });
    };
    let (public, private) = counts(w, id);
    let o = w.owners.get(&id).ok_or_else(not_found)?;
    let mut r = Response::json(200, &private_user(&c.urls, o, public, private));
    if let Caller::Holder(Holder::Classic { scopes, .. }) = &c.caller {
        let list: Vec<&str> = scopes.iter().map(String::as_str).collect();
        r.headers.push(("x-oauth-scopes".into(), list.join(", ")));
    }
    Ok(r)
}

pub(crate) fn user(w: &mut World, c: &Ctx) -> Answer {
    let id = w.owner_id(c.param(0)).map_err(|_| not_found())?;
    let (public, _) = counts(w, id);
    let o = w
        .owners
        .get(&id)
        .filter(|o| o.kind != OwnerKind::Enterprise)
        .ok_or_else(not_found)?;
    Ok(Response::json(200, &public_user(&c.urls, o, public)))
}

pub(crate) fn organization(w: &mut World, c: &Ctx) -> Answer {
    let id = w
        .owner_of_kind(c.param(0), OwnerKind::Organization)
        .map_err(|_| not_found())?;
    let (public, _) = counts(w, id);
    let o = w.owners.get(&id).ok_or_else(not_found)?;
    Ok(Response::json(200, &organization_full(&c.urls, o, public)))
}

/// A page of repositories, `pushed_at` and all.
pub(crate) fn repo_page(
    w: &mut World,
    c: &Ctx,
    mut ids: Vec<u64>,
) -> (Vec<Value>, usize, Option<String>) {
    let name = |w: &World, id: &u64| {
        w.repos
            .get(id)
            .map(|r| r.full_name.to_lowercase())
            .unwrap_or_default()
    };
    // by name from A on, by anything else the newest first, unless the direction is said
    let newest_first = match c.query("sort") {
        Some("pushed") => {
            ids.sort_by_key(|id| w.repos.get(id).map(|r| r.pushed_ms));
            true
        }
        Some("created" | "updated") => {
            ids.sort_by_key(|id| w.repos.get(id).map(|r| r.created_ms));
            true
        }
        _ => {
            ids.sort_by_key(|id| name(w, id));
            false
        }
    };
    if c.query("direction").map_or(newest_first, |d| d == "desc") {
        ids.reverse();
    }
    let total = ids.len();
    let (page, link) = w.page(c, &ids);
    let list = page
        .iter()
        .filter_map(|id| w.repos.get(id))
        .map(|r| repo_of(w, c, r))
        .collect();
    (list, total, link)
}

fn repo_of(w: &World, c: &Ctx, r: &Repo) -> Value {
    let mut v = w.repo_json(&c.urls, r);
    if let Some(user) = c.caller.user() {
        let admin = r.owner == user
            || w.owners.get(&user).is_some_and(|u| {
                w.owners.get(&r.owner).is_some_and(|o| {
                    o.members
                        .get(&u.login.to_lowercase())
                        .is_some_and(|x| x == "admin")
                })
            });
        let has = w.has_repo(&c.caller, r.id);
        v["permissions"] =
            json!({"admin": admin, "maintain": admin, "push": has, "triage": has, "pull": true});
    }
    if c.newest
        && let Some(m) = v.as_object_mut()
    {
        m.remove("has_downloads");
    }
    v
}

pub(crate) fn my_repos(w: &mut World, c: &Ctx) -> Answer {
    let Some(user) = c.caller.user() else {
        return Err(match c.caller {
            Caller::Anonymous => Response::error(401, "Requires authentication"),
            _ => Response::error(403, "Resource not accessible by integration"),
        });
    };
    if c.query("type").is_some()
        && (c.query("visibility").is_some() || c.query("affiliation").is_some())
    {
        return Err(Response::invalid_field("Search", "type", "invalid"));
    }
    let affiliation = c
        .query("affiliation")
        .unwrap_or("owner,collaborator,organization_member")
        .to_owned();
    let kind = c.query("type").unwrap_or("all").to_owned();
    let ids: Vec<u64> = w
        .repos
        .values()
        .filter(|r| w.has_repo(&c.caller, r.id))
        .filter(|r| {
            let own = r.owner == user;
            affiliation.split(',').any(|a| match a {
                "owner" => own,
                "organization_member" => !own,
                _ => false,
            })
        })
        .filter(|r| match c.query("visibility") {
            Some("public") => !r.private,
            Some("private") => r.private,
            _ => true,
        })
        .filter(|r| match kind.as_str() {
            "owner" => r.owner == user,
            "public" => !r.private,
            "private" => r.private,
            "member" => r.owner != user,
            _ => true,
        })
        .map(|r| r.id)
        .collect();
    let (list, _, link) = repo_page(w, c, ids);
    Ok(with_link(Response::json(200, &Value::Array(list)), link))
}

pub(crate) fn user_repos(w: &mut World, c: &Ctx) -> Answer {
    let owner = w.owner_id(c.param(0)).map_err(|_| not_found())?;
    // public ones only, whoever asks
    let ids: Vec<u64> = w
        .repos
        .values()
        .filter(|r| r.owner == owner && !r.private)
        .map(|r| r.id)
        .collect();
    let (list, _, link) = repo_page(w, c, ids);
    Ok(with_link(Response::json(200, &Value::Array(list)), link))
}

pub(crate) fn organization_repos(w: &mut World, c: &Ctx) -> Answer {
    let owner = w
        .owner_of_kind(c.param(0), OwnerKind::Organization)
        .map_err(|_| not_found())?;
    let kind = c.query("type").unwrap_or("all").to_owned();
    let ids: Vec<u64> = w
        .repos
        .values()
        .filter(|r| r.owner == owner && w.sees_repo(&c.caller, r.id))
        .filter(|r| match kind.as_str() {
            "public" => !r.private,
            "private" => r.private,
            "forks" => r.fork,
            "sources" => !r.fork,
            _ => true,
        })
        .map(|r| r.id)
        .collect();
    let (list, _, link) = repo_page(w, c, ids);
    Ok(with_link(Response::json(200, &Value::Array(list)), link))
}

pub(crate) fn repository(w: &mut World, c: &Ctx) -> Answer {
    let id = w
        .repo_id(&format!("{}/{}", c.param(0), c.param(1)))
        .map_err(|_| not_found())?;
    w.allow_repo(&c.caller, id, "metadata", Level::Read)?;
    let r = w.repos.get(&id).ok_or_else(not_found)?;
    let mut v = repo_of(w, c, r);
    v["network_count"] = json!(0);
    v["subscribers_count"] = json!(0);
    Ok(Response::json(200, &v))
}
