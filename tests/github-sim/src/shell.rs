//! The shell: sockets, the real clock, webhooks out, keys, a network namespace. Decides nothing about GitHub.

mod control_api;
mod keys;
mod netns;
mod rest_face;
mod runner_face;
mod shared;
mod webhooks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::machine::{Limits, World, WorldConfig};

pub use netns::{Namespace, NetnsError};
use shared::Shared;

/// Where runners reach the simulator.
#[derive(Debug, Clone)]
pub enum RunnerListen {
    /// A plain socket.
    Address(SocketAddr),
    /// A socket inside a network namespace that is made for it. Needs root.
    Namespace(Namespace),
}

/// How a server is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub listen: SocketAddr,
    pub runner: RunnerListen,
    pub seed: u64,
    /// No limits at all.
    pub no_limits: bool,
    /// A GitHub Enterprise Server: no limits, and its headers at webhooks.
    pub ghes: bool,
    /// The clock stands until the control API moves it.
    pub virtual_clock: bool,
    /// RSA keys that registrations are made with, in turn; made at the start so that none is made while a caller waits.
    pub runner_keys: usize,
}

impl Default for Options {
    fn default() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: any,
            runner: RunnerListen::Address(any),
            seed: 1,
            no_limits: false,
            ghes: false,
            virtual_clock: false,
            runner_keys: 2,
        }
    }
}

/// What can go wrong at the start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {source}; choose another --listen or --runner-listen")]
    Listen {
        address: String,
        source: std::io::Error,
    },
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    #[error("cannot make an RSA key")]
    Key,
}

/// A running simulator.
pub struct Server {
    shared: Arc<Shared>,
    rest: SocketAddr,
    runner_url: String,
    namespace: Option<netns::Made>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Opens the sockets and serves.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let count = options.runner_keys.max(1);
        let runner_keys = tokio::task::spawn_blocking(move || keys::runner_keys(count))
            .await
            .ok()
            .flatten()
            .ok_or(StartError::Key)?;
        let rest_listener = listen(options.listen).await?;
        let rest = rest_listener
            .local_addr()
            .map_err(|e| listen_error(options.listen, e))?;
        let (runner_listener, namespace) = match options.runner {
            RunnerListen::Address(a) => (listen(a).await?, None),
            RunnerListen::Namespace(spec) => {
                let made = netns::make(&spec).await?;
                let listener = made.listen(spec.port).await?;
                (listener, Some(made))
            }
        };
        let runner = runner_listener
            .local_addr()
            .map_err(|e| listen_error(options.listen, e))?;
        let runner_url = if runner.port() == 80 {
            format!("http://{}", runner.ip())
        } else {
            format!("http://{runner}")
        };
        let cfg = WorldConfig {
            start_ms: shared::real_now_ms(),
            rest_url: format!("http://{rest}"),
            runner_url: runner_url.clone(),
            ghes: options.ghes,
            limits: if options.no_limits || options.ghes {
                Limits::off()
            } else {
                Limits::default()
            },
            ..WorldConfig::default()
        };
        let mut world = World::new(options.seed, cfg);
        world.set_runner_keys(runner_keys);
        let shared = Arc::new(Shared::new(world, options.virtual_clock));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(
            rest_listener,
            rest_face::router(Arc::clone(&shared)),
            stopped.clone(),
        ));
        tasks.spawn(serve(
            runner_listener,
            runner_face::router(Arc::clone(&shared)),
            stopped.clone(),
        ));
        tasks.spawn(shared::run_timers(Arc::clone(&shared), stopped));
        Ok(Self {
            shared,
            rest,
            runner_url,
            namespace,
            stop,
            tasks,
        })
    }

    /// `http://127.0.0.1:PORT`, the base of REST in the github.com form; `/api/v3` below it is the GHES form.
    pub fn rest_url(&self) -> String {
        format!("http://{}", self.rest)
    }

    pub fn control_url(&self) -> String {
        format!("http://{}/_sim", self.rest)
    }

    /// Where runners connect.
    pub fn runner_url(&self) -> &str {
        &self.runner_url
    }

    /// The name of the namespace the runner socket is in.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_ref().map(netns::Made::name)
    }

    /// Looks at or changes the world; what is due is sent afterwards.
    pub fn with<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        Shared::with(&self.shared, f)
    }

    /// Answers what is open, for at most five seconds, and takes everything down.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.shared.end();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), all)
            .await
            .is_err()
        {
            self.tasks.abort_all();
        }
        if let Some(ns) = self.namespace.take() {
            ns.remove().await;
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|e| listen_error(address, e))
}

fn listen_error(address: SocketAddr, source: std::io::Error) -> StartError {
    StartError::Listen {
        address: address.to_string(),
        source,
    }
}

async fn serve(listener: TcpListener, router: axum::Router, mut stopped: watch::Receiver<bool>) {
    use axum::serve::ListenerExt as _;
    let listener = listener.tap_io(|io| {
        // a request is one small write: it must not wait for an acknowledgement
        let _ = io.set_nodelay(true);
    });
    let stop = async move {
        // an error means the server was dropped
        let _ = stopped.wait_for(|s| *s).await;
    };
    if let Err(e) = axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
    {
        tracing::error!(error = %e, "a listener ended");
    }
}
