//! The production crate against the simulator: every way in, every scope, every life of a registration.

use scheduler_core::{
    input::{Deregistration, Input, RegistrationFailure},
    model::{CredentialName, JobPhase, RunnerName, Scope},
};
use scheduler_github::{ApiUrl, CredentialKind, GitHub};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::world::{
    Watching, World, enterprise, named, organization, registration, repository, secret,
};

#[tokio::test]
async fn a_personal_token_watches_a_user_account_and_registers_per_repository() {
    let world = World::start().await;
    let token = world.token("mona", &["repo"]).await;
    let job = world.queue("mona/site", &["self-hosted", "linux"]).await;
    let mut watching = Watching::start(world.config(CredentialKind::Token(token)));
    let seen = watching.job(job).await;
    assert_eq!(
        (seen.phase, &seen.scope),
        (JobPhase::Queued, &repository("mona", "site"))
    );
    assert_eq!(seen.labels, ["self-hosted", "linux"]);
    let made = watching
        .github
        .register(&registration(
            "ls-t-1",
            seen.scope.clone(),
            &seen.credential,
        ))
        .await
        .unwrap();
    assert!(made.jit.expose_secret().len() > 100);
    assert_eq!(world.runners().await, ["ls-t-1"]);
    let (outcome, error) = watching
        .github
        .deregister(
            &RunnerName::new("ls-t-1"),
            &seen.scope,
            &seen.credential,
            Some(made.github_id),
        )
        .await;
    assert_eq!((outcome, error), (Deregistration::Gone, None));
    assert!(world.runners().await.is_empty());
    world.server.stop().await;
}

#[tokio::test]
async fn organisation_and_enterprise_scopes_register_where_they_may() {
    let world = World::start().await;
    let admin = world.token("root", &["repo", "admin:org"]).await;
    let mut config = world.config(CredentialKind::Token(admin));
    config.owners = vec!["acme".into()];
    let mut watching = Watching::start(config);
    let routes = watching.routes(1).await;
    assert_eq!(
        routes["acme/web"],
        (organization("acme"), CredentialName::new("main"))
    );
    let wanted = registration("ls-t-1", organization("acme"), &CredentialName::new("main"));
    watching.github.register(&wanted).await.unwrap();

    // A member of the organisation may not; the enterprise's token may, for its own scope.
    let member = world.token("mona", &["repo"]).await;
    let owner = world.token("root", &["manage_runners:enterprise"]).await;
    let mut config = world.config(CredentialKind::Token(member));
    config.owners = vec!["acme".into()];
    config.enterprises = vec![enterprise("corp", &[])];
    config
        .credentials
        .push(named("corp", CredentialKind::EnterpriseToken(owner)));
    let mut watching = Watching::start(config);
    let routes = watching.routes(1).await;
    let corp = Scope::Enterprise {
        slug: "corp".into(),
    };
    assert_eq!(
        routes["acme/web"],
        (corp.clone(), CredentialName::new("corp"))
    );
    let wanted = registration("ls-t-2", corp, &CredentialName::new("corp"));
    watching.github.register(&wanted).await.unwrap();
    let mut runners = world.runners().await;
    runners.sort();
    assert_eq!(runners, ["ls-t-1", "ls-t-2"]);
    world.server.stop().await;
}

#[tokio::test]
async fn an_app_serves_its_installations_and_gives_its_tokens_back() {
    let world = World::start().await;
    let permissions = json!({"actions": "read", "metadata": "read", "administration": "write",
        "organization_self_hosted_runners": "write"});
    let app = world
        .post(
            "apps",
            json!({"slug": "longshore", "permissions": permissions, "events": ["workflow_job"]}),
        )
        .await;
    for account in ["acme", "mona"] {
        world
            .post(
                "installations",
                json!({"app_id": app["id"], "account": account, "repositories": null}),
            )
            .await;
    }
    let job = world
        .queue("acme/web", &["self-hosted", "linux", "x64"])
        .await;
    let mut watching = Watching::start(world.config(CredentialKind::App {
        id: app["id"].to_string(),
        key: secret(app["private_key"].as_str().unwrap()),
    }));
    let seen = watching.job(job).await;
    assert_eq!(seen.scope, organization("acme"));
    assert!(
        seen.credential.as_str().starts_with("main/"),
        "{}",
        seen.credential
    );
    watching
        .github
        .register(&registration(
            "ls-t-1",
            seen.scope.clone(),
            &seen.credential,
        ))
        .await
        .unwrap();
    let routes = watching.routes(2).await;
    let (scope, credential) = &routes["mona/site"];
    assert_eq!(scope, &repository("mona", "site"));
    assert_ne!(
        credential, &seen.credential,
        "each installation has its own"
    );
    watching
        .github
        .register(&registration("ls-t-2", scope.clone(), credential))
        .await
        .unwrap();
    assert_eq!(world.runners().await.len(), 2);
    watching.github.shutdown().await;
    let requests = world.control.get("requests").await.unwrap().to_string();
    assert!(requests.contains("/installation/token"), "{requests}");
    world.server.stop().await;
}

#[tokio::test]
async fn the_server_form_of_the_base_url_reaches_the_same_calls() {
    let world = World::start().await;
    let token = world.token("mona", &["repo"]).await;
    let job = world.queue("mona/site", &["self-hosted"]).await;
    let mut config = world.config(CredentialKind::Token(token));
    config.api_url = ApiUrl::parse(&format!("{}/api/v3/", world.server.rest_url())).unwrap();
    let mut watching = Watching::start(config);
    let seen = watching.job(job).await;
    let wanted = registration("ls-t-1", seen.scope, &seen.credential);
    watching.github.register(&wanted).await.unwrap();
    assert_eq!(world.runners().await, ["ls-t-1"]);
    world.server.stop().await;
}

#[tokio::test]
async fn a_job_queued_inside_a_running_run_is_seen() {
    let world = World::start().await;
    let token = world.token("mona", &["repo"]).await;
    let run = world
        .post("runs", json!({"repository": "mona/site", "jobs": [
            {"name": "first", "labels": ["self-hosted"]}, {"name": "second", "labels": ["self-hosted", "gpu"]}]}))
        .await;
    let ids: Vec<u64> = run["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["id"].as_u64().unwrap())
        .collect();
    world
        .post(&format!("jobs/{}/start", ids[0]), json!({}))
        .await;
    let mut watching = Watching::start(world.config(CredentialKind::Token(token)));
    let hidden = watching.job(ids[1]).await;
    assert_eq!(
        (hidden.phase, hidden.run_id),
        (JobPhase::Queued, run["run_id"].as_u64().unwrap())
    );
    // Its end is told although no list shows the run any more.
    world
        .post(&format!("jobs/{}/start", ids[1]), json!({}))
        .await;
    for id in &ids {
        world
            .post(
                &format!("jobs/{id}/complete"),
                json!({"conclusion": "success"}),
            )
            .await;
    }
    let ended = watching
        .until("the end", |input| match input {
            Input::JobSeen(seen) if seen.id.0 == ids[1] && seen.phase == JobPhase::Completed => {
                Some(seen)
            }
            _ => None,
        })
        .await;
    assert_eq!(
        ended.conclusion,
        Some(scheduler_core::model::Conclusion::Success)
    );
    world.server.stop().await;
}

#[tokio::test]
async fn a_registration_in_doubt_is_found_and_deleted_by_its_name() {
    let world = World::start().await;
    let token = world.token("root", &["repo", "admin:org"]).await;
    let github = GitHub::connect(world.config(CredentialKind::Token(token))).unwrap();
    let main = CredentialName::new("main");
    world
        .control
        .put("faults", &json!({"jit_500_after_create": 1.0}))
        .await
        .unwrap();
    let wanted = registration("ls-t-1", organization("acme"), &main);
    let error = github.register(&wanted).await.unwrap_err();
    assert_eq!(error.failure, RegistrationFailure::Ambiguous, "{error}");
    assert_eq!(
        world.runners().await,
        ["ls-t-1"],
        "it was made all the same"
    );
    world.control.put("faults", &json!({})).await.unwrap();
    let error = github.register(&wanted).await.unwrap_err();
    assert_eq!(
        error.failure,
        RegistrationFailure::Ambiguous,
        "409: {error}"
    );
    let (outcome, error) = github
        .deregister(&wanted.runner, &wanted.scope, &main, None)
        .await;
    assert_eq!((outcome, error), (Deregistration::Gone, None));
    assert!(world.runners().await.is_empty());
    world.server.stop().await;
}

#[tokio::test]
async fn orphans_are_listed_with_our_prefix_only() {
    let world = World::start().await;
    let token = world.token("root", &["repo", "admin:org"]).await;
    for name in ["ls-t-1", "foreign"] {
        let body =
            json!({"scope": "orgs/acme", "name": name, "labels": ["self-hosted"], "online": false});
        world.post("runners", body).await;
    }
    let mut config = world.config(CredentialKind::Token(token));
    config.owners = vec!["acme".into()];
    let mut watching = Watching::start(config);
    let runners = watching
        .until("a list of runners", |input| match input {
            Input::RunnersListed { scope, runners } if scope == organization("acme") => {
                Some(runners)
            }
            _ => None,
        })
        .await;
    assert_eq!(runners.len(), 1);
    assert_eq!(
        (runners[0].name.as_str(), runners[0].online),
        ("ls-t-1", false)
    );
    world.server.stop().await;
}

#[tokio::test]
async fn a_missing_permission_is_told_with_what_github_asks_for() {
    let world = World::start().await;
    let answer = world
        .post("tokens", json!({"login": "root", "permissions": {"actions": "read", "metadata": "read"}, "repositories": null}))
        .await;
    let token = secret(answer["token"].as_str().unwrap());
    let github = GitHub::connect(world.config(CredentialKind::Token(token))).unwrap();
    let wanted = registration("ls-t-1", organization("acme"), &CredentialName::new("main"));
    let error = github.register(&wanted).await.unwrap_err();
    assert_eq!(error.failure, RegistrationFailure::Forbidden, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("organization_self_hosted_runners=write"),
        "{text}"
    );
    world.server.stop().await;
}

#[tokio::test]
async fn a_renamed_repository_goes_on_being_served() {
    let world = World::start().await;
    let token = world.token("mona", &["repo"]).await;
    let mut watching = Watching::start(world.config(CredentialKind::Token(token)));
    watching.routes(1).await;
    world
        .post(
            "repos/rename",
            json!({"repository": "mona/site", "name": "home"}),
        )
        .await;
    let job = world.queue("mona/home", &["self-hosted"]).await;
    let seen = watching.job(job).await;
    let made = watching
        .github
        .register(&registration("ls-t-1", seen.scope, &seen.credential))
        .await;
    made.unwrap();
    world.server.stop().await;
}
