//! A GitHub of few words: verifies and reads a plain job body, registers whatever is asked.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use longshore_scheduler::{
    config::WatchSettings,
    ports::{
        Delivery, Demand, GitHub, KnownJob, OpenJobs, RateStatus, Registered, Registration,
        RegistrationFailed, Source, SweepStatus, WebhookError,
    },
};
use scheduler_core::{
    input::{Deregistration, Input, JobSeen},
    model::{Conclusion, CredentialName, JobId, JobPhase, Origin, Repository, RunnerName, Scope},
};
use scheduler_github::webhook;
use secrecy::SecretString;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) const SECRET: &str = "It's a Secret to Everybody";

/// What it was asked.
#[derive(Debug, Default)]
struct Asked {
    registered: Vec<Registration>,
    deregistered: Vec<RunnerName>,
    remembered: Vec<KnownJob>,
    refuse: Option<RegistrationFailed>,
    distrusted: usize,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct FakeGitHub {
    asked: Arc<Mutex<Asked>>,
}

impl FakeGitHub {
    fn asked<T>(&self, read: impl FnOnce(&mut Asked) -> T) -> T {
        read(&mut self.asked.lock().expect("no test panics in here"))
    }

    pub(crate) fn registered(&self) -> Vec<Registration> {
        self.asked(|asked| asked.registered.clone())
    }

    /// How often a delivery was said not to have been stored.
    pub(crate) fn distrusted(&self) -> usize {
        self.asked(|asked| asked.distrusted)
    }

    pub(crate) fn names(&self) -> BTreeSet<String> {
        let registered = self.registered();
        registered.iter().map(|r| r.runner.to_string()).collect()
    }

    pub(crate) fn remembered(&self) -> Vec<KnownJob> {
        self.asked(|asked| asked.remembered.clone())
    }

    pub(crate) fn refuse(&self, failure: Option<RegistrationFailed>) {
        self.asked(|asked| asked.refuse = failure);
    }

    /// The secret that belongs to a runner's name.
    pub(crate) fn jit(runner: &str) -> String {
        format!("jit-of-{runner}")
    }
}

impl GitHub for FakeGitHub {
    async fn register(&self, wanted: Registration) -> Result<Registered, RegistrationFailed> {
        let jit = Self::jit(wanted.runner.as_str());
        self.asked(|asked| {
            if let Some(refused) = &asked.refuse {
                return Err(refused.clone());
            }
            asked.registered.push(wanted);
            Ok(Registered {
                github_id: asked.registered.len() as u64,
                jit: SecretString::from(jit),
            })
        })
    }

    async fn deregister(
        &self,
        runner: RunnerName,
        _scope: Scope,
        _credential: CredentialName,
        _github_id: Option<u64>,
    ) -> Deregistration {
        self.asked(|asked| asked.deregistered.push(runner));
        Deregistration::Gone
    }
}

fn scope() -> Scope {
    Scope::Repository {
        owner: "acme".to_owned(),
        repo: "web".to_owned(),
    }
}

fn seen(body: &serde_json::Value, traceparent: Option<&str>) -> Option<JobSeen> {
    let word = |name: &str| body[name].as_str().map(str::to_owned);
    let phase = match body["status"].as_str()? {
        "queued" => JobPhase::Queued,
        "in_progress" => JobPhase::InProgress,
        "completed" => JobPhase::Completed,
        _ => JobPhase::Waiting,
    };
    let labels = body["labels"].as_array()?;
    Some(JobSeen {
        id: JobId(body["id"].as_u64()?),
        run_id: 1,
        attempt: 1,
        repository: Repository {
            id: 7,
            owner: "acme".to_owned(),
            name: "web".to_owned(),
            private: Some(true),
        },
        scope: scope(),
        credential: CredentialName::new("token"),
        name: word("name").unwrap_or_default(),
        workflow: "CI".to_owned(),
        labels: labels
            .iter()
            .filter_map(|label| label.as_str().map(str::to_owned))
            .collect(),
        phase,
        conclusion: (phase == JobPhase::Completed).then(|| match body["conclusion"].as_str() {
            Some("failure") => Conclusion::Failure,
            _ => Conclusion::Success,
        }),
        runner_name: word("runner_name"),
        runner_id: None,
        origin: Origin {
            event: word("event").or(Some("push".to_owned())),
            head_repository: word("head_repository").or(Some("acme/web".to_owned())),
        },
        created_at: 1_780_000_000_000,
        started_at: (phase >= JobPhase::InProgress).then_some(1_780_000_001_000),
        completed_at: (phase == JobPhase::Completed).then_some(1_780_000_002_000),
        html_url: "https://github.com/acme/web/actions/runs/1".to_owned(),
        traceparent: traceparent.map(str::to_owned),
    })
}

impl Demand for FakeGitHub {
    async fn receive(&self, delivery: Delivery<'_>) -> Result<Vec<Input>, WebhookError> {
        webhook::verify(
            &[SecretString::from(SECRET)],
            delivery.signature,
            delivery.body,
        )?;
        let body: serde_json::Value = serde_json::from_slice(delivery.body)
            .map_err(|error| WebhookError::Malformed(error.to_string()))?;
        if delivery.event != "workflow_job" {
            return Ok(Vec::new());
        }
        let seen = seen(&body, delivery.traceparent);
        Ok(seen
            .into_iter()
            .map(|seen| Input::JobSeen(Arc::new(seen)))
            .collect())
    }

    async fn resolve(&self, owner: &str, name: &str) -> Option<(Scope, CredentialName)> {
        (owner == "acme" && name == "web").then(|| (scope(), CredentialName::new("token")))
    }

    fn sweep(&self) -> SweepStatus {
        SweepStatus {
            iterations: 3,
            ..SweepStatus::default()
        }
    }

    fn rates(&self) -> Vec<RateStatus> {
        vec![RateStatus {
            credential: CredentialName::new("token"),
            resource: "core".to_owned(),
            limit: 5_000,
            remaining: 4_321,
            reset_at: 1_780_000_000_000,
            limited_until: None,
        }]
    }

    fn nudge(&self) {}

    fn distrust(&self) {
        self.asked(|asked| asked.distrusted += 1);
    }
}

impl Source for FakeGitHub {
    async fn watch(
        self,
        jobs: OpenJobs,
        inputs: mpsc::Sender<Vec<Input>>,
        _changes: watch::Receiver<WatchSettings>,
        stop: CancellationToken,
    ) {
        self.asked(|asked| asked.remembered = jobs());
        // A credential with room to register.
        let budget = Input::BudgetChanged {
            credential: CredentialName::new("token"),
            scopes: vec![scope()],
            registrations: 100,
            limited_until: None,
        };
        let _ = inputs.send(vec![budget]).await;
        stop.cancelled().await;
    }
}
