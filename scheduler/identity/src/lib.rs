//! Who may call the scheduler: its certificate authority, tokens and roles.
//!
//! Pure but for the system's randomness: no clock, no file, no network. The
//! scheduler's shell keeps what is made here and asks at each call.

#![warn(clippy::unwrap_used)]

pub mod admission;
pub mod authority;
pub mod bearer;
mod random;
pub mod role;
