//! Longshore's `.proto` files as Rust types, and nothing else.
//!
//! `gen/` is generated and checked in; `tests/bootstrap.rs` regenerates it and
//! fails when it differs (`BLESS=1 cargo test -p longshore-proto` rewrites it).

#![warn(clippy::unwrap_used)]

pub mod join_token;

/// Name in the certificate of every scheduler: what agents ask for, whatever the address.
pub const SCHEDULER_NAME: &str = "scheduler.longshore.internal";

mod secret;

/// The node stream and the fleet API.
#[allow(clippy::all, unreachable_pub)]
pub mod v1 {
    include!("gen/longshore.v1.rs");
}

/// What the scheduler writes to disk.
pub mod store {
    #[allow(clippy::all, unreachable_pub)]
    pub mod v1 {
        include!("gen/longshore.store.v1.rs");
    }
}

/// Descriptors of every file, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");
