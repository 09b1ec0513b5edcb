//! Rows 1 to 3 and 20: who the job is and what it may become.

use crate::report::Report;
use crate::setting::Setting;
use crate::sys::{self, number};
use crate::view::View;

const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

pub(crate) fn look(view: &View, setting: &Setting, report: &mut Report) {
    user(view, report);
    capabilities(view, setting, report);
    escalation(view, setting, report);
    user_namespace(view, report);
    runtime_class(setting, report);
}

/// Whether who was asked for is who answers, as far as a kernel tells.
fn runtime_class(setting: &Setting, report: &mut Report) {
    const ROW: u32 = 31;
    const NAME: &str = "runtime_class";
    match (setting.asked_runtime.as_str(), setting.is_gvisor()) {
        ("runsc", gvisor) => report.hold(
            gvisor,
            ROW,
            NAME,
            "gVisor answers",
            "runsc was asked for, and the host's kernel answers",
        ),
        ("runc" | "crun", true) => report.fail(ROW, NAME, "gVisor answers"),
        ("", true) => report.pass(ROW, NAME, "gVisor answers, the engine's own runtime"),
        ("", false) => report.pass(ROW, NAME, "a kernel answers, the engine's own runtime"),
        (asked, _) => report.open(ROW, NAME, format!("{asked} cannot be told from inside")),
    }
}

fn user(view: &View, report: &mut Report) {
    let ids = |field| view.status(field).unwrap_or_default();
    let (users, groups, more) = (ids("Uid"), ids("Gid"), ids("Groups"));
    let zero = |ids: &str| ids.split_whitespace().any(|id| id == "0");
    let seen = !users.is_empty() && !groups.is_empty();
    report.hold(
        seen && !zero(&users) && !zero(&groups) && !zero(&more),
        1,
        "non_root",
        format!("user {}", users.split_whitespace().next().unwrap_or("?")),
        format!("users {users}, groups {groups}, {more}"),
    );
}

fn capabilities(view: &View, setting: &Setting, report: &mut Report) {
    let mut held = Vec::new();
    for set in SETS {
        match view.status(set) {
            Some(bits) if !bits.is_empty() && bits.bytes().all(|digit| digit == b'0') => {}
            Some(bits) => held.push(format!("{set}={bits}")),
            // Releases of gVisor that have no such set do not list it.
            None if set == "CapAmb" && setting.is_gvisor() => {}
            None => held.push(format!("{set} is not told")),
        }
    }
    report.hold(
        held.is_empty(),
        2,
        "no_capabilities",
        "all sets are empty",
        held.join(", "),
    );
}

fn escalation(view: &View, setting: &Setting, report: &mut Report) {
    const NAME: &str = "no_escalation";
    match view.status("NoNewPrivs") {
        Some(bit) => report.hold(
            bit == "1",
            3,
            NAME,
            "NoNewPrivs is 1",
            format!("NoNewPrivs is {bit}"),
        ),
        // gVisor has no such line in older releases, but the call.
        None if view.is_live() && sys::no_new_privileges() => {
            report.pass(3, NAME, "no_new_privs is set");
        }
        None if setting.is_gvisor() => {
            report.open(3, NAME, "this gVisor does not tell no_new_privs");
        }
        None => report.fail(3, NAME, "NoNewPrivs is not told"),
    }
    if !view.is_live() {
        return;
    }
    // In a child, so that a success changes nothing here.
    let refused = sys::in_child(|| {
        u8::from(
            sys::attempt(number::SETGID, [0; 5]).is_none()
                || sys::attempt(number::SETUID, [0; 5]).is_none(),
        )
    });
    report.hold(
        refused == Some(0),
        3,
        NAME,
        "becoming root is refused",
        "becoming root was possible",
    );
}

fn user_namespace(view: &View, report: &mut Report) {
    const NAME: &str = "user_namespace";
    let map = view.read("/proc/self/uid_map").unwrap_or_default();
    let map: Vec<&str> = map.split_whitespace().collect();
    match map.as_slice() {
        ["0", "0", _] => report.open(20, NAME, "users are the host's"),
        [_, host, _, ..] => report.pass(20, NAME, format!("users begin at {host} on the host")),
        _ => report.open(20, NAME, "the map of users cannot be read"),
    }
}
