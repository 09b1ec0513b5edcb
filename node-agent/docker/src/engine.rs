//! The connection to the engine, what it says of itself, and its errors in our words.

use std::io;
use std::path::Path;
use std::time::Duration;

use agent_core::model::ErrorReason;
use agent_core::runtime::RuntimeError;
use agent_core::sandbox::Filter;
use agent_core::sandbox::runtime_class::Registered;
use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{
    KillContainerOptionsBuilder, LogsOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use serde::Serialize;
use tracing::debug;

/// Bound of one step with the engine, which may be several calls; a single one is bounded
/// by the configuration's `engine_timeout` as well.
pub(crate) const CALL: Duration = Duration::from_secs(120);

/// Bound of a call that needs nothing but the engine's memory: it hangs if it takes longer.
const QUICK: Duration = Duration::from_secs(15);

/// Podman looks at every container and asks the package manager for an answer.
const VERSION: Duration = Duration::from_secs(30);

/// What an engine is and can.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EngineFacts {
    /// docker or podman.
    pub kind: String,
    pub version: String,
    pub api_version: String,
    /// 1 or 2; 0 when unknown.
    pub cgroup_version: u32,
    /// cgroupfs, systemd or none.
    pub cgroup_driver: String,
    pub storage_driver: String,
    pub backing_filesystem: String,
    pub live_restore: bool,
    pub security_options: Vec<String>,
    /// As the engine words it: x86_64, aarch64 ...
    pub architecture: String,
    pub root_dir: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub runtimes: Vec<String>,
    /// What a container gets that names no runtime.
    pub default_runtime: String,
    pub rootless: bool,
    /// How sandboxes get their filter of system calls.
    pub seccomp: Filter,
    pub work_folders: WorkFolders,
}

/// What bounds the disk that a job's work folder takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkFolders {
    #[default]
    Untried,
    /// A file system of its own.
    Sized,
    /// Measured again and again; why they have none.
    Watched(String),
}

impl EngineFacts {
    /// Why this engine cannot mount a file system of ours; none when it might.
    pub(crate) fn work_folder_problem(&self) -> Option<String> {
        if self.kind != "docker" {
            return Some(format!("{} is not given devices of the agent's", self.kind));
        }
        if self.rootless {
            return Some("a rootless engine may not mount devices".into());
        }
        if self.users_are_mapped() {
            // Its root folder is made before the engine says whose the runner's user is.
            return Some("the engine maps users (userns-remap)".into());
        }
        (!Path::new(&self.root_dir).join("volumes").exists()).then(|| {
            format!(
                "the engine's folder {} is not on this host, or the agent may not see it",
                self.root_dir
            )
        })
    }

    /// The runtimes there are. Podman's Docker-compatible socket takes no name of one.
    pub fn registered(&self) -> Registered {
        Registered {
            names: self.runtimes.clone(),
            default: self.default_runtime.clone(),
            chosen_by_container: self.kind == "docker",
        }
    }

    /// The engine maps every user of a container to a powerless one of the host
    /// (`userns-remap`). A rootless engine does not count: its containers' root is
    /// the user that owns the engine's files.
    pub fn users_are_mapped(&self) -> bool {
        self.security_options
            .iter()
            .any(|option| option.contains("name=userns"))
    }

    /// The engine puts its containers under a profile of AppArmor.
    pub fn has_apparmor(&self) -> bool {
        self.security_options
            .iter()
            .any(|option| option.contains("apparmor"))
    }
}

/// Connects and agrees on an API version both sides speak.
pub(crate) async fn connect(socket: &Path, timeout: Duration) -> Result<Docker, RuntimeError> {
    let probe = tokio::time::timeout(
        Duration::from_secs(5),
        tokio::net::UnixStream::connect(socket),
    )
    .await;
    match probe {
        Err(_) => {
            return Err(down(format!(
                "the engine at {} does not answer",
                socket.display()
            )));
        }
        Ok(Err(error)) => return Err(down(unreachable_text(socket, &error))),
        Ok(Ok(_)) => {}
    }
    let text = socket.to_string_lossy();
    let docker = Docker::connect_with_unix(&text, timeout.as_secs(), bollard::API_DEFAULT_VERSION)
        .map_err(|error| down(format!("engine at {text}: {error}")))?;
    tokio::time::timeout(VERSION, docker.negotiate_version())
        .await
        .map_err(|_| {
            down(format!(
                "the engine at {text} did not say its version within {} s",
                VERSION.as_secs()
            ))
        })?
        .map_err(|error| down(format!("engine at {text}: {error}")))
}

fn unreachable_text(socket: &Path, error: &io::Error) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!(
            "no container engine at {socket}; install Docker or Podman and start it (systemctl start docker), or set engine_socket"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "no permission on {socket}; run the agent as root or add its user to the group that owns the socket (usermod -aG docker USER)"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!("nothing listens on {socket}; start the engine (systemctl start docker)")
        }
        _ => format!("cannot reach the engine at {socket}: {error}"),
    }
}

/// Asks the engine what it is.
pub(crate) async fn facts(docker: &Docker) -> Result<EngineFacts, RuntimeError> {
    let version = bounded("asking the engine's version", docker.version()).await?;
    let info = bounded("asking the engine about itself", docker.info()).await?;
    let components = version.components.unwrap_or_default();
    let podman = components
        .iter()
        .any(|part| part.name.to_lowercase().contains("podman"));
    let security_options = info.security_options.unwrap_or_default();
    let kind = if podman { "podman" } else { "docker" };
    let filters = security_options
        .iter()
        .any(|option| option.contains("name=seccomp"));
    Ok(EngineFacts {
        kind: kind.into(),
        seccomp: match filters {
            true => Filter::Text,
            false => Filter::Without("the engine does not filter system calls (seccomp)".into()),
        },
        work_folders: WorkFolders::Untried,
        version: version.version.unwrap_or_default(),
        api_version: version.api_version.unwrap_or_default(),
        cgroup_version: info
            .cgroup_version
            .map_or(0, |version| version.to_string().parse().unwrap_or(0)),
        cgroup_driver: info
            .cgroup_driver
            .map(|driver| driver.to_string())
            .unwrap_or_default(),
        storage_driver: info.driver.unwrap_or_default(),
        backing_filesystem: info
            .driver_status
            .unwrap_or_default()
            .into_iter()
            .find(|pair| pair.first().is_some_and(|key| key == "Backing Filesystem"))
            .and_then(|pair| pair.get(1).cloned())
            .unwrap_or_default(),
        live_restore: info.live_restore_enabled.unwrap_or(false),
        rootless: security_options
            .iter()
            .any(|option| option.contains("rootless")),
        security_options,
        architecture: info.architecture.unwrap_or_default(),
        root_dir: info.docker_root_dir.unwrap_or_default(),
        cpus: info.ncpu.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        memory_bytes: info
            .mem_total
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or(0),
        default_runtime: info.default_runtime.unwrap_or_default(),
        runtimes: {
            let mut names: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
            names.sort();
            names
        },
    })
}

/// One call with a bound, its error naming what was tried.
pub(crate) async fn bounded<T>(
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, RuntimeError> {
    within(CALL, what, call).await
}

/// One call that an engine which works answers at once.
pub(crate) async fn quick<T>(
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, RuntimeError> {
    within(QUICK, what, call).await
}

async fn within<T>(
    limit: Duration,
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(what, &error)),
        Err(_) => Err(down(format!(
            "{what}: the engine gave no answer within {} s",
            limit.as_secs()
        ))),
    }
}

/// An engine's error as a reason the scheduler understands.
pub(crate) fn failed(what: &str, error: &Error) -> RuntimeError {
    let text = match error {
        Error::RequestTimeoutError => "the engine gave no answer within engine_timeout".into(),
        error => error.to_string(),
    };
    let reason = if text.contains("no space left on device") || text.contains("disk quota exceeded")
    {
        ErrorReason::DiskFull
    } else {
        match error {
            Error::DockerResponseServerError { .. } | Error::DockerContainerWaitError { .. } => {
                ErrorReason::StartFailed
            }
            Error::JsonDataError { .. } | Error::JsonSerdeError { .. } => ErrorReason::StartFailed,
            _ => ErrorReason::EngineDown,
        }
    };
    RuntimeError {
        reason,
        detail: format!("{what}: {text}"),
    }
}

/// What could not be done for a sandbox, in our words.
pub(crate) fn refused(detail: String) -> RuntimeError {
    RuntimeError {
        reason: ErrorReason::StartFailed,
        detail,
    }
}

/// Everything a container says, until it ends.
pub(crate) fn whole_output() -> LogsOptions {
    LogsOptionsBuilder::new()
        .follow(true)
        .stdout(true)
        .stderr(true)
        .tail("all")
        .build()
}

/// Waits until a container does not run; its exit code, where the engine tells it.
pub(crate) async fn end_of(docker: &Docker, container: &str) -> Option<i64> {
    let options = WaitContainerOptionsBuilder::new()
        .condition("not-running")
        .build();
    let mut ends = std::pin::pin!(docker.wait_container(container, Some(options)));
    match ends.next().await {
        Some(Err(Error::DockerContainerWaitError { code, .. })) => Some(code),
        Some(Ok(end)) => Some(end.status_code),
        _ => None,
    }
}

/// Sends a signal to a container; one that does not run is left alone.
pub(crate) async fn kill(
    docker: &Docker,
    container: &str,
    signal: &str,
) -> Result<(), RuntimeError> {
    let options = KillContainerOptionsBuilder::new().signal(signal).build();
    bounded(&format!("sending {signal} to {container}"), async {
        match docker.kill_container(container, Some(options)).await {
            // Not there or not running: that is what was wanted.
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(()),
            other => other,
        }
    })
    .await
}

/// Removes a container with its anonymous volumes, running or not; gone is fine.
pub(crate) async fn remove_container(docker: &Docker, id: &str) -> Result<(), RuntimeError> {
    // Podman's forced removal interrupts first and waits for the stop timeout. Whether
    // there was something to kill is worded differently everywhere; removal tells.
    if let Err(error) = kill(docker, id, "SIGKILL").await {
        debug!(%error, "nothing to kill before the removal");
    }
    let options = RemoveContainerOptionsBuilder::new()
        .force(true)
        .v(true)
        .build();
    bounded(&format!("removing container {id}"), async {
        match gone_is_fine(docker.remove_container(id, Some(options)).await) {
            // Somebody is removing it already.
            Err(error)
                if status(&error) == Some(409)
                    && error.to_string().contains("already in progress") =>
            {
                Ok(())
            }
            other => other,
        }
    })
    .await
}

pub(crate) fn down(detail: String) -> RuntimeError {
    RuntimeError {
        reason: ErrorReason::EngineDown,
        detail,
    }
}

/// The HTTP status of an engine's refusal.
pub(crate) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Makes "it is not there" a success.
pub(crate) fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if status(&error) == Some(404) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_engine_says_how_to_mend_it() {
        let socket = Path::new("/var/run/docker.sock");
        let text = |kind| unreachable_text(socket, &io::Error::from(kind));
        assert!(text(io::ErrorKind::NotFound).contains("install Docker or Podman"));
        assert!(text(io::ErrorKind::PermissionDenied).contains("usermod -aG docker"));
        assert!(text(io::ErrorKind::ConnectionRefused).contains("systemctl start docker"));
    }

    #[test]
    fn a_full_disk_is_told_from_other_refusals() {
        let refusal = |message: &str| Error::DockerResponseServerError {
            status_code: 500,
            message: message.into(),
        };
        let reason = |message| failed("x", &refusal(message)).reason;
        assert_eq!(
            reason("mkdir /var/lib: no space left on device"),
            ErrorReason::DiskFull
        );
        assert_eq!(
            reason("OCI runtime create failed"),
            ErrorReason::StartFailed
        );
    }
}
