//! What is due without an input: leases, idle timeouts, deadlines, retention.
//!
//! A timer names a subject, never an action: when it is due the subject is looked
//! at as it is then, and says when to look again.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    entropy::Entropy,
    fact::{Fact, StopReason},
    fleet::{Fleet, NodeIx},
    model::{
        Conclusion, CredentialName, JobPhase, NodeName, Now, PoolName, RunnerName, RunnerPhase,
        Scope,
    },
};

/// Without listening for jobs by then, a runner is given up.
const START_LIMIT_MS: u64 = 10 * 60_000;
/// A runner alive so long after its job completed is stuck (facts.md 5 row 6).
const AFTER_COMPLETION_MS: u64 = 10 * 60_000;
/// Completed jobs stay in memory so long, and at most so many.
const COMPLETED_KEPT_MS: u64 = 60 * 60_000;
const COMPLETED_KEPT: usize = 20_000;
/// GitHub cancels a job after 24 h in the queue; one hour for the message.
const QUEUE_LIMIT_MS: u64 = 25 * 3_600_000;
/// A wall clock that moved so much against the monotonic one was set.
const CLOCK_STEP_MS: u64 = 5_000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    Node(NodeIx),
    Runner(RunnerName),
    Orphan(RunnerName),
    Scope(Scope),
    Image(String, Option<NodeName>),
    Credential(CredentialName),
    Floor((Scope, PoolName, Vec<String>)),
    Ageing,
    Retention,
    Expiry,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_time: BTreeSet<(u64, Due)>,
    at: BTreeMap<Due, u64>,
}

impl Timers {
    pub(crate) fn next(&self) -> Option<u64> {
        self.by_time.first().map(|(at, _)| *at)
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

    fn pop(&mut self, now: u64) -> Option<Due> {
        let (at, _) = self.by_time.first()?;
        if *at > now {
            return None;
        }
        let (_, due) = self.by_time.pop_first()?;
        self.at.remove(&due);
        Some(due)
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
        let nodes = self.nodes_by_name.values().copied().map(Due::Node);
        let runners = self.runners.keys().cloned().map(Due::Runner);
        let orphans = self.orphans.keys().cloned().map(Due::Orphan);
        let scopes = self.rests.keys().cloned().map(Due::Scope);
        let images = self
            .images
            .keys()
            .cloned()
            .map(|(image, node)| Due::Image(image, node));
        let credentials = self.budgets.keys().cloned().map(Due::Credential);
        let floors = self.floors.keys().cloned().map(Due::Floor);
        self.soft.touched.extend(
            nodes
                .chain(runners)
                .chain(orphans)
                .chain(scopes)
                .chain(images)
                .chain(credentials)
                .chain(floors)
                .chain([Due::Ageing, Due::Retention, Due::Expiry]),
        );
    }

    /// Everything due or touched, before placing.
    pub(crate) fn run_timers(&mut self, now: Now, entropy: &mut Entropy, facts: &mut Vec<Fact>) {
        while let Some(due) = self.timers.pop(now.mono) {
            self.soft.touched.insert(due);
        }
        self.rearm(now, entropy, facts);
        self.ensure_index();
        if self.demand.ageing_ms > 0 {
            self.demand.promote(now.utc);
        }
    }

    /// Looks at whatever changed and sets when to look again.
    pub(crate) fn rearm(&mut self, now: Now, _entropy: &mut Entropy, facts: &mut Vec<Fact>) {
        while let Some(due) = self.soft.touched.pop_first() {
            let next = self.attend(now, &due, facts);
            self.timers.set(due, next);
        }
        let ageing = self
            .demand
            .next_promotion()
            .map(|utc| now.mono + utc.saturating_sub(now.utc).max(1));
        self.timers.set(Due::Ageing, ageing);
    }

    fn attend(&mut self, now: Now, due: &Due, facts: &mut Vec<Fact>) -> Option<u64> {
        let mono_of = |utc: u64| now.mono + utc.saturating_sub(now.utc).max(1);
        match due {
            Due::Node(ix) => self.attend_node(now, *ix, facts),
            Due::Runner(name) => self.attend_runner(now, name, facts),
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
            Due::Ageing => None,
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

    fn attend_runner(&mut self, now: Now, name: &RunnerName, facts: &mut Vec<Fact>) -> Option<u64> {
        let mono_of = |utc: u64| now.mono + utc.saturating_sub(now.utc).max(1);
        self.ensure_index();
        self.owe_deregistration(name);
        let runner = self.runners.get_mut(name)?;
        let phase = runner.phase();
        if phase == RunnerPhase::Idle {
            runner.soft.idle_since.get_or_insert(now.mono);
        } else if phase != RunnerPhase::Busy {
            runner.soft.idle_since = None;
        }
        let runner = self.runners.get(name)?;
        let lifetime = runner.placed.at + runner.placed.lifetime_ms;
        let hard = runner.stopping.is_some() && !runner.stops_softly();
        if hard {
            return None;
        }
        if lifetime <= now.utc {
            self.stop(now, name, StopReason::Lifetime, facts);
            return None;
        }
        let mut next = mono_of(lifetime);
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
            let limit = job.phase_at + AFTER_COMPLETION_MS;
            if limit <= now.utc {
                self.stop(now, name, StopReason::CompletedButAlive, facts);
                return Some(next);
            }
            return Some(next.min(mono_of(limit)));
        }
        let reachable = self
            .node(&runner.placed.node)
            .is_some_and(|node| node.is_reachable());
        let quiet = runner.job.is_none() && !runner.has_worker();
        if quiet && self.is_unwanted(runner) {
            self.stop(now, name, StopReason::Surplus, facts);
            return Some(next);
        }
        let runner = self.runners.get(name)?;
        if quiet && !runner.is_consumed() && reachable {
            let limit = runner.placed.at + START_LIMIT_MS;
            if limit <= now.utc {
                self.stop(now, name, StopReason::NeverStarted, facts);
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
                self.stop(now, name, StopReason::Idle, facts);
            }
        }
        Some(next)
    }

    /// Nobody wants another runner like it: its pool went or changed its image, its
    /// node drains, or scaling is off.
    fn is_unwanted(&self, runner: &crate::state::Runner) -> bool {
        if !self.autoscaler.running {
            return true;
        }
        if self
            .node(&runner.placed.node)
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
