//! Rows 17, 18 and 30: what of the host is visible, and who reaps.

use std::time::{Duration, Instant};

use crate::report::Report;
use crate::setting::Setting;
use crate::sys;
use crate::view::View;

const KINDS: [&str; 5] = ["ipc", "mnt", "net", "pid", "uts"];
/// Devices that the kernel puts into every network namespace.
const EVERYWHERE: [&str; 10] = [
    "lo", "eth0", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0",
];
const REAPED: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn look(view: &View, setting: &Setting, report: &mut Report) {
    own(view, setting, report);
    control_group(view, setting, report);
    init(view, report);
}

/// `pid:[4026531836]` of this process.
fn namespace(view: &View, kind: &str) -> Option<String> {
    let path = view.path(&format!("/proc/self/ns/{kind}"));
    Some(
        std::fs::read_link(path)
            .ok()?
            .to_string_lossy()
            .into_owned(),
    )
}

fn own(view: &View, setting: &Setting, report: &mut Report) {
    const NAME: &str = "own_namespaces";
    let shared: Vec<&String> = setting
        .host_namespaces
        .iter()
        .filter(|host| {
            KINDS.iter().any(|kind| {
                host.starts_with(&format!("{kind}:"))
                    && namespace(view, kind).as_ref() == Some(host)
            })
        })
        .collect();
    if !setting.host_namespaces.is_empty() {
        report.hold(
            shared.is_empty(),
            17,
            NAME,
            "none of the host's namespaces",
            format!("shared with the host: {shared:?}"),
        );
    }
    let second = view.read("/proc/2/comm").unwrap_or_default();
    report.hold(
        second.trim() != "kthreadd",
        17,
        NAME,
        "no host processes",
        "the host's processes are visible",
    );
    let name = view
        .value(&["/proc/sys/kernel/hostname"])
        .unwrap_or_default();
    report.hold(
        name == "runner",
        17,
        NAME,
        "own host name",
        format!("the host name is {name:?}"),
    );
    let devices = view.read("/proc/net/dev").unwrap_or_default();
    let others: Vec<&str> = devices
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .filter(|device| !EVERYWHERE.contains(device) && *device != "ip6gre0")
        .collect();
    report.hold(
        others.is_empty(),
        17,
        NAME,
        "own network",
        format!("network devices {}", others.join(", ")),
    );
    let memory = view.read("/proc/sysvipc/shm").unwrap_or_default();
    report.hold(
        memory.lines().count() <= 1,
        17,
        NAME,
        "own shared memory",
        "foreign shared memory is visible",
    );
}

fn control_group(view: &View, setting: &Setting, report: &mut Report) {
    const NAME: &str = "own_cgroup_namespace";
    if let (Some(own), Some(host)) = (
        namespace(view, "cgroup"),
        setting
            .host_namespaces
            .iter()
            .find(|host| host.starts_with("cgroup:")),
    ) && own == *host
    {
        report.fail(18, NAME, "it is the host's");
        return;
    }
    let groups = view.read("/proc/self/cgroup").unwrap_or_default();
    let seen: Vec<&str> = groups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .filter(|path| !matches!(*path, "/" | ""))
        .collect();
    if seen.is_empty() {
        report.pass(18, NAME, "every group is /");
    } else {
        report.fail(18, NAME, format!("groups of the host: {}", seen.join(", ")));
    }
}

fn init(view: &View, report: &mut Report) {
    const NAME: &str = "init_process";
    let first = view.value(&["/proc/1/comm"]).unwrap_or_default();
    let known = ["docker-init", "tini", "catatonit", "podman-init", "init"];
    report.hold(
        known.contains(&first.as_str()),
        30,
        NAME,
        first.clone(),
        format!("process 1 is {first:?}"),
    );
    if !view.is_live() {
        return;
    }
    let Some(orphan) = sys::orphan() else {
        report.open(30, NAME, "no orphan could be made");
        return;
    };
    let path = format!("/proc/{orphan}");
    let from = Instant::now();
    while view.exists(&path) && from.elapsed() < REAPED {
        std::thread::sleep(LOOK);
    }
    report.hold(
        !view.exists(&path),
        30,
        NAME,
        "orphans are reaped",
        "an orphan that ended is still there",
    );
}
