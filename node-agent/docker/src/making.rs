//! Makes sandboxes: checks what is asked, takes a slot, creates, starts, and takes all
//! of it back when that fails.

use std::path::{Path, PathBuf};

use agent_core::dialect::Dialect;
use agent_core::firewall::PROXY_PORT;
use agent_core::model::{ErrorReason, RunnerSpec};
use agent_core::names::label;
use agent_core::runtime::{Prepared, RuntimeError};
use agent_core::sandbox::{self, Network, Place, Profile, Request, RuntimeClass};
use agent_egress::control::Open;
use bollard::Docker;
use bollard::query_parameters::{AttachContainerOptionsBuilder, CreateContainerOptionsBuilder};
use tracing::warn;

use crate::ending::remove_group;
use crate::engine::{EngineFacts, bounded, down, failed, refused, remove_container, status};
use crate::recover::inspect;
use crate::runtime::{For, Handle, Inner, lock};
use crate::slots::Kind;
use crate::space::space_of;
use crate::translate::container_body;
use crate::unanswered::Unanswered;
use crate::volumes::Program;
use crate::{engine, inside, usage};

impl Inner {
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
            cgroup_parent: self.group_of(facts, salt),
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

    /// Control group around a sandbox. One that this agent may not remove would stay for ever.
    fn group_of(&self, facts: &EngineFacts, salt: &str) -> String {
        usage::parent(
            &facts.cgroup_driver,
            facts.rootless || !usage::is_root(),
            self.config.instance.as_str(),
            salt,
        )
    }

    async fn make(
        &self,
        spec: &RunnerSpec,
        request: &Request,
        salt: &str,
        slot: u32,
        whom: For,
    ) -> Result<(Handle, String), RuntimeError> {
        let (docker, facts) = self.connected()?;
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
        let kind = kind_of(request);
        let egress = match kind {
            Kind::Open => None,
            Kind::Closed => Some(self.egress_of(slot, request.allowed_domains.clone())?),
        };
        let mut place = self.place(&facts, slot, salt, &image_id, &program);
        place.tools_volume = tools_volume;
        let lifetime = (label::LIFETIME_MS.into(), spec.lifetime_ms.to_string());
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
        let mut sandbox = sandbox::of(request, &place);
        let hash = sandbox.spec_hash();
        sandbox.labels.push((label::SPEC.into(), hash));
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
        let request = request(spec)?;
        let kind = kind_of(&request);
        let slot = match whom {
            For::Job => self.slot_for_a_job(&docker, kind).await?,
            For::Nobody => self.slots.take(&docker, kind).await?,
        };
        let salt = format!("{:08x}", rand::random::<u32>());
        self.firewall.begin(&self.slots.network(slot, kind)).await;
        let made = self.make(spec, &request, &salt, slot, whom).await;
        let Err(error) = &made else {
            return made;
        };
        let left = error.reason == ErrorReason::EngineDown
            && self.unanswered.enter(Unanswered {
                container: self.config.instance.unnamed_container(slot, &salt),
                work_volume: self.config.instance.work_volume(slot, &salt),
                cgroup_parent: self.group_of(&facts, &salt),
                slot: Some((slot, kind)),
                why: error.detail.clone(),
            });
        if !left {
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
            remove_container(docker, &handle.container).await,
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

    pub(crate) async fn prepare(
        &self,
        runner: &str,
        spec: &RunnerSpec,
    ) -> Result<Prepared, RuntimeError> {
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
}

/// What is asked for, where it can be.
pub(crate) fn request(spec: &RunnerSpec) -> Result<Request, RuntimeError> {
    Request::from_spec(spec).map_err(|refusal| RuntimeError {
        reason: ErrorReason::SpecRefused,
        detail: refusal.to_string(),
    })
}

/// Which slot a request needs.
fn kind_of(request: &Request) -> Kind {
    match request.network {
        Network::Allowlist => Kind::Closed,
        Network::Open | Network::None => Kind::Open,
    }
}
