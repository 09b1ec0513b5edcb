//! A FleetService that answers from a [`World`] and remembers what was asked.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use longshore_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use longshore_proto::v1::fleet_service_server::{FleetService, FleetServiceServer};
use longshore_proto::v1::*;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::world::{Call, World, at};

/// A running fake; it ends with the test.
pub(crate) struct Fake {
    pub(crate) url: String,
    pub(crate) address: String,
    world: Arc<Mutex<World>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Fake {
    pub(crate) fn start(world: World) -> Fake {
        let world = Arc::new(Mutex::new(world));
        let service = Service(world.clone());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let serve = tonic::transport::Server::builder()
                    .add_service(AdminServiceServer::new(service.clone()))
                    .add_service(FleetServiceServer::new(service))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = serve => served.unwrap(),
                    // The sender is dropped with the fake.
                    _ = stopped => {}
                }
            });
        });
        let address = told.recv().unwrap().to_string();
        Fake {
            url: format!("http://{address}"),
            address,
            world,
            _stop: stop,
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The calls so far; forgets them.
    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.world().calls)
    }
}

/// An error as a scheduler sends it.
pub(crate) fn error(code: Code, message: &str, reason: &str, next: &str) -> Status {
    let info = HashMap::from([("next_step".to_owned(), next.to_owned())]);
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info(reason, "longshore", info),
    )
}

fn not_found(kind: &str, name: impl std::fmt::Display) -> Status {
    error(
        Code::NotFound,
        &format!("no {kind} is called {name}"),
        &format!("{kind}_not_found"),
        &format!("list them: longshore {kind} list"),
    )
}

#[derive(Clone)]
struct Service(Arc<Mutex<World>>);

impl Service {
    fn enter(&self, call: &'static str) -> Result<MutexGuard<'_, World>, Status> {
        let mut world = self.0.lock().unwrap();
        if let Some(faults) = world.faults.get_mut(call)
            && !faults.is_empty()
        {
            return Err(faults.remove(0));
        }
        Ok(world)
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn reply<T>(message: T) -> Reply<T> {
    Ok(Response::new(message))
}

/// A page of `all`; the token is the position.
fn page<T: Clone>(all: &[T], size: u32, token: &str) -> (Vec<T>, String) {
    let start: usize = token.parse().unwrap_or(0);
    let size = if size == 0 { 100 } else { size.min(1_000) } as usize;
    let items: Vec<T> = all.iter().skip(start).take(size).cloned().collect();
    let end = start + items.len();
    let next = if end < all.len() {
        end.to_string()
    } else {
        String::new()
    };
    (items, next)
}

fn find_runner(world: &World, name: &str) -> Result<Runner, Status> {
    let hits: Vec<_> = world
        .runners
        .iter()
        .filter(|r| r.name.starts_with(name) || r.container_id.starts_with(name))
        .collect();
    match hits.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(not_found("runner", name)),
        _ => Err(error(
            Code::InvalidArgument,
            &format!("{name} is the beginning of {} runners", hits.len()),
            "ambiguous_name",
            "give more of the name",
        )),
    }
}

fn find_node(world: &mut World, name: &str) -> Result<Node, Status> {
    let node = world.nodes.iter().find(|n| n.name == name).cloned();
    node.ok_or_else(|| not_found("node", name))
}

#[tonic::async_trait]
impl FleetService for Service {
    type StreamRunnerLogsStream = Streamed<StreamRunnerLogsResponse>;
    type WatchFleetStream = Streamed<WatchFleetResponse>;

    async fn start_autoscaler(
        &self,
        request: Request<StartAutoscalerRequest>,
    ) -> Reply<StartAutoscalerResponse> {
        let mut world = self.enter("start_autoscaler")?;
        let request = request.into_inner();
        world.calls.push(Call::Start(request.clone()));
        let was_running = world.status.running;
        world.status.running |= !request.validate_only;
        reply(StartAutoscalerResponse {
            settings: request.settings,
            was_running,
        })
    }

    async fn stop_autoscaler(
        &self,
        request: Request<StopAutoscalerRequest>,
    ) -> Reply<StopAutoscalerResponse> {
        let mut world = self.enter("stop_autoscaler")?;
        world.calls.push(Call::Stop(request.into_inner()));
        let was_running = std::mem::take(&mut world.status.running);
        reply(StopAutoscalerResponse { was_running })
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Reply<GetStatusResponse> {
        let mut world = self.enter("get_status")?;
        world.calls.push(Call::Status);
        reply(world.status.clone())
    }

    async fn list_workflow_queues(
        &self,
        request: Request<ListWorkflowQueuesRequest>,
    ) -> Reply<ListWorkflowQueuesResponse> {
        let world = self.enter("list_workflow_queues")?;
        let r = request.into_inner();
        let prefix = format!("{}/", r.owner);
        let all: Vec<_> = world
            .queues
            .iter()
            .filter(|q| r.owner.is_empty() || q.repo.starts_with(&prefix))
            .cloned()
            .collect();
        let (queues, next_page_token) = page(&all, r.page_size, &r.page_token);
        reply(ListWorkflowQueuesResponse {
            queues,
            next_page_token,
            filtered: world.filtered.clone(),
        })
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Reply<ListJobsResponse> {
        let mut world = self.enter("list_jobs")?;
        let r = request.into_inner();
        world.calls.push(Call::Jobs(r.clone()));
        let all: Vec<_> = world
            .jobs
            .iter()
            .filter(|j| r.repo.is_empty() || j.repo == r.repo)
            .filter(|j| r.state.is_empty() || j.state == r.state)
            .cloned()
            .collect();
        let (jobs, next_page_token) = page(&all, r.page_size, &r.page_token);
        reply(ListJobsResponse {
            jobs,
            next_page_token,
        })
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Reply<GetJobResponse> {
        let world = self.enter("get_job")?;
        let id = request.into_inner().id;
        let job = world.jobs.iter().find(|j| j.id == id).cloned();
        let job = job.ok_or_else(|| not_found("job", id))?;
        reply(GetJobResponse { job: Some(job) })
    }

    async fn explain_job(&self, request: Request<ExplainJobRequest>) -> Reply<ExplainJobResponse> {
        let world = self.enter("explain_job")?;
        let id = request.into_inner().id;
        let found = world.explanations.get(&id).cloned();
        reply(found.ok_or_else(|| not_found("job", id))?)
    }

    async fn provision_runners(
        &self,
        request: Request<ProvisionRunnersRequest>,
    ) -> Reply<ProvisionRunnersResponse> {
        let mut world = self.enter("provision_runners")?;
        let request = request.into_inner();
        world.calls.push(Call::Provision(request.clone()));
        if !request.repo.is_empty() && !world.queues.iter().any(|q| q.repo == request.repo) {
            return Err(error(
                Code::NotFound,
                &format!("repository {} is not watched", request.repo),
                "repository_not_found",
                "list them: longshore runner list-workflows",
            ));
        }
        reply(ProvisionRunnersResponse {
            provisioned: world.provisioned.clone(),
        })
    }

    async fn list_runners(
        &self,
        request: Request<ListRunnersRequest>,
    ) -> Reply<ListRunnersResponse> {
        let world = self.enter("list_runners")?;
        let r = request.into_inner();
        let all: Vec<_> = world
            .runners
            .iter()
            .filter(|x| r.include_finished || x.status != "exited")
            .filter(|x| r.repo.is_empty() || x.repo == r.repo)
            .filter(|x| r.node.is_empty() || x.node == r.node)
            .cloned()
            .collect();
        let (runners, next_page_token) = page(&all, r.page_size, &r.page_token);
        reply(ListRunnersResponse {
            runners,
            next_page_token,
        })
    }

    async fn get_runner(&self, request: Request<GetRunnerRequest>) -> Reply<GetRunnerResponse> {
        let world = self.enter("get_runner")?;
        let runner = find_runner(&world, &request.into_inner().name)?;
        reply(GetRunnerResponse {
            runner: Some(runner),
        })
    }

    async fn stop_runner(&self, request: Request<StopRunnerRequest>) -> Reply<StopRunnerResponse> {
        let mut world = self.enter("stop_runner")?;
        let request = request.into_inner();
        world.calls.push(Call::StopRunner(request.clone()));
        let mut runner = find_runner(&world, &request.name)?;
        let job_cancelled = runner.status == "busy";
        runner.status = "stopping".into();
        reply(StopRunnerResponse {
            runner: Some(runner),
            job_cancelled,
        })
    }

    async fn stream_runner_logs(
        &self,
        request: Request<StreamRunnerLogsRequest>,
    ) -> Reply<Self::StreamRunnerLogsStream> {
        let mut world = self.enter("stream_runner_logs")?;
        let request = request.into_inner();
        world.calls.push(Call::Logs(request.clone()));
        let runner = find_runner(&world, &request.name)?;
        let chunks = world.logs.get(&runner.name).cloned().unwrap_or_default();
        let stream = tokio_stream::iter(chunks.into_iter().map(Ok));
        if request.follow {
            return reply(Box::pin(stream.chain(tokio_stream::pending())));
        }
        reply(Box::pin(stream))
    }

    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Reply<ListNodesResponse> {
        let world = self.enter("list_nodes")?;
        let r = request.into_inner();
        let (nodes, next_page_token) = page(&world.nodes, r.page_size, &r.page_token);
        reply(ListNodesResponse {
            nodes,
            next_page_token,
        })
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Reply<GetNodeResponse> {
        let mut world = self.enter("get_node")?;
        let node = find_node(&mut world, &request.into_inner().name)?;
        reply(GetNodeResponse { node: Some(node) })
    }

    async fn check_node(&self, request: Request<CheckNodeRequest>) -> Reply<CheckNodeResponse> {
        let mut world = self.enter("check_node")?;
        let request = request.into_inner();
        let node = find_node(&mut world, &request.name)?;
        reply(CheckNodeResponse {
            node: node.name,
            profile: request.profile,
            network_mode: request.network_mode,
            image: request.image,
            checks: world.checks.clone(),
            checked_at: at(0),
            took: Some(Default::default()),
        })
    }

    async fn cordon_node(&self, request: Request<CordonNodeRequest>) -> Reply<CordonNodeResponse> {
        let mut world = self.enter("cordon_node")?;
        let mut node = find_node(&mut world, &request.into_inner().name)?;
        node.state = "cordoned".into();
        reply(CordonNodeResponse { node: Some(node) })
    }

    async fn uncordon_node(
        &self,
        request: Request<UncordonNodeRequest>,
    ) -> Reply<UncordonNodeResponse> {
        let mut world = self.enter("uncordon_node")?;
        let node = find_node(&mut world, &request.into_inner().name)?;
        reply(UncordonNodeResponse { node: Some(node) })
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Reply<DrainNodeResponse> {
        let mut world = self.enter("drain_node")?;
        let request = request.into_inner();
        world.calls.push(Call::Drain(request.clone()));
        let mut node = find_node(&mut world, &request.name)?;
        node.state = "draining".into();
        reply(DrainNodeResponse { node: Some(node) })
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Reply<RemoveNodeResponse> {
        let mut world = self.enter("remove_node")?;
        find_node(&mut world, &request.into_inner().name)?;
        reply(RemoveNodeResponse {})
    }

    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> Reply<ListPoolsResponse> {
        let world = self.enter("list_pools")?;
        let r = request.into_inner();
        let (pools, next_page_token) = page(&world.pools, r.page_size, &r.page_token);
        reply(ListPoolsResponse {
            pools,
            next_page_token,
        })
    }

    async fn set_pool(&self, request: Request<SetPoolRequest>) -> Reply<SetPoolResponse> {
        let mut world = self.enter("set_pool")?;
        let request = request.into_inner();
        world.calls.push(Call::SetPool(Box::new(request.clone())));
        reply(SetPoolResponse { pool: request.pool })
    }

    async fn delete_pool(&self, request: Request<DeletePoolRequest>) -> Reply<DeletePoolResponse> {
        let world = self.enter("delete_pool")?;
        let name = request.into_inner().name;
        if !world.pools.iter().any(|p| p.name == name) {
            return Err(not_found("pool", name));
        }
        reply(DeletePoolResponse {})
    }

    async fn set_share(&self, request: Request<SetShareRequest>) -> Reply<SetShareResponse> {
        let mut world = self.enter("set_share")?;
        world.calls.push(Call::SetShare(request.into_inner()));
        reply(SetShareResponse {})
    }

    async fn watch_fleet(&self, _: Request<WatchFleetRequest>) -> Reply<Self::WatchFleetStream> {
        Err(Status::unimplemented("no command watches"))
    }
}

fn join_token(id: &str, node: &str) -> JoinToken {
    JoinToken {
        id: id.into(),
        node: node.into(),
        created_at: at(0),
        expires_at: at(3_600),
        created_by: "local".into(),
        ..JoinToken::default()
    }
}

#[tonic::async_trait]
impl AdminService for Service {
    /// Says which token came with the call.
    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Reply<WhoAmIResponse> {
        let shown = request.metadata().get("authorization");
        let shown = shown.and_then(|value| value.to_str().ok()).unwrap_or("");
        reply(WhoAmIResponse {
            name: shown.into(),
            role: "admin".into(),
            ..WhoAmIResponse::default()
        })
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Reply<CreateTokenResponse> {
        let asked = request.into_inner();
        let token = Token {
            id: "00ff".into(),
            name: asked.name.clone(),
            role: asked.role.clone(),
            scope: asked.scope.clone(),
            state: "valid".into(),
            ..Token::default()
        };
        let mut world = self.enter("create_token")?;
        world.calls.push(Call::Token(CreateTokenRequest {
            request_id: String::new(),
            ..asked
        }));
        reply(CreateTokenResponse {
            token: Some(token),
            secret: "lst_made".into(),
        })
    }

    async fn list_tokens(&self, _: Request<ListTokensRequest>) -> Reply<ListTokensResponse> {
        reply(ListTokensResponse {
            tokens: vec![Token {
                id: "00ff".into(),
                name: "ci".into(),
                role: "viewer".into(),
                scope: "acme".into(),
                state: "valid".into(),
                expires_at: at(3_600),
                ..Token::default()
            }],
            ..ListTokensResponse::default()
        })
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Reply<RevokeTokenResponse> {
        let token = Token {
            name: request.into_inner().token,
            state: "revoked".into(),
            ..Token::default()
        };
        reply(RevokeTokenResponse { token: Some(token) })
    }

    async fn list_audit(&self, request: Request<ListAuditRequest>) -> Reply<ListAuditResponse> {
        reply(ListAuditResponse {
            entries: vec![AuditEntry {
                id: 7,
                time: at(5),
                actor: "ada".into(),
                action: "FleetService/StopRunner".into(),
                subject: "ls-f-1".into(),
                outcome: request.into_inner().outcome,
                ..AuditEntry::default()
            }],
            ..ListAuditResponse::default()
        })
    }

    /// What was expected differs; without an expectation all is well.
    async fn verify_audit(
        &self,
        request: Request<VerifyAuditRequest>,
    ) -> Reply<VerifyAuditResponse> {
        let asked = request.into_inner();
        let whole = asked.expected_hash.is_empty();
        reply(VerifyAuditResponse {
            whole,
            entries: 9,
            last_id: 9,
            last_hash: "ab".repeat(32),
            broken_id: asked.expected_id,
            problem: if whole { "" } else { "entry 4 is missing" }.into(),
            ..VerifyAuditResponse::default()
        })
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Reply<CreateJoinTokenResponse> {
        let mut world = self.enter("create_join_token")?;
        let asked = request.into_inner();
        let node = asked.node.clone();
        world.calls.push(Call::JoinToken(CreateJoinTokenRequest {
            request_id: String::new(),
            ..asked
        }));
        reply(CreateJoinTokenResponse {
            token: Some(join_token("0011", &node)),
            secret: "lsj_made".into(),
        })
    }

    async fn list_join_tokens(
        &self,
        _: Request<ListJoinTokensRequest>,
    ) -> Reply<ListJoinTokensResponse> {
        drop(self.enter("list_join_tokens")?);
        let mut used = join_token("0012", "");
        used.used_by = "n1".into();
        used.used_at = at(60);
        reply(ListJoinTokensResponse {
            tokens: vec![join_token("0011", "n2"), used],
        })
    }

    async fn revoke_join_token(
        &self,
        request: Request<RevokeJoinTokenRequest>,
    ) -> Reply<RevokeJoinTokenResponse> {
        drop(self.enter("revoke_join_token")?);
        let mut token = join_token(&request.into_inner().id, "");
        token.revoked_at = at(90);
        reply(RevokeJoinTokenResponse { token: Some(token) })
    }
}
