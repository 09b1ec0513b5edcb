//! Carrying out what the state owes GitHub: bounded, each once at a time, always answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use scheduler_core::{
    effect::{Effect, EffectKey},
    input::{Deregistration, Input, RegistrationFailure},
    model::{CredentialName, RunnerName},
};
use secrecy::SecretString;
use tokio::sync::{Semaphore, mpsc};
use tracing::Instrument;

use crate::{
    metrics::{Metrics, ResultLabel},
    ports::{GitHub, Registered, Registration, RegistrationFailed},
    telemetry::trace,
};

/// Calls in flight per credential and kind.
const IN_FLIGHT: usize = 8;
/// A call that took longer has an unknown outcome. The client's own timeout is shorter.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Answers waiting for the driver.
const ANSWERS: usize = 256;

/// A call to GitHub that ended.
#[derive(Debug)]
pub enum Settled {
    Registration {
        runner: RunnerName,
        result: Result<Registered, RegistrationFailed>,
    },
    Deregistration {
        runner: RunnerName,
        outcome: Deregistration,
    },
}

impl Settled {
    fn key(&self) -> EffectKey {
        match self {
            Self::Registration { runner, .. } => EffectKey::Register(runner.clone()),
            Self::Deregistration { runner, .. } => EffectKey::Deregister(runner.clone()),
        }
    }
}

/// Calls to GitHub under way.
pub struct Effects<G> {
    github: G,
    metrics: Metrics,
    in_flight: BTreeSet<EffectKey>,
    gates: BTreeMap<(CredentialName, bool), Arc<Semaphore>>,
    sender: mpsc::Sender<Settled>,
    receiver: mpsc::Receiver<Settled>,
}

impl<G: GitHub> Effects<G> {
    pub fn new(github: G, metrics: Metrics) -> Self {
        let (sender, receiver) = mpsc::channel(ANSWERS);
        Self {
            github,
            metrics,
            in_flight: BTreeSet::new(),
            gates: BTreeMap::new(),
            sender,
            receiver,
        }
    }

    /// The next answer. Never ends: this end holds a sender too.
    pub async fn next(&mut self) -> Option<Settled> {
        self.receiver.recv().await
    }

    /// An answer that is there already.
    pub fn try_next(&mut self) -> Option<Settled> {
        self.receiver.try_recv().ok()
    }

    pub fn is_in_flight(&self, key: &EffectKey) -> bool {
        self.in_flight.contains(key)
    }

    /// The answer's input is committed: the same effect may be tried again.
    pub fn forget(&mut self, key: &EffectKey) {
        self.in_flight.remove(key);
    }

    fn gate(&mut self, credential: &CredentialName, register: bool) -> Arc<Semaphore> {
        let gate = self.gates.entry((credential.clone(), register));
        Arc::clone(gate.or_insert_with(|| Arc::new(Semaphore::new(IN_FLIGHT))))
    }

    /// Starts a call unless it is under way. Intents are not GitHub's business.
    pub fn start(&mut self, effect: Effect, traceparent: Option<&str>) {
        let key = effect.key();
        if self.in_flight.contains(&key) {
            return;
        }
        match effect {
            Effect::Register {
                runner,
                scope,
                credential,
                labels,
                runner_group,
            } => {
                let gate = self.gate(&credential, true);
                let wanted = Registration {
                    runner,
                    scope,
                    credential,
                    labels,
                    runner_group,
                    work_folder: "_work".to_owned(),
                };
                self.in_flight.insert(key);
                self.register(wanted, gate, traceparent);
            }
            Effect::Deregister {
                runner,
                scope,
                credential,
                github_id,
            } => {
                let gate = self.gate(&credential, false);
                let github = self.github.clone();
                self.in_flight.insert(key);
                let name = runner.clone();
                let call = async move {
                    github
                        .deregister(runner, scope, credential, github_id)
                        .await
                };
                self.spawn(gate, call, move |outcome| Settled::Deregistration {
                    runner: name,
                    outcome: outcome.unwrap_or(Deregistration::Failed),
                });
            }
            Effect::SendIntent { .. } => {}
        }
    }

    fn register(&self, wanted: Registration, gate: Arc<Semaphore>, traceparent: Option<&str>) {
        let span = tracing::info_span!(
            "register",
            otel.kind = "client",
            runner = %wanted.runner,
            scope = %wanted.scope,
        );
        trace::set_parent(&span, traceparent);
        let github = self.github.clone();
        let metrics = self.metrics.clone();
        let runner = wanted.runner.clone();
        let call = async move { github.register(wanted).await }.instrument(span);
        self.spawn(gate, call, move |result| {
            let result = result.unwrap_or_else(|| {
                Err(RegistrationFailed {
                    failure: RegistrationFailure::Ambiguous,
                    detail: "the call to GitHub gave no answer in time".to_owned(),
                })
            });
            let word = match &result {
                Ok(_) => "ok",
                Err(failed) => failure_word(&failed.failure),
            };
            metrics
                .registrations
                .get_or_create(&ResultLabel { result: word })
                .inc();
            if let Err(failed) = &result {
                tracing::warn!(%runner, failure = word, detail = %failed.detail, "registration failed");
            }
            Settled::Registration { runner, result }
        });
    }

    /// Runs a call behind its gate and always answers: `None` after a timeout or a panic.
    fn spawn<T: Send + 'static>(
        &self,
        gate: Arc<Semaphore>,
        call: impl Future<Output = T> + Send + 'static,
        settled: impl FnOnce(Option<T>) -> Settled + Send + 'static,
    ) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            // The gate is never closed; without a permit the call would only be unbounded.
            let _permit = gate.acquire_owned().await;
            let call = tokio::spawn(tokio::time::timeout(CALL_TIMEOUT, call));
            let answer = match call.await {
                Ok(Ok(answer)) => Some(answer),
                Ok(Err(_)) => None,
                Err(error) => {
                    tracing::error!(%error, "a call to GitHub panicked");
                    None
                }
            };
            // Nobody listens any more: the next process asks again.
            let _ = sender.send(settled(answer)).await;
        });
    }
}

fn failure_word(failure: &RegistrationFailure) -> &'static str {
    match failure {
        RegistrationFailure::Ambiguous => "ambiguous",
        RegistrationFailure::RateLimited { .. } => "rate_limited",
        RegistrationFailure::Forbidden => "forbidden",
        RegistrationFailure::NotFound => "not_found",
        RegistrationFailure::Transient => "transient",
    }
}

/// Splits an answer: the core's input, the effect it settles, the secret if there is one.
pub(crate) fn split(settled: Settled) -> (Input, EffectKey, Option<(RunnerName, SecretString)>) {
    let key = settled.key();
    match settled {
        Settled::Registration { runner, result } => match result {
            Ok(Registered { github_id, jit }) => (
                Input::RegistrationReady {
                    runner: runner.clone(),
                    github_id,
                },
                key,
                Some((runner, jit)),
            ),
            Err(RegistrationFailed { failure, detail }) => (
                Input::RegistrationFailed {
                    runner,
                    failure,
                    detail,
                },
                key,
                None,
            ),
        },
        Settled::Deregistration { runner, outcome } => {
            (Input::Deregistered { runner, outcome }, key, None)
        }
    }
}
