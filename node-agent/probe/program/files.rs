//! Rows 5, 6, 10 and 13 to 16: file systems.

use std::fs::{self, OpenOptions};

use crate::report::Report;
use crate::setting::Setting;
use crate::sys;
use crate::view::{Mount, View, covering};

/// Largest `/tmp` that is asked for all of its room.
const LARGEST_FILL: u64 = 64 << 30;

pub(crate) fn look(view: &View, setting: &Setting, report: &mut Report) {
    let mounts = view.mounts();
    root(view, setting, &mounts, report);
    tmp(view, &mounts, report);
    in_memory(view, setting, &mounts, report);
    host_mounts(setting, &mounts, report);
    engine_socket(view, report);
    masked(view, report);
    kernel_settings(view, setting, &mounts, report);
}

/// The error of making a file, which is removed again.
fn making(view: &View, path: &str) -> Option<i32> {
    let path = view.path(path);
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(_) => {
            let _ = fs::remove_file(&path);
            None
        }
        Err(error) => Some(error.raw_os_error().unwrap_or(0)),
    }
}

fn root(view: &View, setting: &Setting, mounts: &[Mount], report: &mut Report) {
    const NAME: &str = "read_only_rootfs";
    if setting.profile != "strict" {
        report.open(
            5,
            NAME,
            format!("profile {} may change the image's files", setting.profile),
        );
        return;
    }
    let mounted = covering(mounts, "/").is_some_and(|mount| mount.has("ro"));
    report.hold(
        mounted || setting.is_gvisor(),
        5,
        NAME,
        "mounted read-only",
        "the root is mounted writable",
    );
    if view.is_live() {
        let error = making(view, "/.longshore-probe");
        report.hold(
            error == Some(sys::EROFS),
            5,
            NAME,
            "making a file in / is refused as read-only",
            format!("making a file in / ended with {error:?}"),
        );
    }
}

fn tmp(view: &View, mounts: &[Mount], report: &mut Report) {
    const NAME: &str = "tmpfs";
    let Some(mount) = covering(mounts, "/tmp").filter(|mount| mount.target == "/tmp") else {
        report.fail(6, NAME, "/tmp is not a file system of its own");
        return;
    };
    let sized = mount.size_kib();
    let closed = ["noexec", "nosuid", "nodev"].into_iter();
    let lacks: Vec<&str> = closed.filter(|option| !mount.has(option)).collect();
    report.hold(
        mount.kind == "tmpfs" && lacks.is_empty() && sized.is_some(),
        6,
        NAME,
        format!("/tmp has {} KiB and runs no programs", sized.unwrap_or(0)),
        format!("/tmp is {} and lacks {lacks:?}, size {sized:?}", mount.kind),
    );
    if !view.is_live() {
        return;
    }
    let path = format!("/tmp/.longshore-probe-{}", std::process::id());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path);
    let file = match file {
        Ok(file) => file,
        Err(error) => {
            report.fail(6, NAME, format!("/tmp is not writable: {error}"));
            return;
        }
    };
    let _ = fs::write(&path, [0; 64]);
    let error = sys::map_executable(&file);
    report.hold(
        matches!(error, Some(sys::EPERM | sys::EACCES)),
        6,
        NAME,
        "running a program from /tmp is refused",
        format!("a program could be mapped from /tmp ({error:?})"),
    );
    if let Some(bytes) = sized.map(|kib| kib << 10).filter(|b| *b <= LARGEST_FILL) {
        let error = sys::reserve(&file, bytes + (1 << 20));
        report.hold(
            error == Some(sys::ENOSPC),
            6,
            NAME,
            "more than the size of /tmp is refused",
            format!("more than the size of /tmp ended with {error:?}"),
        );
    }
    let _ = fs::remove_file(&path);
}

/// File systems in memory that a job can write to fit into its memory.
fn in_memory(view: &View, setting: &Setting, mounts: &[Mount], report: &mut Report) {
    const NAME: &str = "tmpfs_in_memory";
    let mut kib = 0;
    let mut unsized_ones = Vec::new();
    for mount in mounts {
        if mount.kind != "tmpfs" || mount.has("ro") || is_engines(&mount.target) {
            continue;
        }
        match mount.size_kib() {
            Some(size) => kib += size,
            None => unsized_ones.push(mount.target.as_str()),
        }
    }
    let memory = crate::limits::memory(view).or(setting.memory);
    match memory {
        _ if !unsized_ones.is_empty() => {
            report.fail(10, NAME, format!("no size: {}", unsized_ones.join(", ")));
        }
        Some(memory) => report.hold(
            kib << 10 <= memory,
            10,
            NAME,
            format!("{kib} KiB in {} KiB of memory", memory >> 10),
            format!("{kib} KiB in {} KiB of memory", memory >> 10),
        ),
        None => report.open(10, NAME, "the memory limit is not visible"),
    }
}

/// What an engine mounts in memory over files and folders of the kernel, and where
/// nothing can be written without being root.
fn is_engines(target: &str) -> bool {
    target == "/dev" || target.starts_with("/proc/") || target.starts_with("/sys/")
}

fn host_mounts(setting: &Setting, mounts: &[Mount], report: &mut Report) {
    const OWN_FILES: [&str; 9] = [
        "/etc/resolv.conf",
        "/etc/hostname",
        "/etc/hosts",
        "/sbin/docker-init",
        "/dev/init",
        "/run/podman-init",
        "/run/.containerenv",
        "/etc/passwd",
        "/etc/group",
    ];
    let foreign: Vec<&str> = mounts
        .iter()
        .filter(|mount| mount.source.starts_with("/dev/"))
        .filter(|mount| {
            let target = mount.target.as_str();
            let engines = OWN_FILES.contains(&target) && !is_hosts_own(mount);
            !engines && target != "/" && !setting.volumes.iter().any(|volume| volume == target)
        })
        .map(|mount| mount.target.as_str())
        .collect();
    report.hold(
        foreign.is_empty(),
        13,
        "no_host_mounts",
        "the engine's own files and this runner's volumes only",
        format!("mounted from the host: {}", foreign.join(", ")),
    );
}

/// The host's own file of that name, and not one that the engine wrote for the sandbox.
fn is_hosts_own(mount: &Mount) -> bool {
    mount.origin == mount.target
        && !matches!(mount.target.as_str(), "/sbin/docker-init" | "/dev/init")
}

fn engine_socket(view: &View, report: &mut Report) {
    let there: Vec<&str> = [
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/containerd/containerd.sock",
        "/run/crio/crio.sock",
        "/run/buildkit/buildkitd.sock",
    ]
    .into_iter()
    .filter(|path| view.exists(path))
    .collect();
    report.hold(
        there.is_empty(),
        14,
        "no_engine_socket",
        "none",
        there.join(", "),
    );
}

fn masked(view: &View, report: &mut Report) {
    const FILES: [&str; 9] = [
        "/proc/kallsyms",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/latency_stats",
        "/proc/modules",
    ];
    let mut readable: Vec<String> = FILES
        .into_iter()
        .filter(|path| has_content(view, path))
        .map(str::to_owned)
        .collect();
    let throttles = view
        .list("/sys/devices/system/cpu")
        .into_iter()
        .map(|cpu| format!("/sys/devices/system/cpu/{cpu}/thermal_throttle"));
    let folders = [
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
        "/proc/acpi",
        "/proc/scsi",
        "/proc/asound",
    ];
    for folder in folders.map(str::to_owned).into_iter().chain(throttles) {
        if !view.list(&folder).is_empty() {
            readable.push(folder);
        }
    }
    report.hold(
        readable.is_empty(),
        15,
        "masked_proc",
        "empty or absent",
        format!("readable: {}", readable.join(", ")),
    );
}

fn has_content(view: &View, path: &str) -> bool {
    use std::io::Read;
    let mut byte = [0];
    fs::File::open(view.path(path)).is_ok_and(|mut file| matches!(file.read(&mut byte), Ok(1)))
}

fn kernel_settings(view: &View, setting: &Setting, mounts: &[Mount], report: &mut Report) {
    const NAME: &str = "read_only_proc_sys";
    if setting.is_gvisor() {
        report.pass(16, NAME, "/proc is gVisor's own");
        return;
    }
    let writable: Vec<&str> = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"]
        .into_iter()
        .filter(|path| view.exists(path))
        .filter(|path| !covering(mounts, path).is_some_and(|mount| mount.has("ro")))
        .collect();
    report.hold(
        writable.is_empty(),
        16,
        NAME,
        "mounted read-only",
        format!("writable mounts: {}", writable.join(", ")),
    );
    let sys = covering(mounts, "/sys").is_some_and(|mount| mount.has("ro"));
    report.hold(
        sys,
        16,
        NAME,
        "/sys is read-only",
        "/sys is mounted writable",
    );
}
