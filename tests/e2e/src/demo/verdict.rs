//! The verdict: evidence in, summary and findings out. Pure, so that every way to fail is shown to fail.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    declared::{Declared, Outcome},
    engine_events::Life,
    host_state::{Difference, HostFacts},
    probes::{Found, Probe},
};

/// A job as the simulator knows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct JobState {
    /// GitHub's id.
    #[serde(default)]
    pub id: u64,
    /// Run it belongs to.
    #[serde(default)]
    pub run_id: u64,
    /// Name of that run in the demo.
    #[serde(default)]
    pub run: String,
    /// Job name.
    #[serde(default)]
    pub name: String,
    /// queued, waiting, in_progress, completed.
    #[serde(default)]
    pub status: String,
    /// success, failure, cancelled, skipped.
    #[serde(default)]
    pub conclusion: Option<String>,
    /// Runner that took it.
    #[serde(default)]
    pub runner_name: Option<String>,
    /// When it was queued, Unix milliseconds.
    #[serde(default)]
    pub queued_ms: Option<i64>,
    /// When a runner began with it, Unix milliseconds.
    #[serde(default)]
    pub started_ms: Option<i64>,
    /// Runners it was ever given to.
    #[serde(default)]
    pub assignments: Vec<String>,
}

/// A registration as the simulator knows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Registration {
    /// Runner name.
    #[serde(default)]
    pub name: String,
    /// `repos/o/r`, `orgs/o`, ...
    #[serde(default)]
    pub scope: String,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// Everything the verdict rests on.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Written before anything started.
    pub declared: Vec<Declared>,
    /// Real repositories were served: nobody declared anything, only what stays behind counts.
    pub real: bool,
    /// From the simulator.
    pub jobs: Vec<JobState>,
    /// Registrations that still exist.
    pub registrations_left: Vec<Registration>,
    /// Registrations ever made.
    pub registrations_ever: Vec<Registration>,
    /// Registration calls in the simulator's request log.
    pub registration_calls: u64,
    /// Containers of this demo's node, from the engine's event stream.
    pub lives: Vec<Life>,
    /// The host before and after.
    pub difference: Difference,
    /// What the probe job printed.
    pub probes: Vec<Probe>,
    /// Kind of host.
    pub host: HostFacts,
    /// Whether a probe job was part of the queue.
    pub probe_expected: bool,
}

/// `target/demo/summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How the jobs ended.
    pub jobs: Jobs,
    /// Everything was as declared.
    pub expected: bool,
    /// What stayed behind, by kind.
    pub leaks: Leaks,
    /// From queued to started, of the jobs that started.
    pub wait_ms: Waits,
    /// What the in-container probe found.
    pub probes: Probes,
    /// Where it ran.
    pub host: HostFacts,
}

/// Counts of jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    /// All jobs that were queued.
    pub queued: usize,
    /// Conclusion success.
    pub succeeded: usize,
    /// Conclusion failure.
    pub failed: usize,
    /// Conclusion cancelled.
    pub cancelled: usize,
    /// Still queued at the end.
    pub unschedulable: usize,
}

/// Counts of what stayed behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaks {
    /// Containers.
    pub containers: usize,
    /// Networks, network namespaces, links.
    pub networks: usize,
    /// Volumes.
    pub volumes: usize,
    /// Registrations at GitHub.
    pub registrations: usize,
    /// Firewall lines.
    pub firewall: usize,
    /// Processes.
    pub processes: usize,
}

impl Leaks {
    fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// Waits in milliseconds; `None` when no job started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// Half of the jobs waited at most this long.
    pub p50: Option<i64>,
    /// 99 of 100 did; with fewer jobs the longest wait.
    pub p99: Option<i64>,
    /// The longest wait.
    pub max: Option<i64>,
}

/// Counts of properties.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// Hold.
    pub passed: usize,
    /// Do not hold.
    pub failed: usize,
    /// This host cannot give them, and says so.
    pub not_guaranteed: usize,
}

/// Judges.
pub fn judge(evidence: &Evidence) -> (Summary, Vec<String>) {
    let mut findings = Vec::new();
    if !evidence.real {
        outcomes(evidence, &mut findings);
        nothing_in_vain(evidence, &mut findings);
    }
    containers(evidence, &mut findings);

    let conclusion = |wanted: &str| {
        evidence
            .jobs
            .iter()
            .filter(|j| j.conclusion.as_deref() == Some(wanted))
            .count()
    };
    let jobs = Jobs {
        queued: evidence.jobs.len(),
        succeeded: conclusion("success"),
        failed: conclusion("failure"),
        cancelled: conclusion("cancelled"),
        unschedulable: evidence
            .jobs
            .iter()
            .filter(|j| j.status == "queued")
            .count(),
    };
    let d = &evidence.difference;
    let leaks = Leaks {
        containers: d.containers.len(),
        networks: d.networks.len(),
        volumes: d.volumes.len(),
        registrations: evidence.registrations_left.len(),
        firewall: d.firewall.len(),
        processes: d.processes.len(),
    };
    for (kind, list) in [
        ("container", &d.containers),
        ("network", &d.networks),
        ("volume", &d.volumes),
        ("firewall line", &d.firewall),
        ("process", &d.processes),
    ] {
        findings.extend(
            list.iter()
                .map(|name| format!("{kind} left behind: {name}")),
        );
    }
    findings.extend(
        evidence
            .registrations_left
            .iter()
            .map(|r| format!("registration left behind: {} at {}", r.name, r.scope)),
    );
    findings.extend(
        d.missing
            .iter()
            .map(|name| format!("not ours and gone: {name}")),
    );

    let count = |found: Found| evidence.probes.iter().filter(|p| p.found == found).count();
    let probes = Probes {
        passed: count(Found::Passed),
        failed: count(Found::Failed),
        not_guaranteed: count(Found::NotGuaranteed),
    };
    findings.extend(
        evidence
            .probes
            .iter()
            .filter(|p| p.found == Found::Failed)
            .map(|p| format!("probe failed: row {}: {}", p.row, p.text)),
    );
    if evidence.probe_expected && probes.passed == 0 {
        findings.push("the probe job reported no property that holds".into());
    }

    debug_assert!(!leaks.any() || !findings.is_empty());
    let summary = Summary {
        jobs,
        expected: findings.is_empty(),
        leaks,
        wait_ms: waits(&evidence.jobs),
        probes,
        host: evidence.host.clone(),
    };
    (summary, findings)
}

/// Every declared job ended as declared, and there is no job that nobody declared.
fn outcomes(evidence: &Evidence, findings: &mut Vec<String>) {
    let states: BTreeMap<(&str, &str), &JobState> = evidence
        .jobs
        .iter()
        .map(|j| ((j.run.as_str(), j.name.as_str()), j))
        .collect();
    if evidence.declared.is_empty() {
        findings.push("no job was declared".into());
    }
    for job in &evidence.declared {
        let called = format!("{} / {} / {}", job.repo, job.run, job.name);
        let Some(state) = states.get(&(job.run.as_str(), job.name.as_str())) else {
            findings.push(format!("{called}: was never queued"));
            continue;
        };
        let seen = state.conclusion.as_deref().unwrap_or(&state.status);
        let right = match job.expect {
            Outcome::Success => seen == "success",
            Outcome::Failure => seen == "failure",
            Outcome::Cancelled => seen == "cancelled",
            Outcome::Unschedulable => {
                seen == "queued" && state.runner_name.is_none() && state.assignments.is_empty()
            }
        };
        if !right {
            findings.push(
                format!("{called}: declared {:?}, ended as {seen}", job.expect).to_lowercase(),
            );
        }
        if matches!(job.expect, Outcome::Success | Outcome::Failure) && state.runner_name.is_none()
        {
            findings.push(format!("{called}: ended without a runner"));
        }
    }
    let declared: BTreeSet<(&str, &str)> = evidence
        .declared
        .iter()
        .map(|d| (d.run.as_str(), d.name.as_str()))
        .collect();
    for job in &evidence.jobs {
        if !declared.contains(&(job.run.as_str(), job.name.as_str())) {
            findings.push(format!(
                "{} / {}: nobody declared this job",
                job.run, job.name
            ));
        }
    }
}

/// One job, one container, and every container is gone.
fn containers(evidence: &Evidence, findings: &mut Vec<String>) {
    let mut served: BTreeMap<&str, usize> = BTreeMap::new();
    for job in &evidence.jobs {
        if let Some(runner) = job.runner_name.as_deref().filter(|r| !r.is_empty()) {
            *served.entry(runner).or_default() += 1;
        }
    }
    // Real repositories may have runners that are not ours.
    served.retain(|runner, _| !evidence.real || runner.starts_with("ls-"));
    for (runner, jobs) in &served {
        if *jobs > 1 {
            findings.push(format!("runner {runner} served {jobs} jobs"));
        }
        let holders = evidence
            .lives
            .iter()
            .filter(|l| l.names.iter().any(|n| n == runner))
            .count();
        if holders != 1 {
            findings.push(format!(
                "runner {runner} had {holders} containers in the engine's event stream, not one"
            ));
        }
    }
    for life in &evidence.lives {
        let name = life.names.last().map_or("?", String::as_str);
        if life.started > 1 {
            findings.push(format!(
                "container {name} was started {} times",
                life.started
            ));
        }
        if life.execs > 0 {
            findings.push(format!(
                "a command was run in container {name} from outside"
            ));
        }
        if !life.destroyed {
            findings.push(format!(
                "container {name} was never removed, says the engine's event stream"
            ));
        }
    }
}

/// No runner was registered that could only have served a job nobody can run, and the log of requests agrees with the list.
fn nothing_in_vain(evidence: &Evidence, findings: &mut Vec<String>) {
    let set = |labels: &[String]| -> BTreeSet<String> {
        labels.iter().map(|l| l.to_lowercase()).collect()
    };
    let runnable: BTreeSet<BTreeSet<String>> = evidence
        .declared
        .iter()
        .filter(|d| d.expect != Outcome::Unschedulable)
        .map(|d| set(&d.labels))
        .collect();
    let hopeless: BTreeSet<BTreeSet<String>> = evidence
        .declared
        .iter()
        .filter(|d| d.expect == Outcome::Unschedulable)
        .map(|d| set(&d.labels))
        .filter(|l| !runnable.contains(l))
        .collect();
    for registration in &evidence.registrations_ever {
        let labels = set(&registration.labels);
        let repo = registration.scope.strip_prefix("repos/");
        let mut of_repo = evidence
            .declared
            .iter()
            .filter(|d| Some(d.repo.as_str()) == repo)
            .peekable();
        let for_nobody =
            of_repo.peek().is_some() && of_repo.all(|d| d.expect == Outcome::Unschedulable);
        let in_vain = for_nobody
            || (hopeless.iter().any(|h| h.is_subset(&labels)) && !runnable.contains(&labels));
        if in_vain {
            findings.push(format!(
                "runner {} was registered in vain with labels {labels:?}",
                registration.name
            ));
        }
    }
    if evidence.registration_calls < evidence.registrations_ever.len() as u64 {
        findings.push(format!(
            "{} registrations but only {} calls for one in the request log",
            evidence.registrations_ever.len(),
            evidence.registration_calls
        ));
    }
}

fn waits(jobs: &[JobState]) -> Waits {
    let mut waits: Vec<i64> = jobs
        .iter()
        .filter(|j| j.runner_name.is_some())
        .filter_map(|j| Some(j.started_ms? - j.queued_ms?))
        .collect();
    waits.sort_unstable();
    // Nearest rank: the smallest wait that at least so many of a hundred jobs did not exceed.
    let rank = |percent: usize| {
        let at = (waits.len() * percent).div_ceil(100).max(1) - 1;
        waits.get(at).copied()
    };
    Waits {
        p50: rank(50),
        p99: rank(99),
        max: waits.last().copied(),
    }
}

#[cfg(test)]
mod tests;
