//! FleetService: what every person's and program's surface uses. Reads never enter the driver.

mod check;
mod find;
mod lists;
mod logs;
mod provision;
mod status;
mod watch;
pub mod writes;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use longshore_proto::v1::{self, fleet_service_server::FleetService};
use scheduler_core::{input::Command, model::Now};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::{errors, idempotency::Answers, vitals::Vitals, watchers::Watchers};
use crate::{
    access::Who,
    admission::Admissions,
    config::WatchSettings,
    inbox::{Inbox, Request as DriverRequest},
    links::Links,
    logs::Logs,
    ports::{Clock, Demand, Store},
    view::View,
};

/// Longest wait of a write for its commit.
const COMMIT: Duration = Duration::from_secs(10);

/// What the service needs.
pub struct Parts<S, D> {
    pub store: Arc<S>,
    pub demand: D,
    pub inbox: Inbox,
    pub view: View,
    pub logs: Logs,
    pub links: Arc<Links>,
    pub vitals: Arc<Vitals>,
    pub admissions: Arc<Admissions>,
    pub clock: Arc<dyn Clock>,
    /// Settings in force; a change reconnects GitHub.
    pub settings: channel::Sender<WatchSettings>,
    /// Ends streams when the process goes down.
    pub stop: CancellationToken,
    /// UTC milliseconds of the process's start.
    pub started_at: u64,
}

/// The service. Cheap to clone.
pub struct Fleets<S, D> {
    parts: Arc<Parts<S, D>>,
    answers: Arc<Answers>,
    watchers: Arc<Watchers>,
}

impl<S, D> Clone for Fleets<S, D> {
    fn clone(&self) -> Self {
        Self {
            parts: Arc::clone(&self.parts),
            answers: Arc::clone(&self.answers),
            watchers: Arc::clone(&self.watchers),
        }
    }
}

impl<S: Store, D: Demand> Fleets<S, D> {
    pub fn new(parts: Parts<S, D>) -> Self {
        Self {
            parts: Arc::new(parts),
            answers: Arc::default(),
            watchers: Arc::default(),
        }
    }

    fn now(&self) -> Now {
        self.parts.clock.now()
    }

    /// Commits a command of this caller's and waits until it can be read back.
    async fn write(
        &self,
        who: &Who,
        subject: &str,
        request_id: &str,
        commands: Vec<Command>,
        settings: Vec<(String, Option<String>)>,
    ) -> Result<(), Status> {
        let request = DriverRequest {
            inputs: commands
                .into_iter()
                .map(scheduler_core::input::Input::Command)
                .collect(),
            settings,
            audit: vec![who.entry(subject, request_id)],
            ..DriverRequest::default()
        };
        let committed = async {
            let sequence = self
                .parts
                .inbox
                .submit(request)
                .await
                .map_err(|_| errors::stopping())?;
            self.parts.view.reached(sequence).await;
            Ok(())
        };
        tokio::time::timeout(COMMIT, committed)
            .await
            .unwrap_or_else(|_| {
                Err(errors::status(
                    Code::Unavailable,
                    "store_slow",
                    "the store did not take the change in time; it may still do so",
                    "look at the state before asking again",
                ))
            })
    }
}

/// A stream of answers.
pub type Answering<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<S: Store, D: Demand> FleetService for Fleets<S, D> {
    type StreamRunnerLogsStream = Answering<v1::StreamRunnerLogsResponse>;
    type WatchFleetStream = Answering<v1::WatchFleetResponse>;

    async fn start_autoscaler(
        &self,
        request: Request<v1::StartAutoscalerRequest>,
    ) -> Reply<v1::StartAutoscalerResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.start(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "StartAutoscaler", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn stop_autoscaler(
        &self,
        request: Request<v1::StopAutoscalerRequest>,
    ) -> Reply<v1::StopAutoscalerResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.stop(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "StopAutoscaler", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Reply<v1::GetStatusResponse> {
        Ok(Response::new(self.status(&Who::of(&request)?)))
    }

    async fn list_workflow_queues(
        &self,
        request: Request<v1::ListWorkflowQueuesRequest>,
    ) -> Reply<v1::ListWorkflowQueuesResponse> {
        let who = Who::of(&request)?;
        Ok(Response::new(
            self.queues(&who, request.into_inner()).await?,
        ))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Reply<v1::ListJobsResponse> {
        let who = Who::of(&request)?;
        Ok(Response::new(self.jobs(&who, request.into_inner()).await?))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Reply<v1::GetJobResponse> {
        let who = Who::of(&request)?;
        let job = self.job(&who, request.into_inner().id).await?;
        Ok(Response::new(v1::GetJobResponse { job: Some(job) }))
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Reply<v1::ExplainJobResponse> {
        let who = Who::of(&request)?;
        Ok(Response::new(
            self.explain(&who, request.into_inner().id).await?,
        ))
    }

    async fn provision_runners(
        &self,
        request: Request<v1::ProvisionRunnersRequest>,
    ) -> Reply<v1::ProvisionRunnersResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.provision(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "ProvisionRunners", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn list_runners(
        &self,
        request: Request<v1::ListRunnersRequest>,
    ) -> Reply<v1::ListRunnersResponse> {
        let who = Who::of(&request)?;
        Ok(Response::new(
            self.runners(&who, request.into_inner()).await?,
        ))
    }

    async fn get_runner(
        &self,
        request: Request<v1::GetRunnerRequest>,
    ) -> Reply<v1::GetRunnerResponse> {
        let who = Who::of(&request)?;
        let runner = self.runner(&who, &request.into_inner().name).await?;
        Ok(Response::new(v1::GetRunnerResponse {
            runner: Some(runner),
        }))
    }

    async fn stop_runner(
        &self,
        request: Request<v1::StopRunnerRequest>,
    ) -> Reply<v1::StopRunnerResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.end_runner(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "StopRunner", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn stream_runner_logs(
        &self,
        request: Request<v1::StreamRunnerLogsRequest>,
    ) -> Reply<Self::StreamRunnerLogsStream> {
        let who = Who::of(&request)?;
        let place = self.watchers.enter(&request)?;
        let output = self.output(&who, request.into_inner(), place).await?;
        Ok(Response::new(output))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Reply<v1::ListNodesResponse> {
        Ok(Response::new(self.nodes(&request.into_inner())?))
    }

    async fn get_node(&self, request: Request<v1::GetNodeRequest>) -> Reply<v1::GetNodeResponse> {
        let node = self.node(&request.into_inner().name)?;
        Ok(Response::new(v1::GetNodeResponse { node: Some(node) }))
    }

    async fn check_node(
        &self,
        request: Request<v1::CheckNodeRequest>,
    ) -> Reply<v1::CheckNodeResponse> {
        let who = Who::of(&request)?;
        let answer = self.check(&who, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn cordon_node(
        &self,
        request: Request<v1::CordonNodeRequest>,
    ) -> Reply<v1::CordonNodeResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.cordon(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "CordonNode", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn uncordon_node(
        &self,
        request: Request<v1::UncordonNodeRequest>,
    ) -> Reply<v1::UncordonNodeResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.uncordon(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "UncordonNode", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Reply<v1::DrainNodeResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.drain(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "DrainNode", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Reply<v1::RemoveNodeResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.remove(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "RemoveNode", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn list_pools(
        &self,
        request: Request<v1::ListPoolsRequest>,
    ) -> Reply<v1::ListPoolsResponse> {
        Ok(Response::new(self.pools(&request.into_inner())?))
    }

    async fn set_pool(&self, request: Request<v1::SetPoolRequest>) -> Reply<v1::SetPoolResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.put_pool(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "SetPool", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn delete_pool(
        &self,
        request: Request<v1::DeletePoolRequest>,
    ) -> Reply<v1::DeletePoolResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.drop_pool(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "DeletePool", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn set_share(
        &self,
        request: Request<v1::SetShareRequest>,
    ) -> Reply<v1::SetShareResponse> {
        let who = Who::of(&request)?;
        let request = request.into_inner();
        let work = self.put_share(&who, &request);
        let id = &request.request_id;
        let answer = self
            .answers
            .once(&who, "SetShare", id, &request, work)
            .await?;
        Ok(Response::new(answer))
    }

    async fn watch_fleet(
        &self,
        request: Request<v1::WatchFleetRequest>,
    ) -> Reply<Self::WatchFleetStream> {
        let who = Who::of(&request)?;
        let place = self.watchers.enter(&request)?;
        let token = request.into_inner().resume_token;
        Ok(Response::new(self.watch(&who, token, place)))
    }
}
