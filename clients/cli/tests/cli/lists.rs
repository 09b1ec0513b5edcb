//! Lists and single things, for people and for programs.

use serde_json::json;

use crate::fake::Fake;
use crate::program::{golden, run};
use crate::world::{Call, FIXED, World, harbour, recently};

fn fixed() -> Fake {
    Fake::start(harbour(FIXED))
}

/// Tables show ages, so their world is five minutes old.
fn recent() -> Fake {
    Fake::start(harbour(recently()))
}

#[track_caller]
fn check(fake: &Fake, file: &str, args: &str) {
    let args: Vec<_> = args.split(' ').collect();
    golden(file, &run(&fake.url, &args).good());
}

#[test]
fn workflows_have_the_predecessors_fields() {
    let fake = fixed();
    let queues = run(&fake.url, &["runner", "list-workflows"]).json();
    let first = &queues[0];
    assert_eq!(first["repo"], "acme/web");
    assert_eq!(first["total_workflows"], 20);
    assert_eq!(first["running"], 0);
    assert_eq!(first["failed"], 2);
    assert_eq!(first["pending"], 18);
    let total: u64 = queues
        .as_array()
        .unwrap()
        .iter()
        .map(|q| q["total_workflows"].as_u64().unwrap())
        .sum();
    assert_eq!(total, 41);
}

#[test]
fn workflows_json_is_stable() {
    check(&fixed(), "workflows.json", "runner list-workflows -o json");
}

#[test]
fn workflows_for_people_end_with_what_is_filtered() {
    check(&fixed(), "workflows.txt", "runner list-workflows -o table");
    check(
        &fixed(),
        "workflows-wide.txt",
        "runner list-workflows -o wide",
    );
}

#[test]
fn workflows_of_one_owner() {
    let fake = fixed();
    let none = run(&fake.url, &["runner", "list-workflows", "--owner", "mona"]).json();
    assert_eq!(none, json!([]));
}

#[test]
fn containers_have_the_predecessors_fields() {
    let containers = run(&fixed().url, &["runner", "list-containers"]).json();
    let [only] = containers.as_array().unwrap().as_slice() else {
        panic!("{containers}");
    };
    assert_eq!(only["container_id"], "0123456789ab");
    assert_eq!(only["repo"], "acme/api");
    assert_eq!(only["status"], "running");
    assert_eq!(only["created_at"], "2026-10-26T07:33:20Z");
}

#[test]
fn containers_json_is_stable() {
    let fake = fixed();
    check(
        &fake,
        "containers.json",
        "runner list-containers --all -o json",
    );
}

#[test]
fn containers_for_people() {
    check(
        &recent(),
        "containers.txt",
        "runner list-containers --all -o table",
    );
    check(
        &recent(),
        "containers-wide.txt",
        "runner list-containers --all -o wide",
    );
}

#[test]
fn jobs_json_lines_are_one_object_each() {
    check(&fixed(), "jobs.jsonl", "job list -o jsonl");
}

#[test]
fn a_job_name_from_outside_cannot_steer_the_terminal() {
    let text = run(&recent().url, &["job", "list"]).good();
    golden("jobs.txt", &text);
    assert!(!text.contains('\u{1b}'));
    check(&recent(), "jobs-wide.txt", "job list -o wide");
}

#[test]
fn jobs_can_be_filtered_and_cut() {
    let fake = fixed();
    let args = "job list --state in_progress --repo acme/web --limit 5 -o json";
    let args: Vec<_> = args.split(' ').collect();
    assert_eq!(run(&fake.url, &args).json(), json!([]));
    let calls = fake.calls();
    let [Call::Jobs(request)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(
        (request.state.as_str(), request.page_size),
        ("in_progress", 5)
    );
    assert_eq!(request.repo, "acme/web");

    let ended = run(&fake.url, &["job", "list", "--limit", "1", "-o", "name"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "101\n"));
    assert_eq!(ended.stderr, "only the first 1 are shown\n");
}

#[test]
fn long_lists_are_collected_page_by_page() {
    let jobs = (1..=2_500)
        .map(|id| longshore_proto::v1::Job {
            id,
            ..Default::default()
        })
        .collect();
    let fake = Fake::start(World {
        jobs,
        ..World::default()
    });
    let text = run(&fake.url, &["job", "list", "--limit", "2500", "-o", "name"]).good();
    let want: String = (1..=2_500).map(|id| format!("{id}\n")).collect();
    assert_eq!(text, want);
    assert_eq!(fake.calls().len(), 3);
}

#[test]
fn one_job() {
    check(&fixed(), "job.txt", "job describe 102");
    check(&fixed(), "job.json", "job describe 102 -o json");
}

#[test]
fn explain_says_why_per_node_and_what_would_help() {
    check(&recent(), "explain.txt", "explain 101");
    check(&fixed(), "explain.json", "explain 101 -o json");
    let page = "https://github.com/acme/web/actions/runs/11/job/101";
    let word = run(&fixed().url, &["explain", page, "-o", "name"]).good();
    assert_eq!(word, "no_feasible_node\n");
}

#[test]
fn nodes() {
    check(&recent(), "nodes.txt", "node list");
    check(&recent(), "nodes-wide.txt", "node list -o wide");
    check(&recent(), "node.txt", "node describe n1");
    check(&fixed(), "node.json", "node describe n1 -o json");
}

#[test]
fn pools() {
    check(&fixed(), "pools.txt", "pool list");
    check(&fixed(), "pools-wide.txt", "pool list -o wide");
    check(&fixed(), "pools.json", "pool list -o json");
}

/// `script` runs the program on a terminal of its own.
fn on_a_terminal(fake: &Fake, env: &str) -> String {
    let program = env!("CARGO_BIN_EXE_longshore");
    let mut command = std::process::Command::new("script");
    command
        .args([
            "-qec",
            &format!("{env} {program} node list --scheduler {}", fake.url),
        ])
        .arg("/dev/null")
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    crate::program::finish(command).good()
}

#[test]
fn colour_is_for_terminals_only_and_can_be_switched_off() {
    let fake = recent();
    assert!(on_a_terminal(&fake, "").starts_with("\u{1b}[1mNODE"));
    for env in ["NO_COLOR=1", "TERM=dumb"] {
        let text = on_a_terminal(&fake, env);
        assert!(
            text.starts_with("NODE") && !text.contains('\u{1b}'),
            "{text:?}"
        );
    }
    let piped = run(&fake.url, &["node", "list"]).good();
    assert!(!piped.contains('\u{1b}'));
}

#[test]
fn an_empty_list_is_an_empty_array_or_only_a_header() {
    let fake = Fake::start(World::default());
    assert_eq!(
        run(&fake.url, &["job", "list", "-o", "json"]).json(),
        json!([])
    );
    assert_eq!(run(&fake.url, &["job", "list", "-o", "jsonl"]).good(), "");
    let table = run(&fake.url, &["job", "list"]).good();
    assert_eq!(table.lines().count(), 1, "{table}");
}
