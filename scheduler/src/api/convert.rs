//! From the core's and the store's words to the API's, and back for pools.

use std::{collections::BTreeMap, time::Duration};

use longshore_proto::v1;
use prost_types::Timestamp;
use scheduler_core::{
    Fleet, Job, Node, Runner,
    ending::{self, Kind, RunnerEnd},
    explain::Explanation,
    fact::PoolOrigin,
    input::Defaults,
    model::{
        Admission, Capability, Condition, Denied, DeniedDestination, Exit, Gpu, GpuNeeds, JobPhase,
        Now, Placement, Pool, Priority, Resources, Usage, UtcMillis,
    },
};
use scheduler_store::{JobRow, RunnerRow, RunnerStage};

use super::vitals::Vital;
use crate::{
    config::{
        domains,
        pools::{admission, compute_capability, one_of, placement, priority},
        runtime,
        values::enough,
    },
    view::phase_word,
};

/// UTC milliseconds as a timestamp.
pub fn time(utc: UtcMillis) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(utc / 1_000).unwrap_or(i64::MAX),
        nanos: (utc % 1_000) as i32 * 1_000_000,
    }
}

/// A timestamp as UTC milliseconds; 0 before 1970.
pub fn millis(time: &Timestamp) -> UtcMillis {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds
        .saturating_mul(1_000)
        .saturating_add(u64::try_from(time.nanos / 1_000_000).unwrap_or(0))
}

/// A duration as protobuf has it.
pub fn span(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

/// Protobuf's duration, when it is not negative.
pub fn duration(span: &prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(span.seconds).ok()?;
    let nanos = u32::try_from(span.nanos).ok()?;
    (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}

pub fn resources(resources: Resources) -> v1::Resources {
    v1::Resources {
        cpu_millis: resources.cpu_millis,
        memory_bytes: resources.memory_bytes,
        gpus: resources.gpus,
    }
}

/// A job in memory. `reason` is why it waits.
pub fn job(fleet: &Fleet, job: &Job, reason: &str) -> v1::Job {
    let seen = &job.seen;
    let conclusion = seen.conclusion.as_ref().map(|c| c.word().to_owned());
    let runner = job.bound.as_ref().map(|bound| &bound.runner);
    let node = runner
        .and_then(|name| fleet.runner(name))
        .map(|runner| runner.placed.node.to_string());
    v1::Job {
        id: seen.id.0,
        run_id: seen.run_id,
        attempt: seen.attempt,
        repo: seen.repository.full_name(),
        name: seen.name.clone(),
        workflow: seen.workflow.clone(),
        labels: seen.labels.clone(),
        state: phase_word(seen.phase).to_owned(),
        conclusion: conclusion.unwrap_or_default(),
        runner: runner.map(ToString::to_string).unwrap_or_default(),
        node: node.unwrap_or_default(),
        scope: seen.scope.to_string(),
        waiting_reason: reason.to_owned(),
        queued_at: Some(time(seen.created_at)),
        // GitHub fills `started_at` of a queued job too: it means nothing before a start.
        started_at: seen
            .started_at
            .filter(|_| seen.phase >= JobPhase::InProgress)
            .map(time),
        completed_at: seen.completed_at.map(time),
        usage: None,
        html_url: seen.html_url.clone(),
        ending: None,
        denied: None,
    }
}

/// A job of the history, with the runner that took it when it was ours.
pub fn job_row(row: &JobRow, runner: Option<&RunnerRow>) -> v1::Job {
    v1::Job {
        id: row.id.0,
        run_id: row.run_id,
        attempt: row.attempt,
        repo: row.repository.clone(),
        name: row.name.clone(),
        workflow: row.workflow.clone(),
        labels: row.labels.clone(),
        state: phase_word(row.phase).to_owned(),
        conclusion: row.conclusion.clone().unwrap_or_default(),
        runner: row.runner.clone().unwrap_or_default(),
        node: runner.map(|runner| runner.node.clone()).unwrap_or_default(),
        scope: row.scope.clone(),
        waiting_reason: String::new(),
        queued_at: Some(time(row.created_at)),
        started_at: row
            .started_at
            .filter(|_| row.phase >= JobPhase::InProgress)
            .map(time),
        completed_at: row.completed_at.map(time),
        usage: runner.and_then(usage),
        html_url: row.html_url.clone(),
        ending: ending(row, runner),
        denied: runner
            .filter(|runner| runner.retired_at.is_some())
            .map(|runner| denied(runner.denied.as_ref())),
    }
}

/// Whose doing the end of a job was, from what is kept of it and of its runner.
fn ending(row: &JobRow, runner: Option<&RunnerRow>) -> Option<v1::JobEnding> {
    let end = runner
        .filter(|runner| runner.retired_at.is_some())
        .map(|runner| RunnerEnd {
            code: runner.exit_code,
            cause: runner.exit_cause.as_deref().unwrap_or_default(),
            detail: runner.exit_detail.as_deref().unwrap_or_default(),
            told_to_stop: runner.stop_reason.as_deref(),
            retired: runner.retire_reason.as_deref().unwrap_or_default(),
        });
    let ending = ending::of(row.conclusion.as_deref(), end)?;
    let kind = match ending.kind {
        Kind::Result => v1::job_ending::Kind::Result,
        Kind::Infrastructure => v1::job_ending::Kind::Infrastructure,
        Kind::Cancelled => v1::job_ending::Kind::Cancelled,
    };
    Some(v1::JobEnding {
        kind: kind as i32,
        reason: ending.reason,
        detail: ending.detail,
        exit_code: ending.exit_code,
    })
}

fn denied(denied: Option<&Denied>) -> v1::DeniedEgress {
    let Some(denied) = denied else {
        return v1::DeniedEgress::default();
    };
    let destination = |one: &DeniedDestination| v1::DeniedDestination {
        destination: one.destination.clone(),
        protocol: one.protocol.clone(),
        port: u32::from(one.port),
        count: one.count,
        reason: one.reason.clone(),
    };
    v1::DeniedEgress {
        known: true,
        total: denied.total,
        destinations: denied.destinations.iter().map(destination).collect(),
        more: denied.more,
    }
}

/// What a node said of a runner, cut to what is kept.
fn denied_of(said: &v1::DeniedEgress) -> Option<Denied> {
    let destination = |one: &v1::DeniedDestination| DeniedDestination {
        destination: one.destination.clone(),
        protocol: one.protocol.clone(),
        port: u16::try_from(one.port).unwrap_or(0),
        count: one.count,
        reason: one.reason.clone(),
    };
    said.known.then(|| {
        Denied {
            total: said.total,
            destinations: said.destinations.iter().map(destination).collect(),
            more: said.more,
        }
        .bound()
    })
}

/// What a runner of the history used.
fn usage(runner: &RunnerRow) -> Option<v1::Usage> {
    let used = runner.usage?;
    Some(v1::Usage {
        cpu: Some(span(used.cpu)),
        peak_memory_bytes: used.peak_memory_bytes,
        known: true,
        read_bytes: used.read_bytes,
        written_bytes: used.written_bytes,
        peak_gpu_memory_bytes: used.peak_gpu_memory_bytes,
        gpus: runner.resources.gpus,
    })
}

/// A living runner. `repo` is that of its job, else its scope's.
pub fn runner(fleet: &Fleet, runner: &Runner) -> v1::Runner {
    let placed = &runner.placed;
    let job = runner.job.and_then(|id| fleet.job(id));
    let repo = match (job, &*placed.scope) {
        (Some(job), _) => job.seen.repository.full_name(),
        (None, scope) => match (scope, &placed.repository) {
            (scheduler_core::model::Scope::Repository { owner, repo }, _) => {
                format!("{owner}/{repo}")
            }
            (_, Some(repository)) => repository.to_string(),
            _ => String::new(),
        },
    };
    v1::Runner {
        name: placed.runner.to_string(),
        container_id: runner.container_id().to_owned(),
        repo,
        status: runner.status_word().to_owned(),
        node: placed.node.to_string(),
        pool: placed.pool.to_string(),
        scope: placed.scope.to_string(),
        labels: placed.labels.clone(),
        job_id: runner.job.map_or(0, |job| job.0),
        created_at: Some(time(placed.at)),
        started_at: job
            .and_then(|job| job.bound.as_ref())
            .map(|bound| time(bound.at)),
        finished_at: None,
        exit: None,
        image: placed.image.clone(),
        resources: Some(resources(placed.resources)),
    }
}

/// A runner of the history.
pub fn runner_row(row: &RunnerRow) -> v1::Runner {
    let status = match row.stage {
        RunnerStage::Retired => "exited",
        RunnerStage::Registered => "registering",
        stage => stage.as_str(),
    };
    let exit = row.retired_at.map(|at| v1::RunnerExit {
        code: row.exit_code,
        cause: cause(row.exit_cause.as_deref().unwrap_or_default()) as i32,
        detail: row
            .exit_detail
            .clone()
            .filter(|detail| !detail.is_empty())
            .or_else(|| row.retire_reason.clone())
            .unwrap_or_default(),
        usage: usage(row),
        finished_at: Some(time(at)),
        denied: Some(denied(row.denied.as_ref())),
    });
    v1::Runner {
        name: row.name.to_string(),
        container_id: row.container_id.clone().unwrap_or_default(),
        repo: row.repository.clone().unwrap_or_default(),
        status: status.to_owned(),
        node: row.node.clone(),
        pool: row.pool.clone(),
        scope: row.scope.clone(),
        labels: row.labels.clone(),
        job_id: row.job.map_or(0, |job| job.0),
        created_at: Some(time(row.placed_at)),
        started_at: row.busy_at.map(time),
        finished_at: row.retired_at.map(time),
        exit,
        image: row.image.clone(),
        resources: Some(resources(row.resources)),
    }
}

/// A cause by its lower-case word.
pub fn cause(word: &str) -> v1::runner_exit::Cause {
    let name = format!("CAUSE_{}", word.to_uppercase());
    v1::runner_exit::Cause::from_str_name(&name).unwrap_or(v1::runner_exit::Cause::Unspecified)
}

/// The lower-case word of a cause.
pub fn cause_word(cause: v1::runner_exit::Cause) -> String {
    let name = cause.as_str_name();
    name.strip_prefix("CAUSE_").unwrap_or(name).to_lowercase()
}

/// A node with what it last said of itself.
pub fn node(node: &Node, vital: Vital) -> v1::Node {
    v1::Node {
        name: node.name.to_string(),
        state: node.state_word().to_owned(),
        capability: Some(
            vital
                .capability
                .unwrap_or_else(|| capability(&node.capability)),
        ),
        free: Some(resources(node.free())),
        runners: node.runners.len() as u32,
        last_report: vital.last_report.map(time),
        conditions: node
            .conditions
            .iter()
            .chain(ailing_gpus(node))
            .map(|condition| v1::NodeCondition {
                kind: condition.kind.clone(),
                detail: condition.detail.clone(),
                next_step: condition.next_step.clone(),
            })
            .collect(),
        clock_offset: vital.last_report.map(|_| prost_types::Duration {
            seconds: vital.clock_offset_ms / 1_000,
            nanos: (vital.clock_offset_ms % 1_000) as i32 * 1_000_000,
        }),
        drain_deadline: node.draining.and_then(|drain| drain.deadline).map(time),
    }
}

/// What is wrong with one GPU keeps nothing else away, but people want to know. That a
/// GPU is cut into instances is no fault.
fn ailing_gpus(node: &Node) -> impl Iterator<Item = &Condition> {
    let gpus = node.capability.gpus.iter();
    gpus.filter_map(|gpu| gpu.withheld.as_ref())
        .filter(|condition| condition.kind != "gpu_mig_enabled")
}

/// What the core remembers of a node that has not attached to this process yet.
fn capability(capability: &Capability) -> v1::Capability {
    v1::Capability {
        arch: capability.arch.clone(),
        os: "linux".to_owned(),
        labels: capability.labels.iter().cloned().collect(),
        capacity: Some(resources(capability.capacity)),
        gpus: capability.gpus.iter().map(gpu).collect(),
        properties: capability
            .properties
            .iter()
            .map(|name| v1::Property {
                name: name.clone(),
                state: v1::property::State::Guaranteed as i32,
                evidence: String::new(),
            })
            .collect(),
        max_runners: capability.max_runners,
        ..v1::Capability::default()
    }
}

fn gpu(gpu: &Gpu) -> v1::Gpu {
    v1::Gpu {
        uuid: gpu.uuid.clone(),
        product: gpu.product.clone(),
        memory_mib: gpu.memory_mib,
        compute_capability: gpu.compute_capability.clone(),
        proven: gpu.proven,
        parent_uuid: gpu.parent.clone().unwrap_or_default(),
        withheld: gpu.withheld.as_ref().map(|condition| v1::Withheld {
            kind: condition.kind.clone(),
            detail: condition.detail.clone(),
            next_step: condition.next_step.clone(),
        }),
        ..v1::Gpu::default()
    }
}

/// An exit as the core has it.
pub fn exit_of(exit: &v1::RunnerExit) -> Exit {
    let used = exit.usage.as_ref().filter(|usage| usage.known);
    Exit {
        code: exit.code,
        cause: cause_word(exit.cause()),
        detail: exit.detail.clone(),
        usage: used.map(|usage| Usage {
            cpu: usage.cpu.as_ref().and_then(duration).unwrap_or_default(),
            peak_memory_bytes: usage.peak_memory_bytes,
            read_bytes: usage.read_bytes,
            written_bytes: usage.written_bytes,
            peak_gpu_memory_bytes: usage.peak_gpu_memory_bytes,
        }),
        denied: exit.denied.as_ref().and_then(denied_of),
    }
}

/// Why a job waits.
pub fn explanation(explanation: &Explanation, job: v1::Job) -> v1::ExplainJobResponse {
    let reasons = |reasons: &[scheduler_core::explain::Reason]| {
        reasons
            .iter()
            .map(|reason| v1::Reason {
                code: reason.code.as_str().to_owned(),
                detail: reason.detail.clone(),
                unblocked_by: reason.unblocked_by.clone(),
            })
            .collect::<Vec<_>>()
    };
    v1::ExplainJobResponse {
        job: Some(job),
        summary: explanation.summary.clone(),
        reason: explanation.reason.as_str().to_owned(),
        next_step: explanation.next_step.clone(),
        nodes: explanation
            .nodes
            .iter()
            .map(|(node, why)| v1::NodeVerdict {
                node: node.to_string(),
                feasible: why.is_empty(),
                reasons: reasons(why),
            })
            .collect(),
        pools: explanation
            .pools
            .iter()
            .map(|(pool, why)| v1::PoolVerdict {
                pool: pool.to_string(),
                admits: why.is_empty(),
                reasons: reasons(why),
            })
            .collect(),
        not_before: explanation.not_before.map(time),
    }
}

/// Why jobs wait, remembering the answer for jobs that cannot differ.
#[derive(Default)]
pub struct Reasons {
    known: BTreeMap<Alike, &'static str>,
}

/// Repository, labels, and where the code comes from (event and head): jobs that agree in these get one answer.
type Alike = (String, Vec<String>, Option<String>, Option<String>);

impl Reasons {
    /// A stable word, empty for a job that does not wait.
    pub fn of(&mut self, fleet: &Fleet, job: &Job, now: Now) -> &'static str {
        if job.phase() > JobPhase::Queued {
            return "";
        }
        if job.phase() == JobPhase::Waiting {
            return "not_queued";
        }
        let key = (
            job.seen.repository.full_name(),
            job.seen.labels.clone(),
            job.seen.origin.event.clone(),
            job.seen.origin.head_repository.clone(),
        );
        self.known.entry(key).or_insert_with(|| {
            fleet
                .explain(job.seen.id, now)
                .map_or("", |why| why.reason.as_str())
        })
    }
}

fn admission_word(admission: Admission) -> &'static str {
    match admission {
        Admission::Refuse => "refuse",
        Admission::StrictOnly => "strict",
        Admission::Allow => "allow",
    }
}

/// A pool for people.
pub fn pool(pool: &Pool, origin: PoolOrigin, runners: u32, default_image: &str) -> v1::Pool {
    v1::Pool {
        name: pool.name.to_string(),
        labels: pool.labels.iter().cloned().collect(),
        repositories: pool.repositories.clone(),
        public_repositories: admission_word(pool.public_repositories).to_owned(),
        fork_pull_requests: admission_word(pool.fork_pull_requests).to_owned(),
        image: if pool.image.is_empty() {
            default_image.to_owned()
        } else {
            pool.image.clone()
        },
        runner_group: pool.runner_group.clone().unwrap_or_default(),
        name_prefix: pool.name_prefix.clone(),
        resources: Some(resources(pool.resources)),
        gpu: (pool.gpu != GpuNeeds::default()).then(|| gpu_needs(&pool.gpu)),
        profile: pool.profile.clone(),
        network_mode: pool.network_mode.clone(),
        allowed_domains: pool.allowed_domains.clone(),
        idle_floor: pool.idle_floor,
        maximum: pool.maximum,
        priority: match pool.priority {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
        }
        .to_owned(),
        placement: match pool.placement {
            Placement::Pack => "pack",
            Placement::Spread => "spread",
        }
        .to_owned(),
        required_properties: pool.required_properties.iter().cloned().collect(),
        idle_timeout: Some(span(pool.idle_timeout)),
        lifetime: Some(span(pool.lifetime)),
        bare_self_hosted: pool.bare_self_hosted,
        origin: match origin {
            PoolOrigin::BuiltIn => "built in",
            PoolOrigin::File => "file",
            PoolOrigin::Api => "api",
        }
        .to_owned(),
        runners,
        runtime: pool.runtime.clone(),
    }
}

fn gpu_needs(needs: &GpuNeeds) -> v1::GpuNeeds {
    let (major, minor) = needs.compute_capability;
    v1::GpuNeeds {
        memory_mib: needs.memory_mib,
        compute_capability: if (major, minor) == (0, 0) {
            String::new()
        } else {
            format!("{major}.{minor}")
        },
        models: needs.models.clone(),
    }
}

fn gpu_needs_of(asked: &v1::GpuNeeds) -> Result<GpuNeeds, String> {
    Ok(GpuNeeds {
        memory_mib: asked.memory_mib,
        compute_capability: match asked.compute_capability.as_str() {
            "" => (0, 0),
            text => compute_capability(text)?,
        },
        models: asked.models.clone(),
    })
}

/// Entries of one of a pool's lists, at most.
const ENTRIES: usize = 500;
/// Bytes of one entry, at most.
const ENTRY: usize = 256;

fn few(list: &[String]) -> Result<(), String> {
    if list.len() > ENTRIES {
        return Err(format!("{} entries are more than {ENTRIES}", list.len()));
    }
    match list.iter().find(|entry| entry.len() > ENTRY) {
        Some(long) => Err(format!(
            "an entry of {} bytes is longer than {ENTRY}",
            long.len()
        )),
        None => Ok(()),
    }
}

/// A pool as asked for; what is left out takes its default. The error names the field.
pub fn pool_of(asked: &v1::Pool, defaults: &Defaults) -> Result<Pool, (&'static str, String)> {
    let name = asked.name.as_str();
    let plain = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !plain {
        return Err((
            "pool.name",
            "use 1 to 63 letters, digits, dots, dashes".to_owned(),
        ));
    }
    for (field, list) in [
        ("pool.labels", &asked.labels),
        ("pool.repositories", &asked.repositories),
        ("pool.required_properties", &asked.required_properties),
    ] {
        few(list).map_err(|problem| (field, problem))?;
    }
    let base = defaults.pool(name);
    let word = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
    let at = |field: &'static str| move |problem: String| (field, problem);
    let taken = asked.resources.unwrap_or_default();
    Ok(Pool {
        labels: asked.labels.iter().map(|l| l.to_lowercase()).collect(),
        repositories: asked.repositories.clone(),
        public_repositories: admission(&word(&asked.public_repositories, "strict"))
            .map_err(at("pool.public_repositories"))?,
        fork_pull_requests: admission(&word(&asked.fork_pull_requests, "refuse"))
            .map_err(at("pool.fork_pull_requests"))?,
        image: word(&asked.image, &base.image),
        runner_group: (!asked.runner_group.is_empty()).then(|| asked.runner_group.clone()),
        name_prefix: word(&asked.name_prefix, &base.name_prefix),
        resources: Resources {
            cpu_millis: if taken.cpu_millis == 0 {
                base.resources.cpu_millis
            } else {
                taken.cpu_millis
            },
            memory_bytes: if taken.memory_bytes == 0 {
                base.resources.memory_bytes
            } else {
                enough(taken.memory_bytes).map_err(at("pool.resources.memory_bytes"))?
            },
            gpus: taken.gpus,
        },
        gpu: gpu_needs_of(&asked.gpu.clone().unwrap_or_default())
            .map_err(at("pool.gpu.compute_capability"))?,
        profile: one_of(
            "profile",
            &word(&asked.profile, "strict"),
            &["strict", "standard", "containers"],
        )
        .map_err(at("pool.profile"))?,
        network_mode: one_of(
            "network_mode",
            &word(&asked.network_mode, "open"),
            &["open", "allowlist", "none"],
        )
        .map_err(at("pool.network_mode"))?,
        allowed_domains: domains::list(&word(&asked.network_mode, "open"), &asked.allowed_domains)
            .map_err(at("pool.allowed_domains"))?,
        runtime: runtime::class(&asked.runtime)
            .and_then(|class| {
                runtime::suits(&class, &word(&asked.profile, "strict"), taken.gpus)?;
                Ok(class)
            })
            .map_err(at("pool.runtime"))?,
        idle_floor: asked.idle_floor,
        maximum: asked.maximum,
        priority: priority(&word(&asked.priority, "normal")).map_err(at("pool.priority"))?,
        placement: placement(&word(&asked.placement, "pack")).map_err(at("pool.placement"))?,
        required_properties: asked.required_properties.iter().cloned().collect(),
        idle_timeout: asked
            .idle_timeout
            .as_ref()
            .map_or(Some(base.idle_timeout), duration)
            .ok_or(("pool.idle_timeout", "it is negative".to_owned()))?,
        lifetime: asked
            .lifetime
            .as_ref()
            .map_or(Some(base.lifetime), duration)
            .filter(|lifetime| *lifetime <= Duration::from_secs(5 * 86_400))
            .ok_or(("pool.lifetime", "use at most 5 days".to_owned()))?,
        bare_self_hosted: asked.bare_self_hosted,
        ..base
    })
}
