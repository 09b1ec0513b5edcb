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
pub mod profiles;
pub mod properties;

pub use capability::{Capability, Engine, Evidence, Limits, assemble};

/// Reads this host. The engine is asked by the caller, who owns its client.
pub fn host() -> Host {
    Host {
        cpu: cpu::probe(),
        emulation: emulation::probe(),
        nvidia: nvidia::probe(),
    }
}

/// Everything found on the host itself.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Host {
    pub cpu: cpu::Cpu,
    pub emulation: emulation::Emulation,
    pub nvidia: nvidia::Nvidia,
}
