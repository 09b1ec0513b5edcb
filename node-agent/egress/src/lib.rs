//! The forward proxy of allow-listed sandboxes: CONNECT to TLS hosts whose handshake names
//! them, plain HTTP by host, nothing else, and no private address by any name.
//!
//! It is a process of its own (`longshore-egress`), so that connections outlive a restart of
//! the agent. The agent tells it by [`control`] which slot may reach what.

#![warn(clippy::unwrap_used)]

mod address;
pub mod control;
mod hello;
mod ledger;
mod plain;
pub mod privileges;
mod server;
mod slot;
mod tunnel;

pub use server::{listen, serve};
