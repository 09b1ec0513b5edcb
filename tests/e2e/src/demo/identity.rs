//! Names and addresses that are this demo's alone, so that two demos on one host do not meet.
//!
//! A lane is claimed by locking a file for the life of the process; lanes whose addresses are in use by anything else are passed over.

use std::{
    fs::{File, OpenOptions},
    net::Ipv4Addr,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::fleet::RunnerNet;

/// Variable that every process of a demo inherits; the checker finds what is left of a demo by it.
pub const RUN_VARIABLE: &str = "LONGSHORE_DEMO_RUN";

/// Lanes on one host: as many /30 networks as fit the simulator's address range, less the ones at its ends.
const LANES: u8 = 60;
/// Lock files lie outside every checkout, because they keep checkouts apart.
const LOCK_FOLDER: &str = "/run/longshore-demo";

/// Who a demo is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Short random name.
    pub run: String,
    /// Node name of its agent.
    pub node: String,
    /// Network namespace of the simulator's runner face.
    pub namespace: String,
    /// Address of the runner face.
    pub inside: Ipv4Addr,
    /// Address of the host's end.
    pub host: Ipv4Addr,
    /// Address range of the agent's slots.
    pub slots_cidr: String,
}

impl Identity {
    /// The simulator's wiring.
    pub fn runner_net(&self) -> RunnerNet {
        RunnerNet {
            namespace: self.namespace.clone(),
            inside: self.inside,
            host: self.host,
        }
    }

    fn on_lane(lane: u8, run: String) -> Self {
        let base = lane * 4;
        Self {
            node: format!("demo-{run}"),
            namespace: format!("lsdemo-{run}"),
            // 198.51.100.0/24 is set aside for documentation: nothing real is hidden by it.
            inside: Ipv4Addr::new(198, 51, 100, base + 2),
            host: Ipv4Addr::new(198, 51, 100, base + 1),
            slots_cidr: format!("10.{}.0.0/16", 190 + lane),
            run,
        }
    }
}

/// A claimed lane. Dropping it gives the lane back.
#[derive(Debug)]
pub struct Claim {
    /// Who we are.
    pub identity: Identity,
    _lock: File,
}

/// Claims a free lane.
pub fn claim() -> Result<Claim> {
    std::fs::create_dir_all(LOCK_FOLDER).with_context(|| format!("make {LOCK_FOLDER}"))?;
    let routes = routes()?;
    for lane in 2..LANES {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(Path::new(LOCK_FOLDER).join(format!("lane-{lane}.lock")))
            .with_context(|| format!("open a lock in {LOCK_FOLDER}"))?;
        if lock.try_lock().is_err() {
            continue;
        }
        let identity = Identity::on_lane(lane, random_name()?);
        if in_use(&routes, &identity) {
            continue;
        }
        return Ok(Claim {
            identity,
            _lock: lock,
        });
    }
    bail!("no free address range for a demo: {LANES} are in use, see {LOCK_FOLDER} and ip route")
}

/// Locks a demo folder, so that one checkout runs one demo at a time.
pub fn only_demo_in(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(".lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    if lock.try_lock().is_err() {
        bail!(
            "another demo of this checkout runs ({} is locked): wait for it, or use a second checkout",
            path.display()
        );
    }
    Ok(lock)
}

fn random_name() -> Result<String> {
    let mut bytes = [0; 3];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    Ok(hex::encode(bytes))
}

/// Every destination the host knows a way to.
fn routes() -> Result<Vec<String>> {
    let output = Command::new("ip")
        .args(["-4", "route", "show", "table", "all"])
        .output()
        .context("run ip route: is iproute2 installed?")?;
    if !output.status.success() {
        bail!(
            "ip route failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .flat_map(|line| {
            line.split_whitespace()
                .take(2)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect())
}

fn in_use(routes: &[String], identity: &Identity) -> bool {
    let slots = identity.slots_cidr.trim_end_matches("0.0/16");
    let ends = [identity.inside.to_string(), identity.host.to_string()];
    routes.iter().any(|route| {
        let address = route.split('/').next().unwrap_or(route);
        address.starts_with(slots) || ends.iter().any(|end| end == address)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn lanes_share_no_address() {
        let mut seen = BTreeSet::new();
        for lane in 0..LANES {
            let id = Identity::on_lane(lane, "x".into());
            assert!(seen.insert(id.inside.to_string()));
            assert!(seen.insert(id.host.to_string()));
            assert!(seen.insert(id.slots_cidr));
        }
    }

    #[test]
    fn a_lane_whose_addresses_are_routed_is_in_use() {
        let id = Identity::on_lane(3, "x".into());
        assert!(!in_use(&["default".into(), "10.19.0.0/16".into()], &id));
        assert!(in_use(&["10.193.4.0/29".into()], &id));
        assert!(in_use(&["198.51.100.13".into()], &id));
    }
}
