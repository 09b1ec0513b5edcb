//! Measures Longshore from outside: `longshore-bench [--only NAME]`.
//!
//! Release programs run as separate processes with default settings. Each
//! figure comes with a reference, its sample count and the machine's load; raw
//! samples are kept beside the table.

mod agents;
mod assign;
mod burst;
mod calls;
mod core;
mod echo;
mod fairness;
mod fleet;
mod floor;
mod idle;
mod ingest;
mod mtls;
mod node;
mod probe;
mod results;
mod row;
mod soak;
mod standby;
mod webhook;

use std::{future::Future, pin::Pin};

use anyhow::{Result, bail};
use clap::Parser;
use row::Row;

#[derive(Parser)]
#[command(about = "Measures Longshore and writes target/bench/results.json")]
struct Arguments {
    /// Measure only this figure and what is measured with it.
    #[arg(long)]
    only: Option<String>,
}

type Measurement = fn() -> Pin<Box<dyn Future<Output = Result<Vec<Row>>>>>;

/// Every measurement and the figures it gives.
const MEASUREMENTS: &[(&[&str], Measurement)] = &[
    (
        &[
            "core_decide_1k",
            "core_decide_10k",
            "core_decide_flatness",
            "core_step_1k",
            "core_step_10k",
        ],
        || Box::pin(async { Ok(core::measure()) }),
    ),
    (&["fair_jain", "fair_light_wait"], || {
        Box::pin(async { Ok(fairness::measure()) })
    }),
    (&["webhook_to_assign_p50", "webhook_to_assign_p99"], || {
        Box::pin(assign::run())
    }),
    (&["webhook_ingest_rate"], || Box::pin(ingest::rate())),
    (&["webhook_ingest_lost"], || Box::pin(ingest::lost())),
    (
        &["agent_rss_1k", "agents_idle_cpu_1k", "agents_reattach_1k"],
        || Box::pin(agents::run()),
    ),
    (&["mtls_added_p50"], || Box::pin(mtls::run())),
    (&["burst_start_rate"], || Box::pin(burst::run())),
    (&["probe_failures"], || Box::pin(probe::run())),
    (&["standby_handover_p50", "standby_handover_p99"], || {
        Box::pin(standby::handover())
    }),
    (&["cold_start"], || Box::pin(standby::cold_start())),
    (&["agent_32_slots_rss"], || Box::pin(standby::slots_rss())),
    (&["burst_extra_runners"], || Box::pin(calls::extra())),
    (&["github_calls_per_job"], || Box::pin(calls::per_job())),
    (&["github_idle_calls_per_repo_minute"], || {
        Box::pin(calls::idle())
    }),
    (&["poll_only_wait"], || Box::pin(calls::poll_only())),
    (
        &["scheduler_idle_rss", "agent_idle_rss", "idle_cpu"],
        || Box::pin(idle::run()),
    ),
];

/// Measured when asked for by name only, as `make soak` does: these take long.
const SOAKS: &[(&[&str], Measurement)] = &[(&["soak_leaks", "soak_agent_rss_growth"], || {
    Box::pin(soak::run())
})];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted = |names: &[&str]| {
        arguments
            .only
            .as_deref()
            .is_none_or(|only| names.contains(&only))
    };
    let mut ran = 0;
    for (names, measure) in MEASUREMENTS {
        if wanted(names) {
            println!("measuring {}", names.join(", "));
            results::keep(measure().await?)?;
            ran += 1;
        }
    }
    for (names, measure) in SOAKS {
        if arguments.only.is_some() && wanted(names) {
            println!("measuring {}", names.join(", "));
            let rows = measure().await?;
            let verdict = soak::judge(&rows);
            results::keep(rows)?;
            verdict?;
            ran += 1;
        }
    }
    if ran == 0 {
        let known: Vec<&str> = MEASUREMENTS
            .iter()
            .chain(SOAKS)
            .flat_map(|(names, _)| names.iter().copied())
            .collect();
        bail!(
            "no figure is called {}; there are: {}",
            arguments.only.unwrap_or_default(),
            known.join(", ")
        );
    }
    Ok(())
}
