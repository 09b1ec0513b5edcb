//! Who may call the API listener: tokens, roles, browsers' checks, and what is written down of it.
//!
//! One layer stands in front of every service and route. It looks the caller up
//! in memory (no lock, no disk), compares what the call asks
//! (`scheduler_identity::role`) with what the token allows, and puts [`Who`] into
//! the request for the handlers. What no row of the table declares is denied.

pub mod browser;
pub mod denials;
pub mod directory;
pub mod gate;
mod ledger;
pub mod local;
pub mod who;

pub use directory::Directory;
pub use gate::{Gate, protect};
pub use scheduler_identity::role::{Role, Scope};
pub use who::{Kind, Principal, Who};
