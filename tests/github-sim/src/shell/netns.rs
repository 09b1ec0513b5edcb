//! A network namespace with a public-looking address, so that sandboxed runners reach the simulator as they reach GitHub.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// What a namespace is made from. Both addresses are in one /30.
#[derive(Debug, Clone)]
pub struct Namespace {
    pub name: String,
    /// The address inside, which runners connect to.
    pub address: Ipv4Addr,
    /// The address of the host's end.
    pub host_address: Ipv4Addr,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("`{0}` is no name for a network namespace; use up to 40 letters, digits, - and _")]
    Name(String),
    #[error(
        "the namespace {0} is in use by a simulator that answers; choose another --runner-netns"
    )]
    InUse(String),
    #[error("`ip {command}` failed: {message}; it needs root and the package iproute2")]
    Ip { command: String, message: String },
    #[error("cannot listen inside the namespace {name}: {message}")]
    Listen { name: String, message: String },
}

/// A namespace that was made and must be removed.
#[derive(Debug)]
pub(super) struct Made {
    spec: Namespace,
    host_device: String,
}

const STEP: Duration = Duration::from_secs(10);

async fn ip(args: &[&str]) -> Result<(), NetnsError> {
    let failed = |message: String| NetnsError::Ip {
        command: args.join(" "),
        message,
    };
    let run = Command::new("ip").args(args).kill_on_drop(true).output();
    match tokio::time::timeout(STEP, run).await {
        Ok(Ok(out)) if out.status.success() => Ok(()),
        Ok(Ok(out)) => Err(failed(
            String::from_utf8_lossy(&out.stderr).trim().to_owned(),
        )),
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(_) => Err(failed("no end within 10 s".into())),
    }
}

/// Names of the two ends: at most 15 characters, and the same for the same namespace.
fn devices(name: &str) -> (String, String) {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    (format!("gs{hash:08x}h"), format!("gs{hash:08x}n"))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

pub(super) async fn make(spec: &Namespace) -> Result<Made, NetnsError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if spec.name.is_empty() || spec.name.len() > 40 || !spec.name.chars().all(fine) {
        return Err(NetnsError::Name(spec.name.clone()));
    }
    let (host_device, inner_device) = devices(&spec.name);
    let made = Made {
        spec: spec.clone(),
        host_device: host_device.clone(),
    };
    if path(&spec.name).exists() {
        let there = PathBuf::from("/sys/class/net").join(&host_device).exists();
        if there && answers(SocketAddr::from((spec.address, spec.port))).await {
            return Err(NetnsError::InUse(spec.name.clone()));
        }
        made.take_down().await;
    }
    if let Err(e) = made.build(&inner_device).await {
        made.take_down().await;
        return Err(e);
    }
    Ok(made)
}

/// Whether a simulator is at this address. A connection alone says nothing: a router on the way may accept any.
async fn answers(to: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(to).await?;
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nHost: sim\r\nConnection: close\r\n\r\n")
            .await?;
        let mut text = Vec::new();
        stream.take(1024).read_to_end(&mut text).await?;
        Ok::<_, std::io::Error>(text.starts_with(b"HTTP/1.1 200") && text.ends_with(b"ok"))
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(2), ask).await,
        Ok(Ok(true))
    )
}

impl Made {
    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    async fn build(&self, inner: &str) -> Result<(), NetnsError> {
        let (name, outer) = (self.spec.name.as_str(), self.host_device.as_str());
        let inside = format!("{}/30", self.spec.address);
        let outside = format!("{}/30", self.spec.host_address);
        let gateway = self.spec.host_address.to_string();
        ip(&["netns", "add", name]).await?;
        ip(&["link", "add", outer, "type", "veth", "peer", "name", inner]).await?;
        ip(&["link", "set", inner, "netns", name]).await?;
        ip(&["addr", "add", &outside, "dev", outer]).await?;
        ip(&["link", "set", outer, "up"]).await?;
        ip(&["-n", name, "addr", "add", &inside, "dev", inner]).await?;
        ip(&["-n", name, "link", "set", "lo", "up"]).await?;
        ip(&["-n", name, "link", "set", inner, "up"]).await?;
        ip(&["-n", name, "route", "add", "default", "via", &gateway]).await
    }

    /// Opens a socket inside. A socket stays in the namespace it was made in, so only one thread ever enters it.
    pub(super) async fn listen(&self, port: u16) -> Result<TcpListener, NetnsError> {
        let name = self.spec.name.clone();
        let address = SocketAddr::from((IpAddr::V4(self.spec.address), port));
        let failed = |message: String| NetnsError::Listen {
            name: self.spec.name.clone(),
            message,
        };
        let (tx, rx) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let made = enter(&path(&name))
                .and_then(|()| StdListener::bind(address))
                .and_then(|l| {
                    l.set_nonblocking(true)?;
                    Ok(l)
                });
            // the other side is gone only when the start was given up
            let _ = tx.send(made);
        });
        let listener = rx
            .await
            .map_err(|_| failed("the thread ended".into()))?
            .map_err(|e| failed(e.to_string()))?;
        TcpListener::from_std(listener).map_err(|e| failed(e.to_string()))
    }

    async fn take_down(&self) {
        for args in [
            &["link", "del", self.host_device.as_str()][..],
            &["netns", "del", self.spec.name.as_str()],
        ] {
            if let Err(e) = ip(args).await {
                tracing::debug!(error = %e, "taking the namespace down");
            }
        }
    }

    pub(super) async fn remove(self) {
        self.take_down().await;
    }
}

/// Moves the calling thread into a namespace.
#[allow(unsafe_code)]
fn enter(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let file = std::fs::File::open(path)?;
    // SAFETY: setns takes a descriptor that `file` keeps open, touches no memory, and affects this thread only
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_the_kernel_and_differ() {
        let (a, b) = devices("demo-1");
        assert!(a.len() <= 15 && b.len() <= 15);
        assert_ne!(a, b);
        assert_ne!(a, devices("demo-2").0);
    }
}
