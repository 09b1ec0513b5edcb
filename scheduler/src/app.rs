//! The composition root: everything is named once, started in order, and ended in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use longshore_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{
        admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN_SERVICE},
        fleet_service_server::{FleetServiceServer, SERVICE_NAME as FLEET_SERVICE},
        node_service_server::{NodeServiceServer, SERVICE_NAME as NODE_SERVICE},
    },
};
use scheduler_core::{
    Entropy, Fleet,
    input::{Command, Input},
    model::{JobId, JobPhase, NodeName},
};
use scheduler_store::TokenRow;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, health_reporter},
};
use tonic_web::GrpcWebLayer;
use tower::Layer;

use crate::{
    access::{
        Directory, Gate, denials, directory,
        local::{Local, LocalError},
        protect,
    },
    admission::Admissions,
    api::{
        admin::{Admins, Audit, Tokens},
        fleet::{Fleets, Parts as FleetParts},
        node::{NodeOf, Nodes},
        vitals::Vitals,
    },
    clock::{SystemClock, utc},
    config::{Config, WatchSettings},
    driver::{Driver, DriverError, Parts, Recovered},
    housekeeping,
    inbox::{Inbox, Request, inbox},
    links::Links,
    logs::Logs,
    metrics::{CredentialLabel, Metrics},
    ports::{Demand, GitHub, KnownJob, OpenJobs, Source, Store},
    quota,
    serve::{Bounds, ListenError, Listener, descriptors, requests::Whole},
    telemetry::trace,
    tls::{self, Own, TlsError},
    view::{self, View},
    web::{
        self, WebhookBounds,
        health::{self, Render, Stage},
    },
};

/// Batches of the sweep that may wait for the driver.
const SWEEPS: usize = 64;
/// Time open requests get to end.
const DRAIN: Duration = Duration::from_secs(3);

/// Connections of each listener, where so many files may be open.
const CONNECTIONS: usize = 8_192;
/// Bytes of one message to the API: the largest are pools.
const API_REQUEST: usize = 256 * 1024;
/// Bytes of one answer of the API.
const API_ANSWER: usize = 16 << 20;
/// Bytes of one message of a node, and to it.
const NODE_MESSAGE: usize = 4 << 20;

const API: Bounds = Bounds {
    connections: CONNECTIONS,
    header_timeout: Duration::from_secs(10),
    first: Duration::from_secs(15),
    idle: Duration::from_secs(300),
    streams: 256,
    requests: 8_192,
    // Every call's request is one message.
    body: Some(Whole {
        within: Duration::from_secs(15),
        bytes: 1 << 20,
    }),
    keepalive: Duration::from_secs(20),
};
const NODES: Bounds = Bounds {
    connections: CONNECTIONS,
    header_timeout: Duration::from_secs(10),
    first: Duration::from_secs(15),
    idle: Duration::from_secs(120),
    streams: 64,
    requests: 16_384,
    // Streams: the service bounds their messages and their silence.
    body: None,
    keepalive: Duration::from_secs(10),
};
const WEBHOOKS: Bounds = Bounds {
    connections: CONNECTIONS,
    header_timeout: Duration::from_secs(5),
    first: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    streams: 128,
    // Above the listener's own bound, whose answer is counted and told to the sweep.
    requests: 4_096,
    body: None,
    keepalive: Duration::from_secs(20),
};

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot keep logs in {path}: {source}; check the folder's owner and free space")]
    Logs {
        path: String,
        source: std::io::Error,
    },
    #[error("the operating system gave no randomness: {0}")]
    Entropy(String),
    #[error("reflection cannot be offered: {0}")]
    Reflection(String),
    #[error("the driver ended at once: {0}")]
    Driver(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("who may join cannot be read: {0}")]
    Admissions(#[from] scheduler_store::Error),
    #[error("failed to {0}")]
    Tokens(scheduler_store::Error),
    #[error(transparent)]
    Local(#[from] LocalError),
}

/// The three listeners, open before anything is served.
pub struct Listeners {
    api: Listener,
    nodes: Listener,
    webhooks: Listener,
}

/// Where the process listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub api: SocketAddr,
    pub nodes: SocketAddr,
    pub webhooks: SocketAddr,
}

impl Listeners {
    /// Opens all three.
    pub async fn bind(config: &Config) -> Result<Self, ListenError> {
        let listen = &config.listen;
        Ok(Self {
            api: Listener::bind("the API", "api-listen", listen.api).await?,
            nodes: Listener::bind("node agents", "node-listen", listen.nodes).await?,
            webhooks: Listener::bind("webhooks", "webhook-listen", listen.webhooks).await?,
        })
    }

    pub fn addresses(&self) -> Addresses {
        Addresses {
            api: self.api.address,
            nodes: self.nodes.address,
            webhooks: self.webhooks.address,
        }
    }
}

/// A scheduler at work.
pub struct Running {
    pub addresses: Addresses,
    /// Holds a token of role admin, for this host.
    pub token_file: PathBuf,
    pub inbox: Inbox,
    pub view: View,
    pub metrics: Metrics,
    settings: watch::Sender<WatchSettings>,
    stage: watch::Sender<Stage>,
    links: Arc<Links>,
    /// Listeners, sweeps and streams end by this ...
    serving: CancellationToken,
    /// ... and then the driver by this.
    driving: CancellationToken,
    servers: JoinSet<()>,
    driver: JoinHandle<Result<(), DriverError>>,
    view_task: JoinHandle<()>,
}

/// What a scheduler is made of. Tests bring a store and a GitHub of their own.
pub struct Wiring<S, H> {
    pub config: Config,
    pub listeners: Listeners,
    pub store: Arc<S>,
    /// The state for the driver and the same for the view, from `Recovered::load`.
    pub recovered: (Recovered, Fleet),
    pub github: H,
    pub webhook_bounds: WebhookBounds,
    /// Settings were stored by `StartAutoscaler` before.
    pub stored_settings: bool,
}

/// Recovers, configures and serves. Returns when every listener answers.
pub async fn start<S, H>(wiring: Wiring<S, H>) -> Result<Running, StartError>
where
    S: Store,
    H: GitHub + Demand + Source,
{
    let Wiring {
        config,
        listeners,
        store,
        recovered: (recovered, fleet),
        github,
        webhook_bounds,
        stored_settings,
    } = wiring;
    let addresses = listeners.addresses();
    let clock = SystemClock::new();
    let metrics = Metrics::new();
    let logs_path = config.state_dir.join("logs");
    let logs = Logs::open(&logs_path).map_err(|source| StartError::Logs {
        path: logs_path.display().to_string(),
        source,
    })?;
    let now = utc();
    let authority = Arc::new(tls::authority(&config, fleet.fleet_id(), now)?);
    let own = Own::new(Arc::clone(&authority), tls::names(&config))?;
    let admitted = Admissions::load(&*store).await?;
    let (sequence, snapshot) = (recovered.sequence, recovered.snapshot_sequence);
    let view = View::new(fleet, sequence, metrics.clone());
    let links = Arc::new(Links::default());
    let (inbox, outlet) = inbox();
    let (committed, facts) = mpsc::channel(view::BEHIND);
    let driver = Driver::new(
        recovered,
        Parts {
            store: Arc::clone(&store),
            github: github.clone(),
            link: Arc::clone(&links),
            clock,
            outlet,
            view: committed,
            entropy: entropy()?,
            metrics: metrics.clone(),
        },
    );
    let serving = CancellationToken::new();
    let driving = CancellationToken::new();
    let view_task = tokio::spawn(view.clone().run(facts, Arc::clone(&store), snapshot));
    let driver = tokio::spawn(driver.run(driving.clone()));
    configure(&inbox, &view, &config, stored_settings).await?;
    let tokens = store.tokens().await.map_err(StartError::Tokens)?;
    let (directory, uses) = Directory::new(tokens.clone());
    let token_file = local_token(&config, &tokens, &inbox, &directory).await?;

    let (settings, changes) = watch::channel(config.watch.clone());
    let watching = settings.clone();
    let vitals = Arc::new(Vitals::default());
    let admissions = Arc::new(Admissions::new(
        authority,
        admitted,
        inbox.clone(),
        config.identity.certificate_life,
    ));
    let nodes = Nodes {
        inbox: inbox.clone(),
        view: view.clone(),
        links: Arc::clone(&links),
        logs: logs.clone(),
        vitals: Arc::clone(&vitals),
        admissions: Arc::clone(&admissions),
        past: past(Arc::clone(&store)),
    };
    let admins = Admins::new(
        Arc::clone(&admissions),
        Tokens::new(directory.clone(), inbox.clone()),
        Audit::new(Arc::clone(&store)),
        &view.fleet(|fleet| fleet.fleet_id().to_owned()),
    );
    let fleets = Fleets::new(FleetParts {
        store: Arc::clone(&store),
        demand: github.clone(),
        inbox: inbox.clone(),
        view: view.clone(),
        logs: logs.clone(),
        links: Arc::clone(&links),
        vitals,
        admissions: Arc::clone(&admissions),
        clock: Arc::new(clock),
        settings,
        stop: serving.clone(),
        started_at: utc(),
    });
    let (stage, stages) = watch::channel(Stage::Ready);
    let webhooks = web::router(
        github.clone(),
        inbox.clone(),
        metrics.clone(),
        WebhookBounds {
            rate: config.listen.webhook_rate,
            ..webhook_bounds
        },
    );
    let render = render(view.clone(), metrics.clone(), github.clone());
    let (api, api_health) =
        api_router(fleets, admins, health::router(stages.clone(), render)).await?;
    let (denials, denied) = denials::denials();
    let gate = Gate::new(directory.clone(), denials, tls::names(&config));
    // Each caller has a rate, so the gate is first: it says who calls.
    let api = protect(quota::bounded(api, config.listen.api_rate), gate);
    let api = quota::bounded_by_address(api, config.listen.api_rate);
    let (node_api, node_health) = node_router(nodes).await;

    let mut servers = JoinSet::new();
    let api_services = &[FLEET_SERVICE, ADMIN_SERVICE];
    servers.spawn(end_told(api_health, api_services, stages.clone()));
    servers.spawn(end_told(node_health, &[NODE_SERVICE], stages));
    let stop = || serving.clone();
    servers.spawn(denials::write(denied, inbox.clone(), stop()));
    servers.spawn(directory::write_uses(
        directory,
        uses,
        inbox.clone(),
        stop(),
    ));
    let room = descriptors::share(descriptors::raise(), 3, CONNECTIONS);
    let bounds = |bounds: Bounds| Bounds {
        connections: room,
        ..bounds
    };
    let api_listener = match tls::of_api(&config.listen, addresses.api, &own)? {
        Some(tls) => listeners.api.with_tls(tls),
        // This host only.
        None => listeners.api,
    };
    servers.spawn(api_listener.serve(api, bounds(API), stop(), DRAIN));
    let nodes = listeners.nodes.with_tls(own.with_client_certificates()?);
    servers.spawn(nodes.serve(node_api, bounds(NODES), stop(), DRAIN));
    servers.spawn(own.renew(stop()));
    servers.spawn(
        listeners
            .webhooks
            .serve(webhooks, bounds(WEBHOOKS), stop(), DRAIN),
    );
    servers.spawn(housekeeping::run(
        store,
        view.clone(),
        logs,
        admissions,
        config.retention,
        stop(),
    ));
    let (found, sweeps) = mpsc::channel(SWEEPS);
    let reader = view.clone();
    let jobs: OpenJobs = Arc::new(move || reader.fleet(open_jobs));
    servers.spawn(github.watch(jobs, found, changes, stop()));
    servers.spawn(take_in(sweeps, inbox.clone(), view.clone(), stop()));
    Ok(Running {
        addresses,
        token_file,
        inbox,
        view,
        metrics,
        settings: watching,
        stage,
        links,
        serving,
        driving,
        servers,
        driver,
        view_task,
    })
}

impl Running {
    /// Waits for the driver to end by itself, which it does only by a failure.
    pub async fn failed(&mut self) -> String {
        match (&mut self.driver).await {
            Ok(Ok(())) => "the driver ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => format!("the driver panicked: {error}"),
        }
    }

    /// Brings the state and what is watched in line with a configuration that changed.
    pub async fn reconfigure(
        &self,
        config: &Config,
        stored_settings: bool,
    ) -> Result<(), StartError> {
        configure(&self.inbox, &self.view, config, stored_settings).await?;
        // Also when it is the same: GitHub is then connected to anew, with what may have changed there.
        self.settings.send_replace(config.watch.clone());
        Ok(())
    }

    /// Ends in order: listeners and streams, then the driver, then the view.
    pub async fn shutdown(mut self) {
        self.stage.send_replace(Stage::Stopping);
        self.serving.cancel();
        self.links.close_all();
        while self.servers.join_next().await.is_some() {}
        self.driving.cancel();
        if !self.driver.is_finished()
            && let Ok(Err(error)) = self.driver.await
        {
            tracing::error!(%error, "the driver did not end well");
        }
        if let Err(error) = self.view_task.await {
            tracing::error!(%error, "the view did not end well");
        }
    }

    /// Ends as a crash would: nothing is drained. For tests.
    pub async fn kill(mut self) {
        self.servers.abort_all();
        self.driver.abort();
        self.view_task.abort();
        self.links.close_all();
        while self.servers.join_next().await.is_some() {}
        let _ = (self.driver.await, self.view_task.await);
    }
}

fn entropy() -> Result<Entropy, StartError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| StartError::Entropy(error.to_string()))?;
    Ok(Entropy::from_bytes(seed))
}

/// Jobs that are not over, for the sweep to ask about.
fn open_jobs(fleet: &Fleet) -> Vec<KnownJob> {
    fleet
        .jobs()
        .filter(|job| job.phase() < JobPhase::Completed)
        .map(|job| KnownJob {
            id: job.seen.id,
            run_id: job.seen.run_id,
            attempt: job.seen.attempt,
            repository: job.seen.repository.clone(),
        })
        .collect()
}

/// Brings the state in line with the configuration before anything is served.
async fn configure(
    inbox: &Inbox,
    view: &View,
    config: &Config,
    stored_settings: bool,
) -> Result<(), StartError> {
    let mut inputs = vec![Input::Command(Command::Configure {
        pools: config.pools.clone(),
        shares: config.shares.clone(),
        defaults: Box::new(config.defaults.clone()),
    })];
    // Settings of the API live in the state too; flags given since stand over them.
    if stored_settings && view.fleet(Fleet::is_running) {
        inputs.push(Input::Command(Command::StartAutoscaler {
            max_runners: Some(config.watch.max_runners),
            image: Some(config.watch.image.clone()),
        }));
    }
    let committed = inbox.submit(inputs).await;
    let sequence = committed.map_err(|stopped| StartError::Driver(stopped.to_string()))?;
    view.reached(sequence).await;
    Ok(())
}

/// Makes sure that this host has a token file whose token is good.
async fn local_token(
    config: &Config,
    tokens: &[TokenRow],
    inbox: &Inbox,
    directory: &Directory,
) -> Result<PathBuf, StartError> {
    let local = Local::prepare(&config.state_dir, tokens, utc())?;
    if !local.changes.is_empty() {
        let request = Request {
            tokens: local.changes.clone(),
            audit: vec![local.entry()],
            ..Request::default()
        };
        let committed = inbox.submit(request).await;
        committed.map_err(|stopped| StartError::Driver(stopped.to_string()))?;
    }
    local.write()?;
    for change in local.changes {
        directory.change(change);
    }
    Ok(local.path)
}

async fn api_router<S: Store, D: Demand>(
    fleets: Fleets<S, D>,
    admins: Admins<S>,
    health_routes: Router,
) -> Result<(Router, HealthReporter), StartError> {
    let (reporter, grpc_health) = health_reporter();
    for service in [FLEET_SERVICE, ADMIN_SERVICE] {
        reporter
            .set_service_status(service, ServingStatus::Serving)
            .await;
    }
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| StartError::Reflection(error.to_string()))?;
    let admin_service = AdminServiceServer::new(admins)
        .max_decoding_message_size(API_REQUEST)
        .max_encoding_message_size(API_ANSWER);
    let fleet_service = FleetServiceServer::new(fleets)
        .max_decoding_message_size(API_REQUEST)
        .max_encoding_message_size(API_ANSWER);
    // grpc-web wraps each service: around the router it would answer plain GETs.
    let routes = Routes::from(health_routes)
        .add_service(GrpcWebLayer::new().layer(fleet_service))
        .add_service(GrpcWebLayer::new().layer(admin_service))
        .add_service(GrpcWebLayer::new().layer(grpc_health))
        .add_service(reflection);
    Ok((routes.prepare().into_axum_router(), reporter))
}

async fn node_router(nodes: Nodes) -> (Router, HealthReporter) {
    let (reporter, grpc_health) = health_reporter();
    reporter
        .set_service_status(NODE_SERVICE, ServingStatus::Serving)
        .await;
    let node_service = NodeServiceServer::new(nodes)
        .max_decoding_message_size(NODE_MESSAGE)
        .max_encoding_message_size(NODE_MESSAGE);
    let routes = Routes::new(node_service).add_service(grpc_health);
    (routes.prepare().into_axum_router(), reporter)
}

/// Says to whoever watches this service's health that it ends.
async fn end_told(
    reporter: HealthReporter,
    services: &'static [&'static str],
    mut stages: watch::Receiver<Stage>,
) {
    // A sender that is gone means the end as well.
    let _ = stages.wait_for(|stage| *stage == Stage::Stopping).await;
    for name in services.iter().copied().chain([""]) {
        reporter
            .set_service_status(name, ServingStatus::NotServing)
            .await;
    }
}

fn past<S: Store>(store: Arc<S>) -> NodeOf {
    Arc::new(move |runner| {
        let store = Arc::clone(&store);
        Box::pin(async move {
            let found = store.runners_by_prefix(runner.as_str(), 2).await.ok()?;
            let mut same = found.into_iter().filter(|row| row.name == runner);
            same.next().map(|row| NodeName::new(&row.node))
        })
    })
}

fn render<D: Demand>(view: View, metrics: Metrics, demand: D) -> Render {
    Arc::new(move || {
        metrics.sweeps.set(demand.sweep().iterations as i64);
        for rate in demand.rates() {
            let label = CredentialLabel {
                credential: rate.credential.to_string(),
                resource: rate.resource.clone(),
            };
            metrics
                .github_remaining
                .get_or_create(&label)
                .set(rate.remaining as i64);
            metrics
                .github_limit
                .get_or_create(&label)
                .set(rate.limit as i64);
        }
        view.render_metrics(utc())
    })
}

/// Hands the sweep's findings to the driver; a job seen for the first time begins a trace.
async fn take_in(
    mut sweeps: mpsc::Receiver<Vec<Input>>,
    inbox: Inbox,
    view: View,
    stop: CancellationToken,
) {
    loop {
        let mut inputs = tokio::select! {
            inputs = sweeps.recv() => match inputs {
                Some(inputs) => inputs,
                None => return,
            },
            () = stop.cancelled() => return,
        };
        for input in &mut inputs {
            if let Input::JobSeen(job) = input
                && job.traceparent.is_none()
                && is_new(&view, job.id)
            {
                let span = tracing::info_span!("sweep", otel.kind = "consumer", job = job.id.0);
                Arc::make_mut(job).traceparent = trace::traceparent(&span);
            }
        }
        if inbox.post(inputs).await.is_err() {
            return;
        }
    }
}

fn is_new(view: &View, job: JobId) -> bool {
    view.fleet(|fleet| fleet.job(job).is_none())
}
