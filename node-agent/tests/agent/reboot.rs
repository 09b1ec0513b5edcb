//! A power cut and the boot after it, for a private engine: what lives in memory is gone, what
//! is on disk stays.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::namespaces::command;
use crate::on::On;

const DEADLINE: Duration = Duration::from_secs(60);

/// Every process and its parent.
fn parents() -> Vec<(u32, u32)> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        Some((pid, parent.parse().ok()?))
    })
    .collect()
}

/// Processes whose command line names the folder, and all below them.
fn family_of(folder: &Path) -> BTreeSet<u32> {
    let all = parents();
    let names = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*folder.to_string_lossy())
    };
    let mut family: BTreeSet<u32> = all
        .iter()
        .map(|(pid, _)| *pid)
        .filter(|pid| names(*pid))
        .collect();
    loop {
        let before = family.len();
        let below = all.iter().filter(|(_, parent)| family.contains(parent));
        family.extend(below.map(|(pid, _)| *pid).collect::<Vec<_>>());
        if family.len() == before {
            return family;
        }
    }
}

fn is_alive(pid: u32) -> bool {
    // A zombie has no command line any more.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn wait(what: &str, is: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < DEADLINE, "{what}: in vain");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The engine is to be started again afterwards. `group` is the control group of the agent's
/// sandboxes, relative to each hierarchy.
pub(crate) fn power_cut(on: &On, group: &str) {
    let mut engine = on.docker();
    let folder = PathBuf::from(engine.socket()).parent().unwrap().to_owned();
    let keeper = engine.keeper();
    let exec = folder.join("exec");
    engine.kill();
    let family = family_of(&exec);
    assert!(family.len() >= 2, "no container outlived the engine");
    for pid in &family {
        // A shim's end may have taken it along.
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
    wait("everything ends", || {
        !family.iter().any(|pid| is_alive(*pid))
    });
    // What the kernel held in memory: mounts, links, rules, control groups, /run.
    let run = |line: &str| {
        let shell = command(keeper, &["-m", "-n"], "sh")
            .args(["-ec", line])
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&shell.stderr).into_owned();
        assert!(shell.status.success(), "{line}: {words}");
    };
    let folder = folder.display();
    run(&format!(
        "tac /proc/self/mounts | cut -d' ' -f2 | grep '^{folder}/' | while read m; do umount -l \"$m\"; done"
    ));
    // A pair goes as one.
    run("for l in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do \
         [ $l = lo ] || ip link del $l 2>/dev/null || true; done");
    run("nft flush ruleset");
    fs::remove_dir_all(&exec).unwrap();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"] {
        let root = Path::new(root);
        let hierarchies = [root.to_owned()].into_iter().chain(folders(root));
        for group in hierarchies.map(|hierarchy| hierarchy.join(group)) {
            wait("the control groups are empty", || remove_groups(&group));
        }
    }
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect()
}

/// True when there is none.
fn remove_groups(group: &Path) -> bool {
    for below in folders(group) {
        remove_groups(&below);
    }
    !group.exists() || fs::remove_dir(group).is_ok()
}
