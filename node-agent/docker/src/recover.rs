//! What an earlier process of this agent left: adopted when alive, else removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use agent_core::model::Resources;
use agent_core::names::label;
use agent_core::runtime::{Found, Processes, RuntimeError};
use agent_core::sandbox::RuntimeClass;
use bollard::Docker;
use bollard::models::{ContainerInspectResponse, HostConfig};
use bollard::query_parameters::ListContainersOptionsBuilder;
use tracing::{info, warn};

use crate::beside::has_containers;
use crate::ending::remove_groups;
use crate::engine::{bounded, quick, remove_container, status};
use crate::runtime::{Handle, Inner};
use crate::slots::Kind;
use crate::usage;

/// How long a sandbox without its program may take to end: two seconds.
const SETTLE_TRIES: u32 = 20;
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

impl Inner {
    /// Sweeps by this agent's own label only; nobody else's container is touched.
    pub(crate) async fn recover_all(&self, docker: &Docker) -> Result<Vec<Found>, RuntimeError> {
        let mut found = Vec::new();
        let mut handles = BTreeMap::new();
        let mut keep_volumes = BTreeSet::new();
        let mut used_slots = BTreeSet::new();
        let mut keep_groups = BTreeSet::new();
        let mut siblings = Vec::new();
        let mut closed = BTreeMap::new();
        for id in self.own_containers(docker).await? {
            let Some(container) = inspect(docker, &id).await? else {
                continue;
            };
            let name = container
                .name
                .clone()
                .unwrap_or_default()
                .trim_start_matches('/')
                .to_owned();
            let role = container_label(&container, label::ROLE);
            if role == "sibling" {
                siblings.push((id, container_label(&container, label::OF)));
                continue;
            }
            if role != "runner" || self.config.instance.is_unnamed(&name) {
                info!(
                    container = name,
                    role, "removing what was never handed over"
                );
                if let Err(error) = remove_container(docker, &id).await {
                    warn!(%error, "left a container behind");
                }
                continue;
            }
            let handle = handle_of(&container, &id);
            let (running, processes) = self.settled(docker, &container, &handle).await?;
            keep_volumes.insert(handle.work_volume.clone());
            keep_groups.insert(handle.cgroup_parent.clone());
            used_slots.extend(handle.slot);
            if let Some(slot) = handle.slot {
                self.firewall.adopt(&self.slots.network(slot, handle.kind));
                let allowed = container_label(&container, label::ALLOWED);
                // What does not run any more asks for nothing, and its bridge may be gone.
                if handle.kind == Kind::Closed && running {
                    closed.insert(slot, self.egress_of(slot, words(&allowed))?);
                }
            }
            let started = container
                .state
                .as_ref()
                .and_then(|state| state.started_at.as_deref())
                .map_or(0, utc_ms);
            info!(
                runner = name,
                running,
                worker = processes.worker,
                "found a runner"
            );
            found.push(Found {
                name: name.clone(),
                container_id: id,
                running,
                processes,
                started_utc_ms: started,
                lifetime_ms: container_label(&container, label::LIFETIME_MS)
                    .parse()
                    .unwrap_or(0),
            });
            handles.insert(name, handle);
        }
        for (id, of) in siblings {
            if !handles
                .values()
                .any(|handle: &Handle| handle.container == of)
                && let Err(error) = remove_container(docker, &id).await
            {
                warn!(%error, "left a job's container behind");
            }
        }
        if let Err(error) = self.sweep_own_images(docker).await {
            warn!(%error, "left an image behind");
        }
        self.volumes.sweep(docker, &keep_volumes, false).await?;
        let root = std::path::Path::new(usage::ROOT);
        let mut groups = usage::leftovers(root, self.config.instance.as_str());
        groups.retain(|group| !keep_groups.contains(group));
        remove_groups(&groups).await;
        self.slots
            .recover(docker, self.config.premade_slots, used_slots)
            .await?;
        self.egress.recover(closed).await;
        for (name, handle) in handles {
            self.follow_output(docker, &name, &handle);
            if handle.containers
                && let Err(error) = self.let_have_containers(docker, &handle).await
            {
                warn!(runner = name, %error, "this job can ask for no more containers");
            }
            self.insert(name, handle);
        }
        Ok(found)
    }

    /// Whether it runs, and what in it. A sandbox whose runner program has just ended still
    /// runs for a moment with nothing in it: that one is given time to end.
    async fn settled(
        &self,
        docker: &Docker,
        container: &ContainerInspectResponse,
        handle: &Handle,
    ) -> Result<(bool, Processes), RuntimeError> {
        let mut running = is_running(container);
        let mut processes = Processes::default();
        for _ in 0..SETTLE_TRIES {
            if !running {
                return Ok((false, Processes::default()));
            }
            processes = self.look_at(docker, handle).await?;
            if processes.listener || processes.worker {
                break;
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
            let again = inspect(docker, &handle.container).await?;
            running = again.as_ref().is_some_and(is_running);
        }
        Ok((running, processes))
    }

    pub(crate) async fn own_containers(
        &self,
        docker: &Docker,
    ) -> Result<Vec<String>, RuntimeError> {
        let own = format!("{}={}", label::INSTANCE, self.config.instance.as_str());
        let filters = HashMap::from([("label", vec![own])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let list = quick("listing containers", docker.list_containers(Some(options))).await?;
        Ok(list
            .into_iter()
            .filter_map(|container| container.id)
            .collect())
    }
}

pub(crate) fn is_running(container: &ContainerInspectResponse) -> bool {
    let state = container.state.as_ref();
    state.and_then(|state| state.running).unwrap_or(false)
}

/// What is needed to go on with a container that an earlier process made.
fn handle_of(container: &ContainerInspectResponse, id: &str) -> Handle {
    let host = container.host_config.as_ref();
    let work = container
        .mounts
        .iter()
        .flatten()
        .find(|mount| {
            mount
                .destination
                .as_deref()
                .is_some_and(|path| path.ends_with("/_work"))
        })
        .and_then(|mount| mount.name.clone())
        .unwrap_or_default();
    let mut handle = Handle::adopted(
        id.to_owned(),
        container_label(container, label::SLOT).parse().ok(),
        match container_label(container, label::ALLOWED).as_str() {
            "" => Kind::Open,
            _ => Kind::Closed,
        },
        work,
        host.and_then(|host| host.cgroup_parent.clone())
            .unwrap_or_default(),
        container
            .state
            .as_ref()
            .and_then(|state| state.pid)
            .unwrap_or(0),
        takes(host),
    );
    handle.containers = has_containers(container);
    let class = RuntimeClass::parse(&container_label(container, label::RUNTIME));
    handle.hides_processes = class.is_some_and(|class| class.terms().hides_processes);
    handle
}

/// What it was given of the node when it was made.
fn takes(host: Option<&HostConfig>) -> Resources {
    let number = |value: Option<i64>| u64::try_from(value.unwrap_or(0)).unwrap_or(0);
    let cpu = number(host.and_then(|host| host.nano_cpus)) / 1_000_000;
    Resources {
        cpu_millis: u32::try_from(cpu).unwrap_or(u32::MAX),
        memory_bytes: number(host.and_then(|host| host.memory)),
        gpus: 0,
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn container_label(container: &ContainerInspectResponse, key: &str) -> String {
    container
        .config
        .as_ref()
        .and_then(|config| config.labels.as_ref())
        .and_then(|labels| labels.get(key).cloned())
        .unwrap_or_default()
}

pub(crate) async fn inspect(
    docker: &Docker,
    id: &str,
) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
    let what = format!("inspecting container {id}");
    bounded(&what, async {
        match docker.inspect_container(id, None).await {
            Ok(container) => Ok(Some(container)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await
}

/// Milliseconds since 1970 of an engine's timestamp; 0 for "never".
pub(crate) fn utc_ms(text: &str) -> u64 {
    text.parse::<jiff::Timestamp>()
        .map_or(0, |at| u64::try_from(at.as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::utc_ms;

    #[test]
    fn engine_timestamps_are_read() {
        assert_eq!(utc_ms("2026-11-21T20:00:00.123456789Z"), 1_795_291_200_123);
        assert_eq!(utc_ms("0001-01-01T00:00:00Z"), 0);
        assert_eq!(utc_ms("soon"), 0);
    }
}
