//! `probe_failures`: what the probe finds broken, over every profile and network mode.

use agent_core::firewall::resolvers_of;
use agent_core::model::{Resources, RunnerSpec};
use agent_core::names::Instance;
use agent_core::probe::by_property;
use agent_core::runtime::Runtime;
use agent_core::sandbox::{Offered, OfferedRuntimes, Profile};
use agent_core::slots::SlotsCidr;
use agent_docker::{Config, DockerRuntime, FirewallTool};
use anyhow::{Context, Result};

use crate::row::Row;

const SLOTS: &str = "10.229.0.0/24";

/// On the host's own engine, each in a real slot, with an agent's own rules.
pub(crate) async fn run() -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let node = format!("bench-probe-{:x}", rand::random::<u32>());
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let runtime = DockerRuntime::new(Config {
        socket: "/var/run/docker.sock".into(),
        instance: Instance::new(&node, &folder.path().to_string_lossy()),
        node,
        slots_cidr: SlotsCidr::parse(SLOTS)?,
        premade_slots: 2,
        parallel_starts: 2,
        state_dir: folder.path().to_owned(),
        dns: resolvers_of(&resolvers),
        firewall: FirewallTool::Auto,
        egress_socket: None,
        allow_ranges: Vec::new(),
        min_free_disk: 0,
        job_disk: 1 << 30,
        pull: false,
        container_images: Default::default(),
        engine_timeout: std::time::Duration::from_secs(120),
        image_refresh: None,
        image_keep: std::time::Duration::from_secs(3_600),
        host_cpus: std::thread::available_parallelism()?.get() as u32,
        profiles: Offered::default(),
        runtimes: OfferedRuntimes::default(),
        meminfo: "/proc/meminfo".into(),
        standby: None,
    });
    runtime.recover().await?;
    let looked = look(&runtime).await;
    runtime.purge().await?;
    let (seen, failed) = looked?;
    Ok(vec![Row::new(
        "probe_failures",
        (failed as f64, "properties"),
        ("properties_looked_at", seen as f64),
        seen,
    )])
}

/// How many properties were looked at, and how many are claimed and broken.
async fn look(runtime: &DockerRuntime) -> Result<(usize, usize)> {
    runtime.assert_firewall().await?;
    let (mut seen, mut broken) = (0, 0);
    for profile in Profile::ALL {
        for network in ["open", "none"] {
            let spec = spec(profile, network);
            let probed = runtime.probe(&spec).await?.context("an inside")?;
            let failed = probed.failed();
            println!("  {} {network}: {failed:?} broken", profile.word());
            seen += by_property(&probed.checks).len();
            broken += failed.len();
        }
    }
    Ok((seen, broken))
}

fn spec(profile: Profile, network: &str) -> RunnerSpec {
    RunnerSpec {
        image: String::new(),
        profile: profile.word().into(),
        resources: Resources {
            cpu_millis: 1_000,
            memory_bytes: 256 << 20,
            gpus: 0,
        },
        gpu_uuids: vec![],
        network_mode: network.into(),
        allowed_domains: Vec::new(),
        platform: match std::env::consts::ARCH {
            "aarch64" => "linux/arm64".into(),
            _ => "linux/amd64".into(),
        },
        lifetime_ms: 120_000,
        traceparent: String::new(),
        pool: String::new(),
        scope: String::new(),
        runtime: String::new(),
    }
}
