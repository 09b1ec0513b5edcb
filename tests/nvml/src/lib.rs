//! A stand-in for the NVIDIA driver's library `libnvidia-ml.so.1`.
//!
//! Tests put it into a folder under that name and start the shipped agent with
//! `LD_LIBRARY_PATH`; it is no part of any product. What it tells stands in a
//! control file that a test may change at any time.

pub mod control;
mod exports;

pub use control::{Control, Event, Gpu, Instance, Memory, Process};
