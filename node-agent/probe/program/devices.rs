//! Row 19: devices that are there, and devices that can be made.

use std::os::unix::fs::FileTypeExt;

use crate::report::Report;
use crate::sys::{self, number};
use crate::view::View;

const NAME: &str = "no_devices";
/// Devices of every container, none of which is a piece of the host's hardware.
const HARMLESS: [&str; 8] = [
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx",
];

pub(crate) fn look(view: &View, report: &mut Report) {
    let names = view.list("/dev");
    let foreign: Vec<&String> = names
        .iter()
        .filter(|name| !HARMLESS.contains(&name.as_str()))
        .filter(|name| {
            let path = view.path(&format!("/dev/{name}"));
            std::fs::symlink_metadata(path).is_ok_and(|found| {
                found.file_type().is_block_device() || found.file_type().is_char_device()
            })
        })
        .collect();
    report.hold(
        foreign.is_empty(),
        19,
        NAME,
        "none of the host's",
        format!("{foreign:?}"),
    );
    // Version 1 shows what is allowed; version 2 does not.
    if let Some(allowed) = view.read("/sys/fs/cgroup/devices/devices.list") {
        let everything = allowed.lines().any(|line| line.starts_with("a *:* rw"));
        report.hold(
            !everything,
            19,
            NAME,
            "the control group lets few through",
            "the control group lets every device through",
        );
    }
    if view.is_live() {
        make(view, report);
    }
}

fn make(view: &View, report: &mut Report) {
    // Of a block device that no host has, and of the kernel's memory.
    let kinds = [
        (sys::S_IFBLK, 254 << 8, "block"),
        (sys::S_IFCHR, (1 << 8) | 1, "character"),
    ];
    for (kind, device, what) in kinds {
        let mut made = Vec::new();
        for folder in ["/home/runner/_work", "/home/runner", "/dev/shm", "/tmp"] {
            let path = format!("{folder}/.longshore-device");
            let call = [sys::AT_FDCWD, 0, kind | 0o600, device, 0];
            if sys::attempt_path(number::MKNODAT, &path, 1, call).is_none() {
                let _ = std::fs::remove_file(view.path(&path));
                made.push(folder);
            }
        }
        report.hold(
            made.is_empty(),
            19,
            NAME,
            format!("making a {what} device is refused"),
            format!("a {what} device was made in {}", made.join(", ")),
        );
    }
}
