//! The scheduler under attack, and the calls it still has to answer.

use std::os::unix::fs::PermissionsExt;
use std::{cell::Cell, net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

const BINARY: &str = env!("CARGO_BIN_EXE_longshore-scheduler");
/// Nothing here takes longer unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// A call during an attack: two busy cores are shared with the attacker.
pub(crate) const SOON: Duration = Duration::from_secs(10);
const SECRET: &str = "hostile-test-secret";

/// One of the listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Api,
    Nodes,
    Webhooks,
}

impl Door {
    pub(crate) const ALL: [Self; 3] = [Self::Api, Self::Nodes, Self::Webhooks];
}

/// A byte stream, encrypted or not.
pub(crate) trait Wire: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Wire for T {}

pub(crate) struct Victim {
    child: Child,
    ready: serde_json::Value,
    tls: TlsConnector,
    folder: tempfile::TempDir,
}

impl Victim {
    pub(crate) async fn start() -> Self {
        Self::with_files(None).await
    }

    /// With at most so many open files.
    pub(crate) async fn with_files(most: Option<u64>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, SECRET).expect("written");
        // A secret that others may read is refused.
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&secret, private).expect("made private");
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let mut command = match most {
            None => Command::new(BINARY),
            Some(most) => {
                let mut shell = Command::new("sh");
                shell
                    .arg("-c")
                    .arg(format!("ulimit -n {most} && exec \"$0\" \"$@\""))
                    .arg(BINARY);
                shell
            }
        };
        command
            .env_clear()
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .args(["--api-listen", "127.0.0.1:0"])
            .args(["--node-listen", "127.0.0.1:0"])
            .args(["--webhook-listen", "127.0.0.1:0"])
            .arg("--webhook-secret-file")
            .arg(&secret)
            // Nobody answers there: GitHub has no part in this.
            .args(["--github-api-url", "http://127.0.0.1:1"])
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().expect("starts");
        let stdout = child.stdout.take().expect("piped");
        let mut line = String::new();
        let read = timeout(PATIENCE, BufReader::new(stdout).read_line(&mut line)).await;
        read.expect("ready in time").expect("readable");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON");
        let authority = ready["ca"].as_str().expect("the authority's file");
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(authority).expect("a certificate");
        roots.add(certificate).expect("a root");
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            child,
            ready,
            tls: TlsConnector::from(Arc::new(config)),
            folder,
        }
    }

    pub(crate) fn address(&self, door: Door) -> SocketAddr {
        let name = match door {
            Door::Api => "api",
            Door::Nodes => "nodes",
            Door::Webhooks => "webhooks",
        };
        let text = self.ready[name].as_str().expect("an address");
        text.parse().expect("an address")
    }

    /// A connection as a proper client would have it, TLS included.
    pub(crate) async fn dial(&self, door: Door) -> std::io::Result<Box<dyn Wire>> {
        let stream = TcpStream::connect(self.address(door)).await?;
        stream.set_nodelay(true)?;
        if door != Door::Nodes {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        Ok(Box::new(self.tls.connect(name, stream).await?))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("runs")
    }

    /// Memory of the process, bytes.
    pub(crate) fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(path).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|n| n.parse::<u64>().ok()).expect("a size") * 1024
    }

    /// Open sockets of the process.
    pub(crate) fn sockets(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        files
            .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// One proper call at each listener; the longest of them.
    pub(crate) async fn serves(&self) -> Duration {
        let mut longest = Duration::ZERO;
        for door in Door::ALL {
            let begun = Instant::now();
            let called = timeout(SOON, self.call(door)).await;
            called
                .unwrap_or_else(|_| panic!("no answer of {door:?} within {SOON:?}"))
                .unwrap_or_else(|error| panic!("{door:?}: {error}"));
            longest = longest.max(begun.elapsed());
        }
        longest
    }

    async fn call(&self, door: Door) -> std::io::Result<()> {
        let mut stream = self.dial(door).await?;
        let (request, wanted) = match door {
            Door::Api => (
                "GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".to_owned(),
                "HTTP/1.1 200",
            ),
            Door::Webhooks => {
                let body = "{\"zen\":\"Design for failure.\",\"hook_id\":1}";
                let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
                let tag = hmac::sign(&key, body.as_bytes());
                let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
                let request = format!(
                    "POST /webhooks/github HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                     x-github-event: ping\r\nx-hub-signature-256: sha256={hex}\r\n\
                     content-length: {}\r\n\r\n{body}",
                    body.len()
                );
                (request, "HTTP/1.1 202")
            }
            Door::Nodes => {
                // HTTP/2 with settings and a request nobody knows: answered at all is enough.
                return super::frames::answered(&mut stream).await;
            }
        };
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match answer.starts_with(wanted) {
            true => Ok(()),
            false => Err(std::io::Error::other(answer)),
        }
    }
}

/// Lets this test open so many files; fails where the machine does not.
pub(crate) fn allow_files(wanted: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        assert!(
            limit.maximum.is_none_or(|most| most >= wanted),
            "this test needs {wanted} open files and may have {:?}: raise the hard limit (`ulimit -Hn {wanted}`)",
            limit.maximum
        );
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit).expect("raised");
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `attack`, while proper calls are made again and again; the longest of them.
pub(crate) async fn meanwhile(victim: &Victim, attack: impl Future<Output = ()>) -> Duration {
    let longest = Cell::new(Duration::ZERO);
    let calls = async {
        loop {
            let took = victim.serves().await;
            longest.set(longest.get().max(took));
        }
    };
    tokio::select! {
        () = attack => {}
        () = calls => {}
    }
    // At least once also where the attack was over sooner than a call.
    longest.get().max(victim.serves().await)
}
