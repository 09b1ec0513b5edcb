//! NVIDIA GPUs: the driver's library first, then CDI specs, then the driver's files in `/proc`.
//!
//! A GPU found here is not offered yet: only a container that was started with
//! it and saw it proves that jobs can have it.

pub mod cdi;
mod library;
pub mod meter;
pub mod procfs;
pub mod watch;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

pub use cdi::Cdi;
pub use library::{Library, LibraryError};

/// One GPU, or one MIG instance of a GPU, as the driver describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// `GPU-...` or `MIG-...`, as the driver names it.
    pub uuid: String,
    pub product: String,
    /// The driver's word: Tesla, GeForce RTX ...; empty when unknown.
    pub brand: String,
    /// Ampere, Hopper ...; empty when unknown.
    pub architecture: String,
    /// MiB; 0 when unknown.
    pub memory_mib: u64,
    /// As `9.0`; empty when unknown.
    pub compute_capability: String,
    /// As `0000:05:00.0`.
    pub pci_bus_id: String,
    pub numa_node: Option<u32>,
    /// N of `/dev/nvidiaN`.
    pub minor: Option<u32>,
    /// Cut into instances: they can be leased, it cannot.
    pub mig_enabled: bool,
    /// UUID of the GPU an instance is cut from; empty for a whole one.
    pub parent_uuid: String,
    /// As `1g.10gb`; empty for a whole one.
    pub mig_profile: String,
    pub health: Health,
    /// Programs that compute on it now, ours and others'.
    pub processes: Vec<ComputeProcess>,
}

/// What the driver says of a GPU's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It answers and its errors are told.
    Good,
    /// It answers; the driver tells no errors of it.
    #[default]
    Unmonitored,
    /// Off the bus, or it needs a reset.
    Lost,
}

/// A program that has a compute context on a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ComputeProcess {
    /// In the host's numbering.
    pub pid: u32,
    /// As `/proc/PID/comm` says; empty when it has gone.
    pub name: String,
    /// None where the driver does not tell it.
    pub memory_bytes: Option<u64>,
}

/// What was found and by which way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nvidia {
    pub gpus: Vec<Gpu>,
    pub driver_version: String,
    pub cuda_version: String,
    /// nvml, cdi, proc or none.
    pub source: String,
    /// Why there is nothing, or why less is known than could be.
    pub note: String,
    /// What engines are told about devices.
    pub cdi: Cdi,
}

/// Looks without keeping the driver's library.
pub fn probe(root: &Path) -> Nvidia {
    probe_with(root, &open(root))
}

/// The driver's library, or why it cannot be used. Under another root than `/`
/// it would describe another host than the files do.
pub fn open(root: &Path) -> Result<Arc<Library>, String> {
    if root != Path::new("/") {
        return Err(format!(
            "files under {} are read instead of the driver's library",
            root.display()
        ));
    }
    if cfg!(target_feature = "crt-static") {
        return Err("this agent is statically linked and cannot load the driver's library; use a dynamically linked build to see GPUs".into());
    }
    Library::open()
        .map(Arc::new)
        .map_err(|error| format!("the driver's library libnvidia-ml.so.1 is not usable: {error}"))
}

/// Looks with a library that was opened before.
pub fn probe_with(root: &Path, library: &Result<Arc<Library>, String>) -> Nvidia {
    let cdi = cdi::probe(root);
    let mut found = match library.as_ref().map(|library| library.look(root)) {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => from_files(root, &cdi, error.to_string()),
        Err(note) => from_files(root, &cdi, note.clone()),
    };
    found.cdi = cdi;
    found
}

/// CDI names devices that an engine can inject; `/proc` describes them.
fn from_files(root: &Path, cdi: &Cdi, note: String) -> Nvidia {
    let mut found = procfs::probe(root);
    found.note = note;
    for device in &cdi.devices {
        let known = found.gpus.iter().any(|gpu| gpu.uuid == device.name);
        if device.is_uuid() && !known {
            found.source = "cdi".into();
            found.gpus.push(Gpu {
                uuid: device.name.clone(),
                minor: device.minor(),
                ..Gpu::default()
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Nvidia {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gpu-tree");
        probe(&root)
    }

    #[test]
    fn a_recorded_host_is_read_from_its_files() {
        let found = recorded();
        assert_eq!(found.driver_version, "550.54.15");
        let uuids: Vec<&str> = found.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
        assert_eq!(
            uuids,
            [
                "GPU-5a5e9b22-0000-4000-8000-1234567890ab",
                "GPU-6b6fac33-0000-4000-8000-1234567890ab",
                "MIG-7c70bd44-0000-4000-8000-1234567890ab",
            ]
        );
        assert_eq!(found.gpus[0].product, "NVIDIA H100 80GB HBM3");
        assert_eq!(found.gpus[0].minor, Some(0));
        assert_eq!(found.source, "cdi");
        assert!(found.note.contains("instead of the driver's library"));
    }

    #[test]
    fn a_host_without_driver_says_so_and_does_not_fail() {
        let empty = tempfile::tempdir().unwrap();
        let found = probe(empty.path());
        assert_eq!((found.source.as_str(), found.gpus.len()), ("none", 0));
        assert!(!found.note.is_empty(), "{found:?}");
    }
}
