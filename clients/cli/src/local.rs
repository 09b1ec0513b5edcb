//! A scheduler and a node agent on this host, as children of this process.

mod background;
mod joining;
mod log;
mod plan;
mod ports;
mod sibling;
mod signals;
mod state;
mod supervise;

pub(crate) use background::{report_failure, start_in_background, stop};
pub(crate) use plan::{Plan, is_loopback, is_this_host};
pub(crate) use signals::Signals;
pub(crate) use state::{is_up, state_dir};
pub(crate) use supervise::run;
