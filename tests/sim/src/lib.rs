//! Deterministic simulation of a whole fleet.
//!
//! The real driver of the scheduler and the real rules of the agent run against
//! a simulated GitHub (github-sim's state machine), simulated engines, networks
//! and clocks, in one thread under a paused clock. A seed gives the same run for
//! ever. What must never happen is checked against the simulated world, not
//! against what the scheduler believes.

pub mod checks;
pub mod dice;
mod edge;
mod engine;
pub mod mutants;
mod node;
pub mod plan;
mod ports;
mod process;
mod report;
mod run;
mod watch;
mod workload;
mod world;

pub use plan::{Fault, Plan};
pub use report::Report;
pub use run::simulate;
