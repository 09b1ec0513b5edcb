//! The simulation's seeds. A failing one prints how to see it again.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use longshore_sim::{
    Fault, Plan, Report,
    checks::{self, short},
    plan::{GITHUB_FAULTS, MINUTE},
    simulate,
};

/// Seeds of an ordinary test run; `LONGSHORE_SIM_SEEDS` asks for more.
const SEEDS: u64 = 200;

fn seeds() -> u64 {
    std::env::var("LONGSHORE_SIM_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(SEEDS)
}

/// Runs plans on every core; the reports come in the order of the plans.
fn simulate_all(plans: Vec<Plan>) -> Vec<Report> {
    let next = AtomicU64::new(0);
    let reports = Mutex::new(BTreeMap::new());
    let workers = thread::available_parallelism().map_or(2, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(plan) = plans.get(n as usize) else {
                        break;
                    };
                    let report = simulate(plan.clone());
                    reports.lock().expect("no worker panics").insert(n, report);
                }
            });
        }
    });
    let reports = reports.into_inner().expect("no worker panics");
    reports.into_values().collect()
}

/// Panics with every bad run and how to repeat it.
fn expect_good(reports: &[Report], options: &str) {
    let mut bad = Vec::new();
    for report in reports.iter().filter(|report| !report.is_good()) {
        bad.push(format!(
            "seed {} (cargo run -p longshore-sim -- --seed {}{options} --trace):\n    {}",
            report.seed,
            report.seed,
            report.violations.join("\n    ")
        ));
    }
    assert!(bad.is_empty(), "{} bad runs\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn whatever_goes_wrong_every_job_ends_and_nothing_is_left() {
    let reports = simulate_all((1..=seeds()).map(Plan::stormy).collect());
    expect_good(&reports, "");

    for report in &reports {
        assert!(
            report.events >= 2_000,
            "seed {} has {} events",
            report.seed,
            report.events
        );
    }
    let mut fired: BTreeMap<&str, u64> = BTreeMap::new();
    for (fault, count) in reports.iter().flat_map(|report| &report.fired) {
        *fired.entry(fault).or_default() += count;
    }
    let kinds = Fault::ALL.iter().map(|fault| fault.name());
    for kind in kinds.chain(GITHUB_FAULTS) {
        assert!(
            fired.get(kind).is_some_and(|count| *count > 0),
            "the fault {kind} never fired: {fired:?}"
        );
    }

    let mut waits: Vec<u64> = reports.iter().flat_map(|r| r.waits.clone()).collect();
    waits.sort_unstable();
    let settled = reports.iter().filter_map(|r| r.settled_after).max();
    println!(
        "{} seeds, {} jobs, {} events; wait p50 {} ms, p99 {} ms, max {} ms; settled at most {} s after the last fault; faults {fired:?}",
        reports.len(),
        reports.iter().map(|r| r.jobs).sum::<u64>(),
        reports.iter().map(|r| r.events).sum::<u64>(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        waits[waits.len() - 1],
        settled.unwrap_or(0) / 1_000,
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 17] {
        let first = simulate(Plan::stormy(seed));
        let second = simulate(Plan::stormy(seed));
        assert_eq!(first, second);
    }
    let other = simulate(Plan::stormy(4));
    assert_ne!(other.fingerprint, simulate(Plan::stormy(3)).fingerprint);
}

#[test]
fn when_nothing_goes_wrong_each_job_costs_one_registration() {
    let reports = simulate_all((1..=10).map(Plan::calm).collect());
    expect_good(&reports, " --plan calm");
    for report in &reports {
        assert_eq!(checks::no_surplus(report), Ok(()), "seed {}", report.seed);
        assert!(
            report.settled_after.is_some_and(|ms| ms < 60 * MINUTE),
            "{report:?}"
        );
    }
}

#[test]
fn repeated_and_shuffled_webhooks_start_no_extra_runner() {
    let reports = simulate_all((1..=10).map(checks::shuffled).collect());
    expect_good(&reports, " --plan shuffled");
    for report in &reports {
        assert_eq!(checks::no_surplus(report), Ok(()), "seed {}", report.seed);
    }
}

#[test]
fn without_webhooks_the_sweep_serves_every_job() {
    let reports = simulate_all((1..=5).map(checks::sweep_only).collect());
    expect_good(&reports, " --plan sweep_only");
}

/// A short run, crashed at each call of a port in turn.
#[test]
fn a_crash_at_any_call_loses_nothing() {
    let whole = simulate(short(None));
    assert!(whole.is_good(), "{:?}", whole.violations);
    let plans: Vec<_> = (1..=whole.calls).map(|call| short(Some(call))).collect();
    let reports = simulate_all(plans);
    for (call, report) in (1u64..).zip(&reports) {
        assert!(
            report.is_good(),
            "crash at call {call} of {} (cargo run -p longshore-sim -- --plan short --crash-at-call {call} --trace): {:?}",
            whole.calls,
            report.violations
        );
        assert_eq!(
            report.fired.get(Fault::SchedulerCrashAtCall.name()),
            Some(&1),
            "call {call} crashed"
        );
    }
}
