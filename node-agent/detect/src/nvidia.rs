//! NVIDIA GPUs: the driver's library first, then its files in `/proc`.
//!
//! A GPU found here is not offered yet: only a container that was started with
//! it and saw it proves that jobs can have it.

use std::fs;

use nvml_wrapper::Nvml;
use serde::Serialize;

/// One GPU as the driver describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpu {
    pub uuid: String,
    pub product: String,
    pub memory_mib: u64,
    pub compute_capability: String,
    pub pci_bus_id: String,
}

/// What was found and by which way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nvidia {
    pub gpus: Vec<Gpu>,
    pub driver_version: String,
    pub cuda_version: String,
    /// nvml, proc or none.
    pub source: String,
    /// Why there is nothing, or why less is known than could be.
    pub note: String,
}

pub fn probe() -> Nvidia {
    if cfg!(target_feature = "crt-static") {
        let mut found = probe_proc();
        found.note = "this agent is statically linked and cannot load the driver's library; use a dynamically linked build to see GPUs".into();
        return found;
    }
    match Nvml::init() {
        Ok(nvml) => probe_nvml(&nvml),
        Err(error) => {
            let mut found = probe_proc();
            found.note = format!("the driver's library libnvidia-ml.so.1 is not usable: {error}");
            found
        }
    }
}

fn probe_nvml(nvml: &Nvml) -> Nvidia {
    let mut found = Nvidia {
        source: "nvml".into(),
        ..Nvidia::default()
    };
    found.driver_version = nvml.sys_driver_version().unwrap_or_default();
    if let Ok(version) = nvml.sys_cuda_driver_version() {
        found.cuda_version = cuda_version(version);
    }
    let count = nvml.device_count().unwrap_or(0);
    for index in 0..count {
        let device = match nvml.device_by_index(index) {
            Ok(device) => device,
            Err(error) => {
                found.note = format!("GPU {index} cannot be read: {error}");
                continue;
            }
        };
        found.gpus.push(Gpu {
            uuid: device.uuid().unwrap_or_default(),
            product: device.name().unwrap_or_default(),
            memory_mib: device.memory_info().map_or(0, |memory| memory.total >> 20),
            compute_capability: device
                .cuda_compute_capability()
                .map(|capability| format!("{}.{}", capability.major, capability.minor))
                .unwrap_or_default(),
            pci_bus_id: device.pci_info().map(|pci| pci.bus_id).unwrap_or_default(),
        });
    }
    found
}

fn probe_proc() -> Nvidia {
    let mut found = Nvidia {
        source: "none".into(),
        ..Nvidia::default()
    };
    if let Ok(text) = fs::read_to_string("/proc/driver/nvidia/version") {
        found.source = "proc".into();
        found.driver_version = parse_version(&text);
    }
    if let Ok(entries) = fs::read_dir("/proc/driver/nvidia/gpus") {
        for entry in entries.flatten() {
            if let Ok(text) = fs::read_to_string(entry.path().join("information")) {
                found.gpus.push(parse_information(&text));
            }
        }
    }
    found
}

/// 12040 is 12.4.
fn cuda_version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// The version in the first line of `/proc/driver/nvidia/version`.
pub fn parse_version(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .find(|word| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
        .unwrap_or_default()
        .to_owned()
}

/// `/proc/driver/nvidia/gpus/*/information`.
pub fn parse_information(text: &str) -> Gpu {
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    Gpu {
        uuid: field("GPU UUID"),
        product: field("Model"),
        pci_bus_id: field("Bus Location"),
        ..Gpu::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_driver_are_read() {
        let version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:\n";
        assert_eq!(parse_version(version), "550.54.15");
        let gpu = parse_information(
            "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 42\nGPU UUID: \t GPU-5a5e9b22-0000-4000-8000-1234567890ab\nBus Location: \t 0000:05:00.0\n",
        );
        assert_eq!(gpu.product, "NVIDIA H100 80GB HBM3");
        assert!(gpu.uuid.starts_with("GPU-5a5e9b22"));
        assert_eq!(gpu.pci_bus_id, "0000:05:00.0");
    }

    #[test]
    fn cuda_versions_are_read() {
        assert_eq!(cuda_version(12_040), "12.4");
        assert_eq!(cuda_version(13_010), "13.1");
    }

    #[test]
    fn a_host_without_driver_says_so_and_does_not_fail() {
        let found = probe();
        assert!(
            found.source == "nvml" || !found.note.is_empty(),
            "{found:?}"
        );
    }
}
