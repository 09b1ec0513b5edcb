//! Every published document through the production structs: read, written back, equal.

use std::{collections::BTreeMap, fmt::Debug, fs, path::PathBuf};

use scheduler_github::{
    webhook::{Delivery, Event, WebhookError, json_of, parse, verify},
    wire::{
        AccessToken, Account, ErrorBody, Field, Hook, HookDelivery, Installation, Jit, JitRequest,
        Job, JobList, Payload, RateLimits, Repository, RepositoryList, Run, RunList, Runner,
        RunnerGroup, RunnerGroupList, RunnerList, Wire,
    },
};
use serde_json::Value;

pub(crate) fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../github-sim/data")
}

/// JSON files of a folder by name.
pub(crate) fn documents(folder: &str) -> BTreeMap<String, Value> {
    let folder = data().join(folder);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = fs::read(&path).unwrap();
            (name, serde_json::from_slice(&text).unwrap())
        })
        .collect()
}

/// Reads as T, writes back, compares; nothing modelled may be of an odd type.
fn round_trip<T>(name: &str, value: &Value)
where
    T: serde::de::DeserializeOwned + serde::Serialize + Debug,
{
    let text = serde_json::to_vec(value).unwrap();
    let document: T =
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(&serde_json::to_value(&document).unwrap(), value, "{name}");
    let shown = format!("{document:?}");
    assert!(
        !shown.contains("Odd("),
        "{name}: a modelled field has another type: {shown}"
    );
}

fn list_of<T>(name: &str, value: &Value)
where
    T: Wire + serde::Serialize + Debug,
{
    round_trip::<Vec<Field<T>>>(name, value);
}

type Check = fn(&str, &Value);

/// Documents of calls the scheduler makes, by the start of the file's name.
const MODELLED: &[(&str, Check)] = &[
    ("actions__get-job-for-workflow-run.", round_trip::<Job>),
    ("actions__get-self-hosted-runner-for-", round_trip::<Runner>),
    (
        "actions__get-self-hosted-runner-group-for-org.",
        round_trip::<RunnerGroup>,
    ),
    ("actions__get-workflow-run-attempt.", round_trip::<Run>),
    ("actions__get-workflow-run.", round_trip::<Run>),
    ("actions__list-jobs-for-workflow-run", round_trip::<JobList>),
    (
        "actions__list-repo-access-to-self-hosted-runner-group-in-org.",
        round_trip::<RepositoryList>,
    ),
    (
        "actions__list-selected-repositories-self-hosted-runners-organization.",
        round_trip::<RepositoryList>,
    ),
    (
        "actions__list-self-hosted-runner-groups-for-org.",
        round_trip::<RunnerGroupList>,
    ),
    (
        "actions__list-self-hosted-runners-for-",
        round_trip::<RunnerList>,
    ),
    (
        "actions__list-self-hosted-runners-in-group-for-org.",
        round_trip::<RunnerList>,
    ),
    ("actions__list-workflow-runs", round_trip::<RunList>),
    (
        "actions__create-self-hosted-runner-group-for-org.201",
        round_trip::<RunnerGroup>,
    ),
    (
        "actions__update-self-hosted-runner-group-for-org.200",
        round_trip::<RunnerGroup>,
    ),
    ("apps__get-installation.", round_trip::<Installation>),
    ("apps__get-org-installation.", round_trip::<Installation>),
    ("apps__get-repo-installation.", round_trip::<Installation>),
    ("apps__get-user-installation.", round_trip::<Installation>),
    ("apps__list-installations.", list_of::<Installation>),
    ("apps__list-webhook-deliveries.", list_of::<HookDelivery>),
    ("orgs__list-webhook-deliveries.", list_of::<HookDelivery>),
    ("orgs__list-webhooks.", list_of::<Hook>),
    ("repos__list-webhook-deliveries.", list_of::<HookDelivery>),
    ("repos__list-webhooks.", list_of::<Hook>),
    (
        "apps__list-installation-repos-for-authenticated-user.",
        round_trip::<RepositoryList>,
    ),
    (
        "apps__list-repos-accessible-to-installation.",
        round_trip::<RepositoryList>,
    ),
    (
        "enterprise-admin__create-self-hosted-runner-group-for-enterprise.201",
        round_trip::<RunnerGroup>,
    ),
    (
        "enterprise-admin__update-self-hosted-runner-group-for-enterprise.200",
        round_trip::<RunnerGroup>,
    ),
    (
        "enterprise-admin__get-self-hosted-runner-for-enterprise.",
        round_trip::<Runner>,
    ),
    (
        "enterprise-admin__get-self-hosted-runner-group-for-enterprise.",
        round_trip::<RunnerGroup>,
    ),
    (
        "enterprise-admin__list-self-hosted-runner-groups-for-enterprise.",
        round_trip::<RunnerGroupList>,
    ),
    (
        "enterprise-admin__list-self-hosted-runners-for-enterprise.",
        round_trip::<RunnerList>,
    ),
    (
        "enterprise-admin__list-self-hosted-runners-in-group-for-enterprise.",
        round_trip::<RunnerList>,
    ),
    ("orgs__get.", round_trip::<Account>),
    ("orgs__update.200", round_trip::<Account>),
    ("rate-limit__get.", round_trip::<RateLimits>),
    (
        "repos__create-for-authenticated-user.201",
        round_trip::<Repository>,
    ),
    ("repos__create-in-org.201", round_trip::<Repository>),
    ("repos__get.", round_trip::<Repository>),
    ("repos__update.200", round_trip::<Repository>),
    ("repos__list-for-", list_of::<Repository>),
    ("users__get-", round_trip::<Account>),
    ("users__update-authenticated.200", round_trip::<Account>),
    ("repos__delete.403", round_trip::<ErrorBody>),
    (
        "actions__generate-runner-jitconfig-for-org.request",
        round_trip::<JitRequest>,
    ),
    (
        "actions__generate-runner-jitconfig-for-repo.request",
        round_trip::<JitRequest>,
    ),
    (
        "actions__generate-runner-jitconfig-for-enterprise.request",
        round_trip::<JitRequest>,
    ),
    (
        "enterprise-admin__generate-runner-jitconfig-for-enterprise.request",
        round_trip::<JitRequest>,
    ),
    ("actions__generate-runner-jitconfig-for-org.201", jit),
    ("actions__generate-runner-jitconfig-for-repo.201", jit),
    ("actions__generate-runner-jitconfig-for-enterprise.201", jit),
    (
        "enterprise-admin__generate-runner-jitconfig-for-enterprise.201",
        jit,
    ),
    ("apps__create-installation-access-token.201", access_token),
];

/// Read only, since it carries a secret that nobody may write.
fn jit(name: &str, value: &Value) {
    let jit: Jit =
        serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(
        serde_json::to_value(&jit.runner).unwrap(),
        value["runner"],
        "{name}"
    );
    let secret = value["encoded_jit_config"].as_str().unwrap();
    assert_eq!(
        secrecy::ExposeSecret::expose_secret(&jit.encoded_jit_config),
        secret
    );
    assert!(
        !format!("{jit:?}").contains(secret),
        "{name} shows its secret"
    );
}

fn access_token(name: &str, value: &Value) {
    let token: AccessToken =
        serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let secret = value["token"].as_str().unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&token.token), secret);
    assert_eq!(value["expires_at"], token.expires_at);
    assert!(
        !format!("{token:?}").contains(secret),
        "{name} shows its secret"
    );
}

/// Documents of calls the scheduler does not make: changes of hooks, workflow files, labels, tokens for config.sh, settings, requests of others.
const NOT_MODELLED: &[&str] = &[
    "actions__add-",
    "actions__create-registration-token",
    "actions__create-remove-token",
    "actions__create-self-hosted-runner-group-for-org.request",
    "actions__create-workflow-dispatch",
    "actions__get-concurrency",
    "actions__get-pending-deployments",
    "actions__get-reviews",
    "actions__get-self-hosted-runners-permissions",
    "actions__get-workflow.",
    "actions__list-concurrency",
    "actions__list-github-hosted",
    "actions__list-labels",
    "actions__list-repo-workflows",
    "actions__list-runner-applications",
    "actions__re-run",
    "actions__remove-",
    "actions__review-",
    "actions__set-",
    "actions__update-self-hosted-runner-group-for-org.request",
    "apps__create-from-manifest",
    "apps__create-installation-access-token.request",
    "apps__get-authenticated",
    "apps__get-webhook",
    "apps__list-installations-for-authenticated-user",
    "apps__update-webhook",
    "enterprise-admin__add-",
    "enterprise-admin__create-registration",
    "enterprise-admin__create-remove",
    "enterprise-admin__create-self-hosted-runner-group-for-enterprise.request",
    "enterprise-admin__get-runner-version",
    "enterprise-admin__list-labels",
    "enterprise-admin__list-org-access",
    "enterprise-admin__list-runner-applications",
    "enterprise-admin__remove-",
    "enterprise-admin__set-",
    "enterprise-admin__update-self-hosted-runner-group-for-enterprise.request",
    "meta__",
    "openapi-subset",
    "orgs__create-webhook",
    "orgs__get-webhook",
    "orgs__list-app",
    "orgs__update-webhook",
    "orgs__update.request",
    "repos__create-for-authenticated-user.request",
    "repos__create-in-org.request",
    "repos__create-or-update",
    "repos__create-webhook",
    "repos__delete-file",
    "repos__get-all-environments",
    "repos__get-content",
    "repos__get-webhook",
    "repos__update-webhook",
    "repos__update.request",
    "users__update-authenticated.request",
    "INDEX",
];

#[test]
fn every_published_rest_document_that_we_read_survives() {
    let mut used = vec![0; MODELLED.len()];
    for (name, value) in documents("rest") {
        let checks: Vec<usize> = (0..MODELLED.len())
            .filter(|i| name.starts_with(MODELLED[*i].0))
            .collect();
        let left_out = NOT_MODELLED.iter().any(|prefix| name.starts_with(prefix));
        assert!(
            checks.is_empty() == left_out,
            "{name} is {} among the modelled and {} among the others",
            if checks.is_empty() { "not" } else { "" },
            if left_out { "" } else { "not" }
        );
        for check in checks {
            MODELLED[check].1(&name, &value);
            used[check] += 1;
        }
    }
    let total: usize = used.iter().sum();
    assert!(total >= 55, "only {total} documents were read");
}

#[test]
fn every_made_error_is_told_in_words() {
    let made = documents("rest/made");
    assert_eq!(made.len(), 10);
    for (name, value) in made {
        round_trip::<ErrorBody>(&name, &value["body"]);
        let body: ErrorBody = serde_json::from_value(value["body"].clone()).unwrap();
        let message = value["body"]["message"].as_str().unwrap();
        assert!(
            body.summary().starts_with(message),
            "{name}: {}",
            body.summary()
        );
    }
}

#[test]
fn every_webhook_survives_and_is_known_by_its_event() {
    let mut seen = 0;
    for folder in ["webhooks/examples", "webhooks/made"] {
        for (name, value) in documents(folder) {
            round_trip::<Payload>(&name, &value);
            let event = name.split('.').next().unwrap();
            let text = serde_json::to_vec(&value).unwrap();
            let parsed = parse(event, &text).unwrap();
            let known = match &parsed {
                Event::WorkflowJob(payload) => {
                    assert!(
                        payload.workflow_job.get().unwrap().id.id().is_some(),
                        "{name}"
                    );
                    "workflow_job"
                }
                Event::WorkflowRun(payload) => {
                    assert!(
                        payload.workflow_run.get().unwrap().id.id().is_some(),
                        "{name}"
                    );
                    "workflow_run"
                }
                Event::Ping(payload) => {
                    assert!(payload.hook_id.id().is_some(), "{name}");
                    "ping"
                }
                Event::Installation(payload) => {
                    assert!(
                        payload.installation.get().unwrap().id.id().is_some(),
                        "{name}"
                    );
                    "installation"
                }
                Event::InstallationRepositories(_) => "installation_repositories",
                Event::Repository(payload) => {
                    assert!(
                        payload.repository.get().unwrap().owner_and_name().is_some(),
                        "{name}"
                    );
                    "repository"
                }
                Event::Meta(_) => "meta",
                Event::Unknown { event } => {
                    assert!(
                        ["check_run", "deployment_review", "workflow_dispatch"]
                            .contains(&event.as_str())
                    );
                    event.as_str()
                }
            };
            assert_eq!(known, event, "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 45 + 6);
}

#[test]
fn the_published_signature_verifies_and_nothing_near_it_does() {
    let secrets = ["It's a Secret to Everybody".to_owned().into()];
    let body = b"Hello, World!";
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let with = |name: &str, value: &str| {
        let mut headers = http::HeaderMap::new();
        headers.insert(
            http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
        headers
    };
    let check = |headers: &http::HeaderMap, body: &[u8]| {
        let delivery = Delivery::from_request(headers, body);
        verify(&secrets, delivery.signature, delivery.body)
    };
    for name in [
        "X-Hub-Signature-256",
        "x-hub-signature-256",
        "X-HUB-SIGNATURE-256",
    ] {
        assert_eq!(check(&with(name, signature), body), Ok(()), "{name}");
    }
    let headers = with("X-Hub-Signature-256", signature);
    for at in 0..body.len() {
        let mut changed = *body;
        changed[at] ^= 1;
        assert_eq!(check(&headers, &changed), Err(WebhookError::BadSignature));
    }
    for at in "sha256=".len()..signature.len() {
        let mut changed = signature.as_bytes().to_vec();
        changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
        let changed = with(
            "X-Hub-Signature-256",
            std::str::from_utf8(&changed).unwrap(),
        );
        assert_eq!(check(&changed, body), Err(WebhookError::BadSignature));
    }
    assert_eq!(
        check(&with("X-Hub-Signature", signature), body),
        Err(WebhookError::Unsigned)
    );
}

#[test]
fn a_form_delivery_carries_the_same_payload() {
    let (name, value) = documents("webhooks/examples").pop_first().unwrap();
    let json = serde_json::to_vec(&value).unwrap();
    let encoded: String = json.iter().map(|byte| format!("%{byte:02X}")).collect();
    let form = format!("payload={encoded}");
    let decoded = json_of(Some("application/x-www-form-urlencoded"), form.as_bytes()).unwrap();
    assert_eq!(&*decoded, json, "{name}");
}
