//! A container engine of a node's own, as on a second host: in namespaces of its own, a veth pair away from
//! the simulator and, until identities exist, a tunnel away from the scheduler's loopback listener.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use bollard::Docker;
use longshore_e2e::demo::host_state::{self, HostState};
use tokio::task::{AbortHandle, block_in_place};

#[path = "../../../../../node-agent/tests/agent/engine.rs"]
mod engine;
#[path = "../../../../../node-agent/tests/agent/namespaces.rs"]
mod namespaces;

use engine::PrivateEngine;

/// This host's end of the pair and the simulator's. Both ends lie in namespaces of one test, so that every test may use them.
const HERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// An engine without live-restore, as its package leaves it.
pub(crate) const PLAIN: &str = "{}";
/// An engine whose containers outlive it.
pub(crate) const LIVE_RESTORE: &str = r#"{"live-restore": true}"#;

pub(crate) struct OwnEngine {
    engine: PrivateEngine,
    tunnel: Option<AbortHandle>,
    before: HostState,
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if let Some(tunnel) = &self.tunnel {
            tunnel.abort();
        }
    }
}

impl OwnEngine {
    /// Starts it, gives it the image and joins it to the simulator's namespace.
    pub(crate) async fn start(
        settings: &str,
        tools: Option<&Path>,
        image: &str,
        simulator: &str,
    ) -> Self {
        let engine = block_in_place(|| {
            let engine = PrivateEngine::start(settings, tools);
            engine.load(image);
            join(&engine, simulator);
            engine
        });
        let before = look(&engine).await;
        Self {
            engine,
            tunnel: None,
            before,
        }
    }

    pub(crate) fn socket(&self) -> String {
        self.engine.socket()
    }

    pub(crate) fn inside(&self) -> Vec<String> {
        inside(&self.engine)
    }

    pub(crate) async fn client(&self) -> Docker {
        client(&self.engine).await
    }

    /// What was there before the agent came.
    pub(crate) fn before(&self) -> &HostState {
        &self.before
    }

    pub(crate) async fn look(&self) -> HostState {
        look(&self.engine).await
    }

    /// Makes a loopback address of the host answer at the same loopback address in here, as `ssh -L` would.
    pub(crate) fn tunnel_to(&mut self, address: SocketAddr) {
        let listener = self.listen(address).expect("listen in the namespace");
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let tunnel = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // A scheduler that is down refuses; in here the connection then ends as well.
                    if let Ok(mut far) = tokio::net::TcpStream::connect(address).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        self.tunnel = Some(tunnel.abort_handle());
    }

    /// A socket stays in the namespace it was made in, so only one thread ever enters it.
    fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        namespaces::within(self.engine.keeper(), move || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// SIGKILL for the engine, and a new one over the same folder.
    pub(crate) fn crash(&mut self) {
        block_in_place(|| {
            self.engine.kill();
            self.engine.start_again();
        });
    }
}

/// Words before a program that is to run in its namespaces.
fn inside(engine: &PrivateEngine) -> Vec<String> {
    ["nsenter", "-t", &engine.keeper().to_string(), "-m", "-n"]
        .map(str::to_owned)
        .to_vec()
}

async fn client(engine: &PrivateEngine) -> Docker {
    Docker::connect_with_unix(&engine.socket(), 60, bollard::API_DEFAULT_VERSION)
        .unwrap()
        .negotiate_version()
        .await
        .expect("the private engine answers")
}

async fn look(engine: &PrivateEngine) -> HostState {
    let mut state = host_state::look_inside(&client(engine).await, &inside(engine))
        .await
        .unwrap();
    // The names of network namespaces lie in a folder that all of the host share.
    state.networks.retain(|key, _| !key.starts_with("netns "));
    state
}

/// The pair: neither end is ever in the host's own namespace, whose rules stay out of it.
fn join(engine: &PrivateEngine, simulator: &str) {
    let ip = |inside: &[String], line: &str| {
        let mut words = inside
            .iter()
            .map(String::as_str)
            .chain(["ip"])
            .chain(line.split(' '));
        let output = Command::new(words.next().expect("a program"))
            .args(words)
            .output()
            .expect("run ip");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {line}: {stderr}");
    };
    let inside = inside(engine);
    let keeper = engine.keeper();
    ip(
        &[],
        &format!("link add up0 netns {keeper} type veth peer name down0 netns {simulator}"),
    );
    ip(&inside, &format!("addr add {HERE}/30 dev up0"));
    ip(&inside, "link set up0 up");
    ip(&inside, &format!("route add default via {THERE}"));
    ip(
        &[],
        &format!("-n {simulator} addr add {THERE}/30 dev down0"),
    );
    ip(&[], &format!("-n {simulator} link set down0 up"));
}
