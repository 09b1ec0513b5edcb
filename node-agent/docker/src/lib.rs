//! The container engine behind the agent: Docker, or Podman's Docker-compatible socket.
//!
//! The only crate that knows an engine. It translates the sandbox that
//! `agent_core::sandbox` describes and adds nothing to it.

#![warn(clippy::unwrap_used)]

mod beside;
mod bridges;
mod broker;
mod config;
mod disk_io;
mod disk_watch;
mod egress;
mod ending;
mod engine;
mod events;
mod firewall;
mod giving;
mod gpus;
mod handover;
mod images;
mod inside;
mod logs;
mod loops;
mod making;
mod measure;
mod mounts;
mod netfilter;
mod outage;
mod probe;
mod processes;
mod quota;
mod recover;
mod runtime;
mod seccomp;
mod slices;
mod slots;
mod space;
mod standby;
mod tools;
mod translate;
mod unanswered;
mod usage;
mod volumes;

pub use config::{Config, FirewallTool};
pub use engine::{EngineFacts, WorkFolders};
pub use gpus::{Proof, ProofProgram, ToProve};
pub use handover::{HandOverError, archive};
pub use runtime::DockerRuntime;
pub use translate::container_body;
