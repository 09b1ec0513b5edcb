//! What a host can do, with the evidence.
//!
//! Each part is a probe that only reads, and a pure parser of what it read, so
//! that the parser is tested on recorded hosts. Nothing is claimed without a
//! finding that says which probe said so.

#![warn(clippy::unwrap_used)]

pub mod capability;
pub mod cpu;
pub mod emulation;
pub mod nvidia;
pub mod offer;
pub mod profiles;
pub mod properties;
pub mod runtimes;

pub use capability::{Capability, Engine, Evidence, Limits, assemble};
pub use offer::{Findings, OfferedGpu, Standing, Withheld, offer};

use std::path::Path;

/// Reads this host. The engine is asked by the caller, who owns its client.
///
/// `root` is `/` or a recorded tree. A tree that holds `proc/cpuinfo` records a whole
/// machine; one without it records GPUs only, beside the processor of this host.
pub fn host(root: &Path) -> Host {
    let machine = match root.join("proc/cpuinfo").exists() {
        true => root,
        false => Path::new("/"),
    };
    Host {
        cpu: cpu::probe(machine),
        emulation: emulation::probe(machine),
        nvidia: nvidia::probe(root),
        recorded: (machine != Path::new("/")).then(|| root.display().to_string()),
    }
}

/// Everything found on the host itself.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Host {
    pub cpu: cpu::Cpu,
    pub emulation: emulation::Emulation,
    pub nvidia: nvidia::Nvidia,
    /// The tree that the processor and emulators were read from; none for this host.
    pub recorded: Option<String>,
}
