//! A stand-in scheduler on the scheduler's own listeners: it admits whoever asks, and answers
//! each report with the same registration.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use longshore_proto::{
    join_token::JoinToken,
    v1::{
        self,
        attach_request::Message as Up,
        attach_response::Message as Down,
        node_service_server::{NodeService, NodeServiceServer},
    },
};
use longshore_scheduler::{
    clock::utc,
    serve::{Bounds, Listener},
    tls::Own,
};
use scheduler_identity::authority::Authority;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// As the scheduler's own.
pub(crate) const BOUNDS: Bounds = Bounds {
    connections: 16,
    header_timeout: Duration::from_secs(10),
    first: Duration::from_secs(10),
    idle: Duration::from_secs(600),
    streams: 64,
    requests: 64,
    body: None,
    keepalive: Duration::from_secs(10),
};

/// A join token that a stand-in of this authority takes.
pub(crate) fn join_token(authority: &Authority) -> String {
    let token = JoinToken {
        id: "0".repeat(16),
        secret: "0".repeat(64),
        authority: authority.fingerprint(),
    };
    token.text()
}

/// Signs whatever a host asks for.
pub(crate) fn enroll(
    authority: &Authority,
    asked: &v1::EnrollRequest,
) -> Result<v1::EnrollResponse, Status> {
    let issued = authority
        .admit(&asked.csr_pem, &asked.node, utc(), DAY)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(v1::EnrollResponse {
        certificate_pem: issued.pem,
        authority_pem: authority.certificate_pem().to_owned(),
        not_after: Some((UNIX_EPOCH + Duration::from_millis(issued.not_after)).into()),
        scheduler_time: Some(SystemTime::now().into()),
    })
}

/// Both listeners of the stand-in; they end with the process.
pub(crate) struct Echo {
    pub(crate) authority: Arc<Authority>,
    pub(crate) secure: SocketAddr,
    pub(crate) plain: SocketAddr,
}

impl Echo {
    pub(crate) async fn start(jit: Vec<u8>) -> Result<Self> {
        let authority = Arc::new(Authority::create("bench", utc())?);
        let own = Own::new(Arc::clone(&authority), Vec::new())?;
        let any: SocketAddr = "127.0.0.1:0".parse()?;
        let secure = Listener::bind("agents", "", any).await?;
        let secure = secure.with_tls(own.with_client_certificates()?);
        let plain = Listener::bind("agents without TLS", "", any).await?;
        let echo = Self {
            authority: Arc::clone(&authority),
            secure: secure.address,
            plain: plain.address,
        };
        for listener in [secure, plain] {
            let service = NodeServiceServer::new(Service {
                authority: Arc::clone(&authority),
                jit: jit.clone(),
            });
            let router = tonic::service::Routes::new(service).prepare();
            let (router, stop) = (router.into_axum_router(), CancellationToken::new());
            tokio::spawn(listener.serve(router, BOUNDS, stop, Duration::ZERO));
        }
        Ok(echo)
    }
}

struct Service {
    authority: Arc<Authority>,
    jit: Vec<u8>,
}

#[tonic::async_trait]
impl NodeService for Service {
    type AttachStream = ReceiverStream<Result<v1::AttachResponse, Status>>;

    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        enroll(&self.authority, request.get_ref()).map(Response::new)
    }

    async fn renew(
        &self,
        _: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unimplemented("no bench lives that long"))
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut up = request.into_inner();
        let (down, stream) = mpsc::channel(4);
        let jit = self.jit.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                if !matches!(message.message, Some(Up::Report(_))) {
                    continue;
                }
                let registration = v1::Registration {
                    runner: "ls-bench-1".to_owned(),
                    jit_config: jit.clone(),
                };
                let message = Some(Down::Registration(registration));
                if down.send(Ok(v1::AttachResponse { message })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn push_logs(
        &self,
        _: Request<Streaming<v1::PushLogsRequest>>,
    ) -> Result<Response<v1::PushLogsResponse>, Status> {
        Err(Status::unimplemented("no bench pushes output here"))
    }
}
