//! Between `node.proto` and the core's nouns.

use std::collections::BTreeMap;

use agent_core::denied::{Denied, Destination};
use agent_core::probe::{self, Found, Probed};
use agent_core::{
    Cause, Condition, Desired, Exit, Generation, Intent, ObservedRunner, Phase, Resources,
    RunnerError, RunnerSpec,
};
use agent_detect::capability::Capability;
use agent_detect::properties::State;
use longshore_proto::v1 as pb;
use prost_types::{Duration, Timestamp};

use crate::probing;

/// Longest time a wire duration may mean; longer ones are cut, not trusted.
const MAX_MS: u64 = 3_650 * 24 * 3_600_000;
/// Kinds of runner taken from one intent.
const MAX_EXPECTED: usize = 8;

pub fn generation_from(generation: Option<pb::Generation>) -> Generation {
    generation.map_or_else(Generation::default, |g| Generation {
        epoch: g.epoch,
        counter: g.counter,
    })
}

pub fn generation_to(generation: Generation) -> pb::Generation {
    pb::Generation {
        epoch: generation.epoch,
        counter: generation.counter,
    }
}

pub fn millis(duration: Option<&Duration>) -> Option<u64> {
    let duration = duration?;
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u64::try_from(duration.nanos).ok()?;
    Some(
        seconds
            .saturating_mul(1_000)
            .saturating_add(nanos / 1_000_000)
            .min(MAX_MS),
    )
}

pub fn timestamp(utc_ms: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(utc_ms / 1_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(utc_ms % 1_000).unwrap_or(0) * 1_000_000,
    }
}

pub fn utc_ms(timestamp: &Timestamp) -> Option<u64> {
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    Some(seconds.saturating_mul(1_000) + u64::try_from(timestamp.nanos).ok()? / 1_000_000)
}

/// An intent; runners without a desired state are left out, which stops nothing.
pub fn intent_from(intent: pb::NodeIntent) -> Intent {
    let runners: BTreeMap<String, Desired> = intent
        .runners
        .into_iter()
        .filter_map(|runner| Some((runner.name, desired_from(runner.desired?))))
        .collect();
    Intent {
        generation: generation_from(intent.generation),
        cordoned: intent.cordoned,
        runners,
        expected: intent
            .expected
            .into_iter()
            .take(MAX_EXPECTED)
            .map(spec_from)
            .collect(),
    }
}

fn desired_from(desired: pb::runner_intent::Desired) -> Desired {
    use pb::runner_intent::Desired as Wire;
    match desired {
        Wire::Run(spec) => Desired::Run(spec_from(spec)),
        Wire::StopIfIdle(_) => Desired::StopIfIdle,
        Wire::Remove(remove) => Desired::Remove {
            observation: remove.observation,
        },
        Wire::Kill(kill) => Desired::Kill {
            reason: kill.reason,
            grace_ms: millis(kill.grace.as_ref())
                .unwrap_or(agent_core::lifecycle::LIFETIME_GRACE_MS),
        },
    }
}

fn spec_from(spec: pb::RunnerSpec) -> RunnerSpec {
    let resources = spec.resources.unwrap_or_default();
    RunnerSpec {
        image: spec.image,
        profile: spec.profile,
        resources: Resources {
            cpu_millis: resources.cpu_millis,
            memory_bytes: resources.memory_bytes,
            gpus: resources.gpus,
        },
        gpu_uuids: spec.gpu_uuids,
        network_mode: spec.network_mode,
        allowed_domains: spec.allowed_domains,
        platform: spec.platform,
        lifetime_ms: millis(spec.lifetime.as_ref()).unwrap_or(0),
        traceparent: spec.traceparent,
        pool: spec.pool,
        scope: spec.scope,
        runtime: spec.runtime,
    }
}

/// A sandbox to look at. Only what makes a difference inside is taken over.
pub fn probe_spec_from(spec: pb::RunnerSpec) -> RunnerSpec {
    RunnerSpec {
        runtime: spec.runtime,
        ..probing::spec(
            &spec.profile,
            &spec.network_mode,
            &spec.image,
            &spec.platform,
        )
    }
}

pub fn checked_to(id: u64, result: Result<Probed, RunnerError>) -> pb::SandboxChecked {
    let mut told = pb::SandboxChecked {
        id,
        ..pb::SandboxChecked::default()
    };
    match result {
        Ok(probed) => {
            let millis = std::time::Duration::from_millis(probed.took_ms);
            told.took = Duration::try_from(millis).ok();
            told.checks = probe::by_property(&probed.checks)
                .into_iter()
                .map(|check| pb::Check {
                    row: check.row,
                    name: check.name.into(),
                    state: match check.found {
                        Found::Pass => pb::property::State::Guaranteed,
                        Found::NotGuaranteed => pb::property::State::NotGuaranteed,
                        Found::Fail => pb::property::State::Failed,
                    }
                    .into(),
                    detail: check.detail,
                })
                .collect();
        }
        Err(error) => {
            told.error = Some(pb::RunnerError {
                reason: error.reason.word().into(),
                detail: error.detail,
            });
        }
    }
    told
}

pub fn observed_to(runner: &ObservedRunner) -> pb::ObservedRunner {
    let at = |time: Option<u64>| time.map(timestamp);
    pb::ObservedRunner {
        name: runner.name.clone(),
        phase: phase_to(runner.phase).into(),
        observation: runner.observation,
        worker: runner.worker,
        exit: runner
            .exit
            .as_ref()
            .filter(|_| runner.phase.is_over())
            .map(exit_to),
        error: runner.error.as_ref().map(|error| pb::RunnerError {
            reason: error.reason.word().into(),
            detail: error.detail.clone(),
        }),
        container_id: runner.container_id.clone(),
        created_at: at(runner.times.created),
        ready_at: at(runner.times.ready),
        consumed_at: at(runner.times.consumed),
        online_at: at(runner.times.online),
        busy_at: at(runner.times.busy),
        foreign: runner.foreign,
        remove_refused: runner.remove_refused,
    }
}

fn phase_to(phase: Phase) -> pb::observed_runner::Phase {
    use pb::observed_runner::Phase as Wire;
    match phase {
        Phase::Preparing => Wire::Preparing,
        Phase::Ready => Wire::Ready,
        Phase::Consumed => Wire::Consumed,
        Phase::Online => Wire::Online,
        Phase::Busy => Wire::Busy,
        Phase::Exited => Wire::Exited,
        Phase::Failed => Wire::Failed,
    }
}

fn exit_to(exit: &Exit) -> pb::RunnerExit {
    use pb::runner_exit::Cause as Wire;
    let cause = match exit.cause {
        Cause::Finished => Wire::Finished,
        Cause::RunnerRefused => Wire::RunnerRefused,
        Cause::OutOfMemory => Wire::OutOfMemory,
        Cause::Lifetime => Wire::Lifetime,
        Cause::Idle => Wire::Idle,
        Cause::Killed => Wire::Killed,
        Cause::Engine => Wire::Engine,
        Cause::NeverStarted => Wire::NeverStarted,
        Cause::VersionDeprecated => Wire::VersionDeprecated,
        Cause::SessionConflict => Wire::SessionConflict,
        Cause::DiskFull => Wire::DiskFull,
    };
    let usage = exit.usage.map(|usage| pb::Usage {
        cpu: Some(Duration {
            seconds: i64::try_from(usage.cpu_ns / 1_000_000_000).unwrap_or(i64::MAX),
            nanos: i32::try_from(usage.cpu_ns % 1_000_000_000).unwrap_or(0),
        }),
        peak_memory_bytes: usage.peak_memory_bytes,
        known: true,
        read_bytes: usage.read_bytes,
        written_bytes: usage.written_bytes,
        peak_gpu_memory_bytes: usage.peak_gpu_memory_bytes,
        gpus: 0,
    });
    pb::RunnerExit {
        code: exit.code,
        cause: cause.into(),
        detail: exit.detail.clone(),
        usage: Some(usage.unwrap_or_default()),
        finished_at: Some(timestamp(exit.finished_utc_ms)),
        denied: Some(denied_to(exit.denied.as_ref())),
    }
}

fn denied_to(denied: Option<&Denied>) -> pb::DeniedEgress {
    let Some(denied) = denied else {
        return pb::DeniedEgress::default();
    };
    let destination = |one: &Destination| pb::DeniedDestination {
        destination: one.destination.clone(),
        protocol: one.protocol.clone(),
        port: u32::from(one.port),
        count: one.count,
        reason: one.reason.clone(),
    };
    pb::DeniedEgress {
        known: true,
        total: denied.total,
        destinations: denied.destinations.iter().map(destination).collect(),
        more: denied.more,
    }
}

pub fn condition_to(condition: &Condition) -> pb::Condition {
    pb::Condition {
        kind: condition.kind.into(),
        detail: condition.detail.clone(),
        next_step: condition.next_step.clone(),
        image: condition.image.clone(),
    }
}

pub fn capability_to(found: &Capability) -> pb::Capability {
    use pb::property::State as Wire;
    pb::Capability {
        arch: found.arch.clone(),
        os: found.os.clone(),
        labels: found.labels.clone(),
        capacity: Some(pb::Resources {
            cpu_millis: found.capacity.cpu_millis,
            memory_bytes: found.capacity.memory_bytes,
            gpus: found.capacity.gpus,
        }),
        gpus: found
            .gpus
            .iter()
            .map(|offered| pb::Gpu {
                uuid: offered.gpu.uuid.clone(),
                product: offered.gpu.product.clone(),
                memory_mib: offered.gpu.memory_mib,
                compute_capability: offered.gpu.compute_capability.clone(),
                driver_version: offered.driver_version.clone(),
                cuda_version: offered.cuda_version.clone(),
                pci_bus_id: offered.gpu.pci_bus_id.clone(),
                proven: offered.proven,
                parent_uuid: offered.gpu.parent_uuid.clone(),
                mig_profile: offered.gpu.mig_profile.clone(),
                withheld: offered.withheld.as_ref().map(|why| pb::Withheld {
                    kind: why.kind.into(),
                    detail: why.detail.clone(),
                    next_step: why.next_step.clone(),
                }),
                brand: offered.gpu.brand.clone(),
                architecture: offered.gpu.architecture.clone(),
                numa_node: offered.gpu.numa_node,
            })
            .collect(),
        engine: found.engine.as_ref().map(|engine| pb::Engine {
            kind: engine.kind.clone(),
            version: engine.version.clone(),
            api_version: engine.api_version.clone(),
            cgroup_version: engine.cgroup_version,
            storage_driver: engine.storage_driver.clone(),
            live_restore: engine.live_restore,
        }),
        properties: found
            .properties
            .iter()
            .map(|property| pb::Property {
                name: property.name.to_string(),
                state: match property.state {
                    State::Guaranteed => Wire::Guaranteed,
                    State::NotGuaranteed => Wire::NotGuaranteed,
                    State::Failed => Wire::Failed,
                }
                .into(),
                evidence: property.evidence.clone(),
            })
            .collect(),
        evidence: found
            .evidence
            .iter()
            .map(|evidence| pb::Evidence {
                subject: evidence.subject.clone(),
                source: evidence.source.clone(),
                finding: evidence.finding.clone(),
            })
            .collect(),
        max_runners: found.max_runners,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel: found.kernel.clone(),
        hostname: found.hostname.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_times_survive_nonsense() {
        assert_eq!(millis(None), None);
        assert_eq!(
            millis(Some(&Duration {
                seconds: -1,
                nanos: 0
            })),
            None
        );
        assert_eq!(
            millis(Some(&Duration {
                seconds: i64::MAX,
                nanos: 0
            })),
            Some(MAX_MS)
        );
        assert_eq!(
            utc_ms(&timestamp(1_700_000_000_123)),
            Some(1_700_000_000_123)
        );
    }

    #[test]
    fn a_runner_without_desired_state_is_left_out() {
        let intent = pb::NodeIntent {
            runners: vec![pb::RunnerIntent {
                name: "ls-a".into(),
                desired: None,
            }],
            ..pb::NodeIntent::default()
        };
        assert!(intent_from(intent).runners.is_empty());
    }
}
