//! The gRPC surfaces: FleetService and AdminService for people and programs, NodeService for agents.

pub mod admin;
pub mod convert;
mod enrolment;
pub mod errors;
pub mod fleet;
pub mod idempotency;
pub mod node;
pub mod page;
pub mod report;
pub mod vitals;
pub mod watchers;
