//! What a test can ask for: the inputs of the control API, as plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::OwnerKind;

/// A user, an organisation or an enterprise.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerSpec {
    pub login: String,
    pub kind: OwnerKind,
    /// login → `admin` or `member`
    #[serde(default)]
    pub members: BTreeMap<String, String>,
    /// The enterprise that owns this organisation.
    #[serde(default)]
    pub enterprise: Option<String>,
}

impl OwnerSpec {
    pub fn user(login: &str) -> Self {
        Self {
            login: login.into(),
            kind: OwnerKind::User,
            members: BTreeMap::new(),
            enterprise: None,
        }
    }

    /// An organisation; `<login>-admin` is made as its administrator.
    pub fn organization(login: &str) -> Self {
        let members = BTreeMap::from([(format!("{login}-admin"), "admin".to_owned())]);
        Self {
            login: login.into(),
            kind: OwnerKind::Organization,
            members,
            enterprise: None,
        }
    }

    /// An enterprise; `<login>-admin` is made as its administrator.
    pub fn enterprise(login: &str) -> Self {
        let members = BTreeMap::from([(format!("{login}-admin"), "admin".to_owned())]);
        Self {
            login: login.into(),
            kind: OwnerKind::Enterprise,
            members,
            enterprise: None,
        }
    }
}

/// A repository; private unless said otherwise.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoSpec {
    pub owner: String,
    pub name: String,
    #[serde(default = "yes")]
    pub private: bool,
    #[serde(default)]
    pub archived: bool,
    #[serde(default)]
    pub disabled: bool,
    #[serde(default)]
    pub fork: bool,
    /// Hours since the last push; 0: just now. Queueing a run of a push counts as one.
    #[serde(default)]
    pub pushed_hours_ago: u64,
}

impl RepoSpec {
    pub fn new(owner: &str, name: &str) -> Self {
        Self {
            owner: owner.into(),
            name: name.into(),
            private: true,
            archived: false,
            disabled: false,
            fork: false,
            pushed_hours_ago: 0,
        }
    }

    pub fn public(mut self) -> Self {
        self.private = false;
        self
    }
}

/// Where an App's events go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSpec {
    pub url: String,
    pub secret: String,
}

/// A GitHub App. The key pair belongs to the caller: the world only ever verifies.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppSpec {
    pub slug: String,
    #[serde(default)]
    pub permissions: BTreeMap<String, String>,
    #[serde(default)]
    pub events: Vec<String>,
    #[serde(default)]
    pub webhook: Option<WebhookSpec>,
    /// DER of the RSA public key (PKCS#1); empty: every signature is refused.
    #[serde(skip)]
    pub public_key: Vec<u8>,
}

/// An App on an account.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstallationSpec {
    pub app_id: u64,
    pub account: String,
    /// `None`: all repositories of the account.
    #[serde(default)]
    pub repositories: Option<Vec<String>>,
    /// `None`: what the App asks for.
    #[serde(default)]
    pub permissions: Option<BTreeMap<String, String>>,
}

/// A personal token: classic with scopes, or fine-grained with permissions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSpec {
    pub login: String,
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    #[serde(default)]
    pub permissions: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub repositories: Option<Vec<String>>,
    #[serde(default)]
    pub expires_in_s: Option<u64>,
}

impl TokenSpec {
    pub fn classic(login: &str, scopes: &[&str]) -> Self {
        Self {
            login: login.into(),
            scopes: Some(scopes.iter().map(|s| (*s).to_owned()).collect()),
            permissions: None,
            repositories: None,
            expires_in_s: None,
        }
    }

    pub fn fine_grained(login: &str, permissions: &[(&str, &str)]) -> Self {
        let permissions = permissions
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Self {
            login: login.into(),
            scopes: None,
            permissions: Some(permissions),
            repositories: None,
            expires_in_s: None,
        }
    }
}

/// A repository's or organisation's webhook.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookSpec {
    #[serde(default)]
    pub repository: Option<String>,
    #[serde(default)]
    pub organization: Option<String>,
    pub url: String,
    #[serde(default)]
    pub secret: Option<String>,
    pub events: Vec<String>,
    #[serde(default = "json_type")]
    pub content_type: String,
}

impl HookSpec {
    pub fn repository(full_name: &str, url: &str, secret: &str) -> Self {
        Self {
            repository: Some(full_name.into()),
            organization: None,
            ..Self::bare(url, secret)
        }
    }

    pub fn organization(login: &str, url: &str, secret: &str) -> Self {
        Self {
            repository: None,
            organization: Some(login.into()),
            ..Self::bare(url, secret)
        }
    }

    fn bare(url: &str, secret: &str) -> Self {
        Self {
            repository: None,
            organization: None,
            url: url.into(),
            secret: Some(secret.into()),
            events: vec!["workflow_job".into(), "workflow_run".into()],
            content_type: json_type(),
        }
    }
}

/// A runner group.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    #[serde(default)]
    pub organization: Option<String>,
    #[serde(default)]
    pub enterprise: Option<String>,
    pub name: String,
    #[serde(default = "all")]
    pub visibility: String,
    #[serde(default)]
    pub repositories: Vec<String>,
    #[serde(default)]
    pub allows_public_repositories: bool,
}

/// A shell step; in JSON a plain string will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StepForm")]
pub struct StepSpec {
    pub name: String,
    pub run: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StepForm {
    Line(String),
    Full {
        #[serde(default)]
        name: Option<String>,
        run: String,
    },
}

impl From<StepForm> for StepSpec {
    fn from(form: StepForm) -> Self {
        let (name, run) = match form {
            StepForm::Line(run) => (None, run),
            StepForm::Full { name, run } => (name, run),
        };
        let name = name.unwrap_or_else(|| format!("Run {}", run.lines().next().unwrap_or("")));
        Self { name, run }
    }
}

/// `container:`, or one of `services:`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerSpec {
    pub image: String,
    pub env: BTreeMap<String, String>,
    pub ports: Vec<String>,
    /// `source:target`
    pub volumes: Vec<String>,
    pub options: String,
    pub entrypoint: Option<String>,
    pub arguments: Vec<String>,
}

/// Completes a job without a runner program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Simulate {
    /// A registration counts as connected this long after it was made.
    pub online_after_ms: u64,
    /// From the assignment to in_progress.
    pub start_after_ms: u64,
    pub duration_ms: u64,
    /// `success` when absent.
    pub conclusion: Option<String>,
}

/// One job of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    #[serde(default = "job_name")]
    pub name: String,
    pub labels: Vec<String>,
    #[serde(default)]
    pub group: Option<String>,
    #[serde(default)]
    pub steps: Vec<StepSpec>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub matrix: Option<u32>,
    #[serde(default)]
    pub needs: Vec<String>,
    #[serde(default)]
    pub environment: Option<String>,
    #[serde(default)]
    pub expect: Option<String>,
    #[serde(default)]
    pub skipped: bool,
    #[serde(default)]
    pub timeout_minutes: Option<u64>,
    #[serde(default)]
    pub simulate: Option<Simulate>,
    /// The container that steps run in.
    #[serde(default)]
    pub container: Option<ContainerSpec>,
    #[serde(default)]
    pub services: BTreeMap<String, ContainerSpec>,
}

impl JobSpec {
    pub fn new(name: &str, labels: &[&str]) -> Self {
        Self {
            name: name.into(),
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            group: None,
            steps: Vec::new(),
            env: BTreeMap::new(),
            matrix: None,
            needs: Vec::new(),
            environment: None,
            expect: None,
            skipped: false,
            timeout_minutes: None,
            simulate: None,
            container: None,
            services: BTreeMap::new(),
        }
    }

    pub fn steps(mut self, lines: &[&str]) -> Self {
        self.steps = lines
            .iter()
            .map(|l| StepForm::Line((*l).to_owned()).into())
            .collect();
        self
    }

    pub fn needs(mut self, names: &[&str]) -> Self {
        self.needs = names.iter().map(|n| (*n).to_owned()).collect();
        self
    }

    pub fn environment(mut self, name: &str) -> Self {
        self.environment = Some(name.into());
        self
    }

    pub fn expect(mut self, outcome: &str) -> Self {
        self.expect = Some(outcome.into());
        self
    }

    pub fn matrix(mut self, n: u32) -> Self {
        self.matrix = Some(n);
        self
    }

    pub fn simulate(mut self, how: Simulate) -> Self {
        self.simulate = Some(how);
        self
    }
}

/// One workflow run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    pub repository: String,
    #[serde(default = "ci")]
    pub workflow: String,
    #[serde(default = "push")]
    pub event: String,
    #[serde(default = "main")]
    pub head_branch: String,
    /// `owner/name` of the fork a pull request comes from.
    #[serde(default)]
    pub head_repository: Option<String>,
    #[serde(default)]
    pub actor: Option<String>,
    /// Held by a concurrency group: no jobs until it is released.
    #[serde(default)]
    pub pending: bool,
    pub jobs: Vec<JobSpec>,
}

impl RunSpec {
    pub fn new(repository: &str, jobs: Vec<JobSpec>) -> Self {
        Self {
            repository: repository.into(),
            workflow: ci(),
            event: push(),
            head_branch: main(),
            head_repository: None,
            actor: None,
            pending: false,
            jobs,
        }
    }

    pub fn one(repository: &str, job: JobSpec) -> Self {
        Self::new(repository, vec![job])
    }
}

/// A runner that is not Longshore's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForeignRunnerSpec {
    /// `repos/o/r`, `orgs/o` or `enterprises/e`
    pub scope: String,
    pub name: String,
    pub labels: Vec<String>,
    #[serde(default)]
    pub group_id: Option<u64>,
    #[serde(default = "yes")]
    pub online: bool,
    #[serde(default)]
    pub ephemeral: bool,
}

fn yes() -> bool {
    true
}
fn all() -> String {
    "all".into()
}
fn json_type() -> String {
    "json".into()
}
fn job_name() -> String {
    "build".into()
}
fn ci() -> String {
    "CI".into()
}
fn push() -> String {
    "push".into()
}
fn main() -> String {
    "main".into()
}
