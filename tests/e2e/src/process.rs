//! One program under our feet: started, ready, stopped, with its output in a file.
//!
//! Only processes started here are ever signalled, by their own id.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

/// Longest a program may take until it says that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Lines of a log quoted when a program failed.
const TAIL_LINES: usize = 25;

/// How a program is to be started.
#[derive(Debug)]
pub struct Launch {
    name: String,
    command: Command,
    log: PathBuf,
}

impl Launch {
    /// `name` is what messages call it; its output goes to `log`, which is appended to, so that a restarted program has one story.
    pub fn new(
        name: impl Into<String>,
        program: impl AsRef<OsStr>,
        log: impl Into<PathBuf>,
    ) -> Self {
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A group of its own: Ctrl-C in the terminal reaches the one who started it, which then stops it in order.
            .process_group(0)
            .kill_on_drop(true);
        Self {
            name: name.into(),
            command,
            log: log.into(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, value: impl AsRef<OsStr>) -> Self {
        self.command.arg(value);
        self
    }

    /// Adds a flag and its value.
    #[must_use]
    pub fn flag(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(name).arg(value)
    }

    /// Sets an environment variable of the program.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable out of the program's environment.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Starts it without waiting for anything.
    pub fn spawn(mut self) -> Result<Process> {
        if let Some(folder) = self.log.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("make {}", folder.display()))?;
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        self.command.stderr(log);
        let child = self
            .command
            .spawn()
            .with_context(|| format!("start {}", self.name))?;
        let pid = child.id().context("a started process has an id")?;
        Ok(Process {
            name: self.name,
            child,
            pid,
            log: self.log,
            ready: Value::Null,
            output: None,
        })
    }

    /// Starts it and waits for the one line of JSON by which it says that it is ready.
    pub async fn ready(self) -> Result<Process> {
        let mut process = self.spawn()?;
        process.wait_ready().await?;
        Ok(process)
    }
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    log: PathBuf,
    ready: Value,
    output: Option<JoinHandle<()>>,
}

impl Process {
    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// File its output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The JSON it said when it became ready.
    pub fn said(&self) -> &Value {
        &self.ready
    }

    /// A text field of what it said when it became ready.
    pub fn said_text(&self, field: &str) -> Result<String> {
        self.ready[field]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("{} did not say its `{field}`: {}", self.name, self.ready))
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let stdout = self.child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut log = tokio::fs::OpenOptions::new()
            .append(true)
            .open(&self.log)
            .await?;
        let wait = async {
            while let Some(line) = lines.next_line().await? {
                log.write_all(format!("{line}\n").as_bytes()).await?;
                if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line) {
                    return Ok(Some(value));
                }
            }
            Ok::<_, std::io::Error>(None)
        };
        match timeout(READY_WITHIN, wait).await {
            Ok(Ok(Some(value))) => self.ready = value,
            Ok(Ok(None)) => {
                let status = timeout(Duration::from_secs(5), self.child.wait()).await;
                bail!(
                    "{} ended before it was ready ({}):\n{}",
                    self.name,
                    match status {
                        Ok(Ok(s)) => s.to_string(),
                        _ => "it closed its output".to_owned(),
                    },
                    self.tail()
                );
            }
            Ok(Err(e)) => bail!("read what {} says: {e}", self.name),
            Err(_) => bail!(
                "{} was not ready in {READY_WITHIN:?}:\n{}",
                self.name,
                self.tail()
            ),
        }
        // Keep reading: a full pipe would block the program.
        self.output = Some(tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if log.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                    break;
                }
            }
        }));
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Fails with the end of its log when it has ended by itself.
    pub fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!("{} ended by itself ({status}):\n{}", self.name, self.tail()),
            Err(e) => bail!("look at {}: {e}", self.name),
        }
    }

    /// Sends a signal to this one process.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let status = std::process::Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid.to_string())
            .stderr(Stdio::null())
            .status()
            .context("run kill")?;
        if !status.success() {
            bail!("{} (process {}) is gone", self.name, self.pid);
        }
        Ok(())
    }

    /// SIGTERM, then waits. A program that does not end in time is killed, and that is an error.
    pub async fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Ok(status);
        }
        self.signal(libc::SIGTERM)?;
        match timeout(within, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => {
                self.child.kill().await?;
                bail!(
                    "{} did not end within {within:?} of SIGTERM and was killed",
                    self.name
                )
            }
        }
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        timeout(within, self.child.wait())
            .await
            .with_context(|| format!("{} still runs after {within:?}", self.name))?
            .map_err(Into::into)
    }

    /// SIGKILL: the crash of the fault tests.
    pub async fn kill9(&mut self) -> Result<()> {
        self.child
            .kill()
            .await
            .with_context(|| format!("kill {}", self.name))
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        format!(
            "--- {} ---\n{}",
            self.log.display(),
            lines[from..].join("\n")
        )
    }

    /// Lets it live on after this value is gone, and gives its process id.
    pub fn leave_running(self) -> u32 {
        // Dropping a child with kill_on_drop kills it; forgetting the value keeps its handles until we exit.
        let pid = self.pid;
        std::mem::forget(self);
        pid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Launch {
        Launch::new("shell", "sh", folder.join("log"))
            .arg("-c")
            .arg(script)
    }

    #[tokio::test]
    async fn what_a_program_says_when_ready_is_read_and_the_rest_is_logged() {
        let folder = tempfile::tempdir().unwrap();
        let script =
            r#"echo hello; echo '{"ready":true,"api":"127.0.0.1:1"}'; echo more; exec sleep 60"#;
        let mut process = shell(script, folder.path()).ready().await.unwrap();
        assert_eq!(process.said_text("api").unwrap(), "127.0.0.1:1");
        assert!(process.is_running());
        crate::wait::until("the rest of the output", Duration::from_secs(5), || {
            let tail = process.tail();
            std::future::ready(if tail.contains("more") {
                Ok(())
            } else {
                Err(tail)
            })
        })
        .await
        .unwrap();
        let status = process.terminate(Duration::from_secs(5)).await.unwrap();
        assert!(!status.success());
    }

    #[tokio::test]
    async fn a_program_that_ends_early_is_an_error_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let error = shell("echo out of luck >&2; exit 3", folder.path())
            .ready()
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("out of luck") && error.contains('3'),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_program_that_ignores_sigterm_is_killed_and_reported() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"trap '' TERM; echo '{}'; while :; do sleep 0.05; done"#;
        let mut process = shell(script, folder.path()).ready().await.unwrap();
        let error = process
            .terminate(Duration::from_millis(300))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("was killed"), "{error}");
        assert!(!process.is_running());
    }
}
