//! The demo's checker: looks at the host before and after, records the engine's events in between, and judges.
//!
//! A program of its own, so that no part of the fleet and no part of the demo's driver judges itself.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use bollard::Docker;
use clap::{Parser, Subcommand};
use longshore_e2e::{
    demo::{
        engine_events,
        folder::{Folder, read_json, write_json},
        gather, host_state, parts,
        verdict::judge,
    },
    http::Http,
};
use tokio::signal::unix::{SignalKind, signal};

/// Records and judges a demo.
#[derive(Debug, Parser)]
#[command(name = "demo-check")]
struct Arguments {
    /// Folder of the demo.
    #[arg(long)]
    folder: PathBuf,
    /// Socket of the container engine.
    #[arg(long, default_value = "/var/run/docker.sock")]
    engine_socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks at the host, then records the engine's events until SIGTERM.
    Watch,
    /// Takes the simulator's own story, while it still runs.
    Collect {
        /// Address of the simulator.
        #[arg(long)]
        simulator: String,
    },
    /// Looks at the host again and judges. Exit code 1: something was not as declared.
    Judge,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("demo-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(arguments: Arguments) -> Result<bool> {
    let folder = Folder::at(&arguments.folder);
    match &arguments.command {
        Command::Watch => {
            watch(&parts::engine(&arguments.engine_socket).await?, &folder).await?;
            Ok(true)
        }
        Command::Collect { simulator } => {
            let story = gather::from_simulator(&Http::new(simulator.as_str())).await?;
            write_json(&folder.github(), &story)?;
            Ok(true)
        }
        Command::Judge => judged(&parts::engine(&arguments.engine_socket).await?, &folder).await,
    }
}

async fn watch(engine: &Docker, folder: &Folder) -> Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    write_json(&folder.before(), &host_state::look(engine).await?)?;
    // From the time of the look on, so that nothing falls between the look and the stream.
    let since = jiff::Timestamp::now().as_second();
    println!("{{\"ready\":true}}");
    let recording = folder.events();
    tokio::select! {
        ended = engine_events::record(engine, since, &recording) => ended,
        _ = stop.recv() => Ok(()),
    }
}

async fn judged(engine: &Docker, folder: &Folder) -> Result<bool> {
    let evidence = gather::evidence(engine, folder).await?;
    let (summary, findings) = judge(&evidence);
    write_json(&folder.summary(), &summary)?;
    write_json(&folder.findings(), &findings)?;

    let (jobs, leaks, probes) = (&summary.jobs, &summary.leaks, &summary.probes);
    let ms = |v: Option<i64>| v.map_or("-".to_owned(), |v| format!("{v} ms"));
    println!();
    println!(
        "jobs      {} queued: {} succeeded, {} failed, {} cancelled, {} unschedulable",
        jobs.queued, jobs.succeeded, jobs.failed, jobs.cancelled, jobs.unschedulable
    );
    println!(
        "waits     p50 {}, p99 {}, longest {}",
        ms(summary.wait_ms.p50),
        ms(summary.wait_ms.p99),
        ms(summary.wait_ms.max)
    );
    println!(
        "probes    {} passed, {} failed, {} not guaranteed on this host",
        probes.passed, probes.failed, probes.not_guaranteed
    );
    println!(
        "leaks     {} containers, {} networks, {} volumes, {} registrations, {} firewall lines, {} processes",
        leaks.containers,
        leaks.networks,
        leaks.volumes,
        leaks.registrations,
        leaks.firewall,
        leaks.processes
    );
    println!(
        "host      {}, {} cpus, {}, cgroup v{}",
        summary.host.arch, summary.host.cpus, summary.host.engine, summary.host.cgroup
    );
    for finding in &findings {
        println!("NOT AS DECLARED: {finding}");
    }
    let before: host_state::HostState = read_json(&folder.before())?;
    println!(
        "verdict   {} (checked against {} containers, {} processes and {} firewall lines that were there before; {})",
        if summary.expected {
            "everything as declared, nothing left behind"
        } else {
            "NOT as declared"
        },
        before.containers.len(),
        before.processes.len(),
        before.firewall.values().sum::<u32>(),
        folder.summary().display()
    );
    Ok(summary.expected)
}
