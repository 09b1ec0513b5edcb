//! Why a job waits, per node and pool, and what would unblock it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    admission::{admits_unseen, refusal, source},
    feasible::{Request, clamp, grants, proven_labels, request},
    fleet::Fleet,
    labels::{Signature, is_gpu},
    model::{
        Condition, GpuNeeds, JobId, JobPhase, NodeName, Now, Pool, PoolName, Scope, UtcMillis,
    },
    profile,
    reconcile::{is_engine, is_refusal},
    state::{Job, Node},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub job: JobId,
    pub reason: ReasonCode,
    /// One sentence for people.
    pub summary: String,
    pub next_step: String,
    pub not_before: Option<UtcMillis>,
    pub nodes: Vec<(NodeName, Vec<Reason>)>,
    pub pools: Vec<(PoolName, Vec<Reason>)>,
}

/// One rejection: an empty list of them means feasible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub code: ReasonCode,
    pub detail: String,
    pub unblocked_by: String,
}

/// Stable words, `snake_case` on every surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReasonCode {
    /// A runner is on its way or idle; GitHub decides which job it takes.
    RunnerOnItsWay,
    NotQueued,
    AutoscalerStopped,
    NoNodes,
    NoLabels,
    BareSelfHosted,
    MissingLabel,
    NoGpu,
    NoCapacity,
    TooBig,
    Cordoned,
    Draining,
    Unreachable,
    NodeCondition,
    MissingProperty,
    /// The runner program ended before it listened; the image is not at fault.
    RunnerRefused,
    ImageUnavailable,
    NoPool,
    RepositoryNotAdmitted,
    PublicRepositoryRefused,
    ForkRefused,
    OriginUnknown,
    PoolMaximum,
    ShareMaximum,
    FleetMaximum,
    RateLimited,
    CredentialProblem,
    ScopeResting,
    /// Runners idled out beside the waiting job: GitHub gives it to none of them.
    GithubDoesNotAssign,
    WaitsItsTurn,
}

impl ReasonCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunnerOnItsWay => "runner_on_its_way",
            Self::NotQueued => "not_queued",
            Self::AutoscalerStopped => "autoscaler_stopped",
            Self::NoNodes => "no_nodes",
            Self::NoLabels => "no_labels",
            Self::BareSelfHosted => "bare_self_hosted",
            Self::MissingLabel => "missing_label",
            Self::NoGpu => "no_gpu",
            Self::NoCapacity => "no_capacity",
            Self::TooBig => "too_big",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
            Self::NodeCondition => "node_condition",
            Self::MissingProperty => "missing_property",
            Self::RunnerRefused => "runner_refused",
            Self::ImageUnavailable => "image_unavailable",
            Self::NoPool => "no_pool",
            Self::RepositoryNotAdmitted => "repository_not_admitted",
            Self::PublicRepositoryRefused => "public_repository_refused",
            Self::ForkRefused => "fork_refused",
            Self::OriginUnknown => "origin_unknown",
            Self::PoolMaximum => "pool_maximum",
            Self::ShareMaximum => "share_maximum",
            Self::FleetMaximum => "fleet_maximum",
            Self::RateLimited => "rate_limited",
            Self::CredentialProblem => "credential_problem",
            Self::ScopeResting => "scope_resting",
            Self::GithubDoesNotAssign => "github_does_not_assign",
            Self::WaitsItsTurn => "waits_its_turn",
        }
    }
}

impl Reason {
    fn new(code: ReasonCode, detail: impl Into<String>, unblocked_by: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            unblocked_by: unblocked_by.into(),
        }
    }
}

impl Fleet {
    pub(crate) fn explained(&self, id: JobId, now: Now) -> Option<Explanation> {
        let job = self.jobs.get(&id)?;
        let mut explanation = Explanation {
            job: id,
            reason: ReasonCode::NotQueued,
            summary: String::new(),
            next_step: String::new(),
            not_before: None,
            nodes: Vec::new(),
            pools: Vec::new(),
        };
        if job.phase() != JobPhase::Queued {
            let (summary, next_step) = not_queued(job);
            explanation.summary = summary;
            explanation.next_step = next_step;
            return Some(explanation);
        }
        let folded = crate::labels::fold(&job.seen.labels);
        if folded.is_empty() {
            return Some(explanation.because(Reason::new(
                ReasonCode::NoLabels,
                "the job names no labels, for example because it names only a runner group",
                "give the job a label in runs-on",
            )));
        }
        let signature = Signature::unindexed(folded);
        let mut serving: Option<Pool> = None;
        for pool in self.pools_in_order() {
            let reasons: Vec<Reason> = refusal(
                &pool,
                &signature,
                &job.seen.repository,
                source(&job.seen.origin, &job.seen.repository),
            )
            .into_iter()
            .collect();
            if reasons.is_empty() && serving.is_none() {
                serving = Some(pool.clone());
            }
            explanation.pools.push((pool.name.clone(), reasons));
        }
        let asked = serving.clone().or_else(|| self.pools_in_order().pop())?;
        for node in self.nodes() {
            let reasons = self.node_reasons(node, &signature, &asked, now);
            explanation.nodes.push((node.name.clone(), reasons));
        }
        let deciding = self.deciding(job, &signature, serving.as_ref(), &explanation, now);
        let not_before = match deciding.code {
            ReasonCode::RateLimited => self
                .budgets
                .get(&job.seen.credential)
                .and_then(|budget| budget.limited_until),
            ReasonCode::ScopeResting | ReasonCode::CredentialProblem => {
                self.rests.get(&job.seen.scope).map(|rest| rest.until)
            }
            ReasonCode::GithubDoesNotAssign => self
                .waited_in_vain(&job.seen, now.utc)
                .map(|rest| rest.until),
            _ => None,
        };
        explanation.not_before = not_before;
        let mut explanation = explanation.because(deciding);
        if serving.is_some_and(|pool| admits_unseen(&pool, &job.seen)) {
            explanation.summary.push_str(
                "; the repository is private, so it is served although GitHub has not said yet \
                 where the code of this run comes from",
            );
        }
        Some(explanation)
    }

    /// The one reason that answers first: what would have to change before any
    /// other reason matters.
    fn deciding(
        &self,
        job: &Job,
        signature: &Signature,
        pool: Option<&Pool>,
        explanation: &Explanation,
        now: Now,
    ) -> Reason {
        if let Some(reason) = self.on_its_way(job) {
            return reason;
        }
        if !self.autoscaler.running {
            return Reason::new(
                ReasonCode::AutoscalerStopped,
                "scaling is stopped; running jobs finish, new ones wait",
                "start it: longshore runner start",
            );
        }
        let Some(pool) = pool else {
            return explanation
                .pools
                .iter()
                .flat_map(|(_, reasons)| reasons)
                .max_by_key(|reason| reason.code != ReasonCode::MissingLabel)
                .cloned()
                .unwrap_or_else(|| {
                    Reason::new(
                        ReasonCode::NoPool,
                        "no pool serves this job",
                        "add a pool that offers its labels",
                    )
                });
        };
        if self.nodes_by_name.is_empty() {
            return Reason::new(
                ReasonCode::NoNodes,
                "no node has joined the fleet yet",
                "start longshore-agent on a machine",
            );
        }
        // Never possible comes before not now.
        let lasting = |reason: &Reason| {
            matches!(
                reason.code,
                ReasonCode::MissingLabel
                    | ReasonCode::NoGpu
                    | ReasonCode::TooBig
                    | ReasonCode::MissingProperty
            )
        };
        let possible: Vec<_> = explanation
            .nodes
            .iter()
            .filter(|(_, reasons)| !reasons.iter().any(lasting))
            .collect();
        if possible.is_empty() {
            // A pool that offers the labels and refuses for another reason says more.
            return explanation
                .pools
                .iter()
                .flat_map(|(_, reasons)| reasons)
                .find(|reason| reason.code != ReasonCode::MissingLabel)
                .cloned()
                .unwrap_or_else(|| self.never(signature, explanation));
        }
        if let Some(reason) = self.not_assigned(job, pool, now) {
            return reason;
        }
        if let Some(rest) = self.rests.get(&job.seen.scope)
            && rest.until > now.utc
        {
            let problem = self
                .budgets
                .get(&job.seen.credential)
                .and_then(|budget| budget.problem.clone());
            return match problem {
                Some(problem) => Reason::new(
                    ReasonCode::CredentialProblem,
                    format!(
                        "GitHub refuses to register runners for {}: {problem}",
                        job.seen.scope
                    ),
                    "give the credential the permission GitHub names, then wait for the next try",
                ),
                None => Reason::new(
                    ReasonCode::ScopeResting,
                    format!(
                        "registering runners for {} failed: {}",
                        job.seen.scope, rest.detail
                    ),
                    "nothing: it is tried again by itself",
                ),
            };
        }
        let limited = self
            .budgets
            .get(&job.seen.credential)
            .and_then(|budget| budget.limited_until)
            .filter(|until| *until > now.utc);
        if limited.is_some() {
            return Reason::new(
                ReasonCode::RateLimited,
                format!("GitHub limits the credential {}", job.seen.credential),
                "nothing: it goes on by itself when the limit ends",
            );
        }
        if let Some(rest) = self.images.get(&(pool.image.clone(), None))
            && rest.until > now.utc
        {
            return Reason::new(
                ReasonCode::ImageUnavailable,
                format!(
                    "the image {} does not start anywhere: {}",
                    pool.image, rest.detail
                ),
                "make the image available, or name another one for the pool",
            );
        }
        if let Some(reason) = self.at_maximum(job, pool) {
            return reason;
        }
        if possible.iter().any(|(_, reasons)| reasons.is_empty()) {
            return Reason::new(
                ReasonCode::WaitsItsTurn,
                "there is room, and registrations are made in fair order within GitHub's budget",
                "nothing: its turn comes by itself",
            );
        }
        possible
            .iter()
            .flat_map(|(_, reasons)| reasons)
            .min_by_key(|reason| (reason.code != ReasonCode::NoCapacity, reason.code))
            .cloned()
            .unwrap_or_else(|| {
                Reason::new(
                    ReasonCode::NoCapacity,
                    "every node that could run it is full",
                    "wait for a runner to finish, or add a node",
                )
            })
    }

    /// A runner that serves this demand exists; whose job it takes is GitHub's choice.
    fn on_its_way(&self, job: &Job) -> Option<Reason> {
        let unit = self.unit_of(job)?;
        let group = &self.demand.groups[self.demand.units[unit as usize].group as usize];
        let ready = group.supply + group.borrowed;
        if ready == 0 || group.need() > 0 && self.demand.units[unit as usize].cover == 0 {
            return None;
        }
        Some(Reason::new(
            ReasonCode::RunnerOnItsWay,
            format!(
                "{ready} runner(s) for {} with these labels are starting or idle for {} waiting \
                 job(s); which job a runner takes is GitHub's choice",
                job.seen.scope, group.runnable
            ),
            "nothing: GitHub hands it over when a runner listens; if it stays, check that the \
             runner group allows the repository",
        ))
    }

    /// GitHub had runners for it and gave it to none of them.
    fn not_assigned(&self, job: &Job, pool: &Pool, now: Now) -> Option<Reason> {
        let rest = self.waited_in_vain(&job.seen, now.utc)?;
        let repository = job.seen.repository.full_name();
        let next_step = match &job.seen.scope {
            Scope::Repository { .. } => format!(
                "check at GitHub that {repository} may use self-hosted runners and that its \
                 runners are listed under Settings, Actions, Runners; then: longshore runner start"
            ),
            scope => {
                let group = pool.runner_group.as_deref().unwrap_or("Default");
                let public = if job.seen.repository.private == Some(true) {
                    ""
                } else {
                    " and, as the repository is public, turn on \"Allow public repositories\" \
                     (allows_public_repositories)"
                };
                format!(
                    "in the runner group {group} of {scope} give {repository} repository \
                     access{public}; then: longshore runner start"
                )
            }
        };
        Some(Reason::new(
            ReasonCode::GithubDoesNotAssign,
            format!(
                "{} runners in a row for {} with these labels ended idle while this job stayed \
                 queued: GitHub does not assign it to them",
                rest.runners, job.seen.scope
            ),
            next_step,
        ))
    }

    fn never(&self, signature: &Signature, explanation: &Explanation) -> Reason {
        let missing = self.missing_label(&signature.labels);
        if let Some(label) = missing {
            return Reason::new(
                ReasonCode::MissingLabel,
                format!("no node proves the label {label}"),
                format!("add a node that proves {label}, or change the job's runs-on"),
            );
        }
        explanation
            .nodes
            .iter()
            .flat_map(|(_, reasons)| reasons)
            .find(|reason| {
                matches!(
                    reason.code,
                    ReasonCode::NoGpu | ReasonCode::TooBig | ReasonCode::MissingProperty
                )
            })
            .cloned()
            .unwrap_or_else(|| {
                Reason::new(
                    ReasonCode::MissingLabel,
                    "no single node has all the labels the job asks for",
                    "add a node with all of them, or change the job's runs-on",
                )
            })
    }

    fn at_maximum(&self, job: &Job, pool: &Pool) -> Option<Reason> {
        let maximum = self.max_runners();
        if maximum > 0 && self.runners.len() >= maximum as usize {
            return Some(Reason::new(
                ReasonCode::FleetMaximum,
                format!("the fleet runs its maximum of {maximum} runners"),
                "wait for one to finish, or raise max_runners",
            ));
        }
        let live = self
            .runners
            .values()
            .filter(|runner| runner.placed.pool == pool.name)
            .count();
        if pool.maximum > 0 && live >= pool.maximum as usize {
            return Some(Reason::new(
                ReasonCode::PoolMaximum,
                format!(
                    "pool {} runs its maximum of {} runners",
                    pool.name, pool.maximum
                ),
                "wait for one to finish, or raise the pool's maximum",
            ));
        }
        let name = job.seen.repository.full_name().to_lowercase();
        let tenant = self.demand.known_tenant(&name)?;
        let owner = &self.demand.owners[tenant.owner as usize].account;
        [&tenant.account, owner]
            .into_iter()
            .find(|account| account.is_full())
            .map(|account| {
                Reason::new(
                    ReasonCode::ShareMaximum,
                    format!(
                        "{} runs its maximum of {} runners",
                        account.name, account.maximum
                    ),
                    "wait for one to finish, or raise the share's maximum",
                )
            })
    }

    /// Every reason why this node does not take a runner for the job now.
    fn node_reasons(
        &self,
        node: &Node,
        signature: &Signature,
        pool: &Pool,
        now: Now,
    ) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let labels = proven_labels(node);
        if !node.is_fingerprinted() && node.blocking_condition().is_none() {
            reasons.push(Reason::new(
                ReasonCode::NodeCondition,
                "the node has not told yet what it can run, or its container engine offers nothing",
                "wait until its agent has asked the container engine; see longshore node describe",
            ));
        }
        for label in signature.labels.iter().filter(|_| node.is_fingerprinted()) {
            if labels.contains(label) || grants(pool, label) {
                continue;
            }
            reasons.push(if is_gpu(label) {
                no_gpu(node, &format!("the job asks for {label}"))
            } else {
                Reason::new(
                    ReasonCode::MissingLabel,
                    format!("the node does not prove the label {label}"),
                    format!("a node that proves {label}"),
                )
            });
        }
        if node.is_fingerprinted() {
            reasons.extend(missing_properties(pool, node));
        }
        let wanted = request(pool, signature.wants_gpu);
        if let Some(reason) = too_few_gpus(node, pool, &wanted) {
            reasons.push(reason);
        } else if !node.is_fingerprinted() {
            // Nothing is known of its capacity either.
        } else if node.capability.capacity.cpu_millis == 0
            || node.capability.capacity.memory_bytes == 0
        {
            reasons.push(Reason::new(
                ReasonCode::TooBig,
                "the node offers no CPU or no memory",
                "give the agent CPU and memory to offer",
            ));
        } else {
            reasons.extend(no_capacity(node, &wanted));
        }
        if !node.is_reachable() {
            reasons.push(Reason::new(
                ReasonCode::Unreachable,
                "the node is silent; its capacity is held for the jobs that run on it",
                "bring the node or its network back, or remove the node",
            ));
        }
        if node.draining.is_some() {
            reasons.push(Reason::new(
                ReasonCode::Draining,
                "the node is being drained",
                format!("longshore node uncordon {}", node.name),
            ));
        } else if node.cordoned {
            reasons.push(Reason::new(
                ReasonCode::Cordoned,
                "the node is cordoned",
                format!("longshore node uncordon {}", node.name),
            ));
        }
        for condition in &node.conditions {
            match &condition.image {
                None => reasons.push(Reason::new(
                    ReasonCode::NodeCondition,
                    format!("{}: {}", condition.kind, condition.detail),
                    condition.next_step.clone(),
                )),
                Some(image) if *image == pool.image => reasons.push(Reason::new(
                    ReasonCode::ImageUnavailable,
                    condition.detail.clone(),
                    condition.next_step.clone(),
                )),
                Some(_) => {}
            }
        }
        let key = (pool.image.clone(), Some(node.name.clone()));
        if let Some(rest) = self.images.get(&key)
            && rest.until > now.utc
        {
            reasons.push(if is_refusal(&rest.detail) {
                Reason::new(
                    ReasonCode::RunnerRefused,
                    format!("the last runner ended before it listened: {}", rest.detail),
                    "check that containers on this node reach GitHub, and read its output with \
                     longshore runner logs; it is tried again by itself",
                )
            } else if is_engine(&rest.detail) {
                Reason::new(
                    ReasonCode::NodeCondition,
                    format!("the last runner was ended from outside: {}", rest.detail),
                    "check the container engine of the node; it is tried again by itself",
                )
            } else {
                Reason::new(
                    ReasonCode::ImageUnavailable,
                    format!(
                        "the image {} did not start here: {}",
                        pool.image, rest.detail
                    ),
                    "nothing: it is tried again by itself",
                )
            });
        }
        reasons
    }

    fn pools_in_order(&self) -> Vec<Pool> {
        self.plans().into_iter().map(|plan| plan.pool).collect()
    }

    /// Whether a pool adds this label to what its nodes prove; `only` asks one pool.
    pub fn grants(&self, label: &str, only: Option<&PoolName>) -> bool {
        self.pools
            .values()
            .filter(|entry| only.is_none_or(|name| entry.pool.name == *name))
            .any(|entry| grants(&entry.pool, label))
    }

    /// The first label of a set that no node proves and no pool grants: the
    /// architecture before anything else, since it says most.
    pub(crate) fn missing_label(&self, labels: &[String]) -> Option<String> {
        let folded = crate::labels::fold(labels);
        if folded.is_empty() {
            return None;
        }
        let carried = |label: &str| {
            self.nodes().any(|node| proven_labels(node).contains(label))
                || self.pools.values().any(|entry| grants(&entry.pool, label))
        };
        let is_arch = |label: &&String| matches!(label.as_str(), "x64" | "x86" | "arm64" | "arm");
        let missing = folded
            .iter()
            .filter(is_arch)
            .chain(folded.iter().filter(|label| !is_arch(label)))
            .find(|label| !carried(label))
            .cloned();
        if missing.is_some() {
            return missing;
        }
        // Each label exists somewhere, but no node has them all.
        let together = self.nodes().any(|node| {
            let proven = proven_labels(node);
            folded.iter().all(|label| {
                proven.contains(label)
                    || self.pools.values().any(|entry| grants(&entry.pool, label))
            })
        });
        (!together).then(|| {
            folded
                .iter()
                .find(is_arch)
                .or_else(|| folded.iter().find(|label| *label != "self-hosted"))
                .unwrap_or(&folded[0])
                .clone()
        })
    }

    /// Queued jobs per label set as GitHub spells it.
    pub(crate) fn queued_by_labels(&self) -> BTreeMap<Vec<String>, u32> {
        let mut counts: BTreeMap<&Vec<String>, u32> = BTreeMap::new();
        for job in self.jobs.values() {
            if job.phase() == JobPhase::Queued {
                *counts.entry(&job.seen.labels).or_default() += 1;
            }
        }
        counts
            .into_iter()
            .map(|(labels, count)| (labels.clone(), count))
            .collect()
    }
}

impl Explanation {
    fn because(mut self, reason: Reason) -> Self {
        self.reason = reason.code;
        self.summary = reason.detail;
        self.next_step = reason.unblocked_by;
        self
    }
}

fn not_queued(job: &Job) -> (String, String) {
    match (job.phase(), &job.bound) {
        (JobPhase::Waiting, _) => (
            "GitHub holds it back: an approval, a deployment rule or a concurrency group"
                .to_owned(),
            "approve it at GitHub, or wait for the run before it".to_owned(),
        ),
        (JobPhase::InProgress, Some(bound)) => {
            (format!("it runs on {}", bound.runner), "nothing".to_owned())
        }
        (JobPhase::InProgress, None) => ("it runs".to_owned(), "nothing".to_owned()),
        (JobPhase::Completed, _) => ("it is over".to_owned(), "nothing".to_owned()),
        (JobPhase::Queued, _) => ("it waits".to_owned(), "nothing".to_owned()),
    }
}

/// No GPU of the node is offered: why, in the node's words.
fn no_gpu(node: &Node, asked: &str) -> Reason {
    let withheld: Vec<&Condition> = node
        .capability
        .gpus
        .iter()
        .filter_map(|gpu| gpu.withheld.as_ref())
        .collect();
    match withheld[..] {
        [] => Reason::new(
            ReasonCode::NoGpu,
            format!("{asked} and no container saw a GPU here"),
            "install the driver and the container toolkit; the node proves it by itself",
        ),
        [first, ..] => Reason::new(
            ReasonCode::NoGpu,
            format!(
                "{asked} and no GPU here is offered: {}",
                withheld
                    .iter()
                    .map(|condition| condition.detail.as_str())
                    .collect::<Vec<_>>()
                    .join("; ")
            ),
            first.next_step.clone(),
        ),
    }
}

/// The node could not carry it even if nothing ran there.
fn too_few_gpus(node: &Node, pool: &Pool, wanted: &Request) -> Option<Reason> {
    let asked = wanted.resources.gpus as usize;
    let offered = node.leasable_gpus().count();
    let suitable = node
        .leasable_gpus()
        .filter(|gpu| wanted.gpu.admits(gpu))
        .count();
    if asked <= suitable {
        return None;
    }
    if offered == 0 {
        return Some(no_gpu(node, &format!("needs {asked} GPU(s)")));
    }
    if wanted.gpu == GpuNeeds::default() {
        return Some(Reason::new(
            ReasonCode::NoGpu,
            format!("needs {asked} GPU(s), the node offers {offered}"),
            "a node with enough proven GPUs",
        ));
    }
    let kinds: BTreeSet<String> = node
        .leasable_gpus()
        .map(|gpu| {
            format!(
                "{} with {} MiB and compute capability {}",
                gpu.product, gpu.memory_mib, gpu.compute_capability
            )
        })
        .collect();
    Some(Reason::new(
        ReasonCode::NoGpu,
        format!(
            "pool {} asks for {asked} GPU(s) with {}, of which this node offers {suitable}: it has {}",
            pool.name,
            wanted.gpu,
            kinds.into_iter().collect::<Vec<_>>().join(", ")
        ),
        format!(
            "a node with such GPUs, or ask for less in pool {}",
            pool.name
        ),
    ))
}

fn no_capacity(node: &Node, request: &Request) -> Option<Reason> {
    let wanted = request.resources;
    let need = clamp(wanted, node);
    let suitable = || {
        node.free_gpus()
            .filter(|gpu| request.gpu.admits(gpu))
            .count()
    };
    let free = node.free();
    let clamped = if need == wanted {
        ""
    } else {
        " (clamped to the node)"
    };
    let short = if node.free_slots() == Some(0) {
        format!(
            "runs its maximum of {} runners",
            node.capability.max_runners
        )
    } else if free.cpu_millis < need.cpu_millis {
        format!(
            "needs {} thousandths of a core{clamped}, {} are free",
            need.cpu_millis, free.cpu_millis
        )
    } else if free.memory_bytes < need.memory_bytes {
        format!(
            "needs {} MiB{clamped}, {} are free",
            need.memory_bytes >> 20,
            free.memory_bytes >> 20
        )
    } else if need.gpus > 0 && suitable() < need.gpus as usize {
        format!("needs {} GPU(s), {} are free", need.gpus, suitable())
    } else {
        return None;
    };
    Some(Reason::new(
        ReasonCode::NoCapacity,
        short,
        "wait for a runner on it to finish, or add a node",
    ))
}

/// A reason for each property that the pool or its profile asks for in vain.
fn missing_properties(pool: &Pool, node: &Node) -> Vec<Reason> {
    let missing = profile::missing(pool, &node.capability.properties);
    let reason = |property: &String| {
        let (detail, unblocked_by) = if let Some(profile) = profile::offered(property) {
            (
                format!(
                    "pool {} has profile {profile}, which this node does not offer",
                    pool.name
                ),
                format!(
                    "a node that offers {profile} (profiles in its agent's configuration, and profile_{profile} in longshore node describe says why not), or another profile for the pool"
                ),
            )
        } else if let Some(runtime) = profile::runtime_offered(property) {
            (
                format!(
                    "pool {} asks for runtime {runtime}, which this node does not have",
                    pool.name
                ),
                format!(
                    "install {runtime} on the node and register it with its engine (runtime_{runtime} in longshore node describe says what is in the way), or leave runtime out of the pool"
                ),
            )
        } else if let Some((runtime, row)) = profile::told_under(property) {
            (
                format!(
                    "pool {} asks for runtime {runtime} and for {row}, which this node does not guarantee under it",
                    pool.name
                ),
                format!(
                    "another runtime for the pool, or a node that guarantees {row} under {runtime}: runtime_{runtime} in longshore node describe says what is in the way"
                ),
            )
        } else if property == profile::EGRESS_ALLOWLIST {
            (
                format!(
                    "pool {} has network mode allowlist, for which this node has no egress proxy",
                    pool.name
                ),
                "install longshore-egress beside longshore-agent on the node; longshore node describe says what is in the way".to_owned(),
            )
        } else if pool.required_properties.contains(property) {
            (
                format!(
                    "pool {} requires {property}, which this node does not guarantee",
                    pool.name
                ),
                format!("make the node guarantee {property}, or do not require it"),
            )
        } else {
            (
                format!(
                    "profile {} of pool {} requires {property}, which this node does not guarantee",
                    pool.profile, pool.name
                ),
                format!(
                    "make the node guarantee {property}: longshore node describe says what is in the way"
                ),
            )
        };
        Reason::new(ReasonCode::MissingProperty, detail, unblocked_by)
    };
    missing.iter().map(reason).collect()
}
