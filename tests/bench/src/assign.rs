//! `webhook_to_assign`: a signed 10 KB webhook sent → the agent holds intent and registration, on an idle system.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::timeout;

use crate::{
    fleet::{Fleet, SECRET, Setup, repositories},
    floor,
    node::{Life, Node},
    results::{keep_samples, percentile},
    row::Row,
    webhook::{JobEvent, Sender},
};

const SAMPLES: usize = 1_200;
const WARM_UP: usize = 50;
const BODY: usize = 10 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn run() -> Result<Vec<Row>> {
    let repositories = repositories(1, 1);
    let fleet = Fleet::start(Setup {
        repositories: &repositories,
        ..Setup::default()
    })
    .await?;
    let mut node = Node::attach(&fleet, "bench-node", 64, Life::UntilTold).await?;
    let sender = Sender::new(fleet.scheduler.webhook_url(), SECRET.as_bytes());
    let mut samples = Vec::with_capacity(SAMPLES);
    let mut intents = Vec::with_capacity(SAMPLES);
    for i in 0..WARM_UP + SAMPLES {
        let (intent, waited) = one(&mut node, &sender, 900_000_000 + i as u64).await?;
        if i >= WARM_UP {
            samples.push(waited.as_secs_f64() * 1_000.0);
            intents.push(intent.as_secs_f64() * 1_000.0);
        }
        // The registration budget is 120 a minute; the figure is about an idle system, so wait for room, not in the sample.
        pace(i).await;
    }
    keep_samples("webhook_to_assign", &samples)?;
    keep_samples("webhook_to_intent", &intents)?;
    let floor = floor::durable_round_trip(SAMPLES)?;
    keep_samples("webhook_to_assign_floor", &floor)?;
    let reference = "TCP round trip + fdatasync of 10 KB, same run";
    Ok(vec![
        Row::new(
            "webhook_to_assign_p50",
            (percentile(&samples, 0.5), "ms"),
            (reference, percentile(&floor, 0.5)),
            samples.len(),
        ),
        Row::new(
            "webhook_to_assign_p99",
            (percentile(&samples, 0.99), "ms"),
            (reference, percentile(&floor, 0.99)),
            samples.len(),
        ),
    ])
}

async fn one(node: &mut Node, sender: &Sender, id: u64) -> Result<(Duration, Duration)> {
    let event = |action, status, conclusion, runner| {
        JobEvent {
            id,
            owner: "org0",
            repo: "repo0",
            repo_id: 1,
            action,
            status,
            conclusion,
            labels: &["self-hosted", "linux", "x64"],
            runner,
        }
        .body(BODY)
    };
    let body = event("queued", "queued", None, None);
    let sent = Instant::now();
    let answered = sender.send(body);
    let assigned = timeout(PATIENCE, node.assigned.recv());
    let (answered, assigned) = tokio::join!(answered, assigned);
    answered?;
    let assigned = assigned
        .context("no assignment within 20 s")?
        .context("the node's stream ended")?;
    let runner = assigned.runner.as_str();
    sender
        .send(event("in_progress", "in_progress", None, Some(runner)))
        .await?;
    sender
        .send(event(
            "completed",
            "completed",
            Some("success"),
            Some(runner),
        ))
        .await?;
    node.finish(runner).await?;
    ensure!(
        node.assigned.try_recv().is_err(),
        "more than one runner for job {id}"
    );
    let registered = assigned.registration_at - sent;
    let intended = assigned.intent_at - sent;
    Ok((intended, intended.max(registered)))
}

/// Keeps under the registration bucket: 100 at once, 120 a minute.
async fn pace(done: usize) {
    const BUCKET: usize = 80;
    if done >= BUCKET {
        tokio::time::sleep(Duration::from_millis(510)).await;
    }
}
