//! Through an HTTP proxy that writes down every call: each exists in the published
//! description with its parameters, and each body fits its schema.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use scheduler_core::{
    input::Input,
    model::{CredentialName, RunnerName, Scope},
};
use scheduler_github::CredentialKind;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    published::data,
    world::{Watching, World, enterprise, named, organization, registration, repository, secret},
};

#[derive(Clone, Debug)]
struct Seen {
    method: String,
    path: String,
    query: Vec<String>,
    body: Option<Value>,
    absolute: bool,
}

/// A forward proxy that remembers.
#[derive(Clone)]
struct Recorder {
    seen: Arc<Mutex<Vec<Seen>>>,
    client: Client<HttpConnector, Body>,
}

impl Recorder {
    async fn start() -> (Self, SocketAddr) {
        let recorder = Self {
            seen: Arc::default(),
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(forward).with_state(recorder.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (recorder, address)
    }
}

async fn forward(State(recorder): State<Recorder>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    let query = parts.uri.query().unwrap_or_default();
    recorder.seen.lock().unwrap().push(Seen {
        method: parts.method.to_string().to_lowercase(),
        path: parts.uri.path().to_owned(),
        query: query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split('=').next().unwrap_or_default().to_owned())
            .collect(),
        body: (!bytes.is_empty()).then(|| serde_json::from_slice(&bytes).unwrap()),
        absolute: parts.uri.authority().is_some(),
    });
    let request = Request::from_parts(parts, Body::from(bytes));
    match recorder.client.request(request).await {
        Ok(answer) => answer.map(Body::new),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// The two published descriptions.
struct Published(Vec<Value>);

impl Published {
    fn read() -> Self {
        let names = [
            "openapi-subset.api.github.com.json",
            "openapi-subset.ghec.json",
        ];
        Self(
            names
                .map(|name| {
                    let text = fs::read(data().join("rest").join(name)).unwrap();
                    serde_json::from_slice(&text).unwrap()
                })
                .to_vec(),
        )
    }

    /// Description and operation of a call; the template with the most literal segments wins.
    fn operation(&self, method: &str, path: &str) -> Option<(&Value, String, &Value)> {
        let mut found: Vec<(usize, &Value, String, &Value)> = Vec::new();
        for description in &self.0 {
            for (template, item) in description["paths"].as_object().unwrap() {
                if let (Some(literal), Some(operation)) =
                    (matches(template, path), item.get(method))
                {
                    found.push((literal, description, template.clone(), operation));
                }
            }
        }
        let best = found.into_iter().max_by_key(|(literal, ..)| *literal)?;
        Some((best.1, best.2, best.3))
    }
}

fn matches(template: &str, path: &str) -> Option<usize> {
    let (mut literal, left, right) = (0, template.split('/'), path.split('/'));
    if left.clone().count() != right.clone().count() {
        return None;
    }
    for (wanted, given) in left.zip(right) {
        if wanted.starts_with('{') && !given.is_empty() {
            continue;
        }
        if wanted != given {
            return None;
        }
        literal += 1;
    }
    Some(literal)
}

fn resolve<'a>(description: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => description
            .pointer(reference.trim_start_matches('#'))
            .unwrap(),
        None => value,
    }
}

/// Checks one call; the error says what does not fit.
fn check(published: &Published, seen: &Seen) -> Result<String, String> {
    let (description, template, operation) = published
        .operation(&seen.method, &seen.path)
        .ok_or_else(|| format!("no such operation: {seen:?}"))?;
    let item = &description["paths"][&template];
    let mut known = Vec::new();
    for list in [&item["parameters"], &operation["parameters"]] {
        for parameter in list.as_array().into_iter().flatten() {
            let parameter = resolve(description, parameter);
            if parameter["in"] == "query" {
                known.push(parameter["name"].as_str().unwrap_or_default().to_owned());
            }
        }
    }
    for name in &seen.query {
        if !known.contains(name) {
            return Err(format!(
                "{} {template} has no parameter '{name}'",
                seen.method
            ));
        }
    }
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    match (&seen.body, schema.is_null()) {
        (Some(_), true) => return Err(format!("{} {template} takes no body", seen.method)),
        (Some(body), false) => {
            let validator = jsonschema::validator_for(resolve(description, schema))
                .map_err(|e| e.to_string())?;
            validator
                .validate(body)
                .map_err(|error| format!("{} {template}: {error}", seen.method))?;
        }
        (None, false) if operation["requestBody"]["required"] == true => {
            return Err(format!("{} {template} needs a body", seen.method));
        }
        (None, _) => {}
    }
    Ok(format!("{} {template}", seen.method))
}

#[tokio::test]
async fn everything_asked_through_a_proxy_is_published() {
    let world = World::start().await;
    let (recorder, proxy) = Recorder::start().await;
    let job = world.queue("mona/site", &["self-hosted"]).await;
    world.queue("acme/web", &["self-hosted"]).await;

    // Personal and enterprise tokens.
    let personal = world.token("root", &["repo", "admin:org"]).await;
    let corp = world.token("root", &["manage_runners:enterprise"]).await;
    let mut config = world.config(CredentialKind::Token(personal));
    config.proxy.http = Some(format!("http://{proxy}"));
    config.owners = vec!["acme".into(), "mona".into()];
    config.enterprises = vec![enterprise("corp", &[])];
    config
        .credentials
        .push(named("corp", CredentialKind::EnterpriseToken(corp)));
    let mut watching = Watching::start(config);
    watching
        .until("a list of runners", |input| {
            matches!(input, Input::RunnersListed { .. }).then_some(())
        })
        .await;
    let main = CredentialName::new("main");
    let scopes = [
        (organization("acme"), main.clone()),
        (
            Scope::Enterprise {
                slug: "corp".into(),
            },
            CredentialName::new("corp"),
        ),
    ];
    for (number, (scope, credential)) in scopes.iter().enumerate() {
        let mut wanted = registration(&format!("ls-t-{number}"), scope.clone(), credential);
        wanted.runner_group = Some("default".into());
        watching.github.register(&wanted).await.unwrap();
        watching
            .github
            .deregister(&wanted.runner.clone(), scope, credential, None)
            .await;
        watching
            .github
            .list_runners(scope, credential)
            .await
            .unwrap();
    }
    drop(watching);

    // A user's own token, without owners: everything accessible.
    let own = world.token("mona", &["repo"]).await;
    let mut config = world.config(CredentialKind::Token(own));
    config.proxy.http = Some(format!("http://{proxy}"));
    let mut watching = Watching::start(config);
    let seen = watching.job(job).await;
    let made = watching
        .github
        .register(&registration(
            "ls-t-9",
            repository("mona", "site"),
            &seen.credential,
        ))
        .await
        .unwrap();
    watching
        .github
        .deregister(
            &RunnerName::new("ls-t-9"),
            &seen.scope,
            &seen.credential,
            Some(made.github_id),
        )
        .await;
    drop(watching);

    // An App.
    let permissions = json!({"actions": "read", "metadata": "read", "administration": "write"});
    let app = world
        .post(
            "apps",
            json!({"slug": "longshore", "permissions": permissions, "events": ["workflow_job"]}),
        )
        .await;
    world
        .post(
            "installations",
            json!({"app_id": app["id"], "account": "mona", "repositories": null}),
        )
        .await;
    let mut config = world.config(CredentialKind::App {
        id: app["id"].to_string(),
        key: secret(app["private_key"].as_str().unwrap()),
    });
    config.proxy.http = Some(format!("http://{proxy}"));
    let mut watching = Watching::start(config);
    watching.job(job).await;
    watching.github.shutdown().await;
    drop(watching);

    let published = Published::read();
    let calls = recorder.seen.lock().unwrap().clone();
    let mut operations: Vec<String> = calls
        .iter()
        .map(|seen| check(&published, seen).unwrap_or_else(|why| panic!("{why}")))
        .collect();
    assert!(
        calls.iter().all(|seen| seen.absolute),
        "all of it went through the proxy"
    );
    operations.sort();
    operations.dedup();
    for needed in [
        "delete /installation/token",
        "delete /orgs/{org}/actions/runners/{runner_id}",
        "get /app/installations",
        "get /enterprises/{enterprise}/actions/runner-groups",
        "get /installation/repositories",
        "get /orgs/{org}/actions/runner-groups",
        "get /repos/{owner}/{repo}/actions/runs",
        "get /repos/{owner}/{repo}/actions/runs/{run_id}/jobs",
        "get /user/repos",
        "post /app/installations/{installation_id}/access_tokens",
        "post /enterprises/{enterprise}/actions/runners/generate-jitconfig",
        "post /orgs/{org}/actions/runners/generate-jitconfig",
        "post /repos/{owner}/{repo}/actions/runners/generate-jitconfig",
    ] {
        assert!(
            operations.iter().any(|operation| operation == needed),
            "{needed} missing in {operations:#?}"
        );
    }
    world.server.stop().await;
}

#[test]
fn the_check_rejects_what_is_not_published() {
    let published = Published::read();
    let call = |method: &str, path: &str, query: &[&str], body: Option<Value>| {
        let seen = Seen {
            method: method.into(),
            path: path.into(),
            query: query.iter().map(ToString::to_string).collect(),
            body,
            absolute: true,
        };
        check(&published, &seen)
    };
    let jit = "/orgs/acme/actions/runners/generate-jitconfig";
    let body = json!({"name": "n", "runner_group_id": 1, "labels": ["a"], "work_folder": "_work"});
    assert!(call("post", jit, &[], Some(body.clone())).is_ok());
    assert!(
        call(
            "get",
            "/orgs/acme/actions/runners",
            &["name", "per_page"],
            None
        )
        .is_ok()
    );
    for field in ["name", "runner_group_id", "labels"] {
        let mut without = body.clone();
        without.as_object_mut().unwrap().remove(field);
        assert!(call("post", jit, &[], Some(without)).is_err(), "{field}");
    }
    let mut many = body.clone();
    many["labels"] = json!(vec!["x"; 101]);
    assert!(call("post", jit, &[], Some(many)).is_err());
    assert!(call("post", jit, &[], None).is_err());
    assert!(call("put", jit, &[], Some(body)).is_err());
    assert!(call("get", "/orgs/acme/actions/runners", &["status"], None).is_err());
    assert!(call("get", "/orgs/acme/actions/walkers", &[], None).is_err());
}
