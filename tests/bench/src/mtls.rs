//! What mutual TLS adds to an assignment on its way to the agent.
//!
//! The scheduler's own listener serves a stream that answers each report with a registration:
//! once as it is shipped, over mutual TLS with the agent's own connections, once without TLS,
//! which the product does not offer. Rounds take turns, so that both see the same machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use longshore_agent::{
    clock::Clock,
    dial::{Dial, addresses},
    identity::Identity,
};
use longshore_proto::v1::{
    AttachRequest, AttachResponse, NodeReport, Registration, attach_request, attach_response,
    node_service_client::NodeServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel, transport::Endpoint};

use crate::{
    echo::{self, Echo},
    results::{keep_samples, percentile},
    row::Row,
};

const ROUNDS: usize = 20;
const EACH: usize = 500;
/// An encoded just-in-time configuration of GitHub has about so many bytes.
const JIT: usize = 4_096;
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn run() -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let echo = Echo::start(vec![b'j'; JIT]).await?;
    let identity = Identity::new(folder.path(), "bench");
    let places = addresses(&format!("https://{}", echo.secure)).map_err(anyhow::Error::msg)?;
    let stop = CancellationToken::new();
    let token = echo::join_token(&echo.authority).parse()?;
    identity
        .join(&places, &token, &Clock::system(), &stop)
        .await?;
    let mut secure = Stream::open(Dial::new(places, identity).connect().await?).await?;
    let plain = Endpoint::from_shared(format!("http://{}", echo.plain))?.tcp_nodelay(true);
    let mut plain = Stream::open(plain.connect().await?).await?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // Nothing is counted of the first: both warm up.
    for round in 0..=ROUNDS {
        for (stream, samples) in [(&mut secure, &mut with), (&mut plain, &mut without)] {
            for _ in 0..EACH {
                let took = stream.once().await?;
                if round > 0 {
                    samples.push(took.as_secs_f64() * 1_000.0);
                }
            }
        }
    }
    keep_samples("mtls_with", &with)?;
    keep_samples("mtls_without", &without)?;
    let added = percentile(&with, 0.5) - percentile(&without, 0.5);
    let reference = (
        "bound; report to registration, over the same without TLS",
        0.3,
    );
    Ok(vec![Row::new(
        "mtls_added_p50",
        (added, "ms"),
        reference,
        with.len(),
    )])
}

/// An attached stream.
struct Stream {
    up: mpsc::Sender<AttachRequest>,
    down: Streaming<AttachResponse>,
}

impl Stream {
    async fn open(channel: Channel) -> Result<Self> {
        let (up, outgoing) = mpsc::channel(4);
        let mut client = NodeServiceClient::new(channel);
        let down = client.attach(ReceiverStream::new(outgoing)).await?;
        Ok(Self {
            up,
            down: down.into_inner(),
        })
    }

    /// One report up, one registration down.
    async fn once(&mut self) -> Result<Duration> {
        let report = attach_request::Message::Report(NodeReport::default());
        let begun = Instant::now();
        let message = Some(report);
        self.up.send(AttachRequest { message }).await?;
        let answer = tokio::time::timeout(PATIENCE, self.down.message());
        let answer = answer.await.context("no answer")??.context("the end")?;
        let took = begun.elapsed();
        match answer.message {
            Some(attach_response::Message::Registration(Registration { .. })) => Ok(took),
            other => anyhow::bail!("not a registration: {other:?}"),
        }
    }
}
