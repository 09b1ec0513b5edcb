//! Rust client of the Longshore fleet API: typed calls with deadlines, retries
//! of reads, errors with a reason and a next step, a watch that resumes.
//!
//! The connection is lazy: building a [`Client`] does not touch the network,
//! the first call does, and later calls reconnect by themselves.
//!
//! How a scheduler sends an error: a gRPC status whose message says what is
//! wrong and, after `; `, what to do; with a `google.rpc.ErrorInfo` detail of
//! domain `longshore`, a stable `reason` and the metadata key `next_step`.

#![warn(clippy::unwrap_used)]

mod bearer;
mod builder;
mod calls;
mod error;
mod logs;
mod retry;
mod watch;

pub use builder::{Builder, DEFAULT_ADDRESS};
pub use calls::{Client, MAX_PAGE};
pub use error::{Api, Error, Kind};
pub use logs::{LogChunk, LogStream};
pub use longshore_proto::v1;
pub use secrecy::SecretString;
pub use watch::{Change, Watch};
