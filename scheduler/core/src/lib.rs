//! The pure state machine of the scheduler: decide facts, apply facts, owe effects.
//!
//! Nothing here reads a clock, a socket, a file or randomness: time and entropy
//! are arguments, collections are ordered, and the same inputs give the same
//! facts. The shell commits the facts of a batch before it carries out what the
//! state then owes.

pub mod effect;
pub mod explain;
pub mod fact;
pub mod input;
pub mod model;
