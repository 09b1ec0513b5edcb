//! Named checks over several seeds, for tests and for planted bugs. Each says
//! what it found wrong first.

use crate::{
    plan::{MINUTE, Plan},
    report::Report,
    run::simulate,
};

/// Every check.
pub const NAMES: &[&str] = &["storm", "calm", "shuffled_webhooks", "crash_at_any_call"];

/// Runs a check: the first bad thing it finds, or `Ok`.
pub fn check(name: &str) -> Result<(), String> {
    match name {
        "storm" => first_bad((1..=24).map(Plan::stormy), |_| None),
        "calm" => first_bad((1..=4).map(Plan::calm), one_registration_each),
        "shuffled_webhooks" => first_bad((1..=4).map(shuffled), one_registration_each),
        "crash_at_any_call" => {
            let calls = simulate(short(None)).calls;
            first_bad((1..=calls).map(|call| short(Some(call))), |_| None)
        }
        other => Err(format!("there is no check {other}")),
    }
}

/// Deliveries repeated and out of order, nothing else.
pub fn shuffled(seed: u64) -> Plan {
    let mut plan = Plan::calm(seed);
    plan.github.webhook_duplicate = 0.5;
    plan.github.webhook_reorder = 0.5;
    plan.github.webhook_waiting_after_queued = 0.5;
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

/// Where nothing goes wrong, each runnable job costs one registration.
fn one_registration_each(report: &Report) -> Option<String> {
    (report.registrations != report.runnable).then(|| {
        format!(
            "{} registrations for {} runnable jobs",
            report.registrations, report.runnable
        )
    })
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
            return Err(format!("seed {seed}:\n    {bad}"));
        }
    }
    Ok(())
}
