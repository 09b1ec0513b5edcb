//! The published data itself: it is whole, it is JSON, and the validator finds exactly the known mismatches in it.

use std::collections::BTreeSet;

use github_sim::machine::{OwnerSpec, RepoSpec, Request, TokenSpec, World, WorldConfig};
use serde_json::Value;

use crate::schema::{Found, OpenApi, WebhookSchema, data, read};

/// Published examples that do not fit their own schema.
const MISFITS: [&str; 13] = [
    "actions__get-job-for-workflow-run.200.json",
    "actions__get-pending-deployments-for-run.200.json",
    "actions__list-github-hosted-runners-in-group-for-org.200.json",
    "actions__list-jobs-for-workflow-run-attempt.200.json",
    "actions__list-jobs-for-workflow-run.200.json",
    "apps__list-installations.200.json",
    "meta__get.200.json",
    "orgs__get.200.default-response.json",
    "orgs__update.200.json",
    "repos__create-for-authenticated-user.201.json",
    "repos__create-in-org.201.json",
    "repos__get.200.default-response.json",
    "repos__update.200.json",
];

fn names(folder: &str) -> Vec<String> {
    let mut out: Vec<String> = std::fs::read_dir(data().join(folder))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".json"))
        .collect();
    out.sort();
    out
}

#[test]
fn every_file_is_read_and_written_again_without_a_change() {
    let mut n = 0;
    for folder in ["rest", "rest/made", "webhooks/examples", "webhooks/made"] {
        for name in names(folder) {
            let value = read(&format!("{folder}/{name}"));
            let again: Value = serde_json::from_str(&value.to_string()).unwrap();
            assert_eq!(value, again, "{folder}/{name}");
            n += 1;
        }
    }
    assert_eq!(n, 167 + 10 + 45 + 6);
}

#[test]
fn exactly_the_known_examples_do_not_fit_their_schema() {
    let specs = [
        OpenApi::load("rest/openapi-subset.api.github.com.json"),
        OpenApi::load("rest/openapi-subset.ghec.json"),
    ];
    let mut misfits = BTreeSet::new();
    let mut checked = 0;
    for name in names("rest")
        .into_iter()
        .filter(|n| !n.starts_with("openapi"))
    {
        let (operation, rest) = name.split_once('.').unwrap();
        let operation = operation.replace("__", "/");
        let spec = specs
            .iter()
            .find(|s| s.operation_by_id(&operation).is_some());
        let spec = spec.unwrap_or_else(|| panic!("{name}: there is no operation {operation}"));
        let found = spec.operation_by_id(&operation).unwrap();
        let schema = match rest.split('.').next().unwrap() {
            "request" => spec.request(found).unwrap(),
            status => match spec.answer(Some(found), status.parse().unwrap()) {
                Found::Body(_) if name.contains("application_vnd_github_object") => continue,
                Found::Body(s) => s,
                _ => panic!("{name}: the specification has no such answer"),
            },
        };
        checked += 1;
        if !spec
            .validator(&schema)
            .is_valid(&read(&format!("rest/{name}")))
        {
            misfits.insert(name);
        }
    }
    assert_eq!(misfits, MISFITS.iter().map(|m| (*m).to_owned()).collect());
    assert!(checked > 155, "{checked}");
}

#[test]
fn all_published_payloads_fit_the_webhook_schema() {
    let mut schema = WebhookSchema::load(false);
    for folder in ["webhooks/examples", "webhooks/made"] {
        for name in names(folder) {
            let event = name.split('.').next().unwrap();
            let faults = schema.faults(event, &read(&format!("{folder}/{name}")));
            assert!(faults.is_empty(), "{name}: {faults:?}");
        }
    }
}

#[test]
fn the_published_requests_are_understood() {
    let mut w = World::new(1, WorldConfig::default());
    w.add_owner(OwnerSpec::organization("acme")).unwrap();
    w.add_repo(RepoSpec::new("acme", "web")).unwrap();
    let scopes = ["repo", "admin:org", "admin:org_hook", "admin:repo_hook"];
    let token = w
        .add_token(TokenSpec::classic("acme-admin", &scopes))
        .unwrap();
    for (file, path, status) in [
        (
            "actions__generate-runner-jitconfig-for-repo.request.default.json",
            "/repos/acme/web/actions/runners/generate-jitconfig",
            201,
        ),
        (
            "actions__generate-runner-jitconfig-for-org.request.default.json",
            "/orgs/acme/actions/runners/generate-jitconfig",
            201,
        ),
        (
            "actions__create-self-hosted-runner-group-for-org.request.default.json",
            "/orgs/acme/actions/runner-groups",
            201,
        ),
        (
            "repos__create-webhook.request.default.json",
            "/repos/acme/web/hooks",
            201,
        ),
        (
            "orgs__create-webhook.request.default.json",
            "/orgs/acme/hooks",
            201,
        ),
        (
            "actions__re-run-workflow.request.default.json",
            "/repos/acme/web/actions/runs/1/rerun",
            404,
        ),
    ] {
        let answer = w.call(&Request::post(path, &read(&format!("rest/{file}"))).token(&token));
        assert_eq!(
            answer.status,
            status,
            "{file}: {}",
            String::from_utf8_lossy(&answer.body)
        );
    }
}
