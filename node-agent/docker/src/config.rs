//! What an engine runtime is told at its start.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use agent_core::containers::Listed;
use agent_core::names::Instance;
use agent_core::ranges::Range;
use agent_core::sandbox::{Offered, OfferedRuntimes};
use agent_core::slots::SlotsCidr;
use agent_core::standby::Limits;

/// Which program loads the firewall rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirewallTool {
    /// nft, or iptables where nft is missing.
    #[default]
    Auto,
    Nft,
    Iptables,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Unix socket of the engine.
    pub socket: PathBuf,
    pub node: String,
    pub instance: Instance,
    pub slots_cidr: SlotsCidr,
    /// Networks made before any runner asks.
    pub premade_slots: u32,
    /// Sandboxes created and started at the same time: 2 to 4 per core.
    pub parallel_starts: usize,
    /// Remembers which program volumes are complete.
    pub state_dir: PathBuf,
    /// Resolvers of the sandboxes; empty leaves the engine's choice.
    pub dns: Vec<IpAddr>,
    pub firewall: FirewallTool,
    /// Of an egress proxy that is a service of the host; without it the agent starts one.
    pub egress_socket: Option<PathBuf>,
    /// Private ranges that sandboxes may reach all the same.
    pub allow_ranges: Vec<Range>,
    /// Free bytes below which no new sandbox is made.
    pub min_free_disk: u64,
    /// Most disk a job's files may take; 0: no limit.
    pub job_disk: u64,
    /// Missing images are pulled; off in tests.
    pub pull: bool,
    /// Images of the node that a job may name for a container beside it, beyond what anybody
    /// can pull.
    pub container_images: Listed,
    /// How long one call to the engine may take: a start waits behind others when busy.
    pub engine_timeout: Duration,
    /// How often registries are asked for a newer image under a tag; none: never.
    pub image_refresh: Option<Duration>,
    /// How long an image of ours is kept that no name means any more.
    pub image_keep: Duration,
    pub host_cpus: u32,
    /// Profiles that a sandbox may be asked to have.
    pub profiles: Offered,
    /// Runtime classes that a sandbox may be asked to have.
    pub runtimes: OfferedRuntimes,
    /// Where the kernel tells how much memory the host has left; standbys go when it is little.
    pub meminfo: PathBuf,
    /// Sandboxes kept started for whoever comes; none keeps none.
    pub standby: Option<Limits>,
}
