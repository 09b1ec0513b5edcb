//! Hands a registration over to its sandbox, once, and afresh where a standby had died.

use std::pin::Pin;
use std::time::Duration;

use agent_core::containers;
use agent_core::runtime::RuntimeError;
use bollard::Docker;
use bollard::query_parameters::RenameContainerOptionsBuilder;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tracing::warn;
use zeroize::Zeroizing;

use crate::engine::{bounded, refused};
use crate::handover;
use crate::recover::{inspect, is_running};
use crate::runtime::{For, Handle, Inner, lock};

const HAND_OVER: Duration = Duration::from_secs(15);

type Stdin = Pin<Box<dyn AsyncWrite + Send>>;

/// A hand-over that did not work.
struct Failed {
    /// All of the registration may be inside.
    whole: bool,
    error: RuntimeError,
}

impl Inner {
    pub(crate) async fn hand_over(
        &self,
        runner: &str,
        jit_config: &[u8],
    ) -> Result<(), RuntimeError> {
        let (docker, _) = self.connected()?;
        let handle = self.handle(runner)?;
        let given = match self.give(&docker, runner, &handle, jit_config).await {
            // Not all of it went in, so nothing was started with it.
            Err(Failed {
                whole: false,
                error,
            }) => {
                self.give_afresh(&docker, runner, &handle, jit_config, error)
                    .await
            }
            other => other.map_err(|failed| failed.error),
        };
        self.standby.served(runner);
        given
    }

    /// A registration as its sandbox unpacks it, with the way to containers where the job
    /// may have them.
    async fn packed(
        &self,
        docker: &Docker,
        handle: &Handle,
        jit_config: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, RuntimeError> {
        let letter = match handle.containers {
            true => self.let_have_containers(docker, handle).await?,
            false => None,
        };
        let own = letter
            .as_ref()
            .map(|letter| (containers::FILE, letter.as_str()));
        handover::archive_with(jit_config, own).map_err(|error| refused(error.to_string()))
    }

    /// Renames the sandbox, writes the registration, closes the input.
    async fn give(
        &self,
        docker: &Docker,
        runner: &str,
        handle: &Handle,
        jit_config: &[u8],
    ) -> Result<(), Failed> {
        let before = |error| Failed {
            whole: false,
            error,
        };
        let archive = self
            .packed(docker, handle, jit_config)
            .await
            .map_err(|error| Failed { whole: true, error })?;
        let attached = lock(&handle.stdin).take();
        let mut attached = attached.ok_or_else(|| Failed {
            whole: true,
            error: refused(format!("{runner} was handed over before")),
        })?;
        // First the name: a container that has it may hold a registration.
        let options = RenameContainerOptionsBuilder::new().name(runner).build();
        bounded(
            &format!("renaming a sandbox to {runner}"),
            docker.rename_container(&handle.container, options),
        )
        .await
        .map_err(before)?;
        // An engine takes what is written for a dead container, and drops it.
        if handle.is_dead() {
            let why = format!("the sandbox of {runner} ended before its registration came");
            return Err(before(refused(why)));
        }
        self.follow_output(docker, runner, handle);
        let mut whole = false;
        let write = async {
            let stdin: &mut Stdin = &mut attached.input;
            stdin.write_all(&archive).await?;
            whole = true;
            stdin.flush().await?;
            stdin.shutdown().await
        };
        let result = tokio::time::timeout(HAND_OVER, write).await;
        let error = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => refused(format!("writing the registration of {runner}: {error}")),
            Err(_) => refused(format!(
                "{runner} did not take its registration within {} s",
                HAND_OVER.as_secs()
            )),
        };
        Err(Failed { whole, error })
    }

    /// A standby that died before its hand-over is replaced by a cold start. Anything
    /// else that failed has failed.
    async fn give_afresh(
        &self,
        docker: &Docker,
        runner: &str,
        dead: &Handle,
        jit_config: &[u8],
        error: RuntimeError,
    ) -> Result<(), RuntimeError> {
        let Some(spec) = lock(&dead.afresh).take() else {
            return Err(error);
        };
        let container = inspect(docker, &dead.container).await?;
        if container.as_ref().is_some_and(is_running) {
            return Err(error);
        }
        warn!(runner, %error, "its standby had died; starting afresh");
        let _cold = self.standby.cold(spec.resources);
        if !self.discard(docker, dead).await {
            return Err(error);
        }
        // No longer this runner's, so that it is not removed with it a second time.
        self.forget(runner);
        if let Some(slot) = dead.slot {
            self.give_back(slot, dead.kind).await;
        }
        let (handle, _) = self.start_sandbox(&spec, For::Job).await?;
        let handle = self.insert(runner.to_owned(), handle);
        self.give(docker, runner, &handle, jit_config)
            .await
            .map_err(|failed| failed.error)
    }
}
