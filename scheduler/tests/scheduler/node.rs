//! A node as an agent would be one, from the wire's point of view.

use std::collections::BTreeMap;

use longshore_proto::v1::{
    self, AttachRequest, AttachResponse, Capability, Generation, Hello, NodeIntent, NodeReport,
    ObservedRunner, Resources, Welcome, attach_request, attach_response,
    node_service_client::NodeServiceClient, observed_runner::Phase, runner_intent::Desired,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::harness::{PATIENCE, Scheduler};

pub(crate) struct Node {
    reports: mpsc::Sender<AttachRequest>,
    incoming: Streaming<AttachResponse>,
    pub(crate) welcome: Welcome,
    pub(crate) intent: Option<NodeIntent>,
    pub(crate) registrations: BTreeMap<String, String>,
    observation: u64,
}

pub(crate) fn capability() -> Capability {
    Capability {
        arch: "x64".to_owned(),
        os: "linux".to_owned(),
        labels: ["self-hosted", "linux", "x64"].map(str::to_owned).into(),
        capacity: Some(Resources {
            cpu_millis: 16_000,
            memory_bytes: 64 << 30,
            gpus: 0,
        }),
        agent_version: "0.1.0".to_owned(),
        properties: scheduler_core::profile::of_a_full_node()
            .into_iter()
            .map(|name| v1::Property {
                name,
                state: v1::property::State::Guaranteed.into(),
                evidence: "of this test".to_owned(),
            })
            .collect(),
        ..Capability::default()
    }
}

fn request(message: attach_request::Message) -> AttachRequest {
    AttachRequest {
        message: Some(message),
    }
}

impl Node {
    pub(crate) async fn attach(scheduler: &Scheduler, name: &str) -> Self {
        Self::attach_with(scheduler, name, None)
            .await
            .expect("attaches")
    }

    pub(crate) async fn attach_with(
        scheduler: &Scheduler,
        name: &str,
        highest: Option<Generation>,
    ) -> Result<Self, Status> {
        Self::attach_as(scheduler.nodes(name).await, name, highest).await
    }

    /// Attaches under a name with whatever certificate the client has.
    pub(crate) async fn attach_as(
        mut client: NodeServiceClient<Channel>,
        name: &str,
        highest: Option<Generation>,
    ) -> Result<Self, Status> {
        let (reports, outgoing) = mpsc::channel(64);
        let hello = Hello {
            node: name.to_owned(),
            agent_version: "0.1.0".to_owned(),
            highest,
            capability: Some(capability()),
            node_time: None,
            instance: String::new(),
        };
        reports
            .send(request(attach_request::Message::Hello(hello)))
            .await
            .expect("room");
        let stream = client.attach(ReceiverStream::new(outgoing)).await?;
        let mut node = Self {
            reports,
            incoming: stream.into_inner(),
            welcome: Welcome::default(),
            intent: None,
            registrations: BTreeMap::new(),
            observation: 0,
        };
        node.welcome = match node.next().await {
            Some(attach_response::Message::Welcome(welcome)) => welcome,
            other => panic!("a welcome comes first, not {other:?}"),
        };
        node.report(Vec::new()).await;
        Ok(node)
    }

    /// The next message; `None` when the stream ended.
    pub(crate) async fn next(&mut self) -> Option<attach_response::Message> {
        let message = tokio::time::timeout(PATIENCE, self.incoming.message())
            .await
            .expect("a message in time");
        match message {
            Ok(message) => message.and_then(|message| message.message),
            Err(_) => None,
        }
    }

    /// Answers a check.
    pub(crate) async fn checked(&self, told: v1::SandboxChecked) {
        let answer = request(attach_request::Message::Checked(told));
        self.reports.send(answer).await.expect("the stream goes on");
    }

    /// Takes messages in until a condition holds.
    pub(crate) async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        let taking = async {
            while !holds(self) {
                match self.next().await.expect("the stream goes on") {
                    attach_response::Message::Intent(intent) => self.intent = Some(intent),
                    attach_response::Message::Registration(registration) => {
                        let jit = String::from_utf8(registration.jit_config).expect("text");
                        self.registrations.insert(registration.runner, jit);
                    }
                    attach_response::Message::Check(_) => panic!("nobody asks for a check"),
                    attach_response::Message::Welcome(_) => panic!("one welcome is enough"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, taking)
            .await
            .expect("what was waited for");
    }

    /// Names of the runners the intent wants running.
    pub(crate) fn wanted(&self) -> Vec<String> {
        let runners = self.intent.iter().flat_map(|intent| &intent.runners);
        runners
            .filter(|runner| matches!(runner.desired, Some(Desired::Run(_))))
            .map(|runner| runner.name.clone())
            .collect()
    }

    /// Waits for the intent and the registration of a first runner.
    pub(crate) async fn first_runner(&mut self) -> String {
        self.until(|node| {
            node.wanted()
                .iter()
                .any(|name| node.registrations.contains_key(name))
        })
        .await;
        self.wanted().remove(0)
    }

    pub(crate) async fn report(&mut self, runners: Vec<ObservedRunner>) {
        let report = NodeReport {
            accepted: self.intent.as_ref().and_then(|intent| intent.generation),
            runners,
            capability: None,
            node_time: None,
            conditions: Vec::new(),
        };
        // A stream that ended is found out by its reader.
        let _ = self
            .reports
            .send(request(attach_request::Message::Report(report)))
            .await;
    }

    /// Reports one runner in a phase.
    pub(crate) async fn observe(&mut self, name: &str, phase: Phase) {
        let finished = (0, v1::runner_exit::Cause::Finished, "");
        self.observe_end(name, phase, finished).await;
    }

    /// Reports that a runner ended: code, cause and detail.
    pub(crate) async fn ended(&mut self, name: &str, how: (i32, v1::runner_exit::Cause, &str)) {
        self.observe_end(name, Phase::Exited, how).await;
    }

    async fn observe_end(
        &mut self,
        name: &str,
        phase: Phase,
        (code, cause, detail): (i32, v1::runner_exit::Cause, &str),
    ) {
        self.observation += 1;
        let exit = (phase == Phase::Exited).then(|| v1::RunnerExit {
            code: Some(code),
            cause: cause as i32,
            detail: detail.to_owned(),
            usage: Some(v1::Usage {
                cpu: Some(prost_types::Duration {
                    seconds: 12,
                    nanos: 0,
                }),
                peak_memory_bytes: 1 << 20,
                known: true,
                read_bytes: Some(4_096),
                written_bytes: None,
                peak_gpu_memory_bytes: None,
                gpus: 0,
            }),
            finished_at: None,
            denied: Some(denied()),
        });
        let runner = ObservedRunner {
            name: name.to_owned(),
            phase: phase as i32,
            observation: self.observation,
            worker: phase == Phase::Busy,
            exit,
            container_id: "c0ffee123456".to_owned(),
            ..ObservedRunner::default()
        };
        self.report(vec![runner]).await;
    }
}

/// More than is kept, with what does not belong into a name.
pub(crate) fn denied() -> v1::DeniedEgress {
    let destination = |n: u32| v1::DeniedDestination {
        destination: format!("10.0.0.{n}\u{1b}[2J"),
        protocol: "tcp".into(),
        port: 22,
        count: u64::from(100 - n),
        reason: "firewall".into(),
    };
    v1::DeniedEgress {
        known: true,
        total: 5_000,
        destinations: (0..40).map(destination).collect(),
        more: false,
    }
}
