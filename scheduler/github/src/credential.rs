//! Identities towards GitHub: where each token comes from and what it may still spend.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use octocrab::jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use scheduler_core::model::{CredentialName, UtcMillis};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::{
    config::{ConfigError, Credential, CredentialKind, SecretSource},
    guard,
    limits::Limits,
};

/// Calls in flight per credential.
pub(crate) const IN_FLIGHT: u32 = 8;

/// Milliseconds since 1970, the one clock of this crate's shell.
pub(crate) fn utc_now() -> UtcMillis {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

/// A lock that outlives a panic of its holder: the data behind is plain values.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A secret that is read again when its file changes.
pub(crate) struct Secret {
    source: SecretSource,
    what: &'static str,
    cached: Mutex<Option<(Stamp, SecretString)>>,
}

#[derive(Clone, Copy, PartialEq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Secret {
    pub(crate) fn new(source: SecretSource, what: &'static str) -> Self {
        Self {
            source,
            what,
            cached: Mutex::new(None),
        }
    }

    /// The current value. A file is read only when its time, size or inode changed.
    pub(crate) fn read(&self) -> Result<SecretString, ConfigError> {
        use std::os::unix::fs::MetadataExt;
        let path = match &self.source {
            SecretSource::Value { value, .. } => return Ok(value.clone()),
            SecretSource::File(path) => path,
        };
        let unreadable = |error: std::io::Error| ConfigError::Unreadable {
            what: self.what,
            path: path.clone(),
            error: error.to_string(),
        };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        // Also when the value is known: whoever opened the file may have changed it meanwhile.
        if let Some(why) = guard::problem(path, metadata.mode(), metadata.uid(), guard::own()) {
            return Err(ConfigError::Unusable {
                what: self.what,
                origin: path.display().to_string(),
                why,
            });
        }
        let stamp = Stamp {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode: metadata.ino(),
        };
        let mut cached = lock(&self.cached);
        if let Some((known, value)) = cached.as_ref()
            && *known == stamp
        {
            return Ok(value.clone());
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let text = text.trim();
        if text.is_empty() {
            return Err(ConfigError::Unusable {
                what: self.what,
                origin: path.display().to_string(),
                why: "the file is empty".to_owned(),
            });
        }
        let value = SecretString::from(text.to_owned());
        *cached = Some((stamp, value.clone()));
        Ok(value)
    }

    /// Reads the file again at the next use, even if it looks unchanged.
    pub(crate) fn forget(&self) {
        *lock(&self.cached) = None;
    }
}

/// One identity: a token, an App, or an App's installation on an account.
pub(crate) struct Identity {
    pub(crate) name: CredentialName,
    pub(crate) source: Source,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) slots: Semaphore,
    /// What is wrong with it now, and since when.
    pub(crate) problem: Mutex<Option<(String, UtcMillis)>>,
    /// The token GitHub refused last, and until when it is not tried again.
    refused: Mutex<Option<(SecretString, UtcMillis)>>,
}

/// A refused token is tried again after this long; GitHub locks out who insists.
const REFUSED_REST_MS: u64 = 60_000;

pub(crate) enum Source {
    Token(Secret),
    Enterprise(Secret),
    /// Asks as the App itself, with a JWT.
    App(App),
    Installation {
        app: Arc<Identity>,
        id: u64,
        /// Held while a token is fetched, so that there is one fetch at a time.
        cached: tokio::sync::Mutex<Option<Cached>>,
    },
}

pub(crate) struct App {
    id: String,
    key: Secret,
}

#[derive(Clone)]
pub(crate) struct Cached {
    pub(crate) token: SecretString,
    pub(crate) refresh_at: UtcMillis,
    pub(crate) expires_at: UtcMillis,
}

#[derive(Serialize)]
struct Claims<'a> {
    iat: u64,
    exp: u64,
    iss: &'a str,
}

impl App {
    /// A JWT that survives a minute of clock skew either way.
    pub(crate) fn jwt(&self, now: UtcMillis) -> Result<SecretString, ConfigError> {
        let unusable = |why: String| ConfigError::Unusable {
            what: "the GitHub App's private key",
            origin: format!("App {}", self.id),
            why: format!("{why}. It must be the PEM file that GitHub handed out"),
        };
        let pem = self.key.read()?;
        let key = EncodingKey::from_rsa_pem(pem.expose_secret().as_bytes())
            .map_err(|error| unusable(error.to_string()))?;
        let seconds = now / 1000;
        let claims = Claims {
            iat: seconds.saturating_sub(60),
            exp: seconds + 9 * 60,
            iss: &self.id,
        };
        encode(&Header::new(Algorithm::RS256), &claims, &key)
            .map(SecretString::from)
            .map_err(|error| unusable(error.to_string()))
    }
}

impl Identity {
    fn with_source(name: CredentialName, source: Source) -> Arc<Self> {
        Arc::new(Self {
            name,
            source,
            limits: Mutex::new(Limits::new(utc_now())),
            slots: Semaphore::new(IN_FLIGHT as usize),
            problem: Mutex::new(None),
            refused: Mutex::new(None),
        })
    }

    /// Reads the files once, so that a wrong path is told at start.
    pub(crate) fn configured(credential: &Credential) -> Result<Arc<Self>, ConfigError> {
        let source = match &credential.kind {
            CredentialKind::Token(source) => {
                let secret = Secret::new(source.clone(), "the GitHub token file");
                secret.read()?;
                Source::Token(secret)
            }
            CredentialKind::EnterpriseToken(source) => {
                let secret = Secret::new(source.clone(), "the enterprise token file");
                secret.read()?;
                Source::Enterprise(secret)
            }
            CredentialKind::App { id, key } => {
                let app = App {
                    id: id.clone(),
                    key: Secret::new(key.clone(), "the GitHub App's key file"),
                };
                app.jwt(utc_now())?;
                Source::App(app)
            }
        };
        Ok(Self::with_source(credential.name.clone(), source))
    }

    pub(crate) fn installation(app: &Arc<Self>, id: u64) -> Arc<Self> {
        Self::with_source(
            installation_name(&app.name, id),
            Source::Installation {
                app: app.clone(),
                id,
                cached: tokio::sync::Mutex::new(None),
            },
        )
    }

    pub(crate) fn set_problem(&self, now: UtcMillis, detail: String) {
        let mut problem = lock(&self.problem);
        let since = problem.as_ref().map_or(now, |(_, since)| *since);
        *problem = Some((detail, since));
    }

    pub(crate) fn clear_problem(&self) {
        *lock(&self.problem) = None;
        *lock(&self.refused) = None;
    }

    pub(crate) fn set_refused(&self, now: UtcMillis, token: &SecretString) {
        *lock(&self.refused) = Some((token.clone(), now + REFUSED_REST_MS));
    }

    /// GitHub refused this very token a moment ago.
    pub(crate) fn is_refused(&self, now: UtcMillis, token: &SecretString) -> bool {
        lock(&self.refused)
            .as_ref()
            .is_some_and(|(refused, until)| {
                now < *until && refused.expose_secret() == token.expose_secret()
            })
    }
}

/// Name of an installation's credential.
pub(crate) fn installation_name(app: &CredentialName, id: u64) -> CredentialName {
    CredentialName::new(format!("{app}/{id}"))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &std::path::Path, text: &str) {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let mut options = std::fs::OpenOptions::new();
        options.create(true).write(true).truncate(true).mode(0o600);
        let mut file = options.open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_file_that_others_may_read_or_change_is_refused_even_when_its_value_is_known() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        write(&path, "ghp_neverprinted");
        let secret = Secret::new(SecretSource::File(path.clone()), "the token");
        for (mode, good) in [
            (0o600, true),
            (0o644, false),
            (0o400, true),
            (0o620, false),
            (0o640, true),
            (0o606, false),
        ] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).unwrap();
            match secret.read() {
                Ok(_) => assert!(good, "{mode:o} was taken"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!good, "{mode:o}: {error}");
                    assert!(
                        error.contains("chmod 600") && error.contains("the token"),
                        "{error}"
                    );
                    assert!(!error.contains("neverprinted"));
                }
            }
        }
    }

    #[test]
    fn a_replaced_file_is_read_again_and_an_unchanged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        write(&path, "ghp_one\n");
        let secret = Secret::new(SecretSource::File(path.clone()), "the token");
        assert_eq!(secret.read().unwrap().expose_secret(), "ghp_one");
        let fresh = folder.path().join("fresh");
        write(&fresh, "ghp_two");
        std::fs::rename(&fresh, &path).unwrap();
        assert_eq!(secret.read().unwrap().expose_secret(), "ghp_two");
        write(&path, "  \n");
        let error = secret.read().unwrap_err().to_string();
        assert!(
            error.contains("empty") && error.contains("token"),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        assert!(secret.read().unwrap_err().to_string().contains("readable"));
    }

    #[test]
    fn a_wrong_key_is_told_without_showing_it() {
        let app = App {
            id: "12".into(),
            key: Secret::new(
                SecretSource::Value {
                    origin: "test".into(),
                    value: "not a key at all".to_owned().into(),
                },
                "key",
            ),
        };
        let error = app.jwt(0).unwrap_err().to_string();
        assert!(
            error.contains("App 12") && !error.contains("not a key at all"),
            "{error}"
        );
    }
}
