//! Commands that change something send what was asked and report what happened.

use longshore_proto::v1;
use serde_json::json;
use tonic::Code;

use crate::fake::{Fake, error};
use crate::program::run;
use crate::world::{Call, FIXED, harbour};

fn fixed() -> Fake {
    Fake::start(harbour(FIXED))
}

fn provisioned(problem: &str) -> v1::Provisioned {
    v1::Provisioned {
        repo: "acme/web".into(),
        scope: "acme".into(),
        labels: vec!["linux".into()],
        count: 2,
        until: crate::world::at(FIXED + 600),
        problem: problem.into(),
    }
}

#[test]
fn provision_sends_its_flags_and_shows_what_starts() {
    let fake = fixed();
    fake.world().provisioned = vec![provisioned("")];
    let args =
        "runner provision --repo acme/web --count 2 --pool default --label linux,x64 -o json";
    let args: Vec<_> = args.split(' ').collect();
    let answer = run(&fake.url, &args).json();
    assert_eq!(
        answer,
        json!([{"repo": "acme/web", "scope": "acme", "labels": ["linux"], "count": 2,
                "until": "2026-10-26T07:43:20Z", "problem": null}])
    );
    let calls = fake.calls();
    let [Call::Provision(request)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(request.repo, "acme/web");
    assert_eq!((request.count, request.pool.as_str()), (2, "default"));
    assert_eq!(request.labels, ["linux", "x64"]);
}

#[test]
fn provision_fails_only_when_nothing_can_start() {
    let fake = fixed();
    fake.world().provisioned = vec![provisioned(""), provisioned("no capacity")];
    assert_eq!(run(&fake.url, &["runner", "provision"]).code, 0);
    fake.world().provisioned = vec![provisioned("no node offers arm64")];
    let ended = run(&fake.url, &["runner", "provision", "-o", "json"]);
    assert_eq!(ended.code, 5);
    assert!(ended.stdout.contains("no node offers arm64"));
    assert!(
        ended
            .stderr
            .starts_with("error: nothing can be provisioned: no node offers arm64\n"),
        "{}",
        ended.stderr
    );
}

#[test]
fn provision_with_nothing_queued_says_so() {
    let text = run(&fixed().url, &["runner", "provision"]).good();
    assert!(
        text.ends_with("Nothing to provision: no repository has waiting jobs.\n"),
        "{text}"
    );
}

#[test]
fn stop_container_takes_the_short_id_and_says_that_a_job_was_cancelled() {
    let fake = fixed();
    let args = [
        "runner",
        "stop-container",
        "--container",
        "0123456789ab",
        "--reason",
        "stuck",
    ];
    let text = run(&fake.url, &args).good();
    assert!(
        text.contains("Cancelled   the job that ran in it\n"),
        "{text}"
    );
    let calls = fake.calls();
    let [Call::StopRunner(request)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(
        (request.name.as_str(), request.reason.as_str()),
        ("0123456789ab", "stuck")
    );

    let args = [
        "runner",
        "stop-container",
        "--container",
        "ls-k3x-ef56",
        "-o",
        "json",
    ];
    let answer = run(&fake.url, &args).json();
    assert_eq!(answer["job_cancelled"], false);
    assert_eq!(answer["status"], "removing");
}

#[test]
fn a_broken_sandbox_ends_a_check_with_one_and_an_open_point_does_not() {
    use longshore_proto::v1::{Check, property::State};
    let check = |row, name: &str, state: State| Check {
        row,
        name: name.into(),
        state: state.into(),
        detail: format!("what was seen of {name}"),
    };
    let mut found = vec![
        check(1, "non_root", State::Guaranteed),
        check(20, "user_namespace", State::NotGuaranteed),
    ];
    let world = |checks: &[Check]| {
        let mut world = harbour(FIXED);
        world.checks = checks.to_vec();
        Fake::start(world)
    };
    let fake = world(&found);
    let text = run(&fake.url, &["node", "check", "n1"]).good();
    assert!(text.contains("1 pass, 0 fail, 1 not guaranteed"), "{text}");
    assert!(text.contains("what was seen of user_namespace"), "{text}");

    found.push(check(22, "no_host_services", State::Failed));
    let fake = world(&found);
    let args = ["node", "check", "n1", "--profile", "standard", "-o", "json"];
    let ended = run(&fake.url, &args);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .starts_with("error: node n1 does not hold no_host_services\n"),
        "{}",
        ended.stderr
    );
    let told: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told["profile"], "standard");
    assert_eq!(told["failed"], 1);
    assert_eq!(told["checks"][2]["state"], "fail");
    assert_eq!(told["checks"][1]["state"], "not_guaranteed");
    assert_eq!(run(&fake.url, &["node", "check", "nobody"]).code, 3);
}

#[test]
fn a_node_is_cordoned_drained_and_removed() {
    let fake = fixed();
    let state = |args: &[&str]| {
        let args = [args, &["-o", "json"]].concat();
        run(&fake.url, &args).json()["state"].clone()
    };
    assert_eq!(state(&["node", "cordon", "n1"]), "cordoned");
    assert_eq!(state(&["node", "uncordon", "n1"]), "ready");
    assert_eq!(
        state(&["node", "drain", "n1", "--deadline", "5m"]),
        "draining"
    );
    let calls = fake.calls();
    let [Call::Drain(request)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(request.deadline.as_ref().unwrap().seconds, 300);
    assert_eq!(state(&["node", "drain", "n1"]), "draining");
    assert!(matches!(&fake.calls()[0], Call::Drain(r) if r.deadline.is_none()));
    assert_eq!(
        run(&fake.url, &["node", "remove", "n1"]).good(),
        "node n1 removed\n"
    );
}

#[test]
fn a_pool_keeps_what_a_change_leaves_out() {
    let fake = fixed();
    let before = fake.world().pools[0].clone();
    let args = "pool set default --maximum 7 --memory 8g --label gpu,linux --priority high \
                --gpu-memory 40g --gpu-compute-capability 8.0 --gpu-model H100,A100";
    let args: Vec<_> = args.split(' ').collect();
    run(&fake.url, &args).good();
    let calls = fake.calls();
    let [Call::SetPool(request)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    let mut want = before;
    want.maximum = 7;
    want.resources.as_mut().unwrap().memory_bytes = 8 << 30;
    want.labels = vec!["gpu".into(), "linux".into()];
    want.priority = "high".into();
    want.gpu = Some(v1::GpuNeeds {
        memory_mib: 40_960,
        compute_capability: "8.0".into(),
        models: vec!["H100".into(), "A100".into()],
    });
    assert_eq!(request.pool, Some(want));
    assert!(!request.validate_only);
}

#[test]
fn a_new_pool_starts_empty_and_an_empty_word_empties_a_list() {
    let fake = fixed();
    fake.world().pools[0].labels = vec!["x".into()];
    run(
        &fake.url,
        &["pool", "set", "big", "--cpu", "1.5", "--dry-run"],
    )
    .good();
    run(&fake.url, &["pool", "set", "default", "--label", ""]).good();
    let calls = fake.calls();
    let [Call::SetPool(new), Call::SetPool(emptied)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert!(new.validate_only);
    let want = v1::Pool {
        name: "big".into(),
        resources: Some(v1::Resources {
            cpu_millis: 1_500,
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(new.pool, Some(want));
    assert!(emptied.pool.as_ref().unwrap().labels.is_empty());
}

#[test]
fn a_pool_is_deleted_and_a_share_is_set() {
    let fake = fixed();
    assert_eq!(
        run(&fake.url, &["pool", "delete", "default"]).good(),
        "pool default deleted\n"
    );
    let args = [
        "share",
        "set",
        "acme/web",
        "--weight",
        "4",
        "--maximum",
        "9",
        "-o",
        "json",
    ];
    let answer = run(&fake.url, &args).json();
    assert_eq!(
        answer,
        json!({"kind": "share", "name": "acme/web", "done": "set"})
    );
    let calls = fake.calls();
    let [Call::SetShare(request)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(
        (request.subject.as_str(), request.weight, request.maximum),
        ("acme/web", 4, 9)
    );
}

#[test]
fn a_change_is_never_sent_twice_by_itself() {
    let fake = fixed();
    let busy = error(
        Code::Unavailable,
        "shutting down",
        "shutting_down",
        "try again",
    );
    fake.world().faults.insert("stop_autoscaler", vec![busy]);
    run(&fake.url, &["runner", "stop"]).failed(4, "shutting down", "try again");
    assert_eq!(fake.calls(), []);
}

#[test]
fn a_join_token_is_alone_on_its_line_and_told_whole_to_programs() {
    let fake = fixed();
    let made = run(
        &fake.url,
        &["node", "join-token", "--node", "n2", "--ttl", "5m"],
    );
    assert_eq!(made.good(), "lsj_made\n");
    let asked = v1::CreateJoinTokenRequest {
        node: "n2".into(),
        ttl: Some(prost_types::Duration {
            seconds: 300,
            nanos: 0,
        }),
        ..v1::CreateJoinTokenRequest::default()
    };
    assert_eq!(fake.calls(), [Call::JoinToken(asked)]);
    let json = run(&fake.url, &["node", "join-token", "-o", "json"]).json();
    assert_eq!(json["token"], "lsj_made");
    assert_eq!(json["id"], "0011");
    let list = run(&fake.url, &["node", "join-token", "--list", "-o", "json"]).json();
    assert_eq!(list[1]["state"], "used");
    assert_eq!(list[1]["used_by"], "n1");
    let revoke = ["node", "join-token", "--revoke", "0011", "-o", "json"];
    assert_eq!(run(&fake.url, &revoke).json()["state"], "revoked");
}
