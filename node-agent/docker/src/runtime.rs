//! The `Runtime` port on a container engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use agent_core::containers;
use agent_core::denied::Denied;
use agent_core::dialect::Dialect;
use agent_core::exit::{self, Ended};
use agent_core::firewall::{PROXY_PORT, Rules};
use agent_core::gpu::Injection;
use agent_core::lifecycle::IDLE_GRACE_MS;
use agent_core::model::{Condition, ErrorReason, Resources, RunnerSpec};
use agent_core::names::label;
use agent_core::probe::Probed;
use agent_core::runtime::{
    Found, Notice, Outcome, Outlook, Prepared, Processes, Runtime, RuntimeError,
};
use agent_core::sandbox::{self, Filter, Network, Place, Profile, Request, RuntimeClass};
use agent_egress::control::Open;
use bollard::Docker;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, KillContainerOptionsBuilder,
    RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tracing::{debug, warn};
use zeroize::Zeroizing;

use crate::beside::Beside;
use crate::config::Config;
use crate::egress::Egress;
use crate::engine::{self, EngineFacts, WorkFolders, bounded, down, failed, gone_is_fine, status};
use crate::firewall::Firewall;
use crate::gpus::Gpus;
use crate::gpus::{Proof, ProofProgram, ToProve};
use crate::handover;
use crate::images::Images;
use crate::outage::Outage;
use crate::recover::{inspect, utc_ms};
use crate::slots::{Kind, Slots};
use crate::standby::{self, Pool};
use crate::translate::container_body;
use crate::volumes::{Program, Volumes};
use crate::{disk_watch, events, images, inside, logs, processes, quota, seccomp, usage};

/// Notices waiting for the agent; more make their senders wait.
const NOTICES: usize = 1_024;
/// Pieces of output waiting, all runners together: 2 MiB.
const OUTPUTS: usize = 32;
const HAND_OVER: Duration = Duration::from_secs(15);
/// How long the rest of the output is waited for after the end.
const OUTPUT_END: Duration = Duration::from_secs(2);

const GROUP_TRIES: u32 = 10;
const GROUP_PAUSE: Duration = Duration::from_millis(50);

type Stdin = Pin<Box<dyn AsyncWrite + Send>>;

/// One sandbox of this process.
pub(crate) struct Handle {
    pub(crate) container: String,
    pub(crate) slot: Option<u32>,
    pub(crate) kind: Kind,
    pub(crate) work_volume: String,
    pub(crate) cgroup_parent: String,
    pub(crate) pid: i64,
    pub(crate) takes: Resources,
    /// Its first process as this one sees it; none where it cannot be seen.
    process: Option<PathBuf>,
    /// Of a runner that got a standby: what to make when that one turns out to be dead.
    afresh: Mutex<Option<Box<RunnerSpec>>>,
    /// Set where the job may have containers beside it.
    pub(crate) beside: Mutex<Option<Beside>>,
    pub(crate) containers: bool,
    /// The host sees none of its processes.
    pub(crate) hides_processes: bool,
    /// Why its use of the disk is the cause of its end.
    pub(crate) disk_full: Mutex<Option<String>>,
    stdin: Mutex<Option<bollard::container::AttachContainerResults>>,
    output: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    pub(crate) fn adopted(
        container: String,
        slot: Option<u32>,
        kind: Kind,
        work_volume: String,
        cgroup_parent: String,
        pid: i64,
        takes: Resources,
    ) -> Self {
        Self {
            container,
            slot,
            kind,
            work_volume,
            cgroup_parent,
            pid,
            takes,
            process: None,
            afresh: Mutex::default(),
            beside: Mutex::default(),
            containers: false,
            hides_processes: false,
            disk_full: Mutex::default(),
            stdin: Mutex::default(),
            output: Mutex::default(),
        }
    }

    /// Its first process is gone. False where that cannot be seen.
    pub(crate) fn is_dead(&self) -> bool {
        self.process.as_ref().is_some_and(|path| !path.exists())
    }
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    docker: OnceLock<(Docker, EngineFacts)>,
    fleet: Mutex<String>,
    sandboxes: Mutex<BTreeMap<String, Arc<Handle>>>,
    pub(crate) images: Arc<Images>,
    pub(crate) standby: Arc<Pool>,
    /// Of siblings: what a job names badly is no condition of the node.
    pub(crate) sibling_images: Arc<Images>,
    pub(crate) volumes: Volumes,
    pub(crate) slots: Slots,
    pub(crate) firewall: Firewall,
    pub(crate) egress: Egress,
    starts: Semaphore,
    pub(crate) outage: Mutex<Outage>,
    /// One probe at a time.
    pub(crate) probing: tokio::sync::Mutex<()>,
    pub(crate) gpus: Gpus,
    notices: mpsc::Sender<Notice>,
    output: mpsc::Sender<Notice>,
}

/// Sandboxes on Docker or on Podman's Docker-compatible socket.
pub struct DockerRuntime {
    inner: Arc<Inner>,
    inbox: tokio::sync::Mutex<(mpsc::Receiver<Notice>, mpsc::Receiver<Notice>)>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for DockerRuntime {
    fn drop(&mut self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

/// Whom a sandbox is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    Job,
    /// To be parked.
    Nobody,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DockerRuntime {
    /// Does not touch the engine yet; `recover` connects.
    pub fn new(config: Config) -> Self {
        let (notices, inbox) = mpsc::channel(NOTICES);
        let (output, lines) = mpsc::channel(OUTPUTS);
        let rules = Rules {
            table: config.instance.table(),
            bridge_prefix: config.instance.bridge_prefix(),
            resolvers: config.dns.clone(),
            closed_prefix: config.instance.closed_prefix(),
            allowed: config.allow_ranges.clone(),
        };
        let inner = Inner {
            docker: OnceLock::new(),
            fleet: Mutex::default(),
            sandboxes: Mutex::default(),
            images: Arc::new(Images::open(&config.state_dir)),
            // One at a time for each processor that may start three.
            standby: Arc::new(Pool::new(
                config.standby,
                config.parallel_starts.div_ceil(3),
            )),
            sibling_images: Arc::default(),
            volumes: Volumes::new(
                config.instance.clone(),
                config.node.clone(),
                &config.state_dir,
                config.job_disk,
                &config.socket,
            ),
            slots: Slots::new(
                config.instance.clone(),
                config.node.clone(),
                config.slots_cidr,
            ),
            firewall: Firewall::new(rules, config.firewall),
            egress: Egress::new(
                &config.state_dir,
                &config.instance,
                config.egress_socket.clone(),
            ),
            starts: Semaphore::new(config.parallel_starts.max(1)),
            outage: Mutex::default(),
            probing: Default::default(),
            gpus: Gpus::default(),
            notices,
            output,
            config,
        };
        Self {
            inner: Arc::new(inner),
            inbox: tokio::sync::Mutex::new((inbox, lines)),
            tasks: Mutex::default(),
        }
    }

    /// What the engine said of itself, after a successful `recover`.
    pub fn facts(&self) -> Option<EngineFacts> {
        let (_, facts) = self.inner.docker.get()?;
        let mut facts = facts.clone();
        facts.work_folders = match self.inner.volumes.quota.state() {
            quota::State::Works => WorkFolders::Sized,
            quota::State::Watched(why) => WorkFolders::Watched(why),
            quota::State::Untried => WorkFolders::Untried,
        };
        Some(facts)
    }

    /// The runtime classes that a sandbox may be asked to have, by the engine's names.
    pub fn runtimes(&self) -> Vec<(RuntimeClass, String)> {
        let facts = self.inner.engine_facts();
        facts.map_or_else(Vec::new, |facts| self.inner.runtimes(&facts))
    }

    /// Why this node cannot offer network mode `allowlist`, if it cannot.
    pub fn allowlist_gap(&self) -> Option<String> {
        self.inner.egress.gap()
    }

    /// What jobs may be given from now on, and how; running ones keep what they have.
    pub fn offer_gpus(&self, offered: BTreeMap<String, Injection>) {
        self.inner.gpus.offer(offered);
    }

    /// Starts a container with each of the GPUs, one after the other, and says
    /// what it saw.
    pub async fn prove_gpus(
        &self,
        program: &ProofProgram,
        wanted: &[ToProve],
    ) -> Result<Vec<Proof>, RuntimeError> {
        self.inner.prove_gpus(program, wanted).await
    }

    /// Whether a process, by its `/proc/PID/cgroup`, is in a sandbox of this agent.
    pub fn holds_process(&self, cgroup: &str) -> bool {
        // Without a parent group of ours, the container's id is in the path.
        let instance = format!("longshore-{}", self.inner.config.instance.as_str());
        let own = |line: &str| {
            line.split(['/', ':']).any(|part| {
                part.strip_prefix(&instance)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
            })
        };
        cgroup.lines().any(own)
            || lock(&self.inner.sandboxes)
                .values()
                .any(|handle| cgroup.contains(&handle.container))
    }

    /// Asks an engine what it is, and changes nothing.
    pub async fn detect(socket: &Path) -> Result<EngineFacts, RuntimeError> {
        engine::facts(&engine::connect(socket).await?).await
    }

    /// Removes everything this agent made on the engine and its firewall table.
    pub async fn purge(&self) -> Result<(), RuntimeError> {
        let docker = self.inner.engine().await?;
        for id in self.inner.own_containers(&docker).await? {
            self.inner.remove_container(&docker, &id).await?;
        }
        self.inner.sweep_own_images(&docker).await?;
        self.inner
            .volumes
            .sweep(&docker, &Default::default(), true)
            .await?;
        self.inner.remove_own_images(&docker).await?;
        self.inner.egress.stop().await;
        self.inner.slots.clear(&docker).await?;
        usage::remove_all(Path::new(usage::ROOT), self.inner.config.instance.as_str());
        self.inner.firewall.remove().await.map_err(refused)
    }
}

impl Inner {
    pub(crate) fn docker(&self) -> Option<Docker> {
        self.docker.get().map(|(docker, _)| docker.clone())
    }

    async fn engine(&self) -> Result<Docker, RuntimeError> {
        if let Some(docker) = self.docker() {
            return Ok(docker);
        }
        let docker = engine::connect(&self.config.socket).await?;
        let mut facts = engine::facts(&docker).await?;
        if Dialect::of(&facts.kind).seccomp_by_file && facts.seccomp == Filter::Text {
            facts.seccomp = seccomp::write(&self.config.state_dir);
        }
        let (quota, mut problem) = (self.volumes.quota.clone(), facts.work_folder_problem());
        if facts.live_restore && problem.is_none() {
            problem = self.volumes.mounts.process().await.err();
            quota.mount_by_agent();
        }
        // A panic in it leaves it untried: then folders are watched.
        let _ = tokio::task::spawn_blocking(move || quota.prove(problem)).await;
        Ok(self.docker.get_or_init(|| (docker, facts)).0.clone())
    }

    /// Sandboxes of runners, by the runner's name.
    pub(crate) fn live(&self) -> Vec<(String, Arc<Handle>)> {
        lock(&self.sandboxes)
            .iter()
            .map(|(runner, handle)| (runner.clone(), handle.clone()))
            .collect()
    }

    pub(crate) fn connected(&self) -> Result<(Docker, EngineFacts), RuntimeError> {
        self.docker
            .get()
            .cloned()
            .ok_or_else(|| down("the engine was never reached".into()))
    }

    pub(crate) fn engine_facts(&self) -> Option<EngineFacts> {
        self.docker.get().map(|(_, facts)| facts.clone())
    }

    pub(crate) async fn tell(&self, notice: Notice) {
        // The receiver lives as long as the runtime; a closed one means the end.
        let _ = self.notices.send(notice).await;
    }

    pub(crate) fn insert(&self, runner: String, handle: Handle) -> Arc<Handle> {
        let handle = Arc::new(handle);
        lock(&self.sandboxes).insert(runner, handle.clone());
        handle
    }

    fn handle(&self, runner: &str) -> Result<Arc<Handle>, RuntimeError> {
        lock(&self.sandboxes)
            .get(runner)
            .cloned()
            .ok_or_else(|| RuntimeError {
                reason: ErrorReason::StartFailed,
                detail: format!("this agent has no sandbox for {runner}"),
            })
    }

    /// What the sandboxes of runners take of the node.
    pub(crate) fn takes(&self) -> Vec<Resources> {
        lock(&self.sandboxes)
            .values()
            .map(|handle| handle.takes)
            .collect()
    }

    pub(crate) async fn died(&self, container: &str) {
        if self.standby.died(container) {
            return;
        }
        let runner = lock(&self.sandboxes)
            .iter()
            .find(|(_, handle)| handle.container == container)
            .map(|(runner, _)| runner.clone());
        if let Some(runner) = runner {
            self.tell(Notice::Died { runner }).await;
        }
    }

    /// Tells of every sandbox that is not running any more.
    pub(crate) async fn resync(&self, docker: &Docker) -> Result<(), RuntimeError> {
        bounded("asking the engine whether it is there", docker.ping()).await?;
        // One lock after the other: the pool looks at the sandboxes while it holds its own.
        let mut known = self.standby.containers();
        known.extend(
            lock(&self.sandboxes)
                .values()
                .map(|handle| handle.container.clone()),
        );
        for id in known {
            let container = inspect(docker, &id).await?;
            let running = container
                .and_then(|c| c.state)
                .and_then(|state| state.running)
                .unwrap_or(false);
            if !running {
                self.died(&id).await;
            }
        }
        Ok(())
    }

    pub(crate) fn follow_output(&self, docker: &Docker, runner: &str, handle: &Handle) {
        let task = logs::follow(
            docker.clone(),
            handle.container.clone(),
            runner.to_owned(),
            self.output.clone(),
        );
        *lock(&handle.output) = Some(task);
    }

    pub(crate) async fn look_at(
        &self,
        docker: &Docker,
        handle: &Handle,
    ) -> Result<Processes, RuntimeError> {
        if handle.hides_processes {
            return self.look_from_inside(docker, &handle.container).await;
        }
        let seen = processes::of_pid(Path::new("/proc"), Path::new(usage::ROOT), handle.pid);
        if let Some(seen) = seen {
            return Ok(seen);
        }
        let what = format!("listing processes of {}", handle.container);
        let top = bounded(&what, async {
            match docker.top_processes(&handle.container, None).await {
                // Not running: there is nobody in it.
                Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(Default::default()),
                other => other,
            }
        })
        .await?;
        let column = top
            .titles
            .unwrap_or_default()
            .iter()
            .position(|title| title == "CMD" || title == "COMMAND")
            .unwrap_or(usize::MAX);
        let rows = top.processes.unwrap_or_default();
        let lines = rows.iter().filter_map(|row| row.get(column).or(row.last()));
        Ok(processes::of_command_lines(lines.map(String::as_str)))
    }

    pub(crate) async fn remove_container(
        &self,
        docker: &Docker,
        id: &str,
    ) -> Result<(), RuntimeError> {
        // Podman's forced removal interrupts first and waits for the stop timeout. Whether
        // there was something to kill is worded differently everywhere; removal tells.
        if let Err(error) = kill(docker, id, "SIGKILL").await {
            debug!(%error, "nothing to kill before the removal");
        }
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        bounded(&format!("removing container {id}"), async {
            match gone_is_fine(docker.remove_container(id, Some(options)).await) {
                // Somebody is removing it already.
                Err(error)
                    if status(&error) == Some(409)
                        && error.to_string().contains("already in progress") =>
                {
                    Ok(())
                }
                other => other,
            }
        })
        .await
    }

    pub(crate) fn enough_disk(&self, facts: &EngineFacts) -> Result<(), RuntimeError> {
        for path in [Path::new(&facts.root_dir), &self.config.state_dir] {
            if let Some(free) = space_of(path).map(|space| space.free)
                && free < self.config.min_free_disk
            {
                return Err(RuntimeError {
                    reason: ErrorReason::DiskFull,
                    detail: format!(
                        "{} has {} MiB free, less than min_free_disk ({} MiB)",
                        path.display(),
                        free >> 20,
                        self.config.min_free_disk >> 20
                    ),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn offers(&self, profile: Profile) -> Result<(), RuntimeError> {
        let podman = self
            .docker
            .get()
            .is_some_and(|(_, facts)| facts.kind == "podman");
        let why = match self.config.profiles.has(profile) {
            false => "it is left out of profiles in its configuration",
            true if profile.terms().containers && podman => "job containers need Docker",
            true => return Ok(()),
        };
        Err(RuntimeError {
            reason: ErrorReason::SpecRefused,
            detail: format!(
                "profile {} is not offered by this node: {why}",
                profile.word()
            ),
        })
    }

    /// What the engine calls the runtime classes that pools may ask this node for.
    pub(crate) fn runtimes(&self, facts: &EngineFacts) -> Vec<(RuntimeClass, String)> {
        self.config.runtimes.on(&facts.registered())
    }

    pub(crate) fn has_runtime(
        &self,
        facts: &EngineFacts,
        asked: Option<RuntimeClass>,
    ) -> Result<(), RuntimeError> {
        let Some(asked) = asked else { return Ok(()) };
        let offered = self.runtimes(facts);
        if offered.iter().any(|(class, _)| *class == asked) {
            return Ok(());
        }
        Err(RuntimeError {
            reason: ErrorReason::SpecRefused,
            detail: format!(
                "runtime {} is not offered by this node: its engine has {}, and runtimes in the agent's configuration may leave some out",
                asked.word(),
                facts.runtimes.join(", ")
            ),
        })
    }

    /// What this node adds to a sandbox in a slot; the tools come on top.
    pub(crate) fn place(
        &self,
        facts: &EngineFacts,
        slot: u32,
        salt: &str,
        image_id: &str,
        program: &Program,
    ) -> Place {
        let instance = &self.config.instance;
        Place {
            image_id: image_id.to_owned(),
            network: instance.network(slot),
            work_volume: instance.work_volume(slot, salt),
            bin_volume: program.bin.clone(),
            externals_volume: program.externals.clone(),
            tools_volume: String::new(),
            dns: self.config.dns.iter().map(ToString::to_string).collect(),
            proxy: None,
            host_cpus: self.config.host_cpus,
            cgroup_parent: usage::parent(
                &facts.cgroup_driver,
                facts.rootless,
                instance.as_str(),
                salt,
            ),
            labels: vec![
                (label::INSTANCE.into(), instance.as_str().into()),
                (label::NODE.into(), self.config.node.clone()),
                (label::FLEET.into(), lock(&self.fleet).clone()),
                (label::ROLE.into(), "runner".into()),
                (label::SLOT.into(), slot.to_string()),
            ],
            dialect: Dialect::of(&facts.kind),
            seccomp: facts.seccomp.clone(),
            users_are_mapped: facts.users_are_mapped(),
            gpus: vec![],
            runtimes: self.runtimes(facts),
        }
    }

    async fn make(
        &self,
        spec: &RunnerSpec,
        lifetime_ms: u64,
        salt: &str,
        slot: u32,
        whom: For,
    ) -> Result<(Handle, String), RuntimeError> {
        let (docker, facts) = self.connected()?;
        let request = Request::from_spec(spec).map_err(|refusal| RuntimeError {
            reason: ErrorReason::SpecRefused,
            detail: refusal.to_string(),
        })?;
        self.offers(request.profile)?;
        self.has_runtime(&facts, request.runtime)?;
        let image_id = self
            .images
            .ensure(&docker, &request.image, &request.platform, self.config.pull)
            .await?;
        let program = self
            .volumes
            .program(&docker, &image_id, &request.platform)
            .await?;
        let tools_volume = self
            .volumes
            .tools(&docker, &image_id, &request.platform)
            .await?;
        // Refills have lanes of their own, so that no job ever waits for one.
        let _start = match whom {
            For::Nobody => None,
            For::Job => Some(
                self.starts
                    .acquire()
                    .await
                    .map_err(|_| down("the agent is ending".into()))?,
            ),
        };
        let kind = kind_of(&request);
        let egress = match kind {
            Kind::Open => None,
            Kind::Closed => Some(self.egress_of(slot, request.allowed_domains.clone())?),
        };
        let mut place = self.place(&facts, slot, salt, &image_id, &program);
        place.tools_volume = tools_volume;
        let lifetime = (label::LIFETIME_MS.into(), lifetime_ms.to_string());
        place.labels.extend([
            lifetime,
            (label::PROFILE.into(), request.profile.word().into()),
            (label::PLATFORM.into(), request.platform.clone()),
            (
                label::RUNTIME.into(),
                inside::word(request.runtime, &facts).into(),
            ),
        ]);
        place.network = self.slots.network(slot, kind);
        if let Some(open) = &egress {
            place.proxy = Some(format!("http://{}", open.listen));
            let allowed = request.allowed_domains.join(" ");
            place.labels.push((label::ALLOWED.into(), allowed));
        }
        place.gpus = self.gpus.leases(&request.gpus)?;
        if !request.gpus.is_empty() {
            let uuids = request.gpus.join(",");
            place.labels.push((label::GPUS.into(), uuids));
        }
        let hash = sandbox::of(&request, &place).spec_hash();
        place.labels.push((label::SPEC.into(), hash));
        let sandbox = sandbox::of(&request, &place);
        let name = self.config.instance.unnamed_container(slot, salt);
        let options = CreateContainerOptionsBuilder::new()
            .name(&name)
            .platform(&request.platform)
            .build();
        // Held until the engine has mounted it.
        let _device = self
            .volumes
            .make_work(&docker, &place.work_volume, &image_id, &request.platform)
            .await?;
        let created = tokio::time::timeout(
            engine::CALL,
            docker.create_container(Some(options), container_body(&sandbox)),
        )
        .await;
        let refusal = match created {
            Ok(Ok(created)) => Ok(created.id),
            Ok(Err(error)) => {
                self.blame(&error, &request.image, &program, slot).await;
                Err(failed(&format!("making container {name}"), &error))
            }
            Err(_) => Err(down(format!(
                "making container {name}: no answer from the engine"
            ))),
        };
        let container = match refusal {
            Ok(container) => container,
            Err(error) => {
                if let Err(left) = self.volumes.delete(&docker, &place.work_volume).await {
                    warn!(%left, "left a volume behind; it is swept at the next start");
                }
                return Err(error);
            }
        };
        let mut handle = Handle::adopted(
            container.clone(),
            Some(slot),
            kind,
            place.work_volume.clone(),
            place.cgroup_parent.clone(),
            0,
            spec.resources,
        );
        handle.containers = request.profile.terms().containers;
        handle.hides_processes = inside::hides_processes(request.runtime, &facts);
        let started = match (self.start(&docker, &mut handle).await, egress) {
            // Not before: Podman makes a bridge with its first container.
            (Ok(()), Some(open)) => self.egress.open(slot, open).await,
            (started, _) => started,
        };
        if let Err(error) = started {
            if error.detail.contains("failed to mount local volume") {
                self.volumes.quota.give_up(error.detail.clone());
            }
            self.discard(&docker, &handle).await;
            return Err(error);
        }
        Ok((handle, image_id))
    }

    /// A started sandbox and the digest of its image. The same for a job and for nobody.
    pub(crate) async fn start_sandbox(
        &self,
        spec: &RunnerSpec,
        whom: For,
    ) -> Result<(Handle, String), RuntimeError> {
        let (docker, facts) = self.connected()?;
        self.enough_disk(&facts)?;
        let kind = kind_by_word(&spec.network_mode);
        let slot = match whom {
            For::Job => self.slot_for_a_job(&docker, kind).await?,
            For::Nobody => self.slots.take(&docker, kind).await?,
        };
        let salt = format!("{:08x}", rand::random::<u32>());
        self.firewall.begin(&self.slots.network(slot, kind)).await;
        let made = self.make(spec, spec.lifetime_ms, &salt, slot, whom).await;
        if made.is_err() {
            self.give_back(slot, kind).await;
        }
        made
    }

    /// Nobody uses the slot any more.
    pub(crate) async fn give_back(&self, slot: u32, kind: Kind) {
        self.egress.close(slot).await;
        self.firewall.end(&self.slots.network(slot, kind));
        self.slots.release(slot).await;
    }

    /// A refused creation may mean that something cached is gone.
    async fn blame(
        &self,
        error: &bollard::errors::Error,
        image: &str,
        program: &Program,
        slot: u32,
    ) {
        if status(error) == Some(404) {
            self.images.forget(image);
            self.volumes.forget(program);
            self.volumes.forget_tools();
            if error.to_string().contains("network") {
                self.slots.lost(slot).await;
            }
        }
    }

    async fn start(&self, docker: &Docker, handle: &mut Handle) -> Result<(), RuntimeError> {
        // Attached before the start, so that standard input is never without a reader's end.
        let options = AttachContainerOptionsBuilder::new()
            .stdin(true)
            .stream(true)
            .build();
        let stdin = bounded(
            &format!("attaching to {}", handle.container),
            docker.attach_container(&handle.container, Some(options)),
        )
        .await?;
        *lock(&handle.stdin) = Some(stdin);
        bounded(
            &format!("starting container {}", handle.container),
            docker.start_container(&handle.container, None),
        )
        .await?;
        let container = inspect(docker, &handle.container).await?;
        handle.pid = container
            .and_then(|c| c.state)
            .and_then(|state| state.pid)
            .unwrap_or(0);
        let process = PathBuf::from(format!("/proc/{}", handle.pid));
        handle.process = (handle.pid > 0 && process.exists()).then_some(process);
        Ok(())
    }

    /// True when nothing of it is left.
    pub(crate) async fn discard(&self, docker: &Docker, handle: &Handle) -> bool {
        let mut whole = true;
        for result in [
            self.remove_siblings(docker, handle).await,
            self.remove_container(docker, &handle.container).await,
            self.volumes.delete(docker, &handle.work_volume).await,
        ] {
            if let Err(error) = result {
                whole = false;
                warn!(%error, "left something behind; it is swept at the next start");
            }
        }
        remove_group(&handle.cgroup_parent).await;
        whole
    }

    async fn prepare(&self, runner: &str, spec: &RunnerSpec) -> Result<Prepared, RuntimeError> {
        let (docker, facts) = self.connected()?;
        self.enough_disk(&facts)?;
        let spare = self.take_standby(&docker, runner, spec).await?;
        let handle = match spare {
            Some(handle) => {
                *lock(&handle.afresh) = Some(Box::new(spec.clone()));
                handle
            }
            None => {
                let _cold = self.standby.cold(spec.resources);
                self.start_sandbox(spec, For::Job).await?.0
            }
        };
        let handle = self.insert(runner.to_owned(), handle);
        Ok(Prepared {
            container_id: handle.container.clone(),
        })
    }

    async fn hand_over(&self, runner: &str, jit_config: &[u8]) -> Result<(), RuntimeError> {
        let (docker, _) = self.connected()?;
        let handle = self.handle(runner)?;
        let given = match self.give(&docker, runner, &handle, jit_config).await {
            // Not all of it went in, so nothing was started with it.
            Err(Failed {
                whole: false,
                error,
            }) => {
                self.give_afresh(&docker, runner, &handle, jit_config, error)
                    .await
            }
            other => other.map_err(|failed| failed.error),
        };
        self.standby.served(runner);
        given
    }

    /// A registration as its sandbox unpacks it, with the way to containers where the job
    /// may have them.
    async fn packed(
        &self,
        docker: &Docker,
        handle: &Handle,
        jit_config: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, RuntimeError> {
        let letter = match handle.containers {
            true => self.let_have_containers(docker, handle).await?,
            false => None,
        };
        let own = letter
            .as_ref()
            .map(|letter| (containers::FILE, letter.as_str()));
        handover::archive_with(jit_config, own).map_err(|error| refused(error.to_string()))
    }

    /// Renames the sandbox, writes the registration, closes the input.
    async fn give(
        &self,
        docker: &Docker,
        runner: &str,
        handle: &Handle,
        jit_config: &[u8],
    ) -> Result<(), Failed> {
        let before = |error| Failed {
            whole: false,
            error,
        };
        let archive = self
            .packed(docker, handle, jit_config)
            .await
            .map_err(|error| Failed { whole: true, error })?;
        let attached = lock(&handle.stdin).take();
        let mut attached = attached.ok_or_else(|| Failed {
            whole: true,
            error: refused(format!("{runner} was handed over before")),
        })?;
        // First the name: a container that has it may hold a registration.
        let options = RenameContainerOptionsBuilder::new().name(runner).build();
        bounded(
            &format!("renaming a sandbox to {runner}"),
            docker.rename_container(&handle.container, options),
        )
        .await
        .map_err(before)?;
        // An engine takes what is written for a dead container, and drops it.
        if handle.is_dead() {
            let why = format!("the sandbox of {runner} ended before its registration came");
            return Err(before(refused(why)));
        }
        self.follow_output(docker, runner, handle);
        let mut whole = false;
        let write = async {
            let stdin: &mut Stdin = &mut attached.input;
            stdin.write_all(&archive).await?;
            whole = true;
            stdin.flush().await?;
            stdin.shutdown().await
        };
        let result = tokio::time::timeout(HAND_OVER, write).await;
        let error = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => refused(format!("writing the registration of {runner}: {error}")),
            Err(_) => refused(format!(
                "{runner} did not take its registration within {} s",
                HAND_OVER.as_secs()
            )),
        };
        Err(Failed { whole, error })
    }

    /// A standby that died before its hand-over is replaced by a cold start. Anything
    /// else that failed has failed.
    async fn give_afresh(
        &self,
        docker: &Docker,
        runner: &str,
        dead: &Handle,
        jit_config: &[u8],
        error: RuntimeError,
    ) -> Result<(), RuntimeError> {
        let Some(spec) = lock(&dead.afresh).take() else {
            return Err(error);
        };
        let running = inspect(docker, &dead.container)
            .await?
            .and_then(|container| container.state)
            .and_then(|state| state.running)
            .unwrap_or(false);
        if running {
            return Err(error);
        }
        warn!(runner, %error, "its standby had died; starting afresh");
        let _cold = self.standby.cold(spec.resources);
        if !self.discard(docker, dead).await {
            return Err(error);
        }
        // No longer this runner's, so that it is not removed with it a second time.
        lock(&self.sandboxes).remove(runner);
        if let Some(slot) = dead.slot {
            self.give_back(slot, dead.kind).await;
        }
        let (handle, _) = self.start_sandbox(&spec, For::Job).await?;
        let handle = self.insert(runner.to_owned(), handle);
        self.give(docker, runner, &handle, jit_config)
            .await
            .map_err(|failed| failed.error)
    }

    pub(crate) async fn end(
        self: &Arc<Self>,
        runner: &str,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let (docker, _) = self.connected()?;
        let handle = self.handle(runner)?;
        kill(&docker, &handle.container, "SIGINT").await?;
        let container = handle.container.clone();
        let name = runner.to_owned();
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            if let Err(error) = kill(&docker, &container, "SIGKILL").await {
                warn!(runner = name, %error, "could not kill a runner after its grace");
            }
        });
        Ok(())
    }

    async fn collect(&self, runner: &str) -> Result<Outcome, RuntimeError> {
        let (docker, _) = self.connected()?;
        let Ok(handle) = self.handle(runner) else {
            return Ok(Outcome::default());
        };
        lock(&handle.stdin).take();
        let Some(mut container) = inspect(&docker, &handle.container).await? else {
            return Ok(Outcome {
                usage: usage::read(Path::new(usage::ROOT), &handle.cgroup_parent),
                denied: self.denied(&handle).await,
                ..Outcome::default()
            });
        };
        if container
            .state
            .as_ref()
            .and_then(|state| state.running)
            .unwrap_or(false)
        {
            let grace = i32::try_from(IDLE_GRACE_MS / 1_000).unwrap_or(5);
            let options = StopContainerOptionsBuilder::new().t(grace).build();
            bounded(&format!("stopping {runner}"), async {
                gone_is_fine(
                    docker
                        .stop_container(&handle.container, Some(options))
                        .await,
                )
            })
            .await?;
            container = inspect(&docker, &handle.container)
                .await?
                .unwrap_or_default();
        }
        let output = lock(&handle.output).take();
        if let Some(output) = output
            && tokio::time::timeout(OUTPUT_END, output).await.is_err()
        {
            debug!(runner, "the rest of the output was not waited for");
        }
        let state = container.state.unwrap_or_default();
        if state.exit_code == Some(i64::from(exit::VERSION_DEPRECATED))
            && let Some(image) = &container.image
        {
            self.images.refused(image);
        }
        let engine_error = state.error.unwrap_or_default();
        let finished_utc_ms = state.finished_at.as_deref().map_or(0, utc_ms);
        let outage = *lock(&self.outage);
        let engine_restarted = outage.covers(finished_utc_ms);
        let engine_stopped = match outage.began() {
            Some(began) if engine_restarted => {
                events::was_signalled(&docker, &handle.container, began).await
            }
            _ => false,
        };
        Ok(Outcome {
            ended: Ended {
                code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
                oom_killed: state.oom_killed.unwrap_or(false),
                engine_error,
                unseen: finished_utc_ms == 0,
                engine_restarted,
                engine_stopped,
                disk_full: self.disk_full(&docker, &handle).await,
                ..Ended::default()
            },
            usage: usage::read(Path::new(usage::ROOT), &handle.cgroup_parent),
            finished_utc_ms,
            denied: self.denied(&handle).await,
        })
    }

    /// What firewall and proxy denied it; absent where that cannot be told.
    async fn denied(&self, handle: &Handle) -> Option<Denied> {
        let slot = handle.slot?;
        let dropped = self
            .firewall
            .denied(&self.slots.network(slot, handle.kind))
            .await?;
        match handle.kind {
            Kind::Open => Some(dropped),
            Kind::Closed => Some(dropped.and(self.egress.denied(slot).await?)),
        }
    }

    /// What the proxy is told of a slot.
    pub(crate) fn egress_of(&self, slot: u32, allowed: Vec<String>) -> Result<Open, RuntimeError> {
        let net = self.slots.net(slot);
        let net = net.ok_or_else(|| refused(format!("slot {slot} has no addresses")))?;
        let gateway: std::net::IpAddr = net
            .gateway
            .parse()
            .map_err(|_| refused(format!("slot {slot} has no gateway")))?;
        Ok(Open {
            listen: (gateway, PROXY_PORT).into(),
            subnet: net.subnet,
            allowed,
            ranges: self
                .config
                .allow_ranges
                .iter()
                .map(ToString::to_string)
                .collect(),
        })
    }

    async fn remove(&self, runner: &str) -> Result<(), RuntimeError> {
        let (docker, _) = self.connected()?;
        let Ok(handle) = self.handle(runner) else {
            return Ok(());
        };
        self.remove_siblings(&docker, &handle).await?;
        self.remove_container(&docker, &handle.container).await?;
        self.volumes.delete(&docker, &handle.work_volume).await?;
        remove_group(&handle.cgroup_parent).await;
        if let Some(slot) = handle.slot {
            self.give_back(slot, handle.kind).await;
        }
        lock(&self.sandboxes).remove(runner);
        self.standby.served(runner);
        Ok(())
    }

    async fn conditions(&self) -> Vec<Condition> {
        self.firewall.count().await;
        // What it refuses is told by its condition.
        let _ = self.egress.assert().await;
        let mut conditions = self.images.conditions();
        conditions.extend(self.firewall.condition().await);
        conditions.extend(self.egress.condition());
        conditions.extend(self.slots.condition());
        if let Some((_, facts)) = self.docker.get()
            && let Err(error) = self.enough_disk(facts)
        {
            conditions.push(Condition {
                kind: "disk_full",
                detail: error.detail,
                next_step: "free space on that disk (docker image prune), or lower min_free_disk"
                    .into(),
                image: String::new(),
            });
        }
        conditions
    }
}

/// A hand-over that did not work.
struct Failed {
    /// All of the registration may be inside.
    whole: bool,
    error: RuntimeError,
}

/// Which slot a request needs.
fn kind_of(request: &Request) -> Kind {
    match request.network {
        Network::Allowlist => Kind::Closed,
        Network::Open | Network::None => Kind::Open,
    }
}

fn kind_by_word(network_mode: &str) -> Kind {
    match network_mode {
        "allowlist" => Kind::Closed,
        _ => Kind::Open,
    }
}

fn refused(detail: String) -> RuntimeError {
    RuntimeError {
        reason: ErrorReason::StartFailed,
        detail,
    }
}

/// An engine's helper process may outlive its container by a moment.
pub(crate) async fn remove_group(parent: &str) {
    for _ in 0..GROUP_TRIES {
        if usage::remove(Path::new(usage::ROOT), parent) {
            return;
        }
        tokio::time::sleep(GROUP_PAUSE).await;
    }
    debug!(parent, "a control group stays until the next start");
}

async fn kill(docker: &Docker, container: &str, signal: &str) -> Result<(), RuntimeError> {
    let options = KillContainerOptionsBuilder::new().signal(signal).build();
    bounded(&format!("sending {signal} to {container}"), async {
        match docker.kill_container(container, Some(options)).await {
            // Not there or not running: that is what was wanted.
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(()),
            other => other,
        }
    })
    .await
}

/// Room on the disk of a path, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) total: u64,
    /// For an ordinary user.
    pub(crate) free: u64,
}

#[allow(unsafe_code)]
pub(crate) fn space_of(path: &Path) -> Option<Space> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a C string and the buffer is of the right type; it is read only after success.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some(Space {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

impl Runtime for DockerRuntime {
    async fn recover(&self) -> Result<Vec<Found>, RuntimeError> {
        let docker = self.inner.engine().await?;
        let found = self.inner.recover_all(&docker).await?;
        let mut tasks = lock(&self.tasks);
        if tasks.is_empty() {
            let inner = Arc::downgrade(&self.inner);
            tasks.push(tokio::spawn(events::follow(inner.clone())));
            tasks.push(tokio::spawn(disk_watch::watch(inner.clone())));
            tasks.push(tokio::spawn(images::refresh::keep(inner.clone())));
            tasks.push(tokio::spawn(standby::keep(
                inner,
                self.inner.standby.clone(),
            )));
        }
        Ok(found)
    }

    async fn prepare(&self, runner: &str, spec: &RunnerSpec) -> Result<Prepared, RuntimeError> {
        self.inner.prepare(runner, spec).await
    }

    async fn hand_over(&self, runner: &str, jit_config: &[u8]) -> Result<(), RuntimeError> {
        self.inner.hand_over(runner, jit_config).await
    }

    async fn look(&self, runner: &str) -> Result<Processes, RuntimeError> {
        let (docker, _) = self.inner.connected()?;
        let handle = self.inner.handle(runner)?;
        self.inner.look_at(&docker, &handle).await
    }

    async fn end(&self, runner: &str, grace: Duration) -> Result<(), RuntimeError> {
        self.inner.end(runner, grace).await
    }

    async fn collect(&self, runner: &str) -> Result<Outcome, RuntimeError> {
        self.inner.collect(runner).await
    }

    async fn remove(&self, runner: &str) -> Result<(), RuntimeError> {
        self.inner.remove(runner).await
    }

    async fn probe(&self, spec: &RunnerSpec) -> Result<Option<Probed>, RuntimeError> {
        self.inner.probe(spec).await.map(Some)
    }

    async fn assert_firewall(&self) -> Result<(), RuntimeError> {
        self.inner.firewall.assert().await
    }

    async fn conditions(&self) -> Vec<Condition> {
        self.inner.conditions().await
    }

    async fn notice(&self) -> Notice {
        let mut inbox = self.inbox.lock().await;
        let (notices, output) = &mut *inbox;
        // A flood of output does not hold up the rest.
        tokio::select! {
            biased;
            Some(notice) = notices.recv() => notice,
            Some(notice) = output.recv() => notice,
            // The senders live in `inner`, so this is never reached.
            else => std::future::pending().await,
        }
    }

    fn set_fleet(&self, fleet: &str) {
        let before = std::mem::replace(&mut *lock(&self.inner.fleet), fleet.to_owned());
        // Containers say whom they serve, and labels cannot be changed.
        if before != fleet {
            self.inner.standby.lose_all();
        }
    }

    fn outlook(&self, outlook: Outlook) {
        self.inner.standby.outlook(outlook);
    }

    async fn detach(&self) {
        self.inner.standby.close().await;
    }
}
