//! Rows 25 and 27 to 29: what is kept, and what an earlier job left.

use crate::report::Report;
use crate::view::View;

const MARK: &str = ".longshore-mark";
const FOLDERS: [&str; 6] = [
    "/tmp",
    "/dev/shm",
    "/home/runner",
    "/home/runner/_work",
    "/var/tmp",
    "/run",
];

pub(crate) fn look(view: &View, report: &mut Report) {
    report.open(
        27,
        "log_cap",
        "the engine keeps the output outside the sandbox; the host checks it",
    );
    report.open(
        28,
        "disk_quota",
        "the room of the work folder is bounded outside the sandbox; the host tells it",
    );
    // Leaves marks that a later job must not see.
    let seen: Vec<&str> = FOLDERS
        .into_iter()
        .filter(|folder| view.exists(&format!("{folder}/{MARK}")))
        .collect();
    if view.is_live() {
        for folder in FOLDERS {
            let _ = std::fs::write(view.path(&format!("{folder}/{MARK}")), "mark\n");
        }
    }
    report.hold(
        seen.is_empty(),
        29,
        "complete_removal",
        "no mark of an earlier job",
        format!("marks of an earlier job in {}", seen.join(", ")),
    );
}
