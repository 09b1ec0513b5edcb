//! NodeService: the one stream to each agent, and its runners' output.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, future::BoxFuture, stream};
use longshore_proto::v1::{
    self, AttachRequest, AttachResponse, EnrollRequest, EnrollResponse, PushLogsRequest,
    PushLogsResponse, Registration, RenewRequest, RenewResponse, Welcome, attach_request,
    attach_response, node_service_server::NodeService,
};
use scheduler_core::{
    input::{Input, NodeAttached, NodeReported},
    model::{NodeName, RunnerName},
};
use scheduler_identity::authority::NodeCertificate;
use secrecy::ExposeSecret;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{convert, enrolment, errors, report, vitals::Vitals};
use crate::{
    admission::Admissions,
    clock::utc,
    inbox::Inbox,
    links::{Closed, Fenced, Links, Outbox, Outgoing},
    logs::Logs,
    view::View,
};

/// The first message must be there after this.
const HELLO: Duration = Duration::from_secs(10);
/// Time between two reports of a quiet node.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Leases of silence after which the stream itself is given up.
const SILENT_LEASES: u32 = 3;

/// What the service needs. Cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    pub inbox: Inbox,
    pub view: View,
    pub links: Arc<Links>,
    pub logs: Logs,
    pub vitals: Arc<Vitals>,
    pub admissions: Arc<Admissions>,
    pub past: NodeOf,
}

/// The node that a runner of the past ran on.
pub type NodeOf = Arc<dyn Fn(RunnerName) -> BoxFuture<'static, Option<NodeName>> + Send + Sync>;

/// Runners whose node was looked up for one stream of output.
const OWNED: usize = 4_096;

type Outgoings = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for Nodes {
    type AttachStream = Outgoings;

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        enrolment::enroll(&self.admissions, request).await
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        enrolment::renew(&self.admissions, request).await
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Outgoings>, Status> {
        let extensions = request.extensions();
        let shown = enrolment::node_of(&self.admissions, extensions, "Attach").await?;
        let address = enrolment::address(extensions);
        let mut incoming = request.into_inner();
        let hello = hello(&mut incoming).await?;
        let node = report::node_name(&hello.node)
            .map_err(|problem| errors::invalid("hello.node", problem, "rename it with --node"))?;
        if node.as_str() != shown.node {
            let other = &hello.node;
            return Err(enrolment::for_another(&self.admissions, &shown, address, other).await);
        }
        let highest = report::generation(hello.highest.as_ref()).map_err(|problem| {
            errors::invalid("hello.highest", problem, "clear the agent's state folder")
        })?;
        let capability = hello.capability.unwrap_or_default();
        report::fits(&capability).map_err(|problem| {
            errors::invalid("hello.capability", problem, "offer fewer labels or devices")
        })?;
        let offset = self.heard(&node, Some(&capability), hello.node_time.as_ref());
        let outbox = self.links.open(&node, &hello.instance).map_err(|Fenced| {
            tracing::error!(%node, "two agents use one identity: the older one is kept out");
            errors::precondition(
                "identity_in_use",
                &format!("another agent attached with the identity of node {node} after this one"),
                "stop one of them; each host joins with a token of its own, and a restart lets this one in again",
            )
        })?;
        let session = outbox.session;
        let mut opening = Opening {
            nodes: self,
            node: &node,
            session,
            handed_over: false,
        };
        let attached = Input::NodeAttached(Box::new(NodeAttached {
            node: node.clone(),
            session,
            highest,
            capability: report::capability(&capability),
            clock_offset_ms: offset,
        }));
        if self.inbox.submit(attached).await.is_err() {
            return Err(errors::stopping());
        }
        opening.handed_over = true;
        drop(opening);
        tracing::info!(%node, session, version = %hello.agent_version, "node attached");
        tokio::spawn(self.clone().listen(node, session, shown, incoming));
        Ok(Response::new(self.outgoing(outbox)))
    }

    async fn push_logs(
        &self,
        request: Request<Streaming<PushLogsRequest>>,
    ) -> Result<Response<PushLogsResponse>, Status> {
        let extensions = request.extensions();
        let shown = enrolment::node_of(&self.admissions, extensions, "PushLogs").await?;
        let node = NodeName::new(&shown.node);
        let mut pushed = request.into_inner();
        let mut own = BTreeSet::new();
        while let Some(chunk) = pushed.message().await? {
            if let Err(refusal) = self.admissions.stands(&shown, utc()) {
                return Err(enrolment::refused(&refusal));
            }
            let runner = RunnerName::new(&chunk.runner);
            // Only output of the node's own runners, living or remembered, fills our disk.
            if !own.contains(&runner) {
                if !self.ran_on(&runner, &node).await {
                    continue;
                }
                if own.len() >= OWNED {
                    own.clear();
                }
                own.insert(runner.clone());
            }
            let logs = self.logs.clone();
            let kept = tokio::task::spawn_blocking(move || {
                let offset = chunk.offset;
                logs.append(&chunk.runner, offset, &chunk.chunk, chunk.end)
            })
            .await;
            match kept {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%runner, %error, "output of a runner was not kept");
                }
                Err(error) => tracing::error!(%runner, %error, "keeping output panicked"),
            }
        }
        Ok(Response::new(PushLogsResponse {}))
    }
}

/// Closes a stream whose caller left before it was served.
struct Opening<'a> {
    nodes: &'a Nodes,
    node: &'a NodeName,
    session: u64,
    handed_over: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        self.nodes.links.close(self.node, self.session);
        let lost = Input::NodeLost {
            node: self.node.clone(),
            session: self.session,
        };
        let inbox = self.nodes.inbox.clone();
        // The driver may have heard of the stream already.
        tokio::spawn(async move { inbox.post(lost).await });
    }
}

/// The first message, which must be a Hello.
async fn hello(incoming: &mut Streaming<AttachRequest>) -> Result<v1::Hello, Status> {
    let first = tokio::time::timeout(HELLO, incoming.message())
        .await
        .map_err(|_| errors::invalid("hello", "it did not come in time", "attach again"))??;
    match first.and_then(|first| first.message) {
        Some(attach_request::Message::Hello(hello)) => Ok(hello),
        _ => Err(errors::invalid(
            "hello",
            "the first message is not a Hello",
            "use a longshore-agent of this release",
        )),
    }
}

impl Nodes {
    /// Notes a node's word for people and returns its clock's offset in milliseconds.
    fn heard(
        &self,
        node: &NodeName,
        capability: Option<&v1::Capability>,
        time: Option<&prost_types::Timestamp>,
    ) -> i64 {
        let now = utc();
        let offset = time.map_or(0, |time| convert::millis(time) as i64 - now as i64);
        self.vitals.heard(node, capability, now, offset);
        offset
    }

    /// Reads reports until the stream ends; then the core hears that it did.
    async fn listen(
        self,
        node: NodeName,
        session: u64,
        shown: NodeCertificate,
        mut incoming: Streaming<AttachRequest>,
    ) {
        let lease = self.view.fleet(|fleet| fleet.defaults().node_lease);
        let patience = (lease * SILENT_LEASES).max(HELLO);
        let why = loop {
            // An older stream of the node ends when a newer one takes its place.
            if self.session(&node) != Some(session) {
                break "replaced by a newer stream".to_owned();
            }
            match tokio::time::timeout(patience, incoming.message()).await {
                Err(_) => break "silent".to_owned(),
                Ok(Err(status)) => break status.message().to_owned(),
                Ok(Ok(None)) => break "closed by the node".to_owned(),
                Ok(Ok(Some(_))) if self.admissions.stands(&shown, utc()).is_err() => {
                    break "its certificate counts no more".to_owned();
                }
                Ok(Ok(Some(request))) => match request.message {
                    Some(attach_request::Message::Report(told)) => {
                        if let Err(stop) = self.report(&node, session, told).await {
                            break stop;
                        }
                    }
                    Some(attach_request::Message::Checked(told)) => {
                        self.links.checks.answered(&node, told);
                    }
                    Some(attach_request::Message::Hello(_)) | None => {}
                },
            }
        };
        tracing::info!(%node, session, why, "node's stream ended");
        if self.session(&node) == Some(session) {
            self.links.checks.lost(&node);
        }
        self.links.close(&node, session);
        // Refused only when the driver is gone, and then nobody counts leases.
        let _ = self.inbox.post(Input::NodeLost { node, session }).await;
    }

    async fn ran_on(&self, runner: &RunnerName, node: &NodeName) -> bool {
        let living = self.view.fleet(|fleet| {
            let placed = fleet.runner(runner).map(|runner| &runner.placed.node);
            placed.map(|of| of == node)
        });
        match living {
            Some(own) => own,
            None => (self.past)(runner.clone()).await.as_ref() == Some(node),
        }
    }

    fn session(&self, node: &NodeName) -> Option<u64> {
        use crate::ports::NodeLink;
        self.links.session(node)
    }

    async fn report(
        &self,
        node: &NodeName,
        session: u64,
        told: v1::NodeReport,
    ) -> Result<(), String> {
        if told.runners.len() > report::RUNNERS {
            return Err(format!("a report of {} runners", told.runners.len()));
        }
        told.capability.as_ref().map_or(Ok(()), report::fits)?;
        let offset = self.heard(node, told.capability.as_ref(), told.node_time.as_ref());
        let reported = Input::NodeReported(Box::new(NodeReported {
            node: node.clone(),
            session,
            accepted: report::generation(told.accepted.as_ref())?,
            capability: told.capability.as_ref().map(report::capability),
            conditions: report::conditions(&told.conditions),
            runners: report::runners(&told.runners),
            clock_offset_ms: offset,
        }));
        self.inbox
            .post(reported)
            .await
            .map_err(|stopped| stopped.to_string())
    }

    /// Welcome first, then whatever the outbox holds.
    fn outgoing(&self, outbox: Arc<Outbox>) -> Outgoings {
        let (fleet, lease) = self
            .view
            .fleet(|fleet| (fleet.fleet_id().to_owned(), fleet.defaults().node_lease));
        let welcome = AttachResponse {
            message: Some(attach_response::Message::Welcome(Welcome {
                fleet,
                scheduler_version: env!("CARGO_PKG_VERSION").to_owned(),
                heartbeat: Some(convert::span(HEARTBEAT.min(lease / 3))),
                lease: Some(convert::span(lease)),
                scheduler_time: Some(convert::time(utc())),
            })),
        };
        let logs = self.logs.clone();
        let rest = stream::unfold(Some((outbox, logs)), |open| async move {
            let (outbox, logs) = open?;
            match outbox.next().await {
                Ok(next) => Some((Ok(message(&logs, next)), Some((outbox, logs)))),
                Err(closed) => Some((Err(why_closed(closed)?), None)),
            }
        });
        stream::once(async { Ok(welcome) }).chain(rest).boxed()
    }
}

/// What an agent is told whose stream ends for a reason of its own.
fn why_closed(closed: Closed) -> Option<Status> {
    match closed {
        Closed::Stream => None,
        Closed::Replaced => Some(errors::status(
            Code::Aborted,
            "replaced",
            "a newer stream of this node took this one's place",
            "stop the other agent if there are two",
        )),
        Closed::Removed => Some(errors::status(
            Code::Unauthenticated,
            "node_removed",
            "this node was removed from the fleet",
            "join again with the token of `longshore node join-token`",
        )),
    }
}

fn message(logs: &Logs, outgoing: Outgoing) -> AttachResponse {
    use attach_response::Message;
    let message = match outgoing {
        Outgoing::Intent(intent) => Message::Intent(report::intent(&intent, |runner| {
            logs.taken(runner.as_str())
        })),
        Outgoing::Registration { runner, jit } => Message::Registration(Registration {
            runner: runner.to_string(),
            jit_config: jit.expose_secret().as_bytes().to_vec(),
        }),
        Outgoing::Check(check) => Message::Check(*check),
    };
    AttachResponse {
        message: Some(message),
    }
}
