//! The programs of one demo: started in order, stopped in order, also when something fails half-way.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use bollard::Docker;
use longshore_client::{Client, v1};

use super::{
    folder::Folder,
    identity::{Identity, RUN_VARIABLE},
};
use crate::{
    binaries::Binaries,
    fleet::{Agent, AgentSettings, STOP_WITHIN, Scheduler, Sim},
    process::{Launch, Process},
    wait,
};

/// Longest that runners may take to be gone after a drain; idle ones leave at once.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

/// What the caller asked for.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// Where the programs are.
    pub binaries: Binaries,
    /// The static stand-in runner, for the image.
    pub runner_program: PathBuf,
    /// Socket of the container engine.
    pub engine_socket: PathBuf,
    /// The reader's own jobs.
    pub jobs: Option<PathBuf>,
    /// Leave it running until Ctrl-C.
    pub keep: bool,
    /// Image of the runners; absent: the stand-in's, or the product's default for real repositories.
    pub image: Option<String>,
}

/// A client of the container engine.
pub async fn engine(socket: &Path) -> Result<Docker> {
    let path = socket.to_string_lossy();
    Docker::connect_with_unix(&path, 60, bollard::API_DEFAULT_VERSION)
        .with_context(|| format!("connect to {path}"))?
        .negotiate_version()
        .await
        .with_context(|| {
            format!(
                "no answer from the container engine at {path}: start it with deploy/prepare-host"
            )
        })
}

/// Running programs.
#[derive(Debug, Default)]
pub struct Parts {
    check: Option<Process>,
    /// The fake GitHub.
    pub sim: Option<Sim>,
    /// The scheduler.
    pub scheduler: Option<Scheduler>,
    /// The agent and how it was started.
    pub agent: Option<(Agent, AgentSettings)>,
}

impl Parts {
    /// The checker first: it must see the host as it was before everything else.
    pub async fn watch(&mut self, wishes: &Wishes, folder: &Folder) -> Result<()> {
        let process = check_program(wishes, folder, "watch")?.ready().await?;
        self.check = Some(process);
        Ok(())
    }

    /// Starts the agent.
    pub async fn start_agent(
        &mut self,
        wishes: &Wishes,
        folder: &Folder,
        identity: &Identity,
    ) -> Result<()> {
        let scheduler = self
            .scheduler
            .as_ref()
            .context("the scheduler is started first")?;
        let settings = AgentSettings {
            node: identity.node.clone(),
            state: folder.state().join("agent"),
            scheduler: scheduler.nodes_url(),
            api: Some(scheduler.door()),
            engine_socket: Some(wishes.engine_socket.clone()),
            slots_cidr: Some(identity.slots_cidr.clone()),
            env: vec![(RUN_VARIABLE.to_owned(), identity.run.clone())],
            ..AgentSettings::default()
        };
        let agent = Agent::start(&wishes.binaries, &folder.logs(), &settings).await?;
        self.agent = Some((agent, settings));
        Ok(())
    }

    /// A client of the scheduler.
    pub fn client(&self) -> Result<Client> {
        let scheduler = self
            .scheduler
            .as_ref()
            .context("the scheduler is started first")?;
        scheduler.client()
    }

    /// Fails when a program has ended by itself.
    pub fn must_run(&mut self) -> Result<()> {
        if let Some(check) = &mut self.check {
            check.must_run()?;
        }
        if let Some(sim) = &mut self.sim {
            sim.process.must_run()?;
        }
        if let Some(scheduler) = &mut self.scheduler {
            scheduler.process.must_run()?;
        }
        if let Some((agent, _)) = &mut self.agent {
            agent.process.must_run()?;
        }
        Ok(())
    }

    /// Lets running jobs end, as an operator would before taking a host out of service.
    pub async fn drain(&self, identity: &Identity) -> Result<()> {
        let client = self.client()?;
        client
            .drain_node(v1::DrainNodeRequest {
                name: identity.node.clone(),
                deadline: None,
                request_id: format!("demo-{}", identity.run),
            })
            .await?;
        wait::until("the node to be empty", DRAIN_WITHIN, || async {
            let listed = client
                .list_runners(v1::ListRunnersRequest {
                    node: identity.node.clone(),
                    ..Default::default()
                })
                .await
                .map_err(|e| e.to_string())?;
            let left: Vec<String> = listed
                .runners
                .iter()
                .map(|r| format!("{} {}", r.name, r.status))
                .collect();
            if left.is_empty() {
                Ok(())
            } else {
                Err(left.join(", "))
            }
        })
        .await
    }

    /// Ends agent and scheduler and has the agent's things on this host removed, the way an operator uninstalls it.
    pub async fn stop_fleet(&mut self, wishes: &Wishes, folder: &Folder) -> Vec<anyhow::Error> {
        let mut problems = Vec::new();
        if let Some((mut agent, settings)) = self.agent.take() {
            note(&mut problems, agent.process.terminate(STOP_WITHIN).await);
            note(
                &mut problems,
                remove_node_things(wishes, folder, &settings).await,
            );
        }
        if let Some(mut scheduler) = self.scheduler.take() {
            note(
                &mut problems,
                scheduler.process.terminate(STOP_WITHIN).await,
            );
        }
        problems
    }

    /// Has the checker take the simulator's story, then ends the simulator.
    pub async fn stop_simulator(&mut self, wishes: &Wishes, folder: &Folder) -> Vec<anyhow::Error> {
        let mut problems = Vec::new();
        if let Some(mut sim) = self.sim.take() {
            let collect = async {
                let mut process = check_program(wishes, folder, "collect")?
                    .flag("--simulator", sim.url())
                    .spawn()?;
                ended_well(&mut process).await
            };
            note(&mut problems, collect.await);
            note(&mut problems, sim.process.terminate(STOP_WITHIN).await);
        }
        problems
    }

    /// Ends the recording and has the checker judge. True: everything as declared.
    pub async fn judge(&mut self, wishes: &Wishes, folder: &Folder) -> Result<bool> {
        if let Some(mut check) = self.check.take() {
            check.terminate(STOP_WITHIN).await?;
        }
        let status = std::process::Command::new(wishes.binaries.program("demo-check")?)
            .arg("--folder")
            .arg(folder.path())
            .arg("--engine-socket")
            .arg(&wishes.engine_socket)
            .arg("judge")
            .status()
            .context("run demo-check")?;
        match status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => anyhow::bail!("demo-check could not judge ({status})"),
        }
    }
}

fn note<T>(problems: &mut Vec<anyhow::Error>, outcome: Result<T>) {
    if let Err(error) = outcome {
        problems.push(error);
    }
}

fn check_program(wishes: &Wishes, folder: &Folder, command: &str) -> Result<Launch> {
    Ok(Launch::new(
        "demo-check",
        wishes.binaries.program("demo-check")?,
        folder.logs().join("demo-check.log"),
    )
    .flag("--folder", folder.path())
    .flag("--engine-socket", &wishes.engine_socket)
    .arg(command))
}

async fn ended_well(process: &mut Process) -> Result<()> {
    let status = process.wait(Duration::from_secs(60)).await?;
    if !status.success() {
        anyhow::bail!("{} failed ({status}):\n{}", process.name(), process.tail());
    }
    Ok(())
}

/// A stopped agent leaves its standby slots for the next start; taking it off a host is a command of its own.
async fn remove_node_things(
    wishes: &Wishes,
    folder: &Folder,
    settings: &AgentSettings,
) -> Result<()> {
    let mut process = Launch::new(
        "longshore-agent purge",
        wishes.binaries.program("longshore-agent")?,
        folder.logs().join(format!("agent-{}.log", settings.node)),
    )
    .arg("purge")
    .flag("--node", &settings.node)
    .flag("--state-dir", &settings.state)
    .flag("--engine-socket", &wishes.engine_socket)
    .spawn()?;
    ended_well(&mut process).await
}
