//! One fleet over an organisation, an enterprise and a user account: each registers
//! at its own endpoint with its own token, and a job belongs to one scope.

use std::collections::{BTreeMap, BTreeSet};

use scheduler_core::{input::Input, model::Scope};
use scheduler_github::{Account, Config, ConfigError, CredentialKind, GitHub};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::{
    receiver::{Receiver, SECRET},
    world::{Watching, World, enterprise, named, organization, registration, repository, secret},
};

/// `acme/web`: root's own token. `sub/api`: enterprise `mega`, boss's token. `mona/site`: mona's.
async fn fleet(world: &World) -> Config {
    for (login, kind, members, enterprise) in [
        ("boss", "user", json!({}), None),
        ("mega", "enterprise", json!({"boss": "admin"}), None),
        (
            "sub",
            "organization",
            json!({"mona": "member"}),
            Some("mega"),
        ),
        (
            "far",
            "organization",
            json!({"mona": "member"}),
            Some("corp"),
        ),
    ] {
        let mut owner = json!({"login": login, "kind": kind, "members": members});
        if let Some(enterprise) = enterprise {
            owner["enterprise"] = json!(enterprise);
        }
        world.post("owners", owner).await;
    }
    for (owner, name) in [("sub", "api"), ("far", "away")] {
        world
            .post("repos", json!({"owner": owner, "name": name}))
            .await;
    }
    let main = world.token("mona", &["repo"]).await;
    let acme = world.token("root", &["repo", "admin:org"]).await;
    let corp = world.token("root", &["manage_runners:enterprise"]).await;
    let mega = world.token("boss", &["manage_runners:enterprise"]).await;
    let mut config = world.config(CredentialKind::Token(main));
    config
        .credentials
        .insert(0, named("acme", CredentialKind::Token(acme)));
    for (slug, token) in [("corp", corp), ("mega", mega)] {
        let credential = named(slug, CredentialKind::EnterpriseToken(token));
        config.credentials.push(credential);
    }
    config.accounts = vec![Account {
        login: "acme".into(),
        organization: true,
        credential: Some(scheduler_core::model::CredentialName::new("acme")),
    }];
    config.enterprises = vec![enterprise("corp", &["far"]), enterprise("mega", &["sub"])];
    config
}

/// Which user made each registration, by the path that was asked.
async fn registered_by(world: &World) -> BTreeMap<String, String> {
    let log = world.control.get("requests").await.unwrap();
    let entries = log["entries"].as_array().unwrap();
    entries
        .iter()
        .filter(|entry| entry["method"] == "POST")
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("path"), text("identity"))
        })
        .collect()
}

#[tokio::test]
async fn each_scope_registers_at_its_own_endpoint_with_its_own_token() {
    let world = World::start().await;
    let mut watching = Watching::start(fleet(&world).await);
    let routes = watching.routes(4).await;
    let expected: [(&str, Scope, &str); 4] = [
        ("acme/web", organization("acme"), "acme"),
        (
            "far/away",
            Scope::Enterprise {
                slug: "corp".into(),
            },
            "corp",
        ),
        ("mona/site", repository("mona", "site"), "main"),
        (
            "sub/api",
            Scope::Enterprise {
                slug: "mega".into(),
            },
            "mega",
        ),
    ];
    for (full, scope, credential) in &expected {
        let (found, with) = &routes[*full];
        assert_eq!((found, with.as_str()), (scope, *credential), "{full}");
        let name = format!("ls-t-{credential}");
        let made = watching
            .github
            .register(&registration(&name, scope.clone(), with))
            .await
            .unwrap();
        assert!(!made.jit.expose_secret().is_empty());
    }
    let by = registered_by(&world).await;
    let who = |path: &str| by[&format!("{path}/actions/runners/generate-jitconfig")].clone();
    let (acme, corp, mona, mega) = (
        who("/orgs/acme"),
        who("/enterprises/corp"),
        who("/repos/mona/site"),
        who("/enterprises/mega"),
    );
    assert_eq!(acme, corp, "both are root's tokens");
    assert_eq!(
        BTreeSet::from([&acme, &mona, &mega]).len(),
        3,
        "three people's tokens: {by:?}"
    );
    assert_eq!(by.len(), 4, "and nothing else was written: {by:?}");
    world.server.stop().await;
}

#[tokio::test]
async fn a_job_told_by_repository_organisation_and_sweep_belongs_to_one_scope() {
    let world = World::start().await;
    let mut config = fleet(&world).await;
    config.webhook_secrets = vec![secret(SECRET)];
    let mut watching = Watching::start(config);
    watching.routes(4).await;
    // While no webhook proves healthy, the sweep tells it; then both hooks do.
    let job = world.queue("sub/api", &["self-hosted"]).await;
    let mut seen = vec![watching.job(job).await];
    let mut receiver = Receiver::start(watching.github.clone()).await;
    for target in [
        json!({"repository": "sub/api"}),
        json!({"organization": "sub"}),
    ] {
        receiver.hook(&world, target).await;
    }
    world.post(&format!("jobs/{job}/start"), json!({})).await;
    while seen.len() < 3 {
        for input in receiver.next().await {
            if let Input::JobSeen(told) = input {
                seen.push((*told).clone());
            }
        }
    }
    let mega = Scope::Enterprise {
        slug: "mega".into(),
    };
    for told in &seen {
        assert_eq!((told.id.0, &told.scope), (job, &mega));
        assert_eq!(told.credential.as_str(), "mega");
    }
    world.server.stop().await;
}

#[tokio::test]
async fn an_enterprise_with_an_app_is_refused_before_anybody_is_called() {
    let world = World::start().await;
    let app: Value = world
        .post(
            "apps",
            json!({"slug": "longshore", "permissions": {}, "events": []}),
        )
        .await;
    let mut config = world.config(CredentialKind::App {
        id: app["id"].to_string(),
        key: secret(app["private_key"].as_str().unwrap()),
    });
    config.enterprises = vec![scheduler_github::Enterprise {
        credential: config.credentials[0].name.clone(),
        ..enterprise("corp", &[])
    }];
    let error = GitHub::connect(config).unwrap_err();
    assert!(
        matches!(error, ConfigError::EnterpriseApp { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("enterprise 'corp'") && text.contains("manage_runners:enterprise"),
        "{text}"
    );
    let log = world.control.get("requests").await.unwrap();
    assert_eq!(log["total"], 0, "{log}");
    world.server.stop().await;
}
