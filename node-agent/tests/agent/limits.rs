//! Each limit of a sandbox, read from its control group, met from inside and told; and the
//! host's AppArmor around it, where there is one. Both versions of control groups.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;
use longshore_proto::v1::runner_intent::Desired;

use crate::on::On;
use crate::support::{Bench, deadline, random, run};

const MIB: u64 = 1 << 20;
const LOOK: Duration = Duration::from_millis(100);

fn with(image: &str, cpu_millis: u32, memory_bytes: u64) -> Desired {
    let mut desired = run(image);
    if let Desired::Run(spec) = &mut desired {
        spec.resources = Some(pb::Resources {
            cpu_millis,
            memory_bytes,
            gpus: 0,
        });
    }
    desired
}

/// The control group of a live sandbox.
struct Group {
    pid: String,
}

impl Group {
    fn of(bench: &Bench, container: &str) -> Self {
        let pid = bench.docker(&["inspect", "-f", "{{.State.Pid}}", container]);
        Self {
            pid: pid.trim().to_owned(),
        }
    }

    /// Its folder in the hierarchy that this controller is in.
    fn folder(&self, controller: &str) -> PathBuf {
        let told = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap();
        let mut unified = None;
        for line in told.lines() {
            // Number of the hierarchy, its controllers, the group.
            let (_, told) = line.split_once(':').unwrap();
            let (names, path) = told.split_once(':').unwrap();
            let path = path.trim_start_matches('/');
            if names.split(',').any(|name| name == controller) {
                return Path::new("/sys/fs/cgroup").join(names).join(path);
            }
            if names.is_empty() {
                unified = Some(Path::new("/sys/fs/cgroup").join(path));
            }
        }
        unified.unwrap_or_else(|| panic!("no control group of {controller}: {told}"))
    }

    /// The first of these files of a controller that is there: of version 2, then of version 1.
    fn read(&self, controller: &str, files: [&str; 2]) -> String {
        let folder = self.folder(controller);
        let text = files
            .iter()
            .find_map(|file| std::fs::read_to_string(folder.join(file)).ok());
        let text = text.unwrap_or_else(|| panic!("none of {files:?} in {}", folder.display()));
        text.trim().to_owned()
    }

    /// A line `name number` of such a file.
    fn count(&self, controller: &str, file: &str, name: &str) -> u64 {
        let text = self.read(controller, [file, file]);
        let mut lines = text.lines().map(|line| line.split_whitespace());
        let found = lines.find_map(|mut words| {
            (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
        });
        found.unwrap_or_else(|| panic!("{file} has no {name}: {text}"))
    }

    fn cpu(&self) -> Duration {
        let folder = self.folder("cpuacct");
        match std::fs::read_to_string(folder.join("cpuacct.usage")) {
            Ok(text) => Duration::from_nanos(text.trim().parse().unwrap()),
            Err(_) => Duration::from_micros(self.count("cpu", "cpu.stat", "usage_usec")),
        }
    }
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < deadline(), "waited in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// A runner that works on this job.
async fn working(bench: &mut Bench, what: &str, desired: Desired, job: &str) -> String {
    let runner = bench.name(what);
    bench.want(&runner, desired).await;
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    bench.watch_output(wish).await;
    bench.register(&runner, job, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    runner
}

async fn ended(bench: &mut Bench, runner: &str) -> pb::RunnerExit {
    let exited = bench.phase(runner, Phase::Exited).await;
    exited.exit.expect("an end has an exit")
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_memory_and_cpu_end_where_the_sandbox_says() {
    let mut bench = Bench::start(&On::Host, "limits").await;
    for name in ["process_limit", "memory_limit", "no_swap", "cpu_limit"] {
        assert!(bench.guarantees(name), "{:?}", bench.property(name));
    }
    a_quarter_of_a_cpu(&mut bench).await;
    no_process_too_many(&mut bench).await;
    memory_to_its_end(&mut bench).await;
    assert_eq!(bench.leftovers(), "");
    bench.finish().await;
}

/// Two loops that would take two processors.
async fn a_quarter_of_a_cpu(bench: &mut Bench) {
    let job = "loop() { while [ ! -e _work/end ]; do :; done; }; loop & loop; exit 31";
    let desired = with(&bench.image(), 250, 256 * MIB);
    let runner = working(bench, "cpu", desired, job).await;
    let group = Group::of(bench, &runner);
    let quota = group.read("cpu", ["cpu.max", "cpu.cfs_quota_us"]);
    assert_eq!(quota.split_whitespace().next(), Some("25000"), "{quota}");

    let throttled = || group.count("cpu", "cpu.stat", "nr_throttled");
    let (begin, used, before) = (Instant::now(), group.cpu(), throttled());
    // Ten times a second it has had its part and waits.
    until("it is held back", || {
        throttled() >= before + 20 && begin.elapsed() >= Duration::from_secs(3)
    })
    .await;
    let used = (group.cpu() - used).as_secs_f64();
    let part = used / begin.elapsed().as_secs_f64();
    // One period more than its part at most.
    assert!(part < 0.25 * 1.2, "it had {part:.3} of a processor");
    assert!(used > 0.0);
    bench.touch(&runner, "/home/runner/_work/end");
    assert_eq!(ended(bench, &runner).await.code, Some(31));
}

/// One after the other, each waiting to read what nobody writes, until there may be no more.
async fn no_process_too_many(bench: &mut Bench) {
    let job = "mkfifo _work/never; \
               (n=0; while [ $n -lt 2100 ]; do (read x <_work/never) & n=$((n+1)); done; echo all of them); \
               echo crowded; while [ ! -e _work/end ]; do :; done; exit 32";
    // Room for all of them: it is not memory that ends it.
    let desired = with(&bench.image(), 1_000, 1_024 * MIB);
    let runner = working(bench, "crowd", desired, job).await;
    let group = Group::of(bench, &runner);
    assert_eq!(group.read("pids", ["pids.max", "pids.max"]), "2048");
    bench.output_has(&runner, "crowded").await;
    assert!(!bench.output_so_far(&runner).contains("all of them"));
    assert!(group.count("pids", "pids.events", "max") > 0);
    let current = group.read("pids", ["pids.current", "pids.current"]);
    let current: u64 = current.parse().unwrap();
    assert!((2_000..=2_048).contains(&current), "{current} processes");
    bench.touch(&runner, "/home/runner/_work/end");
    let exit = ended(bench, &runner).await;
    assert_eq!((exit.code, exit.cause()), (Some(32), Cause::Finished));
}

/// A step takes more than there is: it dies, its runner lives to say so, and so does the agent.
async fn memory_to_its_end(bench: &mut Bench) {
    // As the real worker does it for each step.
    let step = "echo $PIPELINE_JOB_OOMSCOREADJ > /proc/self/oom_score_adj; exec";
    let job = format!(
        "while [ ! -e _work/go ]; do sleep 0.1; done; \
         sh -c '{step} dd if=/dev/zero of=/dev/null bs=400M count=1'; echo step ended $?; \
         while [ ! -e _work/end ]; do sleep 0.1; done; exit 0"
    );
    let desired = with(&bench.image(), 1_000, 256 * MIB);
    let runner = working(bench, "hog", desired, &job).await;
    let group = Group::of(bench, &runner);
    let limit = (256 * MIB).to_string();
    assert_eq!(
        group.read("memory", ["memory.max", "memory.limit_in_bytes"]),
        limit
    );
    let swap = group.read("memory", ["memory.swap.max", "memory.memsw.limit_in_bytes"]);
    // Version 1 counts both together.
    assert!(swap == "0" || swap == limit, "{swap}");
    bench.touch(&runner, "/home/runner/_work/go");
    bench.output_has(&runner, "step ended 137").await;
    bench.touch(&runner, "/home/runner/_work/end");
    let exit = ended(bench, &runner).await;
    assert_eq!((exit.code, exit.cause()), (Some(0), Cause::OutOfMemory));
    let usage = exit.usage.expect("usage is always told");
    assert!(usage.known);
    // Of the group around the container's own, which holds a few pages itself.
    let peak = usage.peak_memory_bytes;
    assert!((128 * MIB..=257 * MIB).contains(&peak), "{usage:?}");
}

/// In a container's process namespace, and under none of the host's rules.
struct Outsider(Child);

impl Outsider {
    fn in_the_midst_of(bench: &Bench, container: &str) -> Self {
        let line = "echo $$ >/tmp/outsider.new; mv /tmp/outsider.new /tmp/outsider; exec sleep 600";
        let child = bench.inside(container, line).stdin(Stdio::null()).spawn();
        Self(child.unwrap())
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        // nsenter waits for the other, which goes with the container.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A container as closed, but for AppArmor.
struct Unconfined(String);

impl Unconfined {
    fn start(bench: &Bench) -> Self {
        let name = format!("ls-armor-control-{}", random());
        let image = bench.image();
        let words = "run -d --rm --network none --user 1001:1001 --cap-drop ALL \
                     --security-opt no-new-privileges --security-opt apparmor=unconfined --name";
        let mut words: Vec<&str> = words.split_whitespace().collect();
        words.extend([&*name, &*image, "sleep", "600"]);
        let control = Self(name.clone());
        bench.docker(&words);
        control
    }
}

impl Drop for Unconfined {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "-f", &self.0]).output();
    }
}

/// What a process of a container is told when it sends a signal to one that is its own
/// user's and in its sight: users and namespaces allow it.
async fn signalled(bench: &Bench, container: &str) -> String {
    let _outsider = Outsider::in_the_midst_of(bench, container);
    let line = "[ -e /tmp/outsider ] || exit 9; kill -CONT $(cat /tmp/outsider) 2>&1 && echo sent";
    let said = std::cell::RefCell::new(String::new());
    until("the outsider has come", || {
        let told = Command::new("docker")
            .args(["exec", container, "/bin/sh", "-c", line])
            .output()
            .unwrap();
        *said.borrow_mut() = String::from_utf8_lossy(&told.stdout).trim().to_owned();
        told.status.code() != Some(9)
    })
    .await;
    said.into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn apparmor_is_in_force_around_a_sandbox_where_the_host_has_it() {
    let mut bench = Bench::start(&On::Host, "armor").await;
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let has = enabled.is_ok_and(|word| word.trim() == "Y");
    let told = bench.property("apparmor");
    assert_eq!(bench.guarantees("apparmor"), has, "{told:?}");

    let desired = with(&bench.image(), 1_000, 256 * MIB);
    let job = "while [ ! -e _work/end ]; do sleep 0.1; done; exit 33";
    let runner = working(&mut bench, "armor", desired, job).await;
    let said = signalled(&bench, &runner).await;
    if has {
        assert!(
            told.evidence.contains("docker-default (enforce)"),
            "{told:?}"
        );
        let pid = Group::of(&bench, &runner).pid;
        let profile = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
        assert_eq!(profile.trim(), "docker-default (enforce)");
        assert!(said.contains("Permission denied"), "{said:?}");
        // The control: the same without the profile, and nothing else changed that matters.
        let control = Unconfined::start(&bench);
        let said = signalled(&bench, &control.0).await;
        assert_eq!(said, "sent");
    } else {
        // No rules, no denial; and the node says that it has none.
        assert_eq!(said, "sent");
        assert_eq!(told.state(), pb::property::State::NotGuaranteed);
    }
    bench.touch(&runner, "/home/runner/_work/end");
    assert_eq!(ended(&mut bench, &runner).await.code, Some(33));
    bench.finish().await;
}
