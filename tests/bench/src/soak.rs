//! `soak_leaks` and `soak_agent_rss_growth`: many jobs through one host, one after the other
//! and several at once, by the shipped programs with standby slots on, on the host's own engine.
//!
//! What is left is looked for twice: of the jobs when the agent has gone, and of the fleet when
//! the host was cleared. `SOAK_JOBS` is how many jobs there are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use agent_core::names::{Instance, label};
use anyhow::{Context, Result, bail, ensure};
use bollard::{
    Docker,
    query_parameters::{
        ListContainersOptionsBuilder, ListImagesOptions, ListNetworksOptionsBuilder,
        ListVolumesOptionsBuilder,
    },
};
use longshore_client::v1;
use longshore_e2e::{
    demo::{
        host_state::{self, Difference, HostState, Marks},
        identity::{self, Identity, RUN_VARIABLE},
    },
    fleet::{Agent, AgentSettings, STOP_WITHIN},
    wait::until,
};
use serde_json::{Value, json};

use crate::{
    fleet::{Fleet, Setup},
    idle::resident_mib,
    results::{keep_samples, percentile},
    row::Row,
};

const SOCKET: &str = "/var/run/docker.sock";
/// Runners at once.
const SLOTS: u32 = 4;
/// Jobs of one run; a new run is pushed when fewer than this wait.
const RUN: usize = 20;
/// The agent has grown up after this part of the jobs: 200 of 1,000.
const GROWN_UP: f64 = 0.2;
/// So many jobs make one figure for the memory.
const WINDOW: usize = 50;
const LOOK: Duration = Duration::from_millis(250);
/// Nothing takes longer on a busy machine of two cores.
const PATIENCE: Duration = Duration::from_secs(180);
const GROWTH_BOUND: f64 = 5.0;

/// Bounds that the rows have to keep.
pub(crate) fn judge(rows: &[Row]) -> Result<()> {
    for row in rows {
        let bound = match row.name {
            "soak_leaks" => 0.0,
            _ => row.reference_value,
        };
        ensure!(
            row.value <= bound,
            "{} is {} {}, more than {bound}",
            row.name,
            row.value,
            row.unit
        );
    }
    Ok(())
}

pub(crate) async fn run() -> Result<Vec<Row>> {
    let jobs: usize = match std::env::var("SOAK_JOBS") {
        Ok(text) => text.parse().context("SOAK_JOBS is a number of jobs")?,
        Err(_) => 1_000,
    };
    ensure!(
        jobs >= 5 * WINDOW,
        "SOAK_JOBS: with fewer than {} jobs the memory at the begin and at the end cannot be told apart",
        5 * WINDOW
    );
    let engine = Docker::connect_with_unix(SOCKET, 60, bollard::API_DEFAULT_VERSION)?
        .negotiate_version()
        .await
        .with_context(|| format!("no container engine answers at {SOCKET}"))?;
    let image = crate::burst::image()?;
    let before = host_state::look(&engine).await?;
    let claim = identity::claim()?;
    let soak = Soak::start(engine, claim.identity.clone(), &image).await?;
    let samples = match soak.serve(jobs).await {
        Ok(samples) => samples,
        Err(error) => {
            let tail = soak.agent.process.tail();
            // As little as can be left behind a failure.
            let _ = soak.clear().await;
            return Err(error.context(tail));
        }
    };
    let left = soak.finish(&before).await?;
    for thing in &left {
        println!("left behind: {thing}");
    }
    let (from, to) = growth(&samples, jobs)?;
    println!("resident memory of the agent: {from:.2} MiB, at the end {to:.2} MiB");
    let raw: Vec<f64> = samples.iter().map(|(_, mib)| *mib).collect();
    keep_samples("soak_agent_rss_mib", &raw)?;
    Ok(vec![
        Row::new(
            "soak_leaks",
            (left.len() as f64, "things"),
            ("jobs that went through one host", jobs as f64),
            jobs,
        ),
        Row::new(
            "soak_agent_rss_growth",
            ((to / from - 1.0) * 100.0, "%"),
            (
                "bound; medians of 50 jobs, after a fifth of them and at the end",
                GROWTH_BOUND,
            ),
            samples.len(),
        ),
    ])
}

/// Memory after a fifth of the jobs, and over the last ones.
fn growth(samples: &[(usize, f64)], jobs: usize) -> Result<(f64, f64)> {
    let within = |from: usize, to: usize| {
        let values: Vec<f64> = samples
            .iter()
            .filter(|(done, _)| (from..to).contains(done))
            .map(|(_, mib)| *mib)
            .collect();
        ensure!(!values.is_empty(), "no look between job {from} and {to}");
        Ok(percentile(&values, 0.5))
    };
    let grown_up = (jobs as f64 * GROWN_UP) as usize;
    Ok((
        within(grown_up, grown_up + WINDOW)?,
        within(jobs - WINDOW, jobs)?,
    ))
}

/// A fleet of one node.
struct Soak {
    engine: Docker,
    identity: Identity,
    fleet: Fleet,
    agent: Agent,
    settings: AgentSettings,
}

impl Soak {
    async fn start(engine: Docker, identity: Identity, image: &str) -> Result<Self> {
        let fleet = Fleet::start(Setup {
            repositories: &["soak/one".to_owned(), "soak/two".to_owned()],
            webhooks: true,
            // Small runners, so that a machine of two cores runs several at once.
            scheduler_flags: &["--default-cpu", "0.25", "--default-memory", "256m"],
            sim_net: Some(identity.runner_net()),
            image: Some(image),
            ..Setup::default()
        })
        .await?;
        let settings = AgentSettings {
            node: identity.node.clone(),
            state: fleet.folder.path().join("agent"),
            scheduler: fleet.scheduler.nodes_url(),
            api: Some(fleet.scheduler.door()),
            engine_socket: Some(SOCKET.into()),
            slots_cidr: Some(identity.slots_cidr.clone()),
            max_runners: Some(SLOTS),
            env: vec![(RUN_VARIABLE.to_owned(), identity.run.clone())],
            ..AgentSettings::default()
        };
        let agent = Agent::start(&fleet.binaries, fleet.folder.path(), &settings).await?;
        Ok(Self {
            engine,
            identity,
            fleet,
            agent,
            settings,
        })
    }

    /// Runs the jobs; how many were over and what the agent's memory was, again and again.
    async fn serve(&self, jobs: usize) -> Result<Vec<(usize, f64)>> {
        let agent = self.agent.process.pid();
        let (mut pushed, mut done) = (0, 0);
        let mut samples = Vec::new();
        let mut moved = Instant::now();
        while done < jobs {
            let waiting = pushed - done;
            if pushed < jobs && waiting < RUN {
                let count = RUN.min(jobs - pushed);
                self.fleet
                    .sim
                    .control("runs", run_of(pushed, count))
                    .await?;
                pushed += count;
            }
            tokio::time::sleep(LOOK).await;
            let summary = self.fleet.sim.look("summary").await?;
            let now = count(&summary["jobs"]["completed"])?;
            if now != done {
                (done, moved) = (now, Instant::now());
                if done % 100 < RUN / 4 {
                    println!("  {done} jobs, {:.2} MiB", resident_mib(agent)?);
                }
            }
            ensure!(
                moved.elapsed() < PATIENCE,
                "no job ended within {} s: {summary}",
                PATIENCE.as_secs()
            );
            samples.push((done, resident_mib(agent)?));
        }
        let summary = self.fleet.sim.look("summary").await?;
        let unmet = &summary["expected"]["unmet"];
        ensure!(
            unmet.as_array().is_some_and(Vec::is_empty),
            "jobs ended otherwise than they should: {unmet}"
        );
        let registered = self.fleet.list("runners/history").await?.len();
        println!("{registered} registrations for {jobs} jobs");
        Ok(samples)
    }

    /// Lets the node run empty, stops everything in order, and says what is left.
    async fn finish(mut self, before: &HostState) -> Result<Vec<String>> {
        self.drain().await?;
        let none = json!({"runners": 0});
        // A registration that stays is a finding, not a failure of the measurement.
        let _ = self.fleet.sim.wait_for(none, PATIENCE).await;
        let mut left: Vec<String> = self
            .fleet
            .list("runners")
            .await?
            .iter()
            .map(|runner| format!("registration {}", runner["name"]))
            .collect();
        let ended = self.agent.process.terminate(STOP_WITHIN).await?;
        ensure!(ended.success(), "the agent: {ended}");
        left.extend(self.of_jobs().await?);
        self.settings
            .purge(&self.fleet.binaries, self.fleet.folder.path())
            .await?;
        self.fleet.scheduler.process.terminate(STOP_WITHIN).await?;
        self.fleet.sim.process.terminate(STOP_WITHIN).await?;
        let after = host_state::look(&self.engine).await?;
        let Difference {
            containers,
            networks,
            volumes,
            firewall,
            processes,
            // What others took away meanwhile is not ours to answer for.
            missing: _,
        } = host_state::difference(before, &after, &self.marks(), true);
        left.extend([containers, networks, volumes, firewall, processes].concat());
        left.extend(self.on_disk());
        left.extend(self.images().await?);
        Ok(left)
    }

    /// After a failure.
    async fn clear(mut self) -> Result<()> {
        self.agent.process.terminate(STOP_WITHIN).await?;
        self.settings
            .purge(&self.fleet.binaries, self.fleet.folder.path())
            .await?;
        self.fleet.sim.process.terminate(STOP_WITHIN).await?;
        Ok(())
    }

    async fn drain(&self) -> Result<()> {
        let client = self.fleet.scheduler.client()?;
        let name = self.identity.node.clone();
        let request = v1::DrainNodeRequest {
            request_id: format!("drain-{name}"),
            name,
            deadline: None,
        };
        client.drain_node(request).await?;
        until("no runner is left on the node", PATIENCE, || async {
            let request = v1::ListRunnersRequest {
                node: self.identity.node.clone(),
                ..Default::default()
            };
            let answer = client.list_runners(request).await;
            let left = answer.map_err(|error| error.to_string())?.runners;
            match left.is_empty() {
                true => Ok(()),
                false => Err(format!("{left:?}")),
            }
        })
        .await
    }

    fn instance(&self) -> Instance {
        Instance::new(&self.settings.node, &self.settings.state.to_string_lossy())
    }

    /// Texts of which one stands in everything that this fleet makes.
    fn marks(&self) -> Marks {
        let instance = self.instance();
        let id = &self.identity;
        Marks {
            ours: BTreeSet::from([
                id.node.clone(),
                id.namespace.clone(),
                id.host.to_string(),
                id.slots_cidr.trim_end_matches("0.0/16").to_owned(),
                format!("{RUN_VARIABLE}={}", id.run),
                format!("ls-{}-", instance.as_str()),
                instance.table(),
            ]),
        }
    }

    /// What a job has and leaves, while what the agent makes beforehand is still there.
    async fn of_jobs(&self) -> Result<Vec<String>> {
        let own = format!("{}={}", label::INSTANCE, self.instance().as_str());
        let filters = std::collections::HashMap::from([("label", vec![own.as_str()])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let containers = self.engine.list_containers(Some(options)).await?;
        let mut left: Vec<String> = containers
            .into_iter()
            .map(|container| format!("container {:?}", container.names.unwrap_or_default()))
            .collect();
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let volumes = self.engine.list_volumes(Some(options)).await?.volumes;
        left.extend(
            volumes
                .unwrap_or_default()
                .into_iter()
                .filter(|volume| volume.name.contains("-work"))
                .map(|volume| format!("volume {}", volume.name)),
        );
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let networks = self.engine.list_networks(Some(options)).await?.len();
        println!("{networks} slot networks were made for {SLOTS} runners at once");
        // One for each runner and standby, and two of a look at a sandbox.
        let most = SLOTS as usize * 2 + 2;
        left.extend((most..networks).map(|n| format!("network {n} for {SLOTS} runners")));
        left.extend(self.on_disk());
        Ok(left)
    }

    /// Control groups, files of work folders, and loop devices over them.
    fn on_disk(&self) -> Vec<String> {
        let mut left = Vec::new();
        let name = format!("longshore-{}", self.instance().as_str());
        // As either driver of an engine names them.
        let slice = format!("longshore.slice/{name}.slice");
        for root in [
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup/pids",
        ] {
            for group in [&name, &slice] {
                left.extend(
                    entries(&Path::new(root).join(group))
                        .filter(|path| path.is_dir())
                        .map(|path| format!("control group {}", path.display())),
                );
            }
        }
        let work = self.settings.state.join("work");
        left.extend(
            entries(&work)
                .filter(|path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    // Made ahead of their use.
                    !name.starts_with("spare-") && !name.starts_with("making-")
                })
                .map(|path| format!("file {}", path.display())),
        );
        for device in entries(Path::new("/sys/block")) {
            let file = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            if Path::new(file.trim()).starts_with(&work) {
                left.push(format!("{} over {}", device.display(), file.trim()));
            }
        }
        left
    }

    /// Images that the agent made, which go with it.
    async fn images(&self) -> Result<Vec<String>> {
        let mark = format!("-{}:", self.instance().as_str());
        let images = self.engine.list_images(None::<ListImagesOptions>).await?;
        Ok(images
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .filter(|tag| tag.contains(&mark))
            .map(|tag| format!("image {tag}"))
            .collect())
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn count(value: &Value) -> Result<usize> {
    let Some(count) = value.as_u64() else {
        bail!("the simulator tells no number of jobs: {value}");
    };
    Ok(usize::try_from(count)?)
}

/// Jobs that differ in what they take: time, disk, output, processes, their end.
fn run_of(first: usize, count: usize) -> Value {
    let labels = ["self-hosted", "linux", arch()];
    let jobs: Vec<Value> = (first..first + count)
        .map(|n| {
            let (steps, expect) = match n % 5 {
                0 => (vec!["echo short"], "success"),
                1 => (
                    vec!["dd if=/dev/zero of=fill bs=1M count=8", "rm fill"],
                    "success",
                ),
                2 => (vec!["seq 1 20000"], "success"),
                3 => (
                    vec!["sleep 300 >/dev/null 2>&1 & echo left a process behind"],
                    "success",
                ),
                _ => (vec!["echo fails", "exit 3"], "failure"),
            };
            json!({"name": format!("job {n}"), "labels": labels, "steps": steps, "expect": expect})
        })
        .collect();
    let repository = ["soak/one", "soak/two"][first / RUN % 2];
    json!({"repository": repository, "jobs": jobs})
}

fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "x64"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_of_windows_and_not_of_single_looks() {
        let samples: Vec<(usize, f64)> = (0..1_000)
            .map(|n| (n, if n < 500 { 10.0 } else { 11.0 }))
            // One spike changes nothing.
            .chain([(210, 99.0), (960, 99.0)])
            .collect();
        assert_eq!(growth(&samples, 1_000).unwrap(), (10.0, 11.0));
        assert!(growth(&samples[..900], 1_000).is_err(), "nobody looked");
    }

    #[test]
    fn a_bound_that_is_not_kept_is_a_failure() {
        let row = |name, value| Row::new(name, (value, ""), ("", GROWTH_BOUND), 1);
        judge(&[row("soak_leaks", 0.0), row("soak_agent_rss_growth", 4.9)]).unwrap();
        judge(&[row("soak_leaks", 1.0)]).unwrap_err();
        judge(&[row("soak_agent_rss_growth", 5.1)]).unwrap_err();
    }
}
