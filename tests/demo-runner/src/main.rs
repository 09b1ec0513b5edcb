//! Stand-in for GitHub's runner program: one binary that is `Runner.Listener` or `Runner.Worker` by the name it is called by.
//!
//! Same files, exit codes, signals and lines of output as the real one, as far as a fleet can see them. It really runs the
//! steps of a job, as shell scripts.

mod containers;
mod dates;
mod diag;
mod http;
mod listener;
mod os;
mod service;
mod settings;
mod steps;
mod worker;

use std::process::ExitCode;

/// The version this program claims to have.
pub(crate) const VERSION: &str = "2.336.0";

fn main() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let called = name.rsplit('/').next().unwrap_or_default().to_owned();
    let code = if called == "Runner.Worker" {
        worker::main()
    } else {
        listener::main(&rest)
    };
    ExitCode::from(code)
}
