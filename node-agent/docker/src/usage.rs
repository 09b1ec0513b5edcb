//! What a sandbox used, from a control group that outlives its container.
//!
//! The engine removes a container's own group at its exit, so each sandbox
//! gets a parent group; figures of a group include its former children.

use std::fs;
use std::path::{Path, PathBuf};

use agent_core::model::Usage;

use crate::{disk_io, slices};

pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// Name of the parent group in the form the engine's driver wants, or nothing
/// where the group could not be read or removed afterwards.
pub(crate) fn parent(driver: &str, rootless: bool, instance: &str, salt: &str) -> String {
    match driver {
        _ if rootless => String::new(),
        "cgroupfs" => format!("/longshore-{instance}/{salt}"),
        "systemd" => format!("longshore-{instance}-{salt}.slice"),
        _ => String::new(),
    }
}

/// Whether this process is root: systemd lets nobody else stop slices, and the groups of an
/// engine with the plain driver are root's.
pub(crate) fn is_root() -> bool {
    // Not by the owner of /proc/self: a process that may not be dumped is shown as root's.
    fs::read_to_string("/proc/self/status").is_ok_and(|status| effective_user(&status) == Some(0))
}

fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Folder below a hierarchy's root.
fn folder(parent: &str) -> PathBuf {
    if let Some(name) = parent.strip_suffix(".slice") {
        // A dash in a slice's name is a level of the tree.
        let mut path = PathBuf::new();
        let mut prefix = String::new();
        for part in name.split('-') {
            if !prefix.is_empty() {
                prefix.push('-');
            }
            prefix.push_str(part);
            path.push(format!("{prefix}.slice"));
        }
        path
    } else {
        PathBuf::from(parent.trim_start_matches('/'))
    }
}

/// What was used, or none where the host cannot tell.
pub(crate) fn read(root: &Path, parent: &str) -> Option<Usage> {
    if parent.is_empty() {
        return None;
    }
    let folder = folder(parent);
    let io = disk_io::read(root, &folder);
    let used = |cpu_ns, peak_memory_bytes| Usage {
        cpu_ns,
        peak_memory_bytes,
        read_bytes: io.read,
        written_bytes: io.written,
        ..Usage::default()
    };
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let unified = root.join(&folder);
    if let Some(peak_memory_bytes) = number(unified.join("memory.peak")) {
        let stat = fs::read_to_string(unified.join("cpu.stat")).ok()?;
        let micros: u64 = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))?
            .trim()
            .parse()
            .ok()?;
        return Some(used(micros * 1_000, peak_memory_bytes));
    }
    let cpu_ns = ["cpuacct", "cpu,cpuacct"]
        .iter()
        .find_map(|controller| number(root.join(controller).join(&folder).join("cpuacct.usage")))?;
    let peak_memory_bytes = number(
        root.join("memory")
            .join(&folder)
            .join("memory.max_usage_in_bytes"),
    )?;
    Some(used(cpu_ns, peak_memory_bytes))
}

/// Processes of a job and its siblings together.
const PIDS: u64 = 4_096;
/// A period of the CPU limit, in microseconds.
const PERIOD: u64 = 100_000;

/// Limits a parent group, so that all containers in it share what one was given.
pub(crate) fn bound(
    root: &Path,
    parent: &str,
    memory_bytes: u64,
    cpu_millis: u32,
) -> Result<(), String> {
    if parent.is_empty() {
        return Err("its engine keeps no control group for a job".into());
    }
    let folder = folder(parent);
    let quota = u64::from(cpu_millis) * PERIOD / 1_000;
    let write = |path: PathBuf, value: String| {
        fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))
    };
    let unified = root.join(&folder);
    if unified.join("memory.max").exists() {
        write(unified.join("memory.max"), memory_bytes.to_string())?;
        if unified.join("memory.swap.max").exists() {
            write(unified.join("memory.swap.max"), "0".into())?;
        }
        write(unified.join("cpu.max"), format!("{quota} {PERIOD}"))?;
        return write(unified.join("pids.max"), PIDS.to_string());
    }
    let memory = root.join("memory").join(&folder);
    let with_swap = memory.join("memory.memsw.limit_in_bytes");
    let limit = memory.join("memory.limit_in_bytes");
    write(limit, memory_bytes.to_string())?;
    if with_swap.exists() {
        write(with_swap, memory_bytes.to_string())?;
    }
    let cpu = ["cpu", "cpu,cpuacct"]
        .iter()
        .map(|controller| root.join(controller).join(&folder))
        .find(|place| place.join("cpu.cfs_quota_us").exists())
        .ok_or("there is no cpu controller")?;
    write(cpu.join("cpu.cfs_period_us"), PERIOD.to_string())?;
    write(cpu.join("cpu.cfs_quota_us"), quota.to_string())?;
    write(
        root.join("pids").join(&folder).join("pids.max"),
        PIDS.to_string(),
    )
}

/// Removes the parent group from every hierarchy, with the empty groups in it
/// that an engine's helper processes leave. Missing ones are fine; false when
/// something is still alive in one.
pub(crate) fn remove(root: &Path, parent: &str) -> bool {
    if parent.is_empty() {
        return true;
    }
    let mut gone = true;
    for place in places(root, &folder(parent)) {
        if let Ok(inner) = fs::read_dir(&place) {
            for entry in inner.flatten().filter(|entry| entry.path().is_dir()) {
                // Only empty groups can be removed, so nothing alive is hit.
                let _ = fs::remove_dir(entry.path());
            }
        }
        let _ = fs::remove_dir(&place);
        gone &= !place.exists();
    }
    gone
}

/// A folder in the one hierarchy of version 2, and in each of version 1.
fn places(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut places = vec![root.join(folder)];
    if let Ok(entries) = fs::read_dir(root) {
        places.extend(entries.flatten().map(|entry| entry.path().join(folder)));
    }
    places
}

/// Whether any hierarchy has this parent group.
pub(crate) fn exists(root: &Path, parent: &str) -> bool {
    !parent.is_empty() && places(root, &folder(parent)).iter().any(|p| p.exists())
}

/// Parent groups of this agent that exist now, as they are named for either driver.
pub(crate) fn leftovers(root: &Path, instance: &str) -> Vec<String> {
    let plain = format!("/longshore-{instance}");
    let around = slices::around(instance);
    let mut found = std::collections::BTreeSet::new();
    for top in [&plain, &around] {
        for place in places(root, &folder(top)) {
            let entries = fs::read_dir(place).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.path().is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if top == &plain {
                    found.insert(format!("{plain}/{name}"));
                } else if slices::is_slice(&name) {
                    found.insert(name);
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Removes every parent group of this agent and the group around them.
pub(crate) fn remove_all(root: &Path, instance: &str) {
    for group in leftovers(root, instance) {
        remove(root, &group);
    }
    remove(root, &format!("/longshore-{instance}"));
    remove(root, &slices::around(instance));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_the_effective_one() {
        let status = "Name:\tx\nUid:\t1000\t7\t0\t1000\nGid:\t0\t0\t0\t0\n";
        assert_eq!(effective_user(status), Some(7));
        assert_eq!(effective_user("Uid:\t0\t0\t0\t0"), Some(0));
        assert_eq!(effective_user(""), None);
    }

    #[test]
    fn both_versions_are_read_and_ignorance_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let parent = parent("cgroupfs", false, "0a", "x");
        assert_eq!(read(dir.path(), &parent), None);
        for controller in ["cpuacct", "memory"] {
            fs::create_dir_all(dir.path().join(controller).join("longshore-0a/x")).unwrap();
        }
        fs::write(
            dir.path().join("cpuacct/longshore-0a/x/cpuacct.usage"),
            "1500\n",
        )
        .unwrap();
        fs::write(
            dir.path()
                .join("memory/longshore-0a/x/memory.max_usage_in_bytes"),
            "4096\n",
        )
        .unwrap();
        assert_eq!(
            read(dir.path(), &parent),
            Some(Usage {
                cpu_ns: 1500,
                peak_memory_bytes: 4096,
                ..Usage::default()
            })
        );

        let slice = dir
            .path()
            .join("longshore.slice/longshore-0a.slice/longshore-0a-y.slice");
        fs::create_dir_all(&slice).unwrap();
        fs::write(slice.join("memory.peak"), "8192\n").unwrap();
        fs::write(slice.join("cpu.stat"), "usage_usec 3\nuser_usec 2\n").unwrap();
        fs::write(slice.join("io.stat"), "8:0 rbytes=7 wbytes=9 rios=1\n").unwrap();
        let parent = super::parent("systemd", false, "0a", "y");
        assert_eq!(
            read(dir.path(), &parent),
            Some(Usage {
                cpu_ns: 3000,
                peak_memory_bytes: 8192,
                read_bytes: Some(7),
                written_bytes: Some(9),
                peak_gpu_memory_bytes: None,
            })
        );
        assert_eq!(super::parent("cgroupfs", true, "0a", "y"), "");
    }

    #[test]
    fn leftovers_are_listed_by_instance() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("memory/longshore-0a/x")).unwrap();
        fs::create_dir_all(dir.path().join("pids/longshore-0a/x")).unwrap();
        fs::create_dir_all(dir.path().join("pids/longshore-0b/z")).unwrap();
        assert_eq!(leftovers(dir.path(), "0a"), ["/longshore-0a/x"]);
        fs::create_dir_all(dir.path().join("pids/longshore-0a/x/conmon")).unwrap();
        assert!(remove(dir.path(), "/longshore-0a/x"));
        assert!(leftovers(dir.path(), "0a").is_empty());
        assert_eq!(leftovers(dir.path(), "0b"), ["/longshore-0b/z"]);
        // A group with a process in it cannot be removed; here a file stands for it.
        fs::write(dir.path().join("pids/longshore-0b/z/alive"), "").unwrap();
        assert!(!remove(dir.path(), "/longshore-0b/z"));
    }

    #[test]
    fn slices_of_systemd_are_listed_and_removed_too() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let unified = "longshore.slice/longshore-0a.slice";
        let place = root.join(unified).join("longshore-0a-x.slice");
        fs::create_dir_all(&place).unwrap();
        let of_version_1 = "memory/longshore.slice/longshore-0a.slice/longshore-0a-y.slice";
        fs::create_dir_all(root.join(of_version_1)).unwrap();
        let other = "longshore.slice/longshore-0b.slice/longshore-0b-z.slice";
        fs::create_dir_all(root.join(other)).unwrap();
        let both = ["longshore-0a-x.slice", "longshore-0a-y.slice"];
        assert_eq!(leftovers(root, "0a"), both);
        assert_eq!(parent("systemd", false, "0a", "x"), both[0]);
        assert!(exists(root, both[0]) && exists(root, both[1]));
        assert!(!exists(root, "longshore-0a-z.slice"));
        // systemd may be out of reach: the groups go all the same.
        assert!(remove(root, both[0]));
        assert!(!place.exists());
        remove_all(root, "0a");
        assert!(!root.join(unified).exists() && !exists(root, both[1]));
        assert_eq!(leftovers(root, "0b"), ["longshore-0b-z.slice"]);
    }

    #[test]
    fn a_job_and_its_siblings_share_one_limit() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(bound(root, "", 1, 1).is_err());
        for (controller, file) in [
            ("memory", "memory.limit_in_bytes"),
            ("memory", "memory.memsw.limit_in_bytes"),
            ("cpu", "cpu.cfs_quota_us"),
            ("pids", "pids.max"),
        ] {
            let place = root.join(controller).join("longshore-0a/x");
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join(file), "").unwrap();
        }
        bound(root, "/longshore-0a/x", 1 << 30, 1_500).unwrap();
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(
            read("memory/longshore-0a/x/memory.limit_in_bytes"),
            "1073741824"
        );
        assert_eq!(
            read("memory/longshore-0a/x/memory.memsw.limit_in_bytes"),
            "1073741824"
        );
        assert_eq!(read("cpu/longshore-0a/x/cpu.cfs_quota_us"), "150000");
        assert_eq!(read("pids/longshore-0a/x/pids.max"), "4096");

        let unified = root.join("longshore-0a/y");
        fs::create_dir_all(&unified).unwrap();
        fs::write(unified.join("memory.max"), "max").unwrap();
        bound(root, "/longshore-0a/y", 4_096, 500).unwrap();
        assert_eq!(read("longshore-0a/y/memory.max"), "4096");
        assert_eq!(read("longshore-0a/y/cpu.max"), "50000 100000");
    }
}
