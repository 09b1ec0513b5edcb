//! Hand-overs to sandboxes that stand by, cold starts beside the engine alone, and
//! the agent's memory with 32 slots.
//!
//! `standby_handover` is taken from outside the agent: the clock starts before the
//! registration is put on the stream and stops at the first byte of the runner
//! program's output. Nothing is refilled meanwhile: a standby that was taken and not
//! handed over holds refills up.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
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
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bollard::{
    Docker,
    query_parameters::{
        AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder, RemoveVolumeOptions,
    },
};
use futures_util::StreamExt;
use longshore_e2e::{
    binaries::Binaries,
    fleet::{Agent, AgentSettings, STOP_WITHIN, secret_file},
};
use longshore_proto::v1::{
    self,
    attach_request::Message as Up,
    attach_response::Message as Down,
    node_service_server::{NodeService, NodeServiceServer},
    observed_runner::Phase,
    runner_intent::Desired,
};
use longshore_scheduler::{clock::utc, serve::Listener, tls::Own};
use scheduler_identity::authority::Authority;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request as Call, Response, Status, Streaming};

use crate::{
    burst::{SOCKET, image},
    echo::{BOUNDS, enroll, join_token},
    idle::resident_mib,
    results::{keep_samples, percentile},
    row::Row,
};

/// `STANDBY_SAMPLES` takes fewer; then the largest is what the row calls p99.
const SAMPLES: usize = 1_000;
/// As many as fit into two processors at half a processor each.
const BATCH: usize = 4;
const SLOTS: usize = 32;
const PAIRS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn handover() -> Result<Vec<Row>> {
    let bench = Bench::start(BATCH).await?;
    let measured = bench.handovers().await;
    bench.finish().await?;
    let samples = measured?;
    keep_samples("standby_handover", &samples)?;
    let row = |name, share, bound| {
        let reference = ("bound; first byte after the registration was sent", bound);
        Row::new(
            name,
            (percentile(&samples, share), "ms"),
            reference,
            samples.len(),
        )
    };
    Ok(vec![
        row("standby_handover_p50", 0.5, 12.0),
        row("standby_handover_p99", 0.99, 40.0),
    ])
}

pub(crate) async fn slots_rss() -> Result<Vec<Row>> {
    let bench = Bench::start(0).await?;
    let measured = bench.rss().await;
    bench.finish().await?;
    Ok(vec![Row::new(
        "agent_32_slots_rss",
        (measured?, "MiB"),
        ("bound; 32 sandboxes are started and wait", 40.0),
        1,
    )])
}

/// What the agent last said.
#[derive(Clone, Default)]
struct Seen {
    attached: bool,
    report: v1::NodeReport,
}

type Stream = mpsc::Sender<Result<v1::AttachResponse, Status>>;

/// A scheduler that is only a stream.
struct Scheduler {
    seen: watch::Sender<Seen>,
    down: Arc<Mutex<Option<Stream>>>,
    authority: Arc<Authority>,
}

#[tonic::async_trait]
impl NodeService for Scheduler {
    type AttachStream = ReceiverStream<Result<v1::AttachResponse, Status>>;

    async fn enroll(
        &self,
        request: Call<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        enroll(&self.authority, request.get_ref()).map(Response::new)
    }

    async fn renew(
        &self,
        _: Call<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unimplemented("no bench lives that long"))
    }

    async fn attach(
        &self,
        request: Call<Streaming<v1::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut up = request.into_inner();
        let (down, stream) = mpsc::channel(64);
        let welcome = v1::Welcome {
            fleet: "bench".into(),
            ..v1::Welcome::default()
        };
        let first = v1::AttachResponse {
            message: Some(Down::Welcome(welcome)),
        };
        down.send(Ok(first))
            .await
            .map_err(|_| Status::cancelled("gone"))?;
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = Some(down);
        let seen = self.seen.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                seen.send_modify(|seen| match message.message {
                    Some(Up::Hello(_)) => seen.attached = true,
                    Some(Up::Report(report)) => seen.report = report,
                    _ => {}
                });
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn push_logs(
        &self,
        request: Call<Streaming<v1::PushLogsRequest>>,
    ) -> Result<Response<v1::PushLogsResponse>, Status> {
        let mut up = request.into_inner();
        while up.message().await?.is_some() {}
        Ok(Response::new(v1::PushLogsResponse {}))
    }
}

struct Bench {
    folder: tempfile::TempDir,
    binaries: Binaries,
    settings: AgentSettings,
    agent: Agent,
    seen: watch::Receiver<Seen>,
    down: Arc<Mutex<Option<Stream>>>,
    docker: Docker,
    image: String,
    generation: std::sync::atomic::AtomicU64,
}

impl Bench {
    /// A real agent that keeps so many standing by, attached to a stand-in scheduler.
    async fn start(standbys: usize) -> Result<Self> {
        let image = image()?;
        let binaries = Binaries::find()?;
        let folder = tempfile::tempdir()?;
        let authority = Arc::new(Authority::create("bench", utc())?);
        let own = Own::new(Arc::clone(&authority), Vec::new())?;
        let any = "127.0.0.1:0".parse()?;
        let listener = Listener::bind("agents", "", any)
            .await?
            .with_tls(own.with_client_certificates()?);
        let address = listener.address;
        let token = folder.path().join("join-token");
        secret_file(&token, &join_token(&authority))?;
        let (seen, watcher) = watch::channel(Seen::default());
        let down = Arc::new(Mutex::new(None));
        let service = NodeServiceServer::new(Scheduler {
            seen,
            down: down.clone(),
            authority,
        });
        let router = tonic::service::Routes::new(service).prepare();
        let (router, stop) = (router.into_axum_router(), CancellationToken::new());
        tokio::spawn(listener.serve(router, BOUNDS, stop, Duration::ZERO));
        let mut more: Vec<String> = [
            "--pull",
            "false",
            "--premade-slots",
            "8",
            "--join-token-file",
            &token.display().to_string(),
            "--standby-enabled",
        ]
        .map(String::from)
        .to_vec();
        more.push((standbys > 0).to_string());
        for key in ["--standby-floor", "--standby-ceiling"] {
            more.extend([key.to_owned(), standbys.to_string()]);
        }
        let settings = AgentSettings {
            node: "bench-standby".into(),
            state: folder.path().join("agent"),
            scheduler: format!("https://{address}"),
            slots_cidr: Some("10.228.0.0/20".into()),
            more,
            ..AgentSettings::default()
        };
        let agent = Agent::start(&binaries, folder.path(), &settings).await?;
        let docker = engine().await?;
        Ok(Self {
            folder,
            binaries,
            settings,
            agent,
            seen: watcher,
            down,
            docker,
            image,
            generation: Default::default(),
        })
    }

    async fn finish(mut self) -> Result<()> {
        self.agent.process.terminate(STOP_WITHIN).await?;
        self.settings
            .purge(&self.binaries, self.folder.path())
            .await?;
        Ok(())
    }

    async fn handovers(&self) -> Result<Vec<f64>> {
        // The first ones fill the program volumes and say what there is to keep.
        self.serve_batch(0).await?;
        let wanted: usize = std::env::var("STANDBY_SAMPLES")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(SAMPLES);
        let mut samples = Vec::with_capacity(wanted + BATCH);
        let mut batch = 1;
        while samples.len() < wanted {
            self.until_standbys(BATCH).await?;
            samples.extend(self.serve_batch(batch).await?);
            batch += 1;
        }
        Ok(samples)
    }

    /// Milliseconds from each registration to the runner program's first output.
    async fn serve_batch(&self, batch: usize) -> Result<Vec<f64>> {
        let names: Vec<String> = (0..BATCH).map(|n| format!("ls-hand-{batch}-{n}")).collect();
        let spec = self.spec(500);
        self.intend(
            names
                .iter()
                .map(|name| (name.clone(), Desired::Run(spec.clone()))),
        )
        .await?;
        for name in &names {
            self.until(name, Phase::Ready).await?;
        }
        let mut samples = Vec::new();
        for name in &names {
            let container = self.until(name, Phase::Ready).await?.container_id;
            let options = AttachContainerOptionsBuilder::new()
                .stdout(true)
                .stderr(true)
                .stream(true)
                .build();
            let mut attached = self
                .docker
                .attach_container(&container, Some(options))
                .await?;
            let registration = v1::Registration {
                runner: name.clone(),
                jit_config: registration()?,
            };
            let begin = Instant::now();
            self.send(Down::Registration(registration)).await?;
            let first = tokio::time::timeout(PATIENCE, attached.output.next()).await;
            let took = begin.elapsed();
            first.context("no output")?.context("the output ended")??;
            samples.push(took.as_secs_f64() * 1e3);
            // Its removal is not to stand in the next one's way.
            self.until(name, Phase::Exited).await?;
        }
        self.intend(std::iter::empty()).await?;
        Ok(samples)
    }

    async fn rss(&self) -> Result<f64> {
        let spec = self.spec(50);
        let names: Vec<String> = (0..SLOTS).map(|n| format!("ls-slot-{n}")).collect();
        self.intend(
            names
                .iter()
                .map(|name| (name.clone(), Desired::Run(spec.clone()))),
        )
        .await?;
        for name in &names {
            self.until(name, Phase::Ready).await?;
        }
        resident_mib(self.agent.process.pid())
    }

    fn spec(&self, cpu_millis: u32) -> v1::RunnerSpec {
        v1::RunnerSpec {
            image: self.image.clone(),
            profile: "strict".into(),
            resources: Some(v1::Resources {
                cpu_millis,
                memory_bytes: 64 << 20,
                gpus: 0,
            }),
            network_mode: "open".into(),
            platform: platform().into(),
            ..v1::RunnerSpec::default()
        }
    }

    async fn send(&self, message: Down) -> Result<()> {
        let down = self
            .down
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        down.context("the agent is attached")?
            .send(Ok(v1::AttachResponse {
                message: Some(message),
            }))
            .await
            .context("the stream is open")
    }

    async fn intend(&self, runners: impl Iterator<Item = (String, Desired)>) -> Result<()> {
        let counter = self
            .generation
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
            + 1;
        let generation = v1::Generation { epoch: 1, counter };
        self.send(Down::Intent(v1::NodeIntent {
            generation: Some(generation),
            runners: runners
                .map(|(name, desired)| v1::RunnerIntent {
                    name,
                    desired: Some(desired),
                })
                .collect(),
            ..v1::NodeIntent::default()
        }))
        .await?;
        self.wait(|seen| seen.report.accepted == Some(generation))
            .await?;
        Ok(())
    }

    async fn until(&self, runner: &str, phase: Phase) -> Result<v1::ObservedRunner> {
        let of = |seen: &Seen| {
            let mut runners = seen.report.runners.iter();
            runners.find(|observed| observed.name == runner).cloned()
        };
        let seen = self
            .wait(|seen| {
                of(seen).is_some_and(|one| one.phase() == phase || one.phase() == Phase::Failed)
            })
            .await?;
        let found = of(&seen).context("waited for it")?;
        ensure!(found.phase() == phase, "{runner}: {:?}", found.error);
        Ok(found)
    }

    async fn wait(&self, is: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| is(seen))).await;
        Ok(waited.context("the agent does not come that far")??.clone())
    }

    /// Containers without a runner's name that run: all that are left are standbys.
    async fn until_standbys(&self, count: usize) -> Result<()> {
        let instance = Instance::new(&self.settings.node, &self.settings.state.to_string_lossy());
        let label = format!("longshore.instance={}", instance.as_str());
        let filters = std::collections::HashMap::from([("label", vec![label])]);
        let begin = Instant::now();
        loop {
            let options = ListContainersOptionsBuilder::new()
                .filters(&filters)
                .build();
            let running = self.docker.list_containers(Some(options)).await?.len();
            if running == count {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "{running} of {count} stand by");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn engine() -> Result<Docker> {
    Ok(
        Docker::connect_with_unix(SOCKET, 120, bollard::API_DEFAULT_VERSION)?
            .negotiate_version()
            .await?,
    )
}

fn platform() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "linux/arm64"
    } else {
        "linux/amd64"
    }
}

/// Files of the size that GitHub sends. The program says that it cannot use them, which
/// is output like any other.
fn registration() -> Result<Vec<u8>> {
    let files = BTreeMap::from([
        (".runner", STANDARD.encode("{}")),
        (".credentials", STANDARD.encode("c".repeat(400))),
        (".credentials_rsaparams", STANDARD.encode("r".repeat(2_600))),
    ]);
    Ok(STANDARD.encode(serde_json::to_vec(&files)?).into_bytes())
}

/// The agent's runtime and the engine alone make the same sandbox in turns.
pub(crate) async fn cold_start() -> Result<Vec<Row>> {
    let image = image()?;
    let folder = tempfile::tempdir()?;
    let cpus = u32::try_from(std::thread::available_parallelism()?.get())?;
    let instance = Instance::new("bench-cold", &folder.path().to_string_lossy());
    let runtime = DockerRuntime::new(Config {
        socket: SOCKET.into(),
        node: "bench-cold".into(),
        instance: instance.clone(),
        slots_cidr: SlotsCidr::parse("10.227.0.0/20").context("a range for slots")?,
        premade_slots: 2,
        parallel_starts: 2,
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
        image_keep: Duration::from_secs(3_600),
        host_cpus: cpus,
        profiles: sandbox::Offered::default(),
        runtimes: sandbox::OfferedRuntimes::default(),
        meminfo: "/proc/meminfo".into(),
        standby: None,
    });
    runtime.recover().await.context("engine and networks")?;
    let measured = pairs(&runtime, &instance, &image, cpus).await;
    runtime.purge().await.context("remove what was made")?;
    let (ours, bare) = measured?;
    keep_samples("cold_start", &ours)?;
    keep_samples("cold_start_bare", &bare)?;
    let ratios: Vec<f64> = ours.iter().zip(&bare).map(|(a, b)| a / b).collect();
    let (ours, bare) = (percentile(&ours, 0.5), percentile(&bare, 0.5));
    println!(
        "cold start {ours:.1} ms, bare create and start {bare:.1} ms; ratio of a pair {:.3} to {:.3}",
        percentile(&ratios, 0.0),
        percentile(&ratios, 1.0)
    );
    Ok(vec![Row::new(
        "cold_start",
        (percentile(&ratios, 0.5), "ratio"),
        (
            "bound; median of pairs with bare create+start, in turns",
            1.05,
        ),
        ratios.len(),
    )])
}

async fn pairs(
    runtime: &DockerRuntime,
    instance: &Instance,
    image: &str,
    cpus: u32,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let spec = RunnerSpec {
        image: image.into(),
        platform: platform().into(),
        resources: Resources {
            cpu_millis: 1_000,
            memory_bytes: 64 << 20,
            gpus: 0,
        },
        ..RunnerSpec::default()
    };
    let docker = engine().await?;
    let seccomp = runtime.facts().context("an engine")?.seccomp;
    let image_id = docker.inspect_image(image).await?.id.context("an id")?;
    let request = Request::from_spec(&spec).context("a good spec")?;
    // The first one fills the program volumes.
    runtime.prepare("ls-cold-warm", &spec).await?;
    runtime.remove("ls-cold-warm").await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for n in 0..PAIRS {
        let name = format!("ls-cold-{n}");
        // Who begins changes, so that neither always follows a removal of the other.
        for mine in [n % 2 == 0, n % 2 == 1] {
            let begin = Instant::now();
            if mine {
                runtime.prepare(&name, &spec).await?;
                ours.push(begin.elapsed().as_secs_f64() * 1e3);
                runtime.remove(&name).await?;
            } else {
                let volume = format!("ls-bare-{}-{n}", instance.as_str());
                let place = Place {
                    image_id: image_id.clone(),
                    network: instance.network(0),
                    work_volume: volume.clone(),
                    bin_volume: instance.program_volume("bin", &image_id),
                    externals_volume: instance.program_volume("ext", &image_id),
                    tools_volume: instance.program_volume("tools", &agent_core::tools::version()),
                    dns: vec![],
                    proxy: None,
                    host_cpus: cpus,
                    cgroup_parent: String::new(),
                    labels: vec![],
                    dialect: Dialect::DOCKER,
                    seccomp: seccomp.clone(),
                    users_are_mapped: false,
                    gpus: vec![],
                    runtimes: vec![],
                };
                let body = container_body(&sandbox::of(&request, &place));
                let options = CreateContainerOptionsBuilder::new()
                    .platform(&spec.platform)
                    .build();
                let id = docker.create_container(Some(options), body).await?.id;
                docker.start_container(&id, None).await?;
                bare.push(begin.elapsed().as_secs_f64() * 1e3);
                let options = RemoveContainerOptionsBuilder::new()
                    .force(true)
                    .v(true)
                    .build();
                docker.remove_container(&id, Some(options)).await?;
                docker
                    .remove_volume(&volume, None::<RemoveVolumeOptions>)
                    .await?;
            }
        }
    }
    Ok((ours, bare))
}
