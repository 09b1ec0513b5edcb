//! Calls with an identity: limits before, token, retries, and errors in words after.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::Method;
use scheduler_core::model::CredentialName;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use tokio::{sync::Notify, time::sleep};

use crate::{
    config::{Config, ConfigError},
    credential::{Cached, IN_FLIGHT, Identity, Source, lock, utc_now},
    error::CallError,
    limits::Use,
    redact::redact,
    transport::{Answer, Ask, Silence, Transport},
    wire::{AccessToken, ErrorBody},
};

/// Longest wait for a free slot among the calls in flight.
const SLOT_TIMEOUT: Duration = Duration::from_secs(60);

/// One call in words and on the wire.
#[derive(Clone)]
pub(crate) struct Call {
    /// For errors: `list runners of acme`.
    pub(crate) words: String,
    pub(crate) ask: Ask,
    pub(crate) purpose: Use,
}

impl Call {
    pub(crate) fn get(words: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(Method::GET, Use::Read, words, target)
    }

    pub(crate) fn new(
        method: Method,
        purpose: Use,
        words: impl Into<String>,
        target: impl Into<String>,
    ) -> Self {
        Self {
            words: words.into(),
            ask: Ask {
                method,
                target: target.into(),
                body: None,
                etag: None,
            },
            purpose,
        }
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.ask.body = Some(body.into());
        self
    }

    pub(crate) fn etag(mut self, etag: Option<String>) -> Self {
        self.ask.etag = etag;
        self
    }
}

/// Everything needed to call GitHub as one of several identities.
pub(crate) struct Client {
    transport: Transport,
    identities: Mutex<BTreeMap<CredentialName, Arc<Identity>>>,
    /// Raised when a credential begins to rest or a registration was taken.
    pub(crate) budget_changed: Notify,
}

impl Client {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut identities = BTreeMap::new();
        for credential in &config.credentials {
            let identity = Identity::configured(credential)?;
            if identities
                .insert(credential.name.clone(), identity)
                .is_some()
            {
                return Err(ConfigError::DuplicateCredential(credential.name.clone()));
            }
        }
        Ok(Self {
            transport: Transport::new(config)?,
            identities: Mutex::new(identities),
            budget_changed: Notify::new(),
        })
    }

    pub(crate) fn identity(&self, name: &CredentialName) -> Option<Arc<Identity>> {
        lock(&self.identities).get(name).cloned()
    }

    pub(crate) fn identities(&self) -> Vec<Arc<Identity>> {
        lock(&self.identities).values().cloned().collect()
    }

    /// The identity of an installation, made on first use.
    pub(crate) fn installation(&self, app: &Arc<Identity>, id: u64) -> Arc<Identity> {
        let name = crate::credential::installation_name(&app.name, id);
        lock(&self.identities)
            .entry(name)
            .or_insert_with(|| Identity::installation(app, id))
            .clone()
    }

    pub(crate) fn forget_installation(&self, id: u64) {
        lock(&self.identities).retain(|_, identity| {
            !matches!(&identity.source, Source::Installation { id: known, .. } if *known == id)
        });
    }

    /// Calls and reads the JSON of the answer.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        identity: &Arc<Identity>,
        call: &Call,
    ) -> Result<(T, Answer), CallError> {
        let answer = self.call(identity, call).await?;
        let value = parse(call, &answer)?;
        Ok((value, answer))
    }

    /// Calls; reads are tried up to three times. `Ok` is 2xx or 304.
    pub(crate) async fn call(
        &self,
        identity: &Arc<Identity>,
        call: &Call,
    ) -> Result<Answer, CallError> {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(2)
            .with_jitter()
            .build();
        loop {
            let outcome = self.attempt(identity, call).await;
            let again = call.ask.method == Method::GET
                && outcome.as_ref().is_err_and(CallError::may_mend_itself);
            match delays.next() {
                Some(delay) if again => sleep(delay).await,
                _ => return outcome,
            }
        }
    }

    async fn attempt(&self, identity: &Arc<Identity>, call: &Call) -> Result<Answer, CallError> {
        self.check_rest(identity, call)?;
        let serial = lock(&identity.limits).serial(utc_now());
        let wanted = if serial { IN_FLIGHT } else { 1 };
        let _slot = tokio::time::timeout(SLOT_TIMEOUT, identity.slots.acquire_many(wanted))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| CallError::Unreachable {
                call: call.words.clone(),
                detail: format!("no free call slot within {} s", SLOT_TIMEOUT.as_secs()),
            })?;
        // A limit may have come while this call waited for its slot.
        self.check_rest(identity, call)?;
        let mut token = self.token(identity).await?;
        if identity.is_refused(utc_now(), &token) {
            return Err(CallError::Unauthorized {
                credential: identity.name.clone(),
                call: call.words.clone(),
                message: "refused a moment ago, not tried again yet".to_owned(),
            });
        }
        let mut answer = self.send(call, &token).await?;
        if answer.status == http::StatusCode::UNAUTHORIZED && self.renew(identity).await {
            token = self.token(identity).await?;
            answer = self.send(call, &token).await?;
        }
        if answer.status == http::StatusCode::UNAUTHORIZED {
            identity.set_refused(utc_now(), &token);
        }
        self.judge(identity, call, answer)
    }

    async fn send(&self, call: &Call, token: &SecretString) -> Result<Answer, CallError> {
        self.transport
            .send(&call.ask, token)
            .await
            .map_err(|silence| match silence {
                Silence::Unreachable(detail) => CallError::Unreachable {
                    call: call.words.clone(),
                    detail,
                },
                Silence::Unanswered(detail) => CallError::Unanswered {
                    call: call.words.clone(),
                    detail,
                },
            })
    }

    fn check_rest(&self, identity: &Identity, call: &Call) -> Result<(), CallError> {
        match lock(&identity.limits).resting(utc_now(), call.purpose) {
            Some(rest) => Err(CallError::RateLimited {
                credential: identity.name.clone(),
                until: rest.until,
                reason: rest.reason,
            }),
            None => Ok(()),
        }
    }

    fn judge(&self, identity: &Identity, call: &Call, answer: Answer) -> Result<Answer, CallError> {
        let now = utc_now();
        let status = answer.status.as_u16();
        let mut limits = lock(&identity.limits);
        limits.observe(now, call.purpose, &answer.headers);
        if answer.status.is_success() || status == 304 {
            drop(limits);
            identity.clear_problem();
            return Ok(answer);
        }
        let message = error_message(&answer);
        let rest = if matches!(status, 403 | 429) {
            limits.refused(
                now,
                status,
                &answer.headers,
                &String::from_utf8_lossy(&answer.body),
            )
        } else {
            None
        };
        drop(limits);
        if let Some(rest) = rest {
            self.budget_changed.notify_one();
            tracing::warn!(
                credential = %identity.name,
                until = %crate::error::show_utc(rest.until),
                reason = rest.reason,
                "GitHub limits this credential; it rests"
            );
            return Err(CallError::RateLimited {
                credential: identity.name.clone(),
                until: rest.until,
                reason: rest.reason,
            });
        }
        let permissions = asked_permissions(&answer);
        let credential = identity.name.clone();
        let words = call.words.clone();
        let error = match status {
            401 => CallError::Unauthorized {
                credential,
                call: words,
                message,
            },
            403 => CallError::Forbidden {
                credential,
                call: words,
                message,
                permissions,
            },
            404 => CallError::NotFound {
                credential,
                call: words,
                permissions,
            },
            _ => CallError::Refused {
                call: words,
                status,
                message,
            },
        };
        if status == 401 {
            identity.set_problem(now, error.to_string());
        }
        Err(error)
    }

    /// The token to send now.
    pub(crate) async fn token(&self, identity: &Arc<Identity>) -> Result<SecretString, CallError> {
        let unusable = |error: ConfigError| {
            identity.set_problem(utc_now(), error.to_string());
            CallError::Credential {
                credential: identity.name.clone(),
                detail: error.to_string(),
            }
        };
        match &identity.source {
            Source::Token(secret) | Source::Enterprise(secret) => secret.read().map_err(unusable),
            Source::App(app) => app.jwt(utc_now()).map_err(unusable),
            Source::Installation { app, id, cached } => {
                let mut cached = cached.lock().await;
                let now = utc_now();
                if let Some(known) = cached.as_ref().filter(|known| now < known.refresh_at) {
                    return Ok(known.token.clone());
                }
                match self.fetch_token(app, *id).await {
                    Ok(fresh) => {
                        let token = fresh.token.clone();
                        *cached = Some(fresh);
                        Ok(token)
                    }
                    // The old one is good for a few minutes more.
                    Err(error) => match cached.as_ref().filter(|known| now < known.expires_at) {
                        Some(known) => Ok(known.token.clone()),
                        None => Err(error),
                    },
                }
            }
        }
    }

    async fn fetch_token(&self, app: &Arc<Identity>, id: u64) -> Result<Cached, CallError> {
        let call = Call::new(
            Method::POST,
            Use::Write,
            format!("get a token for installation {id}"),
            format!("/app/installations/{id}/access_tokens"),
        );
        // The call as the App needs no installation token, so this ends here.
        let answer = Box::pin(self.call(app, &call)).await?;
        let token: AccessToken = parse(&call, &answer)?;
        let now = utc_now();
        let expires_at = crate::time::millis(&token.expires_at).unwrap_or(now + 3_600_000);
        // Refreshed at minute 50 to 55 of 60, installations apart from each other.
        let early = 600_000 - (id % 300) * 1000;
        Ok(Cached {
            token: token.token,
            refresh_at: expires_at.saturating_sub(early).max(now + 1_000),
            expires_at,
        })
    }

    /// After a 401: whether another token can be had. Once per call.
    async fn renew(&self, identity: &Identity) -> bool {
        match &identity.source {
            Source::Installation { cached, .. } => {
                cached.lock().await.take();
                true
            }
            Source::Token(secret) | Source::Enterprise(secret) => {
                // A file may have been replaced within one tick of its time stamp.
                secret.forget();
                true
            }
            Source::App(_) => false,
        }
    }

    /// Gives installation tokens back.
    pub(crate) async fn revoke_tokens(&self) {
        for identity in self.identities() {
            let Source::Installation { cached, .. } = &identity.source else {
                continue;
            };
            let Some(known) = cached.lock().await.take() else {
                continue;
            };
            let call = Call::new(
                Method::DELETE,
                Use::Write,
                "give the installation token back",
                "/installation/token",
            );
            if let Err(error) = self.send(&call, &known.token).await {
                tracing::debug!(credential = %identity.name, %error, "token not given back; it expires by itself");
            }
        }
    }
}

impl CallError {
    /// Worth a second try of a read.
    pub(crate) fn may_mend_itself(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status >= 500,
            Self::Unanswered { .. } | Self::Unreachable { .. } => true,
            _ => false,
        }
    }
}

pub(crate) fn parse<T: DeserializeOwned>(call: &Call, answer: &Answer) -> Result<T, CallError> {
    serde_json::from_slice(&answer.body).map_err(|error| CallError::Malformed {
        call: call.words.clone(),
        detail: redact(&error.to_string()).into_owned(),
    })
}

fn error_message(answer: &Answer) -> String {
    let text = serde_json::from_slice::<ErrorBody>(&answer.body).map_or_else(
        |_| String::from_utf8_lossy(&answer.body).trim().to_owned(),
        |body| body.summary(),
    );
    redact(&text).chars().take(300).collect()
}

/// What GitHub says the call needs: fine-grained permissions, else classic scopes.
fn asked_permissions(answer: &Answer) -> Option<String> {
    answer
        .header("x-accepted-github-permissions")
        .filter(|text| !text.trim().is_empty())
        .map(|text| format!("X-Accepted-GitHub-Permissions: {text}"))
        .or_else(|| {
            answer
                .header("x-accepted-oauth-scopes")
                .filter(|text| !text.trim().is_empty())
                .map(|text| format!("X-Accepted-OAuth-Scopes: {text}"))
        })
}
