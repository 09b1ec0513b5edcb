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
    /// Seconds without an open slot and without an agent after which it ends; 0 for never.
    #[arg(long, default_value_t = 600)]
    linger: u64,
    /// Number of the user it becomes once it listens, when root starts it.
    #[arg(long, value_name = "UID")]
    user: Option<u32>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_env("LONGSHORE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longshore-egress: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let listener = agent_egress::listen(&options.socket)?;
    // Before there is a second thread.
    match options.user {
        Some(user) => agent_egress::privileges::drop_to(user)?,
        None => agent_egress::privileges::renounce()?,
    }
    let linger = (options.linger > 0).then(|| Duration::from_secs(options.linger));
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        tokio::select! {
            served = agent_egress::serve(listener, &options.socket, linger) => served,
            _ = terminated.recv() => Ok(()),
        }
    })
}
