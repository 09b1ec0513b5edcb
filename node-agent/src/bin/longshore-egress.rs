//! The `longshore-egress` program: the forward proxy of allow-listed sandboxes. The agent
//! starts it and finds it again; it is not started by hand.

#![warn(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(
    version,
    about = "The forward proxy of Longshore's allow-listed sandboxes; started by longshore-agent"
)]
struct Options {
    /// Unix socket on which the agent is listened to.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Seconds without an open slot and without an agent after which it ends.
    #[arg(long, default_value_t = 600)]
    linger: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_env("LONGSHORE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let mut terminated = match signal(SignalKind::terminate()) {
        Ok(terminated) => terminated,
        Err(error) => {
            eprintln!("longshore-egress: {error}");
            return ExitCode::FAILURE;
        }
    };
    let served = tokio::select! {
        served = agent_egress::serve(&options.socket, Duration::from_secs(options.linger)) => served,
        _ = terminated.recv() => Ok(()),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longshore-egress: {error}");
            ExitCode::FAILURE
        }
    }
}
