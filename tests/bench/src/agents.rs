//! A thousand agents on one scheduler, over TLS: what each costs while nothing happens, and
//! how soon all are back after the scheduler died.
//!
//! The agents are connections of this process that do what a real one's link does: say hello,
//! report once a heartbeat, and come back with the same growing, jittered pauses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use longshore_agent::dial::Dial;
use longshore_e2e::fleet::{Listen, Scheduler, SchedulerSettings};
use longshore_proto::v1::{
    AttachRequest, CreateJoinTokenRequest, NodeReport, attach_request, attach_response,
    node_service_client::NodeServiceClient,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    fleet::{Fleet, Setup, repositories},
    idle::{cpu_seconds, resident_mib},
    node,
    row::Row,
};

const AGENTS: usize = 1_000;
const WINDOW: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(120);
/// As the agent's link has them.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Both ends of every connection, and some.
const FILES: u64 = 16_384;

pub(crate) async fn run() -> Result<Vec<Row>> {
    open_files()?;
    let repositories = repositories(1, 1);
    let mut fleet = Fleet::start(Setup {
        repositories: &repositories,
        ..Setup::default()
    })
    .await?;
    let before = resident_mib(fleet.scheduler.process.pid())?;
    let attached = Arc::new(AtomicUsize::new(0));
    let mut agents = JoinSet::new();
    for dial in join(&fleet).await? {
        agents.spawn(keep_attached(dial, Arc::clone(&attached)));
    }
    all(&attached).await?;
    let pid = fleet.scheduler.process.pid();
    let spent = cpu_seconds(pid)?;
    tokio::time::sleep(WINDOW).await;
    let share = (cpu_seconds(pid)? - spent) / WINDOW.as_secs_f64() * 100.0;
    let each = (resident_mib(pid)? - before) * 1_024.0 / AGENTS as f64;
    let back = restart(&mut fleet, &attached).await?;
    agents.shutdown().await;
    Ok(vec![
        Row::new(
            "agent_rss_1k",
            (each, "KiB"),
            ("bound; of the scheduler, each of 1,000 agents", 64.0),
            AGENTS,
        ),
        Row::new(
            "agents_idle_cpu_1k",
            (share, "%"),
            ("bound; of one core, over a minute", 3.0),
            1,
        ),
        Row::new(
            "agents_reattach_1k",
            (back.as_secs_f64(), "s"),
            ("bound; from the scheduler's start to the last agent", 10.0),
            AGENTS,
        ),
    ])
}

/// SIGKILL, and a new process at the same addresses; how long until everybody is back.
async fn restart(fleet: &mut Fleet, attached: &AtomicUsize) -> Result<Duration> {
    let listen: Listen = fleet.scheduler.listen.clone();
    fleet.scheduler.process.kill9().await?;
    let gone = Instant::now();
    while attached.load(Ordering::SeqCst) > 0 {
        ensure!(gone.elapsed() < PATIENCE, "agents do not notice the end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let settings = SchedulerSettings {
        listen: Some(listen),
        ..fleet.settings.clone()
    };
    let begun = Instant::now();
    fleet.scheduler = Scheduler::start(&fleet.binaries, fleet.folder.path(), &settings).await?;
    all(attached).await?;
    Ok(begun.elapsed())
}

async fn all(attached: &AtomicUsize) -> Result<()> {
    let begun = Instant::now();
    while attached.load(Ordering::SeqCst) < AGENTS {
        let so_far = attached.load(Ordering::SeqCst);
        ensure!(begun.elapsed() < PATIENCE, "{so_far} of {AGENTS} attached");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Each host joins by a token of its own.
async fn join(fleet: &Fleet) -> Result<Vec<Dial>> {
    let client = fleet.scheduler.client()?;
    stream::iter(0..AGENTS)
        .map(|at| {
            let client = &client;
            async move {
                let request = CreateJoinTokenRequest {
                    node: format!("agent-{at}"),
                    ..CreateJoinTokenRequest::default()
                };
                let made = client.create_join_token(request).await?;
                node::join(fleet, &format!("agent-{at}"), &made.secret).await
            }
        })
        .buffer_unordered(16)
        .try_collect()
        .await
}

async fn keep_attached(dial: Dial, attached: Arc<AtomicUsize>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        // However it ended, it begins again.
        let _ = attach(&dial, &attached).await;
        if begun.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn attach(dial: &Dial, attached: &AtomicUsize) -> Result<()> {
    let mut client = NodeServiceClient::new(dial.connect().await?);
    let (up, outgoing) = mpsc::channel(4);
    up.send(node::hello(dial.identity().node(), 1)).await?;
    let mut down = client
        .attach(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let welcome = down.message().await?.context("no Welcome")?;
    let Some(attach_response::Message::Welcome(welcome)) = welcome.message else {
        anyhow::bail!("no Welcome");
    };
    let heartbeat = welcome.heartbeat.context("a heartbeat")?;
    let heartbeat = Duration::try_from(heartbeat).context("a heartbeat")?;
    attached.fetch_add(1, Ordering::SeqCst);
    let ended = serve(&mut down, &up, heartbeat).await;
    attached.fetch_sub(1, Ordering::SeqCst);
    ended
}

async fn serve(
    down: &mut tonic::Streaming<longshore_proto::v1::AttachResponse>,
    up: &mpsc::Sender<AttachRequest>,
    heartbeat: Duration,
) -> Result<()> {
    let mut accepted = None;
    let mut tick = tokio::time::interval(heartbeat);
    loop {
        tokio::select! {
            message = down.message() => match message?.context("the end")?.message {
                Some(attach_response::Message::Intent(intent)) => accepted = intent.generation,
                _ => continue,
            },
            _ = tick.tick() => {}
        }
        let report = NodeReport {
            accepted,
            ..NodeReport::default()
        };
        let message = Some(attach_request::Message::Report(report));
        up.send(AttachRequest { message }).await?;
    }
}

/// This process holds a connection for each agent.
fn open_files() -> Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    let wanted = most.map_or(FILES, |most| most.min(FILES));
    let limit = Rlimit {
        current: Some(wanted),
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).context("raise the limit of open files")?;
    ensure!(
        wanted >= AGENTS as u64 * 2,
        "{wanted} open files are too few for {AGENTS} agents: raise `ulimit -Hn`"
    );
    Ok(())
}
