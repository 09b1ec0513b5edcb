//! What the sweep sees, asks and tells.

use axum::http::Method;
use scheduler_core::{
    input::Input,
    model::{Conclusion, JobId, JobPhase, Repository, Scope},
};
use scheduler_github::{ArchForecast, KnownJob};
use serde_json::json;

use crate::{
    fake::{Say, runner},
    world::{Watching, World, job, jobs_in, phases, repository, run},
};

#[tokio::test]
async fn a_queued_job_hidden_in_a_running_run_is_seen() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    world.runs(
        "mona/web",
        "in_progress",
        vec![run(5, "in_progress", ".github/workflows/ci.yml")],
    );
    world.jobs(
        "mona/web",
        5,
        vec![
            job(50, 5, "completed", Some("success")),
            job(51, 5, "in_progress", None),
            job(52, 5, "queued", None),
            job(53, 5, "brand_new", None),
        ],
    );
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    let told = watching.next_sweep().await;
    assert_eq!(
        phases(&told),
        [
            (51, JobPhase::InProgress),
            (52, JobPhase::Queued),
            (53, JobPhase::Waiting)
        ]
    );
    let seen = &jobs_in(&told)[&52];
    assert_eq!(
        seen.scope,
        Scope::Repository {
            owner: "mona".into(),
            repo: "web".into()
        }
    );
    assert_eq!(seen.origin.event.as_deref(), Some("pull_request"));
    assert_eq!(seen.origin.head_repository.as_deref(), Some("fork/web"));
    assert_eq!(
        (seen.repository.id, seen.repository.private),
        (1, Some(true))
    );
    assert!(
        told.iter()
            .any(|input| matches!(input, Input::RunSeen { run_id: 5, .. }))
    );
}

#[tokio::test]
async fn a_run_that_vanished_is_asked_about_and_its_jobs_end() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    world.runs("mona/web", "queued", vec![run(5, "queued", "ci.yml")]);
    world.jobs(
        "mona/web",
        5,
        vec![job(50, 5, "queued", None), job(51, 5, "queued", None)],
    );
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    watching.next_sweep().await;
    // One job completed with the run's new attempt in place, the other has only itself left.
    world.runs("mona/web", "queued", vec![]);
    world.jobs(
        "mona/web",
        5,
        vec![job(50, 5, "completed", Some("cancelled"))],
    );
    world.set(
        "/repos/mona/web/actions/jobs/51",
        job(51, 5, "completed", Some("failure")),
    );
    let told = watching.next_sweep().await;
    let jobs = jobs_in(&told);
    assert_eq!(jobs[&50].conclusion, Some(Conclusion::Cancelled));
    assert_eq!(jobs[&51].conclusion, Some(Conclusion::Failure));
    assert_eq!(jobs_in(&watching.next_sweep().await).len(), 0, "said once");
    let status = watching.status.borrow().clone();
    let queue = &status.repositories["mona/web"];
    assert_eq!(
        (queue.total, queue.failed, queue.pending, queue.running),
        (1, 1, 0, 0)
    );
}

#[tokio::test]
async fn one_stale_404_ends_nothing() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    world.runs("mona/web", "queued", vec![run(5, "queued", "ci.yml")]);
    world.jobs("mona/web", 5, vec![job(50, 5, "queued", None)]);
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    watching.next_sweep().await;
    world.runs("mona/web", "queued", vec![]);
    world.remove("/repos/mona/web/actions/runs/5/jobs?filter=latest&per_page=100");
    for _ in 0..3 {
        assert_eq!(phases(&watching.next_sweep().await), []);
    }
    world.jobs("mona/web", 5, vec![job(50, 5, "queued", None)]);
    assert_eq!(
        phases(&watching.next_sweep().await),
        [(50, JobPhase::Queued)]
    );
}

#[tokio::test]
async fn jobs_remembered_from_before_the_start_are_asked_about() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    world.jobs(
        "mona/web",
        9,
        vec![job(90, 9, "completed", Some("success"))],
    );
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    watching.github.remember([KnownJob {
        id: JobId(90),
        run_id: 9,
        attempt: 1,
        repository: Repository {
            id: 1,
            owner: "mona".into(),
            name: "web".into(),
            private: None,
        },
    }]);
    let told = watching.next_sweep().await;
    assert_eq!(jobs_in(&told)[&90].conclusion, Some(Conclusion::Success));
}

#[tokio::test]
async fn a_broken_repository_page_or_job_never_hides_the_rest() {
    let world = World::default();
    world.repositories(&["mona/broken", "mona/half", "mona/odd", "mona/fine"]);
    for full in ["mona/half", "mona/odd", "mona/fine"] {
        world.runs(
            full,
            "queued",
            vec![
                run(5, "queued", "ci.yml"),
                run(6, "queued", "ci.yml"),
                json!("odd run"),
            ],
        );
        let own = if full == "mona/half" {
            100
        } else if full == "mona/odd" {
            200
        } else {
            300
        };
        world.jobs(
            full,
            5,
            vec![json!(null), json!({"id": "x"}), job(own, 5, "queued", None)],
        );
        world.jobs(full, 6, vec![job(own + 1, 6, "queued", None)]);
    }
    world.break_with(
        "/repos/mona/broken/",
        Say::new(404, json!({"message": "Not Found"})),
    );
    world.break_with(
        "/repos/mona/half/actions/runs/5/",
        Say::new(200, json!("not an object")),
    );
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    let told = watching.next_sweep().await;
    let ids: Vec<u64> = jobs_in(&told).into_keys().collect();
    assert_eq!(ids, [101, 200, 201, 300, 301]);
    let problems = watching.status.borrow().problems.clone();
    let subjects: Vec<&str> = problems
        .iter()
        .map(|problem| problem.subject.as_str())
        .collect();
    assert_eq!(subjects, ["mona/broken", "mona/half"]);
}

#[tokio::test]
async fn unchanged_lists_are_asked_with_their_etag_and_still_told() {
    let world = World::default();
    world.0.lock().unwrap().etags = true;
    world.repositories(&["mona/web"]);
    world.runs("mona/web", "queued", vec![run(5, "queued", "ci.yml")]);
    world.jobs("mona/web", 5, vec![job(50, 5, "queued", None)]);
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    watching.next_sweep().await;
    let before = fake.seen().len();
    let told = watching.next_sweep().await;
    assert_eq!(phases(&told), [(50, JobPhase::Queued)]);
    let second: Vec<_> = fake
        .seen()
        .split_off(before)
        .into_iter()
        .filter(|seen| seen.target.contains("status=queued") || seen.target.contains("/jobs"))
        .collect();
    assert_eq!(second.len(), 2);
    assert!(
        second
            .iter()
            .all(|seen| seen.headers.contains_key("if-none-match"))
    );
    world.jobs("mona/web", 5, vec![job(50, 5, "in_progress", None)]);
    assert_eq!(
        phases(&watching.next_sweep().await),
        [(50, JobPhase::InProgress)]
    );
}

#[tokio::test]
async fn only_the_window_is_swept_and_archived_or_foreign_repositories_never() {
    let world = World::default();
    let mut old = repository(2, "mona/old");
    old["pushed_at"] = json!("2020-01-01T00:00:00Z");
    old["updated_at"] = json!("2020-01-01T00:00:00Z");
    let mut archived = repository(3, "mona/archived");
    archived["archived"] = json!(true);
    let mut reader_only = repository(4, "other/library");
    reader_only["permissions"]["admin"] = json!(false);
    world.set(
        "/user/repos?per_page=100&sort=pushed",
        json!([
            repository(1, "mona/new"),
            old,
            archived,
            reader_only,
            null,
            "odd"
        ]),
    );
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    watching.next_sweep().await;
    assert!(fake.count(&Method::GET, "/repos/mona/new/") >= 2);
    for never in ["mona/old/actions/runs", "mona/archived", "other/library"] {
        assert_eq!(fake.count(&Method::GET, never), 0, "{never}");
    }
    let status = watching.status.borrow().clone();
    assert_eq!(status.repositories.keys().collect::<Vec<_>>(), ["mona/new"]);
    assert_eq!(status.outside_window, 1);
}

#[tokio::test]
async fn file_names_make_a_forecast_and_held_runs_are_shown_without_jobs() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    world.runs(
        "mona/web",
        "queued",
        vec![
            run(1, "queued", ".github/workflows/build-arm64.yml"),
            run(2, "queued", ".github/workflows/amd64.yml"),
        ],
    );
    world.runs(
        "mona/web",
        "pending",
        vec![run(3, "pending", ".github/workflows/ci.yml")],
    );
    world.jobs("mona/web", 1, vec![]);
    world.jobs("mona/web", 2, vec![]);
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    watching.next_sweep().await;
    let status = watching.status.borrow().clone();
    let queue = &status.repositories["mona/web"];
    assert_eq!((queue.total, queue.pending, queue.held), (3, 3, 1));
    assert_eq!(
        queue.forecast,
        ArchForecast {
            x64: 1,
            arm64: 1,
            unknown: 1
        }
    );
    assert_eq!(fake.count(&Method::GET, "/runs/3/jobs"), 0);
}

#[tokio::test]
async fn a_repository_that_is_taken_away_is_told() {
    let world = World::default();
    world.repositories(&["mona/web", "mona/api"]);
    let fake = world.serve().await;
    let mut config = fake.config();
    config.webhook_secrets = vec![scheduler_github::SecretSource::Value {
        origin: "test".into(),
        value: "s".to_owned().into(),
    }];
    let mut watching = Watching::start(config);
    watching.next_sweep().await;
    world.repositories(&["mona/web"]);
    let removed =
        json!({"action": "removed", "repositories_removed": [{"id": 2, "full_name": "mona/api"}]});
    let told =
        crate::receive::deliver(&watching.github, "installation_repositories", &removed).await;
    let gone = Input::RepositoryGone {
        id: 2,
        full_name: "mona/api".into(),
    };
    assert_eq!(told, Ok(vec![gone]));
    watching.next_sweep().await;
    let status = watching.status.borrow().clone();
    assert_eq!(status.repositories.keys().collect::<Vec<_>>(), ["mona/web"]);
}

#[tokio::test]
async fn runners_are_listed_per_scope_and_budgets_are_told() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    world.set(
        "/repos/mona/web/actions/runners?per_page=100",
        json!({"total_count": 2, "runners": [runner(8, "ls-f-1"), runner(9, "somebody")]}),
    );
    let fake = world.serve().await;
    let mut config = fake.config();
    config.runner_prefixes = vec!["ls-f-".into()];
    let mut watching = Watching::start(config);
    let scope = Scope::Repository {
        owner: "mona".into(),
        repo: "web".into(),
    };
    let budget = watching
        .until("a budget", |input| {
            matches!(input, Input::BudgetChanged { .. })
        })
        .await;
    let Input::BudgetChanged {
        credential,
        scopes,
        registrations,
        limited_until,
    } = budget
    else {
        panic!("{budget:?}");
    };
    assert_eq!((credential.as_str(), scopes), ("main", vec![scope.clone()]));
    assert_eq!((registrations, limited_until), (100, None));
    let listed = watching
        .until("a list of runners", |input| {
            matches!(input, Input::RunnersListed { .. })
        })
        .await;
    let Input::RunnersListed { scope: of, runners } = listed else {
        panic!("{listed:?}")
    };
    assert_eq!((of, runners.len(), runners[0].github_id), (scope, 1, 8));
}

#[tokio::test]
async fn a_limit_during_the_sweep_is_told_and_loses_nothing() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    world.runs("mona/web", "queued", vec![run(5, "queued", "ci.yml")]);
    world.jobs("mona/web", 5, vec![job(50, 5, "queued", None)]);
    world.break_with(
        "status=in_progress",
        Say::new(
            403,
            json!({"message": "You have exceeded a secondary rate limit"}),
        )
        .with("retry-after", 1),
    );
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    let told = watching.next_sweep().await;
    let limited = watching
        .until("the limit", |input| {
            matches!(
                input,
                Input::BudgetChanged {
                    registrations: 0,
                    limited_until: Some(_),
                    ..
                }
            ) || told.contains(input)
        })
        .await;
    assert!(matches!(
        limited,
        Input::BudgetChanged {
            limited_until: Some(_),
            ..
        }
    ));
    let problems = watching.status.borrow().problems.clone();
    assert!(
        problems
            .iter()
            .any(|problem| problem.detail.contains("rate limited")),
        "{problems:?}"
    );
    world.0.lock().unwrap().broken.clear();
    // The rest is a second; sweeps inside it see nothing.
    let seen = async {
        loop {
            let told = watching.next_sweep().await;
            if !phases(&told).is_empty() {
                return phases(&told);
            }
        }
    };
    let seen = tokio::time::timeout(crate::world::DEADLINE, seen)
        .await
        .unwrap();
    assert_eq!(seen, [(50, JobPhase::Queued)]);
}

#[tokio::test]
async fn a_list_that_lags_takes_no_repository_away() {
    let world = World::default();
    world.repositories(&["mona/web", "mona/api"]);
    let fake = world.serve().await;
    let mut config = fake.config();
    config.poll_interval = std::time::Duration::from_millis(50);
    let mut watching = Watching::start(config);
    watching.next_sweep().await;
    world.repositories(&["mona/web"]);
    let lists = fake.count(&Method::GET, "/user/repos");
    let deadline = tokio::time::Instant::now() + crate::world::DEADLINE;
    while fake.count(&Method::GET, "/user/repos") < lists + 3 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the lists are not read again"
        );
        let told = watching.next_sweep().await;
        assert!(
            !told
                .iter()
                .any(|input| matches!(input, Input::RepositoryGone { .. }))
        );
    }
    assert!(
        watching
            .status
            .borrow()
            .repositories
            .contains_key("mona/api")
    );
}

#[tokio::test]
async fn a_missing_credential_is_told_with_the_next_step() {
    let fake = World::default().serve().await;
    let mut config = fake.config();
    config.credentials.clear();
    let mut watching = Watching::start(config);
    watching.next_sweep().await;
    let problems = watching.status.borrow().problems.clone();
    assert!(problems[0].detail.contains("GITHUB_TOKEN"), "{problems:?}");
}

#[tokio::test]
async fn an_expired_token_and_a_missing_permission_are_told_in_githubs_words() {
    let world = World::default();
    world.repositories(&["mona/web"]);
    world.break_with(
        "/actions/runs?status=",
        Say::new(
            403,
            json!({"message": "Resource not accessible by personal access token"}),
        )
        .with(
            "x-accepted-github-permissions",
            "actions=read; metadata=read",
        ),
    );
    let fake = world.serve().await;
    let mut watching = Watching::start(fake.config());
    watching.next_sweep().await;
    let problems = watching.status.borrow().problems.clone();
    let lacks = problems
        .iter()
        .find(|problem| problem.subject == "mona/web")
        .expect("the repository is named");
    for part in [
        "credential 'main'",
        "list queued runs of mona/web",
        "X-Accepted-GitHub-Permissions: actions=read; metadata=read",
        "Grant it",
    ] {
        assert!(lacks.detail.contains(part), "{lacks:?}");
    }
    // Granted, and the token expires: one line about the credential, none per repository.
    world.0.lock().unwrap().broken.clear();
    watching.next_sweep().await;
    assert_eq!(watching.status.borrow().problems, []);
    world.break_with("/", Say::new(401, json!({"message": "Bad credentials"})));
    watching.next_sweep().await;
    let problems = watching.status.borrow().problems.clone();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].subject, "credential main");
    for part in [
        "401: Bad credentials",
        "missing, expired or revoked",
        "fresh one",
    ] {
        assert!(problems[0].detail.contains(part), "{problems:?}");
    }
}
