//! Placement judged by a plain scan over strings: what may be placed where, what
//! must not wait, and which node is the best fit. Shares nothing with the index.

use std::collections::{BTreeMap, BTreeSet};

use scheduler_core::{Fleet, Node, Runner, fact::*, input::ObservedPhase, model::*};

/// Breakers as the facts told them; the oracle keeps its own books.
#[derive(Default)]
pub(crate) struct Breakers {
    images: BTreeMap<(String, Option<NodeName>), UtcMillis>,
    scopes: BTreeMap<Scope, UtcMillis>,
    demands: BTreeMap<(Scope, String, Vec<String>), (u32, UtcMillis)>,
    placed: BTreeMap<RunnerName, std::sync::Arc<RunnerPlaced>>,
    named: BTreeSet<RunnerName>,
    at_work: BTreeSet<RunnerName>,
    told_to_stop: BTreeSet<RunnerName>,
    /// Ended without GitHub having named a job of theirs: since when.
    over: BTreeMap<RunnerName, UtcMillis>,
}

impl Breakers {
    pub(crate) fn hear(&mut self, fact: &Fact) {
        match fact {
            Fact::ImageBlocked {
                image, node, until, ..
            } => {
                self.images.insert((image.clone(), node.clone()), *until);
            }
            Fact::ImageCleared { image, node } => {
                self.images.remove(&(image.clone(), node.clone()));
            }
            Fact::ScopeRests { scope, until, .. } => {
                self.scopes.insert(scope.clone(), *until);
            }
            Fact::ScopeCleared { scope } => {
                self.scopes.remove(scope);
            }
            Fact::DemandRests {
                scope,
                repository,
                labels,
                until,
                runners,
            } => {
                let key = (scope.clone(), repository.clone(), labels.clone());
                self.demands.insert(key, (*runners, *until));
            }
            Fact::DemandCleared {
                scope,
                repository,
                labels,
            } => {
                let key = (scope.clone(), repository.clone(), labels.clone());
                self.demands.remove(&key);
            }
            Fact::RunnerObserved {
                runner,
                phase,
                worker,
                ..
            } => {
                if *worker || *phase == ObservedPhase::Busy {
                    self.at_work.insert(runner.clone());
                } else {
                    self.at_work.remove(runner);
                }
            }
            Fact::RunnerStopping { runner, .. } => {
                self.told_to_stop.insert(runner.clone());
            }
            Fact::RunnerPlaced(placed) => {
                self.placed.insert(placed.runner.clone(), placed.clone());
            }
            Fact::JobBound { runner, .. } => {
                self.named.insert(runner.clone());
                self.over.remove(runner);
            }
            Fact::RunnerRetired {
                runner, exit, at, ..
            } => {
                let by_itself = exit.as_ref().is_some_and(|exit| exit.cause == "finished")
                    && !self.told_to_stop.contains(runner);
                let ran = by_itself || self.at_work.contains(runner);
                if ran && !self.named.contains(runner) {
                    self.over.insert(runner.clone(), *at);
                }
            }
            _ => {}
        }
    }

    /// Runners that may have run one of the jobs which still count as queued: gone at
    /// most half a minute ago, and GitHub's word on them may still be on the way.
    fn spent(&self, now: Now) -> impl Iterator<Item = &RunnerPlaced> {
        self.over
            .iter()
            .filter(move |(_, at)| now.utc < **at + 30_000)
            .filter_map(|(name, _)| self.placed.get(name).map(|placed| &**placed))
    }

    fn demand_rests(&self, job: &scheduler_core::input::JobSeen, now: Now) -> bool {
        let repository = job.repository.full_name().to_lowercase();
        let key = (job.scope.clone(), repository, folded(&job.labels));
        self.demands
            .get(&key)
            .is_some_and(|(runners, until)| *runners >= 3 && *until > now.utc)
    }

    fn image_rests(&self, image: &str, node: Option<&NodeName>, now: Now) -> bool {
        self.images
            .get(&(image.to_owned(), node.cloned()))
            .is_some_and(|until| *until > now.utc)
    }
}

fn folded(labels: &[String]) -> Vec<String> {
    let mut folded: Vec<String> = labels.iter().map(|label| label.to_lowercase()).collect();
    folded.sort();
    folded.dedup();
    folded
}

/// UUIDs of what a runner may be given, held or not, and of the right kind for the pool.
fn offered(node: &Node, pool: Option<&Pool>) -> Vec<String> {
    let all = &node.capability.gpus;
    let version = |text: &str| {
        let mut numbers = text.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    };
    let mut uuids: Vec<String> = all
        .iter()
        .filter(|gpu| gpu.proven && gpu.withheld.is_none())
        .filter(|gpu| {
            all.iter()
                .all(|other| other.parent.as_deref() != Some(gpu.uuid.as_str()))
        })
        .filter(|gpu| {
            pool.is_none_or(|pool| {
                let product = gpu.product.to_lowercase();
                let models = &pool.gpu.models;
                gpu.memory_mib >= pool.gpu.memory_mib
                    && version(&gpu.compute_capability) >= pool.gpu.compute_capability
                    && (models.is_empty()
                        || models
                            .iter()
                            .any(|model| product.contains(&model.to_lowercase())))
            })
        })
        .map(|gpu| gpu.uuid.clone())
        .collect();
    uuids.sort();
    uuids.dedup();
    uuids
}

fn has_proven_gpu(node: &Node) -> bool {
    !offered(node, None).is_empty()
}

fn carries(node: &Node, labels: &[String], pool: &Pool) -> bool {
    let no_gpu = wants_gpus(labels, pool) > 0 && offered(node, Some(pool)).is_empty();
    !no_gpu
        && labels.iter().all(|label| {
            let proven = label == "self-hosted"
                || node
                    .capability
                    .labels
                    .iter()
                    .any(|have| have.eq_ignore_ascii_case(label));
            let hardware = ["x64", "arm64", "arm", "linux", "docker", "cuda", "gpu"];
            match label.as_str() {
                "cuda" | "gpu" => proven && has_proven_gpu(node),
                word if hardware.contains(&word) => proven,
                _ => {
                    proven
                        || pool
                            .labels
                            .iter()
                            .any(|have| have.eq_ignore_ascii_case(label))
                }
            }
        })
}

fn wants_gpus(labels: &[String], pool: &Pool) -> u32 {
    let asked = labels.iter().any(|label| label == "cuda" || label == "gpu");
    pool.resources.gpus.max(u32::from(asked))
}

/// How many such runners still fit, counted by adding up what stands there.
fn room(node: &Node, runners: &[&Runner], labels: &[String], pool: &Pool) -> u32 {
    let capacity = node.capability.capacity;
    let gpus_wanted = wants_gpus(labels, pool);
    let (mut cpu, mut memory) = (u64::from(capacity.cpu_millis), capacity.memory_bytes);
    let here: Vec<_> = runners
        .iter()
        .filter(|runner| runner.placed.node == node.name)
        .collect();
    for runner in &here {
        cpu = cpu.saturating_sub(u64::from(runner.placed.resources.cpu_millis));
        memory = memory.saturating_sub(runner.placed.resources.memory_bytes);
    }
    let held = |uuid: &String| {
        here.iter()
            .any(|runner| runner.placed.gpu_uuids.contains(uuid))
    };
    let whole_of = |uuid: &String| {
        let told = &node.capability.gpus;
        told.iter()
            .find(|gpu| gpu.uuid == *uuid)
            .and_then(|gpu| gpu.parent.clone())
    };
    let told = |uuid: &String| node.capability.gpus.iter().any(|gpu| gpu.uuid == *uuid);
    let stray = here
        .iter()
        .any(|runner| !runner.placed.gpu_uuids.iter().all(told));
    let gpus = offered(node, Some(pool))
        .iter()
        .filter(|uuid| {
            !held(uuid)
                && match whole_of(uuid) {
                    Some(whole) => !held(&whole),
                    None => !stray,
                }
        })
        .count() as u32;
    for _ in &node.foreign {
        cpu = cpu.saturating_sub(2_000);
        memory = memory.saturating_sub(4 << 30);
    }
    let need_cpu = u64::from(pool.resources.cpu_millis.min(capacity.cpu_millis));
    let need_memory = pool.resources.memory_bytes.min(capacity.memory_bytes);
    if need_cpu == 0 || need_memory == 0 {
        return 0;
    }
    let mut fits = (cpu / need_cpu).min(memory / need_memory) as u32;
    if let Some(each) = gpus.checked_div(gpus_wanted) {
        fits = fits.min(each);
    }
    if node.capability.max_runners > 0 {
        let taken = (here.len() + node.foreign.len()) as u32;
        fits = fits.min(node.capability.max_runners.saturating_sub(taken));
    }
    fits
}

fn open_for(node: &Node, pool: &Pool, breakers: &Breakers, now: Now) -> bool {
    node.unreachable_since.is_none()
        && !node.cordoned
        && node.draining.is_none()
        && node.conditions.iter().all(|condition| {
            condition
                .image
                .as_ref()
                .is_some_and(|image| *image != pool.image)
        })
        && !breakers.image_rests(&pool.image, Some(&node.name), now)
        && node
            .capability
            .properties
            .is_superset(&pool.required_properties)
        && node
            .capability
            .properties
            .is_superset(&scheduler_core::profile::required(&pool.profile))
}

fn pool_of(fleet: &Fleet, name: &PoolName) -> Pool {
    let mut pool = fleet
        .pool(name)
        .expect("a placed runner's pool")
        .pool
        .clone();
    if fleet.pool(name).expect("known").origin == PoolOrigin::BuiltIn || pool.image.is_empty() {
        pool.image = fleet
            .status()
            .image
            .unwrap_or_else(|| fleet.defaults().image.clone());
    }
    pool
}

/// What was placed could be placed there, and nowhere better.
pub(crate) fn judge_placed(fleet: &Fleet, facts: &[Fact], breakers: &Breakers, now: Now) {
    let placed: Vec<&RunnerPlaced> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::RunnerPlaced(placed) => Some(&**placed),
            _ => None,
        })
        .collect();
    let live: Vec<&Runner> = fleet.runners().collect();
    for runner in &placed {
        let node = fleet.node(&runner.node).expect("placed on a known node");
        let pool = pool_of(fleet, &runner.pool);
        assert_eq!(runner.image, pool.image);
        assert!(carries(node, &runner.labels, &pool), "{runner:?}");
        assert!(open_for(node, &pool, breakers, now), "{runner:?}");
        let held: u64 = live
            .iter()
            .filter(|other| other.placed.node == node.name)
            .map(|other| u64::from(other.placed.resources.cpu_millis))
            .sum();
        assert!(held <= u64::from(node.capability.capacity.cpu_millis));
        assert_eq!(
            runner.gpu_uuids.len() as u32,
            wants_gpus(&runner.labels, &pool)
        );
        let suitable = offered(node, Some(&pool));
        for uuid in &runner.gpu_uuids {
            assert!(suitable.contains(uuid), "{uuid} is not for {runner:?}");
        }
    }
    if let [only] = placed[..] {
        judge_rank(fleet, only, breakers, now);
    }
}

fn judge_rank(fleet: &Fleet, placed: &RunnerPlaced, breakers: &Breakers, now: Now) {
    let pool = pool_of(fleet, &placed.pool);
    let others: Vec<&Runner> = fleet
        .runners()
        .filter(|runner| *runner.name() != placed.runner)
        .collect();
    let gpu_job = wants_gpus(&placed.labels, &pool) > 0;
    let score = |node: &Node| {
        let fits = room(node, &others, &placed.labels, &pool);
        let tier = u32::from(has_proven_gpu(node) && !gpu_job);
        match pool.placement {
            Placement::Pack => (tier, i64::from(fits)),
            Placement::Spread => (tier, -i64::from(fits)),
        }
    };
    let best = fleet
        .nodes()
        .filter(|node| {
            carries(node, &placed.labels, &pool)
                && open_for(node, &pool, breakers, now)
                && room(node, &others, &placed.labels, &pool) > 0
        })
        .map(score)
        .min()
        .expect("it was placed, so some node had room");
    let chosen = fleet.node(&placed.node).expect("known");
    assert_eq!(score(chosen), best, "a better node than {}", placed.node);
}

/// No runnable job waits beside a node that could take a runner for it.
/// Only for fleets without shares, maxima and idle floors, and one credential.
pub(crate) fn judge_waiting(fleet: &Fleet, breakers: &Breakers, limited: bool, now: Now) {
    if !fleet.is_running() || limited || fleet.max_runners() > 0 {
        return;
    }
    let mut demand: BTreeMap<(Scope, Vec<String>, PoolName), i64> = BTreeMap::new();
    for job in fleet.jobs() {
        let labels = folded(&job.seen.labels);
        if job.phase() != JobPhase::Queued
            || labels.is_empty()
            || breakers.demand_rests(&job.seen, now)
        {
            continue;
        }
        if let Some(pool) = serving(fleet, &labels, &job.seen) {
            *demand
                .entry((job.seen.scope.clone(), labels, pool))
                .or_default() += 1;
        }
    }
    let mut supply: BTreeMap<(Scope, Vec<String>, PoolName), i64> = BTreeMap::new();
    for runner in fleet.runners() {
        let coming = matches!(
            runner.phase(),
            RunnerPhase::Reserved
                | RunnerPhase::Registered
                | RunnerPhase::Starting
                | RunnerPhase::Idle
        );
        // Busy, and GitHub has not named the job yet: it may be one that still counts as queued.
        let unnamed = runner.phase() == RunnerPhase::Busy
            && runner.job.is_none()
            && runner
                .observed
                .as_ref()
                .is_some_and(|seen| seen.worker || seen.phase == ObservedPhase::Busy);
        let coming = coming || unnamed;
        let node = fleet.node(&runner.placed.node).expect("known");
        if coming && node.unreachable_since.is_none() {
            let key = (
                (*runner.placed.scope).clone(),
                runner.placed.labels.clone(),
                runner.placed.pool.clone(),
            );
            *supply.entry(key).or_default() += 1;
        }
    }
    for placed in breakers.spent(now) {
        let key = (
            (*placed.scope).clone(),
            placed.labels.clone(),
            placed.pool.clone(),
        );
        *supply.entry(key).or_default() += 1;
    }
    let live: Vec<&Runner> = fleet.runners().collect();
    for ((scope, labels, pool), jobs) in &demand {
        let coming: i64 = supply
            .iter()
            .filter(|((other, wider, _), _)| {
                other == scope && labels.iter().all(|label| wider.contains(label))
            })
            .map(|(key, count)| {
                let own = demand.get(key).copied().unwrap_or(0);
                let same = key.1 == *labels && key.2 == *pool;
                if same { *count } else { (*count - own).max(0) }
            })
            .sum();
        if coming >= *jobs
            || breakers
                .scopes
                .get(scope)
                .is_some_and(|until| *until > now.utc)
        {
            continue;
        }
        let pool = pool_of(fleet, pool);
        if breakers.image_rests(&pool.image, None, now) {
            continue;
        }
        for node in fleet.nodes() {
            assert!(
                !(carries(node, labels, &pool)
                    && open_for(node, &pool, breakers, now)
                    && room(node, &live, labels, &pool) > 0),
                "{jobs} job(s) {labels:?} of {scope} wait with {coming} runner(s) coming while \
                 {} has room",
                node.name
            );
        }
    }
}

/// The first pool that serves a private repository's push job.
fn serving(
    fleet: &Fleet,
    labels: &[String],
    job: &scheduler_core::input::JobSeen,
) -> Option<PoolName> {
    let mut pools: Vec<&Pool> = fleet.pools().map(|entry| &entry.pool).collect();
    pools.sort_by_key(|pool| (-i64::from(pool.precedence), pool.name.clone()));
    pools
        .into_iter()
        .find(|pool| {
            let offered = pool.labels.is_empty()
                || labels.iter().all(|label| {
                    label == "self-hosted"
                        || pool
                            .labels
                            .iter()
                            .any(|have| have.eq_ignore_ascii_case(label))
                });
            let bare = labels.len() == 1 && labels[0] == "self-hosted";
            let served = pool.repositories.is_empty()
                || pool.repositories.contains(&job.repository.full_name());
            offered && served && (!bare || pool.bare_self_hosted)
        })
        .map(|pool| pool.name.clone())
}
