//! The Longshore node agent: one stream to a scheduler, one container engine.
//!
//! The shell around `agent-core`: it owns sockets, files and tasks and decides
//! nothing. Its driver runs on any [`agent_core::runtime::Runtime`].

#![warn(clippy::unwrap_used)]

pub mod app;
pub mod clock;
pub mod config;
pub mod dial;
pub mod driver;
pub mod findings;
pub mod gpus;
pub mod identity;
pub mod link;
pub mod logstore;
mod pinned;
pub mod probing;
pub mod push;
pub mod secrets;
pub mod see_gpus;
mod shield;
pub mod state;
pub mod systemd;
pub mod telemetry;
pub mod wire;
