//! The binary: options, one line when ready, a clean end.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use github_sim::shell::{Namespace, Options, RunnerListen, Server};
use tokio::signal::unix::{SignalKind, signal};

/// A simulated GitHub for tests and the demo.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address of REST and the control API.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address runners connect to, without a namespace.
    #[arg(long, default_value = "127.0.0.1:0")]
    runner_listen: SocketAddr,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Behave as a GitHub Enterprise Server: no limits, its headers at webhooks.
    #[arg(long)]
    ghes: bool,
    /// Switch all limits off.
    #[arg(long)]
    no_limits: bool,
    /// Open the runner socket inside a network namespace of this name, which is made and removed. Needs root.
    #[arg(long)]
    runner_netns: Option<String>,
    /// The address inside the namespace.
    #[arg(long, default_value = "198.51.100.10")]
    runner_address: Ipv4Addr,
    /// The address of the host's end, in the same /30.
    #[arg(long, default_value = "198.51.100.9")]
    runner_host_address: Ipv4Addr,
    /// The port inside the namespace.
    #[arg(long, default_value_t = 80)]
    runner_port: u16,
    /// The clock stands until the control API moves it.
    #[arg(long)]
    virtual_clock: bool,
    /// Write the ready line into this file as well.
    #[arg(long)]
    ready_file: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let runner = match args.runner_netns {
        Some(name) => RunnerListen::Namespace(Namespace {
            name,
            address: args.runner_address,
            host_address: args.runner_host_address,
            port: args.runner_port,
        }),
        None => RunnerListen::Address(args.runner_listen),
    };
    let options = Options {
        listen: args.listen,
        runner,
        seed: args.seed,
        no_limits: args.no_limits,
        ghes: args.ghes,
        virtual_clock: args.virtual_clock,
        ..Options::default()
    };
    let server = Server::start(options).await?;
    let ready = serde_json::json!({
        "rest": server.rest_url(),
        "control": server.control_url(),
        "runner": server.runner_url(),
        "netns": server.namespace(),
        "pid": std::process::id(),
    });
    if let Some(path) = &args.ready_file {
        // under another name first: whoever waits for the file finds it whole
        let tmp = path.with_extension("tmp");
        std::fs::write(&tmp, format!("{ready}\n"))
            .with_context(|| format!("cannot write {}", tmp.display()))?;
        std::fs::rename(&tmp, path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{ready}");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    server.stop().await;
    Ok(())
}
