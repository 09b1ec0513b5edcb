//! The scheduler's shell: everything around the pure core that touches the world.
//!
//! ```text
//! web, api, github ─► inbox ─► driver (the only writer) ─► store
//!                                 │ committed facts          ▲ snapshots
//!                                 ├─► view (all reads, watch, metrics)
//!                                 └─► effects ─► GitHub, node streams ─► inbox
//! ```
//!
//! Whoever calls `api` came through `access`.
//!
//! The driver is generic over `ports`, so that the simulation runs it unchanged.

#![warn(clippy::unwrap_used)]

pub mod access;
pub mod admission;
pub mod api;
pub mod app;
pub mod checks;
pub mod clock;
pub mod config;
pub mod driver;
pub mod effects;
mod endings;
pub mod housekeeping;
pub mod hub;
pub mod inbox;
pub mod links;
pub mod logs;
pub mod metrics;
pub mod ports;
pub mod quota;
pub mod serve;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod view;
pub mod watchdog;
pub mod web;
