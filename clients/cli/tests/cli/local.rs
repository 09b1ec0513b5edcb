//! `up`, `down` and `runner start` where no scheduler answers, with stand-ins
//! for the two programs beside `longshore`.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::fake::Fake;
use crate::program::{Ended, command_at, finish, until, wait};
use crate::world::{Call, FIXED, World, harbour};

/// A folder with `longshore`, the stand-ins, a state folder and their notes.
struct Host {
    folder: tempfile::TempDir,
    fake: Fake,
}

/// Nothing can listen at port 0, so nobody answers there; to listen at it
/// means any free port.
const NOBODY: &str = "http://127.0.0.1:0";

impl Host {
    fn new() -> Host {
        // Below the target folder, so that the program can be linked, not copied.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let exe = Path::new(env!("CARGO_BIN_EXE_longshore"));
        std::fs::hard_link(exe, folder.path().join("longshore")).unwrap();
        let stand_ins = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/stand-ins");
        for name in ["longshore-scheduler", "longshore-agent"] {
            std::os::unix::fs::symlink(stand_ins.join(name), folder.path().join(name)).unwrap();
        }
        std::fs::create_dir(folder.path().join("notes")).unwrap();
        Host {
            folder,
            fake: Fake::start(World::default()),
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn command(&self, args: &str) -> Command {
        let args: Vec<_> = args.split(' ').collect();
        let mut command = command_at(&self.folder.path().join("longshore"), NOBODY, &args);
        command
            .env("LONGSHORE_HOME", self.state())
            .env("STAND_IN_NOTES", self.folder.path().join("notes"))
            .env("STAND_IN_API", &self.fake.address);
        command
    }

    fn run(&self, args: &str) -> Ended {
        finish(self.command(args))
    }

    fn run_failing(&self, args: &str, which: &str) -> Ended {
        let mut command = self.command(args);
        command.env("STAND_IN_FAIL", which);
        finish(command)
    }

    fn note(&self, name: &str) -> String {
        let path = self.folder.path().join("notes").join(name);
        std::fs::read_to_string(path).unwrap_or_default()
    }

    fn pid(&self, name: &str) -> Pid {
        pid(self.note(&format!("{name}.pid")).trim().parse().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.state().join("longshore.log")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A failed test leaves nothing running either.
        for name in ["agent", "scheduler"] {
            if let Ok(number) = self.note(&format!("{name}.pid")).trim().parse() {
                let program = format!("/proc/{number}/cmdline");
                if std::fs::read_to_string(program).is_ok_and(|c| c.contains("longshore-")) {
                    let _ = kill_process(pid(number), Signal::KILL);
                }
            }
        }
    }
}

fn pid(number: i32) -> Pid {
    Pid::from_raw(number).unwrap()
}

const UP: &str = "up --node-listen 127.0.0.1:0 --webhook-listen 127.0.0.1:0 -o jsonl";

/// `up`, once it says where things are.
fn up(host: &Host, args: &str) -> (Child, Value) {
    let mut child = host.command(args).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    if line.is_empty() {
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        panic!("up said nothing but {stderr}");
    }
    (child, serde_json::from_str(&line).unwrap())
}

fn stderr_of(child: &mut Child) -> String {
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

#[test]
fn up_runs_both_until_ctrl_c_and_stops_the_agent_first() {
    let host = Host::new();
    let more = "--owner acme --max-runners 3 --github-api-url http://127.0.0.1:1 --node n1 --slots-cidr 10.9.0.0/16";
    let (mut child, places) = up(&host, &format!("{UP} {more}"));
    assert_eq!(places["ready"], true);
    assert_eq!(places["api"], host.fake.address);
    assert_eq!(places["webhooks"], "127.0.0.1:4002");
    assert_eq!(places["log"], host.log().to_str().unwrap());
    let state = host.state();
    let state = state.to_str().unwrap();
    let scheduler: Vec<_> = [
        "--state-dir",
        &format!("{state}/scheduler"),
        "--api-listen",
        "127.0.0.1:0",
        "--node-listen",
        "127.0.0.1:0",
        "--webhook-listen",
        "127.0.0.1:0",
        "--github-api-url",
        "http://127.0.0.1:1",
        "--owner",
        "acme",
        "--max-runners",
        "3",
    ]
    .join("\n")
    .lines()
    .map(str::to_owned)
    .collect();
    assert_eq!(
        host.note("scheduler.args").lines().collect::<Vec<_>>(),
        scheduler
    );
    let agent = format!(
        "--state-dir\n{state}/agent\n--scheduler\nhttps://127.0.0.1:4001\n--join-token-file\n{state}/join-token\n--node\nn1\n--slots-cidr\n10.9.0.0/16\n"
    );
    assert_eq!(host.note("agent.args"), agent);
    // The CLI's own setting is no key of the scheduler's.
    assert_eq!(host.note("scheduler.env"), "LONGSHORE_ADDRESS=unset\n");
    kill_process(pid(child.id() as i32), Signal::INT).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(host.note("ended"), "agent\nscheduler\n");
    let log = std::fs::read_to_string(host.log()).unwrap();
    assert!(log.contains("scheduler: scheduler is starting\n"), "{log}");
}

#[test]
fn up_says_what_keeps_the_fleet_from_working() {
    let host = Host::new();
    let node = {
        let mut world = host.fake.world();
        *world = harbour(FIXED);
        world.status.running = false;
        world.status.iterations = 1;
        world.nodes[0].name.clone()
    };
    let people = UP.replace(" -o jsonl", " -o table");
    let mut child = host.command(&people).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let said: Vec<String> = stdout
        .lines()
        .map(Result::unwrap)
        .take_while(|line| !line.starts_with("Ctrl-C stops it"))
        .collect();
    kill_process(pid(child.id() as i32), Signal::INT).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    for line in [
        "Scaling is off: `longshore runner start` turns it on.",
        "GitHub: lacks administration:write",
        &format!("Node {node}: jobs end when the engine restarts; set live-restore in daemon.json"),
    ] {
        assert!(said.iter().any(|said| said == line), "{line}: {said:#?}");
    }
}

#[test]
fn a_process_that_ends_by_itself_ends_the_other_and_is_an_error() {
    let host = Host::new();
    let (mut child, _) = up(&host, UP);
    kill_process(host.pid("agent"), Signal::KILL).unwrap();
    assert_eq!(wait(&mut child).code(), Some(1));
    assert_eq!(host.note("ended"), "scheduler\n");
    let stderr = stderr_of(&mut child);
    assert!(
        stderr.starts_with("error: longshore-agent ended by itself (signal: 9"),
        "{stderr}"
    );
}

#[test]
fn a_program_that_cannot_start_is_quoted() {
    let host = Host::new();
    host.run_failing(UP, "scheduler").failed(
        1,
        "longshore-scheduler ended before it was ready (exit status: 1): the store is locked",
        "end the other scheduler",
    );
    assert_eq!(host.note("agent.args"), "", "the agent was not started");
    host.run_failing(UP, "agent").failed(
        1,
        "longshore-agent ended before it was ready (exit status: 1): no container engine answers",
        "start Docker",
    );
    assert_eq!(
        host.note("ended"),
        "scheduler\n",
        "the scheduler was stopped again"
    );
}

#[test]
fn a_missing_program_is_named() {
    let host = Host::new();
    std::fs::remove_file(host.folder.path().join("longshore-agent")).unwrap();
    let mut command = host.command(UP);
    command.env("PATH", "/usr/bin:/bin");
    let folder = host.folder.path().display().to_string();
    finish(command).failed(
        1,
        &format!("longshore-agent is neither in {folder} nor on the PATH"),
        "install it beside `longshore`",
    );
    assert_eq!(host.note("ended"), "scheduler\n");
}

#[test]
fn a_port_in_use_is_named_before_anything_starts() {
    let host = Host::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    host.run(&format!(
        "up --node-listen 127.0.0.1:0 --webhook-listen {address}"
    ))
    .failed(
        5,
        &format!(
            "{address} is in use by another program; it is wanted for webhooks (--webhook-listen)"
        ),
        "choose another address with that flag, or end that program",
    );
    host.run(&format!("{UP} --scheduler {address}")).failed(
        5,
        &format!("{address} is in use by another program; it is wanted for the API"),
        "choose another address with --scheduler, or end that program",
    );
    let fake = &host.fake.address;
    host.run(&format!("{UP} --scheduler {fake}")).failed(
        5,
        &format!("a scheduler already runs at {fake}"),
        "use it as it is (longshore runner status), or stop it with `longshore down`",
    );
    assert_eq!(host.note("scheduler.args"), "");
}

#[test]
fn a_scheduler_elsewhere_cannot_be_started_from_here() {
    let host = Host::new();
    let ended = host.run("up --scheduler http://192.0.2.1:9000");
    assert_eq!(ended.code, 2);
    assert!(
        ended
            .stderr
            .starts_with("error: a scheduler cannot listen at http://192.0.2.1:9000")
    );
}

const BACKGROUND: &str = "runner start --background --owner acme --interval 30 --node-listen 127.0.0.1:0 --webhook-listen 127.0.0.1:0";

#[test]
fn start_in_the_background_leaves_a_fleet_that_down_stops() {
    let host = Host::new();
    let places = host.run(&format!("{BACKGROUND} -o json")).json();
    let supervisor = places["pid"].as_i64().unwrap() as i32;
    let pid_file = host.state().join("longshore.pid");
    assert_eq!(
        std::fs::read_to_string(&pid_file).unwrap(),
        format!("{supervisor}\n")
    );
    // The settings went both to the process and through the API.
    assert!(
        host.note("scheduler.args")
            .contains("--owner\nacme\n--interval\n30\n")
    );
    let calls = host.fake.calls();
    let [Call::JoinToken(_), Call::Start(start)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(start.settings.as_ref().unwrap().owners, ["acme"]);
    // The terminal going away means nothing to it.
    kill_process(pid(supervisor), Signal::HUP).unwrap();

    let state = host.state().display().to_string();
    host.run(UP).failed(
        5,
        &format!("a fleet is already up with the state folder {state}"),
        "stop it with `longshore down`, or name another folder with --state-dir",
    );
    let text = host
        .run(&format!("runner stop --scheduler {}", host.fake.url))
        .good();
    assert!(text.contains("`longshore down` stops them"), "{text}");
    test_kill_process(host.pid("scheduler")).unwrap();
    test_kill_process(host.pid("agent")).unwrap();

    let text = host.run("down").good();
    assert_eq!(
        text,
        format!("process {supervisor} stopped; jobs that run go on in their containers\n")
    );
    assert_eq!(host.note("ended"), "agent\nscheduler\n");
    until("both are gone", || {
        match (
            test_kill_process(host.pid("scheduler")),
            test_kill_process(host.pid("agent")),
        ) {
            (Err(_), Err(_)) => Ok(()),
            _ => Err(()),
        }
    });
    host.run("down").failed(
        3,
        &format!("no fleet is up with the state folder {state}"),
        "name its folder with --state-dir; units of systemd are stopped with systemctl",
    );
    // And it can start again.
    host.run(BACKGROUND).good();
    host.run("down").good();
}

#[test]
fn a_failure_in_the_background_is_told_in_the_foreground() {
    let host = Host::new();
    host.run_failing(BACKGROUND, "agent").failed(
        1,
        "longshore-agent ended before it was ready (exit status: 1): no container engine answers",
        "start Docker",
    );
    assert_eq!(host.note("ended"), "scheduler\n");
    assert_eq!(host.run("down").code, 3);
}

#[test]
fn a_refused_start_leaves_no_half_started_fleet() {
    let host = Host::new();
    let refusal = crate::fake::error(
        tonic::Code::InvalidArgument,
        "no such owner",
        "owner",
        "fix it",
    );
    host.fake
        .world()
        .faults
        .insert("start_autoscaler", vec![refusal.clone(), refusal]);
    host.run(BACKGROUND).failed(2, "no such owner", "fix it");
    assert_eq!(host.note("ended"), "agent\nscheduler\n");
    let foreground = BACKGROUND.replace("--background ", "");
    host.run(&foreground).failed(2, "no such owner", "fix it");
    assert_eq!(host.note("ended"), "agent\nscheduler\nagent\nscheduler\n");
}

#[test]
fn start_in_the_foreground_runs_until_it_is_told_to_stop() {
    let host = Host::new();
    let args = BACKGROUND.replace("--background ", "") + " -o jsonl";
    let (mut child, places) = up(&host, &args);
    assert_eq!(places["pid"], child.id());
    assert!(matches!(
        host.fake.calls().as_slice(),
        [Call::JoinToken(_), Call::Start(_)]
    ));
    kill_process(pid(child.id() as i32), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(host.note("ended"), "agent\nscheduler\n");
}
