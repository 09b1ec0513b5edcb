//! A simulated GitHub and the production crate watching it.

use std::{collections::BTreeMap, time::Duration};

use github_sim::{
    control::Control,
    shell::{Options, Server},
};
use scheduler_core::{
    input::{Input, JobSeen},
    model::{CredentialName, RunnerName, Scope},
};
use scheduler_github::{
    ApiUrl, Config, Credential, CredentialKind, Enterprise, GitHub, Registration, SecretSource,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

/// Longest a test waits for something that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) control: Control,
}

impl World {
    /// `mona` (a user) has `mona/site`; `acme` (an organisation of `corp`) has `acme/web`.
    pub(crate) async fn start() -> Self {
        let server = Server::start(Options::default()).await.unwrap();
        let control = Control::new(&server.control_url());
        let world = Self { server, control };
        world
            .post("owners", json!({"login": "mona", "kind": "user"}))
            .await;
        world
            .post("owners", json!({"login": "root", "kind": "user"}))
            .await;
        world
            .post(
                "owners",
                json!({"login": "corp", "kind": "enterprise", "members": {"root": "admin"}}),
            )
            .await;
        let members = json!({"root": "admin", "mona": "member"});
        world
            .post("owners", json!({"login": "acme", "kind": "organization", "members": members, "enterprise": "corp"}))
            .await;
        world
            .post("repos", json!({"owner": "mona", "name": "site"}))
            .await;
        world
            .post("repos", json!({"owner": "acme", "name": "web"}))
            .await;
        world
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.control
            .post(path, &body)
            .await
            .unwrap_or_else(|error| panic!("{path} {body}: {error}"))
    }

    /// A classic token of this user.
    pub(crate) async fn token(&self, login: &str, scopes: &[&str]) -> SecretSource {
        let answer = self
            .post("tokens", json!({"login": login, "scopes": scopes}))
            .await;
        secret(answer["token"].as_str().unwrap())
    }

    pub(crate) fn config(&self, credential: CredentialKind) -> Config {
        Config {
            api_url: ApiUrl::parse(&self.server.rest_url()).unwrap(),
            credentials: vec![named("main", credential)],
            runner_prefixes: vec!["ls-".into()],
            ..Config::default()
        }
    }

    pub(crate) async fn queue(&self, repository: &str, labels: &[&str]) -> u64 {
        let answer = self
            .post(
                "jobs",
                json!({"repository": repository, "name": "build", "labels": labels}),
            )
            .await;
        answer["job_id"]
            .as_u64()
            .unwrap_or_else(|| panic!("{answer}"))
    }

    /// Names of the registrations that exist.
    pub(crate) async fn runners(&self) -> Vec<String> {
        let runners = self.control.get("runners").await.unwrap();
        runners
            .as_array()
            .unwrap()
            .iter()
            .map(|runner| runner["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

pub(crate) fn secret(value: &str) -> SecretSource {
    SecretSource::Value {
        origin: "test".into(),
        value: value.to_owned().into(),
    }
}

pub(crate) fn named(name: &str, kind: CredentialKind) -> Credential {
    Credential {
        name: CredentialName::new(name),
        kind,
    }
}

/// An enterprise with a credential of the same name.
pub(crate) fn enterprise(slug: &str, organizations: &[&str]) -> Enterprise {
    Enterprise {
        slug: slug.into(),
        credential: CredentialName::new(slug),
        organizations: organizations.iter().map(|&login| login.into()).collect(),
    }
}

pub(crate) fn organization(login: &str) -> Scope {
    Scope::Organization {
        login: login.into(),
    }
}

pub(crate) fn repository(owner: &str, repo: &str) -> Scope {
    Scope::Repository {
        owner: owner.into(),
        repo: repo.into(),
    }
}

pub(crate) fn registration(name: &str, scope: Scope, credential: &CredentialName) -> Registration {
    Registration {
        runner: RunnerName::new(name),
        scope,
        credential: credential.clone(),
        labels: vec!["self-hosted".into(), "linux".into(), "x64".into()],
        runner_group: None,
        work_folder: "_work".into(),
    }
}

/// The crate at work, with what it told.
pub(crate) struct Watching {
    pub(crate) github: GitHub,
    inputs: mpsc::Receiver<Vec<Input>>,
    task: JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watching {
    pub(crate) fn start(config: Config) -> Self {
        let github = GitHub::connect(config).unwrap();
        let (sender, inputs) = mpsc::channel(64);
        let task = tokio::spawn(github.clone().run(sender));
        Self {
            github,
            inputs,
            task,
        }
    }

    /// Waits until the input that `fits` is told, sweeping again and again.
    pub(crate) async fn until<T>(&mut self, what: &str, fits: impl Fn(Input) -> Option<T>) -> T {
        let search = async {
            loop {
                self.github.nudge();
                let next = timeout(Duration::from_secs(1), self.inputs.recv()).await;
                let Ok(batch) = next else { continue };
                let batch = batch.expect("the sweep ended");
                if let Some(found) = batch.into_iter().find_map(&fits) {
                    return found;
                }
            }
        };
        let found = timeout(DEADLINE, search).await;
        found.unwrap_or_else(|_| {
            panic!(
                "never told: {what}; {:?}",
                self.github.status().borrow().problems
            )
        })
    }

    pub(crate) async fn job(&mut self, id: u64) -> JobSeen {
        self.until(&format!("job {id}"), |input| match input {
            Input::JobSeen(seen) if seen.id.0 == id => Some((*seen).clone()),
            _ => None,
        })
        .await
    }

    /// One more sweep, and what was told until its end.
    pub(crate) async fn sweep(&mut self) -> Vec<Input> {
        let mut status = self.github.status();
        let before = status.borrow_and_update().iterations;
        self.github.nudge();
        let mut told = Vec::new();
        let swept = async {
            while status.borrow_and_update().iterations == before {
                tokio::select! {
                    batch = self.inputs.recv() => told.extend(batch.expect("the sweep ended")),
                    changed = status.changed() => changed.unwrap(),
                }
            }
        };
        timeout(DEADLINE, swept).await.expect("no sweep");
        while let Ok(batch) = self.inputs.try_recv() {
            told.extend(batch);
        }
        told
    }

    /// Scope and credential of each repository watched, once both are known.
    pub(crate) async fn routes(
        &mut self,
        count: usize,
    ) -> BTreeMap<String, (Scope, CredentialName)> {
        let mut status = self.github.status();
        let seen = status.wait_for(|status| status.repositories.len() == count);
        let seen = timeout(DEADLINE, seen).await;
        let problems = self.github.status().borrow().clone();
        let seen = seen.unwrap_or_else(|_| panic!("{problems:?}")).unwrap();
        seen.repositories
            .iter()
            .map(|(name, queue)| {
                (
                    name.clone(),
                    (queue.scope.clone(), queue.credential.clone()),
                )
            })
            .collect()
    }
}
