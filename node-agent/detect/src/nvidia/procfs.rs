//! The NVIDIA driver's files in `/proc`: less than its library tells, but always readable.

use std::fs;
use std::path::Path;

use crate::nvidia::{Gpu, Nvidia};

/// Files of one host that are read at most.
const MOST_GPUS: usize = 64;

pub fn probe(root: &Path) -> Nvidia {
    let folder = root.join("proc/driver/nvidia");
    let mut found = Nvidia {
        source: "none".into(),
        ..Nvidia::default()
    };
    if let Ok(text) = fs::read_to_string(folder.join("version")) {
        found.source = "proc".into();
        found.driver_version = parse_version(&text);
    }
    if let Ok(entries) = fs::read_dir(folder.join("gpus")) {
        for entry in entries.flatten().take(MOST_GPUS) {
            if let Ok(text) = fs::read_to_string(entry.path().join("information")) {
                found.gpus.push(parse_information(&text));
            }
        }
    }
    // Folders come in no order.
    found
        .gpus
        .sort_by(|one, other| one.pci_bus_id.cmp(&other.pci_bus_id));
    found
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
        pci_bus_id: field("Bus Location").to_lowercase(),
        minor: field("Device Minor").parse().ok(),
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
            "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 42\nGPU UUID: \t GPU-5a5e9b22-0000-4000-8000-1234567890ab\nBus Location: \t 0000:05:00.0\nDevice Minor: \t 3\n",
        );
        assert_eq!(gpu.product, "NVIDIA H100 80GB HBM3");
        assert!(gpu.uuid.starts_with("GPU-5a5e9b22"));
        assert_eq!(gpu.pci_bus_id, "0000:05:00.0");
        assert_eq!(gpu.minor, Some(3));
    }
}
