//! Both processes from start to stop.

use std::path::Path;
use std::time::Duration;

use longshore_client::{Builder, Client};
use serde_json::Value;

use crate::exit::{self, Failure};
use crate::shapes::outcome::Places;
use crate::token;

use super::joining::JoinFile;
use super::log::Log;
use super::plan::Plan;
use super::ports;
use super::sibling::Sibling;
use super::signals::Signals;
use super::state::{LOG_FILE, PidFile, make_dir};

/// Opening a large store takes a while.
const SCHEDULER_READY: Duration = Duration::from_secs(60);
/// The agent looks at the host, the engine and its GPUs before it attaches.
const AGENT_READY: Duration = Duration::from_secs(120);
/// The agent detaches within 5 s.
const AGENT_STOP: Duration = Duration::from_secs(10);
/// The scheduler answers what is open and commits.
const SCHEDULER_STOP: Duration = Duration::from_secs(20);

struct Running {
    scheduler: Sibling,
    agent: Sibling,
}

/// Starts both, calls `started`, and stops both at a signal or when either
/// ends by itself, which is an error.
pub(crate) async fn run(
    plan: &Plan,
    mut signals: Signals,
    started: impl AsyncFnOnce(&Places) -> Result<(), Failure>,
) -> Result<(), Failure> {
    make_dir(&plan.state)?;
    let _pid = PidFile::take(&plan.state)?;
    ports::check_free(plan).await?;
    let start = start(plan);
    let (mut running, places) = tokio::select! {
        started = start => started?,
        // Dropping the half-started processes ends them.
        _ = signals.next() => {
            return Err(Failure::failed("stopped before the fleet was up", ""));
        }
    };
    let ended = match started(&places).await {
        Ok(()) => tokio::select! {
            _ = signals.next() => None,
            status = running.scheduler.wait() => Some((true, status)),
            status = running.agent.wait() => Some((false, status)),
        },
        Err(failure) => {
            running.stop(&mut signals).await;
            return Err(failure);
        }
    };
    running.stop(&mut signals).await;
    let (sibling, status) = match ended {
        None => return Ok(()),
        Some((true, status)) => (&mut running.scheduler, status),
        Some((false, status)) => (&mut running.agent, status),
    };
    Err(match status {
        Some(status) => sibling.ended(status, "by itself").await,
        None => Failure::failed("lost sight of a process", "look for it with ps"),
    })
}

async fn start(plan: &Plan) -> Result<(Running, Places), Failure> {
    let log_path = plan.state.join(LOG_FILE);
    let log = Log::open(&log_path, plan.verbose())?;
    let with_log = |failure: Failure| match failure {
        Failure::Said { code, what, next } if next == "read its log" => {
            Failure::said(code, what, format!("read {}", log_path.display()))
        }
        other => other,
    };
    let (mut scheduler, ready) = Sibling::start(
        "longshore-scheduler",
        plan.scheduler_args(),
        &log,
        SCHEDULER_READY,
    )
    .await
    .map_err(with_log)?;
    let address = |key: &str| match &ready[key] {
        Value::String(address) => Ok(address.clone()),
        _ => Err(Failure::said(
            exit::FAILED,
            format!("longshore-scheduler did not say where it listens ({key})"),
            "install scheduler and CLI of the same version",
        )),
    };
    let places = Places {
        ready: true,
        api: address("api")?,
        nodes: address("nodes")?,
        webhooks: address("webhooks")?,
        token_file: ready["token_file"].as_str().map(str::to_owned),
        state: plan.state.display().to_string(),
        log: log_path.display().to_string(),
        pid: std::process::id(),
    };
    let agent = async {
        let client = client_of(&places)?;
        let ca = ready["ca"].as_str().map(Path::new);
        let token = JoinFile::for_agent(plan, &client, ca).await?;
        let args = plan.agent_args(&places.nodes, token.as_ref().map(JoinFile::path));
        Sibling::start("longshore-agent", args, &log, AGENT_READY).await
    };
    match agent.await {
        Ok((agent, _)) => Ok((Running { scheduler, agent }, places)),
        Err(failure) => {
            scheduler.stop(SCHEDULER_STOP).await;
            Err(with_log(failure))
        }
    }
}

/// A client of the scheduler that was just started, with the token it left for this host.
fn client_of(places: &Places) -> Result<Client, Failure> {
    let mut builder = Builder::new(format!("http://{}", places.api));
    if let Some(file) = &places.token_file {
        let token = token::read(Path::new(file)).map_err(|e| {
            Failure::failed(
                format!("read the token file {file}: {e}"),
                "check the folder's owner",
            )
        })?;
        builder = builder.token(token);
    }
    Ok(builder.build()?)
}

impl Running {
    /// The agent first, so that it takes its leave of a scheduler that lives.
    /// A second signal does not wait any longer.
    async fn stop(&mut self, signals: &mut Signals) {
        let (agent, scheduler) = (&mut self.agent, &mut self.scheduler);
        let both = async {
            agent.stop(AGENT_STOP).await;
            scheduler.stop(SCHEDULER_STOP).await;
        };
        tokio::select! {
            () = both => {}
            _ = signals.next() => {
                self.agent.stop(Duration::ZERO).await;
                self.scheduler.stop(Duration::ZERO).await;
            }
        }
    }
}
