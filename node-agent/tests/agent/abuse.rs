//! Jobs that take what they can: memory, processes, disk, time. Each is a job in
//! the real sandbox; host, agent and neighbours go on, and the true cause is told.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;
use longshore_proto::v1::runner_intent::Desired;

use crate::on::On;
use crate::support::{Bench, files_in, kill, run};

fn exit_of(runner: pb::ObservedRunner) -> pb::RunnerExit {
    runner.exit.expect("an end has an exit")
}

fn changed(image: &str, change: impl FnOnce(&mut pb::RunnerSpec)) -> Desired {
    let mut desired = run(image);
    if let Desired::Run(spec) = &mut desired {
        change(spec);
    }
    desired
}

/// Runs a job beside what goes on, to its end.
async fn a_neighbour_works(bench: &mut Bench) {
    let neighbour = bench.name("neighbour");
    bench.want(&neighbour, run(&bench.image())).await;
    bench.register(&neighbour, "echo fine; exit 33", "x").await;
    let exit = exit_of(bench.phase(&neighbour, Phase::Exited).await);
    assert_eq!((exit.code, exit.cause()), (Some(33), Cause::Finished));
}

fn loop_devices_of(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let file = entry.path().join("loop/backing_file");
        if let Ok(text) = std::fs::read_to_string(file)
            && text.starts_with(&*folder.to_string_lossy())
        {
            found.push(text);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_work_folder_and_a_filled_image_are_told_and_harm_nobody() {
    let mut bench = Bench::start_with(&On::Host, "disk", &["--job-disk", "64MiB"]).await;
    let (full, layer) = (bench.name("full"), bench.name("layer"));
    bench
        .until_capability(|capability| {
            let mut properties = capability.properties.iter();
            properties.any(|p| p.name == "disk_quota")
        })
        .await;
    assert!(bench.guarantees("disk_quota"), "loop devices and e2fsprogs");
    let writable = changed(&bench.image(), |spec| spec.profile = "standard".into());
    bench.want(&full, run(&bench.image())).await;
    bench.want(&layer, writable).await;
    // A file system of its own: as large as it says, the job's, and nothing of a host in it.
    let job = "df -k _work | tail -n 1; ls -A _work | grep -v _tmp; \
               dd if=/dev/zero of=_work/fill bs=1M; echo dd $?; exit 37";
    let wish = pb::LogSubscription {
        runner: full.clone(),
        offset: 0,
    };
    bench.watch_output(wish).await;
    bench.register(&full, job, "x").await;
    let exit = exit_of(bench.phase(&full, Phase::Exited).await);
    assert_eq!((exit.code, exit.cause()), (Some(37), Cause::DiskFull));
    assert!(exit.detail.contains("64 MiB, job_disk"), "{}", exit.detail);
    let said = bench.output(&full).await;
    assert!(
        said.contains("No space left on device") && said.contains("dd 1"),
        "{said}"
    );

    // Root of the container fills the image, which has no size: it is watched.
    bench
        .register(&layer, "while :; do sleep 0.2; done", "x")
        .await;
    bench.phase(&layer, Phase::Busy).await;
    let fill = "dd if=/dev/zero of=/fill bs=1M count=100 2>/dev/null";
    bench.docker(&["exec", "-u", "0", &layer, "sh", "-c", fill]);
    let exit = exit_of(bench.phase(&layer, Phase::Exited).await);
    assert_eq!(exit.cause(), Cause::DiskFull, "{exit:?}");
    assert!(
        exit.detail.contains("more than job_disk"),
        "{}",
        exit.detail
    );

    a_neighbour_works(&mut bench).await;
    assert_eq!(bench.leftovers(), "");
    let folder = bench.state_dir().join("work");
    assert_eq!(files_in(&folder), Vec::<String>::new());
    assert_eq!(loop_devices_of(&folder), Vec::<String>::new());
    bench.finish().await;
}

/// An engine loses count of what its volumes mount when containers outlive it: what the agent
/// mounted itself stays, holds the job to its size, and goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sized_work_folder_outlives_its_engine_and_goes_with_its_job() {
    let on = On::docker_with_live_restore();
    let mut bench = Bench::start_with(&on, "sized", &["--job-disk", "64MiB"]).await;
    bench
        .until_capability(|capability| {
            let mut properties = capability.properties.iter();
            properties.any(|p| p.name == "disk_quota")
        })
        .await;
    assert!(bench.guarantees("disk_quota"));
    let runner = bench.name("full");
    bench.want(&runner, run(&bench.image())).await;
    let job = "while [ ! -e _work/go ]; do sleep 0.1; done; \
               dd if=/dev/zero of=_work/fill bs=1M; exit 37";
    bench.register(&runner, job, "x").await;
    let busy = bench.phase(&runner, Phase::Busy).await;
    on.docker().kill();
    let is_down = |report: &pb::NodeReport| {
        let mut conditions = report.conditions.iter();
        conditions.any(|condition| condition.kind == "engine_down")
    };
    bench.until_report(is_down).await;
    on.docker().start_again();
    bench.until_report(|report| !is_down(report)).await;
    bench.touch(&runner, "/home/runner/_work/go");
    let ended = bench.phase(&runner, Phase::Exited).await;
    assert_eq!(ended.container_id, busy.container_id);
    let exit = exit_of(ended);
    assert_eq!((exit.code, exit.cause()), (Some(37), Cause::DiskFull));

    a_neighbour_works(&mut bench).await;
    // The engine that came back is looked at anew; that look goes by itself.
    let deadline = Instant::now() + Duration::from_secs(90);
    while !bench.leftovers().is_empty() {
        assert!(Instant::now() < deadline, "{}", bench.leftovers());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let folder = bench.state_dir().join("work");
    assert_eq!(files_in(&folder), Vec::<String>::new());
    assert_eq!(loop_devices_of(&folder), Vec::<String>::new());
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_hard_size_the_work_folder_is_watched_and_the_node_says_so() {
    let tools = tempfile::tempdir().unwrap();
    let broken = tools.path().join("mkfs.ext4");
    std::fs::write(&broken, "#!/bin/sh\necho no such luck >&2\nexit 1\n").unwrap();
    let runnable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&broken, runnable).unwrap();
    let mut bench = Bench::start_with(&On::Host, "watched", &["--job-disk", "64MiB"]).await;
    bench.prefer_tools(tools.path());
    bench.kill_agent();
    bench.start_agent().await;
    bench
        .until_capability(|capability| {
            let mut properties = capability.properties.iter();
            properties.any(|p| p.name == "disk_quota" && p.evidence.contains("no such luck"))
        })
        .await;
    assert!(!bench.guarantees("disk_quota"));
    let (small, large) = (bench.name("small"), bench.name("large"));
    bench.want(&small, run(&bench.image())).await;
    bench.want(&large, run(&bench.image())).await;
    let hold = "dd if=/dev/zero of=_work/some bs=1M count=40 2>/dev/null; \
                while [ ! -e _work/go ]; do sleep 0.1; done; exit 34";
    bench.register(&small, hold, "x").await;
    // Hidden behind links, and a hundred folders deep.
    let grow = "cd _work; for n in $(seq 100); do mkdir d; cd d; done; \
                dd if=/dev/zero of=fill bs=1M count=100 2>/dev/null; \
                while :; do sleep 0.2; done";
    bench.register(&large, grow, "x").await;
    let exit = exit_of(bench.phase(&large, Phase::Exited).await);
    assert_eq!(exit.cause(), Cause::DiskFull, "{exit:?}");
    assert!(
        exit.detail.contains("job_disk of this node (64 MiB)"),
        "{}",
        exit.detail
    );
    // The one that keeps to its limit was left alone.
    bench.touch(&small, "/home/runner/_work/go");
    let exit = exit_of(bench.phase(&small, Phase::Exited).await);
    assert_eq!((exit.code, exit.cause()), (Some(34), Cause::Finished));
    bench.finish().await;
}

/// The score of a process whose command line has this word, in a sandbox.
fn score_of(bench: &Bench, container: &str, word: &str) -> i32 {
    let list = bench.docker(&["top", container, "-eo", "pid,args"]);
    let line = list.lines().find(|line| line.contains(word));
    let pid = line
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or_else(|| panic!("{word} is not in\n{list}"));
    score(pid)
}

fn score(pid: &str) -> i32 {
    let file = format!("/proc/{pid}/oom_score_adj");
    std::fs::read_to_string(file)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn may_lower_scores() -> bool {
    const SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let rights = u64::from_str_radix(line.expect("rights").trim(), 16).unwrap();
    rights >> SYS_RESOURCE & 1 == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_kills_the_step_before_the_runner_before_the_agent() {
    let mut bench = Bench::start(&On::Host, "memory").await;
    let runner = bench.name("hog");
    bench.want(&runner, run(&bench.image())).await;
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    bench.watch_output(wish).await;
    // As the real worker does it for each step.
    let step = "echo $PIPELINE_JOB_OOMSCOREADJ > /proc/self/oom_score_adj; exec";
    let job = format!(
        "sh -c '{step} sleep 4321' & \
         while [ ! -e _work/go ]; do sleep 0.1; done; \
         sh -c '{step} dd if=/dev/zero of=/dev/null bs=400M count=1'; echo step ended $?; \
         while [ ! -e _work/end ]; do sleep 0.1; done; exit 34"
    );
    bench.register(&runner, &job, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    let of_step = score_of(&bench, &runner, "sleep 4321");
    let of_listener = score_of(&bench, &runner, "Runner.Listener");
    let of_agent = score(&bench.agent_pid().to_string());
    assert_eq!((of_step, of_listener), (900, 500));
    // Lowering it takes a right that containers of root lack.
    let expected = if may_lower_scores() {
        -500
    } else {
        score("self")
    };
    assert_eq!(of_agent, expected);
    assert!(of_agent < of_listener);

    bench.touch(&runner, "/home/runner/_work/go");
    bench.output_has(&runner, "step ended 137").await;
    // The program that tells GitHub lives: its job can say that the step was killed.
    assert!(bench.until(&runner, |_| true).await.worker);
    bench.touch(&runner, "/home/runner/_work/end");
    let exit = exit_of(bench.phase(&runner, Phase::Exited).await);
    assert_eq!((exit.code, exit.cause()), (Some(34), Cause::OutOfMemory));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_and_full_memory_folders_end_where_they_began() {
    let mut bench = Bench::start(&On::Host, "bomb").await;
    let (bomb, filler) = (bench.name("bomb"), bench.name("filler"));
    let slow = changed(&bench.image(), |spec| {
        if let Some(resources) = &mut spec.resources {
            resources.cpu_millis = 250;
        }
    });
    bench.want(&bomb, slow).await;
    bench.want(&filler, run(&bench.image())).await;
    let wish = pb::LogSubscription {
        runner: filler.clone(),
        offset: 0,
    };
    bench.watch_output(wish).await;
    let explode = "boom() { boom | boom & }; boom; while :; do sleep 0.2; done";
    bench.register(&bomb, explode, "x").await;
    bench.phase(&bomb, Phase::Busy).await;

    let fill = "for f in /tmp/f /dev/shm/f /home/runner/f; do \
                dd if=/dev/zero of=$f bs=1M; echo filled $f $?; done; exit 35";
    bench.register(&filler, fill, "x").await;
    let exit = exit_of(bench.phase(&filler, Phase::Exited).await);
    // Half of the memory at most: the job's end is its own.
    assert_eq!((exit.code, exit.cause()), (Some(35), Cause::Finished));
    let said = bench.output(&filler).await;
    assert_eq!(said.matches("No space left on device").count(), 3, "{said}");

    a_neighbour_works(&mut bench).await;
    let processes = bench.docker(&["inspect", "-f", "{{.HostConfig.PidsLimit}}", &bomb]);
    assert_eq!(processes.trim(), "2048");
    bench
        .want(&bomb, kill("it explodes", Duration::from_millis(500)))
        .await;
    let exit = exit_of(bench.phase(&bomb, Phase::Exited).await);
    // Killed by our word; with thousands of shells the memory limit may be first.
    assert!(
        matches!(exit.cause(), Cause::Killed | Cause::OutOfMemory),
        "{exit:?}"
    );
    assert_eq!(bench.leftovers(), "", "not one process");
    bench.finish().await;
}

/// Command lines of all processes of the host.
fn anybody_says(word: &str) -> bool {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(word))
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_signals_and_a_session_left_behind_end_with_the_sandbox() {
    let mut bench = Bench::start(&On::Host, "deaf").await;
    let runner = bench.name("deaf");
    bench.want(&runner, run(&bench.image())).await;
    let marker = format!("{}.5", rand::random::<u32>());
    let job = format!(
        "trap '' INT TERM HUP QUIT; \
         setsid sh -c \"trap '' INT TERM HUP; while :; do sleep {marker}; done\" & \
         while :; do sleep 0.2; done"
    );
    bench.register(&runner, &job, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !anybody_says(&format!("sleep\0{marker}")) {
        assert!(Instant::now() < deadline, "the daemon never ran");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grace = Duration::from_secs(2);
    let told = Instant::now();
    bench.want(&runner, kill("enough", grace)).await;
    let exit = exit_of(bench.phase(&runner, Phase::Exited).await);
    assert_eq!(
        (exit.cause(), exit.detail.as_str()),
        (Cause::Killed, "enough")
    );
    assert!(
        told.elapsed() >= grace,
        "it had its grace: {:?}",
        told.elapsed()
    );
    assert!(!anybody_says(&marker));
    assert_eq!(bench.leftovers(), "");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_exit_code_of_the_runner_program_has_its_cause() {
    let mut bench = Bench::start(&On::Host, "codes").await;
    for (code, cause) in [
        (0, Cause::Finished),
        (1, Cause::RunnerRefused),
        (2, Cause::RunnerRefused),
        (3, Cause::RunnerRefused),
        (4, Cause::RunnerRefused),
        (5, Cause::SessionConflict),
        (6, Cause::RunnerRefused),
        (7, Cause::VersionDeprecated),
        (100, Cause::Finished),
        (102, Cause::Finished),
        (103, Cause::Finished),
    ] {
        let runner = bench.name("code");
        bench.want(&runner, run(&bench.image())).await;
        // Before it listens, as the real one that is refused: no worker was ever seen.
        bench.register(&runner, &format!("exit {code}"), "x").await;
        let exit = exit_of(bench.phase(&runner, Phase::Exited).await);
        assert_eq!((exit.code, exit.cause()), (Some(code), cause), "{exit:?}");
    }
    bench.finish().await;
}

/// Nothing of these tests needs more than the programs of a Debian host.
#[test]
fn the_programs_are_there() {
    for program in ["mkfs.ext4", "debugfs"] {
        let search = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let found = Command::new(program).env("PATH", search).arg("-V").output();
        assert!(found.is_ok(), "{program}: apt-get install e2fsprogs");
    }
}
