//! Runs seeds of the simulation by hand: one with its trace, or many.

use clap::Parser;
use longshore_sim::{Plan, simulate};

#[derive(Parser)]
#[command(
    name = "longshore-sim",
    about = "Deterministic simulation of a whole fleet"
)]
struct Args {
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, from the first on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Without faults.
    #[arg(long)]
    calm: bool,
    /// Print everything that happens to stderr.
    #[arg(long)]
    trace: bool,
    /// Crash the scheduler at exactly this call of a port.
    #[arg(long)]
    crash_at_call: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut bad = 0;
    for seed in args.seed..args.seed + args.seeds {
        let mut plan = match args.calm {
            true => Plan::calm(seed),
            false => Plan::stormy(seed),
        };
        plan.trace = args.trace;
        plan.crash_at_call = args.crash_at_call;
        let begun = std::time::Instant::now();
        let report = simulate(plan);
        println!(
            "seed {seed}: {} jobs, {} registrations, {} events, {} facts, {} calls, wait p50 {} ms, max {} ms, settled after {} s, {:.2} s of CPU time, {}",
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
            println!("    {violation}");
        }
        bad += u64::from(!report.is_good());
    }
    anyhow::ensure!(bad == 0, "{bad} of {} seeds are bad", args.seeds);
    Ok(())
}
