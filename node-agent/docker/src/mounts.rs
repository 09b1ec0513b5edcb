//! Mounts of the agent's own in the engine's mount namespace.
//!
//! An engine with live-restore loses count of what its own volumes have mounted: after its
//! restart each container that outlived it is taken off a count that began anew at zero, and
//! "volume has active mounts" is its answer ever after. A volume that is a plain folder to
//! the engine has no such count, so there the agent mounts a sized folder itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Command;

/// A mount of a fresh file system takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Mounts above one another that are undone.
const LAYERS: usize = 4;

pub(crate) struct EngineMounts {
    socket: PathBuf,
}

impl EngineMounts {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// The process whose mounts are the engine's. Asked each time: engines restart.
    pub(crate) async fn process(&self) -> Result<u32, String> {
        let asked = tokio::time::timeout(PATIENCE, UnixStream::connect(&self.socket)).await;
        let stream = match asked {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(format!("the engine's socket: {error}")),
            Err(_) => return Err("the engine's socket does not answer".into()),
        };
        let peer = stream
            .peer_cred()
            .map_err(|error| format!("who listens at the engine's socket: {error}"))?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.filter(|pid| *pid > 0);
        let pid = pid.ok_or("who listens at the engine's socket is not told")?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // systemd opened the socket for it; its mounts reach its services.
        match name.trim() {
            "dockerd" | "systemd" => Ok(pid),
            name => Err(format!(
                "the engine's socket is listened at by {name:?}, which is no engine"
            )),
        }
    }

    pub(crate) async fn mount(
        &self,
        device: &Path,
        at: &Path,
        options: &str,
    ) -> Result<(), String> {
        let pid = self.process().await?;
        let words = ["mount", "-t", "ext4", "-o", options];
        run(pid, &words, &[device, at]).await?;
        match is_mounted(pid, at) {
            true => Ok(()),
            false => Err(format!("{} was not mounted", at.display())),
        }
    }

    /// Undoes it; nothing to undo is fine.
    pub(crate) async fn unmount(&self, at: &Path) -> Result<(), String> {
        let pid = self.process().await?;
        for _ in 0..LAYERS {
            if !is_mounted(pid, at) {
                return Ok(());
            }
            run(pid, &["umount", "-l"], &[at]).await?;
        }
        Err(format!("{} stays mounted", at.display()))
    }
}

fn is_mounted(pid: u32, at: &Path) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    names(&mounts, at)
}

/// Whether a `mountinfo` has a mount at this path; paths of volumes have no characters that
/// the kernel would write otherwise.
fn names(mounts: &str, at: &Path) -> bool {
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.any(|point| Path::new(point) == at)
}

async fn run(pid: u32, words: &[&str], paths: &[&Path]) -> Result<(), String> {
    let what = words[0];
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--mount=/proc/{pid}/ns/mnt"))
        .arg("--")
        .args(words)
        .args(paths)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            return Err(format!(
                "nsenter cannot be run ({error}); install util-linux"
            ));
        }
        Err(_) => return Err(format!("{what} did not end")),
    };
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{what}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_whole_path() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      90 22 7:3 / /var/lib/docker/volumes/a/_data rw,nosuid - ext4 /dev/loop3 rw\n";
        assert!(names(mounts, Path::new("/var/lib/docker/volumes/a/_data")));
        assert!(!names(mounts, Path::new("/var/lib/docker/volumes/a")));
        assert!(!names(
            mounts,
            Path::new("/var/lib/docker/volumes/ab/_data")
        ));
        assert!(!names("", Path::new("/")));
    }

    #[tokio::test]
    async fn a_socket_of_somebody_else_is_no_engines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let error = EngineMounts::new(&path).process().await.unwrap_err();
        assert!(error.contains("no engine"), "{error}");
        let absent = EngineMounts::new(&folder.path().join("absent"));
        assert!(absent.process().await.is_err());
    }
}
