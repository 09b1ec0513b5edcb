//! The state machine by itself: life cycles, assignment, faults, and invariants under random use.

use std::collections::BTreeSet;

use github_sim::machine::{
    DeliveryOutcome, Faults, HookSpec, JobSpec, Limits, Message, OwnerSpec, RepoSpec, Request,
    RunSpec, RunnerError, Simulate, TokenSpec, World, WorldConfig,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const LINUX: &[&str] = &["self-hosted", "linux"];

fn world_with(seed: u64, faults: Faults) -> (World, String) {
    let mut w = World::new(
        seed,
        WorldConfig {
            faults,
            ..WorldConfig::default()
        },
    );
    w.add_owner(OwnerSpec::organization("acme")).unwrap();
    w.add_repo(RepoSpec::new("acme", "web")).unwrap();
    w.add_repo(RepoSpec::new("acme", "api")).unwrap();
    let token = w
        .add_token(TokenSpec::classic(
            "acme-admin",
            &["repo", "admin:org", "admin:org_hook"],
        ))
        .unwrap();
    w.add_hook(HookSpec::organization("acme", "http://receiver/", "secret"))
        .unwrap();
    (w, token)
}

fn world() -> (World, String) {
    world_with(1, Faults::default())
}

fn jit(w: &mut World, token: &str, name: &str, labels: &[&str]) -> u64 {
    let body = json!({"name": name, "runner_group_id": 1, "labels": labels});
    let r =
        w.call(&Request::post("/orgs/acme/actions/runners/generate-jitconfig", &body).token(token));
    assert_eq!(r.status, 201, "{}", String::from_utf8_lossy(&r.body));
    r.value()["runner"]["id"].as_u64().unwrap()
}

/// Everything that is due leaves and is answered with 200; the (event, action, job status) triples in order.
fn drain(w: &mut World) -> Vec<(String, String, String)> {
    let mut out = Vec::new();
    loop {
        let batch = w.take_deliveries();
        if batch.is_empty() {
            return out;
        }
        for d in batch {
            let body: Value = serde_json::from_slice(&d.body).unwrap();
            let status = body["workflow_job"]["status"]
                .as_str()
                .unwrap_or("")
                .to_owned();
            out.push((
                d.event.clone(),
                d.action.clone().unwrap_or_default(),
                status,
            ));
            w.delivery_done(
                d.attempt,
                DeliveryOutcome::Answered {
                    status: 200,
                    duration_ms: 1,
                    body: String::new(),
                },
            );
        }
    }
}

fn jobs_only(events: Vec<(String, String, String)>) -> Vec<(String, String)> {
    events
        .into_iter()
        .filter(|e| e.0 == "workflow_job")
        .map(|e| (e.1, e.2))
        .collect()
}

#[test]
fn a_job_goes_from_queued_to_completed_on_an_ephemeral_runner_that_is_gone_afterwards() {
    let (mut w, token) = world();
    let run = w
        .queue_run(&RunSpec::one(
            "acme/web",
            JobSpec::new("build", LINUX).steps(&["echo hi"]),
        ))
        .unwrap();
    let job = w.run(run).unwrap().jobs()[0];
    let runner = jit(&mut w, &token, "r1", LINUX);
    assert_eq!(w.run_job_on(runner, "success"), Ok(Some(job)));
    assert_eq!(w.run(run).unwrap().conclusion(), Some("success"));
    assert_eq!(w.runners().count(), 0);
    let view = w.job_view(job).unwrap();
    assert_eq!(view.runner_name.as_deref(), Some("r1"));
    assert_eq!(view.steps[0].exit_code, Some(0));
    let seen = jobs_only(drain(&mut w));
    let want = [
        ("queued", "queued"),
        ("in_progress", "in_progress"),
        ("completed", "completed"),
    ];
    assert_eq!(seen, want.map(|(a, s)| (a.to_owned(), s.to_owned())));
    assert_eq!(w.check(), Vec::<String>::new());
}

#[test]
fn a_second_start_with_a_used_registration_never_works() {
    let (mut w, token) = world();
    let runner = jit(&mut w, &token, "r1", LINUX);
    let session = w.runner_connect(runner).unwrap();
    assert_eq!(w.runner_connect(runner), Err(RunnerError::SessionConflict));
    w.runner_disconnect(&session).unwrap();
    assert_eq!(w.runner_connect(runner), Err(RunnerError::SessionConflict));
}

#[test]
fn a_job_that_is_not_picked_up_goes_to_another_runner_after_a_minute() {
    let (mut w, token) = world();
    let first = jit(&mut w, &token, "r1", LINUX);
    let lazy = w.runner_connect(first).unwrap();
    let run = w
        .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
        .unwrap();
    let job = w.run(run).unwrap().jobs()[0];
    assert_eq!(w.job(job).unwrap().assigned, Some(first));
    let start = w.now_ms();
    w.advance(start + 59_000);
    assert_eq!(w.job(job).unwrap().assigned, Some(first));
    let second = jit(&mut w, &token, "r2", LINUX);
    w.runner_connect(second).unwrap();
    // the lazy one is offline by now or gets it again: either way the job is never lost
    w.advance(start + 61_000);
    assert!(w.job(job).unwrap().assigned.is_some());
    assert!(w.job(job).unwrap().assignments.len() >= 2);
    assert!(w.runner_poll(&lazy, false).is_ok());
    assert_eq!(w.check(), Vec::<String>::new());
}

#[test]
fn labels_must_be_a_superset_and_an_empty_set_matches_nothing() {
    let (mut w, token) = world();
    let runner = jit(&mut w, &token, "r1", &["Self-Hosted", "LINUX"]);
    w.runner_connect(runner).unwrap();
    for labels in [&["self-hosted", "linux", "gpu"][..], &[]] {
        let run = w
            .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", labels)))
            .unwrap();
        assert_eq!(
            w.job(w.run(run).unwrap().jobs()[0]).unwrap().assigned,
            None,
            "{labels:?}"
        );
    }
    let run = w
        .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", &["linux"])))
        .unwrap();
    assert_eq!(
        w.job(w.run(run).unwrap().jobs()[0]).unwrap().assigned,
        Some(runner)
    );
}

#[test]
fn jobs_go_to_fitting_runners_in_an_order_that_depends_on_the_seed() {
    let order = |seed| {
        let (mut w, token) = world_with(seed, Faults::default());
        let runners: Vec<u64> = (0..8)
            .map(|i| jit(&mut w, &token, &format!("r{i}"), LINUX))
            .collect();
        for r in &runners {
            w.runner_connect(*r).unwrap();
        }
        let run = w
            .queue_run(&RunSpec::one(
                "acme/web",
                JobSpec::new("build", LINUX).matrix(8),
            ))
            .unwrap();
        let jobs = w.run(run).unwrap().jobs().to_vec();
        jobs.iter()
            .map(|j| w.job(*j).unwrap().assigned.unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(order(3), order(3), "the same seed gives the same order");
    let distinct: BTreeSet<Vec<u64>> = (0..10).map(order).collect();
    assert!(distinct.len() > 5, "assignment hardly varies: {distinct:?}");
}

#[test]
fn a_public_repository_needs_a_group_that_allows_it() {
    let (mut w, token) = world();
    w.add_repo(RepoSpec::new("acme", "open").public()).unwrap();
    let runner = jit(&mut w, &token, "r1", LINUX);
    w.runner_connect(runner).unwrap();
    let run = w
        .queue_run(&RunSpec::one("acme/open", JobSpec::new("build", LINUX)))
        .unwrap();
    let job = w.run(run).unwrap().jobs()[0];
    assert_eq!(w.job(job).unwrap().assigned, None);
    let allow = json!({"allows_public_repositories": true});
    let r = w.call(&Request::patch("/orgs/acme/actions/runner-groups/1", &allow).token(&token));
    assert_eq!(r.status, 200);
    assert_eq!(w.job(job).unwrap().assigned, Some(runner));
}

#[test]
fn cancelled_while_queued_completes_without_a_runner() {
    let (mut w, _) = world();
    let run = w
        .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
        .unwrap();
    assert_eq!(w.cancel_run(run, false), Ok(true));
    assert_eq!(
        w.cancel_run(run, false),
        Ok(false),
        "a second time is a conflict"
    );
    let seen = jobs_only(drain(&mut w));
    assert_eq!(
        seen.last().unwrap(),
        &("completed".to_owned(), "completed".to_owned())
    );
    assert!(!seen.iter().any(|s| s.0 == "in_progress"));
    assert_eq!(w.run(run).unwrap().conclusion(), Some("cancelled"));
}

#[test]
fn a_running_job_is_cancelled_through_its_runner_and_by_force_after_five_minutes() {
    let (mut w, token) = world();
    let run = w
        .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
        .unwrap();
    let runner = jit(&mut w, &token, "r1", LINUX);
    let session = w.runner_connect(runner).unwrap();
    let Ok(Some(Message::Job { request_id })) = w.runner_poll(&session, false) else {
        panic!("no job")
    };
    w.runner_acquire(&session, &request_id).unwrap();
    w.cancel_run(run, false).unwrap();
    assert!(matches!(
        w.runner_poll(&session, true),
        Ok(Some(Message::Cancel { .. }))
    ));
    assert_eq!(w.runner_poll(&session, true), Ok(None), "told once");
    assert_eq!(w.run(run).unwrap().status(), "in_progress");
    w.advance(w.now_ms() + 5 * 60_000);
    assert_eq!(w.run(run).unwrap().conclusion(), Some("cancelled"));
    assert_eq!(w.runners().count(), 0);
}

#[test]
fn a_frozen_runner_loses_its_job_after_the_lock_and_its_grace() {
    let (mut w, token) = world();
    let run = w
        .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
        .unwrap();
    let runner = jit(&mut w, &token, "r1", LINUX);
    let session = w.runner_connect(runner).unwrap();
    let Ok(Some(Message::Job { request_id })) = w.runner_poll(&session, false) else {
        panic!("no job")
    };
    w.runner_acquire(&session, &request_id).unwrap();
    let start = w.now_ms();
    w.advance(start + 5 * 60_000);
    w.runner_renew(&session, &request_id).unwrap();
    w.advance(start + 15 * 60_000);
    assert_eq!(
        w.run(run).unwrap().status(),
        "in_progress",
        "renewed at minute five"
    );
    w.advance(start + 20 * 60_000);
    assert_eq!(w.run(run).unwrap().conclusion(), Some("failure"));
    let job = w.run(run).unwrap().jobs()[0];
    assert!(w.job(job).unwrap().annotations[0].contains("lost communication"));
}

#[test]
fn needs_are_met_in_order_and_a_failure_skips_the_rest_with_empty_labels() {
    let (mut w, token) = world();
    let jobs = vec![
        JobSpec::new("build", LINUX),
        JobSpec::new("test", LINUX).needs(&["build"]).matrix(2),
        JobSpec::new("ship", LINUX).needs(&["test"]),
    ];
    let run = w.queue_run(&RunSpec::new("acme/web", jobs)).unwrap();
    assert_eq!(w.run(run).unwrap().jobs().len(), 1);
    let r = jit(&mut w, &token, "r1", LINUX);
    w.run_job_on(r, "success").unwrap();
    assert_eq!(
        w.run(run).unwrap().status(),
        "in_progress",
        "queued jobs hide inside a run in progress"
    );
    assert_eq!(w.run(run).unwrap().jobs().len(), 3);
    for (name, end) in [("r2", "success"), ("r3", "failure")] {
        let r = jit(&mut w, &token, name, LINUX);
        w.run_job_on(r, end).unwrap();
    }
    let last = *w.run(run).unwrap().jobs().last().unwrap();
    assert_eq!(
        w.job_view(last).unwrap().conclusion.as_deref(),
        Some("skipped")
    );
    assert!(w.job(last).unwrap().labels.is_empty());
    assert_eq!(w.run(run).unwrap().conclusion(), Some("failure"));
    assert_eq!(w.check(), Vec::<String>::new());
}

#[test]
fn a_rerun_of_failed_jobs_echoes_the_others_as_completed_with_new_ids() {
    let (mut w, token) = world();
    let jobs = vec![
        JobSpec::new("good", LINUX),
        JobSpec::new("bad", &["self-hosted", "big"]),
    ];
    let run = w.queue_run(&RunSpec::new("acme/web", jobs)).unwrap();
    let before = w.run(run).unwrap().jobs().to_vec();
    let r = jit(&mut w, &token, "r1", LINUX);
    w.run_job_on(r, "success").unwrap();
    let r = jit(&mut w, &token, "r2", &["self-hosted", "big"]);
    w.run_job_on(r, "failure").unwrap();
    drain(&mut w);
    w.rerun(run, true, None).unwrap();
    let after = w.run(run).unwrap().jobs().to_vec();
    assert_eq!(after.len(), 2);
    assert!(after.iter().all(|id| !before.contains(id)));
    let seen = jobs_only(drain(&mut w));
    assert_eq!(
        seen.iter().filter(|s| s.0 == "completed").count(),
        1,
        "{seen:?}"
    );
    assert_eq!(
        seen.iter().filter(|s| s.0 == "queued").count(),
        1,
        "{seen:?}"
    );
    assert!(w.rerun(run, true, None).is_err(), "it runs already");
    assert_eq!(w.check(), Vec::<String>::new());
}

#[test]
fn an_environment_holds_a_job_until_it_is_approved() {
    let (mut w, _) = world_with(
        1,
        Faults {
            webhook_waiting_after_queued: 1.0,
            ..Faults::default()
        },
    );
    let run = w
        .queue_run(&RunSpec::one(
            "acme/web",
            JobSpec::new("ship", LINUX).environment("prod"),
        ))
        .unwrap();
    assert_eq!(w.run(run).unwrap().status(), "waiting");
    assert_eq!(w.approve_run(run), Ok(1));
    assert_eq!(w.run(run).unwrap().status(), "queued");
    let seen: Vec<String> = jobs_only(drain(&mut w)).into_iter().map(|s| s.0).collect();
    assert_eq!(
        seen,
        ["waiting", "queued", "waiting"],
        "the fault sends a late `waiting`"
    );
    assert_eq!(w.faults_fired()["webhook_waiting_after_queued"], 1);
}

#[test]
fn a_pending_run_has_no_jobs_until_it_is_released() {
    let (mut w, _) = world();
    let spec = RunSpec {
        pending: true,
        ..RunSpec::one("acme/web", JobSpec::new("build", LINUX))
    };
    let run = w.queue_run(&spec).unwrap();
    assert_eq!(
        (
            w.run(run).unwrap().status(),
            w.run(run).unwrap().jobs().len()
        ),
        ("pending", 0)
    );
    assert!(jobs_only(drain(&mut w)).is_empty());
    w.release_run(run).unwrap();
    assert_eq!(
        (
            w.run(run).unwrap().status(),
            w.run(run).unwrap().jobs().len()
        ),
        ("queued", 1)
    );
}

#[test]
fn a_job_queued_for_a_day_is_cancelled_and_an_unused_registration_expires() {
    let (mut w, token) = world();
    let run = w
        .queue_run(&RunSpec::one(
            "acme/web",
            JobSpec::new("build", &["nobody"]),
        ))
        .unwrap();
    jit(&mut w, &token, "r1", LINUX);
    w.advance(w.now_ms() + 24 * 3_600_000);
    assert_eq!(w.run(run).unwrap().conclusion(), Some("cancelled"));
    assert_eq!(w.runners().count(), 0);
}

#[test]
fn a_busy_runner_cannot_be_deleted_and_busy_lies_when_told_to() {
    let (mut w, token) = world();
    w.queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
        .unwrap();
    let runner = jit(&mut w, &token, "r1", LINUX);
    w.runner_connect(runner).unwrap();
    let path = format!("/orgs/acme/actions/runners/{runner}");
    let get = |w: &mut World| w.call(&Request::get(&path).token(&token)).value();
    assert_eq!(get(&mut w)["busy"], true);
    assert_eq!(w.call(&Request::delete(&path).token(&token)).status, 422);
    w.set_faults(Faults {
        busy_lag_ms: 30_000,
        delete_busy_succeeds: 1.0,
        ..Faults::default()
    });
    assert_eq!(get(&mut w)["busy"], false, "the flag lags");
    w.advance(w.now_ms() + 31_000);
    assert_eq!(get(&mut w)["busy"], true);
    assert_eq!(w.call(&Request::delete(&path).token(&token)).status, 204);
    assert_eq!(w.call(&Request::get(&path).token(&token)).status, 404);
    assert_eq!(w.check(), Vec::<String>::new());
}

#[test]
fn lists_lag_behind_when_told_to() {
    let (mut w, token) = world_with(
        1,
        Faults {
            list_lag_ms: 10_000,
            ..Faults::default()
        },
    );
    let start = w.now_ms();
    w.advance(start + 60_000);
    let run = w
        .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
        .unwrap();
    let runner = jit(&mut w, &token, "r1", LINUX);
    let count = |w: &mut World, path: &str, key: &str| {
        w.call(&Request::get(path).token(&token)).value()[key]
            .as_array()
            .unwrap()
            .len()
    };
    let (runs, runners) = ("/repos/acme/web/actions/runs", "/orgs/acme/actions/runners");
    assert_eq!(
        (
            count(&mut w, runs, "workflow_runs"),
            count(&mut w, runners, "runners")
        ),
        (0, 0)
    );
    w.advance(start + 71_000);
    assert_eq!(
        (
            count(&mut w, runs, "workflow_runs"),
            count(&mut w, runners, "runners")
        ),
        (1, 1)
    );
    w.run_job_on(runner, "success").unwrap();
    assert_eq!(
        count(&mut w, runners, "runners"),
        1,
        "a removed one is still listed"
    );
    let jobs = format!("/repos/acme/web/actions/runs/{run}/jobs");
    let status = |w: &mut World| {
        w.call(&Request::get(&jobs).token(&token)).value()["jobs"][0]["status"].clone()
    };
    assert_eq!(status(&mut w), "queued");
    w.advance(start + 82_000);
    assert_eq!(status(&mut w), "completed");
}

#[test]
fn a_registration_survives_an_answer_that_got_lost() {
    let (mut w, token) = world_with(
        1,
        Faults {
            jit_500_after_create: 1.0,
            ..Faults::default()
        },
    );
    let body = json!({"name": "r1", "runner_group_id": 1, "labels": LINUX});
    let post = Request::post("/orgs/acme/actions/runners/generate-jitconfig", &body).token(&token);
    assert_eq!(w.call(&post).status, 502);
    w.set_faults(Faults::default());
    assert_eq!(w.call(&post).status, 409, "the name is taken");
    let list = w
        .call(&Request::get("/orgs/acme/actions/runners?name=r1").token(&token))
        .value();
    assert_eq!(list["total_count"], 1);
}

#[test]
fn an_acquire_failure_ends_the_registration_and_a_ghost_polls_on() {
    let (mut w, token) = world_with(
        1,
        Faults {
            acquire_conflict: 1.0,
            ghost_runner: true,
            ..Faults::default()
        },
    );
    let run = w
        .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
        .unwrap();
    let runner = jit(&mut w, &token, "r1", LINUX);
    let session = w.runner_connect(runner).unwrap();
    let Ok(Some(Message::Job { request_id })) = w.runner_poll(&session, false) else {
        panic!("no job")
    };
    assert_eq!(
        w.runner_acquire(&session, &request_id),
        Err(RunnerError::JobConflict)
    );
    assert_eq!(w.runners().count(), 0);
    assert_eq!(
        w.run(run).unwrap().status(),
        "queued",
        "the job waits for another runner"
    );
    assert_eq!(
        w.runner_poll(&session, false),
        Ok(None),
        "a ghost hears nothing, for ever"
    );
    w.set_faults(Faults::default());
    assert_eq!(
        w.runner_poll(&session, false),
        Err(RunnerError::RunnerNotFound)
    );
    assert_eq!(w.check(), Vec::<String>::new());
}

#[test]
fn simulated_jobs_complete_on_registrations_without_a_program() {
    let (mut w, token) = world();
    let how = Simulate {
        online_after_ms: 50,
        start_after_ms: 10,
        duration_ms: 100,
        conclusion: None,
    };
    let run = w
        .queue_run(&RunSpec::one(
            "acme/web",
            JobSpec::new("b", LINUX).simulate(how).matrix(3),
        ))
        .unwrap();
    let start = w.now_ms();
    w.advance(start + 1_000);
    assert_eq!(
        w.run(run).unwrap().status(),
        "queued",
        "nothing happens without a registration"
    );
    for i in 0..3 {
        jit(&mut w, &token, &format!("r{i}"), LINUX);
    }
    w.advance(start + 1_059);
    assert_eq!(w.jobs().filter(|j| j.state.started_ms.is_some()).count(), 0);
    w.advance(start + 1_160);
    assert_eq!(w.run(run).unwrap().conclusion(), Some("success"));
    assert_eq!(w.runners().count(), 0);
}

#[test]
fn webhook_faults_happen_and_are_counted() {
    let faults = Faults {
        webhook_drop: 0.3,
        webhook_duplicate: 0.3,
        webhook_reorder: 0.3,
        ..Faults::default()
    };
    let (mut w, _) = world_with(4, faults);
    for _ in 0..50 {
        w.queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
            .unwrap();
    }
    w.advance(w.now_ms() + 10_000);
    drain(&mut w);
    for kind in ["webhook_drop", "webhook_duplicate", "webhook_reorder"] {
        assert!(w.faults_fired()[kind] > 5, "{kind}");
    }
    let twice = w.deliveries().map(|d| d.guid.as_str()).collect::<Vec<_>>();
    let distinct: BTreeSet<&str> = twice.iter().copied().collect();
    assert!(
        distinct.len() < twice.len(),
        "a duplicate carries the same GUID"
    );
}

#[test]
fn of_one_job_the_next_delivery_leaves_when_the_one_before_is_answered() {
    let (mut w, _) = world();
    drain(&mut w);
    let run = w
        .queue_run(&RunSpec::one("acme/web", JobSpec::new("build", LINUX)))
        .unwrap();
    w.cancel_run(run, false).unwrap();
    let actions = |w: &mut World| {
        w.take_deliveries()
            .into_iter()
            .filter(|d| d.event == "workflow_job")
            .map(|d| (d.attempt, d.action.unwrap()))
            .collect::<Vec<_>>()
    };
    let first = actions(&mut w);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].1, "queued");
    assert!(actions(&mut w).is_empty());
    w.delivery_done(
        first[0].0,
        DeliveryOutcome::Failed {
            why: "timed out".into(),
            duration_ms: 10_000,
        },
    );
    assert_eq!(
        actions(&mut w)[0].1,
        "completed",
        "a failed delivery is not repeated"
    );
}

#[test]
fn the_primary_limit_is_kept_and_a_304_is_free() {
    let limits = Limits {
        primary_per_hour: Some(3),
        ..Limits::default()
    };
    let mut w = World::new(
        1,
        WorldConfig {
            limits,
            ..WorldConfig::default()
        },
    );
    w.add_owner(OwnerSpec::user("mona")).unwrap();
    let token = w.add_token(TokenSpec::classic("mona", &["repo"])).unwrap();
    let get = Request::get("/user/repos").token(&token);
    let first = w.call(&get);
    assert_eq!(first.header("x-ratelimit-remaining"), Some("2"));
    let etag = first.header("etag").unwrap().to_owned();
    for _ in 0..5 {
        let again = w.call(&get.clone().header("if-none-match", &etag));
        assert_eq!(
            (again.status, again.header("x-ratelimit-remaining")),
            (304, Some("2"))
        );
    }
    assert_eq!(w.call(&get).status, 200);
    assert_eq!(w.call(&get).status, 200);
    let refused = w.call(&get);
    assert_eq!(
        (refused.status, refused.header("x-ratelimit-remaining")),
        (403, Some("0"))
    );
    w.advance(w.now_ms() + 3_600_000);
    assert_eq!(w.call(&get).status, 200);
}

#[test]
fn writes_cost_five_points_a_minute_and_endpoint() {
    let (mut w, token) = world();
    let mut allowed = 0;
    loop {
        let r = w.call(
            &Request::post(
                "/orgs/acme/actions/runners/registration-token",
                &Value::Null,
            )
            .token(&token),
        );
        if r.status != 201 {
            assert_eq!(r.status, 403);
            assert!(r.header("retry-after").is_some());
            break;
        }
        allowed += 1;
    }
    assert_eq!(allowed, 180);
}

/// One of everything, with this fault on from the start.
fn one_of_everything(faults: &Value) -> World {
    let (mut w, token) = world();
    for i in 0..60 {
        w.add_repo(RepoSpec::new("acme", &format!("r{i}"))).unwrap();
    }
    let job = JobSpec::new("build", LINUX).steps(&["true"]);
    let early = w
        .queue_run(&RunSpec::one(
            "acme/web",
            JobSpec::new("ship", LINUX).environment("prod"),
        ))
        .unwrap();
    w.set_faults(serde_json::from_value(faults.clone()).unwrap());
    let limited = w
        .add_token(TokenSpec::fine_grained(
            "acme-admin",
            &[("actions", "read")],
        ))
        .unwrap();
    let runners = "/orgs/acme/actions/runners";
    w.call(&Request::get(runners).token(&limited));
    let run = w.queue_run(&RunSpec::one("acme/web", job)).unwrap();
    w.approve_run(early).unwrap();
    for page in 1..=3 {
        w.call(&Request::get(&format!("/orgs/acme/repos?per_page=20&page={page}")).token(&token));
    }
    let body = json!({"name": "r1", "runner_group_id": 1, "labels": LINUX});
    w.call(&Request::post(&format!("{runners}/generate-jitconfig"), &body).token(&token));
    if let Some(id) = w.runner_named("r1")
        && let Ok(session) = w.runner_connect(id)
    {
        w.call(&Request::get(runners).token(&token));
        let _ = w.call(&Request::delete(&format!("{runners}/{id}")).token(&token));
        if let Ok(Some(Message::Job { request_id })) = w.runner_poll(&session, false) {
            let _ = w.runner_acquire(&session, &request_id);
            w.cancel_run(run, false).unwrap();
            w.cancel_run(early, false).unwrap();
            for _ in 0..3 {
                let _ = w.runner_poll(&session, true);
            }
        }
        let _ = w.runner_poll(&session, true);
    }
    w.advance(w.now_ms() + 10_000);
    drain(&mut w);
    assert_eq!(w.check(), Vec::<String>::new(), "{faults}");
    w
}

#[test]
fn every_fault_can_happen_and_is_counted_when_it_does() {
    let all = serde_json::to_value(Faults::default()).unwrap();
    assert!(
        one_of_everything(&json!({})).faults_fired().is_empty(),
        "no fault by itself"
    );
    for (name, off) in all.as_object().unwrap() {
        let on = match (name.as_str(), off) {
            ("webhook_delay", _) => {
                json!({"probability": 1.0, "min_ms": 1, "max_ms": 5, "actions": []})
            }
            ("webhook_runner_fields", _) => json!("zero"),
            ("webhook_pad_bytes", _) => json!(50_000),
            (_, Value::Bool(_)) => json!(true),
            (_, Value::Number(n)) if n.is_f64() => json!(1.0),
            _ => json!(1_000),
        };
        let mut faults = json!({ name: on });
        if name == "ghost_runner" {
            faults["acquire_conflict"] = json!(1.0);
        }
        let w = one_of_everything(&faults);
        assert!(
            w.faults_fired().get(name.as_str()).is_some_and(|n| *n > 0),
            "{name} never happened"
        );
    }
}

#[derive(Debug, Clone)]
enum Act {
    Queue(u8, u8),
    Register(u8),
    Connect(u8),
    Poll(u8),
    Finish(u8, bool),
    Cancel(u8),
    Rerun(u8, bool),
    Delete(u8),
    Disconnect(u8),
    Advance(u32),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (any::<u8>(), 1..4u8).prop_map(|(a, b)| Act::Queue(a, b)),
        4 => any::<u8>().prop_map(Act::Register),
        4 => any::<u8>().prop_map(Act::Connect),
        6 => any::<u8>().prop_map(Act::Poll),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Act::Finish(a, b)),
        1 => any::<u8>().prop_map(Act::Cancel),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Act::Rerun(a, b)),
        1 => any::<u8>().prop_map(Act::Delete),
        1 => any::<u8>().prop_map(Act::Disconnect),
        3 => (0..400_000u32).prop_map(Act::Advance),
    ]
}

/// Uses the world at random; gives back everything that is visible from outside.
fn play(seed: u64, faults: Faults, acts: &[Act]) -> String {
    const KINDS: [&[&str]; 3] = [
        &["self-hosted", "linux"],
        &["self-hosted", "linux", "gpu"],
        &["self-hosted"],
    ];
    let (mut w, token) = world_with(seed, faults);
    w.set_limits(Limits::off());
    let (mut sessions, mut requests, mut registered) = (Vec::new(), Vec::new(), Vec::new());
    let mut out = String::new();
    for (n, a) in acts.iter().enumerate() {
        let at = |len: usize, i: u8| (len > 0).then(|| usize::from(i) % len.max(1));
        match *a {
            Act::Queue(kind, matrix) => {
                let repo = if kind % 2 == 0 {
                    "acme/web"
                } else {
                    "acme/api"
                };
                let labels = KINDS[usize::from(kind) % 3];
                let jobs = vec![
                    JobSpec::new("a", labels).matrix(u32::from(matrix)),
                    JobSpec::new("b", labels).needs(&["a"]),
                ];
                w.queue_run(&RunSpec::new(repo, jobs)).unwrap();
            }
            Act::Register(kind) => {
                let body = json!({"name": format!("r{n}"), "runner_group_id": 1, "labels": KINDS[usize::from(kind) % 3]});
                let r = w.call(
                    &Request::post("/orgs/acme/actions/runners/generate-jitconfig", &body)
                        .token(&token),
                );
                if r.status == 201 {
                    registered.push(r.value()["runner"]["id"].as_u64().unwrap());
                }
            }
            Act::Connect(i) => {
                if let Some(i) = at(registered.len(), i)
                    && let Ok(s) = w.runner_connect(registered[i])
                {
                    sessions.push(s);
                }
            }
            Act::Poll(i) => {
                if let Some(i) = at(sessions.len(), i)
                    && let Ok(Some(Message::Job { request_id })) =
                        w.runner_poll(&sessions[i], false)
                    && w.runner_acquire(&sessions[i], &request_id).is_ok()
                {
                    requests.push((sessions[i].clone(), request_id));
                }
            }
            Act::Finish(i, good) => {
                if let Some(i) = at(requests.len(), i) {
                    let (s, r) = requests.remove(i);
                    let _ = w.runner_complete(&s, &r, if good { "success" } else { "failure" });
                }
            }
            Act::Cancel(i) => {
                let runs: Vec<u64> = w.runs().map(|r| r.id).collect();
                if let Some(i) = at(runs.len(), i) {
                    w.cancel_run(runs[i], i % 2 == 0).unwrap();
                }
            }
            Act::Rerun(i, failed) => {
                let runs: Vec<u64> = w.runs().map(|r| r.id).collect();
                if let Some(i) = at(runs.len(), i) {
                    let _ = w.rerun(runs[i], failed, None);
                }
            }
            Act::Delete(i) => {
                if let Some(i) = at(registered.len(), i) {
                    let path = format!("/orgs/acme/actions/runners/{}", registered[i]);
                    w.call(&Request::delete(&path).token(&token));
                }
            }
            Act::Disconnect(i) => {
                if let Some(i) = at(sessions.len(), i) {
                    let _ = w.runner_disconnect(&sessions[i]);
                }
            }
            Act::Advance(ms) => w.advance(w.now_ms() + u64::from(ms)),
        }
        let broken = w.check();
        assert!(broken.is_empty(), "after {a:?} (action {n}): {broken:?}");
        for d in w.take_deliveries() {
            out.push_str(&String::from_utf8_lossy(&d.body));
            w.delivery_done(
                d.attempt,
                DeliveryOutcome::Answered {
                    status: 200,
                    duration_ms: 1,
                    body: String::new(),
                },
            );
        }
    }
    out.push_str(&serde_json::to_string(&w.summary()).unwrap());
    out
}

fn mean() -> Faults {
    Faults {
        webhook_drop: 0.1,
        webhook_duplicate: 0.1,
        webhook_reorder: 0.2,
        drop_assignment: 0.1,
        acquire_conflict: 0.1,
        jit_500_after_create: 0.1,
        delete_busy_succeeds: 0.5,
        list_lag_ms: 3_000,
        ghost_runner: true,
        ..Faults::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_use_breaks_an_invariant_and_the_same_use_gives_the_same_bytes(
        seed in any::<u64>(),
        acts in prop::collection::vec(act(), 1..120),
        with_faults in any::<bool>(),
    ) {
        let faults = if with_faults { mean() } else { Faults::default() };
        let first = play(seed, faults.clone(), &acts);
        prop_assert_eq!(first, play(seed, faults, &acts));
    }
}
