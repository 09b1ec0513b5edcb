//! Finds out what may be watched and where runners may register.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use scheduler_core::{
    input::Input,
    model::{CredentialName, UtcMillis},
};

use crate::{
    client::Call,
    credential::{Identity, Source, lock, utc_now},
    directory::{Level, Owner, Watched},
    error::CallError,
    github::Inner,
    pages::list,
    registration::escape,
    time::millis,
    translate::repository,
    wire::{Account, Installation, Repository, RepositoryList},
};

/// 100 repositories or installations a page.
const MOST_PAGES: usize = 100;

/// A repository as a list showed it, with its owner's kind.
#[derive(Clone)]
pub(crate) struct Shown {
    watched: Watched,
    organization: bool,
    usable: bool,
}

fn shown(reader: &CredentialName, wire: &Repository) -> Option<Shown> {
    let owner = wire.owner.get();
    Some(Shown {
        watched: Watched {
            repository: repository(wire)?,
            reader: reader.clone(),
            last_activity: wire.last_activity().and_then(millis).unwrap_or(0),
            admin: wire
                .permissions
                .get()
                .and_then(|permissions| permissions.admin.get().copied()),
        },
        organization: owner.and_then(|owner| owner.r#type.text()) == Some("Organization"),
        usable: !wire.archived.is_true() && !wire.disabled.is_true(),
    })
}

/// Asks every credential; returns the repositories that are no longer there.
pub(crate) async fn discover(inner: &Inner) -> Vec<Input> {
    let mut gone = Vec::new();
    let mut served = BTreeSet::new();
    if inner.config.credentials.is_empty() {
        inner.problems.set(
            "credentials",
            "no GitHub credential is configured: set GITHUB_TOKEN, a token file, or an App's id and key file".to_owned(),
            utc_now(),
        );
    }
    for credential in &inner.config.credentials {
        let Some(identity) = inner.client.identity(&credential.name) else {
            continue;
        };
        let outcome = match &identity.source {
            Source::App(_) => app(inner, &identity, &mut served, &mut gone).await,
            Source::Token(_) | Source::Enterprise(_) => {
                token(inner, &identity, &mut served, &mut gone).await
            }
            Source::Installation { .. } => Ok(()),
        };
        let subject = format!("credential {}", identity.name);
        match outcome {
            Ok(()) => inner.problems.clear(&subject),
            Err(error) => inner.problems.set(&subject, error.to_string(), utc_now()),
        }
    }
    for owner in inner.config.expected_owners() {
        let subject = format!("owner {owner}");
        if lock(&inner.directory).owner(&owner).is_some() {
            inner.problems.clear(&subject);
        } else {
            let error = CallError::NoCredential(owner.clone());
            inner.problems.set(&subject, error.to_string(), utc_now());
        }
    }
    inner.client.budget_changed.notify_one();
    gone
}

pub(crate) fn forget(inner: &Inner, watched: Vec<Watched>) -> Vec<Input> {
    watched
        .into_iter()
        .map(|watched| {
            let id = watched.repository.id;
            lock(&inner.live).forget_repository(id);
            lock(&inner.ledger).forget_repository(id);
            lock(&inner.coverage).forget_repository(id);
            Input::RepositoryGone {
                id,
                full_name: watched.repository.full_name(),
            }
        })
        .collect()
}

async fn app(
    inner: &Inner,
    app: &Arc<Identity>,
    served: &mut BTreeSet<String>,
    gone: &mut Vec<Input>,
) -> Result<(), CallError> {
    let call = Call::get(
        "list the App's installations",
        "/app/installations?per_page=100",
    );
    let installations = list::<Vec<crate::wire::Field<Installation>>, Installation, _>(
        &inner.client,
        &inner.pacer,
        &inner.installations,
        app,
        call,
        MOST_PAGES,
        |page| page.iter().filter_map(|item| item.get().cloned()).collect(),
    )
    .await?;
    for installation in installations.items {
        let Some(id) = installation.id.id() else {
            continue;
        };
        let account = installation.account.get().cloned().unwrap_or_default();
        let Some(login) = account.login.text().map(str::to_owned) else {
            continue;
        };
        if installation.suspended_at.text().is_some()
            || !inner.config.wants_owner(&login)
            || !inner.config.serves(&app.name, &login)
        {
            continue;
        }
        if !served.insert(login.to_lowercase()) {
            continue;
        }
        let identity = inner.client.installation(app, id);
        let subject = format!("installation on {login}");
        match one_installation(inner, &identity, &installation, &account, id, &login, gone).await {
            Ok(()) => inner.problems.clear(&subject),
            Err(error) => inner.problems.set(&subject, error.to_string(), utc_now()),
        }
    }
    Ok(())
}

async fn one_installation(
    inner: &Inner,
    identity: &Arc<Identity>,
    installation: &Installation,
    account: &Account,
    id: u64,
    login: &str,
    gone: &mut Vec<Input>,
) -> Result<(), CallError> {
    let organization = account.r#type.text() == Some("Organization");
    let organization_wide =
        organization && installation.may_write("organization_self_hosted_runners");
    let level = if organization_wide || (organization && inner.config.names_organization(login)) {
        Level::Organization
    } else if let Some(level) = organization
        .then(|| inner.config.enterprise_level(login))
        .flatten()
    {
        level
    } else {
        Level::Repository
    };
    let rights = format!("runners of {login}");
    if level == Level::Repository && !installation.may_write("administration") {
        inner.problems.set(
            &rights,
            format!(
                "the App's installation on {login} may register no runners: grant it Administration (write){} and accept the change",
                if organization { " or Self-hosted runners (write)" } else { "" }
            ),
            utc_now(),
        );
    } else {
        inner.problems.clear(&rights);
    }
    lock(&inner.directory).set_owner(Owner {
        login: login.to_owned(),
        level,
        credential: identity.name.clone(),
        installation: Some(id),
    });
    let reader = identity.name.clone();
    let found = list::<RepositoryList, Shown, _>(
        &inner.client,
        &inner.pacer,
        &inner.repositories,
        identity,
        Call::get(
            format!("list repositories of the installation on {login}"),
            "/installation/repositories?per_page=100",
        ),
        MOST_PAGES,
        |page| {
            page.repositories
                .items()
                .filter_map(|wire| shown(&reader, wire))
                .collect()
        },
    )
    .await?;
    gone.extend(take(
        inner,
        &identity.name,
        found.items,
        found.broken.is_none(),
    ));
    found.broken.map_or(Ok(()), Err)
}

/// Takes a reader's whole list in; what it no longer shows is gone.
fn take(inner: &Inner, reader: &CredentialName, shown: Vec<Shown>, complete: bool) -> Vec<Input> {
    let mut directory = lock(&inner.directory);
    let mut keep = BTreeSet::new();
    for item in shown {
        let repository = &item.watched.repository;
        if item.usable && inner.config.wants(&repository.owner, &repository.name) {
            keep.insert(repository.id);
            directory.watch(item.watched);
        }
    }
    let lost = if complete {
        directory.retain(reader, &keep, utc_now())
    } else {
        Vec::new()
    };
    drop(directory);
    forget(inner, lost)
}

async fn token(
    inner: &Inner,
    identity: &Arc<Identity>,
    served: &mut BTreeSet<String>,
    gone: &mut Vec<Input>,
) -> Result<(), CallError> {
    let mut everything = Vec::new();
    let mut broken = None;
    let looked_for = inner.config.looked_for(&identity.name);
    if looked_for.is_none() {
        let mut found = repositories(
            inner,
            identity,
            "accessible to this token",
            "/user/repos?per_page=100&sort=pushed",
        )
        .await?;
        broken = found.broken.take();
        // Each owner is served by the first credential that reaches it.
        found.items.retain(|item| {
            let owner = &item.watched.repository.owner;
            !served.contains(&owner.to_lowercase()) && inner.config.serves(&identity.name, owner)
        });
        let mut owners = BTreeMap::new();
        for item in &found.items {
            owners.insert(item.watched.repository.owner.clone(), item.organization);
        }
        for (login, organization) in owners {
            set_owner(inner, identity, &login, organization).await?;
            served.insert(login.to_lowercase());
        }
        found.items.retain(|item| registers(inner, item));
        everything = found.items;
    }
    let mut own: Option<Vec<Shown>> = None;
    for login in looked_for.unwrap_or_default() {
        if served.contains(&login.to_lowercase()) {
            continue;
        }
        let subject = format!("owner {login}");
        match owner(inner, identity, &login, &mut own).await {
            Ok((items, incomplete)) => {
                broken = broken.or(incomplete);
                served.insert(login.to_lowercase());
                everything.extend(items);
                inner.problems.clear(&subject);
            }
            // Another credential may know it.
            Err(CallError::NotFound { .. }) => {}
            Err(error) => {
                inner.problems.set(&subject, error.to_string(), utc_now());
                broken = Some(error);
            }
        }
    }
    let complete = broken.is_none();
    gone.extend(take(inner, &identity.name, everything, complete));
    broken.map_or(Ok(()), Err)
}

/// Whether runners can be registered for it at all; says so when not.
fn registers(inner: &Inner, item: &Shown) -> bool {
    let repository = &item.watched.repository;
    let level = lock(&inner.directory)
        .owner(&repository.owner)
        .map(|owner| owner.level.clone());
    level != Some(Level::Repository) || item.watched.admin != Some(false)
}

/// Repositories of one named owner.
async fn owner(
    inner: &Inner,
    identity: &Arc<Identity>,
    login: &str,
    own: &mut Option<Vec<Shown>>,
) -> Result<(Vec<Shown>, Option<CallError>), CallError> {
    let call = Call::get(
        format!("look account {login} up"),
        format!("/users/{}", escape(login)),
    );
    inner.pacer.turn(&identity.name).await;
    let (account, _) = inner.client.json::<Account>(identity, &call).await?;
    let organization = account.r#type.text() == Some("Organization");
    let login = account.login.text().unwrap_or(login).to_owned();
    let (items, broken) = if organization {
        let path = format!("/orgs/{}/repos?per_page=100&sort=pushed", escape(&login));
        let found = repositories(inner, identity, &format!("of {login}"), &path).await?;
        (found.items, found.broken)
    } else {
        let mut broken = None;
        if own.is_none() {
            let found = repositories(
                inner,
                identity,
                "accessible to this token",
                "/user/repos?per_page=100&sort=pushed&affiliation=owner,collaborator",
            )
            .await?;
            broken = found.broken;
            *own = Some(found.items);
        }
        let items: Vec<Shown> = own
            .iter()
            .flatten()
            .filter(|item| item.watched.repository.owner.eq_ignore_ascii_case(&login))
            .cloned()
            .collect();
        (items, broken)
    };
    set_owner(inner, identity, &login, organization).await?;
    let without: Vec<String> = items
        .iter()
        .filter(|item| item.usable && !registers(inner, item))
        .map(|item| item.watched.repository.full_name())
        .collect();
    let subject = format!("runners of {login}");
    if without.is_empty() {
        inner.problems.clear(&subject);
    } else {
        let named: Vec<&str> = without.iter().take(5).map(String::as_str).collect();
        inner.problems.set(
            &subject,
            format!(
                "credential '{}' is no administrator of {} repositories ({}): it cannot register runners there. Use the owner's token or install the App",
                identity.name,
                without.len(),
                named.join(", ")
            ),
            utc_now(),
        );
    }
    Ok((items, broken))
}

async fn repositories(
    inner: &Inner,
    identity: &Arc<Identity>,
    what: &str,
    path: &str,
) -> Result<crate::pages::Listing<Shown>, CallError> {
    let reader = identity.name.clone();
    list::<Vec<crate::wire::Field<Repository>>, Shown, _>(
        &inner.client,
        &inner.pacer,
        &inner.repositories,
        identity,
        Call::get(format!("list repositories {what}"), path),
        MOST_PAGES,
        |page| {
            page.iter()
                .filter_map(|item| shown(&reader, item.get()?))
                .collect()
        },
    )
    .await
}

/// Finds the level an owner's runners register at; asked once per owner and credential.
async fn set_owner(
    inner: &Inner,
    identity: &Arc<Identity>,
    login: &str,
    organization: bool,
) -> Result<(), CallError> {
    let known = lock(&inner.directory)
        .owner(login)
        .is_some_and(|owner| owner.credential == identity.name);
    if known {
        return Ok(());
    }
    let level = if !organization {
        Level::Repository
    } else if inner.config.names_organization(login) {
        Level::Organization
    } else {
        let call = Call::get(
            format!("see whether runners may be registered for organisation {login}"),
            format!("/orgs/{}/actions/runners?per_page=1", escape(login)),
        );
        inner.pacer.turn(&identity.name).await;
        match inner.client.call(identity, &call).await {
            Ok(_) => Level::Organization,
            Err(CallError::Forbidden { .. } | CallError::NotFound { .. }) => inner
                .config
                .enterprise_level(login)
                .unwrap_or(Level::Repository),
            Err(error) => return Err(error),
        }
    };
    lock(&inner.directory).set_owner(Owner {
        login: login.to_owned(),
        level,
        credential: identity.name.clone(),
        installation: None,
    });
    Ok(())
}

/// Finds the credential for one repository that no list has shown yet.
pub(crate) async fn find(inner: &Inner, owner: &str, name: &str) -> Result<bool, CallError> {
    let full = format!("{owner}/{name}");
    let path = format!("/repos/{}/{}", escape(owner), escape(name));
    let mut last = Ok(false);
    for credential in &inner.config.credentials {
        let Some(identity) = inner.client.identity(&credential.name) else {
            continue;
        };
        if !inner.config.serves(&credential.name, owner) {
            continue;
        }
        let outcome = match &identity.source {
            Source::App(_) => {
                let call = Call::get(
                    format!("find the App's installation for {full}"),
                    format!("{path}/installation"),
                );
                match inner.client.json::<Installation>(&identity, &call).await {
                    Ok((installation, _)) => {
                        found_installation(inner, &identity, &installation, owner).await
                    }
                    Err(error) => Err(error),
                }
            }
            _ => {
                let call = Call::get(format!("look repository {full} up"), path.clone());
                match inner.client.json::<Repository>(&identity, &call).await {
                    Ok((wire, _)) => found_repository(inner, &identity, &wire).await,
                    Err(error) => Err(error),
                }
            }
        };
        match outcome {
            Ok(()) => return Ok(true),
            Err(CallError::NotFound { .. }) => {}
            Err(error) => last = Err(error),
        }
    }
    last
}

async fn found_installation(
    inner: &Inner,
    app: &Arc<Identity>,
    installation: &Installation,
    owner: &str,
) -> Result<(), CallError> {
    let id = installation.id.id().unwrap_or(0);
    let identity = inner.client.installation(app, id);
    let account = installation.account.get().cloned().unwrap_or_default();
    let login = account.login.text().unwrap_or(owner).to_owned();
    let mut gone = Vec::new();
    one_installation(
        inner,
        &identity,
        installation,
        &account,
        id,
        &login,
        &mut gone,
    )
    .await
}

async fn found_repository(
    inner: &Inner,
    identity: &Arc<Identity>,
    wire: &Repository,
) -> Result<(), CallError> {
    let Some(item) = shown(&identity.name, wire) else {
        return Ok(());
    };
    let owner = item.watched.repository.owner.clone();
    set_owner(inner, identity, &owner, item.organization).await?;
    if item.usable {
        lock(&inner.directory).watch(item.watched);
    }
    Ok(())
}

/// Start of the since_days window.
pub(crate) fn window_start(inner: &Inner, now: UtcMillis) -> UtcMillis {
    match inner.config.since_days {
        0 => 0,
        days => now.saturating_sub(u64::from(days) * 86_400_000),
    }
}
