//! Looks for the runner program from inside a sandbox whose processes the host does not
//! see: under gVisor and in a virtual machine they belong to another kernel.
//!
//! The answer is the sandbox's own. A job that lies about its processes can make its
//! runner seem idle or busy, and so end itself or live until its lifetime is over.

use std::time::Duration;

use agent_core::runtime::{Processes, RuntimeError};
use agent_core::sandbox::RuntimeClass;
use bollard::Docker;
use bollard::exec::{CreateExecOptions, StartExecResults};
use futures_util::StreamExt;

use crate::engine::{EngineFacts, bounded, down, failed, status};
use crate::processes;
use crate::runtime::Inner;

/// From the question to the end of the answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest answer that is read.
const MOST: usize = 1 << 20;
/// A shell and its own words: every image of a runner has those.
const LIST: &str = "for file in /proc/[0-9]*/cmdline; do cat $file; echo; done 2>/dev/null";

/// The class that makes a sandbox: the one asked for, or the engine's own where that is known.
fn class(asked: Option<RuntimeClass>, facts: &EngineFacts) -> Option<RuntimeClass> {
    asked.or_else(|| RuntimeClass::of_name(&facts.default_runtime))
}

/// Its word, for the label by which it is found again.
pub(crate) fn word(asked: Option<RuntimeClass>, facts: &EngineFacts) -> &'static str {
    class(asked, facts).map_or("", RuntimeClass::word)
}

/// Whether the host sees the processes of a sandbox.
pub(crate) fn hides_processes(asked: Option<RuntimeClass>, facts: &EngineFacts) -> bool {
    class(asked, facts).is_some_and(|class| class.terms().hides_processes)
}

impl Inner {
    pub(crate) async fn look_from_inside(
        &self,
        docker: &Docker,
        container: &str,
    ) -> Result<Processes, RuntimeError> {
        let answer = tokio::time::timeout(ANSWER, ask(docker, container)).await;
        answer.unwrap_or_else(|_| {
            Err(down(format!(
                "{container} did not list its processes within {} s",
                ANSWER.as_secs()
            )))
        })
    }
}

async fn ask(docker: &Docker, container: &str) -> Result<Processes, RuntimeError> {
    let options = CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(false),
        tty: Some(false),
        privileged: Some(false),
        cmd: Some(["/bin/sh", "-c", LIST].map(str::to_owned).to_vec()),
        working_dir: Some("/".to_owned()),
        ..CreateExecOptions::default()
    };
    let made = bounded("asking a sandbox for its processes", async {
        match docker.create_exec(container, options).await {
            // Not running: there is nobody in it.
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(None),
            other => other.map(Some),
        }
    })
    .await?;
    let Some(made) = made else {
        return Ok(Processes::default());
    };
    let started = bounded(
        "asking a sandbox for its processes",
        docker.start_exec(&made.id, None),
    );
    let StartExecResults::Attached { mut output, .. } = started.await? else {
        let why = "a question to a sandbox was started without its answer";
        return Err(down(why.into()));
    };
    let mut said = Vec::new();
    while let Some(piece) = output.next().await {
        let piece = piece.map_err(|error| failed("reading a sandbox's processes", &error))?;
        said.extend_from_slice(&piece.into_bytes());
        if said.len() > MOST {
            break;
        }
    }
    Ok(read(&said))
}

/// One line for each process, its words with NUL between them.
fn read(said: &[u8]) -> Processes {
    let text = String::from_utf8_lossy(said).replace('\0', " ");
    processes::of_command_lines(text.lines())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_with_nul_between_words_are_read() {
        let said = b"/sbin/docker-init\0--\0/bin/sh\0\n/bin/sh\0/home/runner/bin/Runner.Listener\0run\0\n\n";
        let seen = read(said);
        assert!(seen.listener && !seen.worker);
        assert!(read(b"sh\0/home/runner/bin/Runner.Worker\0\n").worker);
        assert_eq!(read(b""), Processes::default());
    }

    #[test]
    fn the_engines_own_runtime_counts_where_none_is_asked_for() {
        let facts = |default: &str| EngineFacts {
            default_runtime: default.into(),
            ..EngineFacts::default()
        };
        assert!(!hides_processes(None, &facts("runc")));
        assert!(hides_processes(None, &facts("runsc")));
        assert!(hides_processes(Some(RuntimeClass::Runsc), &facts("runc")));
        assert!(!hides_processes(Some(RuntimeClass::Crun), &facts("runsc")));
    }
}
