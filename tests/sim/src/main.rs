//! Runs the simulation by hand: seeds with their trace, checks, planted bugs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use longshore_sim::{checks, mutants, simulate};

#[derive(Parser)]
#[command(
    name = "longshore-sim",
    about = "Deterministic simulation of a whole fleet",
    args_conflicts_with_subcommands = true
)]
struct Args {
    #[command(subcommand)]
    command: Option<Job>,
    #[command(flatten)]
    seeds: Seeds,
}

#[derive(Subcommand)]
enum Job {
    /// Runs one named check; exit code 1 when it finds something.
    Check { name: String },
    /// Shows that every planted bug is found, or these only.
    Mutants { only: Vec<String> },
    /// Runs many seeds.
    Soak {
        #[arg(long, default_value_t = 5_000)]
        seeds: u64,
        /// Stops after so many hours, however many seeds are left.
        #[arg(long, default_value_t = 4)]
        hours: u64,
        /// First seed.
        #[arg(long, default_value_t = 1_000)]
        seed: u64,
    },
}

#[derive(clap::Args)]
struct Seeds {
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, from the first on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Which faults: stormy, calm, shuffled, sweep_only, short, restarts, partitions, idle_races.
    #[arg(long, default_value = "stormy")]
    plan: String,
    /// Print everything that happens to stderr.
    #[arg(long)]
    trace: bool,
    /// Crash the scheduler at exactly this call of a port.
    #[arg(long)]
    crash_at_call: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.command {
        None => run(&args.seeds, None),
        Some(Job::Check { name }) => match checks::check(&name) {
            Ok(()) => {
                println!("{name} found nothing");
                Ok(())
            }
            Err(bad) => {
                println!("{name}: {bad}");
                std::process::exit(1);
            }
        },
        Some(Job::Mutants { only }) => mutants::run(&only),
        Some(Job::Soak { seeds, hours, seed }) => {
            let many = Seeds {
                seed,
                seeds,
                plan: "stormy".to_owned(),
                trace: false,
                crash_at_call: None,
            };
            run(&many, Some(Duration::from_secs(hours * 3_600)))
        }
    }
}

/// Every seed is a world of its own: as many at a time as there are processors.
fn run(args: &Seeds, longest: Option<Duration>) -> anyhow::Result<()> {
    // What is traced is to be read.
    let at_once = match args.trace {
        true => 1,
        false => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let started = Instant::now();
    let next = AtomicU64::new(args.seed);
    let end = args.seed.saturating_add(args.seeds);
    let work = || -> anyhow::Result<u64> {
        let mut bad = 0;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return Ok(bad);
            }
            if longest.is_some_and(|longest| started.elapsed() > longest) {
                println!("time is up before seed {seed}");
                return Ok(bad);
            }
            bad += u64::from(!is_good(args, seed)?);
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(ScopedJoinHandle::join).collect()
    });
    let mut bad = 0;
    for result in results {
        bad += result.map_err(|_| anyhow::anyhow!("a simulation panicked"))??;
    }
    anyhow::ensure!(bad == 0, "{bad} of {} seeds are bad", args.seeds);
    Ok(())
}

fn is_good(args: &Seeds, seed: u64) -> anyhow::Result<bool> {
    let mut plan = checks::plan(&args.plan, seed)
        .with_context(|| format!("there is no plan {}", args.plan))?;
    plan.trace = args.trace;
    plan.crash_at_call = args.crash_at_call;
    let begun = Instant::now();
    // Whatever happens to it, a seed that is bad is told, so that it can be played again.
    let Ok(report) = std::panic::catch_unwind(|| simulate(plan)) else {
        println!("seed {seed}: panicked, BAD");
        return Ok(false);
    };
    let mut text = format!(
        "seed {seed}: {} jobs, {} registrations, {} events, {} facts, {} calls, wait p50 {} ms, max {} ms, settled after {} s, took {:.2} s, {}",
        report.jobs,
        report.registrations,
        report.events,
        report.facts,
        report.calls,
        report.wait_percentile(50),
        report.wait_percentile(100),
        report.settled_after.map_or(-1, |ms| (ms / 1_000) as i64),
        begun.elapsed().as_secs_f64(),
        if report.is_good() { "good" } else { "BAD" },
    );
    for violation in &report.violations {
        text.push_str(&format!("\n    {violation}"));
    }
    println!("{text}");
    Ok(report.is_good())
}
