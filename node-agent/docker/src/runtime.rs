//! The `Runtime` port on a container engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use agent_core::dialect::Dialect;
use agent_core::firewall::Rules;
use agent_core::gpu::Injection;
use agent_core::model::{Condition, Resources, RunnerSpec};
use agent_core::probe::Probed;
use agent_core::runtime::{
    Found, Notice, Outcome, Outlook, Prepared, Processes, Runtime, RuntimeError,
};
use agent_core::sandbox::{Filter, RuntimeClass};
use bollard::Docker;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::beside::Beside;
use crate::config::Config;
use crate::egress::Egress;
use crate::ending::remove_groups;
use crate::engine::{
    EngineFacts, WorkFolders, bounded, down, quick, refused, remove_container, status,
};
use crate::firewall::Firewall;
use crate::gpus::{Gpus, Proof, ProofProgram, ToProve};
use crate::images::Images;
use crate::outage::Outage;
use crate::recover::{inspect, is_running};
use crate::slots::{Kind, Slots};
use crate::standby::Pool;
use crate::unanswered::Ledger;
use crate::volumes::Volumes;
use crate::{
    disk_watch, engine, events, images, logs, processes, quota, seccomp, slices, standby, usage,
};

/// Notices waiting for the agent; more make their senders wait.
const NOTICES: usize = 1_024;
/// Pieces of output waiting, all runners together: 2 MiB.
const OUTPUTS: usize = 32;

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
    pub(crate) process: Option<PathBuf>,
    /// Of a runner that got a standby: what to make when that one turns out to be dead.
    pub(crate) afresh: Mutex<Option<Box<RunnerSpec>>>,
    /// Set where the job may have containers beside it.
    pub(crate) beside: Mutex<Option<Beside>>,
    pub(crate) containers: bool,
    /// The host sees none of its processes.
    pub(crate) hides_processes: bool,
    /// Why its use of the disk is the cause of its end.
    pub(crate) disk_full: Mutex<Option<String>>,
    pub(crate) stdin: Mutex<Option<bollard::container::AttachContainerResults>>,
    pub(crate) output: Mutex<Option<JoinHandle<()>>>,
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
    pub(crate) docker: OnceLock<(Docker, EngineFacts)>,
    pub(crate) fleet: Mutex<String>,
    pub(crate) sandboxes: Mutex<BTreeMap<String, Arc<Handle>>>,
    pub(crate) images: Arc<Images>,
    pub(crate) standby: Arc<Pool>,
    /// Of siblings: what a job names badly is no condition of the node.
    pub(crate) sibling_images: Arc<Images>,
    pub(crate) volumes: Volumes,
    pub(crate) slots: Slots,
    pub(crate) firewall: Firewall,
    pub(crate) egress: Egress,
    pub(crate) starts: Semaphore,
    pub(crate) outage: Mutex<Outage>,
    /// One probe at a time.
    pub(crate) probing: tokio::sync::Mutex<()>,
    pub(crate) gpus: Gpus,
    pub(crate) unanswered: Ledger,
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
            unanswered: Ledger::default(),
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
        engine::facts(&engine::connect(socket, engine::CALL).await?).await
    }

    /// Removes everything this agent made on the engine and its firewall table.
    pub async fn purge(&self) -> Result<(), RuntimeError> {
        let docker = self.inner.engine().await?;
        for id in self.inner.own_containers(&docker).await? {
            remove_container(&docker, &id).await?;
        }
        self.inner.sweep_own_images(&docker).await?;
        self.inner
            .volumes
            .sweep(&docker, &Default::default(), true)
            .await?;
        self.inner.remove_own_images(&docker).await?;
        self.inner.egress.stop().await;
        self.inner.slots.clear(&docker).await?;
        let instance = self.inner.config.instance.as_str();
        remove_groups(&[slices::around(instance)]).await;
        usage::remove_all(Path::new(usage::ROOT), instance);
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
        let docker = engine::connect(&self.config.socket, self.config.engine_timeout).await?;
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

    pub(crate) fn handle(&self, runner: &str) -> Result<Arc<Handle>, RuntimeError> {
        lock(&self.sandboxes)
            .get(runner)
            .cloned()
            .ok_or_else(|| refused(format!("this agent has no sandbox for {runner}")))
    }

    /// What a runner's sandbox took of the node is there again.
    pub(crate) fn forget(&self, runner: &str) {
        lock(&self.sandboxes).remove(runner);
        self.standby.room_came();
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
        quick("asking the engine whether it is there", docker.ping()).await?;
        // One lock after the other: the pool looks at the sandboxes while it holds its own.
        let mut known = self.standby.containers();
        known.extend(
            lock(&self.sandboxes)
                .values()
                .map(|handle| handle.container.clone()),
        );
        for id in known {
            let container = inspect(docker, &id).await?;
            if !container.as_ref().is_some_and(is_running) {
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

    async fn conditions(&self) -> Vec<Condition> {
        self.firewall.count().await;
        // What it refuses is told by its condition.
        let _ = self.egress.assert().await;
        let mut conditions = self.images.conditions();
        conditions.extend(self.firewall.condition().await);
        conditions.extend(self.egress.condition());
        conditions.extend(self.slots.condition());
        conditions.extend(self.unanswered.condition());
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
