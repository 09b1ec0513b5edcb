//! The pure state machine of the scheduler: decide facts, apply facts, owe effects.
//!
//! Nothing here reads a clock, a socket, a file or randomness: time and entropy
//! are arguments, collections are ordered, and the same inputs give the same
//! facts. The shell commits the facts of a batch before it carries out what the
//! state then owes.

#![warn(clippy::unwrap_used)]
#![forbid(unsafe_code)]

mod admission;
mod apply;
mod budget;
mod capacity;
mod decide;
mod demand;
mod drain;
pub mod effect;
pub mod ending;
pub mod entropy;
mod expected;
pub mod explain;
pub mod fact;
mod feasible;
mod fleet;
pub mod input;
mod invariants;
mod labels;
pub mod model;
mod ordered;
mod owed;
mod place;
pub mod profile;
mod reconcile;
mod snapshot;
mod spent;
mod state;
mod table;
mod timers;
mod unassigned;

pub use entropy::Entropy;
pub use fleet::Fleet;
pub use state::{Budget, Foreign, Job, Node, Observed, PoolEntry, Queue, Runner, Share, Status};
