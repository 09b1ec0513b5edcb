//! `burst_start_rate`: 100 sandboxes at once through the agent's runtime, beside the engine alone with the same body.
//!
//! Both sides have the same container body, the same concurrency and networks
//! made beforehand, and take turns.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_core::{
    dialect::Dialect,
    model::{Resources, RunnerSpec},
    names::Instance,
    runtime::Runtime,
    sandbox::{self, Place, Request},
    slots::SlotsCidr,
};
use agent_docker::{Config, DockerRuntime, FirewallTool, container_body};
use anyhow::{Context, Result, ensure};
use bollard::{
    Docker,
    query_parameters::{
        CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
    },
};
use futures_util::future::{join_all, try_join_all};
use tokio::sync::Semaphore;

use crate::{
    results::{keep_samples, percentile},
    row::Row,
};

const BURST: u32 = 100;
const ROUNDS: u32 = 3;
const PARALLEL: usize = 6;
pub(crate) const SOCKET: &str = "/var/run/docker.sock";

pub(crate) async fn run() -> Result<Vec<Row>> {
    let image = image()?;
    let folder = tempfile::tempdir()?;
    let cpus = std::thread::available_parallelism()?.get();
    let instance = Instance::new("bench", &folder.path().to_string_lossy());
    let runtime = DockerRuntime::new(Config {
        socket: SOCKET.into(),
        node: "bench".into(),
        instance: instance.clone(),
        slots_cidr: SlotsCidr::parse("10.229.0.0/16").context("a range for slots")?,
        premade_slots: BURST,
        parallel_starts: PARALLEL,
        state_dir: folder.path().to_owned(),
        dns: vec![],
        firewall: FirewallTool::Auto,
        egress_socket: None,
        allow_ranges: Vec::new(),
        min_free_disk: 0,
        job_disk: 32 << 30,
        pull: false,
        container_images: Default::default(),
        engine_timeout: Duration::from_secs(120),
        image_refresh: None,
        image_keep: std::time::Duration::from_secs(3_600),
        host_cpus: u32::try_from(cpus)?,
        profiles: sandbox::Offered::default(),
        runtimes: sandbox::OfferedRuntimes::default(),
        meminfo: "/proc/meminfo".into(),
        standby: None,
    });
    runtime.recover().await.context("engine and networks")?;
    let measured = measure(&runtime, &instance, &image, u32::try_from(cpus)?).await;
    runtime
        .purge()
        .await
        .context("remove what the measurement made")?;
    let (ours, bare) = measured?;
    keep_samples("burst_start_rate", &ours)?;
    keep_samples("burst_start_rate_bare", &bare)?;
    Ok(vec![Row::new(
        "burst_start_rate",
        (percentile(&ours, 0.5), "1/s"),
        (
            "bare create+start, same body and concurrency, rounds in turns; medians",
            percentile(&bare, 0.5),
        ),
        (BURST * ROUNDS) as usize,
    )])
}

/// Starts a second of each round: the agent's runtime, the bare engine.
async fn measure(
    runtime: &DockerRuntime,
    instance: &Instance,
    image: &str,
    cpus: u32,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let spec = RunnerSpec {
        image: image.into(),
        profile: "strict".into(),
        resources: Resources {
            cpu_millis: 1_000,
            memory_bytes: 64 << 20,
            gpus: 0,
        },
        platform: if cfg!(target_arch = "aarch64") {
            "linux/arm64"
        } else {
            "linux/amd64"
        }
        .into(),
        ..RunnerSpec::default()
    };
    // The first one fills the program volumes.
    runtime.prepare("ls-warm", &spec).await?;
    runtime.remove("ls-warm").await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let names: Vec<String> = (0..BURST)
            .map(|n| format!("ls-burst-{round}-{n}"))
            .collect();
        let begin = Instant::now();
        let made = join_all(names.iter().map(|name| runtime.prepare(name, &spec))).await;
        ours.push(f64::from(BURST) / begin.elapsed().as_secs_f64());
        for name in &names {
            runtime.remove(name).await?;
        }
        for one in made {
            one?;
        }
        let took = bare_burst(instance, &spec, round, cpus).await?;
        bare.push(f64::from(BURST) / took.as_secs_f64());
    }
    Ok((ours, bare))
}

async fn bare_burst(
    instance: &Instance,
    spec: &RunnerSpec,
    round: u32,
    cpus: u32,
) -> Result<Duration> {
    let docker = Docker::connect_with_unix(SOCKET, 120, bollard::API_DEFAULT_VERSION)?
        .negotiate_version()
        .await?;
    let image_id = docker
        .inspect_image(&spec.image)
        .await?
        .id
        .context("id of the image")?;
    let request = Request::from_spec(spec).context("a good spec")?;
    let turns = Arc::new(Semaphore::new(PARALLEL));
    let begin = Instant::now();
    let made = try_join_all((0..BURST).map(|slot| {
        let place = Place {
            image_id: image_id.clone(),
            network: instance.network(slot),
            work_volume: format!("ls-bare-{}-{round}-{slot}", instance.as_str()),
            bin_volume: instance.program_volume("bin", &image_id),
            externals_volume: instance.program_volume("ext", &image_id),
            tools_volume: instance.program_volume("tools", &agent_core::tools::version()),
            dns: vec![],
            proxy: None,
            host_cpus: cpus,
            cgroup_parent: String::new(),
            labels: vec![],
            dialect: Dialect::DOCKER,
            seccomp: Default::default(),
            users_are_mapped: false,
            gpus: vec![],
            runtimes: vec![],
        };
        let body = container_body(&sandbox::of(&request, &place));
        let (docker, turns, platform) = (docker.clone(), turns.clone(), spec.platform.clone());
        async move {
            let _turn = turns.acquire().await?;
            let options = CreateContainerOptionsBuilder::new()
                .platform(&platform)
                .build();
            let id = docker.create_container(Some(options), body).await?.id;
            docker.start_container(&id, None).await?;
            anyhow::Ok((id, place.work_volume))
        }
    }))
    .await?;
    let took = begin.elapsed();
    for (id, volume) in made {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        docker.remove_container(&id, Some(options)).await?;
        docker
            .remove_volume(&volume, None::<RemoveVolumeOptions>)
            .await?;
    }
    Ok(took)
}

/// The stand-in runner's image, built when it is not there.
pub(crate) fn image() -> Result<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let output = Command::new(format!("{root}/tests/demo-runner/image/build"))
        .current_dir(root)
        .output()
        .context("run tests/demo-runner/image/build")?;
    ensure!(
        output.status.success(),
        "the image could not be built: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8(output.stdout)?;
    Ok(said
        .lines()
        .last()
        .context("name of the image")?
        .trim()
        .to_string())
}
