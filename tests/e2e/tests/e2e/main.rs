//! End-to-end tests: one binary, real processes, a real container engine, a
//! fake GitHub. A test that starts containers ends by showing that nothing of
//! its fleet is left on the host.
//!
//! The programs must be built beforehand (`cargo build --workspace --bins`); `make test` does.

mod admission;
// On ARM every other test is the test of it.
#[cfg(target_arch = "x86_64")]
mod arm;
mod burst;
mod canary;
mod cli;
mod containers;
mod crashes;
mod demo;
mod durability;
mod engines;
mod gpu;
mod ground;
mod hosts;
mod image;
mod leftovers;
mod logs;
mod nodes;
mod otlp;
mod outcomes;
mod provision;
mod queue;
mod rig;
mod stuck;
mod up;
mod upgrade;
