//! What is due without an input: leases, idle timeouts, deadlines, retention.
//!
//! A timer names a subject, never an action: when it is due the subject is looked
//! at as it is then, and says when to look again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    fact::{Fact, StopReason},
    fleet::{Fleet, NodeIx},
    model::{
        Conclusion, CredentialName, JobPhase, NodeName, Now, PoolName, RunnerName, RunnerPhase,
        Scope,
    },
    table::Slot,
    unassigned::DemandKey,
};

/// Without listening for jobs by then, a runner is given up.
const START_LIMIT_MS: u64 = 10 * 60_000;
/// GitHub names the job of a busy runner by webhook, and a sweep finds it within two
/// minutes; after that it is a job we do not see (facts.md 5 row 2).
const UNCLAIMED_MS: u64 = 3 * 60_000;
/// Completed jobs stay in memory so long, and at most so many.
const COMPLETED_KEPT_MS: u64 = 60 * 60_000;
const COMPLETED_KEPT: usize = 20_000;
/// GitHub cancels a job after 24 h in the queue; one hour for the message.
const QUEUE_LIMIT_MS: u64 = 25 * 3_600_000;
/// A wall clock that moved so much against the monotonic one was set.
const CLOCK_STEP_MS: u64 = 5_000;

/// Subjects that are few and looked at seldom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    Orphan(RunnerName),
    Scope(Scope),
    Demand(DemandKey),
    Image(String, Option<NodeName>),
    Credential(CredentialName),
    Spent(RunnerName),
    Floor((Scope, PoolName, Vec<String>)),
    Retention,
    Expiry,
}

/// Subjects that change with every job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Often {
    Node(NodeIx),
    /// Whoever has this slot among the runners.
    Runner(Slot),
}

/// Not armed.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Watch {
    /// When its entry in `often` is due.
    armed: u64,
    touched: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// A view that only replays has no timers to keep.
    pub(crate) running: bool,
    by_time: BTreeSet<(u64, Due)>,
    at: BTreeMap<Due, u64>,
    touched: BTreeSet<Due>,
    /// At most one entry a subject, never later than it is due. One that became
    /// due later, or whose subject left, stays: looking early does no harm, and
    /// in a busy fleet hardly any entry moves.
    often: BTreeSet<(u64, Often)>,
    nodes: Vec<Watch>,
    runners: Vec<Watch>,
    /// In the order they were touched.
    waiting: VecDeque<Often>,
    ageing: Option<u64>,
}

impl Timers {
    pub(crate) fn next(&self) -> Option<u64> {
        let seldom = self.by_time.first().map(|(at, _)| *at);
        let often = self.often.first().map(|(at, _)| *at);
        [seldom, often, self.ageing].into_iter().flatten().min()
    }

    fn watch(&mut self, subject: Often) -> &mut Watch {
        let (list, at) = match subject {
            Often::Node(ix) => (&mut self.nodes, ix as usize),
            Often::Runner(slot) => (&mut self.runners, slot as usize),
        };
        if list.len() <= at {
            let unarmed = Watch {
                armed: NEVER,
                touched: false,
            };
            list.resize(at + 1, unarmed);
        }
        &mut list[at]
    }

    pub(crate) fn touch(&mut self, subject: Often) {
        if self.running && !std::mem::replace(&mut self.watch(subject).touched, true) {
            self.waiting.push_back(subject);
        }
    }

    pub(crate) fn touch_seldom(&mut self, due: Due) {
        if self.running {
            self.touched.insert(due);
        }
    }

    fn next_touched(&mut self) -> Option<Often> {
        let subject = self.waiting.pop_front()?;
        self.watch(subject).touched = false;
        Some(subject)
    }

    fn arm(&mut self, subject: Often, at: Option<u64>) {
        let Some(at) = at else {
            return;
        };
        let watch = self.watch(subject);
        if watch.armed <= at {
            return;
        }
        let before = std::mem::replace(&mut watch.armed, at);
        if before != NEVER {
            self.often.remove(&(before, subject));
        }
        self.often.insert((at, subject));
    }

    fn set(&mut self, due: Due, at: Option<u64>) {
        if let Some(old) = self.at.remove(&due) {
            self.by_time.remove(&(old, due.clone()));
        }
        if let Some(at) = at {
            self.at.insert(due.clone(), at);
            self.by_time.insert((at, due));
        }
    }

    /// Whatever is due by now is touched.
    fn ring(&mut self, now: u64) {
        while let Some((at, _)) = self.by_time.first()
            && *at <= now
            && let Some((_, due)) = self.by_time.pop_first()
        {
            self.at.remove(&due);
            self.touched.insert(due);
        }
        while let Some((at, subject)) = self.often.first().copied()
            && at <= now
        {
            self.often.pop_first();
            self.watch(subject).armed = NEVER;
            self.touch(subject);
        }
    }
}

impl Fleet {
    /// First step of a process, a long silence or a set clock: leases start again,
    /// and every subject is looked at.
    pub(crate) fn notice_time(&mut self, now: Now) {
        let lease = self.defaults.node_lease.as_millis() as u64;
        let (first, gap, stepped) = match self.soft.last {
            None => (true, true, true),
            Some(last) => {
                let mono = now.mono.saturating_sub(last.mono);
                let utc = now.utc.abs_diff(last.utc + mono);
                (false, mono > lease / 2, utc > CLOCK_STEP_MS)
            }
        };
        self.soft.last = Some(now);
        if first {
            self.ensure_index();
            self.owe_everything();
        }
        if gap {
            for node in self.nodes.iter_mut().flatten() {
                node.soft.heard_mono = now.mono;
            }
        }
        if stepped {
            self.touch_everything();
        }
    }

    fn touch_everything(&mut self) {
        self.timers.running = true;
        for ix in self.nodes_by_name.values() {
            self.timers.touch(Often::Node(*ix));
        }
        for name in self.runners.keys() {
            if let Some(slot) = self.runners.slot(name) {
                self.timers.touch(Often::Runner(slot));
            }
        }
        let orphans = self.orphans.keys().cloned().map(Due::Orphan);
        let scopes = self.rests.keys().cloned().map(Due::Scope);
        let demands = self.in_vain.keys().cloned().map(Due::Demand);
        let images = self
            .images
            .keys()
            .cloned()
            .map(|(image, node)| Due::Image(image, node));
        let credentials = self.budgets.keys().cloned().map(Due::Credential);
        let floors = self.floors.keys().cloned().map(Due::Floor);
        self.timers.touched.extend(
            orphans
                .chain(scopes)
                .chain(demands)
                .chain(images)
                .chain(credentials)
                .chain(floors)
                .chain([Due::Retention, Due::Expiry]),
        );
    }

    /// Everything due or touched, before placing.
    pub(crate) fn run_timers(&mut self, now: Now, facts: &mut Vec<Fact>) {
        self.timers.ring(now.mono);
        self.rearm(now, facts);
        self.ensure_index();
        if self.demand.ageing_ms > 0 {
            self.demand.promote(now.utc);
        }
    }

    /// Looks at whatever changed and sets when to look again.
    pub(crate) fn rearm(&mut self, now: Now, facts: &mut Vec<Fact>) {
        loop {
            while let Some(subject) = self.timers.next_touched() {
                let next = match subject {
                    Often::Node(ix) => self.attend_node(now, ix, facts),
                    Often::Runner(slot) => self.attend_runner(now, slot, facts),
                };
                self.timers.arm(subject, next);
            }
            let Some(due) = self.timers.touched.pop_first() else {
                break;
            };
            let next = self.attend(now, &due, facts);
            self.timers.set(due, next);
        }
        self.timers.ageing = self
            .demand
            .next_promotion()
            .map(|utc| now.mono + utc.saturating_sub(now.utc).max(1));
    }

    fn attend(&mut self, now: Now, due: &Due, facts: &mut Vec<Fact>) -> Option<u64> {
        let mono_of = |utc: u64| now.mono + utc.saturating_sub(now.utc).max(1);
        match due {
            Due::Orphan(name) => {
                self.owe_deregistration(name);
                self.soft
                    .orphan_rests
                    .get(name)
                    .filter(|(until, _)| *until > now.mono)
                    .map(|(until, _)| *until)
            }
            Due::Scope(scope) => {
                let rest = self.rests.get_mut(scope)?;
                if rest.until > now.utc {
                    return Some(mono_of(rest.until));
                }
                rest.resting = false;
                let ix = self.demand.scope(scope);
                self.demand.set_resting(ix, false);
                None
            }
            Due::Demand(key) => self.attend_in_vain(now, key, facts),
            Due::Image(image, node) => {
                let rest = self.images.get_mut(&(image.clone(), node.clone()))?;
                if rest.until > now.utc {
                    return Some(mono_of(rest.until));
                }
                if std::mem::replace(&mut rest.resting, false) {
                    self.image_changed(image, node.as_ref());
                }
                None
            }
            Due::Credential(name) => {
                self.owe_registrations(name);
                self.budgets
                    .get(name)?
                    .limited_until
                    .filter(|until| *until > now.utc)
                    .map(mono_of)
            }
            Due::Spent(name) => self.attend_spent(now, name),
            Due::Floor(key) => {
                let floor = self.floors.get(key)?;
                if floor.until > now.utc {
                    return Some(mono_of(floor.until));
                }
                let (scope, pool, labels) = key.clone();
                self.emit(
                    Fact::FloorEnded {
                        scope,
                        pool,
                        labels,
                    },
                    facts,
                );
                None
            }
            Due::Retention => self.forget_completed(now, facts).map(mono_of),
            Due::Expiry => {
                self.expire_queued(now, facts);
                Some(now.mono + 3_600_000)
            }
        }
    }

    fn attend_node(&mut self, now: Now, ix: NodeIx, facts: &mut Vec<Fact>) -> Option<u64> {
        let lease = self.defaults.node_lease.as_millis() as u64;
        let node = self.nodes[ix as usize].as_ref()?;
        let mut next = None;
        if node.is_reachable() {
            let end = node.soft.heard_mono + lease;
            if end > now.mono {
                next = Some(end);
            } else {
                let name = node.name.clone();
                self.emit(
                    Fact::NodeUnreachable {
                        node: name,
                        since: now.utc,
                    },
                    facts,
                );
            }
        }
        let node = self.nodes[ix as usize].as_ref()?;
        if let Some(deadline) = node.draining.and_then(|drain| drain.deadline) {
            if deadline > now.utc {
                let at = now.mono + (deadline - now.utc);
                next = Some(next.map_or(at, |next| next.min(at)));
            } else {
                for name in self.runners_of(ix) {
                    self.stop(now, &name, StopReason::DrainDeadline, facts);
                }
            }
        }
        next
    }

    fn attend_runner(&mut self, now: Now, slot: Slot, facts: &mut Vec<Fact>) -> Option<u64> {
        let mono_of = |utc: u64| now.mono + utc.saturating_sub(now.utc).max(1);
        self.ensure_index();
        let (name, runner) = self.runners.at(slot)?;
        let name = name.clone();
        // Only the second step of the four-way check becomes due by time alone.
        if runner.stops_softly() {
            self.owe_deregistration(&name);
        }
        let runner = self.runners.at_mut(slot)?;
        let phase = runner.phase();
        if phase == RunnerPhase::Idle {
            runner.soft.idle_since.get_or_insert(now.mono);
        } else if phase != RunnerPhase::Busy {
            runner.soft.idle_since = None;
        }
        let claim = self.attend_claim(now, slot);
        let (_, runner) = self.runners.at(slot)?;
        let lifetime = runner.placed.at + runner.placed.lifetime_ms;
        let hard = runner.stopping.is_some() && !runner.stops_softly();
        if hard {
            return None;
        }
        if lifetime <= now.utc {
            self.stop(now, &name, StopReason::Lifetime, facts);
            return None;
        }
        let mut next = mono_of(lifetime).min(claim.unwrap_or(u64::MAX));
        if runner.stopping.is_some() {
            let retry = runner.soft.deregister_after;
            return Some(if retry > now.mono {
                next.min(retry)
            } else {
                next
            });
        }
        if let Some(job) = runner.job.and_then(|id| self.jobs.get(&id))
            && job.phase() == JobPhase::Completed
        {
            let limit = job.phase_at + self.defaults.after_completion.as_millis() as u64;
            if limit <= now.utc {
                self.stop(now, &name, StopReason::CompletedButAlive, facts);
                return Some(next);
            }
            return Some(next.min(mono_of(limit)));
        }
        let reachable = self.node_of(runner).is_some_and(|node| node.is_reachable());
        let quiet = runner.job.is_none() && !runner.has_worker();
        if quiet && self.is_unwanted(runner) {
            self.stop(now, &name, StopReason::Surplus, facts);
            return Some(next);
        }
        if quiet && !runner.is_consumed() && reachable {
            let limit = runner.placed.at + START_LIMIT_MS;
            if limit <= now.utc {
                self.stop(now, &name, StopReason::NeverStarted, facts);
                return Some(next);
            }
            next = next.min(mono_of(limit));
        }
        // A refused deletion said busy; without a worker the clock runs again.
        let idle_from = match (phase, &runner.deregistered) {
            (RunnerPhase::Idle, _) => runner.soft.idle_since,
            (RunnerPhase::Busy, Some((_, at))) if quiet => {
                Some(now.mono.saturating_sub(now.utc.saturating_sub(*at)))
            }
            _ => None,
        };
        if let Some(since) = idle_from {
            let timeout = runner.placed.idle_timeout_ms;
            if since + timeout > now.mono {
                next = next.min(since + timeout);
            } else if self.is_kept_by_floor(runner) {
                next = next.min(now.mono + timeout.max(1_000));
            } else {
                self.stop(now, &name, StopReason::Idle, facts);
                self.note_in_vain(now, &name, facts);
            }
        }
        Some(next)
    }

    /// A worker without a named job stands for a queued job, for a while.
    fn attend_claim(&mut self, now: Now, slot: Slot) -> Option<u64> {
        let patience = UNCLAIMED_MS.max(self.naming_ms());
        let runner = self.runners.at_mut(slot)?;
        if !runner.is_taken() {
            runner.soft.taken_since = None;
            runner.soft.unclaimed = false;
            return None;
        }
        if runner.soft.unclaimed {
            return None;
        }
        let limit = *runner.soft.taken_since.get_or_insert(now.mono) + patience;
        if limit > now.mono {
            return Some(limit);
        }
        runner.soft.unclaimed = true;
        self.recount_at(slot);
        None
    }

    /// Nobody wants another runner like it: its pool went or changed its image, its
    /// node drains, or scaling is off.
    fn is_unwanted(&self, runner: &crate::state::Runner) -> bool {
        if !self.autoscaler.running {
            return true;
        }
        if self
            .node_of(runner)
            .is_some_and(|node| node.draining.is_some())
        {
            return true;
        }
        match self.capacity.pool_ix.get(&runner.placed.pool) {
            None => !self.stale,
            Some(ix) => {
                !self.stale && self.capacity.pools[*ix as usize].pool.image != runner.placed.image
            }
        }
    }

    fn is_kept_by_floor(&self, runner: &crate::state::Runner) -> bool {
        if !runner.counted || self.stale {
            return false;
        }
        let group = &self.demand.groups[runner.group as usize];
        group.floor > 0 && group.runnable == 0 && group.supply <= group.floor
    }

    /// Completed jobs leave memory when their time or the room is over, but not
    /// while their runner lives.
    fn forget_completed(&mut self, now: Now, facts: &mut Vec<Fact>) -> Option<u64> {
        let mut kept = 0;
        let mut gone = Vec::new();
        let mut next = None;
        let over = self.completed.len().saturating_sub(COMPLETED_KEPT);
        for (at, id) in &self.completed {
            let due = at + COMPLETED_KEPT_MS;
            if due > now.utc && gone.len() + kept >= over {
                next = Some(due);
                break;
            }
            let held = self
                .jobs
                .get(id)
                .and_then(|job| job.bound.as_ref())
                .is_some_and(|bound| self.runners.contains_key(&bound.runner));
            if held {
                kept += 1;
                next.get_or_insert(now.utc + COMPLETED_KEPT_MS);
            } else {
                gone.push(*id);
            }
        }
        for job in gone {
            self.emit(Fact::JobForgotten { job }, facts);
        }
        next
    }

    /// A job queued for longer than GitHub lets it wait is over, whatever we missed.
    fn expire_queued(&mut self, now: Now, facts: &mut Vec<Fact>) {
        let expired: Vec<_> = self
            .jobs
            .values()
            .filter(|job| {
                job.phase() == JobPhase::Queued && job.phase_at + QUEUE_LIMIT_MS <= now.utc
            })
            .map(|job| job.seen.id)
            .collect();
        for job in expired {
            self.emit(
                Fact::JobPhaseChanged {
                    job,
                    phase: JobPhase::Completed,
                    conclusion: Some(Conclusion::Other("expired".to_owned())),
                    at: now.utc,
                },
                facts,
            );
        }
    }
}
