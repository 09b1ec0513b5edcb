//! Bad luck of a host: its image deleted, its addresses taken, its engine slow, its power cut.
//! Work goes on, or waits with the reason in the node's report.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::on::On;
use crate::reboot;
use crate::support::{self, Bench, docker, run};

/// As small as a runner gets, so that several and a standby have room on two processors.
fn small(image: &str) -> support::Desired {
    let mut desired = run(image);
    if let support::Desired::Run(spec) = &mut desired
        && let Some(resources) = &mut spec.resources
    {
        resources.cpu_millis = 250;
    }
    desired
}

/// A job through all of its life, with an exit code that nothing else has.
async fn a_job_works(bench: &mut Bench, what: &str, image: &str) {
    let runner = bench.name(what);
    bench.want(&runner, run(image)).await;
    bench.register(&runner, "echo fine; exit 41", "x").await;
    let ended = bench.phase(&runner, Phase::Exited).await;
    let exit = ended.exit.expect("an end has an exit");
    assert_eq!((exit.code, exit.cause()), (Some(41), Cause::Finished));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_deleted_under_its_slots_is_named_until_it_is_back() {
    let on = On::own_docker();
    let standby = ["--standby-enabled", "true", "--standby-floor", "1"];
    let mut bench = Bench::start_with(&on, "noimage", &standby).await;
    let (early, late) = (bench.name("early"), bench.name("late"));
    let image = bench.image();
    bench.want(&early, run(&image)).await;
    bench.phase(&early, Phase::Ready).await;
    bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;

    bench.docker(&["rmi", "-f", &image]);
    // What was made of it goes on.
    bench.register(&early, "echo fine; exit 41", "x").await;
    let exit = bench.phase(&early, Phase::Exited).await.exit;
    assert_eq!(exit.and_then(|exit| exit.code), Some(41));
    // What is not there cannot be promised by what stands by: that one goes.
    bench.want(&late, run(&image)).await;
    let failed = bench.phase(&late, Phase::Failed).await;
    let error = failed.error.expect("an error");
    assert_eq!(error.reason, "image_unavailable", "{error:?}");
    assert!(error.detail.contains(&image), "{error:?}");

    on.docker().load(&image);
    a_job_works(&mut bench, "again", &image).await;
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_network_a_runner_is_refused_with_the_setting_and_the_next_one_works() {
    // Two networks, and somebody else has the first.
    const RANGE: &str = "10.96.0.0/28";
    let on = On::own_docker();
    let host = on.docker().host();
    let lan = ["--subnet", "10.96.0.0/29", "lan"];
    docker(&[&["-H", &host, "network", "create"], &lan[..]].concat());
    let mut bench = Bench::start_with(&on, "nonet", &["--slots-cidr", RANGE]).await;
    let (first, refused) = (bench.name("first"), bench.name("refused"));
    let image = bench.image();
    bench.want(&first, run(&image)).await;
    let ready = bench.phase(&first, Phase::Ready).await;
    assert!(bench.gateway(&ready.container_id).starts_with("10.96.0."));
    bench.want(&refused, run(&image)).await;
    let failed = bench.phase(&refused, Phase::Failed).await;
    let error = failed.error.expect("an error");
    assert_eq!(error.reason, "out_of_slots", "{error:?}");
    assert!(error.detail.contains("slots_cidr"), "{error:?}");
    let told = |report: &pb::NodeReport| {
        let mut conditions = report.conditions.iter();
        conditions.any(|c| c.kind == "out_of_slots" && c.next_step.contains("slots_cidr"))
    };
    bench.until_report(told).await;
    // Given back by whoever had it, the other one is used without anybody's doing, beside
    // the one that is in use.
    docker(&["-H", &host, "network", "rm", "lan"]);
    a_job_works(&mut bench, "next", &image).await;
    bench.until_report(|report| !told(report)).await;
    assert_eq!(bench.phase_now(&first), Some(Phase::Ready));
    bench.let_go(&first).await;
    bench.finish().await;
}

/// As an engine leaves it that is killed while it makes a network: it does not know the bridge
/// again, and would neither make it as asked nor take it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_the_engine_forgot_goes_with_its_network() {
    let on = On::own_docker();
    let mut bench = Bench::start_with(&on, "bridge", &[]).await;
    let image = bench.image();
    let prefix = bench.instance().bridge_prefix();
    // Two networks are made beforehand; the next, and one that nobody will ask for.
    for index in [2, 200] {
        on.must(&format!(
            "ip link add {prefix}{index} type bridge && ip link set {prefix}{index} up"
        ));
    }
    let runners: Vec<String> = (0..3).map(|n| bench.name(&format!("r{n}"))).collect();
    for runner in &runners {
        bench.want(runner, small(&image)).await;
        bench.phase(runner, Phase::Ready).await;
    }
    for runner in &runners {
        bench.let_go(runner).await;
    }
    bench.finish().await;
}

/// A socket that hands every answer of the engine on a while later.
struct SlowSocket {
    folder: tempfile::TempDir,
    delay_ms: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for SlowSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SlowSocket {
    fn before(engine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let delay_ms = Arc::new(AtomicU64::new(0));
        let listener = UnixListener::bind(folder.path().join("slow.sock")).unwrap();
        let (engine, delay) = (PathBuf::from(engine), delay_ms.clone());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(hand_on(near, engine.clone(), delay.clone()));
            }
        });
        Self {
            folder,
            delay_ms,
            task,
        }
    }

    fn path(&self) -> String {
        self.folder.path().join("slow.sock").display().to_string()
    }
}

async fn hand_on(near: UnixStream, engine: PathBuf, delay: Arc<AtomicU64>) {
    let Ok(far) = UnixStream::connect(engine).await else {
        return;
    };
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from_near, &mut to_far).await;
        // The end of a hijacked input is half a close.
        let _ = to_far.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_far.read(&mut buffer).await {
            let pause = Duration::from_millis(delay.load(Ordering::Relaxed));
            tokio::time::sleep(pause).await;
            if to_near.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        let _ = to_near.shutdown().await;
    };
    tokio::join!(up, down);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_engine_makes_runners_slow_and_nothing_worse() {
    const DELAY: Duration = Duration::from_millis(400);
    let on = On::Host;
    let slow = SlowSocket::before(&on.socket());
    let socket = slow.path();
    let mut bench = Bench::start_with(&on, "slow", &["--engine-socket", &socket]).await;
    let image = bench.image();
    a_job_works(&mut bench, "before", &image).await;

    let delay = u64::try_from(DELAY.as_millis()).unwrap();
    slow.delay_ms.store(delay, Ordering::Relaxed);
    let (runner, killed) = (bench.name("slow"), bench.name("killed"));
    let from = Instant::now();
    bench.want(&runner, run(&image)).await;
    bench.phase(&runner, Phase::Ready).await;
    assert!(from.elapsed() > 3 * DELAY, "it was not slow at all");
    bench
        .register(
            &runner,
            "while [ ! -e _work/go ]; do sleep 0.1; done; exit 42",
            "x",
        )
        .await;
    bench.phase(&runner, Phase::Busy).await;
    // Others are made and ended beside it.
    bench.want(&killed, run(&image)).await;
    bench
        .register(&killed, "while :; do sleep 0.2; done", "x")
        .await;
    bench.phase(&killed, Phase::Busy).await;
    let exit = bench.let_go(&killed).await;
    assert_eq!(exit.cause(), Cause::Killed, "{exit:?}");
    bench.touch(&runner, "/home/runner/_work/go");
    let exit = bench.phase(&runner, Phase::Exited).await.exit;
    let exit = exit.expect("an end has an exit");
    assert_eq!((exit.code, exit.cause()), (Some(42), Cause::Finished));
    let report = bench.until_report(|_| true).await;
    assert_eq!(report.conditions, Vec::new(), "slow is not down");
    assert_eq!(bench.leftovers(), "");
    slow.delay_ms.store(0, Ordering::Relaxed);
    bench.finish().await;
}

fn loop_devices_under(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/block").unwrap().flatten();
    let under = |entry: &std::fs::DirEntry| {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file"));
        file.is_ok_and(|file| Path::new(file.trim()).starts_with(folder))
    };
    entries.filter(under).map(|entry| entry.path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_the_lost_job_is_told_and_nothing_old_is_in_the_way() {
    let on = On::own_docker();
    let flags = [
        "--standby-enabled",
        "true",
        "--standby-floor",
        "1",
        "--job-disk",
        "64MiB",
    ];
    let mut bench = Bench::start_with(&on, "reboot", &flags).await;
    let (lost, waiting) = (bench.name("lost"), bench.name("waiting"));
    let image = bench.image();
    bench.want(&lost, small(&image)).await;
    bench
        .register(&lost, "while :; do sleep 0.2; done", "x")
        .await;
    bench.phase(&lost, Phase::Busy).await;
    bench.want(&waiting, small(&image)).await;
    bench.phase(&waiting, Phase::Ready).await;
    bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;
    let old = bench.docker(&["ps", "-aq", "--no-trunc"]);
    let work = bench.state_dir().join("work");
    let old_files = support::files_in(&work);
    assert!(old_files.len() >= 3, "{old_files:?}");
    assert!(old.lines().count() >= 3, "{old}");

    bench.kill_agent();
    reboot::power_cut(&on, &bench.control_group());
    assert_eq!(
        loop_devices_under(&bench.state_dir()),
        Vec::<PathBuf>::new()
    );
    on.docker().start_again();
    bench.start_agent().await;
    // Reported before any intent names it: the job is over, and that it was not its own end.
    let ended = bench.phase(&lost, Phase::Exited).await;
    let exit = ended.exit.expect("an end has an exit");
    assert_eq!(exit.cause(), Cause::Engine, "{exit:?}");
    assert!(exit.detail.contains("restarted"), "{exit:?}");
    // The one that had no registration yet is made again by the same intent.
    bench.want(&waiting, small(&image)).await;
    let again = bench.phase(&waiting, Phase::Ready).await;
    assert!(!old.contains(&again.container_id), "{again:?}");
    bench.register(&waiting, "exit 43", "x").await;
    let exit = bench.phase(&waiting, Phase::Exited).await.exit;
    assert_eq!(exit.and_then(|exit| exit.code), Some(43));
    // The walls stand again, before anything was handed over.
    bench.table_is_back().await;
    let now = bench.docker(&["ps", "-aq", "--no-trunc"]);
    for id in old.lines() {
        assert!(!now.contains(id), "{id} is still there");
    }
    a_job_works(&mut bench, "next", &image).await;
    let files = support::files_in(&work);
    assert!(
        files.iter().all(|file| !old_files.contains(file)),
        "{files:?}"
    );
    bench.finish().await;
}
