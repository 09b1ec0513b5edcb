//! One of every fact, with every field set.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use scheduler_core::{
    fact::{Fact, PoolOrigin, RetireReason, RunnerPlaced, RunnerSpec, StopReason},
    input::{Defaults, Deregistration, JobSeen, ObservedPhase},
    model::{
        Admission, Capability, Conclusion, Condition, CredentialName, Denied, DeniedDestination,
        Exit, Generation, Gpu, GpuNeeds, JobId, JobPhase, NodeName, Origin, Placement, Pool,
        PoolName, Priority, Repository, Resources, RunnerName, Scope, Usage,
    },
};

/// Position of a fact's kind. Exhaustive: a new fact does not compile until it
/// has a sample.
fn kind(fact: &Fact) -> usize {
    match fact {
        Fact::EpochRaised { .. } => 0,
        Fact::JobLearnt { .. } => 1,
        Fact::JobPhaseChanged { .. } => 2,
        Fact::OriginLearnt { .. } => 3,
        Fact::JobForgotten { .. } => 4,
        Fact::JobBound { .. } => 5,
        Fact::NodeJoined { .. } => 6,
        Fact::CapabilityChanged { .. } => 7,
        Fact::ConditionsChanged { .. } => 8,
        Fact::NodeReachable { .. } => 9,
        Fact::NodeUnreachable { .. } => 10,
        Fact::NodeCordoned { .. } => 11,
        Fact::NodeUncordoned { .. } => 12,
        Fact::NodeDraining { .. } => 13,
        Fact::NodeRemoved { .. } => 14,
        Fact::RunnerPlaced(_) => 15,
        Fact::RunnerRegistered { .. } => 16,
        Fact::RunnerObserved { .. } => 17,
        Fact::RunnerStopping { .. } => 18,
        Fact::RunnerDeregistered { .. } => 19,
        Fact::RunnerRetired { .. } => 20,
        Fact::OrphanSeen { .. } => 21,
        Fact::OrphanGone { .. } => 22,
        Fact::BudgetChanged { .. } => 23,
        Fact::ImageBlocked { .. } => 24,
        Fact::ImageCleared { .. } => 25,
        Fact::ScopeRests { .. } => 26,
        Fact::ScopeCleared { .. } => 27,
        Fact::FloorSet { .. } => 28,
        Fact::FloorEnded { .. } => 29,
        Fact::AutoscalerStarted { .. } => 30,
        Fact::AutoscalerStopped { .. } => 31,
        Fact::PoolSet { .. } => 32,
        Fact::PoolDeleted { .. } => 33,
        Fact::ShareSet { .. } => 34,
        Fact::DefaultsSet { .. } => 35,
        Fact::RepositoryGone { .. } => 36,
        Fact::ForeignSeen { .. } => 37,
        Fact::ShareServed { .. } => 38,
        Fact::IntentNumbered { .. } => 39,
        Fact::DemandRests { .. } => 40,
        Fact::DemandCleared { .. } => 41,
    }
}
const KINDS: usize = 42;

pub(crate) fn repository_scope() -> Scope {
    Scope::Repository {
        owner: "mona".into(),
        repo: "web".into(),
    }
}

pub(crate) fn job(id: u64, phase: JobPhase) -> JobSeen {
    JobSeen {
        id: JobId(id),
        run_id: id / 10,
        attempt: 2,
        repository: Repository {
            id: 77,
            owner: "mona".into(),
            name: "web".into(),
            private: Some(true),
        },
        scope: repository_scope(),
        credential: CredentialName::new("default"),
        name: "build (1)".into(),
        workflow: "CI".into(),
        labels: vec!["self-hosted".into(), "linux".into()],
        phase,
        conclusion: None,
        runner_name: None,
        runner_id: None,
        origin: Origin {
            event: Some("push".into()),
            head_repository: Some("mona/web".into()),
        },
        created_at: 1_000 + id,
        started_at: None,
        completed_at: None,
        html_url: format!(
            "https://github.com/mona/web/actions/runs/{}/job/{id}",
            id / 10
        ),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    }
}

pub(crate) fn placed(name: &str, node: &str, at: u64) -> RunnerPlaced {
    RunnerPlaced {
        runner: RunnerName::new(name),
        node: NodeName::new(node),
        scope: Arc::new(repository_scope()),
        spec: Arc::new(RunnerSpec {
            pool: PoolName::new("default"),
            credential: CredentialName::new("default"),
            labels: vec!["linux".into(), "self-hosted".into()],
            image: "ghcr.io/actions/runner@sha256:1".into(),
            profile: "strict".into(),
            network_mode: "open".into(),
            allowed_domains: vec![],
            runtime: "crun".into(),
            platform: "linux/amd64".into(),
            runner_group: Some("builders".into()),
            idle_timeout_ms: 300_000,
            lifetime_ms: 22_500_000,
        }),
        resources: Resources {
            cpu_millis: 2_000,
            memory_bytes: 4 << 30,
            gpus: 1,
        },
        gpu_uuids: vec!["GPU-1".into()],
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        job: Some(JobId(70)),
        repository: Some("mona/web".into()),
        generation: Generation {
            epoch: 3,
            counter: 9,
        },
        at,
    }
}

pub(crate) fn exit() -> Exit {
    Exit {
        code: Some(-9),
        cause: "out_of_memory".into(),
        detail: "killed at 4 GiB".into(),
        usage: Some(Usage {
            cpu: Duration::new(61, 5),
            peak_memory_bytes: 4 << 30,
            read_bytes: Some(5 << 30),
            written_bytes: Some(6 << 30),
            peak_gpu_memory_bytes: Some(7 << 30),
        }),
        denied: Some(Denied {
            total: 9,
            destinations: vec![DeniedDestination {
                destination: "10.0.0.9".into(),
                protocol: "tcp".into(),
                port: 22,
                count: 7,
                reason: "firewall".into(),
            }],
            more: true,
        }),
    }
}

/// As it was before disk and GPU use were told.
fn exit_of_format_1() -> Exit {
    let usage = exit().usage.map(|usage| Usage {
        read_bytes: None,
        written_bytes: None,
        peak_gpu_memory_bytes: None,
        ..usage
    });
    Exit { usage, ..exit() }
}

fn words(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn capability() -> Capability {
    Capability {
        arch: "x64".into(),
        labels: words(&["linux", "self-hosted", "x64"]),
        capacity: Resources {
            cpu_millis: 64_000,
            memory_bytes: 256 << 30,
            gpus: 2,
        },
        gpus: vec![Gpu {
            uuid: "GPU-1".into(),
            product: "H100".into(),
            memory_mib: 81_559,
            compute_capability: "9.0".into(),
            proven: true,
            parent: Some("GPU-0".into()),
            withheld: Some(Condition {
                kind: "gpu_fault".into(),
                detail: "error 79".into(),
                next_step: "reset it".into(),
                image: None,
            }),
        }],
        max_runners: 40,
        properties: words(&["no_capabilities"]),
        facts: vec![("kernel".into(), "6.18".into())],
    }
}

fn pool() -> Pool {
    Pool {
        name: PoolName::new("gpu"),
        labels: words(&["gpu"]),
        repositories: vec!["mona/*".into()],
        public_repositories: Admission::StrictOnly,
        fork_pull_requests: Admission::Refuse,
        image: "runner:1".into(),
        runner_group: Some("builders".into()),
        name_prefix: "ls".into(),
        resources: Resources {
            cpu_millis: 4_000,
            memory_bytes: 8 << 30,
            gpus: 1,
        },
        gpu: GpuNeeds {
            memory_mib: 40_000,
            compute_capability: (8, 6),
            models: vec!["h100".into()],
        },
        profile: "strict".into(),
        network_mode: "allowlist".into(),
        allowed_domains: vec!["github".into(), "*.example.com".into()],
        runtime: "runsc".into(),
        idle_floor: 1,
        maximum: 7,
        priority: Priority::High,
        placement: Placement::Spread,
        required_properties: words(&["user_namespace"]),
        idle_timeout: Duration::from_millis(90_001),
        lifetime: Duration::from_secs(22_500),
        bare_self_hosted: true,
        precedence: -3,
    }
}

/// Every fact, in order of its kind.
pub(crate) fn every_fact() -> Vec<Fact> {
    let node = NodeName::new("n1");
    let runner = RunnerName::new("ls-f-1");
    let organization = Scope::Organization {
        login: "acme".into(),
    };
    let enterprise = Scope::Enterprise {
        slug: "globex".into(),
    };
    let credential = CredentialName::new("app");
    let pool_name = PoolName::new("gpu");
    let facts = vec![
        Fact::EpochRaised { epoch: 4 },
        Fact::JobLearnt {
            job: Arc::new(JobSeen {
                conclusion: Some(Conclusion::Other("startup_failure".into())),
                runner_name: Some("somebody".into()),
                runner_id: Some(1 << 40),
                started_at: Some(1_100),
                completed_at: Some(1_200),
                ..job(70, JobPhase::Completed)
            }),
            at: 1_001,
        },
        Fact::JobPhaseChanged {
            job: JobId(70),
            phase: JobPhase::Completed,
            conclusion: Some(Conclusion::TimedOut),
            at: 1_300,
        },
        Fact::OriginLearnt {
            job: JobId(70),
            origin: Origin {
                event: None,
                head_repository: Some("fork/web".into()),
            },
        },
        Fact::JobForgotten { job: JobId(70) },
        Fact::JobBound {
            job: JobId(70),
            runner: runner.clone(),
            ours: true,
            at: 1_400,
        },
        Fact::NodeJoined {
            node: node.clone(),
            capability: Box::new(capability()),
        },
        Fact::CapabilityChanged {
            node: node.clone(),
            capability: Box::new(Capability::default()),
        },
        Fact::ConditionsChanged {
            node: node.clone(),
            conditions: vec![Condition {
                kind: "image_unavailable".into(),
                detail: "404".into(),
                next_step: "push it".into(),
                image: Some("runner:1".into()),
            }],
        },
        Fact::NodeReachable { node: node.clone() },
        Fact::NodeUnreachable {
            node: node.clone(),
            since: 1_500,
        },
        Fact::NodeCordoned { node: node.clone() },
        Fact::NodeUncordoned { node: node.clone() },
        Fact::NodeDraining {
            node: node.clone(),
            deadline: Some(1_600),
        },
        Fact::NodeRemoved { node: node.clone() },
        Fact::RunnerPlaced(Arc::new(placed("ls-f-1", "n1", 1_700))),
        Fact::RunnerRegistered {
            runner: runner.clone(),
            github_id: 1 << 41,
            at: 1_800,
        },
        Fact::RunnerObserved {
            runner: runner.clone(),
            phase: ObservedPhase::Busy,
            observation: 5,
            worker: true,
            container_id: "c0ffee".into(),
            at: 1_900,
        },
        Fact::RunnerStopping {
            runner: runner.clone(),
            why: StopReason::Asked("by hand".into()),
            at: 2_000,
        },
        Fact::RunnerDeregistered {
            runner: runner.clone(),
            outcome: Deregistration::Busy,
            at: 2_100,
        },
        Fact::RunnerRetired {
            runner: runner.clone(),
            exit: Some(exit_of_format_1()),
            why: RetireReason::NotPrepared("no image".into()),
            deregister: true,
            at: 2_200,
        },
        Fact::OrphanSeen {
            runner: runner.clone(),
            scope: enterprise,
            credential: credential.clone(),
            github_id: 9,
            at: 2_300,
        },
        Fact::OrphanGone {
            runner: runner.clone(),
        },
        Fact::BudgetChanged {
            credential: credential.clone(),
            scopes: vec![organization.clone(), repository_scope()],
            registrations: 99,
            limited_until: Some(2_400),
            problem: Some("token expired".into()),
        },
        Fact::ImageBlocked {
            image: "runner:1".into(),
            node: Some(node.clone()),
            until: 2_500,
            detail: "404".into(),
            failures: 3,
        },
        Fact::ImageCleared {
            image: "runner:1".into(),
            node: Some(node.clone()),
        },
        Fact::ScopeRests {
            scope: organization.clone(),
            until: 2_600,
            detail: "403".into(),
            failures: 2,
        },
        Fact::ScopeCleared {
            scope: organization.clone(),
        },
        Fact::FloorSet {
            scope: organization.clone(),
            credential,
            pool: pool_name.clone(),
            labels: vec!["gpu".into()],
            count: 3,
            until: 2_700,
        },
        Fact::FloorEnded {
            scope: organization,
            pool: pool_name.clone(),
            labels: vec!["gpu".into()],
        },
        Fact::AutoscalerStarted {
            max_runners: Some(0),
            image: Some("runner:2".into()),
            at: 2_800,
        },
        Fact::AutoscalerStopped { at: 2_900 },
        Fact::PoolSet {
            pool: Box::new(pool()),
            origin: PoolOrigin::Api,
        },
        Fact::PoolDeleted { pool: pool_name },
        Fact::ShareSet {
            subject: "mona/web".into(),
            weight: 4,
            maximum: 2,
            origin: PoolOrigin::File,
        },
        Fact::DefaultsSet {
            defaults: Box::new(Defaults {
                image: "runner:1".into(),
                max_runners: 10,
                idle_timeout: Duration::from_nanos(1),
                lifetime: Duration::from_secs(2),
                node_lease: Duration::from_secs(30),
                orphan_age: Duration::from_secs(600),
                ghost_age: Duration::from_secs(301),
                ghost_confirmation: Duration::from_secs(61),
                after_completion: Duration::from_secs(601),
                stop_grace: Duration::from_secs(91),
                ageing: Duration::from_secs(60),
                resources: Resources {
                    cpu_millis: 2_000,
                    memory_bytes: 4 << 30,
                    gpus: 0,
                },
                bare_self_hosted: true,
            }),
        },
        Fact::RepositoryGone {
            id: 77,
            full_name: "mona/old".into(),
        },
        Fact::ForeignSeen {
            node: node.clone(),
            runners: vec![runner],
        },
        Fact::ShareServed {
            subject: "mona".into(),
            virtual_time: 1 << 50,
            served: 1 << 49,
            credit: 7,
        },
        Fact::IntentNumbered {
            node,
            generation: Generation {
                epoch: 3,
                counter: 12,
            },
        },
        Fact::DemandRests {
            scope: repository_scope(),
            repository: "acme/web".into(),
            labels: vec!["linux".into(), "x64".into()],
            until: 2_700,
            runners: 3,
        },
        Fact::DemandCleared {
            scope: repository_scope(),
            repository: "acme/web".into(),
            labels: vec!["linux".into(), "x64".into()],
        },
    ];
    let kinds: Vec<_> = facts.iter().map(kind).collect();
    assert_eq!(kinds, (0..KINDS).collect::<Vec<_>>(), "a sample of each");
    facts
}

/// The words inside facts that `every_fact` does not reach.
pub(crate) fn every_word() -> Vec<Fact> {
    let runner = RunnerName::new("ls-f-2");
    let mut facts = Vec::new();
    for why in [
        StopReason::Idle,
        StopReason::Surplus,
        StopReason::Lifetime,
        StopReason::DrainDeadline,
        StopReason::NotAdmitted("fork".into()),
        StopReason::NotRegistered("409".into()),
        StopReason::RegistrationLost,
        StopReason::Ghost,
        StopReason::CompletedButAlive,
        StopReason::NeverStarted,
    ] {
        facts.push(Fact::RunnerStopping {
            runner: runner.clone(),
            why,
            at: 1,
        });
    }
    for why in [
        RetireReason::Finished,
        RetireReason::NotRegistered,
        RetireReason::RegistrationLost,
        RetireReason::NodeRemoved,
        RetireReason::Vanished,
        RetireReason::Stopped,
    ] {
        facts.push(Fact::RunnerRetired {
            runner: runner.clone(),
            exit: None,
            why,
            deregister: false,
            at: 1,
        });
    }
    for phase in [
        ObservedPhase::Preparing,
        ObservedPhase::Ready,
        ObservedPhase::Consumed,
        ObservedPhase::Online,
        ObservedPhase::Exited,
        ObservedPhase::Failed,
    ] {
        facts.push(Fact::RunnerObserved {
            runner: runner.clone(),
            phase,
            observation: 0,
            worker: false,
            container_id: String::new(),
            at: 1,
        });
    }
    for phase in [JobPhase::Waiting, JobPhase::Queued, JobPhase::InProgress] {
        facts.push(Fact::JobPhaseChanged {
            job: JobId(1),
            phase,
            conclusion: None,
            at: 1,
        });
    }
    for conclusion in [
        Conclusion::Success,
        Conclusion::Failure,
        Conclusion::Cancelled,
        Conclusion::Skipped,
    ] {
        facts.push(Fact::JobPhaseChanged {
            job: JobId(1),
            phase: JobPhase::Completed,
            conclusion: Some(conclusion),
            at: 1,
        });
    }
    for outcome in [Deregistration::Gone, Deregistration::Failed] {
        facts.push(Fact::RunnerDeregistered {
            runner: runner.clone(),
            outcome,
            at: 1,
        });
    }
    for (admission, priority, placement, origin) in [
        (
            Admission::Refuse,
            Priority::Low,
            Placement::Pack,
            PoolOrigin::BuiltIn,
        ),
        (
            Admission::Allow,
            Priority::Normal,
            Placement::Spread,
            PoolOrigin::File,
        ),
    ] {
        facts.push(Fact::PoolSet {
            pool: Box::new(Pool {
                public_repositories: admission,
                fork_pull_requests: admission,
                priority,
                placement,
                runner_group: None,
                ..pool()
            }),
            origin,
        });
    }
    facts
}
