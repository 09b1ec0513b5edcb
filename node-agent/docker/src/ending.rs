//! Ends a sandbox, reads how it ended, and removes what it was.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_core::denied::Denied;
use agent_core::exit::{self, Ended};
use agent_core::lifecycle::IDLE_GRACE_MS;
use agent_core::runtime::{Outcome, RuntimeError};
use bollard::query_parameters::StopContainerOptionsBuilder;
use tracing::{debug, warn};

use crate::engine::{bounded, gone_is_fine, kill, remove_container};
use crate::recover::{inspect, is_running, utc_ms};
use crate::runtime::{Handle, Inner, lock};
use crate::slots::Kind;
use crate::{events, slices, usage};

/// How long the rest of the output is waited for after the end.
const OUTPUT_END: Duration = Duration::from_secs(2);

const GROUP_TRIES: u32 = 10;
const GROUP_PAUSE: Duration = Duration::from_millis(50);

impl Inner {
    pub(crate) async fn end(
        self: &Arc<Self>,
        runner: &str,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let (docker, _) = self.connected()?;
        let handle = self.handle(runner)?;
        kill(&docker, &handle.container, "SIGINT").await?;
        let container = handle.container.clone();
        let name = runner.to_owned();
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            if let Err(error) = kill(&docker, &container, "SIGKILL").await {
                warn!(runner = name, %error, "could not kill a runner after its grace");
            }
        });
        Ok(())
    }

    pub(crate) async fn collect(&self, runner: &str) -> Result<Outcome, RuntimeError> {
        let (docker, _) = self.connected()?;
        let Ok(handle) = self.handle(runner) else {
            return Ok(Outcome::default());
        };
        lock(&handle.stdin).take();
        let Some(mut container) = inspect(&docker, &handle.container).await? else {
            return Ok(Outcome {
                usage: usage::read(Path::new(usage::ROOT), &handle.cgroup_parent),
                denied: self.denied(&handle).await,
                ..Outcome::default()
            });
        };
        if is_running(&container) {
            let grace = i32::try_from(IDLE_GRACE_MS / 1_000).unwrap_or(5);
            let options = StopContainerOptionsBuilder::new().t(grace).build();
            bounded(&format!("stopping {runner}"), async {
                gone_is_fine(
                    docker
                        .stop_container(&handle.container, Some(options))
                        .await,
                )
            })
            .await?;
            container = inspect(&docker, &handle.container)
                .await?
                .unwrap_or_default();
        }
        let output = lock(&handle.output).take();
        if let Some(output) = output
            && tokio::time::timeout(OUTPUT_END, output).await.is_err()
        {
            debug!(runner, "the rest of the output was not waited for");
        }
        let state = container.state.unwrap_or_default();
        if state.exit_code == Some(i64::from(exit::VERSION_DEPRECATED))
            && let Some(image) = &container.image
        {
            self.images.refused(image);
        }
        let engine_error = state.error.unwrap_or_default();
        let finished_utc_ms = state.finished_at.as_deref().map_or(0, utc_ms);
        let outage = *lock(&self.outage);
        let engine_restarted = outage.covers(finished_utc_ms);
        let engine_stopped = match outage.began() {
            Some(began) if engine_restarted => {
                events::was_signalled(&docker, &handle.container, began).await
            }
            _ => false,
        };
        Ok(Outcome {
            ended: Ended {
                code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
                oom_killed: state.oom_killed.unwrap_or(false),
                engine_error,
                unseen: finished_utc_ms == 0,
                engine_restarted,
                engine_stopped,
                disk_full: self.disk_full(&docker, &handle).await,
                ..Ended::default()
            },
            usage: usage::read(Path::new(usage::ROOT), &handle.cgroup_parent),
            finished_utc_ms,
            denied: self.denied(&handle).await,
        })
    }

    /// What firewall and proxy denied it; absent where that cannot be told.
    async fn denied(&self, handle: &Handle) -> Option<Denied> {
        let slot = handle.slot?;
        let dropped = self
            .firewall
            .denied(&self.slots.network(slot, handle.kind))
            .await?;
        match handle.kind {
            Kind::Open => Some(dropped),
            Kind::Closed => Some(dropped.and(self.egress.denied(slot).await?)),
        }
    }

    pub(crate) async fn remove(&self, runner: &str) -> Result<(), RuntimeError> {
        let (docker, _) = self.connected()?;
        let Ok(handle) = self.handle(runner) else {
            return Ok(());
        };
        self.remove_siblings(&docker, &handle).await?;
        remove_container(&docker, &handle.container).await?;
        self.volumes.delete(&docker, &handle.work_volume).await?;
        remove_group(&handle.cgroup_parent).await;
        if let Some(slot) = handle.slot {
            self.give_back(slot, handle.kind).await;
        }
        self.forget(runner);
        self.standby.served(runner);
        Ok(())
    }
}

/// An engine's helper process may outlive its container by a moment.
pub(crate) async fn remove_group(parent: &str) {
    remove_groups(std::slice::from_ref(&parent.to_owned())).await;
}

/// Groups that nothing alive belongs to.
pub(crate) async fn remove_groups(parents: &[String]) {
    let root = Path::new(usage::ROOT);
    let exists = |parent: &&String| usage::exists(root, parent);
    let there: Vec<String> = parents.iter().filter(exists).cloned().collect();
    if let Err(error) = slices::stop(&there).await {
        debug!(%error, "systemd keeps slices");
    }
    for parent in &there {
        remove_emptied(parent).await;
    }
}

async fn remove_emptied(parent: &str) {
    for _ in 0..GROUP_TRIES {
        if usage::remove(Path::new(usage::ROOT), parent) {
            return;
        }
        tokio::time::sleep(GROUP_PAUSE).await;
    }
    debug!(parent, "a control group stays until the next start");
}
