//! A host of a node's own: an engine in namespaces of its own, a link away from the simulator's namespace,
//! which stands for the network between hosts: it passes on what goes to the scheduler.

use std::path::{Path, PathBuf};
use std::process::Command;

use bollard::Docker;
use bollard::query_parameters::ListContainersOptions;
use longshore_e2e::demo::host_state::{self, HostState};
use tokio::task::block_in_place;

#[path = "../../../../../node-agent/tests/agent/arm_engine.rs"]
mod arm_engine;
#[path = "../../../../../node-agent/tests/agent/engine.rs"]
mod engine;
#[expect(dead_code, reason = "only the agent's own tests listen inside")]
#[path = "../../../../../node-agent/tests/agent/namespaces.rs"]
mod namespaces;

pub(crate) use arm_engine::ArmEngine;
use engine::PrivateEngine;

/// An engine without live-restore, as its package leaves it.
pub(crate) const PLAIN: &str = "{}";
/// An engine whose containers outlive it.
pub(crate) const LIVE_RESTORE: &str = r#"{"live-restore": true}"#;

/// What a host of its own is made of.
#[derive(Clone, Default)]
pub(crate) struct Host {
    /// Settings of its engine.
    pub(crate) engine: &'static str,
    /// Folder in which the engine looks for programs first.
    pub(crate) tools: Option<PathBuf>,
    /// Further environment of its agent.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) max_runners: Option<u32>,
    /// Images beside the usual one.
    pub(crate) images: Vec<String>,
    /// Its engine says that it runs on arm64.
    pub(crate) arm: bool,
}

pub(crate) struct OwnEngine {
    engine: PrivateEngine,
    arm: Option<ArmEngine>,
    before: HostState,
    /// Name of the network's end of its link, in the simulator's namespace.
    link: String,
    simulator: String,
}

impl OwnEngine {
    /// Starts it, gives it the images and links it to the simulator's namespace; `at` tells
    /// the hosts of one test apart.
    pub(crate) async fn start(host: &Host, at: usize, image: &str, simulator: &str) -> Self {
        let engine = block_in_place(|| {
            let engine = PrivateEngine::start(host.engine, host.tools.as_deref());
            for image in host.images.iter().map(String::as_str).chain([image]) {
                engine.load(image);
            }
            engine
        });
        let link = block_in_place(|| join(&engine, at, simulator));
        let before = look(&engine).await;
        let arm = host
            .arm
            .then(|| ArmEngine::before(Path::new(&engine.socket())));
        Self {
            engine,
            arm,
            before,
            link,
            simulator: simulator.to_owned(),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        match &self.arm {
            Some(arm) => arm.socket(),
            None => self.engine.socket().into(),
        }
    }

    /// Cuts its link, or mends it.
    pub(crate) fn cut(&self, cut: bool) {
        let state = if cut { "down" } else { "up" };
        let (network, link) = (&self.simulator, &self.link);
        ip(&[], &format!("-n {network} link set {link} {state}"));
    }

    /// Everything that runs on it dies at once: jobs, engine, and whatever else is in its namespaces.
    pub(crate) async fn power_off(self) {
        let all = ListContainersOptions {
            all: true,
            ..Default::default()
        };
        let docker = client(&self.engine).await;
        let containers = docker.list_containers(Some(all)).await.unwrap();
        let mut jobs = Vec::new();
        for id in containers.into_iter().filter_map(|container| container.id) {
            let told = docker.inspect_container(&id, None).await.unwrap();
            let pid = told.state.and_then(|state| state.pid).unwrap_or(0);
            jobs.extend(u32::try_from(pid).ok().filter(|pid| *pid > 0));
        }
        self.cut(true);
        block_in_place(|| {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            let ours = of(&self.engine.keeper().to_string());
            let processes = std::fs::read_dir("/proc").unwrap().flatten();
            let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
            let inside = names.filter(|pid| ours.is_some() && of(pid) == ours);
            let inside = inside.filter_map(|pid| pid.parse::<u32>().ok());
            let keeper = self.engine.keeper();
            let doomed = inside.filter(|pid| *pid != keeper).chain(jobs);
            for pid in doomed.collect::<Vec<_>>() {
                // It may have died with another one.
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
        });
    }

    pub(crate) fn inside(&self) -> Vec<String> {
        inside(&self.engine)
    }

    pub(crate) async fn client(&self) -> Docker {
        client(&self.engine).await
    }

    /// What was there before the agent came.
    pub(crate) fn before(&self) -> &HostState {
        &self.before
    }

    pub(crate) async fn look(&self) -> HostState {
        look(&self.engine).await
    }

    /// SIGKILL for the engine, and a new one over the same folder.
    pub(crate) fn crash(&mut self) {
        block_in_place(|| {
            self.engine.kill();
            self.engine.start_again();
        });
    }
}

/// Words before a program that is to run in its namespaces.
fn inside(engine: &PrivateEngine) -> Vec<String> {
    ["nsenter", "-t", &engine.keeper().to_string(), "-m", "-n"]
        .map(str::to_owned)
        .to_vec()
}

async fn client(engine: &PrivateEngine) -> Docker {
    Docker::connect_with_unix(&engine.socket(), 60, bollard::API_DEFAULT_VERSION)
        .unwrap()
        .negotiate_version()
        .await
        .expect("the private engine answers")
}

async fn look(engine: &PrivateEngine) -> HostState {
    let mut state = host_state::look_inside(&client(engine).await, &inside(engine))
        .await
        .unwrap();
    // The names of network namespaces lie in a folder that all of the host share.
    state.networks.retain(|key, _| !key.starts_with("netns "));
    state
}

fn ip(inside: &[String], line: &str) {
    let words = inside.iter().map(String::as_str);
    must(words.chain(["ip"]).chain(line.split(' ')).collect());
}

fn must(words: Vec<&str>) {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.expect("the program runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {stderr}");
}

/// The link: neither end is ever in the host's own namespace, whose rules stay out of it, so that every test may use
/// these addresses. What goes to the scheduler leaves the network under the network's own address.
fn join(engine: &PrivateEngine, at: usize, simulator: &str) -> String {
    let (here, there) = (
        format!("203.0.113.{}", 4 * at + 1),
        format!("203.0.113.{}", 4 * at + 2),
    );
    let link = format!("down{at}");
    let inside = inside(engine);
    let keeper = engine.keeper();
    ip(
        &[],
        &format!("link add up0 netns {keeper} type veth peer name {link} netns {simulator}"),
    );
    ip(&inside, &format!("addr add {here}/30 dev up0"));
    ip(&inside, "link set up0 up");
    ip(&inside, &format!("route add default via {there}"));
    ip(
        &[],
        &format!("-n {simulator} addr add {there}/30 dev {link}"),
    );
    ip(&[], &format!("-n {simulator} link set {link} up"));
    let pass = "sysctl -q -w net.ipv4.ip_forward=1 && nft -f - <<'END'
table ip hosts
delete table ip hosts
table ip hosts {
    chain out {
        type nat hook postrouting priority 100
        ip saddr 203.0.113.0/24 ip daddr != 203.0.113.0/24 masquerade
    }
}
END";
    must(vec!["ip", "netns", "exec", simulator, "sh", "-c", pass]);
    link
}
