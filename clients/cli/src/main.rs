//! The Longshore command line: a client of FleetService, and the way to start
//! a fleet on one host.

#![warn(clippy::unwrap_used)]

mod args;
mod commands;
mod exit;
mod local;
mod output;
mod shapes;
mod token;
mod units;

use std::io::Write;

use clap::Parser;

use crate::args::Cli;
use crate::exit::Failure;

fn main() {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => usage(&e),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => exit(Err(Failure::failed(format!("start: {e}"), ""))),
    };
    let result = runtime.block_on(commands::run(cli));
    // A read of a pid file's lock may still block; nothing waits for it.
    runtime.shutdown_background();
    exit(result)
}

/// Help and version are data; a wrong command line is an error like any other.
fn usage(e: &clap::Error) -> ! {
    let text = e.render().to_string();
    let text = match text.split_once("\n\nFor more information") {
        Some((what, _)) => format!("{what}\n  next: see longshore --help\n"),
        None => text,
    };
    // Nobody is left to tell when the stream is closed.
    let _ = if e.use_stderr() {
        std::io::stderr().write_all(text.as_bytes())
    } else {
        std::io::stdout().write_all(text.as_bytes())
    };
    std::process::exit(e.exit_code())
}

fn exit(result: Result<(), Failure>) -> ! {
    let code = match result {
        Ok(()) => exit::OK,
        Err(failure) => {
            failure.print();
            failure.exit_code()
        }
    };
    std::process::exit(code)
}
