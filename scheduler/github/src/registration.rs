//! Just-in-time registrations: made, deleted, listed.

use scheduler_core::{
    input::RegistrationFailure,
    model::{CredentialName, RunnerName, Scope},
};
use secrecy::SecretString;

use crate::error::CallError;

/// What to register.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Fresh; never used before on this scope.
    pub runner: RunnerName,
    pub scope: Scope,
    pub credential: CredentialName,
    /// Exactly the labels the runner shall carry; GitHub adds none. 1 to 100.
    pub labels: Vec<String>,
    /// Runner group by name; `None`: the default group.
    pub runner_group: Option<String>,
    /// `_work` unless told otherwise.
    pub work_folder: String,
}

/// A runner GitHub now knows, and the one secret that lets it connect.
#[derive(Debug)]
pub struct Registered {
    pub github_id: u64,
    /// `encoded_jit_config`, base64 of JSON. Keep in memory only.
    pub jit: SecretString,
}

/// Why there is no registration: the core's word for it, and ours for people.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct RegisterError {
    pub failure: RegistrationFailure,
    #[source]
    pub error: CallError,
}
