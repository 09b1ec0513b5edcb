//! What was answered with 202 is on disk: shown by the order of the scheduler's system calls.

use std::time::Duration;

use anyhow::{Context, Result};
use longshore_e2e::{
    demo::gather::rows,
    trace::{Strace, flushed_before_answer, parse},
};
use serde_json::json;

use crate::ground::Ground;

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_answered_only_after_its_facts_are_flushed() -> Result<()> {
    let ground = Ground::lay().await?;
    let mut scheduler = ground.scheduler().await?;
    let idle = Duration::from_secs(20);
    ground
        .sim
        .wait_for(json!({"deliveries_idle": true}), idle)
        .await?;

    let out = ground.path("trace");
    let strace = Strace::attach(scheduler.process.pid(), &out).await?;
    ground
        .sim
        .control(
            "jobs",
            json!({"repository": "acme/web", "name": "build", "labels": ["self-hosted", "linux"], "steps": ["true"]}),
        )
        .await?;
    ground
        .sim
        .wait_for(json!({"deliveries_idle": true}), idle)
        .await?;
    strace.detach().await?;

    let deliveries = rows(&ground.sim.look("deliveries").await?);
    let queued = deliveries
        .iter()
        .find(|d| d["event"] == "workflow_job" && d["action"] == "queued")
        .with_context(|| format!("no delivery of the job among {deliveries:?}"))?;
    assert_eq!(queued["status_code"], 202, "{queued}");
    let guid = queued["guid"].as_str().context("a delivery has a guid")?;
    let trace = std::fs::read_to_string(&out)?;
    flushed_before_answer(&parse(&trace), guid, "HTTP/1.1 202", "longshore.db")?;
    scheduler.process.terminate(Duration::from_secs(20)).await?;
    Ok(())
}
