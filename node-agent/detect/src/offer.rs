//! Which GPUs may be given to jobs now, and why the others may not.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::nvidia::{Gpu, Health, Nvidia};

/// A GPU that is there, and whether a job may have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OfferedGpu {
    #[serde(flatten)]
    pub gpu: Gpu,
    pub driver_version: String,
    pub cuda_version: String,
    /// A container that was started with it saw it and no other.
    pub proven: bool,
    /// Why it is not offered at present; absent when it is.
    pub withheld: Option<Withheld>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Withheld {
    /// Stable word of `types.proto`.
    pub kind: &'static str,
    pub detail: String,
    pub next_step: String,
}

/// What was learnt of the GPUs besides what the driver tells now.
#[derive(Default)]
pub struct Standing<'a> {
    /// Critical errors by UUID, until the agent starts again.
    pub faults: BTreeMap<String, u64>,
    /// By UUID: what a proving container saw, or why it did not.
    pub proofs: BTreeMap<String, Result<String, String>>,
    /// Whether a process belongs to a sandbox of this agent.
    pub is_ours: Option<&'a dyn Fn(u32) -> bool>,
}

/// Everything known of this host's GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    pub nvidia: Nvidia,
    pub offered: Vec<OfferedGpu>,
}

impl OfferedGpu {
    pub fn is_offered(&self) -> bool {
        self.proven && self.withheld.is_none()
    }
}

pub fn offer(nvidia: Nvidia, standing: &Standing<'_>) -> Findings {
    let offered = nvidia
        .gpus
        .iter()
        .map(|gpu| OfferedGpu {
            gpu: gpu.clone(),
            driver_version: nvidia.driver_version.clone(),
            cuda_version: nvidia.cuda_version.clone(),
            proven: matches!(standing.proofs.get(&gpu.uuid), Some(Ok(_))),
            withheld: withheld(gpu, standing),
        })
        .collect();
    Findings { nvidia, offered }
}

/// The gravest reason first.
fn withheld(gpu: &Gpu, standing: &Standing<'_>) -> Option<Withheld> {
    let name = format!("{} {}", gpu.product, gpu.uuid);
    let whole = [&gpu.uuid, &gpu.parent_uuid];
    if gpu.health == Health::Lost {
        return Some(Withheld {
            kind: "gpu_lost",
            detail: format!("{name} does not answer: it fell off the bus or needs a reset"),
            next_step: "look at dmesg; reset it or the host, and restart the agent".into(),
        });
    }
    let fault = whole.iter().find_map(|uuid| standing.faults.get(*uuid));
    if let Some(xid) = fault {
        return Some(Withheld {
            kind: "gpu_fault",
            detail: format!("the driver reported error Xid {xid} of {name}"),
            next_step: format!(
                "look Xid {xid} up in NVIDIA's list and in dmesg; reset the GPU (nvidia-smi --gpu-reset) and restart the agent"
            ),
        });
    }
    if gpu.mig_enabled {
        return Some(Withheld {
            kind: "gpu_mig_enabled",
            detail: format!("{name} is cut into MIG instances, which are offered instead"),
            next_step: "nothing; to offer it whole, switch MIG off (nvidia-smi -mig 0) and restart the agent".into(),
        });
    }
    let strangers: Vec<String> = gpu
        .processes
        .iter()
        .filter(|process| !standing.is_ours.is_some_and(|is_ours| is_ours(process.pid)))
        .map(|process| format!("{} (process {})", process.name, process.pid))
        .collect();
    if !strangers.is_empty() {
        return Some(Withheld {
            kind: "gpu_in_foreign_use",
            detail: format!(
                "{name} is used by programs that are no job's: {}",
                strangers.join(", ")
            ),
            next_step: "it is offered again by itself when they end".into(),
        });
    }
    match standing.proofs.get(&gpu.uuid) {
        Some(Ok(_)) => None,
        Some(Err(problem)) => Some(Withheld {
            kind: "gpu_unproven",
            detail: format!("no container saw {name}: {problem}"),
            next_step: next_step(problem).into(),
        }),
        None => Some(Withheld {
            kind: "gpu_unproven",
            detail: format!("{name} has not been proven by the start of a container yet"),
            next_step: "wait: a running agent does it at its start and when the engine or the driver changes".into(),
        }),
    }
}

/// What mends a proof that failed, as far as the words tell.
fn next_step(problem: &str) -> &'static str {
    if problem.contains("could not select device driver") {
        "install nvidia-container-toolkit, run nvidia-ctk runtime configure --runtime=docker, and restart the engine"
    } else if problem.contains("nvidia-container-cli") || problem.contains("hook") {
        "check the driver with nvidia-smi on the host and that nvidia-container-toolkit fits it; the agent tries again by itself"
    } else {
        "start a container with this GPU by hand (docker run --rm --gpus device=UUID IMAGE nvidia-smi -L); the agent tries again by itself"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvidia::ComputeProcess;

    fn gpu(uuid: &str) -> Gpu {
        Gpu {
            uuid: uuid.into(),
            product: "H100".into(),
            health: Health::Good,
            ..Gpu::default()
        }
    }

    fn proven(uuids: &[&str]) -> Standing<'static> {
        Standing {
            proofs: uuids
                .iter()
                .map(|uuid| ((*uuid).to_owned(), Ok("seen".to_owned())))
                .collect(),
            ..Standing::default()
        }
    }

    fn kinds(gpus: &[Gpu], standing: &Standing<'_>) -> Vec<&'static str> {
        let nvidia = Nvidia {
            gpus: gpus.to_vec(),
            ..Nvidia::default()
        };
        let found = offer(nvidia, standing);
        let word = |gpu: &OfferedGpu| gpu.withheld.as_ref().map_or("", |why| why.kind);
        found.offered.iter().map(word).collect()
    }

    #[test]
    fn only_a_proven_gpu_is_offered() {
        assert_eq!(
            kinds(&[gpu("GPU-1"), gpu("GPU-2")], &proven(&["GPU-1"])),
            ["", "gpu_unproven"]
        );
        let mut failed = proven(&[]);
        let words = "could not select device driver \"nvidia\" with capabilities: [[gpu]]";
        failed.proofs.insert("GPU-1".into(), Err(words.into()));
        let nvidia = Nvidia {
            gpus: vec![gpu("GPU-1")],
            ..Nvidia::default()
        };
        let found = offer(nvidia, &failed);
        let why = found.offered[0].withheld.as_ref().unwrap();
        assert!(why.detail.contains(words), "{why:?}");
        assert!(why.next_step.contains("install nvidia-container-toolkit"));
    }

    #[test]
    fn a_gpu_with_instances_is_not_offered_itself() {
        let whole = Gpu {
            mig_enabled: true,
            ..gpu("GPU-1")
        };
        let part = Gpu {
            parent_uuid: "GPU-1".into(),
            ..gpu("MIG-1")
        };
        let standing = proven(&["GPU-1", "MIG-1"]);
        assert_eq!(kinds(&[whole, part], &standing), ["gpu_mig_enabled", ""]);
    }

    #[test]
    fn strangers_keep_a_gpu_and_our_own_jobs_do_not() {
        let mut used = gpu("GPU-1");
        used.processes = vec![ComputeProcess {
            pid: 7,
            name: "train".into(),
            memory_bytes: None,
        }];
        let ours = |pid: u32| pid == 7;
        let mut standing = proven(&["GPU-1"]);
        assert_eq!(kinds(&[used.clone()], &standing), ["gpu_in_foreign_use"]);
        standing.is_ours = Some(&ours);
        assert_eq!(kinds(&[used], &standing), [""]);
    }

    #[test]
    fn a_fault_condemns_its_gpu_and_the_instances_of_it() {
        let part = Gpu {
            parent_uuid: "GPU-1".into(),
            ..gpu("MIG-1")
        };
        let mut standing = proven(&["GPU-1", "GPU-2", "MIG-1"]);
        standing.faults.insert("GPU-1".into(), 79);
        assert_eq!(
            kinds(&[gpu("GPU-1"), part, gpu("GPU-2")], &standing),
            ["gpu_fault", "gpu_fault", ""]
        );
        let lost = Gpu {
            health: Health::Lost,
            ..gpu("GPU-2")
        };
        assert_eq!(kinds(&[lost], &standing), ["gpu_lost"]);
    }
}
