//! How many sandboxes a second the runtime starts, beside the engine alone.
//!
//! Both sides: the same container body, the same concurrency, networks made
//! beforehand, in turns. Prints; asserts nothing about time. Run with
//! `cargo test -p agent-docker --test burst -- --ignored --nocapture`, with
//! LONGSHORE_BURST_IMAGE naming an image in the layout of GitHub's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::model::{Resources, RunnerSpec};
use agent_core::names::Instance;
use agent_core::runtime::Runtime;
use agent_core::sandbox::{Place, Request, strict};
use agent_core::slots::SlotsCidr;
use agent_docker::{Config, DockerRuntime, FirewallTool, container_body};
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::future::join_all;
use tokio::sync::Semaphore;

const BURST: u32 = 16;
const ROUNDS: u32 = 3;
const PARALLEL: usize = 6;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for a quiet machine"]
async fn burst_start_rate() {
    let image =
        std::env::var("LONGSHORE_BURST_IMAGE").expect("LONGSHORE_BURST_IMAGE names an image");
    let dir = tempfile::tempdir().expect("a folder");
    let instance = Instance::new("burst", &dir.path().to_string_lossy());
    let runtime = DockerRuntime::new(Config {
        socket: "/var/run/docker.sock".into(),
        node: "burst".into(),
        instance: instance.clone(),
        slots_cidr: SlotsCidr::parse("10.230.0.0/16").expect("a range"),
        premade_slots: BURST,
        parallel_starts: PARALLEL,
        state_dir: dir.path().to_owned(),
        dns: vec![],
        firewall: FirewallTool::Auto,
        min_free_disk: 0,
        pull: false,
        host_cpus: 2,
    });
    runtime.recover().await.expect("an engine");
    let spec = RunnerSpec {
        image,
        profile: "strict".into(),
        resources: Resources {
            cpu_millis: 1_000,
            memory_bytes: 256 << 20,
            gpus: 0,
        },
        platform: "linux/amd64".into(),
        ..RunnerSpec::default()
    };
    // The first one fills the program volumes.
    runtime.prepare("ls-warm", &spec).await.expect("a sandbox");
    clear(&runtime, "ls-warm").await;

    let (mut ours, mut bare) = (Duration::ZERO, Duration::ZERO);
    for round in 0..ROUNDS {
        let begin = Instant::now();
        let names: Vec<String> = (0..BURST)
            .map(|n| format!("ls-burst-{round}-{n}"))
            .collect();
        for made in join_all(names.iter().map(|name| runtime.prepare(name, &spec))).await {
            made.expect("a sandbox");
        }
        ours += begin.elapsed();
        join_all(names.iter().map(|name| clear(&runtime, name))).await;
        bare += bare_burst(&instance, &spec, round).await;
    }
    let rate = |time: Duration| f64::from(BURST * ROUNDS) / time.as_secs_f64();
    println!(
        "agent {:.2}/s, bare {:.2}/s, ratio {:.3}",
        rate(ours),
        rate(bare),
        rate(ours) / rate(bare)
    );
    runtime.purge().await.expect("everything is removed");
}

async fn clear(runtime: &DockerRuntime, name: &str) {
    runtime.remove(name).await.expect("removed");
}

async fn bare_burst(instance: &Instance, spec: &RunnerSpec, round: u32) -> Duration {
    let docker = bollard::Docker::connect_with_unix(
        "/var/run/docker.sock",
        120,
        bollard::API_DEFAULT_VERSION,
    )
    .expect("a client")
    .negotiate_version()
    .await
    .expect("an engine");
    let image_id = docker
        .inspect_image(&spec.image)
        .await
        .expect("the image")
        .id
        .expect("an id");
    let request = Request::from_spec(spec).expect("a good spec");
    let turns = Arc::new(Semaphore::new(PARALLEL));
    let begin = Instant::now();
    let made = join_all((0..BURST).map(|slot| {
        let place = Place {
            image_id: image_id.clone(),
            network: instance.network(slot),
            work_volume: format!("ls-bare-{}-{round}-{slot}", instance.as_str()),
            bin_volume: instance.program_volume("bin", &image_id),
            externals_volume: instance.program_volume("ext", &image_id),
            dns: vec![],
            host_cpus: 2,
            cgroup_parent: String::new(),
            labels: vec![],
        };
        let body = container_body(&strict(&request, &place));
        let (docker, turns) = (docker.clone(), turns.clone());
        async move {
            let _turn = turns.acquire().await.expect("open");
            let options = CreateContainerOptionsBuilder::new()
                .platform("linux/amd64")
                .build();
            let id = docker
                .create_container(Some(options), body)
                .await
                .expect("created")
                .id;
            docker.start_container(&id, None).await.expect("started");
            (id, place.work_volume)
        }
    }))
    .await;
    let took = begin.elapsed();
    for (id, volume) in made {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        docker
            .remove_container(&id, Some(options))
            .await
            .expect("removed");
        docker
            .remove_volume(
                &volume,
                None::<bollard::query_parameters::RemoveVolumeOptions>,
            )
            .await
            .expect("removed");
    }
    took
}
