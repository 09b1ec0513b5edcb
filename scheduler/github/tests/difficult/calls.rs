//! Registration, deletion and lists.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use crate::fake::{Fake, Say, TOKEN, jit, org, registration, runner, unix_now};
use axum::http::Method;
use scheduler_core::{
    input::{Deregistration, RegistrationFailure},
    model::{CredentialName, RunnerName, Scope},
};
use scheduler_github::{CallError, CredentialKind, GitHub, SecretSource};
use secrecy::ExposeSecret;
use serde_json::json;

#[tokio::test]
async fn a_registration_sends_exactly_what_was_asked_and_returns_the_secret_once() {
    let fake = Fake::start(|_| jit(7, "ls-1")).await;
    let github = fake.github();
    let made = github.register(&registration("ls-1")).await.unwrap();
    assert_eq!((made.github_id, made.jit.expose_secret()), (7, "c2VjcmV0"));
    assert!(!format!("{made:?}{github:?}").contains("c2VjcmV0"));
    assert!(!format!("{github:?}").contains(TOKEN));
    let seen = &fake.seen()[0];
    assert_eq!(seen.method, Method::POST);
    assert_eq!(seen.target, "/orgs/acme/actions/runners/generate-jitconfig");
    assert_eq!(
        seen.body,
        json!({"name": "ls-1", "runner_group_id": 1, "labels": ["self-hosted", "linux"], "work_folder": "_work"})
    );
    let header = |name: &str| seen.headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("authorization"), format!("Bearer {TOKEN}"));
    assert_eq!(header("accept"), "application/vnd.github+json");
    assert_eq!(header("x-github-api-version"), "2022-11-28");
    assert!(header("user-agent").starts_with("longshore/"));
}

#[tokio::test]
async fn an_answer_in_doubt_makes_the_name_ambiguous_and_is_never_repeated() {
    for status in [500, 502, 503, 409] {
        let fake =
            Fake::start(move |_| Say::new(status, json!({"message": "Already exists"}))).await;
        let error = fake
            .github()
            .register(&registration("ls-1"))
            .await
            .unwrap_err();
        assert_eq!(error.failure, RegistrationFailure::Ambiguous, "{status}");
        assert_eq!(
            fake.seen().len(),
            1,
            "a POST is not repeated after {status}"
        );
    }
    let fake = Fake::start(|_| jit(1, "x").late(Duration::from_secs(60))).await;
    let mut config = fake.config();
    config.call_timeout = Duration::from_millis(200);
    let github = GitHub::connect(config).unwrap();
    let error = github.register(&registration("ls-1")).await.unwrap_err();
    assert_eq!(error.failure, RegistrationFailure::Ambiguous);
    assert!(error.to_string().contains("may have happened"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_doubt_about_the_name() {
    let fake = Fake::start(|_| jit(1, "x")).await;
    let github = fake.github();
    let address = fake.address;
    drop(fake);
    // The port is closed once the server task is gone.
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let error = github.register(&registration("ls-1")).await.unwrap_err();
    assert_eq!(error.failure, RegistrationFailure::Transient, "{error}");
    assert!(error.to_string().contains("NO_PROXY"), "{error}");
}

#[tokio::test]
async fn a_missing_permission_is_told_in_githubs_own_words() {
    let fake = Fake::start(|_| {
        Say::new(
            403,
            json!({"message": "Resource not accessible by integration ghs_leaked_token"}),
        )
        .with(
            "x-accepted-github-permissions",
            "organization_self_hosted_runners=write",
        )
        .with("x-ratelimit-remaining", "4000")
        .with("x-ratelimit-limit", "5000")
        .with("x-ratelimit-reset", unix_now() + 60)
    })
    .await;
    let github = fake.github();
    for _ in 0..2 {
        let error = github.register(&registration("ls-1")).await.unwrap_err();
        assert_eq!(error.failure, RegistrationFailure::Forbidden);
        let text = error.to_string();
        assert!(
            text.contains("X-Accepted-GitHub-Permissions: organization_self_hosted_runners=write"),
            "{text}"
        );
        assert!(!text.contains("ghs_leaked"), "{text}");
    }
    assert_eq!(fake.seen().len(), 2, "a permission problem is no rest");
}

#[tokio::test]
async fn limits_stop_the_next_call_before_it_is_sent() {
    let reset = unix_now() + 90;
    let cases = [
        Say::new(429, json!({"message": "slow down"})),
        Say::new(
            403,
            json!({"message": "You have exceeded a secondary rate limit"}),
        ),
        Say::new(403, json!({"message": "wait"})).with("retry-after", 60),
        Say::new(403, json!({"message": "API rate limit exceeded"}))
            .with("x-ratelimit-limit", 5000)
            .with("x-ratelimit-remaining", 0)
            .with("x-ratelimit-reset", reset)
            .with("x-ratelimit-resource", "core"),
    ];
    for say in cases {
        let fake = Fake::start({
            let say = say.clone();
            move |_| say.clone()
        })
        .await;
        let github = fake.github();
        for _ in 0..3 {
            let error = github.register(&registration("ls-1")).await.unwrap_err();
            let RegistrationFailure::RateLimited { until } = error.failure else {
                panic!("{say:?}: {error}");
            };
            let ahead = until.saturating_sub(unix_now() * 1000);
            assert!((50_000..100_000).contains(&ahead), "{say:?}: {ahead}");
        }
        assert_eq!(fake.seen().len(), 1, "{say:?}");
    }
}

#[tokio::test]
async fn after_a_secondary_limit_calls_go_one_by_one() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let fake = Fake::start(|_| match CALLS.fetch_add(1, Ordering::SeqCst) {
        0 => Say::new(403, json!({"message": "secondary rate limit"})).with("retry-after", 1),
        _ => jit(1, "x").late(Duration::from_millis(30)),
    })
    .await;
    let github = fake.github();
    let error = github.register(&registration("first")).await.unwrap_err();
    let RegistrationFailure::RateLimited { until } = error.failure else {
        panic!("{error}")
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while unix_now() * 1000 < until {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = std::time::Instant::now();
    let wanted: Vec<_> = (0..8).map(|n| registration(&format!("ls-{n}"))).collect();
    let calls = wanted.iter().map(|wanted| github.register(wanted));
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert!(
        began.elapsed() >= Duration::from_millis(8 * 30),
        "they overlapped: {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn never_more_than_eight_in_flight_and_a_hundred_at_once() {
    let fake = Fake::start(|_| jit(1, "x").late(Duration::from_millis(40))).await;
    let github = fake.github();
    let wanted: Vec<_> = (0..130).map(|n| registration(&format!("ls-{n}"))).collect();
    let began = std::time::Instant::now();
    let calls = wanted.iter().map(|wanted| github.register(wanted));
    let outcomes = futures_util::future::join_all(calls).await;
    let made = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(fake.seen().len(), made);
    // The bucket holds 100 and gains two a second.
    let gained = usize::try_from(began.elapsed().as_secs()).unwrap() * 2 + 2;
    assert!((100..=100 + gained).contains(&made), "{made}");
    assert!(began.elapsed() >= Duration::from_millis(40) * u32::try_from(made / 8).unwrap());
    for refused in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(
            refused.failure,
            RegistrationFailure::RateLimited { .. }
        ));
    }
}

#[tokio::test]
async fn deleting_knows_gone_busy_and_names() {
    let fake = Fake::start(|seen| match (seen.method.as_str(), seen.target.as_str()) {
        ("DELETE", target) if target.ends_with("/1") => Say::new(204, json!(null)),
        ("DELETE", target) if target.ends_with("/2") => Say::new(404, json!({"message": "Not Found"})),
        ("DELETE", target) if target.ends_with("/3") => {
            Say::new(422, json!({"message": "Bad request", "errors": ["runner is busy"]}))
        }
        ("DELETE", _) => Say::new(500, json!({})),
        ("GET", target) if target.contains("name=ls-known&") => {
            // The filter may be a prefix match.
            Say::new(200, json!({"total_count": 2, "runners": [runner(9, "ls-known-too"), runner(1, "ls-known")]}))
        }
        ("GET", _) => Say::new(200, json!({"total_count": 0, "runners": []})),
        _ => Say::new(418, json!({})),
    })
    .await;
    let github = fake.github();
    let credential = CredentialName::new("main");
    let delete = async |name: &str, id| {
        github
            .deregister(&RunnerName::new(name), &org(), &credential, id)
            .await
            .0
    };
    assert_eq!(delete("a", Some(1)).await, Deregistration::Gone);
    assert_eq!(delete("a", Some(2)).await, Deregistration::Gone);
    assert_eq!(delete("a", Some(3)).await, Deregistration::Busy);
    assert_eq!(delete("a", Some(4)).await, Deregistration::Failed);
    assert_eq!(delete("ls-known", None).await, Deregistration::Gone);
    assert_eq!(fake.count(&Method::DELETE, "/runners/1"), 2);
    assert_eq!(delete("ls-unknown", None).await, Deregistration::Gone);
}

#[tokio::test]
async fn runner_lists_follow_links_of_any_form_and_keep_to_our_prefix() {
    let fake = Fake::start(|seen| {
        let host = seen.headers["host"].to_str().unwrap();
        if seen.target.starts_with("/organizations/5/") {
            return Say::new(200, json!({"total_count": 3, "runners": [runner(3, "ls-f-3"), "odd", {"id": null}]}));
        }
        Say::new(200, json!({"total_count": 3, "runners": [runner(1, "ls-f-1"), runner(2, "theirs")]})).with(
            "link",
            format!("<http://{host}/x?page=9>; rel=\"last\", <http://{host}/organizations/5/actions/runners?page=2>; rel=\"next\""),
        )
    })
    .await;
    let mut config = fake.config();
    config.runner_prefixes = vec!["ls-f-".into()];
    let github = GitHub::connect(config).unwrap();
    let found = github
        .list_runners(&org(), &CredentialName::new("main"))
        .await
        .unwrap();
    let names: Vec<&str> = found.iter().map(|runner| runner.name.as_str()).collect();
    assert_eq!(names, ["ls-f-1", "ls-f-3"]);
}

#[tokio::test]
async fn a_list_with_a_missing_page_is_no_list() {
    let fake = Fake::start(|seen| {
        if seen.target.contains("page=2") {
            return Say::new(404, json!({"message": "Not Found"}));
        }
        let host = seen.headers["host"].to_str().unwrap();
        Say::new(200, json!({"runners": [runner(1, "ls-f-1")]})).with(
            "link",
            format!("<http://{host}/orgs/acme/actions/runners?page=2>; rel=\"next\""),
        )
    })
    .await;
    let outcome = fake
        .github()
        .list_runners(&org(), &CredentialName::new("main"))
        .await;
    assert!(
        matches!(outcome, Err(CallError::NotFound { .. })),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn links_and_redirects_that_leave_the_server_get_no_token() {
    let thief = Fake::start(|_| Say::new(200, json!({"runners": []}))).await;
    let elsewhere = thief.url();
    let fake = Fake::start(move |seen| {
        if seen.target.starts_with("/orgs") {
            Say::new(200, json!({"runners": []}))
                .with("link", format!("<{elsewhere}/more>; rel=\"next\""))
        } else {
            Say::new(302, json!({})).with("location", format!("{elsewhere}/more"))
        }
    })
    .await;
    let github = fake.github();
    let credential = CredentialName::new("main");
    assert!(github.list_runners(&org(), &credential).await.is_err());
    let enterprise = Scope::Enterprise {
        slug: "corp".into(),
    };
    assert!(github.list_runners(&enterprise, &credential).await.is_err());
    assert_eq!(thief.seen().len(), 0);
}

#[tokio::test]
async fn renamed_repositories_are_followed_with_method_and_body() {
    let fake = Fake::start(|seen| {
        if seen.target.starts_with("/repos/acme/old/") {
            Say::new(307, json!({"message": "Moved"})).with(
                "location",
                "/repositories/5/actions/runners/generate-jitconfig",
            )
        } else {
            jit(4, "ls-1")
        }
    })
    .await;
    let wanted = scheduler_github::Registration {
        scope: Scope::Repository {
            owner: "acme".into(),
            repo: "old".into(),
        },
        ..registration("ls-1")
    };
    assert_eq!(fake.github().register(&wanted).await.unwrap().github_id, 4);
    let last = fake.seen().pop().unwrap();
    assert_eq!(
        (last.method, last.body["name"].as_str()),
        (Method::POST, Some("ls-1"))
    );
}

#[tokio::test]
async fn reads_are_tried_again_after_a_server_error() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let fake = Fake::start(|_| match CALLS.fetch_add(1, Ordering::SeqCst) {
        0 => Say::new(502, json!("bad gateway")),
        _ => Say::new(200, json!({"runners": [runner(1, "ls-1")]})),
    })
    .await;
    let found = fake
        .github()
        .list_runners(&org(), &CredentialName::new("main"))
        .await
        .unwrap();
    assert_eq!((found.len(), CALLS.load(Ordering::SeqCst)), (1, 2));
}

#[tokio::test]
async fn a_replaced_token_file_is_used_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    write_secret(&path, "ghp_old");
    let fake = Fake::start(
        |seen| match seen.headers["authorization"].to_str().unwrap() {
            "Bearer ghp_new" => jit(1, "x"),
            _ => Say::new(401, json!({"message": "Bad credentials"})),
        },
    )
    .await;
    let mut config = fake.config();
    config.credentials[0].kind = CredentialKind::Token(SecretSource::File(path.clone()));
    let github = GitHub::connect(config).unwrap();
    let error = github.register(&registration("ls-1")).await.unwrap_err();
    assert_eq!(error.failure, RegistrationFailure::Forbidden);
    let text = error.to_string();
    assert!(
        text.contains("main") && text.contains("fresh one") && !text.contains("ghp_old"),
        "{text}"
    );
    let asked = fake.seen().len();
    let again = github.register(&registration("ls-1")).await.unwrap_err();
    assert_eq!(again.failure, RegistrationFailure::Forbidden);
    assert_eq!(
        fake.seen().len(),
        asked,
        "a refused token is not insisted on"
    );
    write_secret(&path, "ghp_new\n");
    github.register(&registration("ls-2")).await.unwrap();
}

#[tokio::test]
async fn a_named_group_is_looked_up_once_and_an_unknown_one_is_told() {
    let fake = Fake::start(|seen| {
        if seen.method == Method::GET {
            return Say::new(
                200,
                json!({"total_count": 2.0, "runner_groups": [
                {"id": 1, "name": "Default"}, {"id": 42, "name": "GPU machines"}]}),
            );
        }
        jit(1, "x")
    })
    .await;
    let github = fake.github();
    let mut wanted = registration("ls-1");
    wanted.runner_group = Some("gpu MACHINES".into());
    github.register(&wanted).await.unwrap();
    github.register(&wanted).await.unwrap();
    assert_eq!(fake.count(&Method::GET, "runner-groups"), 1);
    assert_eq!(fake.seen().pop().unwrap().body["runner_group_id"], 42);
    wanted.runner_group = Some("none".into());
    let error = github.register(&wanted).await.unwrap_err();
    assert_eq!(error.failure, RegistrationFailure::NotFound);
    assert!(
        error.to_string().contains("runner group 'none' of acme"),
        "{error}"
    );
}

/// As a careful operator would: nobody else may read it.
fn write_secret(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
