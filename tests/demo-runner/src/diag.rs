//! The diagnostic log below `_diag`. It must be writable, or the program ends as the real one does.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use crate::dates;

/// Beyond this a log grows no further.
const MAX: u64 = 8 * 1024 * 1024;

pub(crate) struct Diag {
    file: Mutex<(File, u64)>,
    to_stdout: bool,
    kind: &'static str,
}

impl Diag {
    /// Opens `_diag/<kind>_<date>-utc.log` below the root.
    pub(crate) fn open(root: &Path, kind: &'static str) -> std::io::Result<Self> {
        let folder = root.join("_diag");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!(
            "{kind}_{}-utc.log",
            dates::file_stamp(dates::now_s())
        ));
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let to_stdout = std::env::var("ACTIONS_RUNNER_PRINT_LOG_TO_STDOUT")
            .is_ok_and(|v| v == "1" || v == "true");
        Ok(Self {
            file: Mutex::new((file, 0)),
            to_stdout,
            kind,
        })
    }

    /// One line. Never a credential.
    pub(crate) fn line(&self, text: &str) {
        let at = dates::stamp(dates::now_s());
        let prefix = self.kind.to_uppercase();
        let line = format!("[{prefix} {at} INFO {}] {text}\n", self.kind);
        if let Ok(mut held) = self.file.lock()
            && held.1 < MAX
            && held.0.write_all(line.as_bytes()).is_ok()
        {
            held.1 += line.len() as u64;
        }
        if self.to_stdout {
            print!("{line}");
        }
    }
}
