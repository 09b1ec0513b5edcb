//! Slot networks: made before a runner needs one, used by one sandbox at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use agent_core::model::{Condition, ErrorReason};
use agent_core::names::{Instance, label};
use agent_core::runtime::RuntimeError;
use agent_core::slots::{SlotNet, SlotsCidr};
use bollard::Docker;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest, NetworkDisconnectRequest};
use bollard::query_parameters::ListNetworksOptionsBuilder;
use tracing::{info, warn};

use crate::bridges;
use crate::engine::{bounded, gone_is_fine};
use crate::recover::inspect;
use crate::runtime::lock;

/// Indexes tried for one network before giving up: others may use the range too.
const MAX_SKIPS: u32 = 64;

/// What leaves a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What the firewall lets through.
    Open,
    /// Nothing: the egress proxy on its gateway is all there is.
    Closed,
}

impl Kind {
    fn other(self) -> Self {
        match self {
            Self::Open => Self::Closed,
            Self::Closed => Self::Open,
        }
    }
}

#[derive(Default)]
struct Table {
    made: BTreeMap<u32, Kind>,
    used: BTreeSet<u32>,
    /// Cannot be made: the range is taken by somebody else.
    broken: BTreeSet<u32>,
}

impl Table {
    /// Made so, and nobody's.
    fn free(&self, kind: Kind) -> Option<u32> {
        let free = |(index, made): (&u32, &Kind)| {
            (*made == kind && !self.used.contains(index)).then_some(*index)
        };
        self.made.iter().find_map(free)
    }

    /// The next to make.
    fn next(&self, len: u32) -> Option<u32> {
        (0..len).find(|index| {
            !self.made.contains_key(index)
                && !self.broken.contains(index)
                && !self.used.contains(index)
        })
    }
}

pub(crate) struct Slots {
    instance: Instance,
    node: String,
    cidr: SlotsCidr,
    /// How many of the range are taken by somebody else.
    broken: AtomicU32,
    /// Why the last one who wanted a slot got none, when others have the addresses.
    problem: Mutex<Option<String>>,
    table: tokio::sync::Mutex<Table>,
}

impl Slots {
    pub(crate) fn new(instance: Instance, node: String, cidr: SlotsCidr) -> Self {
        Self {
            instance,
            node,
            cidr,
            broken: AtomicU32::new(0),
            problem: Mutex::default(),
            table: Default::default(),
        }
    }

    /// Finds this agent's networks, removes those of another range, and makes
    /// what is missing of `wanted`. `used` are the slots of adopted runners.
    pub(crate) async fn recover(
        &self,
        docker: &Docker,
        wanted: u32,
        used: BTreeSet<u32>,
    ) -> Result<(), RuntimeError> {
        let mut table = self.table.lock().await;
        *table = Table {
            used,
            ..Table::default()
        };
        self.broken.store(0, Ordering::Relaxed);
        for (name, (id, subnet)) in self.existing(docker).await? {
            let slot = self.slot_of(&name);
            let fits = slot
                .and_then(|(index, _)| self.cidr.net(index))
                .is_some_and(|net| net.subnet == subnet);
            match slot {
                Some((index, kind)) if fits || table.used.contains(&index) => {
                    table.made.insert(index, kind);
                }
                _ => {
                    if let Err(error) = remove(docker, &name, &id).await {
                        // An engine may say "active endpoints" until its restart; another network will do.
                        warn!(%error, "left a network behind");
                    }
                }
            }
        }
        while (table.made.len() as u32) < wanted.min(self.cidr.len()) {
            match self.make_next(docker, &mut table, Kind::Open).await {
                Ok(_) => {}
                // Fewer than wanted: told when a runner has to go without.
                Err(error) if error.reason == ErrorReason::OutOfSlots => {
                    warn!(%error, "fewer slot networks than wanted");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        info!(slots = table.made.len(), "slot networks are ready");
        Ok(())
    }

    /// How many there can be at once.
    pub(crate) fn usable(&self) -> u32 {
        let broken = self.broken.load(Ordering::Relaxed);
        self.cidr.len().saturating_sub(broken)
    }

    pub(crate) fn condition(&self) -> Option<Condition> {
        let detail = lock(&self.problem).clone()?;
        Some(Condition {
            kind: "out_of_slots",
            detail,
            next_step: "set slots_cidr to a larger or unused range, or free the addresses".into(),
            image: String::new(),
        })
    }

    /// Takes a free slot of a kind, making one when all are used. Others are not held up meanwhile.
    pub(crate) async fn take(&self, docker: &Docker, kind: Kind) -> Result<u32, RuntimeError> {
        let taken = self.take_one(docker, kind).await;
        // Runners that use all of them are no problem of the node.
        let lacks = |error: &RuntimeError| {
            error.reason == ErrorReason::OutOfSlots && self.broken.load(Ordering::Relaxed) > 0
        };
        *lock(&self.problem) = match &taken {
            Err(error) if lacks(error) => Some(error.detail.clone()),
            _ => None,
        };
        taken
    }

    async fn take_one(&self, docker: &Docker, kind: Kind) -> Result<u32, RuntimeError> {
        let mut last = None;
        let mut doubted = false;
        for _ in 0..MAX_SKIPS {
            let index = {
                let mut table = self.table.lock().await;
                if let Some(index) = table.free(kind) {
                    table.used.insert(index);
                    return Ok(index);
                }
                // No address is left: one that lies idle is made anew as the other kind.
                let next = table.next(self.cidr.len());
                let Some(index) = next.or_else(|| table.free(kind.other())) else {
                    // Whoever had the addresses that were taken may have let them go.
                    if !std::mem::replace(&mut doubted, true) && !table.broken.is_empty() {
                        table.broken.clear();
                        self.broken.store(0, Ordering::Relaxed);
                        continue;
                    }
                    break;
                };
                table.used.insert(index);
                index
            };
            let made = self.make_as(docker, index, kind).await;
            let mut table = self.table.lock().await;
            match made {
                Ok(()) => {
                    table.made.insert(index, kind);
                    return Ok(index);
                }
                Err(error) => {
                    table.used.remove(&index);
                    last = Some(self.not_made(&mut table, index, error)?);
                }
            }
        }
        Err(out_of_slots(last))
    }

    /// Makes one for later when all that are made are used.
    pub(crate) async fn spare(&self, docker: &Docker) -> Result<(), RuntimeError> {
        if self.table.lock().await.free(Kind::Open).is_some() {
            return Ok(());
        }
        let index = self.take(docker, Kind::Open).await?;
        self.release(index).await;
        Ok(())
    }

    pub(crate) async fn release(&self, index: u32) {
        self.table.lock().await.used.remove(&index);
    }

    /// The network vanished or cannot be used: another one is made for the next.
    pub(crate) async fn lost(&self, index: u32) {
        let mut table = self.table.lock().await;
        table.made.remove(&index);
        table.used.remove(&index);
    }

    /// Removes every network of this agent that nothing uses.
    pub(crate) async fn clear(&self, docker: &Docker) -> Result<(), RuntimeError> {
        let mut table = self.table.lock().await;
        for (name, (id, _)) in self.existing(docker).await? {
            remove(docker, &name, &id).await?;
        }
        table.made.clear();
        for name in bridges::named(&self.instance.bridge_prefix()) {
            // An engine that forgot the bridge forgot its rules too: made once more as a
            // network, they go with it.
            if let Some((index, kind)) = self.slot_of(&name)
                && self.make(docker, index, kind).await.is_ok()
            {
                remove(docker, &name, &name).await?;
            }
            forget_bridge(&name);
        }
        Ok(())
    }

    async fn existing(
        &self,
        docker: &Docker,
    ) -> Result<BTreeMap<String, (String, String)>, RuntimeError> {
        let filters = HashMap::from([(
            "label",
            vec![format!("{}={}", label::INSTANCE, self.instance.as_str())],
        )]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let networks = bounded("listing networks", docker.list_networks(Some(options))).await?;
        Ok(networks
            .into_iter()
            .filter_map(|network| {
                let subnet = network
                    .ipam
                    .and_then(|ipam| ipam.config)
                    .and_then(|config| config.into_iter().next())
                    .and_then(|config| config.subnet)
                    .unwrap_or_default();
                Some((network.name?, (network.id?, subnet)))
            })
            .collect())
    }

    /// Name of a slot's network and bridge.
    pub(crate) fn network(&self, slot: u32, kind: Kind) -> String {
        match kind {
            Kind::Open => self.instance.network(slot),
            Kind::Closed => self.instance.closed_network(slot),
        }
    }

    /// Addresses of a slot.
    pub(crate) fn net(&self, slot: u32) -> Option<SlotNet> {
        self.cidr.net(slot)
    }

    fn slot_of(&self, network: &str) -> Option<(u32, Kind)> {
        let rest = network.strip_prefix(&self.instance.bridge_prefix())?;
        match rest.strip_prefix('a') {
            Some(index) => Some((index.parse().ok()?, Kind::Closed)),
            None => Some((rest.parse().ok()?, Kind::Open)),
        }
    }

    async fn make_next(
        &self,
        docker: &Docker,
        table: &mut Table,
        kind: Kind,
    ) -> Result<u32, RuntimeError> {
        let mut last = None;
        for _ in 0..MAX_SKIPS {
            let Some(index) = table.next(self.cidr.len()) else {
                break;
            };
            match self.make(docker, index, kind).await {
                Ok(()) => {
                    table.made.insert(index, kind);
                    return Ok(index);
                }
                Err(error) => last = Some(self.not_made(table, index, error)?),
            }
        }
        Err(out_of_slots(last))
    }

    /// Addresses that are taken are passed over, with the engine's words; any other
    /// mistake is the caller's.
    fn not_made(
        &self,
        table: &mut Table,
        index: u32,
        error: RuntimeError,
    ) -> Result<String, RuntimeError> {
        if error.reason != ErrorReason::StartFailed {
            return Err(error);
        }
        warn!(slot = index, %error, "this slot's addresses are taken; trying the next");
        table.broken.insert(index);
        self.broken.fetch_add(1, Ordering::Relaxed);
        Ok(error.detail)
    }

    /// Makes a slot that is this caller's, after removing it as what it was.
    async fn make_as(&self, docker: &Docker, index: u32, kind: Kind) -> Result<(), RuntimeError> {
        let old = self.table.lock().await.made.get(&index).copied();
        if let Some(old) = old {
            let name = self.network(index, old);
            remove(docker, &name, &name).await?;
            self.table.lock().await.made.remove(&index);
        }
        self.make(docker, index, kind).await
    }

    async fn make(&self, docker: &Docker, index: u32, kind: Kind) -> Result<(), RuntimeError> {
        let name = self.network(index, kind);
        let net = self.cidr.net(index).ok_or_else(|| RuntimeError {
            reason: ErrorReason::OutOfSlots,
            detail: format!("slot {index} is outside slots_cidr"),
        })?;
        if has_bridge(&name) {
            // Made for an earlier call whose answer never came.
            if let Some((_, subnet)) = self.existing(docker).await?.get(&name)
                && *subnet == net.subnet
            {
                return Ok(());
            }
            // An engine that forgot the bridge would take it for somebody else's.
            forget_bridge(&name);
        }
        let options = [
            ("com.docker.network.bridge.name", name.as_str()),
            ("com.docker.network.bridge.enable_icc", "false"),
            (
                "com.docker.network.bridge.enable_ip_masquerade",
                // Of a closed slot nothing comes back either.
                if kind == Kind::Open { "true" } else { "false" },
            ),
        ];
        let labels = [
            (label::INSTANCE, self.instance.as_str().to_owned()),
            (label::NODE, self.node.clone()),
            (label::SLOT, index.to_string()),
        ];
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".into()),
            internal: Some(false),
            attachable: Some(false),
            enable_ipv6: Some(false),
            ipam: Some(Ipam {
                driver: Some("default".into()),
                config: Some(vec![IpamConfig {
                    subnet: Some(net.subnet),
                    gateway: Some(net.gateway),
                    ..IpamConfig::default()
                }]),
                options: None,
            }),
            options: Some(
                options
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            ..NetworkCreateRequest::default()
        };
        bounded(
            &format!("making network {name}"),
            docker.create_network(request),
        )
        .await?;
        Ok(())
    }
}

fn out_of_slots(last: Option<String>) -> RuntimeError {
    let why = last.map_or_else(String::new, |last| format!(" (last: {last})"));
    RuntimeError {
        reason: ErrorReason::OutOfSlots,
        detail: format!(
            "no free slot network is left{why}; set slots_cidr to a larger or unused range"
        ),
    }
}

/// Removes a network. An engine that restarted with live-restore keeps the
/// endpoints of containers that ended meanwhile: those are let go first.
async fn remove(docker: &Docker, name: &str, id: &str) -> Result<(), RuntimeError> {
    let what = format!("removing network {name}");
    let removed = || async { gone_is_fine(docker.remove_network(id).await) };
    match bounded(&what, removed()).await {
        Err(_) if release(docker, name, id).await? => bounded(&what, removed()).await?,
        other => other?,
    };
    forget_bridge(name);
    Ok(())
}

fn has_bridge(name: &str) -> bool {
    bridges::named(name).iter().any(|found| found == name)
}

/// Removes the bridge of a network that is not, or no longer, there.
fn forget_bridge(name: &str) {
    if !has_bridge(name) {
        return;
    }
    match bridges::delete(name) {
        Ok(()) => info!(
            bridge = name,
            "removed a bridge that the engine had forgotten"
        ),
        Err(error) => warn!(bridge = name, %error, "a bridge of no network stays"),
    }
}

/// Lets go of endpoints whose container is gone; true when there were any.
async fn release(docker: &Docker, name: &str, id: &str) -> Result<bool, RuntimeError> {
    let what = format!("looking at network {name}");
    let network = bounded(&what, docker.inspect_network(id, None)).await?;
    let mut released = false;
    for (container, endpoint) in network.containers.unwrap_or_default() {
        let Some(endpoint) = endpoint.name.filter(|name| !name.is_empty()) else {
            continue;
        };
        // An endpoint without a container is listed under its own id.
        if !container.starts_with("ep-") && inspect(docker, &container).await?.is_some() {
            continue;
        }
        let request = NetworkDisconnectRequest {
            container: endpoint,
            force: Some(true),
        };
        let what = format!("releasing an endpoint of network {name}");
        bounded(&what, docker.disconnect_network(id, request)).await?;
        released = true;
    }
    Ok(released)
}
