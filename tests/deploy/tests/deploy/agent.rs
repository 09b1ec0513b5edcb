//! The agent as its unit runs it: what systemd hears of it, with an engine that hangs.

use std::{
    os::unix::net::{UnixDatagram, UnixListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::ground::{program, run};

const PATIENCE: Duration = Duration::from_secs(90);
/// Its own bound is 5 s; the rest is for a machine that is busy.
const DETACHED_WITHIN: Duration = Duration::from_secs(12);

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Ended already, as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("systemd is told in time");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// In a network of its own: nothing of the host's firewall is touched.
fn agent(folder: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--"])
        .arg(program("longshore-agent"))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["--node", "units", "--scheduler", "http://127.0.0.1:1"])
        .arg("--state-dir")
        .arg(folder.join("state"))
        .arg("--engine-socket")
        .arg(folder.join("engine.sock"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[test]
fn an_agent_without_scheduler_and_with_a_hanging_engine_is_up_answers_and_stops_soon() {
    let folder = tempfile::tempdir().expect("a folder");
    // Takes connections into its queue and never answers one.
    let _engine = UnixListener::bind(folder.path().join("engine.sock")).expect("bound");
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("bound");
    systemd.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut command = agent(folder.path());
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000");
    let mut agent = Ended(command.spawn().expect("starts"));
    let first = told(&systemd);
    assert!(first.starts_with("READY=1\nSTATUS=waiting for "), "{first}");
    for _ in 0..3 {
        assert_eq!(told(&systemd), "WATCHDOG=1");
    }
    let from = Instant::now();
    let pid = agent.0.id().to_string();
    assert!(
        run(Command::new("kill").args(["-TERM", &pid]))
            .status
            .success()
    );
    while told(&systemd) == "WATCHDOG=1" {}
    let ended = loop {
        if let Some(ended) = agent.0.try_wait().expect("waited") {
            break ended;
        }
        assert!(from.elapsed() < PATIENCE, "the agent hangs");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(ended.success(), "{ended}");
    assert!(from.elapsed() < DETACHED_WITHIN, "{:?}", from.elapsed());
}
