//! `runner status`, `runner start`, `runner stop` against a scheduler.

use crate::fake::Fake;
use crate::program::{golden, run};
use crate::world::{Call, FIXED, World, harbour, recently};

#[test]
fn status_has_the_predecessors_fields_and_types() {
    let fake = Fake::start(harbour(FIXED));
    let status = run(&fake.url, &["runner", "status", "-o", "json"]).json();
    assert_eq!(status["running"], true);
    assert_eq!(status["start_time"], "2026-10-26T07:33:20Z");
    assert_eq!(status["iterations"], 7);
    assert_eq!(status["active_runners"], 2);
    assert_eq!(status["queued_workflows"], 38);
    assert_eq!(status["repositories_monitored"], 3);
    assert_eq!(status["last_check"], "2026-10-26T07:34:20.25Z");
}

#[test]
fn status_json_is_stable_and_the_default_into_a_pipe() {
    let fake = Fake::start(harbour(FIXED));
    let text = run(&fake.url, &["runner", "status"]).good();
    golden("status.json", &text);
}

#[test]
fn status_of_a_fleet_that_never_started_has_nulls_not_zeros() {
    let fake = Fake::start(World::default());
    let status = run(&fake.url, &["runner", "status"]).json();
    assert_eq!(status["running"], false);
    assert_eq!(status["start_time"], serde_json::Value::Null);
    assert_eq!(status["last_check"], serde_json::Value::Null);
}

#[test]
fn status_for_people_says_what_is_filtered_by_architecture() {
    let mut world = harbour(FIXED);
    world.status.last_check = crate::world::at(recently());
    let fake = Fake::start(world);
    let text = run(&fake.url, &["runner", "status", "-o", "table"]).good();
    golden("status.txt", &text);
    assert!(
        text.contains("\n12 filtered: no node can run arm64\n"),
        "{text}"
    );
}

#[test]
fn without_a_node_that_is_said_and_no_label_blamed() {
    let mut world = harbour(FIXED);
    (world.status.nodes_total, world.status.nodes_ready) = (0, 0);
    let fake = Fake::start(world);
    let text = run(&fake.url, &["runner", "status", "-o", "table"]).good();
    assert!(
        text.contains("\nno node is attached: start longshore-agent"),
        "{text}"
    );
    assert!(!text.contains("filtered"), "{text}");
}

#[test]
fn start_sends_only_the_settings_that_were_given() {
    let fake = Fake::start(harbour(FIXED));
    let args =
        "runner start --owner acme,mona --interval 30 --max-runners 8 --since-days 2 -o json";
    let args: Vec<_> = args.split(' ').collect();
    let answer = run(&fake.url, &args).json();
    assert_eq!(answer["was_running"], true);
    assert_eq!(answer["settings"]["poll_interval"], 30.0);
    let calls = fake.calls();
    let [Call::Status, Call::Start(request)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    let settings = request.settings.as_ref().unwrap();
    assert_eq!(settings.owners, ["acme", "mona"]);
    assert_eq!(settings.poll_interval.as_ref().unwrap().seconds, 30);
    assert_eq!((settings.max_runners, settings.since_days), (8, 2));
    assert_eq!(settings.image, "");
    assert!(!request.request_id.is_empty() && !request.validate_only);

    run(&fake.url, &["runner", "start"]).good();
    let Some(Call::Start(request)) = fake.calls().pop() else {
        panic!("no start");
    };
    assert_eq!(request.settings.unwrap(), Default::default());
}

#[test]
fn a_dry_run_of_start_changes_nothing() {
    let fake = Fake::start(World::default());
    let text = run(&fake.url, &["runner", "start", "--dry-run"]).good();
    assert!(text.contains("nothing was changed"), "{text}");
    assert!(matches!(fake.calls().last(), Some(Call::Start(r)) if r.validate_only));
    assert!(!fake.world().status.running);
}

#[test]
fn stop_says_whether_it_was_on() {
    let fake = Fake::start(harbour(FIXED));
    let text = run(&fake.url, &["runner", "stop"]).good();
    assert_eq!(text, "Scaling  off; running jobs finish\n");
    let text = run(&fake.url, &["runner", "stop"]).good();
    assert_eq!(text, "Scaling  was off already\n");
    let answer = run(&fake.url, &["runner", "stop", "-o", "json"]).json();
    assert_eq!(
        answer,
        serde_json::json!({"running": false, "was_running": false})
    );
}
