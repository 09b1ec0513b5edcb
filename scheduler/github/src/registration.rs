//! Just-in-time registrations: made, deleted, listed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use http::Method;
use scheduler_core::{
    input::{Deregistration, ListedRunner, RegistrationFailure},
    model::{CredentialName, RunnerName, Scope, UtcMillis},
};
use secrecy::SecretString;

use crate::{
    client::{Call, Client},
    credential::{Identity, lock, utc_now},
    error::CallError,
    limits::Use,
    pages::{Pacer, PageCache, list},
    wire::{Jit, JitRequest, RunnerGroupList, RunnerList},
};

/// The Default group, at every level.
const DEFAULT_GROUP: u64 = 1;
/// A group's id is asked for again after this long.
const GROUPS_KEPT_MS: u64 = 10 * 60_000;
/// 100 runners a page; a group holds 10,000.
const MOST_PAGES: usize = 200;

/// What to register.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Fresh; never used before on this scope.
    pub runner: RunnerName,
    pub scope: Scope,
    pub credential: CredentialName,
    /// Exactly the labels the runner shall carry; GitHub adds none. 1 to 100.
    pub labels: Vec<String>,
    /// Runner group by name; `None`: the default group. Repositories have no other.
    pub runner_group: Option<String>,
    /// `_work` unless told otherwise.
    pub work_folder: String,
}

/// A runner GitHub now knows, and the one secret that lets it connect.
#[derive(Debug)]
pub struct Registered {
    pub github_id: u64,
    /// `encoded_jit_config`, base64 of JSON. Keep in memory only.
    pub jit: SecretString,
}

/// Why there is no registration: the core's word for it, and ours for people.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct RegisterError {
    pub failure: RegistrationFailure,
    #[source]
    pub error: CallError,
}

impl From<CallError> for RegisterError {
    fn from(error: CallError) -> Self {
        let failure = match &error {
            CallError::RateLimited { until, .. } => {
                RegistrationFailure::RateLimited { until: *until }
            }
            CallError::Unauthorized { .. }
            | CallError::Forbidden { .. }
            | CallError::NoCredential(_)
            | CallError::Credential { .. } => RegistrationFailure::Forbidden,
            CallError::NotFound { .. } => RegistrationFailure::NotFound,
            // The name may be taken now.
            CallError::Unanswered { .. } | CallError::Malformed { .. } => {
                RegistrationFailure::Ambiguous
            }
            CallError::Refused { status, .. } if *status == 409 || *status >= 500 => {
                RegistrationFailure::Ambiguous
            }
            CallError::Refused { .. } | CallError::Unreachable { .. } => {
                RegistrationFailure::Transient
            }
        };
        Self { failure, error }
    }
}

/// `/repos/o/r`, `/orgs/o` or `/enterprises/e`.
pub(crate) fn scope_path(scope: &Scope) -> String {
    match scope {
        Scope::Repository { owner, repo } => format!("/repos/{}/{}", escape(owner), escape(repo)),
        Scope::Organization { login } => format!("/orgs/{}", escape(login)),
        Scope::Enterprise { slug } => format!("/enterprises/{}", escape(slug)),
    }
}

/// One path segment or query value.
pub(crate) fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

type GroupsByName = BTreeMap<String, u64>;

/// Ids of runner groups by scope and lower-case name, for a while.
#[derive(Default)]
pub(crate) struct Groups {
    known: Mutex<BTreeMap<Scope, (UtcMillis, GroupsByName)>>,
}

impl Groups {
    async fn id_of(
        &self,
        client: &Client,
        pacer: &Pacer,
        identity: &Arc<Identity>,
        scope: &Scope,
        name: Option<&str>,
    ) -> Result<u64, CallError> {
        let name = match name {
            Some(name) if !matches!(scope, Scope::Repository { .. }) => name.to_lowercase(),
            _ => return Ok(DEFAULT_GROUP),
        };
        let now = utc_now();
        if let Some((at, groups)) = lock(&self.known).get(scope)
            && now.saturating_sub(*at) < GROUPS_KEPT_MS
            && let Some(id) = groups.get(&name)
        {
            return Ok(*id);
        }
        let call = Call::get(
            format!("list runner groups of {scope}"),
            format!("{}/actions/runner-groups?per_page=100", scope_path(scope)),
        );
        let found = list::<RunnerGroupList, (String, u64), _>(
            client,
            pacer,
            &PageCache::default(),
            identity,
            call,
            MOST_PAGES,
            |page| {
                page.runner_groups
                    .items()
                    .filter_map(|group| Some((group.name.text()?.to_lowercase(), group.id.id()?)))
                    .collect()
            },
        )
        .await?;
        let groups: BTreeMap<String, u64> = found.items.into_iter().collect();
        let id = groups.get(&name).copied();
        lock(&self.known).insert(scope.clone(), (now, groups));
        id.ok_or_else(|| CallError::NotFound {
            credential: identity.name.clone(),
            call: format!("runner group '{name}' of {scope}"),
            permissions: None,
        })
    }
}

pub(crate) async fn register(
    client: &Client,
    pacer: &Pacer,
    groups: &Groups,
    identity: &Arc<Identity>,
    wanted: &Registration,
) -> Result<Registered, RegisterError> {
    let group = groups
        .id_of(
            client,
            pacer,
            identity,
            &wanted.scope,
            wanted.runner_group.as_deref(),
        )
        .await
        .map_err(before_the_call)?;
    let now = utc_now();
    let taken = lock(&identity.limits).take_registration(now);
    client.budget_changed.notify_one();
    taken.map_err(|rest| CallError::RateLimited {
        credential: identity.name.clone(),
        until: rest.until,
        reason: rest.reason,
    })?;
    let request = JitRequest {
        name: wanted.runner.to_string(),
        runner_group_id: group,
        labels: wanted.labels.clone(),
        work_folder: wanted.work_folder.clone(),
    };
    let body = serde_json::to_vec(&request).map_err(|error| CallError::Refused {
        call: "write the registration request".to_owned(),
        status: 0,
        message: error.to_string(),
    })?;
    let call = Call::new(
        Method::POST,
        Use::Register,
        format!("register runner {} for {}", wanted.runner, wanted.scope),
        format!(
            "{}/actions/runners/generate-jitconfig",
            scope_path(&wanted.scope)
        ),
    )
    .body(body);
    let (jit, _) = client.json::<Jit>(identity, &call).await?;
    let github_id = jit.runner.id.id().ok_or_else(|| CallError::Malformed {
        call: call.words.clone(),
        detail: "the runner has no id".to_owned(),
    })?;
    lock(&identity.limits).registered();
    client.budget_changed.notify_one();
    Ok(Registered {
        github_id,
        jit: jit.encoded_jit_config,
    })
}

/// Nothing was created yet: no answer is no doubt about the name.
fn before_the_call(error: CallError) -> RegisterError {
    let mut error = RegisterError::from(error);
    if error.failure == RegistrationFailure::Ambiguous {
        error.failure = RegistrationFailure::Transient;
    }
    error
}

pub(crate) async fn deregister(
    client: &Client,
    identity: &Arc<Identity>,
    runner: &RunnerName,
    scope: &Scope,
    github_id: Option<u64>,
) -> Result<Deregistration, CallError> {
    let id = match github_id {
        Some(id) => id,
        None => match find(client, identity, runner, scope).await? {
            Some(id) => id,
            None => return Ok(Deregistration::Gone),
        },
    };
    let call = Call::new(
        Method::DELETE,
        Use::Write,
        format!("delete runner {runner} of {scope}"),
        format!("{}/actions/runners/{id}", scope_path(scope)),
    );
    match client.call(identity, &call).await {
        Ok(_) | Err(CallError::NotFound { .. }) => Ok(Deregistration::Gone),
        Err(CallError::Refused { status: 422, .. }) => Ok(Deregistration::Busy),
        Err(error) => Err(error),
    }
}

/// The id of a runner by its exact name.
async fn find(
    client: &Client,
    identity: &Arc<Identity>,
    runner: &RunnerName,
    scope: &Scope,
) -> Result<Option<u64>, CallError> {
    let call = Call::get(
        format!("look runner {runner} of {scope} up"),
        format!(
            "{}/actions/runners?name={}&per_page=100",
            scope_path(scope),
            escape(runner.as_str())
        ),
    );
    let (page, _) = client.json::<RunnerList>(identity, &call).await?;
    // The filter is not documented as exact.
    Ok(page
        .runners
        .items()
        .find(|found| found.name.text() == Some(runner.as_str()))
        .and_then(|found| found.id.id()))
}

/// All runners with one of our prefixes; an error when any page is missing,
/// because absence from this list is evidence.
pub(crate) async fn list_runners(
    client: &Client,
    pacer: &Pacer,
    identity: &Arc<Identity>,
    scope: &Scope,
    prefixes: &[String],
) -> Result<Vec<ListedRunner>, CallError> {
    let call = Call::get(
        format!("list runners of {scope}"),
        format!("{}/actions/runners?per_page=100", scope_path(scope)),
    );
    let ours = |name: &str| prefixes.is_empty() || prefixes.iter().any(|p| name.starts_with(p));
    let found = list::<RunnerList, ListedRunner, _>(
        client,
        pacer,
        &PageCache::default(),
        identity,
        call,
        MOST_PAGES,
        |page| {
            page.runners
                .items()
                .filter_map(|runner| {
                    let name = runner.name.text().filter(|name| ours(name))?;
                    Some(ListedRunner {
                        github_id: runner.id.id()?,
                        name: RunnerName::new(name),
                        online: runner.status.text() == Some("online"),
                        busy: runner.busy.is_true(),
                    })
                })
                .collect()
        },
    )
    .await?;
    match found.broken {
        Some(error) => Err(error),
        None => Ok(found.items),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_the_cores_word() {
        let call = || "x".to_owned();
        let credential = || CredentialName::new("c");
        let refused = |status| CallError::Refused {
            call: call(),
            status,
            message: String::new(),
        };
        for (error, failure) in [
            (refused(409), RegistrationFailure::Ambiguous),
            (refused(500), RegistrationFailure::Ambiguous),
            (refused(502), RegistrationFailure::Ambiguous),
            (refused(422), RegistrationFailure::Transient),
            (
                CallError::Unanswered {
                    call: call(),
                    detail: call(),
                },
                RegistrationFailure::Ambiguous,
            ),
            (
                CallError::Malformed {
                    call: call(),
                    detail: call(),
                },
                RegistrationFailure::Ambiguous,
            ),
            (
                CallError::Unreachable {
                    call: call(),
                    detail: call(),
                },
                RegistrationFailure::Transient,
            ),
            (
                CallError::NoCredential(call()),
                RegistrationFailure::Forbidden,
            ),
            (
                CallError::RateLimited {
                    credential: credential(),
                    until: 7,
                    reason: call(),
                },
                RegistrationFailure::RateLimited { until: 7 },
            ),
            (
                CallError::NotFound {
                    credential: credential(),
                    call: call(),
                    permissions: None,
                },
                RegistrationFailure::NotFound,
            ),
        ] {
            assert_eq!(
                RegisterError::from(error.clone()).failure,
                failure,
                "{error}"
            );
        }
    }

    #[test]
    fn paths_carry_no_foreign_characters() {
        let scope = Scope::Repository {
            owner: "a b".into(),
            repo: "../c?d=é".into(),
        };
        assert_eq!(scope_path(&scope), "/repos/a%20b/..%2Fc%3Fd%3D%C3%A9");
    }
}
