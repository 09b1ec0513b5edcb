//! Has failed webhook deliveries sent again, off the hot path and within the budget.
//!
//! Which hooks are ours is learnt: an App's own, the ones whose deliveries were
//! verified, and at the start those that send to the configured URL. A credential
//! that may not read them is told once; the sweep finds what they lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Method;
use scheduler_core::model::{CredentialName, UtcMillis};
use tokio::time::sleep;

use crate::{
    client::Call,
    credential::{Identity, Source, lock, utc_now},
    directory::Level,
    error::CallError,
    github::Inner,
    limits::Use,
    pages::{PageCache, list},
    recovery::{Attempt, Recovery},
    registration::escape,
    status::RecoveryStatus,
    time::millis,
    webhook::Delivery,
    wire::{Field, Hook as WireHook, HookDelivery, Payload},
};

/// Pages of 100 deliveries read in one look.
const MOST_PAGES: usize = 10;
/// The whole list is read every so many intervals.
const WHOLE_EVERY: u64 = 30;
/// Hooks that are looked after.
const MOST_HOOKS: usize = 500;
/// Lists of hooks read at the start to find those with our URL.
const MOST_SEARCHED: usize = 50;
/// A credential without the permission is tried again after this long.
const NOT_PERMITTED_REST_MS: u64 = 6 * 3_600_000;
/// Part of the hour's calls that is left to sweep and registrations.
const RESERVED_SHARE: u64 = 5;

/// Where a hook hangs at GitHub.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    App(CredentialName),
    Organization {
        login: String,
        id: u64,
    },
    Repository {
        owner: String,
        name: String,
        id: u64,
    },
}

impl Hook {
    fn path(&self) -> String {
        match self {
            Self::App(_) => "/app/hook".to_owned(),
            Self::Organization { login, id } => format!("/orgs/{}/hooks/{id}", escape(login)),
            Self::Repository { owner, name, id } => {
                format!("/repos/{}/{}/hooks/{id}", escape(owner), escape(name))
            }
        }
    }

    fn words(&self) -> String {
        match self {
            Self::App(name) => format!("the webhook of App '{name}'"),
            Self::Organization { login, id } => format!("webhook {id} of {login}"),
            Self::Repository { owner, name, id } => format!("webhook {id} of {owner}/{name}"),
        }
    }

    /// The hook that sent a verified delivery; `None` when its headers do not tell.
    pub(crate) fn of(delivery: &Delivery<'_>, payload: &Payload) -> Option<Self> {
        let id = delivery.hook_id?.trim().parse().ok()?;
        match delivery.hook_target? {
            "organization" => Some(Self::Organization {
                login: payload.organization.get()?.login.text()?.to_lowercase(),
                id,
            }),
            "repository" => {
                let (owner, name) = payload.repository.get()?.owner_and_name()?;
                Some(Self::Repository {
                    owner: owner.to_lowercase(),
                    name: name.to_lowercase(),
                    id,
                })
            }
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    due: UtcMillis,
    /// When the whole list is read next, whatever its failures say.
    whole_due: UtcMillis,
    recovery: Recovery,
}

/// The hooks that are ours.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    known: Mutex<BTreeMap<Hook, Known>>,
    status: Mutex<RecoveryStatus>,
}

impl Hooks {
    /// This hook's deliveries are verified here: it is ours.
    pub(crate) fn learn(&self, hook: Hook) {
        let mut known = lock(&self.known);
        if known.len() < MOST_HOOKS && !known.contains_key(&hook) {
            known.insert(hook, Known::default());
        }
    }

    pub(crate) fn status(&self) -> RecoveryStatus {
        lock(&self.status).clone()
    }

    fn due(&self, now: UtcMillis) -> Option<Hook> {
        let known = lock(&self.known);
        let found = known.iter().find(|(_, known)| known.due <= now);
        found.map(|(hook, _)| hook.clone())
    }

    fn put_off(&self, hook: &Hook, due: UtcMillis) {
        if let Some(known) = lock(&self.known).get_mut(hook) {
            known.due = due;
        }
    }

    fn with<T>(&self, hook: &Hook, f: impl FnOnce(&mut Known) -> T) -> Option<T> {
        lock(&self.known).get_mut(hook).map(f)
    }
}

/// Looks at the hooks' deliveries again and again. Never ends.
pub(crate) async fn recover(inner: &Inner) {
    let tick = (inner.config.poll_interval / 4).min(Duration::from_secs(15));
    let mut searched = BTreeSet::new();
    loop {
        for identity in inner.client.identities() {
            if matches!(identity.source, Source::App(_)) {
                inner.hooks.learn(Hook::App(identity.name.clone()));
            }
        }
        search(inner, &mut searched).await;
        while let Some(hook) = inner.hooks.due(utc_now()) {
            let due = one_hook(inner, &hook).await;
            inner.hooks.put_off(&hook, due);
        }
        sleep(tick).await;
    }
}

fn interval(inner: &Inner) -> u64 {
    u64::try_from(inner.config.poll_interval.as_millis()).unwrap_or(60_000)
}

/// An organisation's hook is looked at every five intervals, one of a single
/// repository seldom: there may be hundreds of them.
fn pause(inner: &Inner, hook: &Hook) -> u64 {
    let interval = interval(inner);
    let doubted = !lock(&inner.health).healthy(utc_now());
    match hook {
        Hook::Repository { .. } if !doubted => 30 * interval,
        _ => 5 * interval,
    }
}

/// The identity that may look after a hook, when it may be asked now.
fn keeper(inner: &Inner, hook: &Hook, now: UtcMillis) -> Option<Arc<Identity>> {
    let name = match hook {
        Hook::App(name) => name.clone(),
        Hook::Organization { login: owner, .. } | Hook::Repository { owner, .. } => {
            lock(&inner.directory).owner(owner)?.credential.clone()
        }
    };
    let identity = inner.client.identity(&name)?;
    let spare = {
        let limits = lock(&identity.limits);
        limits.resting(now, Use::Write).is_none()
            && limits
                .reads_left(now)
                .is_none_or(|rate| rate.remaining > rate.limit / RESERVED_SHARE)
    };
    spare.then_some(identity)
}

/// One look at one hook; when to look next.
async fn one_hook(inner: &Inner, hook: &Hook) -> UtcMillis {
    let now = utc_now();
    let next = now + pause(inner, hook);
    let Some(identity) = keeper(inner, hook, now) else {
        return next;
    };
    match look(inner, hook, &identity).await {
        Ok(()) => {
            lock(&inner.hooks.status)
                .not_permitted
                .remove(&hook.words());
            next
        }
        Err(error @ (CallError::Forbidden { .. } | CallError::NotFound { .. })) => {
            not_permitted(inner, hook, &error);
            now + NOT_PERMITTED_REST_MS
        }
        Err(error) => {
            tracing::debug!(hook = hook.words(), %error, "failed deliveries are looked for later");
            next
        }
    }
}

fn not_permitted(inner: &Inner, hook: &Hook, error: &CallError) {
    let mut status = lock(&inner.hooks.status);
    if status.not_permitted.len() >= MOST_HOOKS {
        return;
    }
    let before = status.not_permitted.insert(hook.words(), error.to_string());
    if before.is_none() {
        tracing::warn!(
            hook = hook.words(),
            %error,
            "failed webhook deliveries cannot be asked for again; the sweep finds what they told"
        );
    }
}

async fn look(inner: &Inner, hook: &Hook, identity: &Arc<Identity>) -> Result<(), CallError> {
    let now = utc_now();
    let known = inner.hooks.with(hook, |known| {
        let whole = known.whole_due <= now || known.recovery.is_open();
        (known.recovery.since(now), whole)
    });
    let Some((since, whole)) = known else {
        return Ok(());
    };
    if !whole && !has_failed(inner, hook, identity, since).await? {
        return Ok(());
    }
    let (attempts, complete) = attempts(inner, hook, identity, since).await?;
    let between = pause(inner, hook) * 4 / 5;
    let whole_due = now + interval(inner) * WHOLE_EVERY;
    let found = inner.hooks.with(hook, |known| {
        known.whole_due = whole_due;
        known.recovery.look(&attempts, complete, between, now)
    });
    let Some(found) = found else {
        return Ok(());
    };
    for repository in &found.doubtful {
        lock(&inner.coverage).doubt(*repository);
    }
    for attempt in &found.again {
        let call = Call::new(
            Method::POST,
            Use::Write,
            format!(
                "have delivery {} of {} sent again",
                attempt.id,
                hook.words()
            ),
            format!("{}/deliveries/{}/attempts", hook.path(), attempt.id),
        );
        inner.pacer.turn(&identity.name).await;
        match inner.client.call(identity, &call).await {
            Ok(_) => lock(&inner.hooks.status).redelivered += 1,
            // Older than three days, or gone.
            Err(CallError::Refused { status: 422, .. } | CallError::NotFound { .. }) => {
                inner
                    .hooks
                    .with(hook, |known| known.recovery.refused(&attempt.guid));
            }
            Err(error) => return Err(error),
        }
    }
    if !found.again.is_empty() {
        tracing::info!(
            hook = hook.words(),
            deliveries = found.again.len(),
            given_up = found.given_up,
            "failed webhook deliveries are sent again"
        );
    }
    Ok(())
}

/// Whether GitHub itself counts a delivery since then as failed: one call. A
/// receiver that was not reached at all may be missing here, hence the whole
/// list now and then.
async fn has_failed(
    inner: &Inner,
    hook: &Hook,
    identity: &Arc<Identity>,
    since: UtcMillis,
) -> Result<bool, CallError> {
    let call = Call::get(
        format!("list failed deliveries of {}", hook.words()),
        format!("{}/deliveries?status=failure&per_page=10", hook.path()),
    );
    inner.pacer.turn(&identity.name).await;
    let (page, _) = inner
        .client
        .json::<Vec<Field<HookDelivery>>>(identity, &call)
        .await?;
    inner.pacer.count();
    let mut failed = page.iter().filter_map(Field::get).filter_map(attempt);
    Ok(failed.any(|attempt| attempt.at >= since))
}

/// The attempts since then, newest first, and whether the list was read that far.
async fn attempts(
    inner: &Inner,
    hook: &Hook,
    identity: &Arc<Identity>,
    since: UtcMillis,
) -> Result<(Vec<Attempt>, bool), CallError> {
    let mut target = format!("{}/deliveries?per_page=100", hook.path());
    let mut found = Vec::new();
    for _ in 0..MOST_PAGES {
        let call = Call::get(format!("list deliveries of {}", hook.words()), target);
        inner.pacer.turn(&identity.name).await;
        let (page, answer) = inner
            .client
            .json::<Vec<Field<HookDelivery>>>(identity, &call)
            .await?;
        inner.pacer.count();
        let mut older = false;
        for delivery in page.iter().filter_map(Field::get) {
            let Some(attempt) = attempt(delivery) else {
                continue;
            };
            older |= attempt.at < since;
            if attempt.at >= since {
                found.push(attempt);
            }
        }
        match answer.next() {
            Some(next) if !older => target = next,
            _ => return Ok((found, true)),
        }
    }
    Ok((found, false))
}

fn attempt(wire: &HookDelivery) -> Option<Attempt> {
    Some(Attempt {
        id: wire.id.id()?,
        guid: wire.guid.text()?.to_owned(),
        at: wire.delivered_at.text().and_then(millis)?,
        good: wire.status.text() == Some("OK"),
        event: wire.event.text().unwrap_or_default().to_owned(),
        repository: wire.repository_id.id(),
    })
}

/// Finds hooks that send to the configured URL, once per owner or repository.
async fn search(inner: &Inner, searched: &mut BTreeSet<String>) {
    let Some(url) = inner.config.webhook_url.as_deref() else {
        return;
    };
    for (place, owner, repository) in places(inner) {
        if searched.len() >= MOST_SEARCHED || searched.contains(&place) {
            continue;
        }
        let identity = {
            let directory = lock(&inner.directory);
            let owner = directory.owner(&owner);
            owner.and_then(|owner| inner.client.identity(&owner.credential))
        };
        let Some(identity) = identity else { continue };
        searched.insert(place.clone());
        let call = Call::get(
            format!("list webhooks of {place}"),
            format!("{place}?per_page=100"),
        );
        let found = list::<Vec<Field<WireHook>>, (u64, String), _>(
            &inner.client,
            &inner.pacer,
            &PageCache::default(),
            &identity,
            call,
            1,
            |page| {
                let hooks = page.iter().filter_map(Field::get);
                hooks
                    .filter_map(|hook| {
                        let url = hook.config.get()?.url.text()?;
                        Some((hook.id.id()?, url.to_owned()))
                    })
                    .collect()
            },
        )
        .await;
        // Without the permission the first delivery tells which hook is ours.
        let Ok(found) = found else { continue };
        for (id, sends_to) in found.items {
            if sends_to.trim_end_matches('/') == url.trim_end_matches('/') {
                inner.hooks.learn(match &repository {
                    Some(name) => Hook::Repository {
                        owner: owner.clone(),
                        name: name.clone(),
                        id,
                    },
                    None => Hook::Organization {
                        login: owner.clone(),
                        id,
                    },
                });
            }
        }
    }
}

/// Where hooks may hang: path of the list, owner, repository. All in lower case.
fn places(inner: &Inner) -> Vec<(String, String, Option<String>)> {
    let directory = lock(&inner.directory);
    let mut places = BTreeMap::new();
    for watched in directory.repositories() {
        let owner = watched.repository.owner.to_lowercase();
        let name = watched.repository.name.to_lowercase();
        let level = directory.owner(&owner).map(|owner| owner.level.clone());
        let own = level.is_none_or(|level| level == Level::Repository);
        let (place, name) = if own {
            let place = format!("/repos/{}/{}/hooks", escape(&owner), escape(&name));
            (place, Some(name))
        } else {
            (format!("/orgs/{}/hooks", escape(&owner)), None)
        };
        places.insert(place, (owner, name));
    }
    places
        .into_iter()
        .map(|(place, (owner, name))| (place, owner, name))
        .collect()
}
