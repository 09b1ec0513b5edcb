//! The whole crate against a scripted GitHub that is difficult.

mod calls;
mod fake;
mod network;
mod receive;
mod sweep;
mod world;
