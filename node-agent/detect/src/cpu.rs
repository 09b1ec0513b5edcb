//! Processors, memory, kernel and architecture.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// What the kernel says of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// As `uname -m` says.
    pub machine: String,
    /// Who said so.
    pub machine_source: String,
    pub kernel: String,
    pub hostname: String,
    /// Processors this process may use.
    pub cpus: u32,
    pub memory_bytes: u64,
    /// `vendor_id` of an x86 processor, or the implementer of an ARM one.
    pub vendor: String,
    /// It was `vendor_id`, which only x86 processors have.
    pub x86_vendor: bool,
    pub model: String,
}

/// Reads the host, or what a tree records of another one: nothing of a recorded
/// host is taken from this one.
pub fn probe(root: &Path) -> Cpu {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let here = root == Path::new("/");
    let cpuinfo = read("proc/cpuinfo");
    let mut cpu = parse_cpuinfo(&cpuinfo);
    cpu.memory_bytes = parse_meminfo(&read("proc/meminfo"));
    cpu.kernel = read("proc/sys/kernel/osrelease").trim().to_owned();
    cpu.hostname = read("proc/sys/kernel/hostname").trim().to_owned();
    (cpu.machine, cpu.machine_source) = machine(&read("proc/sys/kernel/arch"), here);
    cpu.cpus = match here {
        true => std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        false => processors(&cpuinfo),
    };
    cpu
}

/// Kernels before 6.1 have no `/proc/sys/kernel/arch`; then this program's build says
/// it, but only of the host that it runs on.
fn machine(proc_arch: &str, here: bool) -> (String, String) {
    match proc_arch.trim() {
        "" if here => (
            std::env::consts::ARCH.to_owned(),
            "agent's build".to_owned(),
        ),
        arch => (arch.to_owned(), "kernel".to_owned()),
    }
}

fn processors(cpuinfo: &str) -> u32 {
    let listed = cpuinfo
        .lines()
        .filter(|line| line.split(':').next().map(str::trim) == Some("processor"));
    u32::try_from(listed.count()).unwrap_or(u32::MAX)
}

/// GitHub's word for a machine name: x64, arm64 or arm.
pub fn arch_of(machine: &str) -> Option<&'static str> {
    match machine.trim() {
        "x86_64" | "amd64" => Some("x64"),
        "aarch64" | "arm64" => Some("arm64"),
        // 64-bit processors that run a 32-bit system are armv8l.
        "arm" | "armv8l" | "armv7l" | "armv6l" | "armhf" => Some("arm"),
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
        x86_vendor: !field(&["vendor_id"]).is_empty(),
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
        assert_eq!(
            (x64.vendor.as_str(), x64.x86_vendor),
            ("GenuineIntel", true)
        );
        let arm = parse_cpuinfo(include_str!("../fixtures/cpuinfo.aarch64"));
        assert_eq!((arm.vendor.as_str(), arm.model.as_str()), ("0x41", "0xd0c"));
        assert!(!arm.x86_vendor);
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
        assert_eq!(arch_of("armv8l"), Some("arm"));
        assert_eq!(arch_of("riscv64"), None);
    }

    #[test]
    fn this_host_has_a_processor_and_memory() {
        let cpu = probe(Path::new("/"));
        assert!(
            cpu.cpus >= 1 && cpu.memory_bytes > 0 && !cpu.kernel.is_empty(),
            "{cpu:?}"
        );
    }

    #[test]
    fn a_recorded_host_has_nothing_of_this_one() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/arm64-tree");
        let cpu = probe(&tree);
        assert_eq!((cpu.machine.as_str(), cpu.cpus), ("aarch64", 4));
        assert_eq!(cpu.machine_source, "kernel");
        assert_eq!((cpu.vendor.as_str(), cpu.model.as_str()), ("0x41", "0xd0c"));
        assert_eq!(cpu.memory_bytes, 16_233_356 * 1024);
        assert_eq!(cpu.hostname, "ampere");
        assert_eq!(
            probe(Path::new("/nowhere")),
            Cpu {
                machine_source: "kernel".into(),
                ..Cpu::default()
            }
        );
    }
}
