//! Processors, memory, kernel and architecture.

use std::fs;

use serde::Serialize;

/// What the kernel says of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// As `uname -m` says.
    pub machine: String,
    pub kernel: String,
    pub hostname: String,
    /// Processors this process may use.
    pub cpus: u32,
    pub memory_bytes: u64,
    /// `vendor_id` of an x86 processor, or the implementer of an ARM one.
    pub vendor: String,
    pub model: String,
}

pub fn probe() -> Cpu {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut cpu = parse_cpuinfo(&read("/proc/cpuinfo"));
    cpu.memory_bytes = parse_meminfo(&read("/proc/meminfo"));
    cpu.kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    cpu.hostname = read("/proc/sys/kernel/hostname").trim().to_owned();
    cpu.machine = machine(&read("/proc/sys/kernel/arch"));
    cpu.cpus = std::thread::available_parallelism()
        .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    cpu
}

/// Kernels before 6.1 have no `/proc/sys/kernel/arch`; then the build says it.
fn machine(proc_arch: &str) -> String {
    match proc_arch.trim() {
        "" => std::env::consts::ARCH.to_owned(),
        arch => arch.to_owned(),
    }
}

/// GitHub's word for a machine name: x64, arm64 or arm.
pub fn arch_of(machine: &str) -> Option<&'static str> {
    match machine.trim() {
        "x86_64" | "amd64" => Some("x64"),
        "aarch64" | "arm64" => Some("arm64"),
        "arm" | "armv7l" | "armv6l" | "armhf" => Some("arm"),
        _ => None,
    }
}

pub fn parse_cpuinfo(text: &str) -> Cpu {
    let field = |names: &[&str]| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| names.contains(&key.trim()))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    Cpu {
        vendor: field(&["vendor_id", "CPU implementer"]),
        model: field(&["model name", "CPU part"]),
        ..Cpu::default()
    }
}

pub fn parse_meminfo(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_hosts_are_read() {
        let x64 = parse_cpuinfo(include_str!("../fixtures/cpuinfo.x86_64"));
        assert_eq!(x64.vendor, "GenuineIntel");
        let arm = parse_cpuinfo(include_str!("../fixtures/cpuinfo.aarch64"));
        assert_eq!((arm.vendor.as_str(), arm.model.as_str()), ("0x41", "0xd0c"));
        assert_eq!(
            parse_meminfo("MemTotal:       24737840 kB\nMemFree: 1 kB\n"),
            24_737_840 * 1024
        );
        assert_eq!(parse_meminfo("nonsense"), 0);
    }

    #[test]
    fn machine_names_map_to_githubs_words() {
        assert_eq!(arch_of("x86_64"), Some("x64"));
        assert_eq!(arch_of("aarch64"), Some("arm64"));
        assert_eq!(arch_of("armv7l"), Some("arm"));
        assert_eq!(arch_of("riscv64"), None);
    }

    #[test]
    fn this_host_has_a_processor_and_memory() {
        let cpu = probe();
        assert!(
            cpu.cpus >= 1 && cpu.memory_bytes > 0 && !cpu.kernel.is_empty(),
            "{cpu:?}"
        );
    }
}
