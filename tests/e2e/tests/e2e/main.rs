//! End-to-end tests: one binary, real processes.
//!
//! The programs must be built beforehand (`cargo build --workspace --bins`); `make test` does.

mod demo;
mod durability;
mod ground;
