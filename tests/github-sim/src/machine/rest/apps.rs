//! GitHub Apps: what the App itself, and what an installation may ask.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::super::model::{Installation, OwnerKind};
use super::super::text::{iso, node_id};
use super::super::tokens::{Caller, Holder};
use super::super::world::World;
use super::accounts::repo_page;
use super::{Answer, Ctx, Response, not_found, with_link};

/// The App that signed the token; anything but an App's own token is refused.
pub(crate) fn app_id(c: &Ctx) -> Result<u64, Response> {
    match c.caller {
        Caller::App(id) => Ok(id),
        _ => Err(Response::error(
            401,
            "A JSON web token could not be decoded",
        )),
    }
}

pub(crate) fn app(w: &mut World, c: &Ctx) -> Answer {
    let id = app_id(c)?;
    let a = w.apps.get(&id).ok_or_else(not_found)?;
    let owner = w
        .installations
        .values()
        .find(|i| i.app == id)
        .map_or(0, |i| i.account);
    let count = w.installations.values().filter(|i| i.app == id).count();
    Ok(Response::json(
        200,
        &json!({
            "id": a.id,
            "slug": a.slug,
            "client_id": a.client_id,
            "node_id": node_id("A", a.id),
            "owner": w.user_json(&c.urls, owner),
            "name": a.slug,
            "description": "",
            "external_url": "https://example.com",
            "html_url": format!("{}/apps/{}", c.urls.html, a.slug),
            "created_at": iso(a.created_ms),
            "updated_at": iso(a.created_ms),
            "permissions": a.permissions,
            "events": a.events,
            "installations_count": count,
        }),
    ))
}

pub(crate) fn hook_config(w: &mut World, c: &Ctx) -> Answer {
    let id = app_id(c)?;
    let hook = w
        .apps
        .get(&id)
        .and_then(|a| a.hook)
        .and_then(|h| w.hooks.get(&h));
    let body = hook.map_or_else(
        || json!({"content_type": "json", "insecure_ssl": "0", "url": ""}),
        |h| json!({"content_type": h.content_type, "insecure_ssl": h.insecure_ssl, "secret": "********", "url": h.url}),
    );
    Ok(Response::json(200, &body))
}

pub(crate) fn installations(w: &mut World, c: &Ctx) -> Answer {
    let id = app_id(c)?;
    let all: Vec<Value> = w
        .installations
        .values()
        .filter(|i| i.app == id)
        .map(|i| {
            let mut v = w.installation_json(&c.urls, i);
            // in this list, and only here, the specification asks for the fields of an enterprise as well
            let account = &mut v["account"];
            let login = account["login"].clone();
            account["name"] = login.clone();
            account["slug"] = login;
            account["created_at"] = json!(iso(i.created_ms));
            account["updated_at"] = json!(iso(i.created_ms));
            v
        })
        .collect();
    let (page, link) = w.page(c, &all);
    Ok(with_link(Response::json(200, &Value::Array(page)), link))
}

fn own_installation(w: &World, c: &Ctx) -> Result<Installation, Response> {
    let app = app_id(c)?;
    let id = c.id(0).ok_or_else(not_found)?;
    w.installations
        .get(&id)
        .filter(|i| i.app == app)
        .cloned()
        .ok_or_else(not_found)
}

pub(crate) fn installation(w: &mut World, c: &Ctx) -> Answer {
    let i = own_installation(w, c)?;
    Ok(Response::json(200, &w.installation_json(&c.urls, &i)))
}

pub(crate) fn delete_installation(w: &mut World, c: &Ctx) -> Answer {
    let i = own_installation(w, c)?;
    w.delete_installation(i.id).map_err(|_| not_found())?;
    Ok(Response::empty(if c.newest { 202 } else { 204 }))
}

pub(crate) fn suspend(w: &mut World, c: &Ctx) -> Answer {
    let i = own_installation(w, c)?;
    w.suspend_installation(i.id, true)
        .map_err(|_| not_found())?;
    Ok(Response::empty(204))
}

pub(crate) fn unsuspend(w: &mut World, c: &Ctx) -> Answer {
    let i = own_installation(w, c)?;
    w.suspend_installation(i.id, false)
        .map_err(|_| not_found())?;
    Ok(Response::empty(204))
}

fn by_account(w: &World, c: &Ctx, account: u64, repo: Option<u64>) -> Answer {
    let app = app_id(c)?;
    let found = w.installations.values().find(|i| {
        i.app == app
            && i.account == account
            && repo.is_none_or(|r| i.repositories.as_ref().is_none_or(|s| s.contains(&r)))
    });
    found
        .map(|i| Response::json(200, &w.installation_json(&c.urls, i)))
        .ok_or_else(not_found)
}

pub(crate) fn user_installation(w: &mut World, c: &Ctx) -> Answer {
    app_id(c)?;
    let id = w.owner_id(c.param(0)).map_err(|_| not_found())?;
    by_account(w, c, id, None)
}

pub(crate) fn organization_installation(w: &mut World, c: &Ctx) -> Answer {
    app_id(c)?;
    let id = w
        .owner_of_kind(c.param(0), OwnerKind::Organization)
        .map_err(|_| not_found())?;
    by_account(w, c, id, None)
}

pub(crate) fn repository_installation(w: &mut World, c: &Ctx) -> Answer {
    app_id(c)?;
    let id = w
        .repo_id(&format!("{}/{}", c.param(0), c.param(1)))
        .map_err(|_| not_found())?;
    let owner = w.repos.get(&id).map(|r| r.owner).ok_or_else(not_found)?;
    by_account(w, c, owner, Some(id))
}

pub(crate) fn access_token(w: &mut World, c: &Ctx) -> Answer {
    let i = own_installation(w, c)?;
    if i.suspended_ms.is_some() {
        return Err(Response::error(403, "This installation has been suspended"));
    }
    let covered: BTreeSet<u64> = w.covered_repositories(&i).into_iter().collect();
    let mut chosen: Option<BTreeSet<u64>> = None;
    if let Some(ids) = c.body.get("repository_ids").and_then(Value::as_array) {
        if ids.len() > 500 {
            return Err(Response::invalid_field(
                "InstallationToken",
                "repository_ids",
                "invalid",
            ));
        }
        chosen
            .get_or_insert_default()
            .extend(ids.iter().filter_map(Value::as_u64));
    }
    if let Some(names) = c.body.get("repositories").and_then(Value::as_array) {
        let login = w
            .owners
            .get(&i.account)
            .map_or("", |o| o.login.as_str())
            .to_owned();
        for name in names.iter().filter_map(Value::as_str) {
            let id = w.repo_id(&format!("{login}/{name}")).unwrap_or(0);
            chosen.get_or_insert_default().insert(id);
        }
    }
    if chosen.as_ref().is_some_and(|s| !s.is_subset(&covered)) {
        return Err(Response::invalid_field(
            "InstallationToken",
            "repositories",
            "invalid",
        ));
    }
    let mut permissions = i.permissions.clone();
    if let Some(asked) = c.body.get("permissions").and_then(Value::as_object) {
        let asked: BTreeMap<String, String> = asked
            .iter()
            .filter_map(|(k, v)| v.as_str().map(|v| (k.clone(), v.to_owned())))
            .collect();
        let granted = |k: &str, v: &str| match permissions.get(k).map(String::as_str) {
            Some("write" | "admin") => true,
            Some("read") => v == "read",
            _ => false,
        };
        if asked.iter().any(|(k, v)| !granted(k, v)) {
            return Err(Response::invalid_field(
                "InstallationToken",
                "permissions",
                "invalid",
            ));
        }
        permissions = asked;
    }
    let selected = chosen.is_some() || i.repositories.is_some();
    let (token, expires) = w.new_installation_token(i.id, permissions.clone(), chosen.clone());
    let mut body = json!({
        "token": token,
        "expires_at": iso(expires),
        "permissions": permissions,
        "repository_selection": if selected { "selected" } else { "all" },
    });
    if let Some(ids) = chosen {
        let list: Vec<Value> = ids
            .iter()
            .filter_map(|r| w.repos.get(r))
            .map(|r| w.repo_json(&c.urls, r))
            .collect();
        body["repositories"] = Value::Array(list);
    }
    Ok(Response::json(201, &body))
}

pub(crate) fn installation_repos(w: &mut World, c: &Ctx) -> Answer {
    let Caller::Holder(Holder::Installation {
        id, repositories, ..
    }) = &c.caller
    else {
        return Err(match c.caller {
            Caller::Anonymous | Caller::App(_) => Response::error(401, "Requires authentication"),
            _ => Response::error(
                403,
                "You must authenticate with an installation access token in order to list repositories for an installation.",
            ),
        });
    };
    let i = w.installations.get(id).cloned().ok_or_else(not_found)?;
    let mut ids = w.covered_repositories(&i);
    if let Some(only) = repositories {
        ids.retain(|r| only.contains(r));
    }
    let selected = i.repositories.is_some() || repositories.is_some();
    let (list, total, link) = repo_page(w, c, ids);
    let body = json!({
        "total_count": total,
        "repository_selection": if selected { "selected" } else { "all" },
        "repositories": list,
    });
    Ok(with_link(Response::json(200, &body), link))
}

pub(crate) fn revoke_token(w: &mut World, c: &Ctx) -> Answer {
    if !matches!(c.caller, Caller::Holder(Holder::Installation { .. })) {
        return Err(Response::error(
            403,
            "Resource not accessible by personal access token",
        ));
    }
    let secret = c
        .authorization
        .as_deref()
        .and_then(|a| a.split_once(' '))
        .map(|(_, t)| t.trim())
        .unwrap_or_default();
    w.revoke_token(secret);
    Ok(Response::empty(204))
}

pub(crate) fn my_installations(w: &mut World, c: &Ctx) -> Answer {
    let Some(user) = c.caller.user() else {
        return Err(Response::error(
            403,
            "Resource not accessible by integration",
        ));
    };
    let login = w
        .owners
        .get(&user)
        .map(|o| o.login.to_lowercase())
        .unwrap_or_default();
    let all: Vec<Value> = w
        .installations
        .values()
        .filter(|i| {
            i.account == user
                || w.owners
                    .get(&i.account)
                    .is_some_and(|o| o.members.contains_key(&login))
        })
        .map(|i| w.installation_json(&c.urls, i))
        .collect();
    let (page, link) = w.page(c, &all);
    Ok(with_link(
        Response::json(
            200,
            &json!({"total_count": all.len(), "installations": page}),
        ),
        link,
    ))
}

pub(crate) fn my_installation_repos(w: &mut World, c: &Ctx) -> Answer {
    if c.caller.user().is_none() {
        return Err(Response::error(
            403,
            "Resource not accessible by integration",
        ));
    }
    let id = c.id(0).ok_or_else(not_found)?;
    let i = w.installations.get(&id).cloned().ok_or_else(not_found)?;
    let ids: Vec<u64> = w
        .covered_repositories(&i)
        .into_iter()
        .filter(|r| w.has_repo(&c.caller, *r))
        .collect();
    let (list, total, link) = repo_page(w, c, ids);
    Ok(with_link(
        Response::json(200, &json!({"total_count": total, "repositories": list})),
        link,
    ))
}
