//! The units of systemd, by systemd's own judgement.

use std::{fs, path::Path, process::Command};

use super::ground::{root, run, said, text};

const UNITS: [&str; 3] = ["longshore-scheduler", "longshore-agent", "longshore-egress"];

/// A host's folder of units with ours in it. The programs are not installed here, so that
/// another one stands in: `verify` wants a program that is there.
fn installed(as_root: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for unit in UNITS {
        let mut file = text(&format!("deploy/systemd/{unit}.service"));
        let program = format!("ExecStart=/usr/bin/{unit}");
        assert!(file.contains(&program), "{unit} starts another program");
        file = file.replace(&program, "ExecStart=/bin/true");
        fs::write(folder.path().join(format!("{unit}.service")), file).expect("written");
    }
    if as_root {
        let drop_ins = folder.path().join("longshore-agent.service.d");
        fs::create_dir(&drop_ins).expect("made");
        let file = text("deploy/systemd/longshore-agent-as-root.conf");
        fs::write(drop_ins.join("root.conf"), file).expect("written");
    }
    folder
}

/// systemd's figure for a unit: 0 is locked in, 10 is an ordinary process of root.
fn exposure(unit: &Path) -> f64 {
    let output = run(Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(unit));
    let said = said(&output);
    let line = said
        .lines()
        .find(|line| line.contains("Overall exposure level"));
    line.and_then(|line| line.split_whitespace().find_map(|word| word.parse().ok()))
        .unwrap_or_else(|| panic!("no figure for {}: {said}", unit.display()))
}

#[test]
fn systemd_finds_no_fault_in_a_unit() {
    for as_root in [false, true] {
        let folder = installed(as_root);
        for unit in UNITS {
            let file = folder.path().join(format!("{unit}.service"));
            let output = run(Command::new("systemd-analyze").arg("verify").arg(&file));
            let said = said(&output);
            assert!(
                output.status.success() && !said.contains("longshore"),
                "{unit}, agent as root: {as_root}: {said}"
            );
        }
    }
    // The same way finds a fault where there is one.
    let folder = installed(false);
    let file = folder.path().join("longshore-agent.service");
    let wrong = fs::read_to_string(&file).expect("read") + "KillMode=sometimes\n";
    let wrong = wrong.replace("[Install]", "[Service]\nKillMode=sometimes\n[Install]");
    fs::write(&file, wrong).expect("written");
    let output = run(Command::new("systemd-analyze").arg("verify").arg(&file));
    assert!(said(&output).contains("KillMode"), "{}", said(&output));
}

#[test]
fn no_unit_is_more_exposed_than_it_has_to_be() {
    let (own, root) = (installed(false), installed(true));
    let of = |folder: &tempfile::TempDir, unit: &str| {
        exposure(&folder.path().join(format!("{unit}.service")))
    };
    for (what, is, most) in [
        ("scheduler", of(&own, UNITS[0]), 1.5),
        ("agent", of(&own, UNITS[1]), 2.5),
        ("agent as root", of(&root, UNITS[1]), 4.5),
        ("egress", of(&own, UNITS[2]), 1.5),
    ] {
        println!("exposure of {what}: {is}");
        assert!(is <= most, "{what}: {is} is over {most}");
    }
    // The figures come from the files: a unit that guards itself by nothing has another one.
    let bare = own.path().join("bare.service");
    fs::write(&bare, "[Service]\nExecStart=/bin/true\n").expect("written");
    assert!(exposure(&bare) > 9.0);
}

/// Values of a setting, in the order of the file.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .collect()
}

#[test]
fn a_unit_that_fails_takes_no_other_along_and_both_start_at_boot() {
    for unit in UNITS {
        let file = text(&format!("deploy/systemd/{unit}.service"));
        for strong in ["Requires", "BindsTo", "Requisite", "PartOf", "Upholds"] {
            assert!(values(&file, strong).is_empty(), "{unit} has {strong}=");
        }
        assert_eq!(values(&file, "WantedBy"), ["multi-user.target"], "{unit}");
        assert_eq!(values(&file, "Restart"), ["always"], "{unit}");
        assert_eq!(
            values(&file, "StartLimitIntervalSec").len(),
            usize::from(unit != UNITS[2])
        );
    }
    let agent = text("deploy/systemd/longshore-agent.service");
    // On one host they start in order; on another the scheduler's unit is not there, which is fine.
    let after = values(&agent, "After").join(" ");
    for first in [
        "docker.service",
        "longshore-scheduler.service",
        "longshore-egress.service",
    ] {
        assert!(
            after.split(' ').any(|unit| unit == first),
            "{first}: {after}"
        );
    }
}

#[test]
fn stopping_the_agent_ends_its_process_alone_and_soon() {
    let agent = text("deploy/systemd/longshore-agent.service");
    // Its own end takes 5 s at most; sandboxes belong to the engine's control groups, not to this one.
    assert_eq!(values(&agent, "KillMode"), ["process"]);
    assert_eq!(values(&agent, "TimeoutStopSec"), ["15"]);
    for delegated in ["Delegate", "Slice"] {
        assert!(values(&agent, delegated).is_empty());
    }
    for unit in ["longshore-scheduler", "longshore-agent"] {
        let file = text(&format!("deploy/systemd/{unit}.service"));
        assert_eq!(values(&file, "Type"), ["notify"], "{unit}");
        assert_eq!(values(&file, "WatchdogSec"), ["30"], "{unit}");
        assert!(values(&file, "ExecStop").is_empty(), "{unit}");
    }
}

/// Every credential that the scheduler looks for is handed over by its unit, under a name of ours.
#[test]
fn the_units_hand_over_every_secret_that_the_programs_look_for() {
    let source = text("scheduler/src/config/credentials.rs");
    let table = source.split("pub const NAMES").nth(1).expect("the table");
    let table = table.split("];").next().expect("its end");
    let names: Vec<&str> = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').nth(2))
        .collect();
    assert!(names.contains(&"github-token"), "{names:?}");
    let unit = text("deploy/systemd/longshore-scheduler.service");
    let given = values(&unit, "LoadCredential");
    for name in names {
        let wanted = format!("{name}:longshore.{name}");
        assert!(given.contains(&wanted.as_str()), "{wanted}: {given:?}");
    }
    // A path may be missing only where it has no folder.
    for line in given {
        assert!(
            !line.contains('/'),
            "{line} must be there or the unit does not start"
        );
    }
}

/// The user that the agent's unit names is made by the file beside it.
#[test]
fn the_users_of_the_units_are_made_by_sysusers() {
    let folder = tempfile::tempdir().expect("a folder");
    let root_folder = folder.path().join("root");
    fs::create_dir_all(root_folder.join("etc")).expect("made");
    let output = run(Command::new("systemd-sysusers")
        .arg(format!("--root={}", root_folder.display()))
        .arg(root().join("deploy/systemd/longshore.sysusers")));
    assert!(output.status.success(), "{}", said(&output));
    let users = fs::read_to_string(root_folder.join("etc/passwd")).expect("users");
    for unit in ["longshore-scheduler", "longshore-agent"] {
        let file = text(&format!("deploy/systemd/{unit}.service"));
        let user = values(&file, "User")[0];
        let begin = format!("{user}:");
        assert!(
            users.lines().any(|line| line.starts_with(&begin)),
            "{users}"
        );
    }
    let groups = fs::read_to_string(root_folder.join("etc/group")).expect("groups");
    assert!(
        groups.lines().any(|line| line.starts_with("longshore:")),
        "{groups}"
    );
}
