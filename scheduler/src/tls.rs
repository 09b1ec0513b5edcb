//! TLS of the listeners: the authority's files, the scheduler's own certificate, client certificates.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use scheduler_core::model::UtcMillis;
use scheduler_identity::authority::{Authority, AuthorityError};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::utc,
    config::{Config, Listen},
};

/// Life of the scheduler's own certificate; replaced at half of it and at each start.
const SERVER_LIFE: Duration = Duration::from_secs(90 * 24 * 3_600);

/// Why the listeners cannot have TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}; restore it, or name other files in [identity]")]
    Read { path: String, source: io::Error },
    #[error("cannot write {path}: {source}; check the folder's owner and free space")]
    Write { path: String, source: io::Error },
    #[error(
        "{path} holds the authority's key and others than its owner may read or write it: chmod 600 {path}"
    )]
    Exposed { path: String },
    #[error("{path} belongs to user {owner} and this process is user {user}: chown it")]
    Owner { path: String, owner: u32, user: u32 },
    #[error(
        "{missing} is gone and {found} is there: restore it from a backup; with both removed a new authority is made, and every node joins again"
    )]
    Half { missing: String, found: String },
    #[error("{path}: {source}")]
    Authority {
        path: String,
        source: AuthorityError,
    },
    #[error("{path} cannot be used for the API: {detail}")]
    Unusable { path: String, detail: String },
    #[error(transparent)]
    Sign(#[from] AuthorityError),
    #[error("no TLS: {0}")]
    Rustls(String),
}

/// The authority of this fleet: given, kept in the state folder, or made there now.
pub fn authority(config: &Config, fleet: &str, now: UtcMillis) -> Result<Authority, TlsError> {
    if let Some((certificate, key)) = &config.identity.authority {
        return read(certificate, key);
    }
    let certificate = public_file(config);
    let key = config.state_dir.join("secrets").join("ca.key");
    match (certificate.exists(), key.exists()) {
        (true, true) => read(&certificate, &key),
        (false, false) => make(&certificate, &key, fleet, now),
        (has, _) => {
            let (found, missing) = if has {
                (&certificate, &key)
            } else {
                (&key, &certificate)
            };
            Err(TlsError::Half {
                missing: missing.display().to_string(),
                found: found.display().to_string(),
            })
        }
    }
}

/// Where everybody finds the authority's certificate.
pub fn public_file(config: &Config) -> PathBuf {
    match &config.identity.authority {
        Some((certificate, _)) => certificate.clone(),
        None => config.state_dir.join("ca.pem"),
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Authority, TlsError> {
    private(key)?;
    let text = |path: &Path| {
        fs::read_to_string(path).map_err(|source| TlsError::Read {
            path: path.display().to_string(),
            source,
        })
    };
    let secret = SecretString::from(text(key)?);
    Authority::from_pem(&text(certificate)?, &secret).map_err(|source| TlsError::Authority {
        path: certificate.display().to_string(),
        source,
    })
}

/// Refuses a key that another user could have read or put there.
fn private(path: &Path) -> Result<(), TlsError> {
    let metadata = fs::metadata(path).map_err(|source| TlsError::Read {
        path: path.display().to_string(),
        source,
    })?;
    let path = path.display().to_string();
    if metadata.mode() & 0o077 != 0 {
        return Err(TlsError::Exposed { path });
    }
    // Of this process's own folder: always there.
    let user = fs::metadata("/proc/self").map_or(metadata.uid(), |own| own.uid());
    let owner = metadata.uid();
    // A credential of systemd belongs to root.
    match owner == user || owner == 0 {
        true => Ok(()),
        false => Err(TlsError::Owner { path, owner, user }),
    }
}

fn make(
    certificate: &Path,
    key: &Path,
    fleet: &str,
    now: UtcMillis,
) -> Result<Authority, TlsError> {
    let authority = Authority::create(fleet, now)?;
    let folder = key.parent().unwrap_or(key);
    let failed = |path: &Path| {
        let path = path.display().to_string();
        |source| TlsError::Write { path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed(folder))?;
    // The key last: a certificate alone is told as a half, a key alone could be used.
    let secret = authority.key_pem();
    write(certificate, authority.certificate_pem(), 0o644).map_err(failed(certificate))?;
    write(key, secret.expose_secret(), 0o600).map_err(failed(key))?;
    tracing::info!(
        certificate = %certificate.display(),
        fingerprint = authority.fingerprint(),
        "made an authority for this fleet"
    );
    Ok(authority)
}

/// Whole or not at all.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    fs::File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// The certificate that listeners present; replaced while they run.
#[derive(Debug)]
pub struct Own {
    authority: Arc<Authority>,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
    key: ArcSwap<CertifiedKey>,
}

impl Own {
    /// Signs one for these names and addresses of this host.
    pub fn new(authority: Arc<Authority>, names: Vec<String>) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(default_provider());
        let key = sign(&authority, &names, &provider)?;
        Ok(Arc::new(Self {
            authority,
            names,
            provider,
            key: ArcSwap::from_pointee(key),
        }))
    }

    /// Replaces the certificate at half of its life until `stop`.
    pub async fn renew(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SERVER_LIFE / 2) => {}
            }
            match sign(&self.authority, &self.names, &self.provider) {
                Ok(key) => self.key.store(Arc::new(key)),
                Err(error) => tracing::error!(%error, "the scheduler's certificate grows old"),
            }
        }
    }

    /// For the nodes' listener: a client certificate of the authority, or none, which is
    /// enough to join.
    pub fn with_client_certificates(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.authority.certificate().clone())
            .map_err(|e| TlsError::Rustls(e.to_string()))?;
        let provider = Arc::clone(&self.provider);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|e| TlsError::Rustls(e.to_string()))?;
        let builder = self.builder()?.with_client_cert_verifier(clients);
        let mut config = builder.with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Every connection shows its certificate and is asked about it: no tickets.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// For the API: whoever calls has a token.
    pub fn without_client_certificates(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = self.builder()?.with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn builder(
        &self,
    ) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, TlsError> {
        ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Rustls(e.to_string()))
    }
}

/// What the API speaks: a given certificate, else the authority's off loopback. `None`: plain
/// text, which never leaves this host.
pub fn of_api(
    listen: &Listen,
    address: SocketAddr,
    own: &Arc<Own>,
) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    match &listen.api_certificate {
        Some((certificate, key)) => given(certificate, key).map(Some),
        None if address.ip().is_loopback() => Ok(None),
        None => own.without_client_certificates().map(Some),
    }
}

fn given(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    private(key)?;
    let unusable = |path: &Path| {
        let path = path.display().to_string();
        move |detail: String| TlsError::Unusable { path, detail }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| unusable(certificate)(e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key)(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Rustls(e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| unusable(certificate)(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

fn sign(
    authority: &Authority,
    names: &[String],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let signed = authority.serve(names, utc(), SERVER_LIFE)?;
    CertifiedKey::from_der(signed.chain, signed.key, provider)
        .map_err(|e| TlsError::Rustls(e.to_string()))
}

/// What clients on this host and elsewhere call it: loopback, the host's name, and what is
/// configured.
pub fn names(config: &Config) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let is_name = |name: &str| rustls::pki_types::DnsName::try_from(name).is_ok();
    names.extend(Some(host.trim().to_owned()).filter(|host| is_name(host)));
    let listen = &config.listen;
    for address in [listen.api, listen.nodes] {
        if !address.ip().is_unspecified() && !address.ip().is_loopback() {
            names.push(address.ip().to_string());
        }
    }
    names.extend(listen.names.iter().cloned());
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &str) -> Listen {
        Listen {
            api: address.parse().unwrap(),
            nodes: address.parse().unwrap(),
            webhooks: address.parse().unwrap(),
            webhook_rate: 1,
            api_rate: 1,
            names: Vec::new(),
            api_certificate: None,
        }
    }

    #[test]
    fn plain_text_never_leaves_this_host() {
        let authority = Authority::create("f1", utc()).unwrap();
        let own = Own::new(Arc::new(authority), Vec::new()).unwrap();
        for (address, plain) in [
            ("127.0.0.1:9000", true),
            ("[::1]:9000", true),
            ("0.0.0.0:9000", false),
            ("[::]:9000", false),
            ("192.0.2.1:9000", false),
        ] {
            let listen = listen(address);
            let tls = of_api(&listen, listen.api, &own).unwrap();
            assert_eq!(tls.is_none(), plain, "{address}");
        }
    }
}
