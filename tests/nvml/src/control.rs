//! What the stand-in tells: read anew at each call, so that a test can change it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Names the control file.
pub const VARIABLE: &str = "NVML_FIXTURE";
/// Where it is in a container.
pub const IN_CONTAINER: &str = "/etc/nvml-fixture.json";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Control {
    /// As `550.54.15`; empty: the driver is not loaded.
    pub driver: String,
    /// As 12040 for 12.4.
    pub cuda: i32,
    pub gpus: Vec<Gpu>,
    /// Told once each, in order; only ever added to.
    pub events: Vec<Event>,
    /// Only what has a device node here, as in a container.
    pub by_nodes: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Gpu {
    pub uuid: String,
    pub name: String,
    pub minor: u32,
    /// Numbers of the public header.
    pub brand: u32,
    pub architecture: u32,
    pub memory_mib: u64,
    pub capability: (i32, i32),
    /// As `00000000:05:00.0`.
    pub bus: String,
    /// Present when MIG is on.
    pub instances: Option<Vec<Instance>>,
    pub processes: Vec<Process>,
    pub memory: Memory,
    /// Off the bus.
    pub lost: bool,
}

/// What is in use, beside what the processes have.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    pub used_bytes: u64,
    /// The device does not tell, and keeps no accounts.
    pub untold: bool,
    /// Present when accounting is on: processes, and the most each ever had.
    pub accounts: Option<Vec<Process>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Instance {
    pub uuid: String,
    /// As `1g.10gb`.
    pub profile: String,
    pub memory_mib: u64,
    /// N of its `/dev/nvidia-caps/nvidia-capN`.
    pub cap: u32,
    pub processes: Vec<Process>,
    pub memory: Memory,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub memory_bytes: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Event {
    pub uuid: String,
    pub xid: u64,
}

impl Control {
    /// What stands in the file now; nothing when it cannot be read.
    pub(crate) fn read() -> Self {
        let path = std::env::var_os(VARIABLE).map_or_else(|| IN_CONTAINER.into(), PathBuf::from);
        std::fs::read_to_string(path)
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    /// Puts it in force at once: a reader sees the old text or the new one.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, path)
    }

    /// The GPUs that can be seen from here.
    pub(crate) fn visible(&self) -> Vec<&Gpu> {
        let has_node =
            |gpu: &&Gpu| !self.by_nodes || Path::new(&format!("/dev/nvidia{}", gpu.minor)).exists();
        self.gpus.iter().filter(has_node).collect()
    }

    pub(crate) fn instances<'a>(&self, gpu: &'a Gpu) -> Vec<&'a Instance> {
        let has_node = |instance: &&Instance| {
            let node = format!("/dev/nvidia-caps/nvidia-cap{}", instance.cap);
            !self.by_nodes || Path::new(&node).exists()
        };
        gpu.instances.iter().flatten().filter(has_node).collect()
    }
}
