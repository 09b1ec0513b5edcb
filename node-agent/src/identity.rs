//! Who this node is: its key, its certificate and the authority, in files of its state folder.
//!
//! The key is made here and leaves the host never. The files are read anew for every
//! connection, so that a renewal, or a person who joins the host again, needs no restart.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use longshore_proto::join_token::JoinToken;
use longshore_proto::v1::node_service_client::NodeServiceClient;
use longshore_proto::v1::{EnrollRequest, RenewRequest};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::dial::{self, Address, Dial, connect};
use crate::pinned::Pinned;
use crate::wire;

const KEY: &str = "node.key";
/// The key of a host that is about to join.
const JOINING: &str = "joining.key";
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A renewal that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(20);

/// The folder with the identity. Debug shows no key.
#[derive(Clone, Debug)]
pub struct Identity {
    folder: PathBuf,
    node: String,
}

/// What is known of the certificate beside itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Facts {
    node: String,
    /// This host's clock at the issue, UTC milliseconds: nobody's clock is compared with another.
    received_ms: u64,
    /// Life at the issue, by the scheduler's clock.
    life_ms: u64,
}

impl Identity {
    pub fn new(state_dir: &Path, node: &str) -> Self {
        Self {
            folder: state_dir.join("identity"),
            node: node.to_owned(),
        }
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The host has joined, under this name.
    pub fn has_joined(&self) -> anyhow::Result<bool> {
        let Some(facts) = self.facts()? else {
            return Ok(false);
        };
        ensure!(
            facts.node == self.node,
            "this host joined as node {} and is called {} now: start the agent with --node {}, or join again with \
             a token for the other name",
            facts.node,
            self.node,
            facts.node
        );
        Ok(true)
    }

    fn facts(&self) -> anyhow::Result<Option<Facts>> {
        let path = self.path("identity.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                let folder = self.folder.display();
                format!(
                    "{} is damaged: remove {folder} and join again",
                    path.display()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// TLS with the node's certificate, for the scheduler and nobody else.
    pub fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let read = |name: &str| {
            let path = self.path(name);
            fs::read(&path).with_context(|| {
                let path = path.display();
                format!("cannot read {path}: join again with `longshore-agent join`")
            })
        };
        private(&self.path(KEY))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read("node.pem")?)
            .collect::<Result<_, _>>()
            .context("node.pem is damaged: join again")?;
        let key = PrivateKeyDer::from_pem_slice(&read(KEY)?)
            .map_err(|_| anyhow::anyhow!("node.key is damaged: join again"))?;
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(&read("ca.pem")?)
            .context("ca.pem is damaged: join again")?;
        roots.add(authority).context("ca.pem is damaged")?;
        let mut config = builder()?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates, key)
            .context("node.key and node.pem do not belong together: join again")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// Joins until it is done, refused, or `stop`.
    pub async fn join(
        &self,
        addresses: &[Address],
        token: &JoinToken,
        clock: &Clock,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => bail!("stopped before it had joined"),
                outcome = self.enroll(addresses, token, clock) => outcome?,
            };
            let Some(trouble) = outcome else {
                return Ok(());
            };
            warn!(error = format!("{trouble:#}"), "not joined yet");
            tokio::select! {
                () = stop.cancelled() => bail!("stopped before it had joined"),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One try. `Some` is what stood in the way and may pass; an error does not pass.
    async fn enroll(
        &self,
        addresses: &[Address],
        token: &JoinToken,
        clock: &Clock,
    ) -> anyhow::Result<Option<anyhow::Error>> {
        // Another than the one in use, which counts until this is done; the same in each try.
        let key = self.key(JOINING)?;
        let csr_pem = self.request(&key)?;
        let pinned = Arc::new(Pinned::new(&token.authority)?);
        let mut tls = builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&pinned) as _)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let channel = match connect(addresses, 0, &Arc::new(tls)).await {
            Ok((channel, _)) => channel,
            Err(error) if pinned.met_another() => {
                let why = "the scheduler at this address is not the one that made the join token: take one of that scheduler";
                return Err(error.context(why));
            }
            Err(error) => return Ok(Some(error)),
        };
        let request = EnrollRequest {
            node: self.node.clone(),
            join_token: token.text(),
            csr_pem,
        };
        let mut client = NodeServiceClient::new(channel);
        let answer = match tokio::time::timeout(CALL, client.enroll(request)).await {
            Err(_) => return Ok(Some(anyhow::anyhow!("the scheduler did not answer Enroll"))),
            Ok(Err(status)) if passes(status.code()) => return Ok(Some(dial::refusal(&status))),
            Ok(Err(status)) => return Err(dial::refusal(&status)),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        let life_ms = life(answer.not_after.as_ref(), answer.scheduler_time.as_ref());
        self.write("ca.pem", answer.authority_pem.as_bytes())?;
        fs::rename(self.path(JOINING), self.path(KEY)).context("the node's key cannot be kept")?;
        self.keep(&answer.certificate_pem, life_ms, clock)?;
        info!(node = self.node, "joined the fleet");
        Ok(None)
    }

    /// Renews the certificate at two thirds of its life, until `stop`.
    pub async fn renew(dial: Dial, clock: Clock, stop: CancellationToken) {
        loop {
            let due = dial.identity().due(&clock);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(due) => {}
            }
            // Someone may have joined the host again meanwhile.
            if !dial.identity().due(&clock).is_zero() {
                continue;
            }
            if let Err(error) = dial.identity().renew_once(&dial, &clock).await {
                warn!(
                    error = format!("{error:#}"),
                    "the certificate is not renewed"
                );
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
        }
    }

    /// Time until the renewal; at most an hour, since the files may change under us.
    fn due(&self, clock: &Clock) -> Duration {
        let hour = Duration::from_secs(3_600);
        let Ok(Some(facts)) = self.facts() else {
            return hour;
        };
        let passed = clock.now().utc_ms.saturating_sub(facts.received_ms);
        let left = (facts.life_ms / 3 * 2).saturating_sub(passed);
        Duration::from_millis(left).min(hour)
    }

    async fn renew_once(&self, dial: &Dial, clock: &Clock) -> anyhow::Result<()> {
        let csr_pem = self.request(&self.key(KEY)?)?;
        let channel = dial.connect().await?;
        let mut client = NodeServiceClient::new(channel);
        let asked = client.renew(RenewRequest { csr_pem });
        let answer = tokio::time::timeout(CALL, asked)
            .await
            .context("the scheduler did not answer Renew")?
            .map_err(|status| dial::refusal(&status))?
            .into_inner();
        let life_ms = life(answer.not_after.as_ref(), answer.scheduler_time.as_ref());
        self.keep(&answer.certificate_pem, life_ms, clock)?;
        info!("renewed the node's certificate");
        Ok(())
    }

    /// The certificate first and its facts last: only then the host has joined.
    fn keep(&self, certificate: &str, life_ms: u64, clock: &Clock) -> anyhow::Result<()> {
        self.write("node.pem", certificate.as_bytes())?;
        let facts = Facts {
            node: self.node.clone(),
            received_ms: clock.now().utc_ms,
            life_ms,
        };
        self.write("identity.json", &serde_json::to_vec(&facts)?)
    }

    /// The key in this file; made when there is none.
    fn key(&self, name: &str) -> anyhow::Result<KeyPair> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(pem) => {
                private(&path)?;
                KeyPair::from_pem(&pem).map_err(|_| {
                    anyhow::anyhow!("{} is damaged: remove it and join again", path.display())
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().context("no key could be made")?;
                self.write(name, key.serialize_pem().as_bytes())?;
                Ok(key)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn request(&self, key: &KeyPair) -> anyhow::Result<String> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, &self.node);
        let request = params
            .serialize_request(key)
            .context("no certificate could be asked for")?;
        Ok(request.pem()?)
    }

    /// Whole or not at all, and for this user only.
    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.path(name);
        let fresh = self.path(&format!("{name}.new"));
        let written = || -> io::Result<()> {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.folder)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        written().with_context(|| {
            let path = path.display();
            format!("cannot write {path}: check the folder's owner and free space")
        })
    }
}

/// Reads a join token from a file, or from standard input when it is called `-`.
pub fn read_token(file: &Path) -> anyhow::Result<JoinToken> {
    /// Much more than any token.
    const MOST: u64 = 4_096;
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => io::Read::read_to_string(&mut io::Read::take(io::stdin(), MOST), &mut text),
        _ => File::open(file)
            .and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, MOST), &mut text)),
    };
    read.with_context(|| format!("cannot read the join token from {}", file.display()))?;
    text.parse().with_context(|| {
        let file = file.display();
        format!(
            "what {file} holds is no join token; copy the line of `longshore node join-token` whole"
        )
    })
}

fn builder() -> anyhow::Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn private(path: &Path) -> anyhow::Result<()> {
    let mode = fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .mode();
    let path = path.display();
    ensure!(
        mode & 0o077 == 0,
        "{path} is the node's key and others than its owner may read or write it: chmod 600 {path}, or better join again"
    );
    Ok(())
}

/// What may pass by waiting; anything else is a decision.
fn passes(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Unknown | Code::Internal | Code::DeadlineExceeded | Code::Aborted
    )
}

fn life(not_after: Option<&prost_types::Timestamp>, now: Option<&prost_types::Timestamp>) -> u64 {
    let end = not_after.and_then(wire::utc_ms).unwrap_or(0);
    end.saturating_sub(now.and_then(wire::utc_ms).unwrap_or(0))
}
