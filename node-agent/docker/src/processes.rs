//! Looks for the runner program and its worker among a sandbox's processes.
//!
//! The presence of a `Runner.Worker` process is the reliable local sign of
//! busy (facts.md 4.7). Read from the host's `/proc` through the sandbox's
//! control group; where that cannot be seen, by asking the engine.

use std::fs;
use std::path::{Path, PathBuf};

use agent_core::runtime::Processes;

const MAX_PIDS: usize = 65_536;

/// Processes of the control group of `pid`, or none where it cannot be seen.
pub(crate) fn of_pid(proc_root: &Path, cgroup_root: &Path, pid: i64) -> Option<Processes> {
    if pid <= 0 {
        return None;
    }
    let groups = fs::read_to_string(proc_root.join(pid.to_string()).join("cgroup")).ok()?;
    let file = procs_files(&groups)
        .into_iter()
        .map(|path| cgroup_root.join(path))
        .find(|path| path.exists())?;
    let pids = fs::read_to_string(file).ok()?;
    let mut seen = Processes::default();
    for pid in pids.lines().take(MAX_PIDS) {
        let Ok(line) = fs::read(proc_root.join(pid).join("cmdline")) else {
            continue;
        };
        add(
            &mut seen,
            line.split(|byte| *byte == 0).map(String::from_utf8_lossy),
        );
    }
    Some(seen)
}

/// Where `cgroup.procs` of a process may be, from its `/proc/PID/cgroup`.
fn procs_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let path = path.trim_start_matches('/');
        // The root group is everybody's: it proves nothing.
        if path.is_empty() || path.contains("..") {
            continue;
        }
        match controllers {
            "" => files.push(Path::new(path).join("cgroup.procs")),
            "pids" | "memory" => {
                files.insert(0, Path::new(controllers).join(path).join("cgroup.procs"))
            }
            _ => {}
        }
    }
    files
}

/// From the engine's process list: one command line per process.
pub(crate) fn of_command_lines<'a>(lines: impl Iterator<Item = &'a str>) -> Processes {
    let mut seen = Processes::default();
    for line in lines {
        add(
            &mut seen,
            line.split_whitespace().map(std::borrow::Cow::Borrowed),
        );
    }
    seen
}

/// An interpreter or an emulator may stand before the program's own name.
fn add<'a>(seen: &mut Processes, words: impl Iterator<Item = std::borrow::Cow<'a, str>>) {
    for word in words.take(3) {
        match word.rsplit('/').next() {
            Some("Runner.Listener") => seen.listener = true,
            Some("Runner.Worker") => {
                seen.worker = true;
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_is_found_behind_shell_and_emulator() {
        let worker = |line: &str| of_command_lines([line].into_iter()).worker;
        assert!(worker("/home/runner/bin/Runner.Worker spawnclient 1 2"));
        assert!(worker("/bin/sh /home/runner/bin/Runner.Worker"));
        assert!(worker(
            "/usr/bin/qemu-aarch64 bin/Runner.Worker bin/Runner.Worker x"
        ));
        assert!(!worker("sh -c echo hello Runner.Worker"));
        assert!(!worker("/home/runner/bin/Runner.Listener run"));
        assert!(of_command_lines(["/home/runner/bin/Runner.Listener run"].into_iter()).listener);
    }

    #[test]
    fn groups_of_both_versions_are_read() {
        assert_eq!(procs_files("0::/a/b\n"), [Path::new("a/b/cgroup.procs")]);
        let v1 = "5:memory:/docker/x\n3:pids:/docker/x\n1:name=systemd:/docker/x\n0::/\n";
        assert_eq!(procs_files(v1)[0], Path::new("pids/docker/x/cgroup.procs"));
        assert!(
            procs_files("0::/\n").is_empty(),
            "the root group is everybody's"
        );
    }

    #[test]
    fn a_recorded_tree_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, cgroup) = (dir.path().join("proc"), dir.path().join("cgroup"));
        fs::create_dir_all(proc.join("7")).unwrap();
        fs::create_dir_all(proc.join("9")).unwrap();
        fs::create_dir_all(cgroup.join("pids/d/x")).unwrap();
        fs::write(proc.join("7/cgroup"), "3:pids:/d/x\n").unwrap();
        fs::write(proc.join("7/cmdline"), b"/sbin/docker-init\0--\0/bin/sh\0").unwrap();
        fs::write(proc.join("9/cmdline"), b"bin/Runner.Worker\0spawnclient\0").unwrap();
        fs::write(cgroup.join("pids/d/x/cgroup.procs"), "7\n9\n").unwrap();
        let seen = of_pid(&proc, &cgroup, 7).unwrap();
        assert!(seen.worker);
        assert_eq!(
            of_pid(&proc, &cgroup, 8),
            None,
            "a process that cannot be seen is not an idle one"
        );
    }
}
