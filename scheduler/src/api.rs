//! The gRPC surfaces: FleetService for people and programs, NodeService for agents.

pub mod convert;
pub mod errors;
pub mod fleet;
pub mod idempotency;
pub mod node;
pub mod page;
pub mod report;
pub mod vitals;
