//! A node that speaks the node protocol and runs nothing: the far end of a measurement.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use longshore_agent::{
    clock::Clock,
    dial::{Dial, addresses},
    identity::Identity,
};
use longshore_proto::v1::{
    self, AttachRequest, AttachResponse, Capability, Engine, Generation, Hello, NodeReport,
    ObservedRunner, Registration, Resources, RunnerExit, RunnerIntent, attach_request,
    attach_response, node_service_client::NodeServiceClient, observed_runner::Phase,
    runner_exit::Cause, runner_intent::Desired,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::fleet::Fleet;

/// A runner is wanted and its registration is here: what a real node needs to start it.
#[derive(Clone, Debug)]
pub(crate) struct Assigned {
    pub(crate) runner: String,
    pub(crate) at: Instant,
    pub(crate) intent_at: Instant,
    pub(crate) registration_at: Instant,
}

/// Assignments kept for a measurement that does not look.
const ASSIGNMENTS: usize = 4_096;

/// How long a runner lives after its registration arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Life {
    /// Until [`Node::finish`].
    UntilTold,
    /// It exits by itself.
    For(Duration),
}

struct Runner {
    phase: Phase,
    observation: u64,
    intent_at: Option<Instant>,
    registration_at: Option<Instant>,
}

enum Word {
    Finish(String),
}

/// A connected node.
pub(crate) struct Node {
    pub(crate) assigned: mpsc::Receiver<Assigned>,
    words: mpsc::Sender<Word>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Node {
    /// Attaches as `name` with room for `runners` runners of the default size.
    pub(crate) async fn attach(
        fleet: &Fleet,
        name: &str,
        runners: u32,
        life: Life,
    ) -> Result<Self> {
        let mut client = NodeServiceClient::new(joined(fleet, name).await?);
        let (up, requests) = mpsc::channel::<AttachRequest>(64);
        up.send(hello(name, runners)).await?;
        let down = client
            .attach(ReceiverStream::new(requests))
            .await
            .context("attach")?
            .into_inner();
        let (tell, assigned) = mpsc::channel(ASSIGNMENTS);
        let (words, heard) = mpsc::channel(64);
        let task = tokio::spawn(serve(down, up, heard, tell, words.clone(), life));
        Ok(Self {
            assigned,
            words,
            task,
        })
    }

    /// The runner's program ended cleanly.
    pub(crate) async fn finish(&self, runner: &str) -> Result<()> {
        self.words
            .send(Word::Finish(runner.into()))
            .await
            .context("the node's stream ended")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection of a host that joined under this name.
async fn joined(fleet: &Fleet, name: &str) -> Result<Channel> {
    let token = fleet
        .scheduler
        .door()
        .join_token(&fleet.binaries, name)
        .await?;
    join(fleet, name, &token).await?.connect().await
}

/// A host that joins by this token.
pub(crate) async fn join(fleet: &Fleet, name: &str, token: &str) -> Result<Dial> {
    let addresses = addresses(&fleet.scheduler.nodes_url()).map_err(anyhow::Error::msg)?;
    let identity = Identity::new(&fleet.folder.path().join(name), name);
    let (clock, stop) = (Clock::system(), CancellationToken::new());
    identity
        .join(&addresses, &token.parse()?, &clock, &stop)
        .await?;
    Ok(Dial::new(addresses, identity))
}

pub(crate) fn hello(name: &str, runners: u32) -> AttachRequest {
    AttachRequest {
        message: Some(attach_request::Message::Hello(Hello {
            node: name.into(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            highest: Some(Generation::default()),
            capability: Some(Capability {
                arch: "x64".into(),
                os: "linux".into(),
                labels: ["self-hosted", "linux", "x64"].map(String::from).to_vec(),
                capacity: Some(Resources {
                    cpu_millis: runners.saturating_mul(2_000),
                    memory_bytes: u64::from(runners) << 32,
                    gpus: 0,
                }),
                engine: Some(Engine {
                    kind: "docker".into(),
                    ..Engine::default()
                }),
                properties: longshore_bench_properties(),
                agent_version: env!("CARGO_PKG_VERSION").into(),
                hostname: name.into(),
                ..Capability::default()
            }),
            node_time: Some(SystemTime::now().into()),
            instance: String::new(),
        })),
    }
}

/// Everything the profiles ask for, as a node that proved it all.
fn longshore_bench_properties() -> Vec<v1::Property> {
    scheduler_core::profile::of_a_full_node()
        .into_iter()
        .map(|name| v1::Property {
            name,
            state: v1::property::State::Guaranteed.into(),
            evidence: "simulated node".into(),
        })
        .collect()
}

async fn serve(
    mut down: tonic::Streaming<AttachResponse>,
    up: mpsc::Sender<AttachRequest>,
    mut words: mpsc::Receiver<Word>,
    tell: mpsc::Sender<Assigned>,
    own: mpsc::Sender<Word>,
    life: Life,
) -> Result<()> {
    let mut accepted = Generation::default();
    let mut runners: BTreeMap<String, Runner> = BTreeMap::new();
    let mut heartbeat = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            message = down.message() => {
                match message?.context("the scheduler ended the stream")?.message {
                    Some(attach_response::Message::Intent(intent)) => {
                        let arrived = Instant::now();
                        runners.retain(|name, runner| runner.phase != Phase::Exited || intent.runners.iter().any(|wanted| wanted.name == *name));
                        for wanted in intent.runners {
                            obey(&mut runners, wanted, arrived);
                        }
                        accepted = intent.generation.unwrap_or_default();
                        announce(&mut runners, &tell, &own, life);
                    }
                    Some(attach_response::Message::Registration(Registration { runner, .. })) => {
                        let entry = runners.entry(runner).or_insert_with(Runner::unheard);
                        if entry.registration_at.is_none() {
                            entry.registration_at = Some(Instant::now());
                        }
                        announce(&mut runners, &tell, &own, life);
                    }
                    Some(attach_response::Message::Welcome(_) | attach_response::Message::Check(_)) | None => {}
                }
            }
            word = words.recv() => {
                let Some(Word::Finish(name)) = word else { return Ok(()) };
                if let Some(runner) = runners.get_mut(&name) {
                    runner.become_(Phase::Exited);
                }
            }
            _ = heartbeat.tick() => {}
        }
        up.send(report(accepted, &runners)).await?;
    }
}

impl Runner {
    fn unheard() -> Self {
        Self {
            phase: Phase::Unspecified,
            observation: 0,
            intent_at: None,
            registration_at: None,
        }
    }

    fn become_(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.observation += 1;
        }
    }
}

fn obey(runners: &mut BTreeMap<String, Runner>, wanted: RunnerIntent, arrived: Instant) {
    match wanted.desired {
        Some(Desired::Run(_)) => {
            let runner = runners.entry(wanted.name).or_insert_with(Runner::unheard);
            if runner.intent_at.is_none() {
                runner.intent_at = Some(arrived);
                runner.become_(Phase::Ready);
            }
        }
        Some(Desired::Remove(_) | Desired::Kill(_)) => {
            if let Some(runner) = runners.get_mut(&wanted.name) {
                runner.become_(Phase::Exited);
            }
        }
        Some(Desired::StopIfIdle(_)) | None => {}
    }
}

/// Says which runners now have both halves, once each.
fn announce(
    runners: &mut BTreeMap<String, Runner>,
    tell: &mpsc::Sender<Assigned>,
    own: &mpsc::Sender<Word>,
    life: Life,
) {
    for (name, runner) in runners.iter_mut() {
        let (Some(intent_at), Some(registration_at)) = (runner.intent_at, runner.registration_at)
        else {
            continue;
        };
        if runner.phase != Phase::Ready {
            continue;
        }
        runner.become_(Phase::Busy);
        // A full or closed queue only means that nobody measures any more.
        let _ = tell.try_send(Assigned {
            runner: name.clone(),
            at: intent_at.max(registration_at),
            intent_at,
            registration_at,
        });
        if let Life::For(time) = life {
            let (own, name) = (own.clone(), name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                let _ = own.send(Word::Finish(name)).await;
            });
        }
    }
}

fn report(accepted: Generation, runners: &BTreeMap<String, Runner>) -> AttachRequest {
    let runners = runners
        .iter()
        .filter(|(_, runner)| runner.intent_at.is_some())
        .map(|(name, runner)| ObservedRunner {
            name: name.clone(),
            phase: runner.phase.into(),
            observation: runner.observation,
            worker: runner.phase == Phase::Busy,
            container_id: format!("bench{}", &name[name.len().saturating_sub(8)..]),
            exit: (runner.phase == Phase::Exited).then(|| RunnerExit {
                code: Some(0),
                cause: Cause::Finished.into(),
                finished_at: Some(SystemTime::now().into()),
                ..RunnerExit::default()
            }),
            ..ObservedRunner::default()
        })
        .collect();
    AttachRequest {
        message: Some(attach_request::Message::Report(NodeReport {
            accepted: Some(accepted),
            runners,
            node_time: Some(SystemTime::now().into()),
            ..NodeReport::default()
        })),
    }
}
