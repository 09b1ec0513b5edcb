//! What the fake scheduler knows.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use longshore_proto::v1;
use longshore_proto::v1::property::State;
use longshore_proto::v1::runner_exit::Cause;
use prost_types::{Duration, Timestamp};

#[derive(Default)]
pub(crate) struct World {
    pub(crate) status: v1::GetStatusResponse,
    pub(crate) queues: Vec<v1::WorkflowQueue>,
    pub(crate) filtered: HashMap<String, u32>,
    pub(crate) jobs: Vec<v1::Job>,
    pub(crate) explanations: HashMap<u64, v1::ExplainJobResponse>,
    pub(crate) runners: Vec<v1::Runner>,
    pub(crate) nodes: Vec<v1::Node>,
    pub(crate) pools: Vec<v1::Pool>,
    pub(crate) checks: Vec<v1::Check>,
    pub(crate) provisioned: Vec<v1::Provisioned>,
    pub(crate) logs: HashMap<String, Vec<v1::StreamRunnerLogsResponse>>,
    /// The scheduler's answer to the call of this name, the next so many times.
    pub(crate) faults: HashMap<&'static str, Vec<tonic::Status>>,
    /// Calls that came in, in order.
    pub(crate) calls: Vec<Call>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    Start(v1::StartAutoscalerRequest),
    Stop(v1::StopAutoscalerRequest),
    Status,
    Jobs(v1::ListJobsRequest),
    Provision(v1::ProvisionRunnersRequest),
    StopRunner(v1::StopRunnerRequest),
    Logs(v1::StreamRunnerLogsRequest),
    Drain(v1::DrainNodeRequest),
    SetPool(Box<v1::SetPoolRequest>),
    SetShare(v1::SetShareRequest),
    JoinToken(v1::CreateJoinTokenRequest),
    Token(v1::CreateTokenRequest),
}

/// A fixed time for JSON.
pub(crate) const FIXED: i64 = 1_793_000_000;

/// Five and a half minutes ago, for ages in tables: `5m` for the next 30 s.
pub(crate) fn recently() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() as i64 - 330
}

pub(crate) fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

fn resources(cpu_millis: u32, gib: u64, gpus: u32) -> Option<v1::Resources> {
    Some(v1::Resources {
        cpu_millis,
        memory_bytes: gib << 30,
        gpus,
    })
}

/// The predecessor's recorded case: three repositories, 41 jobs, some for arm64.
pub(crate) fn harbour(base: i64) -> World {
    World {
        status: status(base),
        filtered: HashMap::from([("arm64".into(), 12), ("gpu".into(), 1)]),
        queues: vec![
            queue("acme/web", 20, 0, 2, 18, &[("arm64", 12)]),
            queue("acme/api", 14, 1, 0, 13, &[]),
            queue("acme/tools", 7, 0, 0, 7, &[("gpu", 1)]),
        ],
        jobs: vec![waiting_job(base), finished_job(base)],
        explanations: HashMap::from([(101, explanation(base))]),
        runners: vec![busy_runner(base), reserved_runner(base), gone_runner(base)],
        nodes: vec![node(base)],
        pools: vec![pool()],
        ..World::default()
    }
}

fn status(base: i64) -> v1::GetStatusResponse {
    v1::GetStatusResponse {
        running: true,
        start_time: at(base),
        iterations: 7,
        active_runners: 2,
        queued_workflows: 38,
        repositories_monitored: 3,
        last_check: Some(Timestamp {
            seconds: base + 60,
            nanos: 250_000_000,
        }),
        provisioned_runners: 19,
        filtered: HashMap::from([("arm64".into(), 12), ("gpu".into(), 1)]),
        nodes_ready: 1,
        nodes_total: 2,
        settings: Some(v1::AutoscalerSettings {
            owners: words(&["acme"]),
            poll_interval: Some(Duration {
                seconds: 60,
                nanos: 0,
            }),
            max_runners: 10,
            image: "ghcr.io/actions/actions-runner".into(),
            since_days: 1,
        }),
        credentials: vec![
            v1::CredentialStatus {
                name: "token".into(),
                remaining: 4_812,
                limit: 5_000,
                reset_at: at(base + 3_600),
                problem: String::new(),
            },
            v1::CredentialStatus {
                name: "app 7".into(),
                problem: "lacks administration:write".into(),
                ..Default::default()
            },
        ],
        version: "0.1.0".into(),
        fleet: "k3x".into(),
    }
}

fn queue(
    repo: &str,
    total: u32,
    running: u32,
    failed: u32,
    pending: u32,
    filtered: &[(&str, u32)],
) -> v1::WorkflowQueue {
    v1::WorkflowQueue {
        repo: repo.into(),
        total_workflows: total,
        running,
        failed,
        pending,
        filtered: filtered.iter().map(|(k, n)| ((*k).into(), *n)).collect(),
        forecast: HashMap::from([("x64".into(), total)]),
    }
}

fn waiting_job(base: i64) -> v1::Job {
    v1::Job {
        id: 101,
        run_id: 11,
        attempt: 1,
        repo: "acme/web".into(),
        name: "build (arm64)".into(),
        workflow: "CI".into(),
        labels: words(&["self-hosted", "linux", "arm64"]),
        state: "queued".into(),
        scope: "acme".into(),
        waiting_reason: "no_feasible_node".into(),
        queued_at: at(base),
        html_url: "https://github.com/acme/web/actions/runs/11/job/101".into(),
        ..Default::default()
    }
}

fn finished_job(base: i64) -> v1::Job {
    v1::Job {
        id: 102,
        run_id: 12,
        attempt: 2,
        repo: "acme/api".into(),
        name: "test\u{1b}[2J".into(),
        workflow: "CI".into(),
        labels: words(&["self-hosted", "linux"]),
        state: "completed".into(),
        conclusion: "failure".into(),
        runner: "ls-k3x-ab12".into(),
        node: "n1".into(),
        scope: "acme".into(),
        queued_at: at(base),
        started_at: at(base + 2),
        completed_at: at(base + 62),
        usage: Some(v1::Usage {
            cpu: Some(Duration {
                seconds: 41,
                nanos: 500_000_000,
            }),
            peak_memory_bytes: 512 << 20,
            known: true,
            read_bytes: Some(3 << 20),
            written_bytes: None,
            peak_gpu_memory_bytes: None,
            gpus: 1,
        }),
        ending: Some(v1::JobEnding {
            kind: v1::job_ending::Kind::Infrastructure as i32,
            reason: "out_of_memory".into(),
            detail: "killed at 4 GiB".into(),
            exit_code: Some(137),
        }),
        html_url: "https://github.com/acme/api/actions/runs/12/job/102".into(),
        denied: Some(denied()),
        ..Default::default()
    }
}

fn denied() -> v1::DeniedEgress {
    let destination =
        |name: &str, protocol: &str, port, count, reason: &str| v1::DeniedDestination {
            destination: name.into(),
            protocol: protocol.into(),
            port,
            count,
            reason: reason.into(),
        };
    v1::DeniedEgress {
        known: true,
        total: 12,
        destinations: vec![
            destination("169.254.169.254", "tcp", 80, 6, "firewall"),
            destination("evil.example", "connect", 443, 2, "not_listed"),
            destination("10.0.0.1", "icmp", 0, 1, "firewall"),
        ],
        more: true,
    }
}

fn reason(code: &str, detail: &str, unblocked_by: &str) -> v1::Reason {
    v1::Reason {
        code: code.into(),
        detail: detail.into(),
        unblocked_by: unblocked_by.into(),
    }
}

fn explanation(base: i64) -> v1::ExplainJobResponse {
    v1::ExplainJobResponse {
        job: Some(waiting_job(base)),
        summary: "no node can carry arm64".into(),
        reason: "no_feasible_node".into(),
        next_step: "add an arm64 host to the fleet".into(),
        nodes: vec![
            v1::NodeVerdict {
                node: "n1".into(),
                feasible: false,
                reasons: vec![
                    reason("missing_label", "offers x64, not arm64", "an arm64 node"),
                    reason("cordoned", "cordoned by hand", "longshore node uncordon n1"),
                ],
            },
            v1::NodeVerdict {
                node: "n2".into(),
                feasible: true,
                reasons: vec![],
            },
        ],
        pools: vec![v1::PoolVerdict {
            pool: "default".into(),
            admits: true,
            reasons: vec![],
        }],
        not_before: None,
    }
}

fn busy_runner(base: i64) -> v1::Runner {
    v1::Runner {
        name: "ls-k3x-cd34".into(),
        container_id: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into(),
        repo: "acme/api".into(),
        status: "busy".into(),
        node: "n1".into(),
        pool: "default".into(),
        scope: "acme".into(),
        labels: words(&["self-hosted", "linux", "x64"]),
        job_id: 103,
        created_at: at(base),
        started_at: at(base + 1),
        image: "ghcr.io/actions/actions-runner".into(),
        resources: resources(2_000, 4, 0),
        ..Default::default()
    }
}

fn reserved_runner(base: i64) -> v1::Runner {
    v1::Runner {
        name: "ls-k3x-ef56".into(),
        status: "reserved".into(),
        node: "n1".into(),
        pool: "default".into(),
        scope: "acme".into(),
        created_at: at(base),
        ..Default::default()
    }
}

fn gone_runner(base: i64) -> v1::Runner {
    v1::Runner {
        name: "ls-k3x-ab12".into(),
        container_id: "fedcba9876543210".into(),
        repo: "acme/api".into(),
        status: "exited".into(),
        node: "n1".into(),
        pool: "default".into(),
        scope: "acme".into(),
        job_id: 102,
        created_at: at(base),
        finished_at: at(base + 62),
        exit: Some(v1::RunnerExit {
            code: Some(137),
            cause: Cause::OutOfMemory as i32,
            detail: "killed at 4 GiB".into(),
            usage: None,
            finished_at: at(base + 62),
            denied: Some(denied()),
        }),
        ..Default::default()
    }
}

fn node(base: i64) -> v1::Node {
    v1::Node {
        name: "n1".into(),
        state: "ready".into(),
        capability: Some(v1::Capability {
            arch: "x64".into(),
            os: "linux".into(),
            labels: words(&["self-hosted", "linux", "x64", "docker"]),
            capacity: resources(8_000, 16, 1),
            gpus: vec![v1::Gpu {
                uuid: "GPU-1".into(),
                product: "T4".into(),
                memory_mib: 15_360,
                compute_capability: "7.5".into(),
                driver_version: "550".into(),
                cuda_version: "12.4".into(),
                proven: true,
                ..Default::default()
            }],
            engine: Some(v1::Engine {
                kind: "docker".into(),
                version: "20.10.24".into(),
                api_version: "1.41".into(),
                cgroup_version: 1,
                storage_driver: "overlay2".into(),
                live_restore: false,
            }),
            properties: vec![v1::Property {
                name: "no_capabilities".into(),
                state: State::Guaranteed as i32,
                evidence: "probe".into(),
            }],
            evidence: vec![v1::Evidence {
                subject: "arch".into(),
                source: "uname".into(),
                finding: "x86_64".into(),
            }],
            max_runners: 4,
            agent_version: "0.1.0".into(),
            kernel: "6.1".into(),
            hostname: "host1".into(),
        }),
        free: resources(6_500, 12, 1),
        runners: 1,
        last_report: at(base),
        conditions: vec![v1::NodeCondition {
            kind: "live_restore_off".into(),
            detail: "jobs end when the engine restarts".into(),
            next_step: "set live-restore in daemon.json".into(),
        }],
        clock_offset: Some(Duration {
            seconds: 0,
            nanos: 4_000_000,
        }),
        drain_deadline: None,
    }
}

fn pool() -> v1::Pool {
    v1::Pool {
        name: "default".into(),
        public_repositories: "strict".into(),
        fork_pull_requests: "refuse".into(),
        image: "ghcr.io/actions/actions-runner".into(),
        resources: resources(2_000, 4, 0),
        profile: "strict".into(),
        network_mode: "open".into(),
        priority: "normal".into(),
        placement: "pack".into(),
        idle_timeout: Some(Duration {
            seconds: 300,
            nanos: 0,
        }),
        origin: "built in".into(),
        runners: 2,
        ..Default::default()
    }
}
