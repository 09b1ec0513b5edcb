//! Sandboxes that wait for a runner: taken, replaced, given up, never left behind.

use std::time::{Duration, Instant};

use agent_core::model::{Resources, RunnerSpec};
use agent_core::names::Instance;
use agent_core::runtime::{Outlook, Runtime};
use agent_core::slots::SlotsCidr;
use agent_core::standby::Limits;
use agent_docker::{Config, DockerRuntime, FirewallTool};

use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;

use crate::disk::SmallDisk;
use crate::on::On;
use crate::support::{self, Bench, kill, run};

const ON: [&str; 6] = [
    "--standby-enabled",
    "true",
    "--standby-floor",
    "1",
    "--standby-ceiling",
    "2",
];

impl Bench {
    /// Ids of containers that run, have no runner's name and are no reported runner's.
    pub(crate) fn standbys(&self) -> Vec<String> {
        let runners = self.containers_of_runners();
        let own = format!("label={}", self.own_label());
        let format = "{{.ID}} {{.Names}}";
        let list = self.docker(&["ps", "--no-trunc", "--filter", &own, "--format", format]);
        list.lines()
            .filter(|line| line.contains("-slot"))
            .filter_map(|line| line.split(' ').next().map(str::to_owned))
            .filter(|id| !runners.contains(id))
            .collect()
    }

    pub(crate) async fn until_standbys(
        &self,
        what: &str,
        is: impl Fn(&[String]) -> bool,
    ) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let found = self.standbys();
            let log = self.agent_log();
            // The engine knows of it before it can be taken.
            let parked = |id: &String| {
                let mut lines = log.lines().filter(|line| line.contains("a standby waits"));
                lines.any(|line| line.contains(id.as_str()))
            };
            if found.iter().all(parked) && is(&found) {
                return found;
            }
            let tail = log.len().saturating_sub(6_000);
            assert!(
                begin.elapsed() < Duration::from_secs(90),
                "waited in vain until {what}: {found:?}\n{}",
                &log[log.ceil_char_boundary(tail)..]
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub(crate) async fn a_job_takes_what_stands_by_and_another_takes_its_place(on: On) {
    let mut bench = Bench::start_with(&on, "ready", &ON).await;
    let (first, second) = (bench.name("first"), bench.name("second"));
    bench.want(&first, run(&bench.image())).await;
    let cold = bench.phase(&first, Phase::Ready).await;
    let waiting = bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;
    assert_ne!(waiting[0], cold.container_id);
    let inspect = bench.docker(&["inspect", &waiting[0]]);
    support::assert_strict(on.kind(), &inspect);
    // Nobody's: it is reported as no runner at all.
    let report = bench.until_report(|report| report.runners.len() == 1).await;
    assert_eq!(report.runners[0].name, first);

    bench.want(&second, run(&bench.image())).await;
    let taken = bench.phase(&second, Phase::Ready).await;
    assert_eq!(taken.container_id, waiting[0], "it was taken, not made");
    bench.register(&second, "echo works; exit 9", "x").await;
    let exit = bench
        .phase(&second, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!((exit.code, exit.cause()), (Some(9), Cause::Finished));
    let again = bench
        .until_standbys("another waits", |found| {
            found.iter().any(|id| *id != waiting[0])
        })
        .await;
    assert!(!again.contains(&waiting[0]), "it served one runner");

    // Another size is another kind: made for it, and what waits is left to its own.
    let third = bench.name("third");
    let support::Desired::Run(mut spec) = run(&bench.image()) else {
        unreachable!("it is a run")
    };
    spec.resources.as_mut().expect("resources").memory_bytes = 128 << 20;
    bench.want(&third, support::Desired::Run(spec)).await;
    let other = bench.phase(&third, Phase::Ready).await;
    assert!(!again.contains(&other.container_id));
    for runner in [&first, &third] {
        bench.let_go(runner).await;
    }

    // Told to go, the agent leaves none behind.
    bench.terminate_agent().await;
    assert_eq!(bench.leftovers(), "");
    bench.start_agent().await;
    bench.finish().await;
}

/// A killed agent's standbys end with its end of their input; the next one removes them.
pub(crate) async fn a_killed_agents_standbys_end_and_are_swept(on: On) {
    let mut bench = Bench::start_with(&on, "orphan", &ON).await;
    let runner = bench.name("job");
    bench.want(&runner, run(&bench.image())).await;
    bench.phase(&runner, Phase::Ready).await;
    let waiting = bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;
    bench.kill_agent();
    bench
        .until_standbys("its input ended", <[String]>::is_empty)
        .await;
    assert!(
        bench.leftovers().contains(&waiting[0][..12]),
        "it is there, and has ended"
    );
    bench.start_agent().await;
    // The runner's sandbox lost its input too, and is made anew; the dead ones are gone.
    bench.intend(&[(&runner, run(&bench.image()))], &[]).await;
    bench.phase(&runner, Phase::Ready).await;
    assert!(!bench.leftovers().contains(&waiting[0][..12]));
    bench.finish().await;
}

/// Killed behind the agent's back, it is noticed, replaced, and never handed over.
pub(crate) async fn a_dead_standby_is_not_handed_over(on: On) {
    let mut bench = Bench::start_with(&on, "dead", &ON).await;
    let (first, second) = (bench.name("first"), bench.name("second"));
    bench.want(&first, run(&bench.image())).await;
    bench.phase(&first, Phase::Ready).await;
    let waiting = bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;
    bench.docker(&["kill", &waiting[0]]);
    let again = bench
        .until_standbys("another waits", |found| {
            found.len() == 1 && found != waiting
        })
        .await;
    // This one dies when it is a runner's already, before its registration comes.
    bench.want(&second, run(&bench.image())).await;
    let ready = bench.phase(&second, Phase::Ready).await;
    assert_eq!(ready.container_id, again[0]);
    // The agent sees the death only after it has seen the registration.
    bench.freeze_agent(true);
    bench.docker(&["kill", &again[0]]);
    bench.register(&second, "exit 5", "x").await;
    bench.freeze_agent(false);
    let over = bench.phase(&second, Phase::Exited).await;
    // Either word comes first: the job ran in a fresh one, or the runner is told as dead.
    let exit = over.exit.expect("an exit");
    assert!(
        exit.code == Some(5) || matches!(exit.cause(), Cause::Killed | Cause::NeverStarted),
        "{exit:?}"
    );
    bench.want(&first, kill("over", Duration::ZERO)).await;
    bench.phase(&first, Phase::Exited).await;
    bench.finish().await;
}

/// The runtime alone, for what the agent's own notice of a death would hide.
struct Alone {
    runtime: DockerRuntime,
    /// Its state; goes with the value.
    _folder: tempfile::TempDir,
    label: String,
}

impl Alone {
    async fn start(slots_cidr: &str, standby: Limits) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), slots_cidr, standby, |_| {}).await
    }

    async fn start_in(
        folder: tempfile::TempDir,
        slots_cidr: &str,
        standby: Limits,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let instance = Instance::new("alone", &folder.path().to_string_lossy());
        let label = format!("label=longshore.instance={}", instance.as_str());
        let mut config = Config {
            socket: "/var/run/docker.sock".into(),
            node: "alone".into(),
            instance,
            slots_cidr: SlotsCidr::parse(slots_cidr).unwrap(),
            premade_slots: 1,
            parallel_starts: 2,
            state_dir: folder.path().to_owned(),
            dns: vec![],
            firewall: FirewallTool::Auto,
            egress_socket: None,
            allow_ranges: Vec::new(),
            min_free_disk: 0,
            job_disk: 0,
            pull: false,
            container_images: Default::default(),
            engine_timeout: Duration::from_secs(120),
            image_refresh: None,
            image_keep: Duration::from_secs(3_600),
            host_cpus: 2,
            profiles: agent_core::sandbox::Offered::default(),
            runtimes: agent_core::sandbox::OfferedRuntimes::default(),
            meminfo: "/proc/meminfo".into(),
            standby: Some(standby),
        };
        change(&mut config);
        let runtime = DockerRuntime::new(config);
        runtime.recover().await.unwrap();
        Self {
            runtime,
            _folder: folder,
            label,
        }
    }

    /// Ids of sandboxes that run; what fills volumes is none.
    fn containers(&self) -> Vec<String> {
        let sandbox = "label=longshore.role=runner";
        let list = support::docker(&[
            "ps",
            "-q",
            "--no-trunc",
            "--filter",
            &self.label,
            "--filter",
            sandbox,
        ]);
        list.lines().map(str::to_owned).collect()
    }

    /// Waits until so many containers run.
    async fn until(&self, count: usize) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let found = self.containers();
            if found.len() == count {
                return found;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "{found:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn finish(self) {
        self.runtime.detach().await;
        self.runtime.purge().await.unwrap();
        let left = support::docker(&["ps", "-aq", "--filter", &self.label]);
        assert_eq!(left, "");
    }
}

fn spec() -> RunnerSpec {
    let support::Desired::Run(wire) = run(&support::image()) else {
        unreachable!("it is a run")
    };
    RunnerSpec {
        image: wire.image,
        platform: wire.platform,
        resources: Resources {
            cpu_millis: 1_000,
            memory_bytes: 256 << 20,
            gpus: 0,
        },
        ..RunnerSpec::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_died_in_between_is_replaced_by_a_fresh_start() {
    let limits = Limits {
        floor: 1,
        ceiling: 1,
    };
    let alone = Alone::start("10.98.0.0/24", limits).await;
    let (first, second) = (
        format!("ls-alone-a-{}", support::random()),
        format!("ls-alone-b-{}", support::random()),
    );
    let cold = alone.runtime.prepare(&first, &spec()).await.unwrap();
    let both = alone.until(2).await;
    let taken = alone.runtime.prepare(&second, &spec()).await.unwrap();
    assert!(both.contains(&taken.container_id) && taken != cold);
    support::docker(&["kill", &taken.container_id]);
    let blob = support::registration("sleep 60", "x");
    alone.runtime.hand_over(&second, &blob).await.unwrap();
    let running = support::docker(&["inspect", "-f", "{{.State.Running}} {{.Id}}", &second]);
    assert!(running.starts_with("true"), "{running}");
    assert!(!running.contains(&taken.container_id), "another one");
    // A cold start is not made anew: what it was given may have been used.
    support::docker(&["kill", &cold.container_id]);
    alone.runtime.hand_over(&first, &blob).await.unwrap_err();
    for runner in [&first, &second] {
        alone.runtime.remove(runner).await.unwrap();
    }
    alone.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_slot_is_a_jobs_and_not_a_standbys() {
    let limits = Limits {
        floor: 2,
        ceiling: 2,
    };
    // Room for two networks.
    let alone = Alone::start("10.97.0.0/28", limits).await;
    let names: Vec<String> = (0..3)
        .map(|n| format!("ls-alone-{n}-{}", support::random()))
        .collect();
    alone.runtime.prepare(&names[0], &spec()).await.unwrap();
    let both = alone.until(2).await;
    // Another kind: what stands by is of no use to it, and holds the last slot.
    let mut other = spec();
    other.resources.memory_bytes = 128 << 20;
    let made = alone.runtime.prepare(&names[1], &other).await.unwrap();
    assert!(!both.contains(&made.container_id));
    assert_eq!(alone.until(2).await.len(), 2);
    let error = alone.runtime.prepare(&names[2], &other).await.unwrap_err();
    assert_eq!(error.reason.word(), "out_of_slots", "{error}");
    for runner in &names {
        alone.runtime.remove(runner).await.unwrap();
    }
    alone.finish().await;
}

/// What nobody asked for gives way when the host runs short, and comes back after it.
#[tokio::test(flavor = "multi_thread")]
async fn standbys_go_while_memory_or_disk_is_short_and_a_job_still_starts() {
    let disk = SmallDisk::of("32m");
    let meminfo = disk.path().join("meminfo");
    let memory = |available_mib: u64| {
        let text = format!(
            "MemTotal: {} kB\nMemAvailable: {} kB\n",
            8 << 20,
            available_mib << 10
        );
        // In one step, as the kernel tells it.
        let new = meminfo.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &meminfo).unwrap();
    };
    memory(4_096);
    let limits = Limits {
        floor: 1,
        ceiling: 1,
    };
    let folder = tempfile::tempdir_in(disk.path()).unwrap();
    let alone = Alone::start_in(folder, "10.96.0.0/24", limits, |config| {
        config.min_free_disk = 16 << 20;
        config.meminfo = meminfo.clone();
    })
    .await;
    alone.runtime.outlook(Outlook {
        expected: vec![spec()],
        ..Outlook::default()
    });
    let waiting = alone.until(1).await;

    memory(100);
    alone.until(0).await;
    // A job is asked for by somebody: it starts.
    let runner = format!("ls-alone-{}", support::random());
    let cold = alone.runtime.prepare(&runner, &spec()).await.unwrap();
    assert_eq!(alone.containers(), [cold.container_id]);
    alone.runtime.remove(&runner).await.unwrap();
    memory(4_096);
    let again = alone.until(1).await;
    assert_ne!(again, waiting);

    std::fs::write(disk.filler(), vec![1; 20 << 20]).unwrap();
    alone.until(0).await;
    std::fs::remove_file(disk.filler()).unwrap();
    alone.until(1).await;
    alone.finish().await;
}

/// What is expected stands by before the first job, follows its image, and goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_expected_stands_by_before_the_first_job_and_follows_its_image() {
    let on = On::Host;
    // Two jobs that come at once would be two to stand by for.
    let mut one = ON;
    one[5] = "1";
    let mut bench = Bench::start_with(&on, "expect", &one).await;
    let tag = format!("longshore-agent-test:moves-{}", support::random());
    support::docker(&["tag", &support::image(), &tag]);
    bench.expect(&[run(&tag)]).await;
    let waiting = bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;

    // The name means another image now: what waits is made from that one.
    support::derived(&tag);
    let moved = bench
        .until_standbys("another waits", |found| {
            found.len() == 1 && found != waiting
        })
        .await;
    let image = |container: &str| {
        let said = support::docker(&["inspect", "-f", "{{.Image}}", container]);
        said.trim().to_owned()
    };
    let now = support::docker(&["inspect", "-f", "{{.Id}}", &tag]);
    assert_eq!(image(&moved[0]), now.trim());
    let runner = bench.name("job");
    bench.want(&runner, run(&tag)).await;
    let ready = bench.phase(&runner, Phase::Ready).await;
    assert_eq!(image(&ready.container_id), now.trim());
    bench.let_go(&runner).await;

    // The image is taken away under it: a job waits with the reason, and nothing stands by.
    bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;
    support::docker(&["rmi", "-f", "--no-prune", &tag]);
    bench
        .until_standbys("none waits", <[String]>::is_empty)
        .await;
    let refused = bench.name("refused");
    bench.want(&refused, run(&tag)).await;
    let failed = bench.phase(&refused, Phase::Failed).await;
    assert_eq!(failed.error.expect("an error").reason, "image_unavailable");
    // And again, once it is there.
    support::docker(&["tag", &support::image(), &tag]);
    bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;

    bench.expect(&[]).await;
    support::docker(&["rmi", "-f", "--no-prune", &tag]);
    bench.finish().await;
}

/// The engine's process was between the agent and their input.
#[tokio::test(flavor = "multi_thread")]
async fn standbys_of_an_engine_that_restarted_are_made_anew() {
    let on = On::own_docker();
    let mut bench = Bench::start_with(&on, "again", &ON).await;
    bench.expect(&[run(&support::image())]).await;
    let waiting = bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;
    on.docker().kill();
    on.docker().start_again();
    let anew = bench
        .until_standbys("another waits", |found| {
            found.len() == 1 && found != waiting
        })
        .await;
    let runner = bench.name("job");
    bench.want(&runner, run(&support::image())).await;
    let ready = bench.phase(&runner, Phase::Ready).await;
    assert_eq!(ready.container_id, anew[0]);
    bench.register(&runner, "exit 9", "x").await;
    let exit = bench
        .phase(&runner, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!(exit.code, Some(9));
    bench.finish().await;
}
