//! `github_calls_*` and `poll_only_wait`: what the fleet costs at GitHub.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    fleet::{Fleet, Setup, repositories},
    node::{Life, Node},
    results::{keep_samples, percentile},
    row::Row,
};

const JOBS: usize = 1_000;
const REPOSITORIES: usize = 50;

/// 1,000 jobs over 50 repositories with webhooks, sweep and removal checks on; then 10 idle minutes' worth of sweeps.
pub(crate) async fn per_job() -> Result<Vec<Row>> {
    let names = repositories(5, REPOSITORIES);
    let fleet = Fleet::start(Setup {
        repositories: &names,
        webhooks: true,
        ..Setup::default()
    })
    .await?;
    let _node = Node::attach(
        &fleet.scheduler.listen.nodes,
        "bench-node",
        256,
        Life::For(Duration::from_millis(1_500)),
    )
    .await?;
    fleet.forget_calls().await?;
    for i in 0..JOBS {
        fleet
            .sim
            .control(
                "jobs",
                json!({
                    "repository": names[i % names.len()], "name": format!("job {i}"), "labels": ["self-hosted", "linux", "x64"],
                    "simulate": {"start_after_ms": 0, "duration_ms": 200, "conclusion": "success", "online_after_ms": 0}
                }),
            )
            .await?;
    }
    fleet
        .sim
        .wait_for(
            json!({"jobs_completed": JOBS}),
            Duration::from_secs(15 * 60),
        )
        .await?;
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
    let fleet = Fleet::start(Setup {
        repositories: &names,
        webhooks: true,
        ..Setup::default()
    })
    .await?;
    let _node = Node::attach(
        &fleet.scheduler.listen.nodes,
        "bench-node",
        16,
        Life::For(Duration::from_secs(1)),
    )
    .await?;
    // One job through the webhooks shows that they are healthy.
    fleet.sim.control("jobs", json!({"repository": names[0], "name": "proof", "labels": ["self-hosted", "linux", "x64"],
        "simulate": {"start_after_ms": 0, "duration_ms": 100, "conclusion": "success", "online_after_ms": 0}})).await?;
    fleet
        .sim
        .wait_for(json!({"jobs_completed": 1}), Duration::from_secs(60))
        .await?;
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
    let names = repositories(2, 20);
    let fleet = Fleet::start(Setup {
        repositories: &names,
        scheduler_flags: &["--interval", "60"],
        ..Setup::default()
    })
    .await?;
    let mut node = Node::attach(
        &fleet.scheduler.listen.nodes,
        "bench-node",
        64,
        Life::For(Duration::from_secs(2)),
    )
    .await?;
    fleet.forget_calls().await?;
    let began = Instant::now();
    let mut waits = Vec::new();
    for i in 0..SAMPLES {
        let queued = Instant::now();
        fleet.sim.control("jobs", json!({"repository": names[i % names.len()], "name": format!("job {i}"), "labels": ["self-hosted", "linux", "x64"],
            "simulate": {"start_after_ms": 0, "duration_ms": 100, "conclusion": "success", "online_after_ms": 0}})).await?;
        let assigned = timeout(Duration::from_secs(180), node.assigned.recv())
            .await
            .context("not assigned within 180 s")?
            .context("the node's stream ended")?;
        waits.push((assigned.at - queued).as_secs_f64());
        // Spread the next arrival over the sweep's period.
        tokio::time::sleep(Duration::from_secs(7)).await;
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
pub(crate) async fn extra() -> Result<Vec<Row>> {
    const BURST: usize = 100;
    let names = repositories(1, 1);
    let fleet = Fleet::start(Setup {
        repositories: &names,
        webhooks: true,
        ..Setup::default()
    })
    .await?;
    let mut node = Node::attach(
        &fleet.scheduler.listen.nodes,
        "bench-node",
        256,
        Life::For(Duration::from_secs(35)),
    )
    .await?;
    let spread = json!({"webhook_delay": {"probability": 1.0, "min_ms": 0, "max_ms": 28_000, "actions": ["in_progress"]}});
    fleet.sim.http.put("/_sim/faults", &spread).await?;
    let began = Instant::now();
    fleet
        .sim
        .control(
            "jobs",
            json!({"repository": names[0], "name": "burst", "labels": ["self-hosted", "linux", "x64"], "matrix": BURST,
                "simulate": {"start_after_ms": 0, "duration_ms": 30_000, "conclusion": "success", "online_after_ms": 0}}),
        )
        .await?;
    let mut at = Vec::new();
    while at.len() < BURST {
        let assigned = timeout(Duration::from_secs(120), node.assigned.recv())
            .await
            .context("the burst was not assigned within 120 s")?
            .context("the node's stream ended")?;
        at.push((assigned.at - began).as_secs_f64() * 1_000.0);
    }
    keep_samples("burst_assigned_ms", &at)?;
    fleet
        .sim
        .wait_for(json!({"jobs_completed": BURST}), Duration::from_secs(180))
        .await?;
    // Every delayed event has arrived once nothing is due: what is surplus has shown itself.
    fleet
        .sim
        .wait_for(json!({"deliveries_idle": true}), Duration::from_secs(60))
        .await?;
    let made = fleet.list("runners/history").await?.len();
    println!(
        "last of {BURST} assigned after {:.0} ms",
        percentile(&at, 1.0)
    );
    Ok(vec![Row::new(
        "burst_extra_runners",
        (made as f64 - BURST as f64, "runners"),
        ("runners needed", BURST as f64),
        BURST,
    )])
}
