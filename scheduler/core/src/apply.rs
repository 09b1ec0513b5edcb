//! Facts in, state out: the only way anything here changes.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    admission::{refusal, source},
    capacity::{Capacity, PoolPlan},
    demand::{CredentialIx, Demand, GroupIx, GroupKey, Route, TenantIx, UnitIx},
    fact::{Fact, PoolOrigin, RunnerPlaced},
    feasible::PoolIx,
    fleet::{Fleet, NodeIx},
    input::{Defaults, Deregistration, JobSeen, ObservedPhase},
    labels::{Bits, Labels},
    model::{
        Admission, Generation, JobId, JobPhase, NodeName, Placement, Pool, PoolName, Priority,
        Resources, RunnerName, RunnerPhase, Scope,
    },
    state::{
        Bound, Budget, Drain, Floor, Job, Node, NodeSoft, Observed, Orphan, PoolEntry, Registered,
        Rest, Runner, RunnerSoft, Share,
    },
    table::Slot,
    timers::{Due, Often},
    unassigned::{DemandKey, InVain, MOST_IN_VAIN},
};

/// Jobs forgotten lately, remembered by id against late echoes.
pub(crate) const ENDED_KEPT: usize = 65_536;
/// Retired runners remembered for answers that arrive late.
const GRAVES_KEPT: usize = 4_096;

/// Name of the pool that exists without any configuration.
pub(crate) const BUILT_IN_POOL: &str = "default";

/// What a runner stands for: which demand, in whose name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) pool: Option<PoolIx>,
    /// `NO_GROUP` without a pool.
    pub(crate) group: GroupIx,
    pub(crate) cover: Option<UnitIx>,
    pub(crate) tenant: Option<TenantIx>,
    pub(crate) credential: CredentialIx,
}

impl Fleet {
    /// Changes the state by one fact. Facts of unknown subjects change nothing.
    pub fn apply(&mut self, fact: &Fact) {
        match fact {
            Fact::EpochRaised { epoch } => self.apply_epoch(*epoch),
            Fact::JobLearnt { job, at } => self.apply_job(job, *at),
            Fact::JobPhaseChanged {
                job,
                phase,
                conclusion,
                at,
            } => {
                self.change_job(*job, false, |entry| {
                    let seen = Arc::make_mut(&mut entry.seen);
                    seen.phase = *phase;
                    seen.conclusion = conclusion.clone();
                    entry.phase_at = *at;
                });
            }
            Fact::OriginLearnt { job, origin } => {
                self.change_job(*job, true, |entry| {
                    Arc::make_mut(&mut entry.seen).origin = origin.clone();
                });
            }
            Fact::JobForgotten { job } => {
                self.drop_job(*job);
                if self.ended_ids.insert(*job) {
                    self.ended.push_back(*job);
                    if self.ended.len() > ENDED_KEPT
                        && let Some(oldest) = self.ended.pop_front()
                    {
                        self.ended_ids.remove(&oldest);
                    }
                }
            }
            Fact::JobBound {
                job,
                runner,
                ours,
                at,
            } => self.apply_bound(*job, runner, *ours, *at),
            Fact::NodeJoined { node, capability } => {
                let ix = self.node_slot(node);
                self.change_capability(ix, capability);
            }
            Fact::CapabilityChanged { node, capability } => {
                if let Some(ix) = self.node_ix(node) {
                    self.change_capability(ix, capability);
                }
            }
            Fact::ConditionsChanged { node, conditions } => {
                if let Some(ix) = self.change_node(node, |node| {
                    node.conditions = conditions.clone();
                }) {
                    self.reclass(ix);
                }
            }
            Fact::NodeReachable { node } => {
                self.change_reach(node, None);
            }
            Fact::NodeUnreachable { node, since } => {
                self.change_reach(node, Some(*since));
            }
            Fact::NodeCordoned { node } => self.change_willingness(node, |node| {
                node.cordoned = true;
            }),
            Fact::NodeUncordoned { node } => self.change_willingness(node, |node| {
                node.cordoned = false;
                node.draining = None;
            }),
            Fact::NodeDraining { node, deadline } => self.change_willingness(node, |node| {
                node.draining = Some(Drain {
                    deadline: *deadline,
                });
            }),
            Fact::NodeRemoved { node } => self.apply_node_removed(node),
            Fact::RunnerPlaced(placed) => self.apply_placed(placed, None),
            Fact::RunnerRegistered {
                runner,
                github_id,
                at,
            } => self.apply_registered(runner, *github_id, *at),
            Fact::RunnerObserved {
                runner,
                phase,
                observation,
                worker,
                container_id,
                at,
            } => {
                let seen = Observed {
                    phase: *phase,
                    observation: *observation,
                    worker: *worker,
                    container_id: container_id.clone(),
                    at: *at,
                };
                self.apply_observed(runner, seen);
            }
            Fact::RunnerStopping { runner, why, at } => {
                self.change_runner(runner, true, |runner| {
                    runner.stopping = Some((why.clone(), *at));
                    runner.deregistered = None;
                    runner.soft.checked = false;
                    runner.soft.stop_generation = Generation::default();
                });
            }
            Fact::RunnerDeregistered {
                runner,
                outcome,
                at,
            } => {
                self.change_runner(runner, true, |runner| {
                    runner.deregistered = Some((*outcome, *at));
                    if *outcome == Deregistration::Busy && runner.stops_softly() {
                        runner.stopping = None;
                        runner.soft.idle_since = None;
                    }
                });
            }
            Fact::RunnerRetired {
                runner,
                deregister,
                at,
                ..
            } => self.apply_retired(runner, *deregister, *at),
            Fact::OrphanSeen {
                runner,
                scope,
                credential,
                github_id,
                at,
            } => {
                self.orphans.insert(
                    runner.clone(),
                    Orphan {
                        scope: scope.clone(),
                        credential: credential.clone(),
                        github_id: (*github_id != 0).then_some(*github_id),
                        at: *at,
                    },
                );
                self.owe_deregistration(runner);
            }
            Fact::OrphanGone { runner } => {
                self.orphans.remove(runner);
                self.soft.orphan_rests.remove(runner);
                self.owe_deregistration(runner);
            }
            Fact::BudgetChanged {
                credential,
                scopes,
                registrations,
                limited_until,
                problem,
            } => {
                let budget = Budget {
                    scopes: scopes.clone(),
                    registrations: Some(*registrations),
                    limited_until: *limited_until,
                    problem: problem.clone(),
                };
                let before = self.budgets.insert(credential.clone(), budget);
                if before.is_none_or(|before| before.scopes != *scopes)
                    && self.pools.values().any(|entry| entry.pool.idle_floor > 0)
                {
                    self.stale = true;
                }
                self.owe_registrations(credential);
                self.touch(Due::Credential(credential.clone()));
            }
            Fact::ImageBlocked {
                image,
                node,
                until,
                detail,
                failures,
            } => {
                self.images.insert(
                    (image.clone(), node.clone()),
                    Rest {
                        until: *until,
                        detail: detail.clone(),
                        failures: *failures,
                        resting: true,
                    },
                );
                self.image_changed(image, node.as_ref());
                self.touch(Due::Image(image.clone(), node.clone()));
            }
            Fact::ImageCleared { image, node } => {
                self.images.remove(&(image.clone(), node.clone()));
                self.image_changed(image, node.as_ref());
            }
            Fact::ScopeRests {
                scope,
                until,
                detail,
                failures,
            } => {
                self.rests.insert(
                    scope.clone(),
                    Rest {
                        until: *until,
                        detail: detail.clone(),
                        failures: *failures,
                        resting: true,
                    },
                );
                let ix = self.demand.scope(scope);
                self.demand.set_resting(ix, true);
                self.touch(Due::Scope(scope.clone()));
            }
            Fact::ScopeCleared { scope } => {
                self.rests.remove(scope);
                let ix = self.demand.scope(scope);
                self.demand.set_resting(ix, false);
            }
            Fact::DemandRests {
                scope,
                repository,
                labels,
                until,
                runners,
            } => {
                let key = (scope.clone(), repository.clone(), labels.clone());
                let rest = InVain {
                    runners: *runners,
                    until: *until,
                    resting: *runners >= MOST_IN_VAIN,
                };
                self.in_vain.insert(key.clone(), rest);
                self.relist_demand(&key);
                self.touch(Due::Demand(key));
            }
            Fact::DemandCleared {
                scope,
                repository,
                labels,
            } => {
                let key = (scope.clone(), repository.clone(), labels.clone());
                self.in_vain.remove(&key);
                self.relist_demand(&key);
            }
            Fact::FloorSet {
                scope,
                credential,
                pool,
                labels,
                count,
                until,
            } => {
                let key = (scope.clone(), pool.clone(), labels.clone());
                self.touch(Due::Floor(key.clone()));
                self.floors.insert(
                    key,
                    Floor {
                        credential: credential.clone(),
                        count: *count,
                        until: *until,
                    },
                );
                self.stale = true;
            }
            Fact::FloorEnded {
                scope,
                pool,
                labels,
            } => {
                self.floors
                    .remove(&(scope.clone(), pool.clone(), labels.clone()));
                self.stale = true;
            }
            Fact::AutoscalerStarted {
                max_runners,
                image,
                at,
            } => {
                self.stale |= self.autoscaler.image != *image;
                self.autoscaler = crate::state::Autoscaler {
                    running: true,
                    max_runners: *max_runners,
                    image: image.clone(),
                    at: Some(*at),
                };
                self.touch_runners();
            }
            Fact::AutoscalerStopped { at } => {
                self.autoscaler.running = false;
                self.autoscaler.at = Some(*at);
                self.touch_runners();
            }
            Fact::PoolSet { pool, origin } => {
                self.pools.insert(
                    pool.name.clone(),
                    PoolEntry {
                        pool: (**pool).clone(),
                        origin: *origin,
                    },
                );
                self.pools_changed();
            }
            Fact::PoolDeleted { pool } => {
                self.pools.remove(pool);
                self.pools_changed();
            }
            Fact::ShareSet {
                subject,
                weight,
                maximum,
                origin,
            } => {
                let subject = subject.to_lowercase();
                if *weight == 1 && *maximum == 0 {
                    self.shares.remove(&subject);
                } else {
                    self.shares.insert(
                        subject.clone(),
                        Share {
                            weight: *weight,
                            maximum: *maximum,
                            origin: *origin,
                        },
                    );
                }
                self.share_changed(&subject);
            }
            Fact::DefaultsSet { defaults } => {
                self.defaults = (**defaults).clone();
                self.pools_changed();
            }
            Fact::RepositoryGone { id, full_name } => self.apply_repository_gone(*id, full_name),
            Fact::ForeignSeen { node, runners } => {
                if let Some(ix) = self.change_node(node, |node| {
                    node.foreign = runners.clone();
                }) {
                    self.recount_node(ix);
                    self.relist(ix);
                }
            }
            Fact::IntentNumbered { node, generation } => {
                if let Some(ix) = self.change_node(node, |node| node.generation = *generation) {
                    self.owe_intent(ix);
                }
            }
            Fact::ShareServed {
                subject,
                virtual_time,
                served,
                credit,
            } => {
                if subject.is_empty() {
                    self.demand.wipe_shares();
                    self.demand.served = *served;
                } else {
                    let account = if subject.contains('/') {
                        let ix = self.demand.tenant(subject);
                        &mut self.demand.tenants[ix as usize].account
                    } else {
                        let ix = self.demand.owner(subject);
                        &mut self.demand.owners[ix as usize].account
                    };
                    account.virtual_time = *virtual_time;
                    account.served = *served;
                    account.credit = *credit;
                }
                // Listed keys may now be too high.
                self.stale = true;
            }
        }
    }

    fn apply_epoch(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
        let generation = Generation {
            epoch: self.epoch,
            counter: 1,
        };
        for ix in 0..self.nodes.len() {
            if let Some(node) = &mut self.nodes[ix] {
                node.generation = generation;
                self.owe_intent(ix as NodeIx);
            }
        }
        for runner in self.runners.values_mut() {
            runner.soft.checked = false;
            runner.soft.stop_generation = Generation::default();
        }
    }

    // Jobs.

    fn apply_job(&mut self, job: &Arc<JobSeen>, at: u64) {
        self.ensure_index();
        match self.jobs.get(&job.id).map(|known| &known.seen) {
            Some(known) => {
                let moves = known.created_at != job.created_at
                    || known.labels != job.labels
                    || known.repository != job.repository
                    || known.scope != job.scope
                    || known.credential != job.credential
                    || known.origin != job.origin;
                self.change_job(job.id, moves, |entry| {
                    if entry.seen.phase != job.phase || entry.seen.attempt != job.attempt {
                        entry.phase_at = at;
                    }
                    if entry.seen.attempt != job.attempt {
                        entry.bound = None;
                    }
                    entry.seen = Arc::clone(job);
                });
            }
            None => {
                self.runs.insert((job.run_id, job.id));
                let waits = job.phase == JobPhase::Queued;
                let unit = waits.then(|| self.unit_for(job)).flatten();
                let entry = Job {
                    seen: Arc::clone(job),
                    learnt_at: at,
                    phase_at: at,
                    bound: None,
                    unit,
                };
                self.jobs.insert(job.id, entry);
                if let Some(unit) = unit {
                    self.demand.add_job(unit, (job.created_at, job.id), true);
                } else if !waits {
                    self.list_job(job.id, true);
                }
            }
        }
    }

    /// `moves`: something changes that decides in which queue it waits, and where.
    fn change_job(&mut self, id: JobId, moves: bool, change: impl FnOnce(&mut Job)) {
        self.ensure_index();
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let was = (job.seen.created_at, job.phase(), job.phase_at);
        let unit = job.unit;
        let key = (was.0, id);
        change(job);
        if unit.is_some() && job.phase() == JobPhase::Queued && !moves {
            return;
        }
        if was.1 == JobPhase::Completed {
            self.completed.remove(&(was.2, id));
        }
        if let Some(unit) = unit {
            self.demand.remove_job(unit, key);
        }
        let runner = match self.jobs.get_mut(&id) {
            Some(job) => {
                job.unit = None;
                job.bound.as_ref().map(|bound| bound.runner.clone())
            }
            None => None,
        };
        self.list_job(id, was.1 != JobPhase::Queued);
        if let Some(runner) = runner {
            self.recharge(id, &runner);
            self.touch_runner(&runner);
        }
    }

    /// A repository was renamed while its job runs: the runner counts for the new name.
    fn recharge(&mut self, id: JobId, name: &RunnerName) {
        let (Some(job), Some(runner)) = (self.jobs.get(&id), self.runners.get(name)) else {
            return;
        };
        if runner.job != Some(id) {
            return;
        }
        let taker = self.demand.tenant_of(&job.seen.repository);
        if runner.charged == Some(taker) {
            return;
        }
        if let Some(payer) = runner.charged {
            self.demand.remove_live(payer);
        }
        self.demand.add_live(taker);
        if let Some(runner) = self.runners.get_mut(name) {
            runner.charged = Some(taker);
        }
    }

    /// Puts the job where its phase says: in the demand, or among the completed.
    fn list_job(&mut self, id: JobId, woken: bool) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        match job.phase() {
            JobPhase::Completed => {
                self.completed.insert((job.phase_at, id));
                self.touch(Due::Retention);
            }
            JobPhase::Queued => {
                if self.demand_rests(&job.seen) {
                    return;
                }
                let Self {
                    jobs,
                    labels,
                    capacity,
                    demand,
                    ..
                } = self;
                let Some(job) = jobs.get_mut(&id) else {
                    return;
                };
                job.unit = unit_for(labels, capacity, demand, &job.seen);
                if let Some(unit) = job.unit {
                    demand.add_job(unit, (job.seen.created_at, id), woken);
                    self.adopt_share(self.demand.units[unit as usize].tenant);
                }
            }
            JobPhase::Waiting | JobPhase::InProgress => {}
        }
    }

    /// The jobs of a demand whose rest began or ended. Rare.
    pub(crate) fn relist_demand(&mut self, key: &DemandKey) {
        self.ensure_index();
        for id in self.jobs_of(key) {
            if let Some(job) = self.jobs.get_mut(&id)
                && let Some(unit) = job.unit.take()
            {
                let place = (job.seen.created_at, id);
                self.demand.remove_job(unit, place);
            }
            self.list_job(id, false);
        }
    }

    fn unit_for(&mut self, seen: &JobSeen) -> Option<UnitIx> {
        if self.demand_rests(seen) {
            return None;
        }
        let unit = unit_for(&mut self.labels, &mut self.capacity, &mut self.demand, seen)?;
        self.adopt_share(self.demand.units[unit as usize].tenant);
        Some(unit)
    }

    fn drop_job(&mut self, id: JobId) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        self.runs.remove(&(job.seen.run_id, id));
        self.completed.remove(&(job.phase_at, id));
        if let Some(unit) = job.unit
            && !self.stale
        {
            self.demand.remove_job(unit, (job.seen.created_at, id));
        }
    }

    fn apply_repository_gone(&mut self, id: u64, full_name: &str) {
        self.ensure_index();
        let gone: Vec<JobId> = self
            .jobs
            .values()
            .filter(|job| {
                let repository = &job.seen.repository;
                let same = if id != 0 && repository.id != 0 {
                    repository.id == id
                } else {
                    repository.full_name().eq_ignore_ascii_case(full_name)
                };
                same && matches!(job.phase(), JobPhase::Queued | JobPhase::Waiting)
            })
            .map(|job| job.seen.id)
            .collect();
        for job in gone {
            self.drop_job(job);
        }
    }

    fn apply_bound(&mut self, id: JobId, name: &RunnerName, ours: bool, at: u64) {
        self.ensure_index();
        if let Some(job) = self.jobs.get_mut(&id) {
            job.bound = Some(Bound {
                runner: name.clone(),
                ours,
                at,
            });
        }
        if !ours {
            let ours_to_serve = self.jobs.get(&id).is_some_and(|job| {
                let mut labels = job.seen.labels.iter();
                labels.any(|label| label.eq_ignore_ascii_case("self-hosted"))
            });
            self.soft.thefts += u64::from(ours_to_serve);
            return;
        }
        let Some(runner) = self.runners.get(name) else {
            return;
        };
        let charged = runner.charged;
        let job = self.jobs.get(&id);
        let taker = job.map(|job| self.demand.tenant_of(&job.seen.repository));
        self.change_runner(name, true, |runner| {
            runner.job = Some(id);
            if runner.stops_softly() {
                runner.stopping = None;
            }
        });
        // The share is charged to whoever got the runner.
        if let Some(taker) = taker
            && charged != Some(taker)
        {
            if let Some(payer) = charged {
                self.demand.give_credit(payer);
                self.demand.remove_live(payer);
            }
            self.demand.charge(taker);
            self.demand.add_live(taker);
            if let Some(runner) = self.runners.get_mut(name) {
                runner.charged = Some(taker);
            }
        }
    }

    // Nodes.

    fn node_slot(&mut self, name: &NodeName) -> NodeIx {
        if let Some(known) = self.node_ix(name) {
            return known;
        }
        let node = Node {
            name: name.clone(),
            capability: Default::default(),
            conditions: Vec::new(),
            unreachable_since: None,
            cordoned: false,
            draining: None,
            generation: Generation {
                epoch: self.epoch,
                counter: 1,
            },
            runners: BTreeSet::new(),
            foreign: Vec::new(),
            used: Resources::default(),
            leases: Default::default(),
            class: 0,
            fits: Vec::new(),
            slots: Vec::new(),
            soft: NodeSoft::default(),
        };
        let free = self.nodes.iter().position(Option::is_none);
        let ix = match free.filter(|_| self.nodes_by_name.len() < self.nodes.len()) {
            Some(ix) => {
                self.nodes[ix] = Some(node);
                ix
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        } as NodeIx;
        self.nodes_by_name.insert(name.clone(), ix);
        self.node_ixs.insert(name.clone(), ix);
        self.timers.touch(Often::Node(ix));
        ix
    }

    fn change_node(&mut self, name: &NodeName, change: impl FnOnce(&mut Node)) -> Option<NodeIx> {
        let ix = self.node_ix(name)?;
        change(self.nodes[ix as usize].as_mut()?);
        Some(ix)
    }

    fn change_capability(&mut self, ix: NodeIx, capability: &crate::model::Capability) {
        if let Some(node) = &mut self.nodes[ix as usize] {
            node.capability = capability.clone();
        }
        self.recount_node(ix);
        self.reclass(ix);
    }

    fn change_willingness(&mut self, name: &NodeName, change: impl FnOnce(&mut Node)) {
        if let Some(ix) = self.change_node(name, change) {
            self.relist(ix);
            self.bump(ix);
            self.timers.touch(Often::Node(ix));
            self.touch_runners_of(ix);
        }
    }

    fn change_reach(&mut self, name: &NodeName, since: Option<u64>) {
        self.ensure_index();
        if let Some(ix) = self.change_node(name, |node| node.unreachable_since = since) {
            self.relist(ix);
            for runner in self.runners_of(ix) {
                self.recount(&runner);
            }
            self.timers.touch(Often::Node(ix));
        }
    }

    fn apply_node_removed(&mut self, name: &NodeName) {
        let Some(ix) = self.node_ix(name) else {
            return;
        };
        for runner in self.runners_of(ix) {
            self.apply_retired(&runner, false, 0);
        }
        if let Some(node) = &mut self.nodes[ix as usize]
            && !self.stale
        {
            self.capacity.unlist(ix, node);
        }
        self.nodes_by_name.remove(name);
        self.node_ixs.remove(name);
        self.nodes[ix as usize] = None;
        self.owed.settle_intent(ix, None);
        self.images.retain(|(_, at), _| at.as_ref() != Some(name));
    }

    pub(crate) fn runners_of(&self, ix: NodeIx) -> Vec<RunnerName> {
        self.nodes[ix as usize]
            .as_ref()
            .map(|node| node.runners.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Adds up what the runners on a node hold.
    fn recount_node(&mut self, ix: NodeIx) {
        let held = self.nodes[ix as usize]
            .as_ref()
            .map(|node| self.held_on(node));
        if let (Some(node), Some(held)) = (&mut self.nodes[ix as usize], held) {
            node.used = held;
        }
    }

    /// What its runners hold, and by estimate its foreign ones.
    pub(crate) fn held_on(&self, node: &Node) -> Resources {
        let foreign = self.defaults.resources;
        let strangers = node.foreign.len() as u64;
        let mut used = Resources {
            cpu_millis: (u64::from(foreign.cpu_millis) * strangers).min(u64::from(u32::MAX)) as u32,
            memory_bytes: foreign.memory_bytes.saturating_mul(strangers),
            gpus: 0,
        };
        for name in &node.runners {
            if let Some(runner) = self.runners.get(name) {
                add(&mut used, runner.placed.resources);
            }
        }
        used
    }

    /// Its intent changed.
    pub(crate) fn bump(&mut self, ix: NodeIx) {
        let generation = self.next_generation(ix);
        if let Some(node) = &mut self.nodes[ix as usize] {
            node.generation = generation;
        }
        self.owe_intent(ix);
    }

    // Runners.

    /// `stand`: the demand it is placed for, when that is known already.
    pub(crate) fn apply_placed(&mut self, placed: &Arc<RunnerPlaced>, stand: Option<Stand>) {
        self.ensure_index();
        let Some(ix) = self.node_ix(&placed.node) else {
            return;
        };
        if self.runners.contains_key(&placed.runner) {
            return;
        }
        self.soft.placed += 1;
        self.soft.orders += 1;
        let runner = Runner {
            placed: Arc::clone(placed),
            registered: None,
            observed: None,
            job: None,
            stopping: None,
            deregistered: None,
            group: 0,
            cover: None,
            counted: false,
            charged: None,
            node: ix,
            soft: RunnerSoft {
                order: self.soft.orders,
                ..RunnerSoft::default()
            },
        };
        if let Some(node) = &mut self.nodes[ix as usize] {
            node.runners.insert(placed.runner.clone());
            add(&mut node.used, placed.resources);
            for uuid in &placed.gpu_uuids {
                node.leases.insert(uuid.clone(), placed.runner.clone());
            }
            node.generation = node.generation.max(placed.generation);
        }
        self.relist(ix);
        self.owe_intent(ix);
        let slot = self.runners.add(placed.runner.clone(), runner);
        if let Some(node) = &mut self.nodes[ix as usize] {
            node.slots.push(slot);
        }
        self.attach_runner(slot, stand);
        if let Some((_, runner)) = self.runners.at(slot)
            && let Some(tenant) = runner.charged
        {
            self.demand.serve(runner.cover, tenant, placed.at);
        }
        self.recount_at(slot);
        self.owe_registration_at(slot);
        self.timers.touch(Often::Runner(slot));
    }

    /// Finds the demand a runner stands for, and counts it in its pool and among
    /// the reservations. Not supply yet.
    fn attach_runner(&mut self, slot: Slot, stand: Option<Stand>) {
        let stand = match stand {
            Some(known) => {
                debug_assert_eq!(Some(known), self.stand_of(slot));
                known
            }
            None => match self.stand_of(slot) {
                Some(found) => found,
                None => return,
            },
        };
        if let Some(pool) = stand.pool {
            self.capacity.pools[pool as usize].live += 1;
        }
        let Some(runner) = self.runners.at_mut(slot) else {
            return;
        };
        runner.group = stand.group;
        runner.cover = stand.cover;
        runner.counted = false;
        runner.charged = stand.tenant;
        if runner.awaits_registration() {
            self.demand.credentials[stand.credential as usize].reserved += 1;
        }
    }

    fn stand_of(&mut self, slot: Slot) -> Option<Stand> {
        let (_, runner) = self.runners.at(slot)?;
        let placed = &runner.placed;
        let tenant = placed
            .repository
            .as_ref()
            .map(|name| self.demand.tenant(&name.to_lowercase()));
        let credential = self.demand.credential(&placed.credential);
        let pool = self.capacity.pool_ix.get(&placed.pool).copied();
        let signature = self.labels.signature(&placed.labels);
        let (pool, group) = match (pool, signature) {
            (Some(pool), Some(signature)) => {
                let shape = self.capacity.shape(signature, pool, &self.labels);
                let group = self.demand.group(&GroupKey {
                    scope: &placed.scope,
                    signature,
                    pool,
                    credential: &placed.credential,
                    shape,
                    priority: self.capacity.pools[pool as usize].pool.priority,
                });
                (Some(pool), group)
            }
            _ => (None, NO_GROUP),
        };
        let cover = tenant
            .filter(|_| pool.is_some())
            .map(|tenant| self.demand.unit(group, tenant));
        if let Some(tenant) = tenant {
            self.adopt_share(tenant);
        }
        Some(Stand {
            pool,
            group,
            cover,
            tenant,
            credential,
        })
    }

    /// Counts the runner as supply exactly while it is.
    pub(crate) fn recount(&mut self, name: &RunnerName) {
        if let Some(slot) = self.runners.slot(name) {
            self.recount_at(slot);
        }
    }

    pub(crate) fn recount_at(&mut self, slot: Slot) {
        let Some((_, runner)) = self.runners.at(slot) else {
            return;
        };
        let reachable = self.node_of(runner).is_some_and(Node::is_reachable);
        let counts = runner.group != NO_GROUP && reachable && runner.is_supply();
        if counts == runner.counted {
            return;
        }
        let (group, cover) = (runner.group, runner.cover);
        if counts {
            self.demand.add_supply(group, cover);
        } else {
            self.demand.remove_supply(group, cover);
        }
        if let Some(runner) = self.runners.at_mut(slot) {
            runner.counted = counts;
        }
    }

    /// Changes a runner and everything that follows. `intent`: its node must hear.
    pub(crate) fn change_runner(
        &mut self,
        name: &RunnerName,
        intent: bool,
        change: impl FnOnce(&mut Runner),
    ) {
        self.ensure_index();
        let Some(runner) = self.runners.get_mut(name) else {
            return;
        };
        let awaited = runner.awaits_registration();
        let was = runner.stopping.is_some();
        change(runner);
        let awaits = runner.awaits_registration();
        let stops = runner.stopping.is_some();
        let ix = runner.node;
        if awaited != awaits {
            let credential = self.demand.credential(&runner.placed.credential);
            let entry = &mut self.demand.credentials[credential as usize];
            if awaits {
                entry.reserved += 1;
            } else {
                entry.reserved -= 1;
            }
        }
        self.recount(name);
        if intent && (was || stops) {
            self.bump(ix);
            let generation = self.nodes[ix as usize]
                .as_ref()
                .map(|node| node.generation)
                .unwrap_or_default();
            if let Some(runner) = self.runners.get_mut(name)
                && runner.stopping.is_some()
                && runner.soft.stop_generation == Generation::default()
            {
                runner.soft.stop_generation = generation;
            }
        }
        self.owe_registration(name);
        self.owe_deregistration(name);
        self.touch_runner(name);
    }

    fn apply_registered(&mut self, name: &RunnerName, github_id: u64, at: u64) {
        let credential = self
            .runners
            .get(name)
            .map(|runner| runner.placed.credential.clone());
        self.change_runner(name, false, |runner| {
            runner.registered = Some(Registered { github_id, at });
        });
        if let Some(credential) = credential
            && let Some(budget) = self.budgets.get_mut(&credential)
            && let Some(left) = &mut budget.registrations
        {
            *left = left.saturating_sub(1);
        }
    }

    fn apply_observed(&mut self, name: &RunnerName, seen: Observed) {
        let reopen = seen.worker || seen.phase == ObservedPhase::Busy;
        let intent = self.runners.get(name).is_some_and(|runner| {
            matches!(self.desired(runner), crate::effect::Desired::Remove { .. })
        }) || reopen;
        self.change_runner(name, intent, |runner| {
            runner.observed = Some(seen);
            if reopen && runner.stops_softly() {
                runner.stopping = None;
            }
            if reopen {
                runner.soft.idle_since = None;
            }
        });
    }

    fn apply_retired(&mut self, name: &RunnerName, deregister: bool, at: u64) {
        self.ensure_index();
        let Some(slot) = self.runners.slot(name) else {
            return;
        };
        let Some(runner) = self.runners.remove(name) else {
            return;
        };
        if runner.counted {
            self.demand.remove_supply(runner.group, runner.cover);
        }
        if runner.awaits_registration() {
            let credential = self.demand.credential(&runner.placed.credential);
            self.demand.credentials[credential as usize].reserved -= 1;
        }
        if let Some(tenant) = runner.charged {
            self.demand.remove_live(tenant);
        }
        if let Some(pool) = self.capacity.pool_ix.get(&runner.placed.pool) {
            self.capacity.pools[*pool as usize].live -= 1;
        }
        let ix = runner.node;
        let mut exact = true;
        if let Some(node) = &mut self.nodes[ix as usize] {
            node.runners.remove(name);
            node.slots.retain(|known| *known != slot);
            for uuid in &runner.placed.gpu_uuids {
                node.leases.remove(uuid);
            }
            exact = take(&mut node.used, runner.placed.resources);
        }
        if !exact {
            self.recount_node(ix);
        }
        self.relist(ix);
        self.bump(ix);
        if deregister {
            self.orphans.insert(
                name.clone(),
                Orphan {
                    scope: runner.placed.scope.clone(),
                    credential: runner.placed.credential.clone(),
                    github_id: runner.registered.map(|registered| registered.github_id),
                    at,
                },
            );
        }
        self.soft
            .graves
            .insert(name.clone(), Arc::clone(&runner.placed.spec));
        self.soft.grave_order.push_back(name.clone());
        if self.soft.grave_order.len() > GRAVES_KEPT
            && let Some(oldest) = self.soft.grave_order.pop_front()
        {
            self.soft.graves.remove(&oldest);
        }
        self.unowe_registration(name, &runner);
        if deregister || !self.orphans.is_empty() || self.owed.deregisters() {
            self.owe_deregistration(name);
        }
    }

    // Settings.

    fn pools_changed(&mut self) {
        let built_in = PoolName::new(BUILT_IN_POOL);
        if self
            .pools
            .get(&built_in)
            .is_none_or(|entry| entry.origin == PoolOrigin::BuiltIn)
        {
            let pool = built_in_pool(&self.defaults);
            self.pools.insert(
                built_in,
                PoolEntry {
                    pool,
                    origin: PoolOrigin::BuiltIn,
                },
            );
        }
        self.stale = true;
        self.touch_runners();
    }

    fn share_changed(&mut self, subject: &str) {
        self.ensure_index();
        let (weight, maximum) = self
            .shares
            .get(subject)
            .map_or((1, 0), |share| (share.weight, share.maximum));
        if subject.contains('/') {
            let ix = self.demand.tenant(subject);
            let account = &mut self.demand.tenants[ix as usize].account;
            (account.weight, account.maximum) = (weight, maximum);
            self.demand.unpark_tenant(ix);
        } else {
            let ix = self.demand.owner(subject);
            let account = &mut self.demand.owners[ix as usize].account;
            (account.weight, account.maximum) = (weight, maximum);
            self.demand.unpark_owner(ix);
        }
    }

    /// A repository seen for the first time may have a share configured.
    fn adopt_share(&mut self, tenant: TenantIx) {
        if self.shares.is_empty() {
            return;
        }
        let entry = &mut self.demand.tenants[tenant as usize];
        if let Some(share) = self.shares.get(&*entry.account.name) {
            (entry.account.weight, entry.account.maximum) = (share.weight, share.maximum);
        }
        let owner = &mut self.demand.owners[entry.owner as usize].account;
        if let Some(share) = self.shares.get(&*owner.name) {
            (owner.weight, owner.maximum) = (share.weight, share.maximum);
        }
    }

    pub(crate) fn image_changed(&mut self, image: &str, node: Option<&NodeName>) {
        match node {
            Some(name) => {
                if let Some(ix) = self.node_ix(name) {
                    self.reclass(ix);
                }
            }
            None => {
                let rests = self
                    .images
                    .get(&(image.to_owned(), None))
                    .is_some_and(|rest| rest.resting);
                for plan in &mut self.capacity.pools {
                    if plan.pool.image == image {
                        plan.image_rests = rests;
                    }
                }
            }
        }
    }

    pub(crate) fn ensure_index(&mut self) {
        if self.stale {
            self.reindex();
        }
    }

    /// Builds every index anew from the records. Rare: pools, defaults, floors.
    pub(crate) fn reindex(&mut self) {
        self.stale = false;
        if self.pools.is_empty() {
            self.pools_changed();
            self.stale = false;
        }
        self.capacity = Capacity::with_pools(self.plans());
        self.demand = self.demand.emptied(self.defaults.ageing.as_millis() as u64);
        self.soft.spent.clear();
        for (scope, rest) in &self.rests {
            let ix = self.demand.scope(scope);
            self.demand.set_resting(ix, rest.resting);
        }
        for ix in 0..self.nodes.len() as NodeIx {
            if let Some(node) = &mut self.nodes[ix as usize] {
                node.fits.clear();
                self.recount_node(ix);
                self.reclass(ix);
            }
        }
        let names: Vec<RunnerName> = self.runners.keys().cloned().collect();
        for name in names {
            let charged = self.runners[&name].charged;
            if let Some(slot) = self.runners.slot(&name) {
                self.attach_runner(slot, None);
            }
            if let Some(runner) = self.runners.get_mut(&name) {
                // Who pays was settled when GitHub named the job.
                runner.charged = match runner.job.and_then(|id| self.jobs.get(&id)) {
                    Some(job) => Some(self.demand.tenant_of(&job.seen.repository)),
                    None => charged.or(runner.charged),
                };
                if let Some(tenant) = runner.charged {
                    self.demand.add_live(tenant);
                }
            }
            self.recount(&name);
        }
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.unit = None;
            }
            self.list_job(id, false);
        }
        self.index_floors();
        self.owe_everything();
    }

    pub(crate) fn plans(&self) -> Vec<PoolPlan> {
        let mut plans: Vec<PoolPlan> = self
            .pools
            .values()
            .map(|entry| {
                let mut pool = entry.pool.clone();
                if entry.origin == PoolOrigin::BuiltIn || pool.image.is_empty() {
                    pool.image = self
                        .autoscaler
                        .image
                        .clone()
                        .unwrap_or_else(|| self.defaults.image.clone());
                }
                if pool.resources.cpu_millis == 0 {
                    pool.resources.cpu_millis = self.defaults.resources.cpu_millis;
                }
                if pool.resources.memory_bytes == 0 {
                    pool.resources.memory_bytes = self.defaults.resources.memory_bytes;
                }
                let image_rests = self
                    .images
                    .get(&(pool.image.clone(), None))
                    .is_some_and(|rest| rest.resting);
                PoolPlan {
                    pool,
                    live: 0,
                    shapes: Bits::default(),
                    image_rests,
                }
            })
            .collect();
        plans.sort_by(|a, b| {
            (b.pool.precedence, &a.pool.name).cmp(&(a.pool.precedence, &b.pool.name))
        });
        plans
    }

    fn index_floors(&mut self) {
        let mut wanted: Vec<(
            Scope,
            crate::model::CredentialName,
            PoolIx,
            Vec<String>,
            u32,
        )> = Vec::new();
        for ((scope, pool, labels), floor) in &self.floors {
            if let Some(pool) = self.capacity.pool_ix.get(pool) {
                wanted.push((
                    scope.clone(),
                    floor.credential.clone(),
                    *pool,
                    labels.clone(),
                    floor.count,
                ));
            }
        }
        for (ix, plan) in self.capacity.pools.iter().enumerate() {
            if plan.pool.idle_floor == 0 || plan.pool.labels.is_empty() {
                continue;
            }
            for (credential, budget) in &self.budgets {
                for scope in &budget.scopes {
                    if standing_floor_applies(&plan.pool, scope) {
                        wanted.push((
                            scope.clone(),
                            credential.clone(),
                            ix as PoolIx,
                            plan.pool.labels.iter().cloned().collect(),
                            plan.pool.idle_floor,
                        ));
                    }
                }
            }
        }
        let mut totals: std::collections::BTreeMap<GroupIx, u32> = Default::default();
        for (scope, credential, pool, labels, count) in wanted {
            let Some(signature) = self.labels.signature(&labels) else {
                continue;
            };
            let shape = self.capacity.shape(signature, pool, &self.labels);
            let plan = &self.capacity.pools[pool as usize].pool;
            let group = self.demand.group(&GroupKey {
                scope: &scope,
                signature,
                pool,
                credential: &credential,
                shape,
                priority: plan.priority,
            });
            *totals.entry(group).or_default() += count;
        }
        for (group, count) in totals {
            self.demand.set_floor(group, count);
        }
    }

    pub(crate) fn touch(&mut self, due: Due) {
        self.timers.touch_seldom(due);
    }

    pub(crate) fn touch_runner(&mut self, name: &RunnerName) {
        if let Some(slot) = self.runners.slot(name) {
            self.timers.touch(Often::Runner(slot));
        }
    }

    fn touch_runners(&mut self) {
        let names: Vec<RunnerName> = self.runners.keys().cloned().collect();
        for name in names {
            self.touch_runner(&name);
        }
    }

    fn touch_runners_of(&mut self, ix: NodeIx) {
        for runner in self.runners_of(ix) {
            self.touch_runner(&runner);
        }
    }

    pub(crate) fn unit_of(&self, job: &Job) -> Option<UnitIx> {
        job.unit.filter(|_| !self.stale)
    }
}

/// The queue a job waits in; `None` when no pool serves it. Found by its route
/// after the first job that came the same way.
fn unit_for(
    labels: &mut Labels,
    capacity: &mut Capacity,
    demand: &mut Demand,
    seen: &JobSeen,
) -> Option<UnitIx> {
    let signature = labels.signature(&seen.labels)?;
    let source = source(&seen.origin, &seen.repository);
    let route = Route {
        tenant: demand.tenant_of(&seen.repository),
        signature,
        scope: demand.scope(&seen.scope),
        credential: demand.credential(&seen.credential),
        admission: source as u8 * 2 + u8::from(seen.repository.private == Some(true)),
    };
    if let Some(known) = demand.routes.get(&route) {
        return *known;
    }
    let asked = labels.get(signature);
    let pool = capacity
        .pools
        .iter()
        .position(|plan| refusal(&plan.pool, asked, &seen.repository, source).is_none());
    let unit = pool.map(|ix| {
        let pool = ix as PoolIx;
        let shape = capacity.shape(signature, pool, labels);
        let group = demand.group(&GroupKey {
            scope: &seen.scope,
            signature,
            pool,
            credential: &seen.credential,
            shape,
            priority: capacity.pools[ix].pool.priority,
        });
        demand.unit(group, route.tenant)
    });
    demand.routes.insert(route, unit);
    unit
}

/// A runner whose pool is gone stands for no demand.
pub(crate) const NO_GROUP: GroupIx = GroupIx::MAX;

impl Runner {
    /// On its way to a job, waiting for one, or at one that GitHub has not named yet:
    /// that job still counts as queued, and must not ask for a second runner.
    pub(crate) fn is_supply(&self) -> bool {
        match self.phase() {
            RunnerPhase::Reserved
            | RunnerPhase::Registered
            | RunnerPhase::Starting
            | RunnerPhase::Idle => true,
            RunnerPhase::Busy => self.is_taken() && !self.soft.unclaimed,
            RunnerPhase::Stopping | RunnerPhase::Retired => false,
        }
    }

    /// A worker runs in it, and GitHub has not said for which job.
    pub(crate) fn is_taken(&self) -> bool {
        self.job.is_none() && self.has_worker()
    }

    /// GitHub has not answered for it, and still may.
    pub(crate) fn awaits_registration(&self) -> bool {
        self.registered.is_none()
            && self.stopping.is_none()
            && self.deregistered.is_none()
            && self.job.is_none()
            && !self.is_consumed()
    }
}

fn add(sum: &mut Resources, more: Resources) {
    sum.cpu_millis = sum.cpu_millis.saturating_add(more.cpu_millis);
    sum.memory_bytes = sum.memory_bytes.saturating_add(more.memory_bytes);
    sum.gpus = sum.gpus.saturating_add(more.gpus);
}

/// What is left after one of those added leaves; false when the sum was cut off.
fn take(sum: &mut Resources, less: Resources) -> bool {
    let exact = sum.cpu_millis < u32::MAX && sum.memory_bytes < u64::MAX && sum.gpus < u32::MAX;
    sum.cpu_millis = sum.cpu_millis.saturating_sub(less.cpu_millis);
    sum.memory_bytes = sum.memory_bytes.saturating_sub(less.memory_bytes);
    sum.gpus = sum.gpus.saturating_sub(less.gpus);
    exact
}

/// A pool's own idle floor stands where its runners could serve: in organisations
/// and enterprises it admits, and in repositories it names in full.
fn standing_floor_applies(pool: &Pool, scope: &Scope) -> bool {
    match scope {
        Scope::Repository { owner, repo } => {
            let name = format!("{owner}/{repo}");
            pool.repositories
                .iter()
                .any(|pattern| pattern.eq_ignore_ascii_case(&name))
        }
        Scope::Organization { login } => {
            pool.repositories.is_empty()
                || pool.repositories.iter().any(|pattern| {
                    pattern
                        .split('/')
                        .next()
                        .is_some_and(|owner| owner == "*" || owner.eq_ignore_ascii_case(login))
                })
        }
        Scope::Enterprise { .. } => true,
    }
}

/// The pool that makes zero configuration work: whatever the nodes prove.
pub(crate) fn built_in_pool(defaults: &Defaults) -> Pool {
    Pool {
        name: PoolName::new(BUILT_IN_POOL),
        labels: BTreeSet::new(),
        repositories: Vec::new(),
        public_repositories: Admission::StrictOnly,
        fork_pull_requests: Admission::Refuse,
        image: defaults.image.clone(),
        runner_group: None,
        name_prefix: String::new(),
        resources: defaults.resources,
        profile: "strict".to_owned(),
        network_mode: "open".to_owned(),
        idle_floor: 0,
        maximum: 0,
        priority: Priority::Normal,
        placement: Placement::Pack,
        required_properties: BTreeSet::new(),
        idle_timeout: defaults.idle_timeout,
        lifetime: defaults.lifetime,
        bare_self_hosted: defaults.bare_self_hosted,
        precedence: i32::MIN,
    }
}
