//! Rows 4 and 32: what of the kernel can be asked, and under whose rules.

use crate::report::Report;
use crate::setting::Setting;
use crate::sys::{self, number};
use crate::view::View;

const NAME: &str = "seccomp";
const ROW: u32 = 4;

/// Calls that reach beyond a sandbox, with arguments that do nothing when let through.
const CALLS: [(&str, i64, [i64; 5]); 16] = [
    ("mount", number::MOUNT, [0; 5]),
    ("umount2", number::UMOUNT2, [0; 5]),
    ("pivot_root", number::PIVOT_ROOT, [0; 5]),
    ("chroot", number::CHROOT, [0; 5]),
    ("setns", number::SETNS, [-1, 0, 0, 0, 0]),
    ("bpf", number::BPF, [0; 5]),
    ("userfaultfd", number::USERFAULTFD, [0; 5]),
    (
        "perf_event_open",
        number::PERF_EVENT_OPEN,
        [0, 0, -1, -1, 0],
    ),
    ("kexec_load", number::KEXEC_LOAD, [0; 5]),
    ("init_module", number::INIT_MODULE, [0; 5]),
    ("delete_module", number::DELETE_MODULE, [0; 5]),
    (
        "open_by_handle_at",
        number::OPEN_BY_HANDLE_AT,
        [-1, 0, 0, 0, 0],
    ),
    ("swapon", number::SWAPON, [0; 5]),
    ("reboot", number::REBOOT, [0; 5]),
    ("acct", number::ACCT, [0; 5]),
    // A clock that is none: nothing is set even with every power.
    ("clock_settime", number::CLOCK_SETTIME, [0, 0, 0, 0, 0]),
];

pub(crate) fn look(view: &View, setting: &Setting, report: &mut Report) {
    apparmor(view, setting, report);
    if setting.is_gvisor() {
        // The host's kernel is not what answers: gVisor's own filter is around gVisor.
        report.pass(ROW, NAME, "gVisor answers instead of the host's kernel");
        return;
    }
    let mode = view.status("Seccomp").unwrap_or_default();
    report.hold(
        mode == "2",
        ROW,
        NAME,
        "filter mode",
        format!("Seccomp is {mode:?}"),
    );
    if !view.is_live() {
        return;
    }
    let let_through = reached();
    report.hold(
        let_through.is_empty(),
        ROW,
        NAME,
        format!(
            "{} and new namespaces are refused",
            CALLS.map(|(name, ..)| name).join(", ")
        ),
        format!("let through: {}", let_through.join(", ")),
    );
    sockets(report);
    surfaces(report);
}

/// The host's own rules about programs, in force and not only loaded.
fn apparmor(view: &View, setting: &Setting, report: &mut Report) {
    const ROW: u32 = 32;
    const NAME: &str = "apparmor";
    if setting.is_gvisor() {
        report.open(ROW, NAME, "gVisor answers: the host's rules are around it");
        return;
    }
    // The second is older, and with other modules it is theirs.
    let told = view.value(&[
        "/proc/self/attr/apparmor/current",
        "/proc/self/attr/current",
    ]);
    match told.as_deref() {
        Some(profile) => report.hold(
            profile.ends_with(" (enforce)"),
            ROW,
            NAME,
            profile,
            format!("no profile is enforced: {profile:?}"),
        ),
        None => report.fail(ROW, NAME, "the kernel tells of no profile"),
    }
}

fn is_refusal(error: Option<i32>) -> bool {
    matches!(error, Some(sys::EPERM | sys::EACCES | sys::ENOSYS))
}

fn reached() -> Vec<&'static str> {
    let mut names = Vec::new();
    for (name, call, arguments) in CALLS {
        // In a child: one of them may end the process, and that is an answer too.
        let refused = sys::in_child(|| u8::from(!is_refusal(sys::attempt(call, arguments))));
        if !matches!(refused, Some(0) | None) {
            names.push(name);
        }
    }
    for (name, flag) in [
        ("unshare of users", sys::CLONE_NEWUSER),
        ("unshare of mounts", sys::CLONE_NEWNS),
    ] {
        let call = || sys::attempt(number::UNSHARE, [flag, 0, 0, 0, 0]);
        if sys::in_child(|| u8::from(!is_refusal(call()))) != Some(0) {
            names.push(name);
        }
    }
    for (name, error) in ["clone of users", "clone3 of users"]
        .into_iter()
        .zip(sys::clone_user_namespace())
    {
        if !is_refusal(error) {
            names.push(name);
        }
    }
    for (name, call, path) in [
        ("fsopen", sys::FSOPEN, "tmpfs"),
        ("move_mount", sys::MOVE_MOUNT, "/"),
    ] {
        let at = usize::from(call == sys::MOVE_MOUNT);
        if !is_refusal(sys::attempt_path(call, path, at, [-1, 0, -1, 0, 0])) {
            names.push(name);
        }
    }
    // A name of more than 64 bytes is refused by everybody who is asked, and nothing changes.
    if !is_refusal(sys::attempt(number::SETHOSTNAME, [0, 65, 0, 0, 0])) {
        names.push("sethostname");
    }
    names
}

const INET: i32 = 2;
const PACKET: i32 = 17;
const VSOCK: i32 = 40;
const STREAM: i32 = 1;
const DATAGRAM: i32 = 2;
const RAW: i32 = 3;
const SEQUENCED: i32 = 5;
const ICMP: i32 = 1;

/// Families that no job was seen to need, with a kind each has: the kernel loads most
/// of them when somebody asks.
const RARE: [(&str, i32, i32, i32); 8] = [
    ("keys of IPsec", 15, RAW, 2),
    ("netlink of the packet filter", 16, RAW, 12),
    ("generic netlink", 16, RAW, 16),
    ("RDS", 21, SEQUENCED, 0),
    ("CAN", 29, RAW, 1),
    ("TIPC", 30, SEQUENCED, 0),
    ("Bluetooth", 31, SEQUENCED, 0),
    ("ciphers of the kernel", 38, SEQUENCED, 0),
];

fn sockets(report: &mut Report) {
    for (what, family, protocol) in [("raw", INET, ICMP), ("packet", PACKET, 0)] {
        report.hold(
            sys::socket_error(family, RAW, protocol).is_some(),
            ROW,
            "no_raw_sockets",
            format!("{what} sockets are refused"),
            format!("a {what} socket was opened"),
        );
    }
    report.hold(
        [STREAM, DATAGRAM]
            .into_iter()
            .all(|kind| sys::socket_error(VSOCK, kind, 0).is_some()),
        ROW,
        "no_vsock",
        "sockets to a hypervisor are refused",
        "a socket to a hypervisor can be opened",
    );
    report.hold(
        !sys::old_socket_opens(VSOCK, STREAM),
        ROW,
        "no_vsock",
        "sockets to a hypervisor are refused to 32-bit programs",
        "a 32-bit program can open a socket to a hypervisor",
    );
    let open: Vec<&str> = RARE
        .into_iter()
        .filter(|(_, family, kind, protocol)| {
            sys::socket_error(*family, *kind, *protocol).is_none()
        })
        .map(|(name, ..)| name)
        .collect();
    report.hold(
        open.is_empty(),
        ROW,
        "no_rare_sockets",
        format!("refused: {}", RARE.map(|(name, ..)| name).join(", ")),
        format!("can be opened: {}", open.join(", ")),
    );
}

/// Parts of the kernel that engines' own filters leave open, one or the other.
fn surfaces(report: &mut Report) {
    report.hold(
        is_refusal(sys::attempt(sys::IO_URING_SETUP, [0; 5])),
        ROW,
        "no_io_uring",
        "io_uring is refused",
        "io_uring can be used",
    );
    const GET_KEYRING: i64 = 0;
    const SESSION: i64 = -3;
    let keyring = sys::attempt(number::KEYCTL, [GET_KEYRING, SESSION, 0, 0, 0]);
    let key = sys::attempt(number::ADD_KEY, [0; 5]);
    report.hold(
        is_refusal(keyring) && is_refusal(key),
        ROW,
        "no_kernel_keyring",
        "keyctl and add_key are refused",
        "the kernel's keys can be asked for",
    );
}
