//! What facts about jobs change: where a job waits, who took it, that it is gone.

use std::sync::Arc;

use crate::{
    admission::{refusal, source},
    capacity::Capacity,
    demand::{Demand, GroupKey, Route, UnitIx},
    feasible::PoolIx,
    fleet::Fleet,
    input::JobSeen,
    labels::Labels,
    model::{JobId, JobPhase, RunnerName},
    state::{Bound, Job},
    timers::Due,
    unassigned::DemandKey,
};

impl Fleet {
    pub(super) fn apply_job(&mut self, job: &Arc<JobSeen>, at: u64) {
        self.ensure_index();
        match self.known_job(job.id).map(|known| &known.seen) {
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

    /// Ids grow: a job that comes is nearly always newer than all, and not looked for.
    pub(crate) fn known_job(&self, id: JobId) -> Option<&Job> {
        let (newest, _) = self.jobs.last_key_value()?;
        if *newest < id {
            return None;
        }
        self.jobs.get(&id)
    }

    /// `moves`: something changes that decides in which queue it waits, and where.
    pub(super) fn change_job(&mut self, id: JobId, moves: bool, change: impl FnOnce(&mut Job)) {
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
    pub(super) fn list_job(&mut self, id: JobId, woken: bool) {
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

    pub(super) fn drop_job(&mut self, id: JobId) {
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

    pub(super) fn apply_repository_gone(&mut self, id: u64, full_name: &str) {
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

    pub(super) fn apply_bound(&mut self, id: JobId, name: &RunnerName, ours: bool, at: u64) {
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
