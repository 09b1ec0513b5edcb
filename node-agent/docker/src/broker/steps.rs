//! Runs the steps of a job in its containers, and passes on what they say.

use std::sync::Mutex;

use agent_core::containers::Sibling;
use agent_core::runtime::RuntimeError;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecResults};
use futures_util::{Stream, StreamExt};

use super::desk::{Desk, Ongoing, path};
use super::{Reply, unheard};
use crate::engine::{bounded, end_of, refused, remove_container, whole_output};
use crate::recover::inspect;
use crate::runtime::lock;

impl Desk {
    pub(super) async fn is_alpine(&self, id: &str) -> bool {
        let look = Sibling {
            entrypoint: vec!["grep".into()],
            cmd: ["-q", "^ID=alpine", "/etc/os-release"]
                .map(String::from)
                .to_vec(),
            ..Sibling::default()
        };
        let found = async {
            let exec = self.exec(id, &look).await?;
            let mut output = self.output_of(&exec).await?;
            while output.next().await.is_some() {}
            bounded("looking at a command", self.docker.inspect_exec(&exec)).await
        };
        found.await.is_ok_and(|told| told.exit_code == Some(0))
    }

    pub(super) async fn exec(
        &self,
        container: &str,
        step: &Sibling,
    ) -> Result<String, RuntimeError> {
        let mut env: Vec<String> = step
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        if !step.prepend_path.is_empty() {
            let told = inspect(&self.docker, container).await?.unwrap_or_default();
            let own = told.config.and_then(|config| config.env);
            let path = path(&step.prepend_path, &env, own.as_deref());
            env.retain(|line| !line.starts_with("PATH="));
            env.push(path);
        }
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(false),
            privileged: Some(false),
            env: Some(env),
            cmd: Some(step.entrypoint.iter().chain(&step.cmd).cloned().collect()),
            working_dir: (!step.working_dir.is_empty()).then(|| step.working_dir.clone()),
            ..CreateExecOptions::default()
        };
        let made = bounded(
            "preparing a step",
            self.docker.create_exec(container, options),
        )
        .await?;
        Ok(made.id)
    }

    pub(super) async fn output_of(
        &self,
        exec: &str,
    ) -> Result<impl Stream<Item = Result<LogOutput, Error>> + use<>, RuntimeError> {
        match bounded("starting a step", self.docker.start_exec(exec, None)).await? {
            StartExecResults::Attached { output, .. } => Ok(output),
            StartExecResults::Detached => {
                Err(refused("a step was started without its output".into()))
            }
        }
    }

    /// A step in the job container.
    pub(super) async fn script(
        &self,
        container: &str,
        step: &Sibling,
        reply: &Reply,
        ongoing: &Mutex<Option<Ongoing>>,
    ) -> Result<i64, RuntimeError> {
        let exec = self.exec(container, step).await?;
        *lock(ongoing) = Some(Ongoing::Exec(exec.clone()));
        let output = self.output_of(&exec).await?;
        pass_on(output, reply).await?;
        let told = bounded("looking at a step", self.docker.inspect_exec(&exec)).await?;
        Ok(told.exit_code.unwrap_or(1))
    }

    /// A container that is a step.
    pub(super) async fn step(
        &self,
        step: &Sibling,
        reply: &Reply,
        ongoing: &Mutex<Option<Ongoing>>,
    ) -> Result<i64, RuntimeError> {
        self.bound()?;
        let id = self.make(step, "a step's container").await?;
        *lock(ongoing) = Some(Ongoing::Container(id.clone()));
        let run = async {
            pass_on(self.docker.logs(&id, Some(whole_output())), reply).await?;
            let code = end_of(&self.docker, &id).await;
            code.ok_or_else(|| refused("the end of a step's container is not known".into()))
        };
        let code = run.await;
        lock(ongoing).take();
        remove_container(&self.docker, &id).await?;
        code
    }
}

async fn pass_on(
    output: impl Stream<Item = Result<LogOutput, Error>>,
    reply: &Reply,
) -> Result<(), RuntimeError> {
    let mut output = std::pin::pin!(output);
    let mut rest = Vec::new();
    while let Some(piece) = output.next().await {
        let piece = piece.map_err(|error| refused(format!("reading a step's output: {error}")))?;
        let sent = reply.output(&piece.into_bytes(), &mut rest).await;
        sent.map_err(unheard)?;
    }
    reply.rest(&rest).await.map_err(unheard)
}

#[allow(unsafe_code)]
pub(super) fn kill_group(pid: i32) {
    // SAFETY: kill takes numbers only; the process is the engine's own of a moment ago.
    unsafe {
        libc::kill(-pid, libc::SIGKILL);
        libc::kill(pid, libc::SIGKILL);
    }
}
