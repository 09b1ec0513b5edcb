//! Who is there and what they push.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use github_sim::machine::{
    ForeignRunnerSpec, HookSpec, JobSpec, OwnerSpec, RepoSpec, RunSpec, SimError, TokenSpec,
    World as GitHubWorld, WorldConfig,
};
use scheduler_core::{
    input::{Command, Defaults, Input},
    model::{Admission, Capability, CredentialName, Gpu, Pool, Resources, Scope},
};

use crate::{
    dice::Dice,
    node::SimNode,
    plan::Plan,
    world::{Event, START_UTC, World},
};

pub(crate) const REPOSITORIES: [&str; 4] = ["acme/web", "acme/api", "acme/ml", "mona/site"];
/// Somebody else's fleet on the same organisation.
pub(crate) const OTHER_FLEET: &str = "ls-otherfleet-abcdefgh2345";
const GIB: u64 = 1 << 30;

/// Where runners for a repository register.
pub(crate) fn scope_of(repository: &str) -> (Scope, CredentialName) {
    let (owner, repo) = repository.split_once('/').unwrap_or((repository, ""));
    let scope = match owner {
        "acme" => Scope::Organization {
            login: owner.to_owned(),
        },
        _ => Scope::Repository {
            owner: owner.to_owned(),
            repo: repo.to_owned(),
        },
    };
    (scope, CredentialName::new(owner))
}

/// The same in the words of the REST path: `orgs/o` or `repos/o/r`.
pub(crate) fn scope_text(repository: &str) -> String {
    scope_path(&scope_of(repository).0)
}

pub(crate) fn scope_path(scope: &Scope) -> String {
    match scope {
        Scope::Repository { owner, repo } => format!("repos/{owner}/{repo}"),
        Scope::Organization { login } => format!("orgs/{login}"),
        Scope::Enterprise { slug } => format!("enterprises/{slug}"),
    }
}

fn capability(labels: &[&str], cpus: u32, gib: u64, gpus: u32) -> Capability {
    Capability {
        arch: "x64".to_owned(),
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
        capacity: Resources {
            cpu_millis: cpus * 1_000,
            memory_bytes: gib * GIB,
            gpus,
        },
        gpus: (0..gpus)
            .map(|n| Gpu {
                uuid: format!("GPU-{n}"),
                product: "simulated".to_owned(),
                memory_mib: 8_192,
                compute_capability: "9.0".to_owned(),
                proven: true,
                ..Gpu::default()
            })
            .collect(),
        max_runners: 0,
        properties: scheduler_core::profile::of_a_full_node(),
        facts: Vec::new(),
    }
}

pub(crate) fn nodes(dice: &mut Dice) -> Vec<SimNode> {
    let base = ["self-hosted", "linux", "x64"];
    let gpu = ["self-hosted", "linux", "x64", "gpu", "cuda"];
    let mut nodes = vec![
        SimNode::new("alpha", capability(&base, 8, 16, 0)),
        // Here memory runs out before processors do.
        SimNode::new("beta", capability(&base, 6, 8, 0)),
        SimNode::new("gamma", capability(&gpu, 8, 32, 4)),
    ];
    if dice.below(2) == 0 {
        let mut small = capability(&base, 16, 64, 0);
        small.max_runners = 2;
        nodes.push(SimNode::new("delta", small));
    }
    nodes
}

/// What the configuration file says.
pub(crate) fn configuration(plan: &Plan) -> Command {
    let idle_timeout = Duration::from_millis(plan.idle_ms);
    let defaults = Defaults {
        idle_timeout,
        ..Defaults::default()
    };
    let gpu = Pool {
        labels: ["self-hosted", "linux", "x64", "gpu", "cuda"]
            .into_iter()
            .map(str::to_owned)
            .collect(),
        // It registers runners of its own: one of the organisation could be given
        // the job of another repository, which this pool would have to end.
        repositories: vec!["mona/site".to_owned()],
        public_repositories: Admission::Refuse,
        image: "runner-gpu:1".to_owned(),
        name_prefix: "ls".to_owned(),
        resources: Resources {
            cpu_millis: 2_000,
            memory_bytes: 4 * GIB,
            gpus: 1,
        },
        lifetime: Duration::from_secs(6 * 3600),
        precedence: 10,
        ..defaults.pool("gpu")
    };
    Command::Configure {
        pools: vec![gpu],
        shares: vec![("acme/api".to_owned(), 2, 0)],
        defaults: Box::new(defaults),
    }
}

/// What each credential serves and may register now.
pub(crate) fn budgets() -> Vec<Input> {
    let mut scopes: BTreeMap<CredentialName, BTreeSet<Scope>> = BTreeMap::new();
    for (scope, credential) in REPOSITORIES.into_iter().map(scope_of) {
        scopes.entry(credential).or_default().insert(scope);
    }
    let budget = |(credential, scopes): (CredentialName, BTreeSet<Scope>)| Input::BudgetChanged {
        credential,
        scopes: scopes.into_iter().collect(),
        registrations: 100,
        limited_until: None,
    };
    scopes.into_iter().map(budget).collect()
}

/// GitHub before anybody pushes, and a token per credential.
pub(crate) fn github(plan: &Plan) -> Result<(GitHubWorld, BTreeMap<String, String>), SimError> {
    let config = WorldConfig {
        start_ms: START_UTC,
        faults: plan.github.clone(),
        ..WorldConfig::default()
    };
    let mut github = GitHubWorld::new(plan.seed, config);
    github.add_owner(OwnerSpec::organization("acme"))?;
    github.add_owner(OwnerSpec::user("mona"))?;
    for repository in REPOSITORIES {
        let (owner, name) = repository.split_once('/').unwrap_or_default();
        github.add_repo(RepoSpec::new(owner, name))?;
    }
    let mut tokens = BTreeMap::new();
    let acme = github.add_token(TokenSpec::classic("acme-admin", &["repo", "admin:org"]))?;
    let mona = github.add_token(TokenSpec::classic("mona", &["repo"]))?;
    tokens.insert("acme".to_owned(), acme);
    tokens.insert("mona".to_owned(), mona);
    if plan.webhooks {
        let url = "http://receiver/";
        github.add_hook(HookSpec::organization("acme", url, "secret"))?;
        github.add_hook(HookSpec::repository("mona/site", url, "secret"))?;
    }
    github.add_foreign_runner(&ForeignRunnerSpec {
        scope: "orgs/acme".to_owned(),
        name: OTHER_FLEET.to_owned(),
        labels: vec![
            "self-hosted".to_owned(),
            "linux".to_owned(),
            "theirs".to_owned(),
        ],
        group_id: None,
        online: false,
        ephemeral: true,
    })?;
    Ok((github, tokens))
}

impl World {
    /// Starts one workflow run, and maybe plans that somebody cancels it.
    pub(crate) fn push(&mut self) {
        let repository = REPOSITORIES[self.dice.below(REPOSITORIES.len() as u64) as usize];
        let unrunnable = self.plan.unrunnable;
        let cancels = self.plan.cancels;
        let matrix = self.dice.between(1, self.plan.matrix);
        let mut labels = match (repository, self.dice.below(4)) {
            ("mona/site", 0 | 1) => vec!["self-hosted", "linux", "gpu"],
            (_, 2) => vec!["self-hosted", "Linux", "X64"],
            _ => vec!["self-hosted", "linux"],
        };
        if self.dice.in_10000(unrunnable) {
            labels = match self.dice.below(3) {
                0 => vec!["self-hosted", "linux", "arm64"],
                1 => vec!["self-hosted", "windows"],
                _ => vec!["ubuntu-latest"],
            };
        }
        let mut job = JobSpec::new("build", &labels);
        if matrix > 1 {
            job = job.matrix(u32::try_from(matrix).unwrap_or(1));
        }
        let approvals = self.plan.approvals;
        let protected = approvals > 0 && self.dice.in_10000(approvals);
        if protected {
            job = job.environment("production");
        }
        let mut jobs = vec![job];
        if self.dice.below(3) == 0 {
            jobs.push(JobSpec::new("after", &labels).needs(&["build"]));
        }
        match self.github.queue_run(&RunSpec::new(repository, jobs)) {
            Ok(run) => {
                self.note(|| format!("run {run}: {matrix} jobs for {labels:?} in {repository}"));
                if protected {
                    self.plan_within(100, 120_000, Event::Approve { run });
                }
                if self.dice.in_10000(cancels) {
                    self.plan_within(100, 60_000, Event::Cancel { run });
                }
            }
            Err(error) => self.violation(format!("the workload could not be pushed: {error}")),
        }
        self.sort_jobs();
    }

    pub(crate) fn approve(&mut self, run: u64) {
        self.note(|| format!("run {run} is approved"));
        // A run that was cancelled meanwhile has nothing to approve.
        let _ = self.github.approve_run(run);
    }

    pub(crate) fn cancel(&mut self, run: u64) {
        let jobs: Vec<u64> = self
            .github
            .run(run)
            .map(|run| run.jobs().to_vec())
            .unwrap_or_default();
        self.excused.extend(jobs);
        self.note(|| format!("run {run} is cancelled"));
        // A run that is over cannot be cancelled any more.
        let _ = self.github.cancel_run(run, false);
    }
}
