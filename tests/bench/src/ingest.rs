//! `webhook_ingest_rate` and `webhook_ingest_lost`: signed `workflow_job` deliveries over 64 connections to the scheduler on its own
//! store, sender on the same machine; a delivery counts when its 202 came.

mod floor;
mod load;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use longshore_e2e::fleet::Scheduler;
use scheduler_core::model::{JobId, JobPhase};
use scheduler_store::{JobQuery, Options, Sqlite, Store};

use crate::{
    fleet::{Fleet, SECRET, Setup, repositories},
    idle::{cpu_seconds, resident_mib},
    results::{keep_samples, percentile},
    row::Row,
};
use load::{Acknowledged, Load, Step};

const CONNECTIONS: usize = 64;
/// As long as a usual `workflow_job` of GitHub's.
const BODY: usize = 10 * 1024;
const REPOSITORIES: usize = 20;
const WARM_UP: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(15);
const FLOOR: Duration = Duration::from_secs(5);
const CRASHES: u64 = 20;
/// No round ends with fewer answers: an empty round shows nothing.
const ROUND_LEAST: usize = 200;
const ROUND_PATIENCE: Duration = Duration::from_secs(60);

/// Answers a second, held against a server that only verifies, groups and flushes.
pub(crate) async fn rate() -> Result<Vec<Row>> {
    let fleet = start().await?;
    fleet.swept().await?;
    let pid = fleet.scheduler.process.pid();
    let load = Load::start(&fleet.scheduler.listen.webhooks, targets(0), CONNECTIONS).await?;
    let steady = load.measure(WARM_UP, MEASURED, || cpu_seconds(pid)).await?;
    println!(
        "  {:.0} us of the scheduler's processor time a delivery, {:.0} MiB resident",
        steady.server_cpu * 1e6 / steady.answered as f64,
        resident_mib(pid)?
    );
    let answers = load.stop().await;
    ensure!(
        answers.refused.is_empty(),
        "answers other than 202: {:?}",
        answers.refused
    );
    keep_samples("webhook_ingest_ms", &steady.waited_ms)?;
    println!(
        "  answered within p50 {:.1} ms, p99 {:.1} ms",
        percentile(&steady.waited_ms, 0.5),
        percentile(&steady.waited_ms, 0.99)
    );
    drop(fleet);
    let floor = floor::Floor::start(SECRET.as_bytes()).await?;
    let load = Load::start(&floor.address, targets(1), CONNECTIONS).await?;
    let least = load
        .measure(Duration::from_secs(1), FLOOR, || Ok(0.0))
        .await?;
    load.stop().await;
    Ok(vec![Row::new(
        "webhook_ingest_rate",
        (steady.rate(), "/s"),
        (
            "a server that verifies and flushes in groups, same senders, same run",
            least.rate(),
        ),
        steady.answered,
    )])
}

/// Kills the scheduler twenty times in the middle of the load: what was acknowledged is in the store.
pub(crate) async fn lost() -> Result<Vec<Row>> {
    let mut fleet = start().await?;
    fleet.swept().await?;
    let mut acknowledged = 0;
    let mut lost = 0;
    for round in 0..CRASHES {
        let load = Load::start(
            &fleet.scheduler.listen.webhooks,
            targets(2 + round),
            CONNECTIONS,
        )
        .await?;
        load.answered(ROUND_LEAST, ROUND_PATIENCE).await?;
        // Not at the same point of a commit each time.
        tokio::time::sleep(Duration::from_millis(rand::random::<u64>() % 400)).await;
        fleet.scheduler.process.kill9().await?;
        let answers = load.stop().await;
        ensure!(
            answers.refused.is_empty(),
            "answers other than 202: {:?}",
            answers.refused
        );
        // The program itself finds its store whole; it is killed again before anybody looks.
        fleet.restart().await?;
        fleet.scheduler.process.kill9().await?;
        let missing = missing(&fleet, &answers.acknowledged).await?;
        acknowledged += answers.count;
        lost += missing.len();
        for (job, step) in missing.iter().take(3) {
            println!("  lost: {step:?} of job {job}");
        }
        fleet.restart().await?;
    }
    Ok(vec![Row::new(
        "webhook_ingest_lost",
        (lost as f64, "lost"),
        ("acknowledged before a kill -9", acknowledged as f64),
        CRASHES as usize,
    )])
}

async fn start() -> Result<Fleet> {
    Fleet::start(Setup {
        repositories: &repositories(1, REPOSITORIES),
        ..Setup::default()
    })
    .await
}

/// Jobs of round `round`: no id comes twice in one fleet.
fn targets(round: u64) -> load::Targets {
    load::Targets {
        owner: "org0",
        repositories: REPOSITORIES,
        // Twelve digits whatever the round.
        first_job: 100_000_000_000 + round * 10_000_000_000,
        body: BODY,
    }
}

/// What was acknowledged and is not, or not as far, in the store of a scheduler that does not run.
async fn missing(fleet: &Fleet, acknowledged: &Acknowledged) -> Result<Vec<(u64, Step)>> {
    let store = Sqlite::open(Options::new(&fleet.settings.state)).await?;
    let mut stored: BTreeMap<JobId, JobPhase> = BTreeMap::new();
    let mut token = None;
    loop {
        let query = JobQuery {
            page_size: 1_000,
            page_token: token,
            ..JobQuery::default()
        };
        let page = store.jobs(query).await?;
        stored.extend(page.items.iter().map(|row| (row.id, row.phase)));
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    store.close().await?;
    let reached = |job: u64, step: Step| {
        stored
            .get(&JobId(job))
            .is_some_and(|phase| *phase >= step.phase())
    };
    Ok(acknowledged
        .iter()
        .filter(|(job, step)| !reached(**job, **step))
        .map(|(job, step)| (*job, *step))
        .collect())
}

/// Waits for the first of both: a condition, or the time.
pub(crate) async fn reached(
    what: &str,
    within: Duration,
    mut holds: impl FnMut() -> bool,
) -> Result<()> {
    let until = Instant::now() + within;
    while !holds() {
        ensure!(Instant::now() < until, "{what} did not come in {within:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

impl Fleet {
    /// Starts the scheduler again on the store it left.
    async fn restart(&mut self) -> Result<()> {
        let path = self.folder.path();
        self.scheduler = Scheduler::start(&self.binaries, path, &self.settings)
            .await
            .context("start again after kill -9")?;
        Ok(())
    }
}
