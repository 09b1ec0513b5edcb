//! Which engine a test runs on: the host's own Docker, a private one, or a private Podman.
//!
//! On a private engine the agent and everything else of a test is in the engine's
//! network namespace, so what is put up there is seen by nobody else.

use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::engine::PrivateEngine;
use crate::namespaces::{command, within};
use crate::podman::Podman;
use crate::support;

const HOST_SOCKET: &str = "/var/run/docker.sock";
/// gVisor by ptrace: its platform for KVM needs a processor's help that machines for tests lack.
/// With the kernel's network of the sandbox's own namespace: Debian 12's release takes every
/// namespace of a kernel newer than 6.8 for the host's and refuses to have a network of its own.
const RUNTIMES: &str = r#"{"runtimes": {
    "crun": {"path": "/usr/bin/crun"},
    "runsc": {"path": "/usr/bin/runsc", "runtimeArgs": ["--platform=ptrace", "--network=host"]}
}}"#;
/// crun takes the second hierarchy of a hybrid host for all of its control groups.
const PLAIN_GROUPS: &str =
    "{ ! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; }";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Docker,
    Podman,
}

#[derive(Clone)]
pub(crate) enum On {
    Host,
    Docker(Arc<Mutex<PrivateEngine>>),
    /// A private Docker, and the class of the runtime that makes every sandbox.
    Runtime(Arc<Mutex<PrivateEngine>>, &'static str),
    Podman(Arc<Podman>),
}

impl On {
    /// A private Podman, shared by the tests that run at the same time.
    pub(crate) fn podman() -> Self {
        static SHARED: Mutex<Weak<Podman>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|broken| broken.into_inner());
        let engine = shared.upgrade().unwrap_or_else(|| {
            let engine = Arc::new(Podman::start(&support::image()));
            *shared = Arc::downgrade(&engine);
            engine
        });
        Self::Podman(engine)
    }

    /// A private Docker of this test alone.
    pub(crate) fn own_docker() -> Self {
        Self::docker_with("{}")
    }

    /// A private Docker whose containers outlive it.
    pub(crate) fn docker_with_live_restore() -> Self {
        Self::docker_with(r#"{"live-restore": true}"#)
    }

    fn docker_with(settings: &str) -> Self {
        let engine = PrivateEngine::start(settings, None);
        engine.load(&support::image());
        Self::Docker(Arc::new(Mutex::new(engine)))
    }

    /// A private Docker with crun and gVisor, shared by the tests that run at the same
    /// time; sandboxes are asked to be made by this class.
    pub(crate) fn runtime(class: &'static str) -> Self {
        static SHARED: Mutex<Weak<Mutex<PrivateEngine>>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|broken| broken.into_inner());
        let engine = shared.upgrade().unwrap_or_else(|| {
            let engine = PrivateEngine::start_in(RUNTIMES, None, PLAIN_GROUPS);
            engine.load(&support::image());
            let engine = Arc::new(Mutex::new(engine));
            *shared = Arc::downgrade(&engine);
            engine
        });
        Self::Runtime(engine, class)
    }

    /// What a sandbox is asked to be made by; empty for the engine's own.
    pub(crate) fn runtime_class(&self) -> &'static str {
        match self {
            Self::Runtime(_, class) => class,
            _ => "",
        }
    }

    /// The private Docker, to be killed and started again.
    pub(crate) fn docker(&self) -> MutexGuard<'_, PrivateEngine> {
        match self {
            Self::Docker(engine) | Self::Runtime(engine, _) => engine.lock().unwrap(),
            _ => panic!("not on a private Docker"),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Host | Self::Docker(_) | Self::Runtime(..) => Kind::Docker,
            Self::Podman(_) => Kind::Podman,
        }
    }

    pub(crate) fn socket(&self) -> String {
        match self {
            Self::Host => HOST_SOCKET.into(),
            Self::Docker(_) | Self::Runtime(..) => self.docker().socket(),
            Self::Podman(engine) => engine.socket(),
        }
    }

    /// Process in the engine's network namespace, where that is not the host's.
    fn keeper(&self) -> Option<u32> {
        match self {
            Self::Host => None,
            Self::Docker(_) | Self::Runtime(..) => Some(self.docker().keeper()),
            Self::Podman(engine) => Some(engine.keeper()),
        }
    }

    /// A program in the network namespace of the engine.
    pub(crate) fn command(&self, program: &str) -> Command {
        match self.keeper() {
            None => Command::new(program),
            Some(keeper) => command(keeper, &["-n"], program),
        }
    }

    /// Runs a line of a shell there, which has to succeed.
    pub(crate) fn must(&self, line: &str) -> String {
        let output = self.command("sh").args(["-ec", line]).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {words}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same for a line that may as well fail.
    pub(crate) fn run(&self, line: &str) -> bool {
        let output = self.command("sh").args(["-ec", line]).output().unwrap();
        output.status.success()
    }

    /// Does something in the network namespace of the engine; what it opens stays there.
    pub(crate) fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.keeper() {
            None => work(),
            Some(keeper) => within(keeper, work),
        }
    }

    /// A listening socket in the network namespace of the engine.
    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        let address = address.to_owned();
        let listener = self.within(move || TcpListener::bind(&address).unwrap());
        listener.set_nonblocking(true).unwrap();
        listener
    }
}
