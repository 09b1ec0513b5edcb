//! Named checks over several seeds, for tests and for planted bugs. Each says
//! what it found wrong first.

use github_sim::machine::Delay;

use crate::{
    plan::{Fault, MINUTE, Plan, SECOND},
    report::Report,
    run::simulate,
};

/// Every check.
pub const NAMES: &[&str] = &[
    "storm",
    "calm",
    "shuffled_webhooks",
    "crash_at_any_call",
    "restarts",
    "partitions",
    "idle_races",
];

/// Plans by name, to play a seed again.
pub fn plan(name: &str, seed: u64) -> Option<Plan> {
    Some(match name {
        "stormy" => Plan::stormy(seed),
        "calm" => Plan::calm(seed),
        "shuffled" => shuffled(seed),
        "sweep_only" => sweep_only(seed),
        "short" => short(None),
        "restarts" => restarts(seed),
        "partitions" => partitions(seed),
        "idle_races" => idle_races(seed),
        _ => return None,
    })
}

/// Runs a check: the first bad thing it finds, or `Ok`.
pub fn check(name: &str) -> Result<(), String> {
    match name {
        "storm" => first_bad((1..=24).map(Plan::stormy), |_| None),
        "calm" => first_bad((1..=4).map(Plan::calm), |report| no_surplus(report).err()),
        "shuffled_webhooks" => first_bad((1..=4).map(shuffled), |report| no_surplus(report).err()),
        "restarts" => first_bad((1..=4).map(restarts), |_| None),
        "partitions" => first_bad((1..=4).map(partitions), all_started),
        "idle_races" => first_bad((1..=6).map(idle_races), |_| None),
        "crash_at_any_call" => {
            let calls = simulate(short(None)).calls;
            first_bad((1..=calls).map(|call| short(Some(call))), |_| None)
        }
        other => Err(format!("there is no check {other}")),
    }
}

/// Deliveries repeated and out of order, and the word about a taken job often later
/// than the job's end; nothing else.
pub fn shuffled(seed: u64) -> Plan {
    let mut plan = Plan {
        approvals: 2_000,
        longest_job_ms: 20 * SECOND,
        ..Plan::calm(seed)
    };
    plan.github.webhook_delay = Delay {
        probability: 1.0,
        min_ms: 0,
        max_ms: 28 * SECOND,
        actions: vec!["in_progress".to_owned()],
    };
    plan.github.webhook_duplicate = 0.5;
    plan.github.webhook_reorder = 0.5;
    plan.github.webhook_waiting_after_queued = 0.5;
    plan
}

/// No delivery ever arrives.
pub fn sweep_only(seed: u64) -> Plan {
    Plan {
        webhooks: false,
        ..Plan::calm(seed)
    }
}

/// The scheduler dies again and again, nothing else.
pub fn restarts(seed: u64) -> Plan {
    Plan {
        faults: vec![
            (Fault::SchedulerCrash, 20),
            (Fault::SchedulerCrashAtCall, 40),
        ],
        ..Plan::calm(seed)
    }
}

/// Nodes are cut off again and again, nothing else.
pub fn partitions(seed: u64) -> Plan {
    Plan {
        faults: vec![(Fault::Partition, 60)],
        ..Plan::calm(seed)
    }
}

/// Runners go idle and are stopped while jobs come; GitHub tells late or nothing.
pub fn idle_races(seed: u64) -> Plan {
    let mut plan = Plan::calm(seed);
    plan.idle_ms = SECOND;
    plan.cancels = 3_000;
    plan.longest_job_ms = 20 * SECOND;
    plan.github.webhook_drop = 0.3;
    plan.github.webhook_reorder = 0.3;
    plan
}

/// A short calm run, crashed at one call of a port.
pub fn short(crash_at_call: Option<u64>) -> Plan {
    Plan {
        runs: 6,
        busy_ms: 2 * MINUTE,
        crash_at_call,
        ..Plan::calm(1)
    }
}

/// Where nothing goes wrong, each runnable job costs one registration. A job that GitHub
/// gave to a runner made for wider labels costs at most one more: its own runner then
/// fits nobody, and those the wider one was made for still wait.
pub fn no_surplus(report: &Report) -> Result<(), String> {
    let most = report.runnable + report.strayed;
    if (report.runnable..=most).contains(&report.registrations) {
        return Ok(());
    }
    Err(format!(
        "{} registrations for {} runnable jobs, of which {} strayed",
        report.registrations, report.runnable, report.strayed
    ))
}

/// No partition lasts until a runner that never starts is given up: whatever was
/// registered is handed over as soon as its node is back.
fn all_started(report: &Report) -> Option<String> {
    let never = report.stops.get("NeverStarted")?;
    Some(format!("{never} runners never got their registration"))
}

fn first_bad(
    plans: impl Iterator<Item = Plan>,
    extra: impl Fn(&Report) -> Option<String>,
) -> Result<(), String> {
    for plan in plans {
        let seed = plan.seed;
        let report = simulate(plan);
        let bad = report
            .violations
            .first()
            .cloned()
            .or_else(|| extra(&report));
        if let Some(bad) = bad {
            return Err(format!("seed {seed}: {bad}"));
        }
    }
    Ok(())
}
