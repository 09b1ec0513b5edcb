//! Real processes of a whole fleet: how tests and the demo start them, watch them and see what they left behind.

pub mod binaries;
pub mod demo;
pub mod fleet;
pub mod http;
pub mod process;
pub mod trace;
pub mod wait;
