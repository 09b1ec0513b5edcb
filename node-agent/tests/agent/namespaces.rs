//! Network and mount namespaces that a test owns.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A mount and a network namespace that live as long as this value.
pub(crate) struct Namespaces {
    keeper: Child,
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // Mounts and bridges go with the namespaces.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

impl Namespaces {
    /// `prepare` is run inside before anything else.
    pub(crate) fn new(prepare: &str) -> Self {
        let inside = format!(
            "mount --make-rprivate / && ip link set lo up && {prepare} && echo up && exec sleep 3600"
        );
        let mut keeper = Command::new("unshare")
            .args(["-m", "-n", "sh", "-c", &inside])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is installed");
        let mut line = String::new();
        let mut told = BufReader::new(keeper.stdout.take().unwrap());
        told.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "up", "the namespaces need root");
        Self { keeper }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.keeper.id()
    }
}

/// A program in namespaces of a process: `-n` for the network, `-m` for mounts.
pub(crate) fn command(pid: u32, which: &[&str], program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["-t", &pid.to_string()])
        .args(which)
        .args(["--", program]);
    command
}

/// Does something in the network namespace of a process; what it opens stays there.
pub(crate) fn within<T: Send + 'static>(pid: u32, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).unwrap();
    // A thread of its own: it is in the namespace until it ends.
    let thread = std::thread::spawn(move || {
        enter_network(&namespace);
        work()
    });
    thread.join().unwrap()
}

#[allow(unsafe_code)]
fn enter_network(namespace: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for the call; only this thread changes its namespace.
    let code = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(code, 0, "the namespaces need root");
}
