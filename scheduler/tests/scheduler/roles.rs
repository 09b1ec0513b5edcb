//! Each call and route with each kind of caller: what is let through is what is declared.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use longshore_proto::v1;
use longshore_scheduler::web::health;
use prost::Message;
use prost_types::FileDescriptorSet;
use scheduler_identity::{
    bearer,
    role::{Access, CALLS, ROUTES, Reach, Role, Scope},
};
use scheduler_store::{Commit, Store, TokenChange, TokenRow};
use secrecy::ExposeSecret;
use tonic::Code;

use super::harness::{Bearer, PATIENCE, Scheduler, World, channel, queued, until};

/// Every rpc that the API listener serves, as its descriptors have it.
fn served() -> BTreeSet<(String, String)> {
    let sets = [
        longshore_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let mut served = BTreeSet::new();
    for set in sets {
        for file in FileDescriptorSet::decode(set).expect("descriptors").file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                // It has a listener of its own, on which certificates count.
                if name == "longshore.v1.NodeService" {
                    continue;
                }
                for method in &service.method {
                    served.insert((name.clone(), method.name().to_owned()));
                }
            }
        }
    }
    served
}

#[test]
fn every_call_and_route_is_declared_and_nothing_else_is() {
    let declared: BTreeSet<_> = CALLS
        .iter()
        .map(|(service, call, _)| ((*service).to_owned(), (*call).to_owned()))
        .collect();
    let served = served();
    let missing: Vec<_> = served.difference(&declared).collect();
    assert!(missing.is_empty(), "no role is declared for {missing:?}");
    let gone: Vec<_> = declared.difference(&served).collect();
    assert!(gone.is_empty(), "declared, and served nowhere: {gone:?}");
    let declared: BTreeSet<_> = ROUTES.iter().map(|(path, _)| *path).collect();
    assert_eq!(declared, BTreeSet::from(health::PATHS));
}

/// A token put into the store before the start, as an earlier process left it.
async fn token(world: &World, name: &str, change: impl FnOnce(&mut TokenRow)) -> String {
    let minted = bearer::mint().expect("randomness");
    let mut row = TokenRow {
        id: minted.id,
        name: name.to_owned(),
        hash: *minted.hash.as_bytes(),
        role: "viewer".to_owned(),
        scope: String::new(),
        created_at: 1,
        created_by: "ada".to_owned(),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    };
    change(&mut row);
    let epoch = world.store.load().await.expect("loads").epoch;
    let commit = Commit {
        expected_epoch: epoch,
        tokens: vec![TokenChange::Made(row)],
        ..Commit::default()
    };
    world.store.commit(commit).await.expect("kept");
    minted.token.expose_secret().to_owned()
}

/// Who, the token, and what it may; `None`: it opens nothing.
type Caller = (&'static str, Option<String>, Option<(Role, Scope)>);

/// What an answer's headers say: the gRPC status when there is one, and the HTTP status.
struct Answer {
    grpc: Option<Code>,
    http: StatusCode,
    headers: HeaderMap,
}

async fn ask(scheduler: &Scheduler, path: &str, headers: &[(&str, &str)]) -> Answer {
    let address = scheduler.running.addresses.api;
    let is_call = path.starts_with("/longshore.") || path.starts_with("/grpc.");
    let mut request = Request::builder()
        .method(if is_call { "POST" } else { "GET" })
        .uri(format!("http://{address}{path}"));
    if is_call {
        request = request.header("content-type", "application/grpc-web+proto");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // An empty message: no compression, length 0.
    let body = if is_call {
        Bytes::from_static(&[0; 5])
    } else {
        Bytes::new()
    };
    let request = request.body(Full::new(body)).expect("a request");
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = tokio::time::timeout(PATIENCE, client.request(request)).await;
    let answer = answer.expect("in time").expect("an answer");
    let grpc = answer.headers().get("grpc-status");
    let grpc = grpc.map(|code| Code::from_bytes(code.as_bytes()));
    Answer {
        grpc,
        http: answer.status(),
        headers: answer.headers().clone(),
    }
}

/// Whether the gate let it pass; what the handler thinks of an empty request does not matter.
fn let_through(answer: &Answer) -> bool {
    let refused = [Code::Unauthenticated, Code::PermissionDenied];
    let by_status = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
    !answer.grpc.is_some_and(|code| refused.contains(&code)) && !by_status.contains(&answer.http)
}

#[tokio::test]
async fn what_is_let_through_is_what_is_declared() {
    let world = World::new();
    let of = |role: &'static str, scope: &'static str| {
        move |row: &mut TokenRow| {
            row.role = role.to_owned();
            row.scope = scope.to_owned();
        }
    };
    let mut callers: Vec<Caller> = vec![
        ("nobody", None, None),
        ("a garbled token", Some("lst_x".to_owned()), None),
        ("a stranger's token", Some(stranger()), None),
    ];
    let expired = token(&world, "expired", |row| {
        row.role = "admin".to_owned();
        row.expires_at = Some(2);
    });
    callers.push(("an expired admin", Some(expired.await), None));
    let revoked = token(&world, "revoked", |row| {
        row.role = "admin".to_owned();
        row.revoked_at = Some(2);
    });
    callers.push(("a revoked admin", Some(revoked.await), None));
    for (who, role, scope) in [
        ("a scraper", "scrape", ""),
        ("a viewer", "viewer", ""),
        ("an operator", "operator", ""),
        ("an admin", "admin", ""),
        ("a viewer of an owner", "viewer", "acme"),
        ("an operator of a repository", "operator", "acme/web"),
    ] {
        let text = token(&world, who, of(role, scope)).await;
        let may = (
            role.parse::<Role>().expect("a role"),
            scope.parse::<Scope>().expect("a scope"),
        );
        callers.push((who, Some(text), Some(may)));
    }
    let scheduler = world.start().await;
    let paths = CALLS
        .iter()
        .map(|(service, call, access)| (format!("/{service}/{call}"), *access))
        .chain(
            ROUTES
                .iter()
                .map(|(path, access)| ((*path).to_owned(), *access)),
        );
    let mut through = 0;
    for (path, access) in paths {
        for (who, text, may) in &callers {
            let bearer = text.as_ref().map(|text| format!("Bearer {text}"));
            let headers: Vec<_> = bearer
                .iter()
                .map(|b| ("authorization", b.as_str()))
                .collect();
            let answer = ask(&scheduler, &path, &headers).await;
            let expected = match (access, may) {
                (Access::Open, _) => true,
                (Access::Role { .. }, None) => false,
                (Access::Role { needs, reach }, Some((role, scope))) => {
                    *role >= needs && (scope.is_fleet() || reach != Reach::Fleet)
                }
            };
            assert_eq!(let_through(&answer), expected, "{who} at {path}");
            through += usize::from(expected);
            if !expected {
                let unknown = may.is_none();
                assert_eq!(
                    answer.grpc == Some(Code::Unauthenticated)
                        || answer.http == StatusCode::UNAUTHORIZED,
                    unknown,
                    "{who} at {path}"
                );
            }
            if answer.http == StatusCode::UNAUTHORIZED {
                assert!(answer.headers.contains_key("www-authenticate"), "{path}");
            }
        }
    }
    assert!(through > CALLS.len(), "the walk let nobody through");
    scheduler.shutdown().await;
}

fn stranger() -> String {
    let minted = bearer::mint().expect("randomness");
    minted.token.expose_secret().to_owned()
}

#[tokio::test]
async fn what_nobody_declared_is_served_to_nobody() {
    let scheduler = World::new().start().await;
    let bearer = format!("Bearer {}", scheduler.token());
    for path in [
        "/longshore.v1.FleetService/Nothing",
        "/longshore.v1.NodeService/Attach",
        "/longshore.v1.FleetService/GetStatus/",
        "//longshore.v1.FleetService/GetStatus",
        "/",
        "/dashboard",
        "/metrics/",
        "/webhooks/github",
    ] {
        let nobody = ask(&scheduler, path, &[]).await;
        assert!(!let_through(&nobody), "{path}");
        let admin = ask(&scheduler, path, &[("authorization", &bearer)]).await;
        let refused =
            admin.grpc == Some(Code::Unimplemented) || admin.http == StatusCode::NOT_FOUND;
        assert!(refused, "{path}: {:?} {}", admin.grpc, admin.http);
    }
    scheduler.shutdown().await;
}

#[tokio::test]
async fn tokens_in_urls_strange_names_and_foreign_pages_are_refused() {
    let scheduler = World::new().start().await;
    let token = scheduler.token();
    let bearer = format!("Bearer {token}");
    let shown = ("authorization", bearer.as_str());
    for path in [
        format!("/metrics?access_token={token}"),
        format!("/metrics?x={token}"),
        format!("/{token}"),
    ] {
        let answer = ask(&scheduler, &path, &[shown]).await;
        assert_eq!(answer.http, StatusCode::BAD_REQUEST);
    }
    for (name, value, status) in [
        ("host", "evil.example", StatusCode::FORBIDDEN),
        ("host", "localhost:9000", StatusCode::OK),
        ("origin", "https://evil.example", StatusCode::FORBIDDEN),
    ] {
        let answer = ask(&scheduler, "/metrics", &[shown, (name, value)]).await;
        assert_eq!(answer.http, status, "{name}: {value}");
    }
    let own = format!("http://{}", scheduler.running.addresses.api);
    let answer = ask(&scheduler, "/metrics", &[shown, ("origin", &own)]).await;
    assert_eq!(answer.http, StatusCode::OK);
    let twice = ask(&scheduler, "/metrics", &[shown, shown]).await;
    assert_eq!(twice.http, StatusCode::UNAUTHORIZED);
    // Nothing of the token stands in the audit log.
    let written = until("the denials are written", || async {
        let rows = scheduler_rows(&scheduler).await;
        let has = |reason: &str| rows.iter().any(|row| row.detail == reason);
        let all = [
            "token_in_url",
            "host_not_known",
            "origin_refused",
            "bad_token",
        ];
        all.into_iter().all(has).then_some(rows)
    });
    for row in written.await {
        assert!(!format!("{row:?}").contains(&token[20..]), "{row:?}");
    }
    scheduler.shutdown().await;
}

async fn scheduler_rows(scheduler: &Scheduler) -> Vec<scheduler_store::AuditEntry> {
    scheduler
        .audit()
        .await
        .into_iter()
        .map(|row| row.entry)
        .collect()
}

#[tokio::test]
async fn each_change_and_each_denial_names_its_caller() {
    let world = World::new();
    let viewer = token(&world, "watcher", |_| {}).await;
    let scheduler = world.start().await;
    let mut fleet = scheduler.fleet().await;
    let request = v1::SetShareRequest {
        subject: "acme".to_owned(),
        weight: 2,
        request_id: "r-7".to_owned(),
        ..v1::SetShareRequest::default()
    };
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut call = tonic::Request::new(request.clone());
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    call.metadata_mut()
        .insert("traceparent", parent.parse().expect("a header"));
    fleet.set_share(call).await.expect("set");
    let mut watcher = v1::fleet_service_client::FleetServiceClient::with_interceptor(
        channel(scheduler.running.addresses.api).await,
        Bearer(viewer),
    );
    let denied = watcher.set_share(request).await.expect_err("refused");
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(
        denied.message().contains("needs the role admin"),
        "{denied}"
    );
    let rows = until("both are written", || async {
        let rows = scheduler_rows(&scheduler).await;
        let of = |outcome: &str| {
            let found = |row: &&scheduler_store::AuditEntry| {
                row.action == "FleetService/SetShare" && row.outcome == outcome
            };
            rows.iter().find(found).cloned()
        };
        of("ok").zip(of("denied"))
    });
    let (changed, denied) = rows.await;
    assert_eq!(
        (changed.actor.as_str(), changed.kind.as_str()),
        ("local", "token")
    );
    assert_eq!(changed.subject, "acme");
    assert_eq!(changed.request_id, "r-7");
    assert_eq!(changed.trace, trace);
    assert_eq!(changed.address, "127.0.0.1");
    assert_eq!(changed.surface, "tonic");
    assert_eq!(denied.actor, "watcher");
    assert_eq!(denied.detail, "role_too_low");
    assert!(!denied.credential.is_empty() && denied.credential != changed.credential);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_flood_of_denials_is_counted_and_not_written() {
    let scheduler = World::new().start().await;
    for _ in 0..200 {
        let answer = ask(&scheduler, "/metrics", &[]).await;
        assert_eq!(answer.http, StatusCode::UNAUTHORIZED);
    }
    let store = scheduler.store.clone();
    // At the end what was only counted is told.
    scheduler.shutdown().await;
    let rows = store
        .audit(scheduler_store::AuditQuery::default())
        .await
        .expect("audit");
    let denied: Vec<_> = rows
        .iter()
        .filter(|row| row.entry.outcome == "denied")
        .collect();
    assert!(denied.len() <= 12, "{} rows", denied.len());
    assert!(
        denied[0].entry.detail.contains("more were not written"),
        "{:?}",
        denied[0]
    );
}

#[tokio::test]
async fn a_scope_shows_its_own_and_hides_the_rest() {
    let world = World::new();
    let own = token(&world, "acme", |row| {
        row.scope = "acme".to_owned();
        row.role = "operator".to_owned();
    });
    let own = own.await;
    let other = token(&world, "other", |row| row.scope = "other/web".to_owned()).await;
    let scheduler = world.start().await;
    scheduler.deliver(&queued(1)).await;
    let as_of = |text: String| async {
        let channel = channel(scheduler.running.addresses.api).await;
        v1::fleet_service_client::FleetServiceClient::with_interceptor(channel, Bearer(text))
    };
    let (mut own, mut other) = (as_of(own).await, as_of(other).await);
    let jobs = |answer: tonic::Response<v1::ListJobsResponse>| answer.into_inner().jobs.len();
    let list = v1::ListJobsRequest::default;
    assert_eq!(jobs(own.list_jobs(list()).await.expect("lists")), 1);
    assert_eq!(jobs(other.list_jobs(list()).await.expect("lists")), 0);
    let repo = own
        .list_jobs(list())
        .await
        .expect("lists")
        .into_inner()
        .jobs[0]
        .repo
        .clone();
    assert!(repo.starts_with("acme/"), "{repo}");
    let get = || v1::GetJobRequest { id: 1 };
    assert!(own.get_job(get()).await.is_ok());
    let hidden = other.get_job(get()).await.expect_err("hidden");
    assert_eq!(hidden.code(), Code::NotFound);
    let explained = other.explain_job(v1::ExplainJobRequest { id: 1 }).await;
    assert_eq!(explained.expect_err("hidden").code(), Code::NotFound);
    let filtered = v1::ListJobsRequest { repo, ..list() };
    let refused = other.list_jobs(filtered).await.expect_err("hidden");
    assert_eq!(refused.code(), Code::NotFound);
    let status = |answer: tonic::Response<v1::GetStatusResponse>| answer.into_inner();
    let seen = status(
        own.get_status(v1::GetStatusRequest {})
            .await
            .expect("answers"),
    );
    assert_eq!(seen.queued_workflows, 1);
    let unseen = status(
        other
            .get_status(v1::GetStatusRequest {})
            .await
            .expect("answers"),
    );
    assert_eq!(unseen.queued_workflows, 0);
    assert!(unseen.credentials.is_empty());
    let queues = own
        .list_workflow_queues(v1::ListWorkflowQueuesRequest::default())
        .await;
    let queues = queues.expect("lists").into_inner().queues;
    assert!(!queues.is_empty() && queues.iter().all(|queue| queue.repo.starts_with("acme/")));
    let queues = other
        .list_workflow_queues(v1::ListWorkflowQueuesRequest::default())
        .await;
    assert!(queues.expect("lists").into_inner().queues.is_empty());
    let watch = |resume_token| v1::WatchFleetRequest { resume_token };
    let mut stream = own
        .watch_fleet(watch(0))
        .await
        .expect("watches")
        .into_inner();
    let first = stream.message().await.expect("a word").expect("a word");
    assert!(first.snapshot && first.jobs.len() == 1 && first.nodes.is_empty());
    let mut stream = other
        .watch_fleet(watch(9))
        .await
        .expect("watches")
        .into_inner();
    let first = stream.message().await.expect("a word").expect("a word");
    assert!(first.snapshot && first.jobs.is_empty());
    let outside = v1::ProvisionRunnersRequest {
        repo: "other/web".to_owned(),
        ..v1::ProvisionRunnersRequest::default()
    };
    let refused = own.provision_runners(outside).await.expect_err("hidden");
    assert_eq!(refused.code(), Code::NotFound);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn the_last_use_of_a_token_is_kept() {
    let world = World::new();
    let viewer = token(&world, "watcher", |_| {}).await;
    let scheduler = world.start().await;
    let bearer = format!("Bearer {viewer}");
    for _ in 0..20 {
        let answer = ask(&scheduler, "/metrics", &[("authorization", &bearer)]).await;
        assert_eq!(answer.http, StatusCode::OK);
    }
    let store = scheduler.store.clone();
    scheduler.shutdown().await;
    let tokens = store.tokens().await.expect("tokens");
    let used = tokens
        .iter()
        .find(|row| row.name == "watcher")
        .expect("there");
    assert!(used.last_used_at.is_some());
}
