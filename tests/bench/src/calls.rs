//! `github_calls_*` and `poll_only_wait`: what the fleet costs at GitHub.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    fleet::{Fleet, Setup, repositories},
    node::{Assigned, Life, Node},
    results::{keep_samples, percentile},
    row::Row,
};

const JOBS: usize = 1_000;
const REPOSITORIES: usize = 50;

/// 1,000 jobs over 50 repositories with webhooks, sweep and removal checks on.
pub(crate) async fn per_job() -> Result<Vec<Row>> {
    let names = repositories(5, REPOSITORIES);
    let (fleet, _node) = hooked(&names, 256, Duration::from_millis(1_500)).await?;
    fleet.swept().await?;
    fleet.forget_calls().await?;
    for i in 0..JOBS {
        let job = job(&names[i % names.len()], &format!("job {i}"), 200);
        fleet.sim.control("jobs", job).await?;
    }
    completed(&fleet, JOBS, Duration::from_secs(15 * 60)).await?;
    let (calls, endpoints) = fleet.github_calls().await?;
    let made = fleet.list("runners/history").await?.len();
    println!("calls by endpoint: {endpoints}");
    println!("registrations made for {JOBS} jobs: {made}");
    Ok(vec![Row::new(
        "github_calls_per_job",
        (calls as f64 / JOBS as f64, "calls"),
        ("one registration call per job, the least possible", 1.0),
        JOBS,
    )])
}

/// Calls per repository-minute of an idle fleet whose webhooks work, 304s counted.
pub(crate) async fn idle() -> Result<Vec<Row>> {
    const MINUTES: u64 = 6;
    let names = repositories(5, REPOSITORIES);
    let (fleet, _node) = hooked(&names, 16, Duration::from_secs(1)).await?;
    // One job through the webhooks shows that they are healthy.
    fleet
        .sim
        .control("jobs", job(&names[0], "proof", 100))
        .await?;
    completed(&fleet, 1, Duration::from_secs(60)).await?;
    fleet.swept().await?;
    fleet.forget_calls().await?;
    tokio::time::sleep(Duration::from_secs(MINUTES * 60)).await;
    let (calls, endpoints) = fleet.github_calls().await?;
    println!("calls by endpoint: {endpoints}");
    let per = calls as f64 / (REPOSITORIES as u64 * MINUTES) as f64;
    Ok(vec![Row::new(
        "github_idle_calls_per_repo_minute",
        (per, "calls"),
        ("bound of one call per repository and minute", 1.0),
        calls as usize,
    )])
}

/// Webhooks off: from the job queued at GitHub until a node holds intent and registration.
pub(crate) async fn poll_only() -> Result<Vec<Row>> {
    const SAMPLES: usize = 12;
    const PERIOD: Duration = Duration::from_secs(60);
    let names = repositories(2, 20);
    let fleet = Fleet::start(Setup {
        repositories: &names,
        scheduler_flags: &["--interval", "60"],
        ..Setup::default()
    })
    .await?;
    let mut node = attach(&fleet, 64, Duration::from_secs(2)).await?;
    fleet.forget_calls().await?;
    let began = Instant::now();
    let mut waits = Vec::new();
    for i in 0..SAMPLES {
        let queued = Instant::now();
        let job = job(&names[i % names.len()], &format!("job {i}"), 100);
        fleet.sim.control("jobs", job).await?;
        let assigned = assigned(&mut node, Duration::from_secs(180)).await?;
        waits.push((assigned.at - queued).as_secs_f64());
        // Arrivals spread over the sweep's period, whose phase the last assignment showed.
        tokio::time::sleep(PERIOD * (i as u32 * 7 % 12) / 12).await;
    }
    keep_samples("poll_only_wait", &waits)?;
    let (calls, _) = fleet.github_calls().await?;
    let hourly = calls as f64 / began.elapsed().as_secs_f64() * 3_600.0;
    println!("calls an hour at this pace: {hourly:.0} (limit 5,000)");
    Ok(vec![Row::new(
        "poll_only_wait",
        (percentile(&waits, 1.0), "s"),
        ("interval of 60 s; value is the longest wait", 60.0),
        waits.len(),
    )])
}

/// 100 jobs at once, `in_progress` spread over 28 s and shuffled: registrations beyond the 100 that are needed.
/// Once with jobs longer than that spread and once with jobs that are over before GitHub names their runner.
pub(crate) async fn extra() -> Result<Vec<Row>> {
    const BURST: usize = 100;
    const JOB_MS: [u64; 2] = [30_000, 1_000];
    let mut extra = Vec::new();
    for job_ms in JOB_MS {
        let made = burst(BURST, job_ms).await?;
        println!("{made} registrations for {BURST} jobs of {job_ms} ms");
        extra.push(made as f64 - BURST as f64);
    }
    keep_samples("burst_extra_runners", &extra)?;
    Ok(vec![Row::new(
        "burst_extra_runners",
        (percentile(&extra, 1.0), "runners"),
        (
            "runners needed; value is the worse of long and short jobs",
            BURST as f64,
        ),
        BURST * JOB_MS.len(),
    )])
}

/// Registrations made for so many jobs at once.
async fn burst(count: usize, job_ms: u64) -> Result<usize> {
    let names = repositories(1, 1);
    let life = Duration::from_millis(job_ms + 2_000);
    let (fleet, mut node) = hooked(&names, 256, life).await?;
    let spread = json!({"webhook_delay": {"probability": 1.0, "min_ms": 0, "max_ms": 28_000, "actions": ["in_progress"]}});
    fleet.sim.http.put("/_sim/faults", &spread).await?;
    let began = Instant::now();
    let mut job = job(&names[0], "burst", job_ms);
    job["matrix"] = json!(count);
    fleet.sim.control("jobs", job).await?;
    let mut at = Vec::new();
    while at.len() < count {
        let assigned = assigned(&mut node, Duration::from_secs(120)).await?;
        at.push((assigned.at - began).as_secs_f64() * 1_000.0);
    }
    keep_samples(&format!("burst_assigned_ms_{job_ms}"), &at)?;
    completed(&fleet, count, Duration::from_secs(180)).await?;
    // Every delayed event has arrived once nothing is due: what is surplus has shown itself.
    let idle = json!({"deliveries_idle": true});
    fleet.sim.wait_for(idle, Duration::from_secs(60)).await?;
    println!(
        "last of {count} assigned after {:.0} ms",
        percentile(&at, 1.0)
    );
    Ok(fleet.list("runners/history").await?.len())
}

/// A fleet that GitHub tells by webhooks, and a node with so much room.
async fn hooked(names: &[String], room: u32, life: Duration) -> Result<(Fleet, Node)> {
    let fleet = Fleet::start(Setup {
        repositories: names,
        webhooks: true,
        ..Setup::default()
    })
    .await?;
    let node = attach(&fleet, room, life).await?;
    Ok((fleet, node))
}

async fn attach(fleet: &Fleet, room: u32, life: Duration) -> Result<Node> {
    Node::attach(fleet, "bench-node", room, Life::For(life)).await
}

/// A job that its runner takes at once and that lasts so long.
fn job(repository: &str, name: &str, duration_ms: u64) -> Value {
    json!({
        "repository": repository, "name": name, "labels": ["self-hosted", "linux", "x64"],
        "simulate": {"start_after_ms": 0, "duration_ms": duration_ms, "conclusion": "success", "online_after_ms": 0}
    })
}

async fn completed(fleet: &Fleet, jobs: usize, within: Duration) -> Result<()> {
    let done = json!({"jobs_completed": jobs});
    fleet.sim.wait_for(done, within).await?;
    Ok(())
}

async fn assigned(node: &mut Node, within: Duration) -> Result<Assigned> {
    timeout(within, node.assigned.recv())
        .await
        .with_context(|| format!("not assigned within {} s", within.as_secs()))?
        .context("the node's stream ended")
}
