//! An engine that accepts calls and does not answer them, or not some of them. It is told,
//! nothing is made twice, and all goes on when it answers again.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::on::On;
use crate::support::{Bench, deadline, run};

/// The agent waits this long for a call, so that these tests do not wait two minutes.
const CALL: [&str; 2] = ["--engine-timeout", "20"];

/// What a socket before the engine keeps back until it is told to let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Nothing,
    /// Every word of both sides.
    Everything,
    /// Requests of this path. What was kept back is carried out afterwards, when nobody
    /// may wait for it any more.
    Requests(&'static str),
}

impl Hold {
    fn keeps(self, asked: &[u8]) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Requests(path) => {
                let head = &asked[..asked.len().min(512)];
                head.starts_with(b"POST ")
                    && head
                        .windows(path.len())
                        .any(|words| words == path.as_bytes())
            }
        }
    }
}

struct Socket {
    folder: tempfile::TempDir,
    hold: watch::Sender<Hold>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socket {
    fn before(engine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (hold, held) = watch::channel(Hold::Nothing);
        let listener = UnixListener::bind(folder.path().join("engine.sock")).unwrap();
        let engine = PathBuf::from(engine);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(hand_on(near, engine.clone(), held.clone()));
            }
        });
        Self { folder, hold, task }
    }

    fn path(&self) -> String {
        let path = self.folder.path().join("engine.sock");
        path.display().to_string()
    }

    fn holds(&self, what: Hold) {
        self.hold.send_replace(what);
    }
}

async fn hand_on(near: UnixStream, engine: PathBuf, hold: watch::Receiver<Hold>) {
    let Ok(far) = UnixStream::connect(engine).await else {
        return;
    };
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    let (mut of_up, mut of_down) = (hold.clone(), hold);
    let answered = tokio::sync::Notify::new();
    let up = async {
        let mut buffer = vec![0; 64 << 10];
        let mut late = false;
        while let Ok(count @ 1..) = from_near.read(&mut buffer).await {
            let asked = &buffer[..count];
            late |= of_up.borrow().keeps(asked);
            if of_up.wait_for(|hold| !hold.keeps(asked)).await.is_err() {
                break;
            }
            // What was answered before was another request.
            let _ = tokio::time::timeout(Duration::ZERO, answered.notified()).await;
            if to_far.write_all(asked).await.is_err() {
                break;
            }
        }
        // The engine gives up what nobody seems to wait for, if it sees that soon enough.
        if late {
            answered.notified().await;
        }
        // The end of a hijacked input is half a close.
        let _ = to_far.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_far.read(&mut buffer).await {
            let free = of_down.wait_for(|hold| *hold != Hold::Everything);
            if free.await.is_err() {
                break;
            }
            answered.notify_one();
            // Read to its end even when nobody takes it any more.
            let _ = to_near.write_all(&buffer[..count]).await;
        }
        answered.notify_one();
        let _ = to_near.shutdown().await;
    };
    tokio::join!(up, down);
}

fn down(report: &pb::NodeReport) -> Option<&pb::Condition> {
    let mut conditions = report.conditions.iter();
    conditions.find(|condition| condition.kind == "engine_down")
}

/// Neither by a runner nor by a look at a sandbox, which may be under way.
async fn nothing_is_left(bench: &Bench) {
    let begun = Instant::now();
    loop {
        let left = bench.leftovers();
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < deadline(), "{left}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A runner that ends with `code` once it is let go.
fn waits_for_go(code: i32) -> String {
    format!("while [ ! -e _work/go ]; do sleep 0.1; done; exit {code}")
}

async fn ends_with(bench: &mut Bench, runner: &str, code: i32) {
    let exit = bench.phase(runner, Phase::Exited).await.exit;
    let exit = exit.expect("an end has an exit");
    assert_eq!((exit.code, exit.cause()), (Some(code), Cause::Finished));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_engine_is_told_and_all_goes_on_when_it_answers_again() {
    let on = On::Host;
    let socket = Socket::before(&on.socket());
    let path = socket.path();
    let flags = [&["--engine-socket", &path], &CALL[..]].concat();
    let mut bench = Bench::start_with(&on, "hung", &flags).await;
    let (job, ready, late) = (bench.name("job"), bench.name("ready"), bench.name("late"));
    let image = bench.image();
    bench.want(&job, run(&image)).await;
    bench.register(&job, &waits_for_go(42), "x").await;
    bench.phase(&job, Phase::Busy).await;
    bench.want(&ready, run(&image)).await;
    let waiting = bench.phase(&ready, Phase::Ready).await.container_id;
    let runs = "{{.Id}} {{.State.StartedAt}}";
    let before = bench.docker(&["inspect", "-f", runs, &job, &waiting]);

    socket.holds(Hold::Everything);
    let from = Instant::now();
    bench.want(&late, run(&image)).await;
    let report = bench.until_report(|report| down(report).is_some()).await;
    assert!(from.elapsed() < deadline() / 2, "{:?}", from.elapsed());
    let told = down(&report).expect("waited for it");
    assert!(told.detail.contains("gave no answer within"), "{told:?}");
    assert!(told.next_step.contains("restart"), "{told:?}");
    // What cannot be made is refused with the reason; the agent itself is well.
    let error = bench.phase(&late, Phase::Failed).await.error;
    assert_eq!(error.expect("an error").reason, "engine_down");
    bench.heartbeats(3).await;
    assert_eq!(bench.phase_now(&job), Some(Phase::Busy));
    assert_eq!(bench.phase_now(&ready), Some(Phase::Ready));
    // The job goes on, and ends while nobody can be told.
    bench.touch(&job, "/home/runner/_work/go");
    let begun = Instant::now();
    while bench
        .docker(&["inspect", "-f", "{{.State.Running}}", &job])
        .trim()
        == "true"
    {
        assert!(begun.elapsed() < deadline(), "it runs on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after = bench.docker(&["inspect", "-f", runs, &job, &waiting]);
    assert_eq!(before, after, "neither was made or started again");

    socket.holds(Hold::Nothing);
    ends_with(&mut bench, &job, 42).await;
    bench.until_report(|report| down(report).is_none()).await;
    bench.register(&ready, "exit 43", "x").await;
    ends_with(&mut bench, &ready, 43).await;
    let next = bench.name("next");
    bench.want(&next, run(&image)).await;
    bench.register(&next, "exit 44", "x").await;
    ends_with(&mut bench, &next, 44).await;
    nothing_is_left(&bench).await;
    bench.finish().await;
}

/// What the engine does to containers of this agent's runners from now on, as it tells
/// it. Its history is short, and others make some too.
struct History {
    told: Arc<Mutex<Vec<(String, String)>>>,
    follower: std::process::Child,
}

impl Drop for History {
    fn drop(&mut self) {
        let _ = self.follower.kill();
        let _ = self.follower.wait();
    }
}

impl History {
    fn follow(bench: &Bench) -> Self {
        let own = format!("label={}", bench.own_label());
        let filters = ["--filter", &own, "--filter", "label=longshore.role=runner"];
        let mut follower = Command::new("docker")
            .args(["events", "--since", &present()])
            .args(filters)
            .args(["--format", "{{.Action}} {{.Actor.Attributes.name}}"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let told = Arc::<Mutex<Vec<(String, String)>>>::default();
        let (output, list) = (follower.stdout.take().unwrap(), told.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((what, name)) = line.split_once(' ') {
                    list.lock().unwrap().push((what.into(), name.into()));
                }
            }
        });
        Self { told, follower }
    }

    /// Names of those to which this was done.
    fn of(&self, event: &str) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let of_event = told.iter().filter(|(what, _)| what == event);
        of_event.map(|(_, name)| name.clone()).collect()
    }

    async fn has(&self, event: &str) {
        let begun = Instant::now();
        while self.of(event).is_empty() {
            assert!(begun.elapsed() < deadline(), "no {event}: {:?}", self.told);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// As the engine reads it, to the nanosecond.
fn present() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap();
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_makes_after_nobody_waits_for_it_is_removed() {
    let on = On::Host;
    let socket = Socket::before(&on.socket());
    let path = socket.path();
    let flags = [&["--engine-socket", &path], &CALL[..]].concat();
    let mut bench = Bench::start_with(&on, "late", &flags).await;
    bench.looked().await;
    let image = bench.image();

    let warm = bench.name("warm");
    bench.want(&warm, run(&image)).await;
    bench.register(&warm, "exit 40", "x").await;
    ends_with(&mut bench, &warm, 40).await;

    // It answers everything but the making of containers.
    let history = History::follow(&bench);
    let first = bench.name("first");
    socket.holds(Hold::Requests("/containers/create"));
    bench.want(&first, run(&image)).await;
    let error = bench
        .phase(&first, Phase::Failed)
        .await
        .error
        .expect("an error");
    assert_eq!(error.reason, "engine_down", "{error:?}");
    assert!(error.detail.contains("making container"), "{error:?}");
    let report = bench.until_report(|report| down(report).is_some()).await;
    let told = down(&report).expect("waited for it");
    assert!(told.detail.contains("making container"), "{told:?}");
    assert_eq!(history.of("create"), Vec::<String>::new());

    socket.holds(Hold::Nothing);
    history.has("create").await;
    history.has("destroy").await;
    bench.until_report(|report| down(report).is_none()).await;
    let made = history.of("create");
    assert_eq!(made.len(), 1, "late, and once");
    assert_eq!(history.of("destroy"), made);
    assert_eq!(history.of("start"), Vec::<String>::new());
    nothing_is_left(&bench).await;

    // A network made late is the next one's, not lost. Two are made at the start.
    let used = [bench.name("one"), bench.name("two")];
    for runner in &used {
        bench.want(runner, run(&image)).await;
        bench.phase(runner, Phase::Ready).await;
    }
    let (other, last) = (bench.name("other"), bench.name("last"));
    let networks = |bench: &Bench| {
        let own = format!("label={}", bench.own_label());
        let list = bench.docker(&["network", "ls", "-q", "--filter", &own]);
        list.lines().count()
    };
    let before = networks(&bench);
    socket.holds(Hold::Requests("/networks/create"));
    bench.want(&other, run(&image)).await;
    let error = bench.phase(&other, Phase::Failed).await.error;
    let error = error.expect("an error");
    assert!(error.detail.contains("making network"), "{error:?}");
    socket.holds(Hold::Nothing);
    let begun = Instant::now();
    while networks(&bench) == before {
        assert!(begun.elapsed() < deadline(), "the engine does not make it");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.want(&last, run(&image)).await;
    bench.register(&last, "exit 45", "x").await;
    ends_with(&mut bench, &last, 45).await;
    assert_eq!(networks(&bench), before + 1, "the one that was made late");
    for runner in &used {
        bench.let_go(runner).await;
    }
    bench.finish().await;
}
