//! Rows 7 to 9, 11 and 12: how much a job may take. Control groups of version 1 and 2.

use crate::report::Report;
use crate::setting::Setting;
use crate::sys;
use crate::view::View;

const UNSEEN: &str = "the control group is not visible";
/// Largest process limit that is tried out.
const TRIED: u64 = 4_096;
/// Memory that trying needs: threads' stacks are charged to the sandbox.
const TRIED_MEMORY: u64 = 192 << 20;
const MOST_FILES: u64 = 65_536;

pub(crate) fn look(view: &View, setting: &Setting, report: &mut Report) {
    processes(view, setting, report);
    memory_limit(view, setting, report);
    swap(view, report);
    cpu(view, report);
    if view.is_live() {
        ulimits(report);
    }
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// Bytes of the memory limit; none when it cannot be seen or there is none.
pub(crate) fn memory(view: &View) -> Option<u64> {
    number(&memory_text(view)?)
}

fn memory_text(view: &View) -> Option<String> {
    view.value(&[
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ])
}

fn processes(view: &View, setting: &Setting, report: &mut Report) {
    const NAME: &str = "process_limit";
    let limit = view.value(&["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"]);
    let Some(limit) = limit else {
        report.open(7, NAME, UNSEEN);
        return;
    };
    let Some(most) = number(&limit) else {
        report.fail(7, NAME, format!("the limit is {limit:?}"));
        return;
    };
    let wanted = setting.pids.is_none_or(|wanted| most <= wanted);
    report.hold(
        wanted,
        7,
        NAME,
        format!("{most} processes"),
        format!(
            "{most} processes, more than the {:?} asked for",
            setting.pids
        ),
    );
    let room = memory(view).is_some_and(|memory| memory >= TRIED_MEMORY);
    if view.is_live() && most <= TRIED && room {
        let refused = sys::crowd_refused(most + 1);
        report.hold(
            refused == Some(true),
            7,
            NAME,
            "one more is refused",
            format!("{} threads were not refused", most + 1),
        );
    }
}

fn memory_limit(view: &View, setting: &Setting, report: &mut Report) {
    const NAME: &str = "memory_limit";
    let Some(text) = memory_text(view) else {
        report.open(8, NAME, UNSEEN);
        return;
    };
    let total_kib = view.read("/proc/meminfo").and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        number(line.split_whitespace().next()?)
    });
    let bound = setting
        .memory
        .or(total_kib.map(|kib| (kib << 10).saturating_sub(1)))
        .unwrap_or(0);
    let limit = number(&text);
    report.hold(
        limit.is_some_and(|limit| limit <= bound),
        8,
        NAME,
        format!("{text} bytes"),
        format!("the limit is {text}; at most {bound} bytes are right"),
    );
}

fn swap(view: &View, report: &mut Report) {
    const NAME: &str = "no_swap";
    if let Some(swap) = view.value(&["/sys/fs/cgroup/memory.swap.max"]) {
        report.hold(swap == "0", 9, NAME, "swap is 0", format!("swap is {swap}"));
        return;
    }
    let both = view.value(&["/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"]);
    match both {
        Some(both) => report.hold(
            memory_text(view).as_ref() == Some(&both),
            9,
            NAME,
            "memory and swap together are the memory",
            format!("memory and swap together are {both}"),
        ),
        None if memory_text(view).is_none() => report.open(9, NAME, UNSEEN),
        None => {
            let swaps = view.read("/proc/swaps").unwrap_or_default();
            if swaps.lines().count() <= 1 {
                report.pass(9, NAME, "the host has no swap");
            } else {
                report.open(9, NAME, "the kernel does not count swap");
            }
        }
    }
}

fn cpu(view: &View, report: &mut Report) {
    const NAME: &str = "cpu_limit";
    let quota = view.value(&[
        "/sys/fs/cgroup/cpu.max",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us",
    ]);
    match quota.as_deref() {
        None => report.open(11, NAME, UNSEEN),
        Some(text) => {
            let first = text.split_whitespace().next().and_then(number);
            report.hold(
                first.is_some_and(|quota| quota > 0),
                11,
                NAME,
                format!("quota {text}"),
                format!("the quota is {text:?}"),
            );
        }
    }
}

fn ulimits(report: &mut Report) {
    const NAME: &str = "ulimits";
    const CORE: i32 = 4;
    const NPROC: i32 = 6;
    const NOFILE: i32 = 7;
    let hard = |resource| sys::limit(resource).map(|[_, hard]| hard);
    let core = hard(CORE);
    report.hold(
        core == Some(0),
        12,
        NAME,
        "no core files",
        format!("core files of {core:?} bytes"),
    );
    let files = hard(NOFILE);
    report.hold(
        files.is_some_and(|most| most <= MOST_FILES),
        12,
        NAME,
        format!("{} open files", files.unwrap_or(0)),
        format!("open files {files:?}"),
    );
    let users = hard(NPROC);
    report.hold(
        users.is_some_and(|most| most < u64::MAX),
        12,
        NAME,
        format!("{} processes of this user", users.unwrap_or(0)),
        "processes of this user are not bounded",
    );
}
