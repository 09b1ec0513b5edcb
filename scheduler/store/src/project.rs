//! Which rows a batch of facts changes: one patch per job and per runner.
//!
//! Pure. A patch holds only what the facts say; a store merges it into the row
//! it has, by the rules of [`JobPatch::merge`] and [`RunnerPatch::merge`], which
//! the SQL of a database repeats.

use std::collections::BTreeMap;

use scheduler_core::{
    fact::{Fact, RetireReason, RunnerPlaced},
    input::{JobSeen, ObservedPhase},
    model::{JobId, JobPhase, RunnerName, Scope, UtcMillis},
};

use crate::{
    format,
    rows::{JobRow, RunnerRow, RunnerStage},
};

/// Rows that a commit touches, in order of their keys.
#[derive(Debug, Default)]
pub(crate) struct Patches {
    pub(crate) jobs: BTreeMap<JobId, JobPatch>,
    pub(crate) runners: BTreeMap<RunnerName, RunnerPatch>,
    /// `owner/name`: rows of jobs that had not begun are over. Goes before the patches.
    pub(crate) repositories_gone: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct JobPatch {
    pub(crate) described: Option<JobSeen>,
    /// And whether it is set (the core's word) or only raised.
    pub(crate) phase: Option<(JobPhase, bool)>,
    pub(crate) conclusion: Option<String>,
    pub(crate) runner: Option<(RunnerName, bool)>,
    /// Ours, where GitHub gave no time.
    pub(crate) started_fallback: Option<UtcMillis>,
    pub(crate) completed_fallback: Option<UtcMillis>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct RunnerPatch {
    pub(crate) placed: Option<RunnerPlaced>,
    /// And whether it is set or only raised. Retired is final.
    pub(crate) stage: Option<(RunnerStage, bool)>,
    pub(crate) github_id: Option<u64>,
    pub(crate) container_id: Option<String>,
    pub(crate) job: Option<JobId>,
    pub(crate) registered_at: Option<UtcMillis>,
    pub(crate) online_at: Option<UtcMillis>,
    pub(crate) busy_at: Option<UtcMillis>,
    pub(crate) stopping: Option<(UtcMillis, String)>,
    pub(crate) retired: Option<Retired>,
}

#[derive(Clone, Debug)]
pub(crate) struct Retired {
    pub(crate) at: UtcMillis,
    pub(crate) reason: &'static str,
    pub(crate) exit: Option<scheduler_core::model::Exit>,
    /// Of the reason, where the node gave no exit.
    pub(crate) detail: Option<String>,
}

impl Patches {
    pub(crate) fn of(facts: &[Fact], commit_at: UtcMillis) -> Self {
        let mut patches = Self::default();
        for fact in facts {
            patches.add(fact, commit_at);
        }
        patches
    }

    fn job(&mut self, id: JobId) -> &mut JobPatch {
        self.jobs.entry(id).or_default()
    }

    fn runner(&mut self, name: &RunnerName) -> &mut RunnerPatch {
        self.runners.entry(name.clone()).or_default()
    }

    fn add(&mut self, fact: &Fact, commit_at: UtcMillis) {
        match fact {
            Fact::JobLearnt { job, .. } => {
                let patch = self.job(job.id);
                patch.raise(job.phase);
                if let Some(conclusion) = &job.conclusion {
                    patch.conclusion = Some(format::conclusion_word(conclusion));
                }
                patch.described = Some(JobSeen::clone(job));
            }
            Fact::JobPhaseChanged {
                job,
                phase,
                conclusion,
                at,
            } => {
                let patch = self.job(*job);
                patch.phase = Some((*phase, true));
                if let Some(conclusion) = conclusion {
                    patch.conclusion = Some(format::conclusion_word(conclusion));
                }
                match phase {
                    JobPhase::InProgress => {
                        patch.started_fallback.get_or_insert(*at);
                    }
                    JobPhase::Completed => {
                        patch.completed_fallback.get_or_insert(*at);
                    }
                    JobPhase::Waiting | JobPhase::Queued => {}
                }
            }
            Fact::JobForgotten { job } => {
                let patch = self.job(*job);
                patch.phase = Some((JobPhase::Completed, true));
                patch.completed_fallback.get_or_insert(commit_at);
            }
            Fact::JobBound {
                job,
                runner,
                ours,
                at,
            } => {
                self.job(*job).runner = Some((runner.clone(), *ours));
                if *ours {
                    let patch = self.runner(runner);
                    patch.job = Some(*job);
                    patch.busy_at.get_or_insert(*at);
                    patch.set(RunnerStage::Busy);
                }
            }
            Fact::RunnerPlaced(placed) => {
                let patch = self.runner(&placed.runner);
                patch.placed = Some(RunnerPlaced::clone(placed));
                patch.raise(RunnerStage::Reserved);
            }
            Fact::RunnerRegistered {
                runner,
                github_id,
                at,
            } => {
                let patch = self.runner(runner);
                patch.github_id = Some(*github_id);
                patch.registered_at.get_or_insert(*at);
                patch.raise(RunnerStage::Registered);
            }
            Fact::RunnerObserved {
                runner,
                phase,
                container_id,
                at,
                ..
            } => {
                let patch = self.runner(runner);
                if !container_id.is_empty() {
                    patch.container_id = Some(container_id.clone());
                }
                match phase {
                    ObservedPhase::Preparing
                    | ObservedPhase::Ready
                    | ObservedPhase::Exited
                    | ObservedPhase::Failed => {}
                    ObservedPhase::Consumed => patch.raise(RunnerStage::Starting),
                    ObservedPhase::Online => {
                        patch.online_at.get_or_insert(*at);
                        patch.raise(RunnerStage::Idle);
                    }
                    ObservedPhase::Busy => {
                        patch.busy_at.get_or_insert(*at);
                        patch.set(RunnerStage::Busy);
                    }
                }
            }
            Fact::RunnerStopping { runner, why, at } => {
                let patch = self.runner(runner);
                patch.stopping = Some((*at, why.words()));
                patch.set(RunnerStage::Stopping);
            }
            Fact::RunnerRetired {
                runner,
                exit,
                why,
                at,
                ..
            } => {
                let detail = match why {
                    RetireReason::NotPrepared(detail) => Some(detail.clone()),
                    _ => None,
                };
                let patch = self.runner(runner);
                patch.retired = Some(Retired {
                    at: *at,
                    reason: why.word(),
                    exit: exit.clone(),
                    detail,
                });
                patch.set(RunnerStage::Retired);
            }
            Fact::RepositoryGone { full_name, .. } => {
                for patch in self.jobs.values_mut() {
                    let seen = patch.described.as_ref();
                    if seen.is_some_and(|job| job.repository.full_name() == *full_name) {
                        patch.drop_unstarted(commit_at);
                    }
                }
                self.repositories_gone.push(full_name.clone());
            }
            // No row shows these: they are read from the state itself.
            Fact::EpochRaised { .. }
            | Fact::OriginLearnt { .. }
            | Fact::NodeJoined { .. }
            | Fact::CapabilityChanged { .. }
            | Fact::ConditionsChanged { .. }
            | Fact::NodeReachable { .. }
            | Fact::NodeUnreachable { .. }
            | Fact::NodeCordoned { .. }
            | Fact::NodeUncordoned { .. }
            | Fact::NodeDraining { .. }
            | Fact::NodeRemoved { .. }
            | Fact::RunnerDeregistered { .. }
            | Fact::OrphanSeen { .. }
            | Fact::OrphanGone { .. }
            | Fact::BudgetChanged { .. }
            | Fact::ImageBlocked { .. }
            | Fact::ImageCleared { .. }
            | Fact::ScopeRests { .. }
            | Fact::ScopeCleared { .. }
            | Fact::DemandRests { .. }
            | Fact::DemandCleared { .. }
            | Fact::FloorSet { .. }
            | Fact::FloorEnded { .. }
            | Fact::AutoscalerStarted { .. }
            | Fact::AutoscalerStopped { .. }
            | Fact::PoolSet { .. }
            | Fact::PoolDeleted { .. }
            | Fact::ShareSet { .. }
            | Fact::DefaultsSet { .. }
            | Fact::ForeignSeen { .. }
            | Fact::IntentNumbered { .. }
            | Fact::ShareServed { .. } => {}
        }
    }
}

impl JobPatch {
    fn raise(&mut self, phase: JobPhase) {
        self.phase = Some(match self.phase {
            Some((old, set)) => (old.max(phase), set),
            None => (phase, false),
        });
    }

    fn drop_unstarted(&mut self, at: UtcMillis) {
        if self
            .phase
            .is_some_and(|(phase, _)| phase <= JobPhase::Queued)
        {
            self.phase = Some((JobPhase::Completed, true));
            self.completed_fallback.get_or_insert(at);
        }
    }

    /// The row after this patch; `None` when nothing ever described the job.
    pub(crate) fn merge(&self, id: JobId, old: Option<&JobRow>, at: UtcMillis) -> Option<JobRow> {
        let mut row = match (&self.described, old) {
            (Some(seen), _) => JobRow {
                id,
                run_id: seen.run_id,
                attempt: seen.attempt,
                repository: seen.repository.full_name(),
                scope: seen.scope.to_string(),
                name: seen.name.clone(),
                workflow: seen.workflow.clone(),
                labels: seen.labels.clone(),
                phase: old.map_or(seen.phase, |o| o.phase),
                conclusion: old.and_then(|o| o.conclusion.clone()),
                runner: old.and_then(|o| o.runner.clone()),
                ours: old.is_some_and(|o| o.ours),
                created_at: seen.created_at,
                started_at: seen.started_at.or(old.and_then(|o| o.started_at)),
                completed_at: seen.completed_at.or(old.and_then(|o| o.completed_at)),
                html_url: seen.html_url.clone(),
                changed_at: at,
            },
            (None, Some(old)) => JobRow {
                changed_at: at,
                ..old.clone()
            },
            (None, None) => return None,
        };
        match self.phase {
            Some((phase, true)) => row.phase = phase,
            Some((phase, false)) => row.phase = row.phase.max(phase),
            None => {}
        }
        if let Some(conclusion) = &self.conclusion {
            row.conclusion = Some(conclusion.clone());
        }
        if let Some((runner, ours)) = &self.runner {
            row.runner = Some(runner.as_str().to_owned());
            row.ours = *ours;
        }
        row.started_at = row.started_at.or(self.started_fallback);
        row.completed_at = row.completed_at.or(self.completed_fallback);
        Some(row)
    }
}

impl RunnerPatch {
    fn raise(&mut self, stage: RunnerStage) {
        self.stage = Some(match self.stage {
            Some((old, set)) => (old.max(stage), set),
            None => (stage, false),
        });
    }

    fn set(&mut self, stage: RunnerStage) {
        if !matches!(self.stage, Some((RunnerStage::Retired, _))) {
            self.stage = Some((stage, true));
        }
    }

    /// The row after this patch; `None` when the runner was never placed.
    pub(crate) fn merge(
        &self,
        name: &RunnerName,
        old: Option<&RunnerRow>,
        job_repository: Option<String>,
    ) -> Option<RunnerRow> {
        let mut row = match (&self.placed, old) {
            (_, Some(old)) => old.clone(),
            (Some(placed), None) => RunnerRow {
                name: name.clone(),
                node: placed.node.as_str().to_owned(),
                pool: placed.pool.as_str().to_owned(),
                scope: placed.scope.to_string(),
                repository: repository_of(placed),
                labels: placed.labels.clone(),
                resources: placed.resources,
                gpu_uuids: placed.gpu_uuids.clone(),
                image: placed.image.clone(),
                profile: placed.profile.clone(),
                stage: RunnerStage::Reserved,
                github_id: None,
                container_id: None,
                job: None,
                placed_at: placed.at,
                registered_at: None,
                online_at: None,
                busy_at: None,
                stopping_at: None,
                stop_reason: None,
                retired_at: None,
                retire_reason: None,
                exit_code: None,
                exit_cause: None,
                exit_detail: None,
                usage: None,
                denied: None,
            },
            (None, None) => return None,
        };
        match self.stage {
            _ if row.stage == RunnerStage::Retired => {}
            Some((stage, true)) => row.stage = stage,
            Some((stage, false)) => row.stage = row.stage.max(stage),
            None => {}
        }
        row.github_id = self.github_id.or(row.github_id);
        row.container_id = self.container_id.clone().or(row.container_id);
        row.job = self.job.or(row.job);
        row.repository = job_repository.or(row.repository);
        row.registered_at = row.registered_at.or(self.registered_at);
        row.online_at = row.online_at.or(self.online_at);
        row.busy_at = row.busy_at.or(self.busy_at);
        if let (None, Some((at, why))) = (row.stopping_at, &self.stopping) {
            row.stopping_at = Some(*at);
            row.stop_reason = Some(why.clone());
        }
        if let (None, Some(retired)) = (row.retired_at, &self.retired) {
            row.retired_at = Some(retired.at);
            row.retire_reason = Some(retired.reason.to_owned());
            row.exit_code = retired.exit_code();
            row.exit_cause = retired.exit.as_ref().map(|e| e.cause.clone());
            row.exit_detail = retired.detail();
            row.usage = retired.exit.as_ref().and_then(|e| e.usage);
            row.denied = retired.exit.as_ref().and_then(|e| e.denied.clone());
        }
        Some(row)
    }
}

impl Retired {
    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.exit.as_ref().and_then(|e| e.code)
    }

    pub(crate) fn detail(&self) -> Option<String> {
        self.exit
            .as_ref()
            .map(|e| e.detail.clone())
            .or_else(|| self.detail.clone())
    }
}

/// `owner/name` a runner belongs to before it took a job.
pub(crate) fn repository_of(placed: &RunnerPlaced) -> Option<String> {
    placed
        .repository
        .as_deref()
        .map(str::to_owned)
        .or(match &*placed.scope {
            Scope::Repository { owner, repo } => Some(format!("{owner}/{repo}")),
            Scope::Organization { .. } | Scope::Enterprise { .. } => None,
        })
}
