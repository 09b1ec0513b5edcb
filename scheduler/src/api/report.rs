//! A node's words as the core's inputs, and the core's intent as a node's words.

use std::collections::BTreeSet;

use longshore_proto::v1;
use prost::Message;
use scheduler_core::{
    effect::{Desired, Expected, NodeIntent},
    input::{ObservedPhase, ObservedRunner},
    model::{Capability, Condition, Generation, Gpu, NodeName, Resources, RunnerName},
};

use super::convert::{exit_of, resources, span};

/// Runners in one report, at most.
pub const RUNNERS: usize = 4_096;
/// GPUs and instances of one node, at most.
const GPUS: usize = 512;
/// Conditions in one report, at most.
const CONDITIONS: usize = 64;
/// Bytes of what one node offers, at most: it is kept for every node.
const CAPABILITY: usize = 256 * 1024;
/// An epoch beyond this is nonsense: raising ours above it would soon end the count.
const EPOCH: u64 = 1 << 48;

/// A node's name: `[a-z0-9-]`, at most 63 characters.
pub fn node_name(name: &str) -> Result<NodeName, String> {
    let plain = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if plain {
        return Ok(NodeName::new(name));
    }
    Err(format!(
        "`{}` is not a node name: use a-z, 0-9 and -, at most 63 characters",
        name.escape_debug()
    ))
}

/// A generation a node heard; absent means none.
pub fn generation(heard: Option<&v1::Generation>) -> Result<Generation, String> {
    let heard = heard.copied().unwrap_or_default();
    if heard.epoch > EPOCH {
        return Err(format!("epoch {} cannot be", heard.epoch));
    }
    Ok(Generation {
        epoch: heard.epoch,
        counter: heard.counter,
    })
}

/// Whether what a node offers is of a size that can be kept.
pub fn fits(told: &v1::Capability) -> Result<(), String> {
    let size = told.encoded_len();
    if size <= CAPABILITY {
        return Ok(());
    }
    Err(format!(
        "what the node offers takes {size} bytes; at most {CAPABILITY} are kept"
    ))
}

/// What a node offers, as the core decides on it.
pub fn capability(told: &v1::Capability) -> Capability {
    let capacity = told.capacity.unwrap_or_default();
    let engine = told.engine.clone().unwrap_or_default();
    Capability {
        arch: told.arch.clone(),
        labels: told
            .labels
            .iter()
            .map(|label| label.to_lowercase())
            .collect(),
        capacity: Resources {
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            gpus: capacity.gpus,
        },
        gpus: told.gpus.iter().take(GPUS).map(gpu).collect(),
        max_runners: told.max_runners,
        properties: told
            .properties
            .iter()
            .filter(|property| property.state() == v1::property::State::Guaranteed)
            .map(|property| property.name.clone())
            .collect::<BTreeSet<_>>(),
        facts: [
            ("agent", &told.agent_version),
            ("kernel", &told.kernel),
            ("hostname", &told.hostname),
            ("engine", &engine.kind),
            ("engine_version", &engine.version),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect(),
    }
}

fn gpu(told: &v1::Gpu) -> Gpu {
    Gpu {
        uuid: told.uuid.clone(),
        product: told.product.clone(),
        memory_mib: told.memory_mib,
        compute_capability: told.compute_capability.clone(),
        proven: told.proven,
        parent: (!told.parent_uuid.is_empty()).then(|| told.parent_uuid.clone()),
        withheld: told.withheld.as_ref().map(|why| Condition {
            kind: why.kind.clone(),
            detail: why.detail.clone(),
            next_step: why.next_step.clone(),
            image: None,
        }),
    }
}

/// Conditions a node names.
pub fn conditions(told: &[v1::Condition]) -> Vec<Condition> {
    told.iter()
        .take(CONDITIONS)
        .map(|condition| Condition {
            kind: condition.kind.clone(),
            detail: condition.detail.clone(),
            next_step: condition.next_step.clone(),
            image: (!condition.image.is_empty()).then(|| condition.image.clone()),
        })
        .collect()
}

/// Runners a node sees; entries without a known phase are left out.
pub fn runners(told: &[v1::ObservedRunner]) -> Vec<ObservedRunner> {
    told.iter().filter_map(runner).collect()
}

fn runner(told: &v1::ObservedRunner) -> Option<ObservedRunner> {
    use v1::observed_runner::Phase;
    let phase = match told.phase() {
        Phase::Unspecified => return None,
        Phase::Preparing => ObservedPhase::Preparing,
        Phase::Ready => ObservedPhase::Ready,
        Phase::Consumed => ObservedPhase::Consumed,
        Phase::Online => ObservedPhase::Online,
        Phase::Busy => ObservedPhase::Busy,
        Phase::Exited => ObservedPhase::Exited,
        Phase::Failed => ObservedPhase::Failed,
    };
    Some(ObservedRunner {
        name: RunnerName::new(&told.name),
        phase,
        observation: told.observation,
        worker: told.worker,
        container_id: told.container_id.clone(),
        foreign: told.foreign,
        remove_refused: told.remove_refused,
        exit: told.exit.as_ref().map(exit_of),
        error: told
            .error
            .as_ref()
            .map(|error| (error.reason.clone(), error.detail.clone())),
    })
}

/// A node's intent on the wire; `taken` says how much of a runner's output we hold.
pub fn intent(intent: &NodeIntent, taken: impl Fn(&RunnerName) -> u64) -> v1::NodeIntent {
    v1::NodeIntent {
        generation: Some(v1::Generation {
            epoch: intent.generation.epoch,
            counter: intent.generation.counter,
        }),
        runners: intent
            .runners
            .iter()
            .map(|runner| v1::RunnerIntent {
                name: runner.name.to_string(),
                desired: Some(desired(&runner.desired)),
            })
            .collect(),
        logs: intent
            .runners
            .iter()
            .map(|runner| v1::LogSubscription {
                runner: runner.name.to_string(),
                offset: taken(&runner.name),
            })
            .collect(),
        cordoned: intent.cordoned,
        expected: intent.expected.iter().map(expected).collect(),
    }
}

fn expected(kind: &Expected) -> v1::RunnerSpec {
    v1::RunnerSpec {
        image: kind.image.clone(),
        profile: kind.profile.clone(),
        resources: Some(resources(kind.resources)),
        network_mode: kind.network_mode.clone(),
        runtime: kind.runtime.clone(),
        platform: kind.platform.clone(),
        lifetime: Some(span(std::time::Duration::from_millis(kind.lifetime_ms))),
        pool: kind.pool.to_string(),
        ..v1::RunnerSpec::default()
    }
}

fn desired(desired: &Desired) -> v1::runner_intent::Desired {
    use v1::runner_intent::Desired as Wire;
    match desired {
        Desired::Run(placed) => Wire::Run(v1::RunnerSpec {
            image: placed.image.clone(),
            profile: placed.profile.clone(),
            resources: Some(resources(placed.resources)),
            gpu_uuids: placed.gpu_uuids.clone(),
            network_mode: placed.network_mode.clone(),
            platform: placed.platform.clone(),
            lifetime: Some(span(std::time::Duration::from_millis(placed.lifetime_ms))),
            traceparent: placed.traceparent.clone().unwrap_or_default(),
            pool: placed.pool.to_string(),
            scope: placed.scope.to_string(),
            allowed_domains: placed.allowed_domains.clone(),
            runtime: placed.runtime.clone(),
        }),
        Desired::StopIfIdle => Wire::StopIfIdle(v1::StopIfIdle {}),
        Desired::Remove { observation } => Wire::Remove(v1::Remove {
            observation: *observation,
        }),
        Desired::Kill { reason, grace_ms } => Wire::Kill(v1::Kill {
            reason: reason.clone(),
            grace: Some(span(std::time::Duration::from_millis(*grace_ms))),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_alphabet_are_refused() {
        assert!(node_name("gpu-1").is_ok());
        for name in ["", "GPU", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert!(node_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_absurd_epoch_is_refused() {
        let heard = v1::Generation {
            epoch: u64::MAX,
            counter: 0,
        };
        assert!(generation(Some(&heard)).is_err());
        assert_eq!(generation(None), Ok(Generation::default()));
    }

    #[test]
    fn ten_times_the_capability_is_refused() {
        let label = "x".repeat(64);
        let told = |labels| v1::Capability {
            labels: vec![label.clone(); labels],
            ..v1::Capability::default()
        };
        assert!(fits(&told(1_000)).is_ok());
        let refused = fits(&told(10 * CAPABILITY / 64)).unwrap_err();
        assert!(refused.contains("at most 262144"), "{refused}");
    }

    #[test]
    fn only_guaranteed_properties_count() {
        use v1::property::State;
        let property = |name: &str, state: State| v1::Property {
            name: name.to_owned(),
            state: state as i32,
            evidence: String::new(),
        };
        let told = v1::Capability {
            properties: vec![
                property("a", State::Guaranteed),
                property("b", State::NotGuaranteed),
                property("c", State::Failed),
            ],
            labels: vec!["Linux".to_owned()],
            ..v1::Capability::default()
        };
        let known = capability(&told);
        assert_eq!(known.properties, BTreeSet::from(["a".to_owned()]));
        assert!(known.labels.contains("linux"));
    }
}
