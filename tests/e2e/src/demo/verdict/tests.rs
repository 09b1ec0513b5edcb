//! A sound demo passes, and each single thing that goes wrong fails it.

use super::*;

fn declared(run: &str, name: &str, labels: &[&str], expect: Outcome) -> Declared {
    Declared {
        repo: "acme/web".into(),
        run: run.into(),
        name: name.into(),
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
        expect,
        probe: false,
        yours: false,
    }
}

fn ran(run: &str, name: &str, conclusion: &str, runner: &str, wait: i64) -> JobState {
    JobState {
        run: run.into(),
        name: name.into(),
        status: "completed".into(),
        conclusion: Some(conclusion.into()),
        runner_name: Some(runner.into()),
        queued_ms: Some(1_000),
        started_ms: Some(1_000 + wait),
        assignments: vec![runner.into()],
        ..JobState::default()
    }
}

fn life(name: &str) -> Life {
    Life {
        names: vec!["slot".into(), name.into()],
        started: 1,
        died: true,
        destroyed: true,
        execs: 0,
        about: String::new(),
    }
}

fn registration(name: &str, labels: &[&str]) -> Registration {
    Registration {
        name: name.into(),
        scope: "orgs/acme".into(),
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
    }
}

fn sound() -> Evidence {
    let x64 = ["self-hosted", "x64"];
    Evidence {
        declared: vec![
            declared("ci", "good", &x64, Outcome::Success),
            declared("ci", "bad", &x64, Outcome::Failure),
            declared("ci", "long", &x64, Outcome::Cancelled),
            declared(
                "ci",
                "arm",
                &["self-hosted", "arm64"],
                Outcome::Unschedulable,
            ),
        ],
        jobs: vec![
            ran("ci", "good", "success", "ls-1", 10),
            ran("ci", "bad", "failure", "ls-2", 30),
            ran("ci", "long", "cancelled", "ls-3", 20),
            JobState {
                run: "ci".into(),
                name: "arm".into(),
                status: "queued".into(),
                ..JobState::default()
            },
        ],
        registrations_ever: vec![
            registration("ls-1", &x64),
            registration("ls-2", &x64),
            registration("ls-3", &x64),
        ],
        registration_calls: 3,
        lives: vec![life("ls-1"), life("ls-2"), life("ls-3")],
        probes: vec![Probe {
            row: "1".into(),
            found: Found::Passed,
            text: String::new(),
        }],
        probe_expected: true,
        ..Evidence::default()
    }
}

#[test]
fn a_sound_demo_is_as_expected() {
    let (summary, findings) = judge(&sound());
    assert!(summary.expected, "{findings:?}");
    assert_eq!(
        summary.jobs,
        Jobs {
            queued: 4,
            succeeded: 1,
            failed: 1,
            cancelled: 1,
            unschedulable: 1
        }
    );
    assert_eq!(
        summary.wait_ms,
        Waits {
            p50: Some(20),
            p99: Some(30),
            max: Some(30)
        }
    );
}

#[test]
fn every_single_fault_is_found() {
    type Spoil = fn(&mut Evidence);
    let faults: &[(&str, Spoil)] = &[
        ("declared success", |e| {
            e.jobs[0].conclusion = Some("failure".into())
        }),
        ("declared failure", |e| {
            e.jobs[1].conclusion = Some("success".into())
        }),
        ("declared cancelled", |e| {
            e.jobs[2].conclusion = Some("success".into())
        }),
        ("declared unschedulable", |e| {
            e.jobs[3].status = "completed".into();
            e.jobs[3].conclusion = Some("success".into());
        }),
        ("declared unschedulable", |e| {
            e.jobs[3].assignments = vec!["ls-9".into()]
        }),
        ("never queued", |e| {
            e.jobs.remove(0);
        }),
        ("nobody declared", |e| {
            e.jobs.push(ran("ci", "surprise", "success", "ls-3b", 1))
        }),
        ("no job was declared", |e| {
            e.declared.clear();
            e.jobs.clear();
        }),
        ("without a runner", |e| e.jobs[0].runner_name = None),
        ("served 2 jobs", |e| {
            e.jobs[1].runner_name = Some("ls-1".into())
        }),
        ("0 containers", |e| {
            e.lives.remove(0);
        }),
        ("2 containers", |e| e.lives.push(life("ls-1"))),
        ("started 2 times", |e| e.lives[0].started = 2),
        ("from outside", |e| e.lives[0].execs = 1),
        ("never removed", |e| e.lives[0].destroyed = false),
        ("in vain", |e| {
            e.registrations_ever
                .push(registration("ls-4", &["self-hosted", "arm64"]));
            e.registration_calls = 4;
        }),
        ("in vain", |e| {
            e.declared[3].repo = "mona/site".into();
            e.declared[3].labels = e.declared[0].labels.clone();
            let mut of_site = registration("ls-4", &["self-hosted", "x64"]);
            of_site.scope = "repos/mona/site".into();
            e.registrations_ever.push(of_site);
            e.registration_calls = 4;
        }),
        ("request log", |e| e.registration_calls = 2),
        ("registration left", |e| {
            e.registrations_left.push(registration("ls-1", &[]))
        }),
        ("container left", |e| {
            e.difference.containers.push("ls-1".into())
        }),
        ("network left", |e| {
            e.difference.networks.push("ls-1".into())
        }),
        ("volume left", |e| e.difference.volumes.push("v".into())),
        ("firewall line left", |e| {
            e.difference.firewall.push("drop".into())
        }),
        ("process left", |e| {
            e.difference.processes.push("sleep".into())
        }),
        ("not ours and gone", |e| {
            e.difference.missing.push("postgres".into())
        }),
        ("probe failed", |e| e.probes[0].found = Found::Failed),
        ("no property", |e| e.probes.clear()),
    ];
    for (words, spoil) in faults {
        let mut evidence = sound();
        spoil(&mut evidence);
        let (summary, findings) = judge(&evidence);
        assert!(!summary.expected, "{words}: passed");
        assert!(
            findings.iter().any(|f| f.contains(words)),
            "{words}: found only {findings:?}"
        );
    }
}

#[test]
fn the_summary_has_the_published_shape() {
    let (summary, _) = judge(&sound());
    let value = serde_json::to_value(&summary).unwrap();
    let keys = |v: &serde_json::Value| -> Vec<String> {
        let mut keys: Vec<String> = v.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(
        keys(&value),
        ["expected", "host", "jobs", "leaks", "probes", "wait_ms"]
    );
    assert_eq!(
        keys(&value["jobs"]),
        [
            "cancelled",
            "failed",
            "queued",
            "succeeded",
            "unschedulable"
        ]
    );
    assert_eq!(
        keys(&value["leaks"]),
        [
            "containers",
            "firewall",
            "networks",
            "processes",
            "registrations",
            "volumes"
        ]
    );
    assert_eq!(keys(&value["wait_ms"]), ["max", "p50", "p99"]);
    assert_eq!(
        keys(&value["probes"]),
        ["failed", "not_guaranteed", "passed"]
    );
    assert_eq!(keys(&value["host"]), ["arch", "cgroup", "cpus", "engine"]);
    assert!(value["expected"].is_boolean());
}
