//! A simulated GitHub: a pure state machine, and a shell that gives it sockets.
//!
//! `machine` has no clock, file, socket or thread: time and seed are arguments. `shell` serves it over HTTP. See README.md.

pub mod control;
pub mod machine;
pub mod shell;
