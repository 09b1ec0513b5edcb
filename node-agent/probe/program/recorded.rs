//! The probe on recorded trees: what cannot be run live is read from files.

use crate::report::{Check, Report, State};
use crate::setting::Setting;
use crate::view::View;
use crate::{files, identity, kernel, limits, namespaces};

fn look(tree: &str, change: impl FnOnce(&std::path::Path)) -> Vec<Check> {
    look_told(tree, None, change)
}

fn look_told(
    tree: &str,
    argument: Option<&str>,
    change: impl FnOnce(&std::path::Path),
) -> Vec<Check> {
    let from = format!("{}/fixtures/{tree}", env!("CARGO_MANIFEST_DIR"));
    let to = std::env::temp_dir().join(format!(
        "longshore-probe-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .arg(&from)
        .arg(&to)
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    change(&to);
    let view = View::new(&to);
    let mut setting = Setting::parse(argument.map(str::to_owned).into_iter()).expect("known");
    setting.runtime = view.runtime().unwrap_or("runc").to_owned();
    let mut report = Report {
        unclaimed: setting.unclaimed.clone(),
        ..Report::default()
    };
    identity::look(&view, &setting, &mut report);
    kernel::look(&view, &setting, &mut report);
    files::look(&view, &setting, &mut report);
    limits::look(&view, &setting, &mut report);
    namespaces::look(&view, &setting, &mut report);
    std::fs::remove_dir_all(&to).expect("removed");
    report.checks
}

fn states(checks: &[Check], name: &str) -> Vec<State> {
    let of_it = checks.iter().filter(|check| check.name == name);
    of_it.map(|check| check.state).collect()
}

const LIMITS: [&str; 4] = ["process_limit", "memory_limit", "no_swap", "cpu_limit"];

#[test]
fn limits_are_read_in_both_versions_of_control_groups() {
    for tree in ["docker-cgroup1", "docker-cgroup2"] {
        let checks = look(tree, |_| {});
        for name in LIMITS {
            assert_eq!(states(&checks, name), [State::Pass], "{tree} {name}");
        }
        for name in [
            "non_root",
            "no_capabilities",
            "no_escalation",
            "seccomp",
            "own_cgroup_namespace",
        ] {
            assert_eq!(states(&checks, name), [State::Pass], "{tree} {name}");
        }
    }
}

#[test]
fn a_limit_that_is_missing_in_version_2_fails() {
    for (file, text, name) in [
        ("pids.max", "max\n", "process_limit"),
        ("memory.max", "max\n", "memory_limit"),
        ("memory.swap.max", "max\n", "no_swap"),
        ("cpu.max", "max 100000\n", "cpu_limit"),
    ] {
        let checks = look("docker-cgroup2", |root| {
            std::fs::write(root.join("sys/fs/cgroup").join(file), text).expect("written");
        });
        for limit in LIMITS {
            let expected = if limit == name {
                State::Fail
            } else {
                State::Pass
            };
            assert_eq!(states(&checks, limit), [expected], "{file}: {limit}");
        }
    }
    let checks = look("docker-cgroup2", |root| {
        let path = root.join("proc/self/cgroup");
        std::fs::write(path, "0::/system.slice/docker-1.scope\n").expect("written");
    });
    assert_eq!(states(&checks, "own_cgroup_namespace"), [State::Fail]);
}

#[test]
fn apparmor_is_what_the_kernel_enforces_and_no_promise_of_every_host() {
    let under = |profile: Option<&str>, claimed: bool| {
        let checks = look_told(
            "docker-cgroup2",
            claimed.then_some("--claimed=apparmor"),
            |root| {
                let folder = root.join("proc/self/attr/apparmor");
                if let Some(profile) = profile {
                    std::fs::create_dir_all(&folder).expect("made");
                    std::fs::write(folder.join("current"), profile).expect("written");
                }
            },
        );
        states(&checks, "apparmor")
    };
    let enforced = Some("docker-default (enforce)\n");
    assert_eq!(under(enforced, true), [State::Pass]);
    assert_eq!(under(enforced, false), [State::Pass]);
    for weak in [
        None,
        Some("unconfined\n"),
        Some("docker-default (complain)\n"),
    ] {
        assert_eq!(under(weak, true), [State::Fail], "{weak:?}");
        assert_eq!(under(weak, false), [State::NotGuaranteed], "{weak:?}");
    }
    let checks = look_told("gvisor", Some("--claimed=apparmor"), |_| {});
    assert_eq!(states(&checks, "apparmor"), [State::NotGuaranteed]);
}

#[test]
fn what_gvisor_does_not_show_is_open_and_not_broken() {
    let checks = look("gvisor", |_| {});
    for name in LIMITS {
        assert_eq!(states(&checks, name), [State::NotGuaranteed], "{name}");
    }
    assert_eq!(states(&checks, "seccomp"), [State::Pass]);
    assert_eq!(states(&checks, "no_escalation"), [State::NotGuaranteed]);
    // The same tree under runc would be a broken sandbox.
    let under_runc = look("gvisor", |root| {
        std::fs::write(root.join("proc/version"), "Linux version 6.1.0\n").expect("written");
    });
    assert_eq!(states(&under_runc, "seccomp"), [State::Fail]);
    assert_eq!(states(&under_runc, "no_escalation"), [State::Fail]);
}
