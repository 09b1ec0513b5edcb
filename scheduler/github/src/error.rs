//! Why a call to GitHub did not succeed, in words that say what to do.

use scheduler_core::model::{CredentialName, UtcMillis};

/// Outcome of a call that did not answer as hoped. Never carries a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error(
        "GitHub refused credential '{credential}' for {call} (401: {message}): the token is missing, expired or revoked. Put a fresh one into its file; it is read again at once"
    )]
    Unauthorized {
        credential: CredentialName,
        call: String,
        message: String,
    },
    /// `permissions` is the header `X-Accepted-GitHub-Permissions` (or the classic scopes), word for word.
    #[error(
        "credential '{credential}' may not {call} (403: {message}){}",
        permission_step(.permissions)
    )]
    Forbidden {
        credential: CredentialName,
        call: String,
        message: String,
        permissions: Option<String>,
    },
    #[error(
        "{call}: not found (404). It does not exist, or credential '{credential}' has no permission on it{}",
        permission_step(.permissions)
    )]
    NotFound {
        credential: CredentialName,
        call: String,
        permissions: Option<String>,
    },
    #[error("credential '{credential}' is rate limited by GitHub until {} ({reason})", show_utc(*.until))]
    RateLimited {
        credential: CredentialName,
        until: UtcMillis,
        reason: String,
    },
    #[error("{call}: GitHub answered {status}: {message}")]
    Refused {
        call: String,
        status: u16,
        message: String,
    },
    /// The call may or may not have had its effect.
    #[error("{call}: no usable answer from GitHub ({detail}); it may have happened nevertheless")]
    Unanswered { call: String, detail: String },
    /// Certainly never reached GitHub.
    #[error(
        "{call}: cannot reach GitHub ({detail}). Check network, proxy (HTTPS_PROXY, NO_PROXY) and CA file"
    )]
    Unreachable { call: String, detail: String },
    #[error("{call}: GitHub's answer is not understood ({detail})")]
    Malformed { call: String, detail: String },
    #[error("no credential serves {0}. Add a token or install the App there")]
    NoCredential(String),
    #[error("credential '{credential}' is not usable: {detail}")]
    Credential {
        credential: CredentialName,
        detail: String,
    },
}

fn permission_step(permissions: &Option<String>) -> String {
    match permissions {
        Some(text) => {
            format!(". GitHub asks for: {text}. Grant it to the App or token and accept the change")
        }
        None => String::new(),
    }
}

pub(crate) fn show_utc(millis: UtcMillis) -> String {
    i64::try_from(millis)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map(|time| format!("{time:.0}"))
        .unwrap_or_else(|| format!("{millis} ms"))
}
