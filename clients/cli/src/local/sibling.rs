//! One process beside this one: found, started, ready, stopped.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::exit::Failure;

use super::log::{Log, Tail, pump};

/// The ready line is short; whatever is longer is none.
const MAX_READY: u64 = 64 * 1024;
/// After its end a process's last lines arrive within this, unless a
/// grandchild holds the pipe.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) struct Sibling {
    name: &'static str,
    child: Child,
    tail: Tail,
    stderr: JoinHandle<()>,
}

impl Sibling {
    /// Starts it and waits for its ready line.
    pub(super) async fn start(
        name: &'static str,
        args: Vec<OsString>,
        log: &Log,
        within: Duration,
    ) -> Result<(Sibling, Value), Failure> {
        let path = find(name)?;
        let mut child = Command::new(&path)
            .args(args)
            .env_remove("LONGSHORE_ADDRESS")
            .env_remove("LONGSHORE_HOME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C reaches only us, so that we stop them in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| {
                Failure::failed(
                    format!("start {}: {e}", path.display()),
                    "check that the file is complete and may be executed",
                )
            })?;
        let tail = Tail::default();
        let (stdout, stderr) = match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), Some(stderr)) => (stdout, stderr),
            _ => return Err(Failure::failed(format!("read the output of {name}"), "")),
        };
        let short = name.trim_start_matches("longshore-");
        let stderr = tokio::spawn(pump(stderr, short, log.clone(), tail.clone()));
        let mut sibling = Sibling {
            name,
            child,
            tail,
            stderr,
        };
        let mut stdout = BufReader::new(stdout);
        let ready = tokio::time::timeout(within, ready_line(&mut stdout)).await;
        match ready {
            Ok(Some(ready)) => {
                tokio::spawn(pump(stdout, short, log.clone(), Tail::default()));
                Ok((sibling, ready))
            }
            // Its output has ended, so it has too, or is about to.
            Ok(None) => match tokio::time::timeout(LAST_WORDS, sibling.child.wait()).await {
                Ok(Ok(status)) => Err(sibling.ended(status, "before it was ready").await),
                _ => {
                    sibling.stop(LAST_WORDS).await;
                    Err(Failure::failed(
                        format!("{name} closed its output before it was ready"),
                        "check that scheduler, agent and CLI have the same version",
                    ))
                }
            },
            Err(_) => {
                sibling.stop(LAST_WORDS).await;
                let said = sibling.last_words().0;
                Err(Failure::failed(
                    format!("{name} was not ready within {} s{said}", within.as_secs()),
                    "read its log",
                ))
            }
        }
    }

    pub(super) async fn wait(&mut self) -> Option<ExitStatus> {
        self.child.wait().await.ok()
    }

    /// Why it ended, in its own last words.
    pub(super) async fn ended(&mut self, status: ExitStatus, when: &str) -> Failure {
        let _ = tokio::time::timeout(LAST_WORDS, &mut self.stderr).await;
        let (said, next) = self.last_words();
        Failure::failed(
            format!("{} ended {when} ({status}){said}", self.name),
            next.unwrap_or_else(|| "read its log".into()),
        )
    }

    /// Asks it to end, and makes it after `grace`.
    pub(super) async fn stop(&mut self, grace: Duration) {
        let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) else {
            return;
        };
        // Not yet waited for, so the number is still this process's own.
        if kill_process(pid, Signal::TERM).is_ok()
            && tokio::time::timeout(grace, self.child.wait()).await.is_ok()
        {
            return;
        }
        let _ = self.child.kill().await;
    }

    /// `: WHAT` of its last error line, and the step that it named.
    fn last_words(&self) -> (String, Option<String>) {
        let lines = self.tail.lines();
        let mut next = None;
        for line in lines.iter().rev().map(|l| l.trim()) {
            if let Some(step) = line.strip_prefix("next:") {
                next = Some(step.trim().to_owned());
            } else if !line.is_empty() {
                let what = line.strip_prefix("error:").unwrap_or(line).trim();
                return (format!(": {what}"), next);
            }
        }
        (String::new(), next)
    }
}

/// The first line that is a JSON object with `"ready": true`.
async fn ready_line(stdout: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Value> {
    let mut limited = stdout.take(MAX_READY);
    loop {
        let mut line = Vec::new();
        match limited.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        if let Ok(value) = serde_json::from_slice::<Value>(&line)
            && value["ready"] == Value::Bool(true)
        {
            return Some(value);
        }
    }
}

/// Beside this program, or on the PATH.
fn find(name: &str) -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            let beside = match &beside {
                Some(folder) => format!("in {} nor on the PATH", folder.display()),
                None => "on the PATH".into(),
            };
            Failure::failed(
                format!("{name} is neither {beside}"),
                "install it beside `longshore`",
            )
        })
}
