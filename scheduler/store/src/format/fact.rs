//! Facts, both ways. The match over each enum is exhaustive, so that a new fact
//! does not compile until it has a place on disk.

use std::sync::Arc;

use longshore_proto::store::v1::{self as stored, fact::Kind};
use scheduler_core::{
    fact::{Fact, RunnerPlaced, RunnerSpec},
    input::JobSeen,
    model::{CredentialName, JobId, NodeName, PoolName, RunnerName},
};

use super::{Hole, need, value as v};

fn text(name: impl AsRef<str>) -> String {
    name.as_ref().to_owned()
}

pub(super) fn encode(fact: &Fact) -> stored::Fact {
    let kind = match fact {
        Fact::EpochRaised { epoch } => Kind::EpochRaised(stored::EpochRaised { epoch: *epoch }),
        Fact::JobLearnt { job, at } => Kind::JobLearnt(job_learnt(job, *at)),
        Fact::JobPhaseChanged {
            job,
            phase,
            conclusion,
            at,
        } => Kind::JobPhaseChanged(stored::JobPhaseChanged {
            job: job.0,
            phase: v::phase(*phase),
            conclusion: conclusion.as_ref().map(v::conclusion),
            at_ms: *at,
        }),
        Fact::OriginLearnt { job, origin } => Kind::OriginLearnt(stored::OriginLearnt {
            job: job.0,
            origin: Some(v::origin(origin)),
        }),
        Fact::JobForgotten { job } => Kind::JobForgotten(stored::JobForgotten { job: job.0 }),
        Fact::JobBound {
            job,
            runner,
            ours,
            at,
        } => Kind::JobBound(stored::JobBound {
            job: job.0,
            runner: text(runner.as_str()),
            ours: *ours,
            at_ms: *at,
        }),
        Fact::NodeJoined { node, capability } => Kind::NodeJoined(stored::NodeJoined {
            node: text(node.as_str()),
            capability: Some(v::capability(capability)),
        }),
        Fact::CapabilityChanged { node, capability } => {
            Kind::CapabilityChanged(stored::CapabilityChanged {
                node: text(node.as_str()),
                capability: Some(v::capability(capability)),
            })
        }
        Fact::ConditionsChanged { node, conditions } => {
            Kind::ConditionsChanged(stored::ConditionsChanged {
                node: text(node.as_str()),
                conditions: conditions.iter().map(v::condition).collect(),
            })
        }
        Fact::NodeReachable { node } => Kind::NodeReachable(stored::NodeReachable {
            node: text(node.as_str()),
        }),
        Fact::NodeUnreachable { node, since } => Kind::NodeUnreachable(stored::NodeUnreachable {
            node: text(node.as_str()),
            since_ms: *since,
        }),
        Fact::NodeCordoned { node } => Kind::NodeCordoned(stored::NodeCordoned {
            node: text(node.as_str()),
        }),
        Fact::NodeUncordoned { node } => Kind::NodeUncordoned(stored::NodeUncordoned {
            node: text(node.as_str()),
        }),
        Fact::NodeDraining { node, deadline } => Kind::NodeDraining(stored::NodeDraining {
            node: text(node.as_str()),
            deadline_ms: *deadline,
        }),
        Fact::NodeRemoved { node } => Kind::NodeRemoved(stored::NodeRemoved {
            node: text(node.as_str()),
        }),
        Fact::RunnerPlaced(placed) => Kind::RunnerPlaced(runner_placed(placed)),
        Fact::RunnerRegistered {
            runner,
            github_id,
            at,
        } => Kind::RunnerRegistered(stored::RunnerRegistered {
            runner: text(runner.as_str()),
            github_id: *github_id,
            at_ms: *at,
        }),
        Fact::RunnerObserved {
            runner,
            phase,
            observation,
            worker,
            container_id,
            at,
        } => Kind::RunnerObserved(stored::RunnerObserved {
            runner: text(runner.as_str()),
            phase: v::observed(*phase),
            observation: *observation,
            worker: *worker,
            container_id: container_id.clone(),
            at_ms: *at,
        }),
        Fact::RunnerStopping { runner, why, at } => Kind::RunnerStopping(stored::RunnerStopping {
            runner: text(runner.as_str()),
            why: Some(v::stop_reason(why)),
            at_ms: *at,
        }),
        Fact::RunnerDeregistered {
            runner,
            outcome,
            at,
        } => Kind::RunnerDeregistered(stored::RunnerDeregistered {
            runner: text(runner.as_str()),
            outcome: v::deregistration(*outcome),
            at_ms: *at,
        }),
        Fact::RunnerRetired {
            runner,
            exit,
            why,
            deregister,
            at,
        } => Kind::RunnerRetired(stored::RunnerRetired {
            runner: text(runner.as_str()),
            exit: exit.as_ref().map(v::exit),
            why: Some(v::retire_reason(why)),
            deregister: *deregister,
            at_ms: *at,
        }),
        Fact::OrphanSeen {
            runner,
            scope,
            credential,
            github_id,
            at,
        } => Kind::OrphanSeen(stored::OrphanSeen {
            runner: text(runner.as_str()),
            scope: Some(v::scope(scope)),
            credential: text(credential.as_str()),
            github_id: *github_id,
            at_ms: *at,
        }),
        Fact::OrphanGone { runner } => Kind::OrphanGone(stored::OrphanGone {
            runner: text(runner.as_str()),
        }),
        Fact::BudgetChanged {
            credential,
            scopes,
            registrations,
            limited_until,
            problem,
        } => Kind::BudgetChanged(stored::BudgetChanged {
            credential: text(credential.as_str()),
            scopes: scopes.iter().map(v::scope).collect(),
            registrations: *registrations,
            limited_until_ms: *limited_until,
            problem: problem.clone(),
        }),
        Fact::ImageBlocked {
            image,
            node,
            until,
            detail,
            failures,
        } => Kind::ImageBlocked(stored::ImageBlocked {
            image: image.clone(),
            node: node.as_ref().map(|n| text(n.as_str())),
            until_ms: *until,
            detail: detail.clone(),
            failures: *failures,
        }),
        Fact::ImageCleared { image, node } => Kind::ImageCleared(stored::ImageCleared {
            image: image.clone(),
            node: node.as_ref().map(|n| text(n.as_str())),
        }),
        Fact::ScopeRests {
            scope,
            until,
            detail,
            failures,
        } => Kind::ScopeRests(stored::ScopeRests {
            scope: Some(v::scope(scope)),
            until_ms: *until,
            detail: detail.clone(),
            failures: *failures,
        }),
        Fact::ScopeCleared { scope } => Kind::ScopeCleared(stored::ScopeCleared {
            scope: Some(v::scope(scope)),
        }),
        Fact::DemandRests {
            scope,
            repository,
            labels,
            until,
            runners,
        } => Kind::DemandRests(stored::DemandRests {
            scope: Some(v::scope(scope)),
            repository: repository.clone(),
            labels: labels.clone(),
            until_ms: *until,
            runners: *runners,
        }),
        Fact::DemandCleared {
            scope,
            repository,
            labels,
        } => Kind::DemandCleared(stored::DemandCleared {
            scope: Some(v::scope(scope)),
            repository: repository.clone(),
            labels: labels.clone(),
        }),
        Fact::FloorSet {
            scope,
            credential,
            pool,
            labels,
            count,
            until,
        } => Kind::FloorSet(stored::FloorSet {
            scope: Some(v::scope(scope)),
            credential: text(credential.as_str()),
            pool: text(pool.as_str()),
            labels: labels.clone(),
            count: *count,
            until_ms: *until,
        }),
        Fact::FloorEnded {
            scope,
            pool,
            labels,
        } => Kind::FloorEnded(stored::FloorEnded {
            scope: Some(v::scope(scope)),
            pool: text(pool.as_str()),
            labels: labels.clone(),
        }),
        Fact::AutoscalerStarted {
            max_runners,
            image,
            at,
        } => Kind::AutoscalerStarted(stored::AutoscalerStarted {
            max_runners: *max_runners,
            image: image.clone(),
            at_ms: *at,
        }),
        Fact::AutoscalerStopped { at } => {
            Kind::AutoscalerStopped(stored::AutoscalerStopped { at_ms: *at })
        }
        Fact::PoolSet { pool, origin } => Kind::PoolSet(stored::PoolSet {
            pool: Some(v::pool(pool)),
            origin: v::pool_origin(*origin),
        }),
        Fact::PoolDeleted { pool } => Kind::PoolDeleted(stored::PoolDeleted {
            pool: text(pool.as_str()),
        }),
        Fact::ShareSet {
            subject,
            weight,
            maximum,
            origin,
        } => Kind::ShareSet(stored::ShareSet {
            subject: subject.clone(),
            weight: *weight,
            maximum: *maximum,
            origin: v::pool_origin(*origin),
        }),
        Fact::DefaultsSet { defaults } => Kind::DefaultsSet(stored::DefaultsSet {
            defaults: Some(v::defaults(defaults)),
        }),
        Fact::RepositoryGone { id, full_name } => Kind::RepositoryGone(stored::RepositoryGone {
            id: *id,
            full_name: full_name.clone(),
        }),
        Fact::ForeignSeen { node, runners } => Kind::ForeignSeen(stored::ForeignSeen {
            node: text(node.as_str()),
            runners: runners.iter().map(|r| text(r.as_str())).collect(),
        }),
        Fact::IntentNumbered { node, generation } => Kind::IntentNumbered(stored::IntentNumbered {
            node: text(node.as_str()),
            generation: Some(v::generation(*generation)),
        }),
        Fact::ShareServed {
            subject,
            virtual_time,
            served,
            credit,
        } => Kind::ShareServed(stored::ShareServed {
            subject: subject.clone(),
            virtual_time: *virtual_time,
            served: *served,
            credit: *credit,
        }),
    };
    stored::Fact { kind: Some(kind) }
}

pub(super) fn decode(fact: stored::Fact) -> Result<Fact, Hole> {
    Ok(match need(fact.kind, "unknown fact")? {
        Kind::EpochRaised(f) => Fact::EpochRaised { epoch: f.epoch },
        Kind::JobLearnt(f) => {
            let at = f.at_ms;
            Fact::JobLearnt {
                job: Arc::new(job_learnt_back(f)?),
                at,
            }
        }
        Kind::JobPhaseChanged(f) => Fact::JobPhaseChanged {
            job: JobId(f.job),
            phase: v::phase_back(f.phase)?,
            conclusion: f.conclusion.map(v::conclusion_back),
            at: f.at_ms,
        },
        Kind::OriginLearnt(f) => Fact::OriginLearnt {
            job: JobId(f.job),
            origin: v::origin_back(f.origin),
        },
        Kind::JobForgotten(f) => Fact::JobForgotten { job: JobId(f.job) },
        Kind::JobBound(f) => Fact::JobBound {
            job: JobId(f.job),
            runner: RunnerName::new(f.runner),
            ours: f.ours,
            at: f.at_ms,
        },
        Kind::NodeJoined(f) => Fact::NodeJoined {
            node: NodeName::new(f.node),
            capability: Box::new(v::capability_back(f.capability)?),
        },
        Kind::CapabilityChanged(f) => Fact::CapabilityChanged {
            node: NodeName::new(f.node),
            capability: Box::new(v::capability_back(f.capability)?),
        },
        Kind::ConditionsChanged(f) => Fact::ConditionsChanged {
            node: NodeName::new(f.node),
            conditions: f.conditions.into_iter().map(v::condition_back).collect(),
        },
        Kind::NodeReachable(f) => Fact::NodeReachable {
            node: NodeName::new(f.node),
        },
        Kind::NodeUnreachable(f) => Fact::NodeUnreachable {
            node: NodeName::new(f.node),
            since: f.since_ms,
        },
        Kind::NodeCordoned(f) => Fact::NodeCordoned {
            node: NodeName::new(f.node),
        },
        Kind::NodeUncordoned(f) => Fact::NodeUncordoned {
            node: NodeName::new(f.node),
        },
        Kind::NodeDraining(f) => Fact::NodeDraining {
            node: NodeName::new(f.node),
            deadline: f.deadline_ms,
        },
        Kind::NodeRemoved(f) => Fact::NodeRemoved {
            node: NodeName::new(f.node),
        },
        Kind::RunnerPlaced(f) => Fact::RunnerPlaced(Arc::new(runner_placed_back(f)?)),
        Kind::RunnerRegistered(f) => Fact::RunnerRegistered {
            runner: RunnerName::new(f.runner),
            github_id: f.github_id,
            at: f.at_ms,
        },
        Kind::RunnerObserved(f) => Fact::RunnerObserved {
            runner: RunnerName::new(f.runner),
            phase: v::observed_back(f.phase)?,
            observation: f.observation,
            worker: f.worker,
            container_id: f.container_id,
            at: f.at_ms,
        },
        Kind::RunnerStopping(f) => Fact::RunnerStopping {
            runner: RunnerName::new(f.runner),
            why: v::stop_reason_back(f.why)?,
            at: f.at_ms,
        },
        Kind::RunnerDeregistered(f) => Fact::RunnerDeregistered {
            runner: RunnerName::new(f.runner),
            outcome: v::deregistration_back(f.outcome)?,
            at: f.at_ms,
        },
        Kind::RunnerRetired(f) => Fact::RunnerRetired {
            runner: RunnerName::new(f.runner),
            exit: f.exit.map(v::exit_back),
            why: v::retire_reason_back(f.why)?,
            deregister: f.deregister,
            at: f.at_ms,
        },
        Kind::OrphanSeen(f) => Fact::OrphanSeen {
            runner: RunnerName::new(f.runner),
            scope: v::scope_back(f.scope)?,
            credential: CredentialName::new(f.credential),
            github_id: f.github_id,
            at: f.at_ms,
        },
        Kind::OrphanGone(f) => Fact::OrphanGone {
            runner: RunnerName::new(f.runner),
        },
        Kind::BudgetChanged(f) => Fact::BudgetChanged {
            credential: CredentialName::new(f.credential),
            scopes: f
                .scopes
                .into_iter()
                .map(|s| v::scope_back(Some(s)))
                .collect::<Result<_, _>>()?,
            registrations: f.registrations,
            limited_until: f.limited_until_ms,
            problem: f.problem,
        },
        Kind::ImageBlocked(f) => Fact::ImageBlocked {
            image: f.image,
            node: f.node.map(NodeName::new),
            until: f.until_ms,
            detail: f.detail,
            failures: f.failures,
        },
        Kind::ImageCleared(f) => Fact::ImageCleared {
            image: f.image,
            node: f.node.map(NodeName::new),
        },
        Kind::ScopeRests(f) => Fact::ScopeRests {
            scope: v::scope_back(f.scope)?,
            until: f.until_ms,
            detail: f.detail,
            failures: f.failures,
        },
        Kind::ScopeCleared(f) => Fact::ScopeCleared {
            scope: v::scope_back(f.scope)?,
        },
        Kind::DemandRests(f) => Fact::DemandRests {
            scope: v::scope_back(f.scope)?,
            repository: f.repository,
            labels: f.labels,
            until: f.until_ms,
            runners: f.runners,
        },
        Kind::DemandCleared(f) => Fact::DemandCleared {
            scope: v::scope_back(f.scope)?,
            repository: f.repository,
            labels: f.labels,
        },
        Kind::FloorSet(f) => Fact::FloorSet {
            scope: v::scope_back(f.scope)?,
            credential: CredentialName::new(f.credential),
            pool: PoolName::new(f.pool),
            labels: f.labels,
            count: f.count,
            until: f.until_ms,
        },
        Kind::FloorEnded(f) => Fact::FloorEnded {
            scope: v::scope_back(f.scope)?,
            pool: PoolName::new(f.pool),
            labels: f.labels,
        },
        Kind::AutoscalerStarted(f) => Fact::AutoscalerStarted {
            max_runners: f.max_runners,
            image: f.image,
            at: f.at_ms,
        },
        Kind::AutoscalerStopped(f) => Fact::AutoscalerStopped { at: f.at_ms },
        Kind::PoolSet(f) => Fact::PoolSet {
            pool: Box::new(v::pool_back(f.pool)?),
            origin: v::pool_origin_back(f.origin)?,
        },
        Kind::PoolDeleted(f) => Fact::PoolDeleted {
            pool: PoolName::new(f.pool),
        },
        Kind::ShareSet(f) => Fact::ShareSet {
            subject: f.subject,
            weight: f.weight,
            maximum: f.maximum,
            origin: v::pool_origin_back(f.origin)?,
        },
        Kind::DefaultsSet(f) => Fact::DefaultsSet {
            defaults: Box::new(v::defaults_back(f.defaults)?),
        },
        Kind::RepositoryGone(f) => Fact::RepositoryGone {
            id: f.id,
            full_name: f.full_name,
        },
        Kind::ForeignSeen(f) => Fact::ForeignSeen {
            node: NodeName::new(f.node),
            runners: f.runners.into_iter().map(RunnerName::new).collect(),
        },
        Kind::IntentNumbered(f) => Fact::IntentNumbered {
            node: NodeName::new(f.node),
            generation: v::generation_back(f.generation),
        },
        Kind::ShareServed(f) => Fact::ShareServed {
            subject: f.subject,
            virtual_time: f.virtual_time,
            served: f.served,
            credit: f.credit,
        },
    })
}

fn job_learnt(job: &JobSeen, at: u64) -> stored::JobLearnt {
    stored::JobLearnt {
        id: job.id.0,
        run_id: job.run_id,
        attempt: job.attempt,
        repository: Some(v::repository(&job.repository)),
        scope: Some(v::scope(&job.scope)),
        credential: text(job.credential.as_str()),
        name: job.name.clone(),
        workflow: job.workflow.clone(),
        labels: job.labels.clone(),
        phase: v::phase(job.phase),
        conclusion: job.conclusion.as_ref().map(v::conclusion),
        runner_name: job.runner_name.clone(),
        runner_id: job.runner_id,
        origin: Some(v::origin(&job.origin)),
        created_at_ms: job.created_at,
        started_at_ms: job.started_at,
        completed_at_ms: job.completed_at,
        html_url: job.html_url.clone(),
        traceparent: job.traceparent.clone(),
        at_ms: at,
    }
}

fn job_learnt_back(job: stored::JobLearnt) -> Result<JobSeen, Hole> {
    Ok(JobSeen {
        id: JobId(job.id),
        run_id: job.run_id,
        attempt: job.attempt,
        repository: v::repository_back(job.repository)?,
        scope: v::scope_back(job.scope)?,
        credential: CredentialName::new(job.credential),
        name: job.name,
        workflow: job.workflow,
        labels: job.labels,
        phase: v::phase_back(job.phase)?,
        conclusion: job.conclusion.map(v::conclusion_back),
        runner_name: job.runner_name,
        runner_id: job.runner_id,
        origin: v::origin_back(job.origin),
        created_at: job.created_at_ms,
        started_at: job.started_at_ms,
        completed_at: job.completed_at_ms,
        html_url: job.html_url,
        traceparent: job.traceparent,
    })
}

fn runner_placed(placed: &RunnerPlaced) -> stored::RunnerPlaced {
    stored::RunnerPlaced {
        runner: text(placed.runner.as_str()),
        node: text(placed.node.as_str()),
        pool: text(placed.pool.as_str()),
        scope: Some(v::scope(&placed.scope)),
        credential: text(placed.credential.as_str()),
        labels: placed.labels.clone(),
        resources: Some(v::resources(placed.resources)),
        gpu_uuids: placed.gpu_uuids.clone(),
        image: placed.image.clone(),
        profile: placed.profile.clone(),
        network_mode: placed.network_mode.clone(),
        allowed_domains: placed.allowed_domains.clone(),
        runtime: placed.runtime.clone(),
        platform: placed.platform.clone(),
        runner_group: placed.runner_group.clone(),
        idle_timeout_ms: placed.idle_timeout_ms,
        lifetime_ms: placed.lifetime_ms,
        traceparent: placed.traceparent.clone(),
        generation: Some(v::generation(placed.generation)),
        at_ms: placed.at,
        job: placed.job.map(|job| job.0),
        repository: placed.repository.as_deref().map(text),
    }
}

fn runner_placed_back(placed: stored::RunnerPlaced) -> Result<RunnerPlaced, Hole> {
    Ok(RunnerPlaced {
        runner: RunnerName::new(placed.runner),
        node: NodeName::new(placed.node),
        scope: Arc::new(v::scope_back(placed.scope)?),
        spec: Arc::new(RunnerSpec {
            pool: PoolName::new(placed.pool),
            credential: CredentialName::new(placed.credential),
            labels: placed.labels,
            image: placed.image,
            profile: placed.profile,
            network_mode: placed.network_mode,
            allowed_domains: placed.allowed_domains,
            runtime: placed.runtime,
            platform: placed.platform,
            runner_group: placed.runner_group,
            idle_timeout_ms: placed.idle_timeout_ms,
            lifetime_ms: placed.lifetime_ms,
        }),
        resources: v::resources_back(placed.resources),
        gpu_uuids: placed.gpu_uuids,
        traceparent: placed.traceparent,
        generation: v::generation_back(placed.generation),
        at: placed.at_ms,
        job: placed.job.map(JobId),
        repository: placed.repository.map(Into::into),
    })
}
