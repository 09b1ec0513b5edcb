//! The nouns inside facts, both ways.

use std::time::Duration;

use longshore_proto::store::v1 as stored;
use scheduler_core::{
    fact::{PoolOrigin, RetireReason, StopReason},
    input::{Defaults, Deregistration, ObservedPhase},
    model::{
        Admission, Capability, Conclusion, Condition, Denied, DeniedDestination, Exit, Generation,
        Gpu, GpuNeeds, JobPhase, Origin, Placement, Pool, PoolName, Priority, Repository,
        Resources, Scope, Usage,
    },
};

use super::{Hole, need};

fn nanos(duration: Duration) -> u64 {
    // 584 years fit; longer ones end there.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A closed list of words, both ways. Zero and unknown numbers are holes.
macro_rules! words {
    ($encode:ident, $decode:ident, $core:ty, $stored:ident, $what:literal, $($word:ident),+) => {
        pub(super) fn $encode(word: $core) -> i32 {
            match word {
                $(<$core>::$word => stored::$stored::$word as i32,)+
            }
        }

        pub(super) fn $decode(number: i32) -> Result<$core, Hole> {
            match stored::$stored::try_from(number) {
                $(Ok(stored::$stored::$word) => Ok(<$core>::$word),)+
                Ok(stored::$stored::Unspecified) | Err(_) => Err(Hole($what)),
            }
        }
    };
}

words!(
    phase,
    phase_back,
    JobPhase,
    JobPhase,
    "unknown phase of a job",
    Waiting,
    Queued,
    InProgress,
    Completed
);
words!(
    admission,
    admission_back,
    Admission,
    Admission,
    "unknown admission",
    Refuse,
    StrictOnly,
    Allow
);
words!(
    priority,
    priority_back,
    Priority,
    Priority,
    "unknown priority",
    Low,
    Normal,
    High
);
words!(
    placement,
    placement_back,
    Placement,
    Placement,
    "unknown placement",
    Pack,
    Spread
);
words!(
    pool_origin,
    pool_origin_back,
    PoolOrigin,
    PoolOrigin,
    "unknown origin of a pool",
    BuiltIn,
    File,
    Api
);
words!(
    observed,
    observed_back,
    ObservedPhase,
    ObservedPhase,
    "unknown phase of a runner",
    Preparing,
    Ready,
    Consumed,
    Online,
    Busy,
    Exited,
    Failed
);
words!(
    deregistration,
    deregistration_back,
    Deregistration,
    Deregistration,
    "unknown outcome of a deregistration",
    Gone,
    Busy,
    Failed
);

pub(super) fn conclusion(conclusion: &Conclusion) -> String {
    match conclusion {
        Conclusion::Success => "success",
        Conclusion::Failure => "failure",
        Conclusion::Cancelled => "cancelled",
        Conclusion::Skipped => "skipped",
        Conclusion::TimedOut => "timed_out",
        Conclusion::Other(word) => word,
    }
    .to_owned()
}

pub(super) fn conclusion_back(word: String) -> Conclusion {
    match word.as_str() {
        "success" => Conclusion::Success,
        "failure" => Conclusion::Failure,
        "cancelled" => Conclusion::Cancelled,
        "skipped" => Conclusion::Skipped,
        "timed_out" => Conclusion::TimedOut,
        _ => Conclusion::Other(word),
    }
}

pub(super) fn scope(scope: &Scope) -> stored::Scope {
    use stored::scope::Kind;
    let kind = match scope {
        Scope::Repository { owner, repo } => Kind::Repository(stored::RepositoryScope {
            owner: owner.clone(),
            repo: repo.clone(),
        }),
        Scope::Organization { login } => Kind::Organization(login.clone()),
        Scope::Enterprise { slug } => Kind::Enterprise(slug.clone()),
    };
    stored::Scope { kind: Some(kind) }
}

pub(super) fn scope_back(scope: Option<stored::Scope>) -> Result<Scope, Hole> {
    use stored::scope::Kind;
    Ok(
        match need(scope.and_then(|s| s.kind), "no or unknown scope")? {
            Kind::Repository(stored::RepositoryScope { owner, repo }) => {
                Scope::Repository { owner, repo }
            }
            Kind::Organization(login) => Scope::Organization { login },
            Kind::Enterprise(slug) => Scope::Enterprise { slug },
        },
    )
}

pub(super) fn repository(repository: &Repository) -> stored::Repository {
    stored::Repository {
        id: repository.id,
        owner: repository.owner.clone(),
        name: repository.name.clone(),
        private: repository.private,
    }
}

pub(super) fn repository_back(repository: Option<stored::Repository>) -> Result<Repository, Hole> {
    let stored::Repository {
        id,
        owner,
        name,
        private,
    } = need(repository, "no repository")?;
    Ok(Repository {
        id,
        owner,
        name,
        private,
    })
}

pub(super) fn origin(origin: &Origin) -> stored::Origin {
    stored::Origin {
        event: origin.event.clone(),
        head_repository: origin.head_repository.clone(),
    }
}

pub(super) fn origin_back(origin: Option<stored::Origin>) -> Origin {
    let stored::Origin {
        event,
        head_repository,
    } = origin.unwrap_or_default();
    Origin {
        event,
        head_repository,
    }
}

pub(super) fn resources(resources: Resources) -> stored::Resources {
    stored::Resources {
        cpu_millis: resources.cpu_millis,
        memory_bytes: resources.memory_bytes,
        gpus: resources.gpus,
    }
}

pub(super) fn resources_back(resources: Option<stored::Resources>) -> Resources {
    let stored::Resources {
        cpu_millis,
        memory_bytes,
        gpus,
    } = resources.unwrap_or_default();
    Resources {
        cpu_millis,
        memory_bytes,
        gpus,
    }
}

pub(super) fn capability(capability: &Capability) -> stored::Capability {
    stored::Capability {
        arch: capability.arch.clone(),
        labels: capability.labels.iter().cloned().collect(),
        capacity: Some(resources(capability.capacity)),
        gpus: capability
            .gpus
            .iter()
            .map(|gpu| stored::Gpu {
                uuid: gpu.uuid.clone(),
                product: gpu.product.clone(),
                memory_mib: gpu.memory_mib,
                compute_capability: gpu.compute_capability.clone(),
                proven: gpu.proven,
                parent: gpu.parent.clone(),
                withheld: gpu.withheld.as_ref().map(condition),
            })
            .collect(),
        max_runners: capability.max_runners,
        properties: capability.properties.iter().cloned().collect(),
        facts: capability
            .facts
            .iter()
            .map(|(name, value)| stored::Finding {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
    }
}

pub(super) fn capability_back(capability: Option<stored::Capability>) -> Result<Capability, Hole> {
    let stored::Capability {
        arch,
        labels,
        capacity,
        gpus,
        max_runners,
        properties,
        facts,
    } = need(capability, "no capability")?;
    Ok(Capability {
        arch,
        labels: labels.into_iter().collect(),
        capacity: resources_back(capacity),
        gpus: gpus
            .into_iter()
            .map(|gpu| Gpu {
                uuid: gpu.uuid,
                product: gpu.product,
                memory_mib: gpu.memory_mib,
                compute_capability: gpu.compute_capability,
                proven: gpu.proven,
                parent: gpu.parent,
                withheld: gpu.withheld.map(condition_back),
            })
            .collect(),
        max_runners,
        properties: properties.into_iter().collect(),
        facts: facts.into_iter().map(|f| (f.name, f.value)).collect(),
    })
}

/// Nothing for a pool that takes any: what was written before stays the same bytes.
fn gpu_needs(needs: &GpuNeeds) -> Option<stored::GpuNeeds> {
    (*needs != GpuNeeds::default()).then(|| stored::GpuNeeds {
        memory_mib: needs.memory_mib,
        compute_major: needs.compute_capability.0,
        compute_minor: needs.compute_capability.1,
        models: needs.models.clone(),
    })
}

fn gpu_needs_back(needs: Option<stored::GpuNeeds>) -> GpuNeeds {
    let needs = needs.unwrap_or_default();
    GpuNeeds {
        memory_mib: needs.memory_mib,
        compute_capability: (needs.compute_major, needs.compute_minor),
        models: needs.models,
    }
}

pub(super) fn condition(condition: &Condition) -> stored::Condition {
    stored::Condition {
        kind: condition.kind.clone(),
        detail: condition.detail.clone(),
        next_step: condition.next_step.clone(),
        image: condition.image.clone(),
    }
}

pub(super) fn condition_back(condition: stored::Condition) -> Condition {
    Condition {
        kind: condition.kind,
        detail: condition.detail,
        next_step: condition.next_step,
        image: condition.image,
    }
}

pub(super) fn pool(pool: &Pool) -> stored::Pool {
    stored::Pool {
        name: pool.name.as_str().to_owned(),
        labels: pool.labels.iter().cloned().collect(),
        repositories: pool.repositories.clone(),
        public_repositories: admission(pool.public_repositories),
        fork_pull_requests: admission(pool.fork_pull_requests),
        image: pool.image.clone(),
        runner_group: pool.runner_group.clone(),
        name_prefix: pool.name_prefix.clone(),
        resources: Some(resources(pool.resources)),
        gpu: gpu_needs(&pool.gpu),
        profile: pool.profile.clone(),
        network_mode: pool.network_mode.clone(),
        allowed_domains: pool.allowed_domains.clone(),
        idle_floor: pool.idle_floor,
        maximum: pool.maximum,
        priority: priority(pool.priority),
        placement: placement(pool.placement),
        required_properties: pool.required_properties.iter().cloned().collect(),
        idle_timeout_ns: nanos(pool.idle_timeout),
        lifetime_ns: nanos(pool.lifetime),
        bare_self_hosted: pool.bare_self_hosted,
        precedence: pool.precedence,
        runtime: pool.runtime.clone(),
    }
}

pub(super) fn pool_back(pool: Option<stored::Pool>) -> Result<Pool, Hole> {
    let pool = need(pool, "no pool")?;
    Ok(Pool {
        name: PoolName::new(pool.name),
        labels: pool.labels.into_iter().collect(),
        repositories: pool.repositories,
        public_repositories: admission_back(pool.public_repositories)?,
        fork_pull_requests: admission_back(pool.fork_pull_requests)?,
        image: pool.image,
        runner_group: pool.runner_group,
        name_prefix: pool.name_prefix,
        resources: resources_back(pool.resources),
        gpu: gpu_needs_back(pool.gpu),
        profile: pool.profile,
        network_mode: pool.network_mode,
        allowed_domains: pool.allowed_domains,
        idle_floor: pool.idle_floor,
        maximum: pool.maximum,
        priority: priority_back(pool.priority)?,
        placement: placement_back(pool.placement)?,
        required_properties: pool.required_properties.into_iter().collect(),
        idle_timeout: Duration::from_nanos(pool.idle_timeout_ns),
        lifetime: Duration::from_nanos(pool.lifetime_ns),
        bare_self_hosted: pool.bare_self_hosted,
        precedence: pool.precedence,
        runtime: pool.runtime,
    })
}

pub(super) fn defaults(defaults: &Defaults) -> stored::Defaults {
    stored::Defaults {
        image: defaults.image.clone(),
        max_runners: defaults.max_runners,
        idle_timeout_ns: nanos(defaults.idle_timeout),
        lifetime_ns: nanos(defaults.lifetime),
        node_lease_ns: nanos(defaults.node_lease),
        orphan_age_ns: nanos(defaults.orphan_age),
        ageing_ns: nanos(defaults.ageing),
        resources: Some(resources(defaults.resources)),
        bare_self_hosted: defaults.bare_self_hosted,
        ghost_age_ns: nanos(defaults.ghost_age),
        ghost_confirmation_ns: nanos(defaults.ghost_confirmation),
        after_completion_ns: nanos(defaults.after_completion),
        stop_grace_ns: nanos(defaults.stop_grace),
    }
}

pub(super) fn defaults_back(defaults: Option<stored::Defaults>) -> Result<Defaults, Hole> {
    let defaults = need(defaults, "no defaults")?;
    // Not written by older versions, in which these were no settings.
    let before = Defaults::default();
    let or = |told: u64, before: Duration| match told {
        0 => before,
        told => Duration::from_nanos(told),
    };
    Ok(Defaults {
        image: defaults.image,
        max_runners: defaults.max_runners,
        idle_timeout: Duration::from_nanos(defaults.idle_timeout_ns),
        lifetime: Duration::from_nanos(defaults.lifetime_ns),
        node_lease: Duration::from_nanos(defaults.node_lease_ns),
        orphan_age: Duration::from_nanos(defaults.orphan_age_ns),
        ghost_age: or(defaults.ghost_age_ns, before.ghost_age),
        ghost_confirmation: or(defaults.ghost_confirmation_ns, before.ghost_confirmation),
        after_completion: or(defaults.after_completion_ns, before.after_completion),
        stop_grace: or(defaults.stop_grace_ns, before.stop_grace),
        ageing: Duration::from_nanos(defaults.ageing_ns),
        resources: resources_back(defaults.resources),
        bare_self_hosted: defaults.bare_self_hosted,
    })
}

pub(super) fn exit(exit: &Exit) -> stored::Exit {
    stored::Exit {
        code: exit.code,
        cause: exit.cause.clone(),
        detail: exit.detail.clone(),
        usage: exit.usage.map(|usage| stored::Usage {
            cpu_ns: nanos(usage.cpu),
            peak_memory_bytes: usage.peak_memory_bytes,
            read_bytes: usage.read_bytes,
            written_bytes: usage.written_bytes,
            peak_gpu_memory_bytes: usage.peak_gpu_memory_bytes,
        }),
        denied: exit.denied.as_ref().map(denied),
    }
}

fn denied(denied: &Denied) -> stored::DeniedEgress {
    let destination = |one: &DeniedDestination| stored::DeniedDestination {
        destination: one.destination.clone(),
        protocol: one.protocol.clone(),
        port: u32::from(one.port),
        count: one.count,
        reason: one.reason.clone(),
    };
    stored::DeniedEgress {
        total: denied.total,
        destinations: denied.destinations.iter().map(destination).collect(),
        more: denied.more,
    }
}

fn denied_back(denied: stored::DeniedEgress) -> Denied {
    let destination = |one: stored::DeniedDestination| DeniedDestination {
        destination: one.destination,
        protocol: one.protocol,
        port: u16::try_from(one.port).unwrap_or(0),
        count: one.count,
        reason: one.reason,
    };
    Denied {
        total: denied.total,
        destinations: denied.destinations.into_iter().map(destination).collect(),
        more: denied.more,
    }
}

pub(super) fn exit_back(exit: stored::Exit) -> Exit {
    Exit {
        code: exit.code,
        cause: exit.cause,
        detail: exit.detail,
        usage: exit.usage.map(|usage| Usage {
            cpu: Duration::from_nanos(usage.cpu_ns),
            peak_memory_bytes: usage.peak_memory_bytes,
            read_bytes: usage.read_bytes,
            written_bytes: usage.written_bytes,
            peak_gpu_memory_bytes: usage.peak_gpu_memory_bytes,
        }),
        denied: exit.denied.map(denied_back),
    }
}

pub(super) fn generation(generation: Generation) -> stored::Generation {
    stored::Generation {
        epoch: generation.epoch,
        counter: generation.counter,
    }
}

pub(super) fn generation_back(generation: Option<stored::Generation>) -> Generation {
    let stored::Generation { epoch, counter } = generation.unwrap_or_default();
    Generation { epoch, counter }
}

pub(super) fn stop_reason(why: &StopReason) -> stored::StopReason {
    use stored::{Nothing, stop_reason::Kind};
    let kind = match why {
        StopReason::Idle => Kind::Idle(Nothing {}),
        StopReason::Surplus => Kind::Surplus(Nothing {}),
        StopReason::Lifetime => Kind::Lifetime(Nothing {}),
        StopReason::Asked(reason) => Kind::Asked(reason.clone()),
        StopReason::DrainDeadline => Kind::DrainDeadline(Nothing {}),
        StopReason::NotAdmitted(reason) => Kind::NotAdmitted(reason.clone()),
        StopReason::NotRegistered(detail) => Kind::NotRegistered(detail.clone()),
        StopReason::RegistrationLost => Kind::RegistrationLost(Nothing {}),
        StopReason::Ghost => Kind::Ghost(Nothing {}),
        StopReason::CompletedButAlive => Kind::CompletedButAlive(Nothing {}),
        StopReason::NeverStarted => Kind::NeverStarted(Nothing {}),
    };
    stored::StopReason { kind: Some(kind) }
}

pub(super) fn stop_reason_back(why: Option<stored::StopReason>) -> Result<StopReason, Hole> {
    use stored::stop_reason::Kind;
    Ok(
        match need(why.and_then(|w| w.kind), "no or unknown reason to stop")? {
            Kind::Idle(_) => StopReason::Idle,
            Kind::Surplus(_) => StopReason::Surplus,
            Kind::Lifetime(_) => StopReason::Lifetime,
            Kind::Asked(reason) => StopReason::Asked(reason),
            Kind::DrainDeadline(_) => StopReason::DrainDeadline,
            Kind::NotAdmitted(reason) => StopReason::NotAdmitted(reason),
            Kind::NotRegistered(detail) => StopReason::NotRegistered(detail),
            Kind::RegistrationLost(_) => StopReason::RegistrationLost,
            Kind::Ghost(_) => StopReason::Ghost,
            Kind::CompletedButAlive(_) => StopReason::CompletedButAlive,
            Kind::NeverStarted(_) => StopReason::NeverStarted,
        },
    )
}

pub(super) fn retire_reason(why: &RetireReason) -> stored::RetireReason {
    use stored::{Nothing, retire_reason::Kind};
    let kind = match why {
        RetireReason::Finished => Kind::Finished(Nothing {}),
        RetireReason::NotRegistered => Kind::NotRegistered(Nothing {}),
        RetireReason::NotPrepared(detail) => Kind::NotPrepared(detail.clone()),
        RetireReason::RegistrationLost => Kind::RegistrationLost(Nothing {}),
        RetireReason::NodeRemoved => Kind::NodeRemoved(Nothing {}),
        RetireReason::Vanished => Kind::Vanished(Nothing {}),
        RetireReason::Stopped => Kind::Stopped(Nothing {}),
    };
    stored::RetireReason { kind: Some(kind) }
}

pub(super) fn retire_reason_back(why: Option<stored::RetireReason>) -> Result<RetireReason, Hole> {
    use stored::retire_reason::Kind;
    Ok(
        match need(why.and_then(|w| w.kind), "no or unknown reason to retire")? {
            Kind::Finished(_) => RetireReason::Finished,
            Kind::NotRegistered(_) => RetireReason::NotRegistered,
            Kind::NotPrepared(detail) => RetireReason::NotPrepared(detail),
            Kind::RegistrationLost(_) => RetireReason::RegistrationLost,
            Kind::NodeRemoved(_) => RetireReason::NodeRemoved,
            Kind::Vanished(_) => RetireReason::Vanished,
            Kind::Stopped(_) => RetireReason::Stopped,
        },
    )
}
