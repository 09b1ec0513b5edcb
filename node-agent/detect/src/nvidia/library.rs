//! The driver's library, opened once and kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use thiserror::Error;

use crate::nvidia::{ComputeProcess, Gpu, Health, Nvidia};

/// What is read of one host or one GPU at most.
const MOST_GPUS: u32 = 64;
const MOST_INSTANCES: u32 = 16;
const MOST_PROCESSES: usize = 64;
/// As many as a driver keeps, and more.
const MOST_ACCOUNTS: usize = 8_192;

/// `libnvidia-ml.so.1`, loaded when the program runs: hosts without it need no other build.
pub struct Library(pub(super) Nvml);

#[derive(Debug, Error)]
pub enum LibraryError {
    #[error("{0}")]
    Open(NvmlError),
    #[error("the driver's library does not count GPUs: {0}")]
    Count(NvmlError),
}

impl Library {
    pub fn open() -> Result<Self, LibraryError> {
        Nvml::init().map(Self).map_err(LibraryError::Open)
    }

    /// Every GPU and instance as the driver tells it now.
    pub fn look(&self, root: &Path) -> Result<Nvidia, LibraryError> {
        let nvml = &self.0;
        let count = nvml.device_count().map_err(LibraryError::Count)?;
        let mut found = Nvidia {
            source: "nvml".into(),
            driver_version: nvml.sys_driver_version().unwrap_or_default(),
            cuda_version: nvml
                .sys_cuda_driver_version()
                .map(cuda_version)
                .unwrap_or_default(),
            ..Nvidia::default()
        };
        for index in 0..count.min(MOST_GPUS) {
            match nvml.device_by_index(index) {
                // One that has fallen off the bus may not even say its name.
                Ok(device) if device.uuid().is_err() => {
                    found.note = format!("GPU {index} does not say its UUID");
                }
                Ok(device) => whole(&device, root, &mut found.gpus),
                Err(error) => found.note = format!("GPU {index} cannot be read: {error}"),
            }
        }
        Ok(found)
    }

    /// Bytes in use on a GPU or an instance.
    pub(super) fn memory_used(&self, uuid: &str) -> Option<u64> {
        let device = self.0.device_by_uuid(uuid).ok()?;
        Some(device.memory_info().ok()?.used)
    }

    /// The most that each process had which the driver keeps account of; none where
    /// its accounting is off, which the owner decides, or unknown to the device.
    pub(super) fn memory_accounts(&self, uuid: &str) -> Option<BTreeMap<u32, u64>> {
        let device = self.0.device_by_uuid(uuid).ok()?;
        if !device.is_accounting_enabled().ok()? {
            return None;
        }
        let pids = device.accounting_pids().ok()?;
        let account = |pid: u32| {
            let stats = device.accounting_stats_for(pid).ok()?;
            Some((pid, stats.max_memory_usage?))
        };
        Some(
            pids.into_iter()
                .take(MOST_ACCOUNTS)
                .filter_map(account)
                .collect(),
        )
    }
}

/// A GPU and the instances it is cut into.
fn whole(device: &Device<'_>, root: &Path, gpus: &mut Vec<Gpu>) {
    let gpu = describe(device, root);
    let instances = if gpu.mig_enabled {
        device.mig_device_count().unwrap_or(0).min(MOST_INSTANCES)
    } else {
        0
    };
    let parent = gpu.clone();
    gpus.push(gpu);
    for index in 0..instances {
        // Places without an instance answer "not found".
        let Ok(instance) = device.mig_device_by_index(index) else {
            continue;
        };
        gpus.push(describe_instance(&instance, &parent, root));
    }
}

fn describe(device: &Device<'_>, root: &Path) -> Gpu {
    let pci_bus_id = device
        .pci_info()
        .map(|pci| short_bus_id(&pci.bus_id))
        .unwrap_or_default();
    let numa = root
        .join("sys/bus/pci/devices")
        .join(&pci_bus_id)
        .join("numa_node");
    let memory = device.memory_info();
    let lost = matches!(memory, Err(NvmlError::GpuLost | NvmlError::ResetRequired));
    let told = device
        .supported_event_types()
        .is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR));
    Gpu {
        uuid: device.uuid().unwrap_or_default(),
        product: device.name().unwrap_or_default(),
        brand: device
            .brand()
            .map(|brand| format!("{brand:?}"))
            .unwrap_or_default(),
        architecture: device
            .architecture()
            .map(|architecture| format!("{architecture:?}"))
            .unwrap_or_default(),
        memory_mib: memory.map_or(0, |memory| memory.total >> 20),
        compute_capability: device
            .cuda_compute_capability()
            .map(|capability| format!("{}.{}", capability.major, capability.minor))
            .unwrap_or_default(),
        // The kernel's word where the driver has none: it says -1 for "no node".
        numa_node: device.numa_node_id().ok().or_else(|| {
            let text = fs::read_to_string(numa).ok()?;
            text.trim().parse().ok()
        }),
        pci_bus_id,
        minor: device.minor_number().ok(),
        mig_enabled: device.mig_mode().is_ok_and(|mode| mode.current == 1),
        parent_uuid: String::new(),
        mig_profile: String::new(),
        health: match (lost, told) {
            (true, _) => Health::Lost,
            (false, true) => Health::Good,
            (false, false) => Health::Unmonitored,
        },
        processes: processes(device, root),
    }
}

/// What an instance does not tell itself is its GPU's.
fn describe_instance(device: &Device<'_>, parent: &Gpu, root: &Path) -> Gpu {
    let product = device.name().unwrap_or_default();
    let attributes = device.attributes().ok();
    let memory_mib = match (&attributes, device.memory_info()) {
        (_, Ok(memory)) => memory.total >> 20,
        (Some(attributes), Err(_)) => attributes.memory_size_mb,
        (None, Err(_)) => 0,
    };
    let mig_profile = match (product.split_once(" MIG "), &attributes) {
        (Some((_, profile)), _) => profile.to_owned(),
        (None, Some(a)) => profile_of(
            a.gpu_instance_slice_count,
            a.compute_instance_slice_count,
            memory_mib,
        ),
        (None, None) => String::new(),
    };
    Gpu {
        uuid: device.uuid().unwrap_or_default(),
        product,
        memory_mib,
        parent_uuid: parent.uuid.clone(),
        mig_profile,
        mig_enabled: false,
        processes: processes(device, root),
        ..parent.clone()
    }
}

/// As the driver's tools word it: slices of the GPU and its memory, with the
/// slices of computing before them where they are fewer.
fn profile_of(gpu_slices: u32, compute_slices: u32, memory_mib: u64) -> String {
    let gib = memory_mib.div_ceil(1024);
    if compute_slices < gpu_slices {
        format!("{compute_slices}c.{gpu_slices}g.{gib}gb")
    } else {
        format!("{gpu_slices}g.{gib}gb")
    }
}

fn processes(device: &Device<'_>, root: &Path) -> Vec<ComputeProcess> {
    let mut list = running(device).unwrap_or_default();
    for process in &mut list {
        let comm = root.join("proc").join(process.pid.to_string()).join("comm");
        process.name = fs::read_to_string(comm)
            .unwrap_or_default()
            .trim()
            .to_owned();
    }
    list
}

fn running(device: &Device<'_>) -> Option<Vec<ComputeProcess>> {
    let mut list: Vec<ComputeProcess> = device
        .running_compute_processes()
        .ok()?
        .into_iter()
        .take(MOST_PROCESSES)
        .map(|process| ComputeProcess {
            pid: process.pid,
            name: String::new(),
            memory_bytes: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
        })
        .collect();
    list.sort_by_key(|process| process.pid);
    Some(list)
}

/// 12040 is 12.4.
fn cuda_version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// The driver writes eight digits of the domain, the kernel four.
fn short_bus_id(told: &str) -> String {
    let told = told.to_lowercase();
    match told.strip_prefix("0000") {
        Some(rest) if rest.find(':') == Some(4) => rest.to_owned(),
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_versions_are_read() {
        assert_eq!(cuda_version(12_040), "12.4");
        assert_eq!(cuda_version(13_010), "13.1");
    }

    #[test]
    fn bus_ids_are_as_the_kernel_writes_them() {
        assert_eq!(short_bus_id("00000000:05:00.0"), "0000:05:00.0");
        assert_eq!(short_bus_id("0000:05:00.0"), "0000:05:00.0");
        assert_eq!(short_bus_id("00010000:C1:00.0"), "00010000:c1:00.0");
    }

    #[test]
    fn profiles_are_worded_as_the_drivers_tools_do() {
        assert_eq!(profile_of(1, 1, 9_856), "1g.10gb");
        assert_eq!(profile_of(3, 1, 40_000), "1c.3g.40gb");
    }
}
