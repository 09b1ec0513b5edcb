//! Rust client of the Longshore fleet API.
