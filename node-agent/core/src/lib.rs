//! The pure rules of a node: what to do next, what a sandbox is, how an end is read.
//!
//! Nothing here knows a clock, a socket, a file or a container engine. Time is
//! an argument, actions are data, and the shell (`longshore-agent`) carries
//! them out through a [`runtime::Runtime`].

#![warn(clippy::unwrap_used)]

pub mod containers;
pub mod denied;
pub mod dialect;
pub mod domains;
pub mod exit;
pub mod firewall;
pub mod gpu;
pub mod lifecycle;
pub mod model;
pub mod names;
pub mod probe;
pub mod ranges;
pub mod reconcile;
pub mod runtime;
pub mod sandbox;
pub mod seccomp;
pub mod slots;
pub mod standby;
pub mod tools;

pub use model::*;
pub use reconcile::{Accept, Action, Event, Node};
