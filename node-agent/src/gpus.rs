//! Keeps what is known of this host's GPUs: what the driver tells, what a container
//! proved, and what went wrong.
//!
//! A task of its own. It tells the driver of the agent when something changed that
//! the scheduler has to know; no job waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_core::gpu::{Injection, Wanted};
use agent_detect::nvidia::watch::{self, Told};
use agent_detect::nvidia::{Gpu, Health, Nvidia};
use agent_detect::{Findings, Standing, offer};
use agent_docker::{DockerRuntime, Proof, ToProve};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::driver::Input;
use crate::see_gpus;

/// Words of the watching thread that wait; it waits when there are more.
const TOLD: usize = 64;
/// A proof that failed is tried again after this long without another occasion.
const AGAIN: Duration = Duration::from_secs(300);

/// What the proof of a GPU depends on: another engine, driver or cut needs another one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Occasion {
    engine: u64,
    driver: String,
    parent: String,
    minor: Option<u32>,
    has_cdi: bool,
}

#[derive(Default)]
struct State {
    /// As the driver told last, with those that it no longer tells.
    nvidia: Nvidia,
    faults: BTreeMap<String, u64>,
    proofs: BTreeMap<String, (Occasion, Proof)>,
    engine: u64,
}

/// Shared with whoever makes the node's capability.
pub struct Gpus {
    runtime: Arc<DockerRuntime>,
    state: Mutex<State>,
}

impl Gpus {
    /// Starts from what was found at the agent's start.
    pub fn new(runtime: Arc<DockerRuntime>, nvidia: Nvidia) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            state: Mutex::new(State {
                nvidia,
                ..State::default()
            }),
        })
    }

    /// Everything known now.
    pub fn findings(&self) -> Findings {
        let state = self.lock();
        let is_ours = |pid: u32| {
            let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
            cgroup.is_ok_and(|cgroup| self.runtime.holds_process(&cgroup))
        };
        let standing = Standing {
            faults: state.faults.clone(),
            proofs: state
                .proofs
                .iter()
                .map(|(uuid, (_, proof))| {
                    let seen = proof.as_ref().map(|(_, seen)| seen.clone());
                    (uuid.clone(), seen.map_err(Clone::clone))
                })
                .collect(),
            is_ours: Some(&is_ours),
        };
        offer(state.nvidia.clone(), &standing)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until the agent ends. `engine` counts how often the engine became ready.
    pub async fn run(
        self: Arc<Self>,
        root: PathBuf,
        inputs: mpsc::Sender<Input>,
        mut engine: channel::Receiver<u64>,
    ) {
        let (tell, mut told) = mpsc::channel(TOLD);
        if let Err(error) = watch::start(root, move |word| tell.blocking_send(word).is_ok()) {
            warn!(%error, "GPUs are not watched: no thread");
        }
        let mut again = tokio::time::interval(AGAIN);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut proving: Option<JoinHandle<Vec<(String, Occasion, Proof)>>> = None;
        let mut last = Findings::default();
        loop {
            tokio::select! {
                word = told.recv() => match word {
                    Some(word) => self.hear(word),
                    None => std::future::pending().await,
                },
                changed = engine.changed() => match changed {
                    Ok(()) => self.lock().engine = *engine.borrow_and_update(),
                    Err(_) => return,
                },
                _ = again.tick() => self.lock().proofs.retain(|_, (_, proof)| proof.is_ok()),
                proofs = finished(&mut proving) => {
                    proving = None;
                    self.lock().proofs.extend(
                        proofs.into_iter().map(|(uuid, occasion, proof)| (uuid, (occasion, proof))),
                    );
                }
            }
            if proving.is_none() {
                let due = self.due();
                if !due.is_empty() {
                    proving = Some(tokio::spawn(self.clone().prove(due)));
                }
            }
            let findings = self.findings();
            if findings.offered == last.offered {
                continue;
            }
            self.runtime.offer_gpus(self.ways(&findings));
            last = findings;
            if inputs.send(Input::Devices).await.is_err() {
                return;
            }
        }
    }

    fn hear(&self, word: Told) {
        let mut state = self.lock();
        match word {
            Told::Seen(seen) => {
                let before = std::mem::replace(&mut state.nvidia, seen);
                keep_lost(&before, &mut state.nvidia);
            }
            Told::Fault { uuid, xid } if watch::is_fatal(xid) => {
                warn!(
                    gpu = uuid,
                    xid, "the driver reported an error; not offered any more"
                );
                state.faults.insert(uuid, xid);
            }
            Told::Fault { uuid, xid } => {
                info!(gpu = uuid, xid, "the driver reported an error of a program");
            }
        }
    }

    /// What has no proof of this occasion. Forgets proofs of another one at once.
    fn due(&self) -> Vec<(ToProve, Occasion)> {
        let mut state = self.lock();
        if state.engine == 0 {
            return Vec::new();
        }
        let mut due = Vec::new();
        for gpu in state.nvidia.gpus.clone() {
            if gpu.mig_enabled || gpu.health == Health::Lost || gpu.uuid.is_empty() {
                continue;
            }
            let occasion = Occasion {
                engine: state.engine,
                driver: state.nvidia.driver_version.clone(),
                parent: gpu.parent_uuid.clone(),
                minor: gpu.minor,
                has_cdi: state.nvidia.cdi.names(&gpu.uuid),
            };
            let known = state.proofs.get(&gpu.uuid);
            if known.is_some_and(|(proven_at, _)| *proven_at == occasion) {
                continue;
            }
            state.proofs.remove(&gpu.uuid);
            let wanted = Wanted {
                uuid: gpu.uuid,
                minor: gpu.minor,
                parent_uuid: gpu.parent_uuid,
            };
            let has_cdi = occasion.has_cdi;
            due.push((ToProve { wanted, has_cdi }, occasion));
        }
        due
    }

    async fn prove(
        self: Arc<Self>,
        due: Vec<(ToProve, Occasion)>,
    ) -> Vec<(String, Occasion, Proof)> {
        let wanted: Vec<ToProve> = due.iter().map(|(one, _)| one.clone()).collect();
        let proofs = match see_gpus::program() {
            Ok(program) => self
                .runtime
                .prove_gpus(&program, &wanted)
                .await
                .map_err(|error| error.detail),
            Err(error) => Err(format!("the agent's own program cannot be read: {error}")),
        };
        let proofs = proofs.unwrap_or_else(|problem| {
            warn!(problem, "no GPU could be proven");
            vec![Err(problem); wanted.len()]
        });
        due.into_iter()
            .zip(proofs)
            .map(|((one, occasion), proof)| (one.wanted.uuid, occasion, proof))
            .collect()
    }

    fn ways(&self, findings: &Findings) -> BTreeMap<String, Injection> {
        let state = self.lock();
        let way = |uuid: &String| match state.proofs.get(uuid) {
            Some((_, Ok((by, _)))) => Some((uuid.clone(), *by)),
            _ => None,
        };
        let offered = findings.offered.iter().filter(|gpu| gpu.is_offered());
        offered.filter_map(|gpu| way(&gpu.gpu.uuid)).collect()
    }
}

async fn finished<T>(work: &mut Option<JoinHandle<Vec<T>>>) -> Vec<T> {
    match work {
        // A panic in there is a bug: what it was for stays unproven and is tried again.
        Some(work) => work.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

/// A GPU that the driver no longer tells has not left the host by itself: it is lost,
/// and whoever holds it still does. Instances do go, when a GPU is cut anew.
fn keep_lost(before: &Nvidia, now: &mut Nvidia) {
    let told: BTreeSet<&String> = now.gpus.iter().map(|gpu| &gpu.uuid).collect();
    let whole_is_told = |gpu: &Gpu| !gpu.parent_uuid.is_empty() && told.contains(&gpu.parent_uuid);
    let missing: Vec<Gpu> = before
        .gpus
        .iter()
        .filter(|gpu| !told.contains(&gpu.uuid) && !whole_is_told(gpu))
        .map(|gpu| Gpu {
            health: Health::Lost,
            processes: vec![],
            ..gpu.clone()
        })
        .collect();
    now.gpus.extend(missing);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_vanishes_is_lost_and_an_instance_that_is_cut_away_is_gone() {
        let gpu = |uuid: &str, parent: &str| Gpu {
            uuid: uuid.into(),
            parent_uuid: parent.into(),
            health: Health::Good,
            ..Gpu::default()
        };
        let nvidia = |gpus: Vec<Gpu>| Nvidia {
            gpus,
            ..Nvidia::default()
        };
        let before = nvidia(vec![
            gpu("GPU-1", ""),
            gpu("GPU-2", ""),
            gpu("MIG-1", "GPU-2"),
            gpu("GPU-3", ""),
            gpu("MIG-2", "GPU-3"),
        ]);
        let mut now = nvidia(vec![gpu("GPU-2", "")]);
        keep_lost(&before, &mut now);
        let told: Vec<(&str, Health)> = now
            .gpus
            .iter()
            .map(|gpu| (gpu.uuid.as_str(), gpu.health))
            .collect();
        assert_eq!(
            told,
            [
                ("GPU-2", Health::Good),
                ("GPU-1", Health::Lost),
                ("GPU-3", Health::Lost),
                ("MIG-2", Health::Lost),
            ]
        );
    }
}
