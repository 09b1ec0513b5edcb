//! What a job of profile `containers` has beside its sandbox: a door to the agent,
//! and the containers that it asked for there.

use std::net::Ipv4Addr;
use std::sync::Mutex;

use agent_core::containers::{Job, PORT};
use agent_core::dialect::Dialect;
use agent_core::firewall;
use agent_core::model::Resources;
use agent_core::names::label;
use agent_core::runtime::RuntimeError;
use agent_core::sandbox::{Place, Profile, RUNNER_ROOT};
use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use zeroize::Zeroizing;

use crate::broker::desk::{self, Desk};
use crate::broker::{self, Door, key};
use crate::engine::{refused, remove_container};
use crate::recover::{container_label, inspect};
use crate::runtime::{Handle, Inner, lock};

/// An open door and its hole in the firewall.
pub(crate) struct Beside {
    /// Listens as long as it is kept.
    _door: Door,
    hole: firewall::Door,
}

impl Inner {
    /// Opens a job's door; what is returned goes to the job with its registration. None
    /// where the job has no network, since the way to the agent is one.
    pub(crate) async fn let_have_containers(
        &self,
        docker: &Docker,
        handle: &Handle,
    ) -> Result<Option<Zeroizing<String>>, RuntimeError> {
        let slot = handle
            .slot
            .ok_or_else(|| refused("a job with containers needs a slot".into()))?;
        let gateway: Ipv4Addr = self
            .config
            .slots_cidr
            .net(slot)
            .and_then(|net| net.gateway.parse().ok())
            .ok_or_else(|| refused(format!("slot {slot} is outside slots_cidr")))?;
        let key = key::load(&self.config.state_dir)
            .map_err(|error| refused(format!("the key for jobs' containers: {error}")))?;
        let told = inspect(docker, &handle.container)
            .await?
            .ok_or_else(|| refused("the sandbox is gone".into()))?;
        // A slot's network and its bridge have one name.
        let bridge = told
            .host_config
            .as_ref()
            .and_then(|host| host.network_mode.clone())
            .unwrap_or_default();
        if bridge == "none" {
            return Ok(None);
        }
        let secret = broker::secret(&key, &handle.container);
        let letter = broker::letter(gateway, &secret);
        let instance = self.config.instance.as_str().to_owned();
        let desk = Desk {
            docker: docker.clone(),
            images: self.sibling_images.clone(),
            pull: self.config.pull,
            own_image: told.image.clone().unwrap_or_default(),
            listed: self.config.container_images.clone(),
            job: self.job_of(&told, handle),
            labels: vec![
                (label::INSTANCE.into(), instance.clone()),
                (label::NODE.into(), self.config.node.clone()),
                (label::ROLE.into(), "sibling".into()),
            ],
            instance,
            hosts: desk::hosts_of(&told),
            container: Mutex::default(),
            making: tokio::sync::Mutex::default(),
        };
        let door = Door::open(gateway, secret, desk)
            .await
            .map_err(|error| refused(format!("listening on {gateway}:{PORT}: {error}")))?;
        let hole = firewall::Door {
            bridge: self.slots.network(slot, handle.kind),
            gateway,
            port: PORT,
        };
        self.firewall.open(hole.clone()).await?;
        *lock(&handle.beside) = Some(Beside { _door: door, hole });
        Ok(Some(letter))
    }

    /// The job as its own container tells it, the same after a restart of the agent.
    fn job_of(&self, told: &ContainerInspectResponse, handle: &Handle) -> Job {
        let facts = self.engine_facts().unwrap_or_default();
        let host = told.host_config.clone().unwrap_or_default();
        let volume = |folder: &str| {
            let target = format!("{RUNNER_ROOT}/{folder}");
            told.mounts
                .iter()
                .flatten()
                .find(|mount| mount.destination.as_deref() == Some(&target))
                .and_then(|mount| mount.name.clone())
                .unwrap_or_default()
        };
        let millis = host.nano_cpus.unwrap_or(0) / 1_000_000;
        Job {
            container: handle.container.clone(),
            resources: Resources {
                cpu_millis: u32::try_from(millis).unwrap_or(0),
                memory_bytes: u64::try_from(host.memory.unwrap_or(0)).unwrap_or(0),
                gpus: 0,
            },
            platform: container_label(told, label::PLATFORM),
            work_volume: handle.work_volume.clone(),
            externals_volume: volume("externals"),
            place: Place {
                image_id: String::new(),
                network: String::new(),
                work_volume: handle.work_volume.clone(),
                bin_volume: String::new(),
                externals_volume: volume("externals"),
                tools_volume: String::new(),
                dns: vec![],
                proxy: proxy_of(told),
                host_cpus: self.config.host_cpus,
                cgroup_parent: handle.cgroup_parent.clone(),
                labels: vec![],
                dialect: Dialect::of(&facts.kind),
                seccomp: facts.seccomp,
                users_are_mapped: false,
                gpus: vec![],
                runtimes: vec![],
            },
        }
    }

    /// Closes the door and removes the containers that came in by it.
    pub(crate) async fn remove_siblings(
        &self,
        docker: &Docker,
        handle: &Handle,
    ) -> Result<(), RuntimeError> {
        if !handle.containers {
            return Ok(());
        }
        let beside = lock(&handle.beside).take();
        if let Some(beside) = beside {
            self.firewall.close(&beside.hole).await?;
        }
        let instance = self.config.instance.as_str();
        for id in desk::siblings(docker, instance, &handle.container).await? {
            remove_container(docker, &id).await?;
        }
        Ok(())
    }
}

/// The egress proxy that a job was told of.
fn proxy_of(told: &ContainerInspectResponse) -> Option<String> {
    let env = told
        .config
        .as_ref()
        .and_then(|config| config.env.as_ref())?;
    env.iter()
        .find_map(|line| line.strip_prefix("http_proxy=").map(str::to_owned))
}

/// Whether a container that was found is a job's of profile `containers`.
pub(crate) fn has_containers(container: &ContainerInspectResponse) -> bool {
    Profile::parse(&container_label(container, label::PROFILE))
        .is_some_and(|profile| profile.terms().containers)
}
