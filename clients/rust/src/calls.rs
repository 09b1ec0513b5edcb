//! One method for each call of `FleetService` and `AdminService`.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use longshore_proto::v1;
use longshore_proto::v1::admin_service_client::AdminServiceClient;
use longshore_proto::v1::fleet_service_client::FleetServiceClient;
use tonic::{Request, Response, Status};

use crate::bearer::Connection;
use crate::retry::pauses;
use crate::{Error, LogStream, Watch};

/// Largest page a list may ask for.
pub const MAX_PAGE: u32 = 1_000;
/// Largest answer accepted: a page of 1,000 jobs is well below.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// A scheduler's fleet API. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    inner: FleetServiceClient<Connection>,
    admin: AdminServiceClient<Connection>,
    address: String,
    timeout: Duration,
    attempts: usize,
}

impl Client {
    pub(crate) fn new(
        connection: Connection,
        address: String,
        timeout: Duration,
        attempts: usize,
    ) -> Client {
        Client {
            admin: AdminServiceClient::new(connection.clone())
                .max_decoding_message_size(MAX_MESSAGE),
            inner: FleetServiceClient::new(connection).max_decoding_message_size(MAX_MESSAGE),
            address,
            timeout,
            attempts,
        }
    }

    /// Where this client's calls go, as a URL.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Deadline of one call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Tries once, within `within`.
    async fn once<Q, A, F>(
        &self,
        call: &'static str,
        within: Duration,
        message: Q,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(message);
        request.set_timeout(within);
        match tokio::time::timeout(within, send(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            // The transport keeps the same deadline and may be first.
            Ok(Err(status)) if !is_timeout(&status) => {
                Err(Error::from_status(&status, &self.address))
            }
            _ => Err(Error::TimedOut {
                address: self.address.clone(),
                call,
                after: self.timeout,
            }),
        }
    }

    async fn write<Q, A, F>(
        &self,
        call: &'static str,
        message: Q,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.once(call, self.timeout, message, send).await
    }

    /// Tries again when the scheduler was away, within one deadline.
    async fn read<Q, A, F>(
        &self,
        call: &'static str,
        message: Q,
        send: impl Fn(Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut pauses = pauses(self.attempts);
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let error = match self.once(call, left, message.clone(), &send).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match pauses.next() {
                Some(pause)
                    if error.is_transient() && tokio::time::Instant::now() + pause < deadline =>
                {
                    tokio::time::sleep(pause).await;
                }
                _ => return Err(error),
            }
        }
    }

    /// A runner's output; ends when the runner's output ends, or never when it follows.
    pub async fn stream_runner_logs(
        &self,
        request: v1::StreamRunnerLogsRequest,
    ) -> Result<LogStream, Error> {
        let call = "StreamRunnerLogs";
        // No grpc-timeout: it would end a followed stream.
        let mut inner = self.inner.clone();
        let open = inner.stream_runner_logs(Request::new(request));
        let stream = match tokio::time::timeout(self.timeout, open).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(Error::from_status(&status, &self.address)),
            Err(_) => {
                return Err(Error::TimedOut {
                    address: self.address.clone(),
                    call,
                    after: self.timeout,
                });
            }
        };
        Ok(LogStream::new(stream, self.address.clone()))
    }

    /// Everything that changes, from `resume_token` on; 0 asks for a snapshot first.
    /// Connects with the first [`Watch::next`] and again after each break.
    pub fn watch_fleet(&self, resume_token: u64) -> Watch {
        Watch::new(
            self.inner.clone(),
            self.address.clone(),
            self.timeout,
            resume_token,
        )
    }
}

/// Whether the deadline of this side passed.
fn is_timeout(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

macro_rules! calls {
    ($service:literal $client:ident $($how:ident $name:ident($request:ident) -> $response:ident = $call:literal;)*) => {
        impl Client {$(
            #[doc = concat!("`", $service, ".", $call, "`.")]
            pub async fn $name(&self, request: v1::$request) -> Result<v1::$response, Error> {
                self.$how($call, request, |r| {
                    let mut client = self.$client.clone();
                    async move { client.$name(r).await }
                })
                .await
            }
        )*}
    };
}

calls! {
    "FleetService" inner
    write start_autoscaler(StartAutoscalerRequest) -> StartAutoscalerResponse = "StartAutoscaler";
    write stop_autoscaler(StopAutoscalerRequest) -> StopAutoscalerResponse = "StopAutoscaler";
    read get_status(GetStatusRequest) -> GetStatusResponse = "GetStatus";
    read list_workflow_queues(ListWorkflowQueuesRequest) -> ListWorkflowQueuesResponse = "ListWorkflowQueues";
    read list_jobs(ListJobsRequest) -> ListJobsResponse = "ListJobs";
    read get_job(GetJobRequest) -> GetJobResponse = "GetJob";
    read explain_job(ExplainJobRequest) -> ExplainJobResponse = "ExplainJob";
    write provision_runners(ProvisionRunnersRequest) -> ProvisionRunnersResponse = "ProvisionRunners";
    read list_runners(ListRunnersRequest) -> ListRunnersResponse = "ListRunners";
    read get_runner(GetRunnerRequest) -> GetRunnerResponse = "GetRunner";
    write stop_runner(StopRunnerRequest) -> StopRunnerResponse = "StopRunner";
    read list_nodes(ListNodesRequest) -> ListNodesResponse = "ListNodes";
    read get_node(GetNodeRequest) -> GetNodeResponse = "GetNode";
    write check_node(CheckNodeRequest) -> CheckNodeResponse = "CheckNode";
    write cordon_node(CordonNodeRequest) -> CordonNodeResponse = "CordonNode";
    write uncordon_node(UncordonNodeRequest) -> UncordonNodeResponse = "UncordonNode";
    write drain_node(DrainNodeRequest) -> DrainNodeResponse = "DrainNode";
    write remove_node(RemoveNodeRequest) -> RemoveNodeResponse = "RemoveNode";
    read list_pools(ListPoolsRequest) -> ListPoolsResponse = "ListPools";
    write set_pool(SetPoolRequest) -> SetPoolResponse = "SetPool";
    write delete_pool(DeletePoolRequest) -> DeletePoolResponse = "DeletePool";
    write set_share(SetShareRequest) -> SetShareResponse = "SetShare";
}

calls! {
    "AdminService" admin
    read who_am_i(WhoAmIRequest) -> WhoAmIResponse = "WhoAmI";
    write create_token(CreateTokenRequest) -> CreateTokenResponse = "CreateToken";
    read list_tokens(ListTokensRequest) -> ListTokensResponse = "ListTokens";
    write revoke_token(RevokeTokenRequest) -> RevokeTokenResponse = "RevokeToken";
    read list_audit(ListAuditRequest) -> ListAuditResponse = "ListAudit";
    write verify_audit(VerifyAuditRequest) -> VerifyAuditResponse = "VerifyAudit";
    write create_join_token(CreateJoinTokenRequest) -> CreateJoinTokenResponse = "CreateJoinToken";
    read list_join_tokens(ListJoinTokensRequest) -> ListJoinTokensResponse = "ListJoinTokens";
    write revoke_join_token(RevokeJoinTokenRequest) -> RevokeJoinTokenResponse = "RevokeJoinToken";
}
