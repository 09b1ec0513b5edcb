//! GitHub's side of the scheduler, and the only crate that talks to GitHub.
//!
//! ```text
//! let github = GitHub::connect(config)?;          // cheap clone; checks files and URLs, calls nobody
//! tokio::spawn(github.clone().run(inputs));       // discovery, sweep, orphan lists, budgets → Vec<Input>
//! let inputs = github.receive(delivery).await?;   // a webhook: verify → parse → inputs; the shell owns the listener
//! github.register(&registration).await            // → Registered { github_id, jit } or RegisterError
//! github.deregister(&runner, &scope, &credential, id).await
//! github.nudge(); github.status(); github.rates(); github.shutdown().await
//! ```
//!
//! Everything learnt arrives as [`scheduler_core::input::Input`]; nothing here
//! decides what runs where. Tokens, App keys, webhook secrets and registrations
//! never show in errors, logs or `Debug` output.
//!
//! Calls are bounded per credential: 8 in flight (one after a secondary limit),
//! 600 sweep reads a minute, a bucket of 100 registrations refilled at 120 a
//! minute, and whatever `x-ratelimit-*` leaves of the hour.

#![warn(clippy::unwrap_used)]

mod budget;
mod client;
mod config;
mod connector;
mod coverage;
mod credential;
mod deliveries;
mod directory;
mod discovery;
mod error;
mod github;
mod guard;
mod ledger;
mod limits;
mod live;
mod ownership;
mod pages;
mod problems;
mod proxy;
mod receive;
mod recovery;
mod redact;
mod registration;
mod schedule;
mod status;
mod sweep;
mod time;
mod translate;
mod transport;
pub mod webhook;
pub mod wire;

pub use config::{
    Account, ApiUrl, Config, ConfigError, Credential, CredentialKind, Enterprise, Proxy,
    SecretSource,
};
pub use error::CallError;
pub use github::{ConnectError, GitHub, KnownJob};
pub use redact::redact;
pub use registration::{RegisterError, Registered, Registration};
pub use status::{ArchForecast, Problem, RateStatus, RecoveryStatus, RepositoryQueue, SweepStatus};
