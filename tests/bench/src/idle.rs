//! Resident memory and processor of an idle fleet: 100 repositories, 10 agents, 10 minutes.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use longshore_e2e::fleet::{Agent, AgentSettings};

use crate::{
    fleet::{Fleet, Setup, repositories},
    row::Row,
};

const AGENTS: usize = 10;

pub(crate) async fn run() -> Result<Vec<Row>> {
    let names = repositories(10, 100);
    let fleet = Fleet::start(Setup {
        repositories: &names,
        webhooks: true,
        ..Setup::default()
    })
    .await?;
    let (mut agents, mut places) = (Vec::new(), Vec::new());
    for i in 0..AGENTS {
        let settings = AgentSettings {
            node: format!("idle-{i}"),
            state: fleet.folder.path().join(format!("agent-{i}")),
            scheduler: fleet.scheduler.nodes_url(),
            api: Some(fleet.scheduler.door()),
            slots_cidr: Some(format!("10.23{}.0.0/20", i)),
            ..AgentSettings::default()
        };
        agents.push(Agent::start(&fleet.binaries, fleet.folder.path(), &settings).await?);
        places.push(settings);
    }
    let minutes: u64 = std::env::var("IDLE_MINUTES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10);
    let scheduler = fleet.scheduler.process.pid();
    let before: Vec<f64> = std::iter::once(scheduler)
        .chain(agents.iter().map(|agent| agent.process.pid()))
        .map(cpu_seconds)
        .collect::<Result<_>>()?;
    tokio::time::sleep(Duration::from_secs(minutes * 60)).await;
    let used: f64 =
        cpu_seconds(scheduler)? - before[0] + (cpu_seconds(agents[0].process.pid())? - before[1]);
    let agent_memory = agents
        .iter()
        .map(|agent| resident_mib(agent.process.pid()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .fold(0.0, f64::max);
    let share = used / (minutes as f64 * 60.0) * 100.0;
    for agent in &mut agents {
        agent
            .process
            .terminate(longshore_e2e::fleet::STOP_WITHIN)
            .await?;
    }
    for place in &places {
        place.purge(&fleet.binaries, fleet.folder.path()).await?;
    }
    Ok(vec![
        Row::new(
            "scheduler_idle_rss",
            (resident_mib(scheduler)?, "MiB"),
            ("bound; 100 repositories and 10 agents", 32.0),
            1,
        ),
        Row::new(
            "agent_idle_rss",
            (agent_memory, "MiB"),
            ("bound; largest of 10 agents", 25.0),
            AGENTS,
        ),
        Row::new(
            "idle_cpu",
            (share, "%"),
            ("bound; scheduler and one agent, of one core", 0.5),
            1,
        ),
    ])
}

/// Resident memory of a process.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/status")))?;
    let kib: f64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .context("VmRSS")?;
    Ok(kib / 1024.0)
}

/// User and system time so far.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("stat has a name")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}
