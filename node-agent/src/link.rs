//! The one stream to the scheduler: attached, kept alive, attached again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use longshore_proto::v1 as pb;
use longshore_proto::v1::attach_request::Message as Up;
use longshore_proto::v1::attach_response::Message as Down;
use longshore_proto::v1::node_service_client::NodeServiceClient;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::dial::{Dial, Refused, refusal};
use crate::driver::{Input, Snapshot, Subscription};
use crate::probing::Wanted;
use crate::secrets::Secret;
use crate::wire;

const WELCOME: Duration = Duration::from_secs(10);
const SEND: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Largest message either way: a node with thousands of runners fits.
pub const MAX_MESSAGE: usize = 16 << 20;
const OUTGOING: usize = 16;

pub struct Link {
    pub dial: Dial,
    pub node: String,
    /// Random, made by each start.
    pub instance: String,
    pub clock: Clock,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub inputs: mpsc::Sender<Input>,
    /// Set once, at the first Welcome.
    pub attached: watch::Sender<bool>,
}

impl Link {
    /// Attaches again and again until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = tokio::time::Instant::now();
            let mut decided = false;
            tokio::select! {
                () = stop.cancelled() => return,
                result = self.attach() => match result {
                    Ok(()) => info!("the scheduler closed the stream"),
                    Err(error) => {
                        warn!(error = format!("{error:#}"), "not attached");
                        decided = error.downcast_ref().is_some_and(Refused::is_decision);
                    }
                },
            }
            if began.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            if decided {
                pause = LONGEST_PAUSE;
            }
            // Jitter, so that a fleet does not come back in one instant.
            let wait = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attach(&mut self) -> anyhow::Result<()> {
        let channel = self.dial.connect().await?;
        let mut client = NodeServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let (up, outgoing) = mpsc::channel(OUTGOING);
        let first = self.snapshots.borrow_and_update().clone();
        send(&up, Up::Hello(self.hello(&first))).await?;
        let answer = timeout(WELCOME, client.attach(ReceiverStream::new(outgoing))).await;
        let mut down = answer
            .context("the scheduler did not answer Attach")?
            .map_err(|status| refusal(&status))?
            .into_inner();
        let welcome = match timeout(WELCOME, down.message())
            .await
            .context("no Welcome came")??
        {
            Some(pb::AttachResponse {
                message: Some(Down::Welcome(welcome)),
            }) => welcome,
            _ => bail!("the scheduler did not begin with Welcome"),
        };
        info!(
            fleet = welcome.fleet,
            version = welcome.scheduler_version,
            "attached"
        );
        let heartbeat =
            wire::millis(welcome.heartbeat.as_ref()).map_or(HEARTBEAT, Duration::from_millis);
        let heartbeat = heartbeat.clamp(Duration::from_millis(100), Duration::from_secs(300));
        let scheduler_ms = welcome.scheduler_time.as_ref().and_then(wire::utc_ms);
        let clock_offset_ms =
            scheduler_ms.map_or(0, |theirs| self.clock.now().utc_ms as i64 - theirs as i64);
        self.input(Input::Attached {
            fleet: welcome.fleet,
            lease_ms: wire::millis(welcome.lease.as_ref()),
            clock_offset_ms,
        })
        .await?;
        self.attached.send_replace(true);
        let mut told_capability = first.capability.clone();
        self.report(&up, &mut told_capability).await?;

        let mut beat = tokio::time::interval(heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beat.reset();
        loop {
            tokio::select! {
                biased;
                message = down.message() => match message.map_err(|status| refusal(&status))? {
                    Some(message) => self.take(message, &up).await?,
                    None => return Ok(()),
                },
                changed = self.snapshots.changed() => {
                    changed.map_err(|_| anyhow!("the agent is ending"))?;
                    self.report(&up, &mut told_capability).await?;
                }
                _ = beat.tick() => {
                    // Keep-alive pings end the stream when the other side is gone, so this one is alive.
                    self.input(Input::Alive).await?;
                    self.report(&up, &mut told_capability).await?;
                }
            }
        }
    }

    fn hello(&self, snapshot: &Snapshot) -> pb::Hello {
        pb::Hello {
            node: self.node.clone(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            highest: Some(wire::generation_to(snapshot.accepted)),
            capability: Some((*snapshot.capability).clone()),
            node_time: Some(wire::timestamp(self.clock.now().utc_ms)),
            instance: self.instance.clone(),
        }
    }

    async fn report(
        &mut self,
        up: &mpsc::Sender<pb::AttachRequest>,
        told: &mut Arc<pb::Capability>,
    ) -> anyhow::Result<()> {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let capability = (*told != snapshot.capability).then(|| (*snapshot.capability).clone());
        let report = pb::NodeReport {
            accepted: Some(wire::generation_to(snapshot.accepted)),
            runners: snapshot.runners.iter().map(wire::observed_to).collect(),
            capability,
            node_time: Some(wire::timestamp(self.clock.now().utc_ms)),
            conditions: snapshot.conditions.iter().map(wire::condition_to).collect(),
        };
        send(up, Up::Report(report)).await?;
        *told = snapshot.capability.clone();
        if snapshot.runners.iter().any(|runner| runner.phase.is_over()) {
            self.input(Input::Told(snapshot.runners.clone())).await?;
        }
        Ok(())
    }

    async fn take(
        &self,
        message: pb::AttachResponse,
        up: &mpsc::Sender<pb::AttachRequest>,
    ) -> anyhow::Result<()> {
        match message.message {
            Some(Down::Intent(intent)) => {
                let logs = intent
                    .logs
                    .iter()
                    .map(|wanted| Subscription {
                        runner: wanted.runner.clone(),
                        offset: wanted.offset,
                    })
                    .collect();
                self.input(Input::Intent {
                    intent: wire::intent_from(intent),
                    logs,
                })
                .await
            }
            Some(Down::Registration(registration)) => {
                let secret = Secret::new(registration.jit_config);
                self.input(Input::Registration {
                    runner: registration.runner,
                    secret,
                })
                .await
            }
            Some(Down::Check(check)) => self.check(check, up.clone()).await,
            Some(Down::Welcome(_)) | None => {
                debug!("ignored a message that has no place here");
                Ok(())
            }
        }
    }

    /// Passes the question on; the answer goes up when it is there, unless the stream
    /// is another by then.
    async fn check(
        &self,
        check: pb::CheckSandbox,
        up: mpsc::Sender<pb::AttachRequest>,
    ) -> anyhow::Result<()> {
        let (answer, answered) = oneshot::channel();
        let spec = wire::probe_spec_from(check.spec.unwrap_or_default());
        let wanted = Wanted {
            // What most jobs get; of others only who asked hears.
            publish: matches!(spec.profile.as_str(), "" | "strict")
                && matches!(spec.network_mode.as_str(), "" | "open"),
            spec,
            answer: Some(answer),
        };
        self.input(Input::Check(wanted)).await?;
        tokio::spawn(async move {
            if let Ok(result) = answered.await {
                let told = wire::checked_to(check.id, result);
                // The stream may have ended meanwhile.
                let _ = send(&up, Up::Checked(told)).await;
            }
        });
        Ok(())
    }

    async fn input(&self, input: Input) -> anyhow::Result<()> {
        self.inputs
            .send(input)
            .await
            .map_err(|_| anyhow!("the agent is ending"))
    }
}

async fn send(up: &mpsc::Sender<pb::AttachRequest>, message: Up) -> anyhow::Result<()> {
    let request = pb::AttachRequest {
        message: Some(message),
    };
    timeout(SEND, up.send(request))
        .await
        .context("the scheduler takes no reports")?
        .map_err(|_| anyhow!("the stream was closed"))
}
