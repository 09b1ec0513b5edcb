//! The agent as its unit runs it: what systemd hears of it, with an engine that hangs.

use std::{
    io::{BufRead, BufReader},
    os::unix::net::{UnixDatagram, UnixListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use longshore_proto::join_token::JoinToken;

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

/// A host that has joined some fleet: its key is asked for only where a scheduler answers.
fn joined(folder: &Path) {
    let identity = folder.join("state/identity");
    std::fs::create_dir_all(&identity).expect("made");
    let facts = serde_json::json!({
        "node": "units", "received_ms": 4_000_000_000_000_u64, "life_ms": 600_000_000_u64
    });
    std::fs::write(identity.join("identity.json"), facts.to_string()).expect("written");
}

/// In a network of its own: nothing of the host's firewall is touched.
fn agent(folder: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--"])
        .arg(program("longshore-agent"))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["--node", "units", "--scheduler", "https://127.0.0.1:1"])
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
    joined(folder.path());
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

#[test]
fn a_running_agent_takes_in_what_it_can_of_a_changed_file_and_names_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.toml");
    let write = |text: &str| std::fs::write(&file, text).expect("written");
    write("log = \"info\"\n");
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("bound");
    systemd.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut command = agent(folder.path());
    command
        .env("NOTIFY_SOCKET", &path)
        .arg("--config")
        .arg(&file)
        .stderr(Stdio::piped());
    joined(folder.path());
    let mut agent = Ended(command.spawn().expect("starts"));
    let stderr = agent.0.stderr.take().expect("piped");
    let (lines, logged) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // The test may have seen enough.
            let _ = lines.send(line);
        }
    });
    let until = |says: &str| {
        let from = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(from.elapsed());
            let line = logged.recv_timeout(left).expect(says);
            if line.contains(says) {
                return line;
            }
        }
    };
    told(&systemd);
    let pid = agent.0.id().to_string();
    let hang_up = || {
        assert!(
            run(Command::new("kill").args(["-HUP", &pid]))
                .status
                .success()
        )
    };

    write("log = \"info\"\nmax_runer = 3\n");
    hang_up();
    let line = until("the configuration stays as it was");
    assert!(
        line.contains("agent.toml:2") && line.contains("max_runners"),
        "{line}"
    );

    write("log = \"debug\"\nmax_runners = 3\n");
    hang_up();
    // Said at this level only, which was not in force before.
    until("the log filter in force");
    until("the configuration was read again");
    let line = until("needs a restart");
    assert!(line.contains("max_runners"), "{line}");
}

#[test]
fn an_agent_that_waits_to_join_takes_its_token_from_systemd_and_is_not_taken_for_hung() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("bound");
    systemd.set_read_timeout(Some(PATIENCE)).expect("set");
    let credentials = folder.path().join("credentials");
    std::fs::create_dir(&credentials).expect("made");
    let token = JoinToken {
        id: "0123456789abcdef".into(),
        secret: "5e".repeat(32),
        authority: "0a".repeat(32),
    };
    std::fs::write(credentials.join("join-token"), token.text()).expect("written");
    let mut command = agent(folder.path());
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .env("CREDENTIALS_DIRECTORY", &credentials);
    let mut agent = Ended(command.spawn().expect("starts"));
    assert_eq!(told(&systemd), "READY=1\nSTATUS=joining the fleet");
    for _ in 0..4 {
        assert_eq!(told(&systemd), "WATCHDOG=1");
    }
    // The token is in no argument and no variable of the process that waits.
    let process = format!("/proc/{}", agent.0.id());
    for file in ["cmdline", "environ"] {
        let text = std::fs::read(format!("{process}/{file}")).expect("readable");
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains(&token.secret), "{file}: {text}");
    }
    assert!(agent.0.try_wait().expect("waited").is_none(), "it gave up");
}
