//! The demo: a realistic queue on a whole fleet, shown live, and a verdict by a checker that trusts none of the parts it judges.

pub mod declared;
pub mod engine_events;
pub mod folder;
pub mod gather;
pub mod host_state;
pub mod identity;
pub mod image;
pub mod parts;
pub mod probes;
pub mod real;
pub mod show;
pub mod simulated;
pub mod stop;
pub mod verdict;
