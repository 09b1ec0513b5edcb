//! A fleet that outlives the command that started it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::exit::{self, Failure};
use crate::shapes::outcome::Places;

use super::plan::Plan;
use super::state::{LOG_FILE, holder, make_dir};

/// Longer than both processes may take to be ready.
const READY: Duration = Duration::from_secs(200);
/// Longer than both processes may take to stop.
const STOPPED: Duration = Duration::from_secs(40);

/// What the process in the background says when it cannot start.
#[derive(Serialize, Deserialize)]
struct NotStarted {
    ready: bool,
    exit_code: i32,
    what: String,
    next: String,
}

/// The other end of [`start_in_background`].
pub(crate) fn report_failure(failure: &Failure) {
    let (what, next) = failure.text();
    let said = NotStarted {
        ready: false,
        exit_code: failure.exit_code(),
        what,
        next,
    };
    if let Ok(line) = serde_json::to_string(&said) {
        // After a successful start nobody listens any more.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

/// Starts `longshore up` in the background and waits until it is ready.
pub(crate) async fn start_in_background(plan: &Plan) -> Result<Places, Failure> {
    make_dir(&plan.state)?;
    let log = plan.state.join(LOG_FILE);
    let failed = |what: String| Failure::failed(what, format!("read {}", log.display()));
    let exe = std::env::current_exe().map_err(|e| failed(format!("find this program: {e}")))?;
    let errors = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .map_err(|e| failed(format!("write {}: {e}", log.display())))?;
    let mut child = Command::new(exe)
        .args(plan.up_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(errors))
        // Ctrl-C at this terminal is not meant for it.
        .process_group(0)
        .spawn()
        .map_err(|e| failed(format!("start in the background: {e}")))?;
    let Some(stdout) = child.stdout.take() else {
        return Err(failed("read from the background".into()));
    };
    let mut lines = BufReader::new(stdout).lines();
    let line = match tokio::time::timeout(READY, lines.next_line()).await {
        Ok(Ok(Some(line))) => line,
        Ok(_) => return Err(failed("the process in the background ended".into())),
        Err(_) => {
            let _ = child.kill().await;
            let what = format!("not ready within {} s", READY.as_secs());
            return Err(Failure::said(
                exit::TIMED_OUT,
                what,
                format!("read {}", log.display()),
            ));
        }
    };
    if let Ok(places) = serde_json::from_str::<Places>(&line)
        && places.ready
    {
        return Ok(places);
    }
    let _ = child.wait().await;
    match serde_json::from_str::<NotStarted>(&line) {
        Ok(said) => Err(Failure::said(said.exit_code, said.what, said.next)),
        Err(_) => Err(failed(format!("the background said {line:?}"))),
    }
}

/// Stops the fleet of this state folder and waits until it is gone.
pub(crate) async fn stop(state: &Path) -> Result<i32, Failure> {
    let Some(holder) = holder(state) else {
        return Err(Failure::said(
            exit::NOT_FOUND,
            format!("no fleet is up with the state folder {}", state.display()),
            "name its folder with --state-dir; units of systemd are stopped with systemctl",
        ));
    };
    let pid = Pid::from_raw(holder.pid).ok_or_else(|| {
        Failure::failed("the pid file names no process", "remove it when none runs")
    })?;
    // The lock is held, so the number belongs to the process that wrote it.
    kill_process(pid, Signal::TERM).map_err(|e| {
        Failure::said(
            exit::REFUSED,
            format!("stop process {}: {e}", holder.pid),
            "run this as the user who started it",
        )
    })?;
    let file = holder.file;
    let gone = tokio::task::spawn_blocking(move || file.lock());
    match tokio::time::timeout(STOPPED, gone).await {
        Ok(_) => Ok(holder.pid),
        Err(_) => Err(Failure::said(
            exit::TIMED_OUT,
            format!(
                "process {} has not ended within {} s",
                holder.pid,
                STOPPED.as_secs()
            ),
            format!("read {}", state.join(LOG_FILE).display()),
        )),
    }
}
