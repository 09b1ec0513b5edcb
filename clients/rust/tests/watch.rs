//! A watch goes on where it was, across broken connections, and gives up only
//! when it is refused. The scheduler here breaks the stream on purpose.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore_client::{Builder, Client, Error, Kind};
use longshore_proto::v1::WatchFleetResponse;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::{Body, BoxFuture, Context, Poll, StdError, http};
use tonic::{Request, Response, Status};

/// One opened stream: what it sends before it ends, or why it is refused.
type Script = Result<Vec<Result<WatchFleetResponse, Status>>, Status>;

#[derive(Clone, Default)]
struct Scheduler {
    scripts: Arc<Mutex<VecDeque<Script>>>,
    tokens: Arc<Mutex<Vec<u64>>>,
}

type Stream_ = Pin<Box<dyn Stream<Item = Result<WatchFleetResponse, Status>> + Send>>;

/// Only WatchFleet; the generated server wants all the calls.
impl<B> tonic::codegen::Service<http::Request<B>> for Scheduler
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        assert_eq!(
            request.uri().path(),
            "/longshore.v1.FleetService/WatchFleet"
        );
        let method = Watch(self.clone());
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec)
                .server_streaming(method, request)
                .await)
        })
    }
}

impl tonic::server::NamedService for Scheduler {
    const NAME: &'static str = "longshore.v1.FleetService";
}

struct Watch(Scheduler);

impl tonic::server::ServerStreamingService<longshore_proto::v1::WatchFleetRequest> for Watch {
    type Response = WatchFleetResponse;
    type ResponseStream = Stream_;
    type Future = BoxFuture<Response<Stream_>, Status>;

    fn call(&mut self, request: Request<longshore_proto::v1::WatchFleetRequest>) -> Self::Future {
        let scheduler = self.0.clone();
        Box::pin(async move {
            let token = request.into_inner().resume_token;
            scheduler.tokens.lock().unwrap().push(token);
            let script = scheduler.scripts.lock().unwrap().pop_front();
            let items = script.unwrap_or_else(|| Err(Status::permission_denied("enough")))?;
            let stream: Stream_ = Box::pin(tokio_stream::iter(items));
            Ok(Response::new(stream))
        })
    }
}

async fn serve(scheduler: Scheduler) -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(scheduler);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Builder::new(address.to_string()).build().unwrap()
}

fn change(resume_token: u64, snapshot: bool) -> Result<WatchFleetResponse, Status> {
    Ok(WatchFleetResponse {
        resume_token,
        snapshot,
        ..Default::default()
    })
}

#[tokio::test]
async fn a_broken_watch_goes_on_where_it_was() {
    let scheduler = Scheduler::default();
    scheduler.scripts.lock().unwrap().extend([
        Ok(vec![change(5, true), change(6, false)]),
        // Restarting: the stream breaks, then nobody is home.
        Ok(vec![change(7, false), Err(Status::internal("cut"))]),
        Err(Status::unavailable("starting")),
        // Too old by now: a snapshot comes first.
        Ok(vec![change(90, true)]),
    ]);
    let mut watch = serve(scheduler.clone()).await.watch_fleet(0);
    let mut seen = Vec::new();
    let refused = loop {
        match tokio::time::timeout(Duration::from_secs(20), watch.next())
            .await
            .expect("the watch goes on")
        {
            Ok(change) => seen.push((change.resume_token, change.snapshot)),
            Err(error) => break error,
        }
    };
    assert_eq!(seen, [(5, true), (6, false), (7, false), (90, true)]);
    assert_eq!(*scheduler.tokens.lock().unwrap(), [0, 6, 7, 7, 90]);
    assert_eq!(refused.kind(), Kind::Refused);
    assert_eq!(watch.resume_token(), 90);
}

#[tokio::test]
async fn a_watch_can_start_where_an_earlier_one_ended() {
    let scheduler = Scheduler::default();
    scheduler
        .scripts
        .lock()
        .unwrap()
        .push_back(Ok(vec![change(43, false)]));
    let mut watch = serve(scheduler.clone()).await.watch_fleet(42);
    assert_eq!(watch.next().await.unwrap().resume_token, 43);
    assert_eq!(*scheduler.tokens.lock().unwrap(), [42]);
}

#[tokio::test]
async fn nothing_is_connected_before_the_first_call_and_bad_addresses_are_refused_at_once() {
    assert!(Builder::new("http://127.0.0.1:1").build().is_ok());
    for address in ["", "http://", "unix:///x", "https://127.0.0.1:1", "a b"] {
        let error = Builder::new(address).build().unwrap_err();
        assert!(
            matches!(error, Error::Address { .. }),
            "{address:?}: {error}"
        );
        assert_eq!(error.kind(), Kind::Usage);
    }
}
