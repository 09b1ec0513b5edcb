//! What nodes report against what was wanted of them.

use std::collections::BTreeMap;

use crate::{
    budget::backoff,
    entropy::Entropy,
    fact::{Fact, RetireReason, StopReason},
    fleet::Fleet,
    input::{ListedRunner, NodeAttached, NodeReported, ObservedPhase, ObservedRunner},
    model::{Condition, Exit, Generation, NodeName, Now, RunnerName, Scope},
    state::Runner,
};

/// Clocks further apart than this break GitHub's signatures (facts.md 5 row 14).
const CLOCK_GATE_MS: i64 = 60_000;
/// A runner once reported and then missing is over after this.
const MISSING_GRACE_MS: u64 = 10_000;
/// One never reported although its intent was accepted.
const NEVER_SEEN_GRACE_MS: u64 = 60_000;
/// An image unavailable on so many nodes rests everywhere.
const IMAGE_NODES: usize = 3;
/// Registrations of our prefix watched for their age, at most.
const STRANGERS_KEPT: usize = 10_000;

/// Exits that say nothing against the image: GitHub or the network refused.
const REFUSALS: [&str; 2] = ["runner_refused", "session_conflict"];
/// Exits after the hand-over: only a runner that listens disproves them.
const AFTER_START: [&str; 5] = [
    "runner_refused",
    "session_conflict",
    "never_started",
    "engine",
    "version_deprecated",
];

/// What an exit is remembered by: its cause first, which decides how it is explained.
fn blame(exit: &Exit) -> String {
    match exit.code {
        Some(code) => format!("{}: exit code {code}: {}", exit.cause, exit.detail),
        None => format!("{}: {}", exit.cause, exit.detail),
    }
}

fn begins_with(detail: &str, causes: &[&str]) -> bool {
    let cause = detail.split(':').next().unwrap_or(detail);
    causes.contains(&cause)
}

fn failed_after_start(detail: &str) -> bool {
    begins_with(detail, &AFTER_START)
}

/// The rest says nothing against the image.
pub(crate) fn is_refusal(detail: &str) -> bool {
    begins_with(detail, &REFUSALS)
}

/// The container engine ended the runner.
pub(crate) fn is_engine(detail: &str) -> bool {
    begins_with(detail, &["engine"])
}

/// The report says of it what it said before, and nothing waits for its word.
fn is_old_news(runner: &Runner, seen: &ObservedRunner) -> bool {
    runner.stopping.is_none()
        && !runner.soft.lost
        && seen.phase < ObservedPhase::Exited
        && runner.observed.as_ref().is_some_and(|known| {
            known.phase == seen.phase
                && known.observation == seen.observation
                && known.worker == seen.worker
                && known.container_id == seen.container_id
        })
}

impl Fleet {
    pub(crate) fn node_attached(
        &mut self,
        now: Now,
        attached: &NodeAttached,
        facts: &mut Vec<Fact>,
    ) {
        let name = &attached.node;
        if let Some(node) = self.node(name)
            && node
                .soft
                .newest_session
                .is_some_and(|newest| newest > attached.session)
        {
            return;
        }
        // A node that obeyed a higher epoch would refuse ours.
        if attached.highest.epoch > self.epoch {
            self.emit(
                Fact::EpochRaised {
                    epoch: attached.highest.epoch + 1,
                },
                facts,
            );
        }
        match self.node(name) {
            None => self.emit(
                Fact::NodeJoined {
                    node: name.clone(),
                    capability: Box::new(attached.capability.clone()),
                },
                facts,
            ),
            Some(node) if node.capability != attached.capability => self.emit(
                Fact::CapabilityChanged {
                    node: name.clone(),
                    capability: Box::new(attached.capability.clone()),
                },
                facts,
            ),
            Some(_) => {}
        }
        let Some(ix) = self.node_ix(name) else {
            return;
        };
        if let Some(node) = &mut self.nodes[ix as usize] {
            node.soft.session = Some(attached.session);
            node.soft.newest_session = Some(attached.session);
            node.soft.heard_mono = now.mono;
            node.soft.accepted = Generation::default();
            node.soft.clock_offset_ms = attached.clock_offset_ms;
            node.soft.reported = false;
        }
        self.owe_intent(ix);
        self.heard(name, facts);
        let conditions = self
            .node(name)
            .map(|node| node.conditions.clone())
            .unwrap_or_default();
        self.set_conditions(name, conditions, attached.clock_offset_ms, facts);
    }

    pub(crate) fn node_lost(&mut self, name: &NodeName, session: u64) {
        let Some(ix) = self.node_ix(name) else {
            return;
        };
        if let Some(node) = &mut self.nodes[ix as usize]
            && node.soft.session == Some(session)
        {
            node.soft.session = None;
        }
        self.owe_intent(ix);
    }

    fn heard(&mut self, name: &NodeName, facts: &mut Vec<Fact>) {
        if self.node(name).is_some_and(|node| !node.is_reachable()) {
            self.emit(Fact::NodeReachable { node: name.clone() }, facts);
        }
    }

    fn set_conditions(
        &mut self,
        name: &NodeName,
        mut conditions: Vec<Condition>,
        clock_offset_ms: i64,
        facts: &mut Vec<Fact>,
    ) {
        conditions.retain(|condition| condition.kind != "clock_offset");
        if clock_offset_ms.abs() > CLOCK_GATE_MS {
            conditions.push(Condition {
                kind: "clock_offset".to_owned(),
                // The sign and size wobble with every report; the fact would too.
                detail: "its clock is more than 60 s away from the scheduler's".to_owned(),
                next_step: "start a time service (chrony, systemd-timesyncd) on the node"
                    .to_owned(),
                image: None,
            });
        }
        conditions.sort();
        conditions.dedup();
        if self
            .node(name)
            .is_some_and(|node| node.conditions != conditions)
        {
            self.emit(
                Fact::ConditionsChanged {
                    node: name.clone(),
                    conditions,
                },
                facts,
            );
        }
    }

    pub(crate) fn node_reported(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        report: &NodeReported,
        facts: &mut Vec<Fact>,
    ) {
        let Some(ix) = self.node_ix(&report.node) else {
            return;
        };
        let Some(node) = &mut self.nodes[ix as usize] else {
            return;
        };
        // Words of an older stream of the same node are void.
        if node.soft.session != Some(report.session) {
            return;
        }
        node.soft.heard_mono = now.mono;
        node.soft.accepted = report.accepted;
        node.soft.clock_offset_ms = report.clock_offset_ms;
        node.soft.last_report_utc = Some(now.utc);
        node.soft.reported = true;
        let changed = report
            .capability
            .as_ref()
            .filter(|capability| **capability != node.capability);
        if let Some(capability) = changed {
            self.emit(
                Fact::CapabilityChanged {
                    node: report.node.clone(),
                    capability: Box::new(capability.clone()),
                },
                facts,
            );
        }
        let Some(node) = &self.nodes[ix as usize] else {
            return;
        };
        let calm = node.conditions.is_empty()
            && report.conditions.is_empty()
            && report.clock_offset_ms.abs() <= CLOCK_GATE_MS;
        if !node.is_reachable() {
            self.heard(&report.node, facts);
        }
        if !calm {
            self.set_conditions(
                &report.node,
                report.conditions.clone(),
                report.clock_offset_ms,
                facts,
            );
        }
        let mut foreign = Vec::new();
        let mut mentioned = Vec::with_capacity(report.runners.len());
        for seen in &report.runners {
            let slot = self.runners.slot(&seen.name);
            let known = slot
                .and_then(|slot| self.runners.at_mut(slot))
                .filter(|runner| runner.node == ix);
            if let (Some(slot), Some(runner)) = (slot, known) {
                runner.soft.missing_since = None;
                mentioned.push(slot);
                if !is_old_news(runner, seen) {
                    self.runner_seen(now, entropy, report, seen, facts);
                }
            } else if seen.phase < ObservedPhase::Exited {
                foreign.push(seen.name.clone());
            }
        }
        mentioned.sort_unstable();
        foreign.sort();
        foreign.dedup();
        let Some(node) = &self.nodes[ix as usize] else {
            return;
        };
        // A slot mentioned is its runner's still, or nobody's: none came meanwhile.
        let mut missing: Vec<RunnerName> = if node
            .slots
            .iter()
            .all(|slot| mentioned.binary_search(slot).is_ok())
        {
            Vec::new()
        } else {
            let missing = |name: &&RunnerName| {
                let slot = self.runners.slot(*name);
                slot.is_none_or(|slot| mentioned.binary_search(&slot).is_err())
            };
            node.runners.iter().filter(missing).cloned().collect()
        };
        missing.sort_unstable();
        if node.foreign != foreign {
            self.emit(
                Fact::ForeignSeen {
                    node: report.node.clone(),
                    runners: foreign,
                },
                facts,
            );
        }
        for name in missing {
            self.runner_missing(now, report.accepted, &name, facts);
        }
        self.owe_intent(ix);
    }

    fn runner_seen(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        report: &NodeReported,
        seen: &ObservedRunner,
        facts: &mut Vec<Fact>,
    ) {
        if matches!(seen.phase, ObservedPhase::Exited | ObservedPhase::Failed) {
            self.runner_over(now, entropy, report, seen, facts);
            return;
        }
        let Some(runner) = self.runners.get(&seen.name) else {
            return;
        };
        let same = runner.observed.as_ref().is_some_and(|known| {
            known.phase == seen.phase
                && known.observation == seen.observation
                && known.worker == seen.worker
                && known.container_id == seen.container_id
        });
        if same && runner.stopping.is_none() && !runner.soft.lost {
            return;
        }
        let image = runner.placed.image.clone();
        let before = runner.observed.as_ref().map(|known| known.phase);
        let reached = |phase| {
            seen.phase >= phase && before.is_none_or(|before: ObservedPhase| before < phase)
        };
        let (consumed, listens) = (
            reached(ObservedPhase::Consumed),
            reached(ObservedPhase::Online),
        );
        if !same {
            self.emit(
                Fact::RunnerObserved {
                    runner: seen.name.clone(),
                    phase: seen.phase,
                    observation: seen.observation,
                    worker: seen.worker,
                    container_id: seen.container_id.clone(),
                    at: now.utc,
                },
                facts,
            );
        }
        if consumed || listens {
            for node in [Some(report.node.clone()), None] {
                // A program that refused proves itself by listening, not by being started.
                let over = self
                    .images
                    .get(&(image.clone(), node.clone()))
                    .is_some_and(|rest| listens || !failed_after_start(&rest.detail));
                if over {
                    self.emit(
                        Fact::ImageCleared {
                            image: image.clone(),
                            node,
                        },
                        facts,
                    );
                }
            }
        }
        self.check_lost(now, &seen.name, facts);
        // The node looked again after it was told to stop and saw no worker.
        if let Some(runner) = self.runners.get_mut(&seen.name)
            && runner.stops_softly()
            && runner.soft.stop_generation != Generation::default()
            && report.accepted >= runner.soft.stop_generation
        {
            let quiet = !seen.worker && seen.phase != ObservedPhase::Busy;
            if runner.soft.checked != quiet {
                runner.soft.checked = quiet;
                self.owe_deregistration(&seen.name);
            }
        }
    }

    fn runner_over(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        report: &NodeReported,
        seen: &ObservedRunner,
        facts: &mut Vec<Fact>,
    ) {
        let Some(runner) = self.runners.get(&seen.name) else {
            return;
        };
        let image = runner.placed.image.clone();
        let ran = runner.job.is_some() || runner.has_worker();
        let stopping = runner.stopping.is_some();
        let (why, blame) = match &seen.error {
            Some((reason, detail)) if seen.phase == ObservedPhase::Failed => (
                RetireReason::NotPrepared(format!("{reason}: {detail}")),
                Some((reason.as_str(), format!("{reason}: {detail}"))),
            ),
            _ if seen.phase == ObservedPhase::Failed => (
                RetireReason::NotPrepared("the node gave no reason".to_owned()),
                Some(("start_failed", "the node gave no reason".to_owned())),
            ),
            _ => {
                let blame = seen
                    .exit
                    .as_ref()
                    .filter(|_| !ran && !stopping)
                    .and_then(|exit| {
                        matches!(
                            exit.cause.as_str(),
                            "runner_refused"
                                | "never_started"
                                | "session_conflict"
                                | "engine"
                                | "version_deprecated"
                        )
                        .then(|| (exit.cause.as_str(), blame(exit)))
                    });
                (RetireReason::Finished, blame)
            }
        };
        self.retire(now, &seen.name, seen.exit.clone(), why, facts);
        if let Some((cause, detail)) = blame {
            self.block_image(now, entropy, &image, &report.node, cause, detail, facts);
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one failure, said once, with everything the fact carries"
    )]
    fn block_image(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        image: &str,
        node: &NodeName,
        cause: &str,
        detail: String,
        facts: &mut Vec<Fact>,
    ) {
        let everywhere = cause == "version_deprecated";
        let base_ms = match cause {
            "version_deprecated" => 5 * 60_000,
            "image_unavailable" => 30_000,
            _ => 5_000,
        };
        let at = (!everywhere).then(|| node.clone());
        self.open_breaker(now, entropy, image, at, base_ms, &detail, facts);
        let resting = self
            .images
            .iter()
            .filter(|((name, at), rest)| {
                name == image
                    && at.is_some()
                    && rest.resting
                    && rest.detail.starts_with("image_unavailable")
            })
            .count();
        if cause == "image_unavailable" && resting >= IMAGE_NODES {
            self.open_breaker(now, entropy, image, None, base_ms, &detail, facts);
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one failure, said once, with everything the fact carries"
    )]
    fn open_breaker(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        image: &str,
        node: Option<NodeName>,
        base_ms: u64,
        detail: &str,
        facts: &mut Vec<Fact>,
    ) {
        let known = self.images.get(&(image.to_owned(), node.clone()));
        if known.is_some_and(|rest| rest.resting && rest.until > now.utc) {
            return;
        }
        let failures = known.map_or(0, |rest| rest.failures) + 1;
        self.emit(
            Fact::ImageBlocked {
                image: image.to_owned(),
                node,
                until: now.utc + backoff(base_ms, failures, entropy),
                detail: detail.to_owned(),
                failures,
            },
            facts,
        );
    }

    fn runner_missing(
        &mut self,
        now: Now,
        accepted: Generation,
        name: &RunnerName,
        facts: &mut Vec<Fact>,
    ) {
        let Some(runner) = self.runners.get_mut(name) else {
            return;
        };
        // The report may be older than the runner.
        if accepted < runner.placed.generation {
            return;
        }
        if runner.stopping.is_some() {
            let told = runner.soft.stop_generation;
            if told != Generation::default() && accepted >= told {
                self.retire(now, name, None, RetireReason::Stopped, facts);
            }
            return;
        }
        let grace = if runner.observed.is_some() {
            MISSING_GRACE_MS
        } else {
            NEVER_SEEN_GRACE_MS
        };
        let since = *runner.soft.missing_since.get_or_insert(now.mono);
        if now.mono - since >= grace {
            self.retire(now, name, None, RetireReason::Vanished, facts);
        }
    }

    /// Ends a runner, and says whether GitHub may still list it.
    pub(crate) fn retire(
        &mut self,
        now: Now,
        name: &RunnerName,
        exit: Option<Exit>,
        why: RetireReason,
        facts: &mut Vec<Fact>,
    ) {
        let Some(runner) = self.runners.get(name) else {
            return;
        };
        let why = match (&runner.stopping, why) {
            (
                Some((StopReason::NotRegistered(_), _)),
                RetireReason::Finished | RetireReason::Stopped,
            ) => RetireReason::NotRegistered,
            (
                Some((StopReason::RegistrationLost, _)),
                RetireReason::Finished | RetireReason::Stopped,
            ) => RetireReason::RegistrationLost,
            (Some(_), RetireReason::Finished) if runner.job.is_none() => RetireReason::Stopped,
            (_, why) => why,
        };
        // GitHub forgets an ephemeral runner by itself only after a job.
        let clean = (runner.job.is_some() || runner.has_worker())
            && exit
                .as_ref()
                .is_some_and(|exit| exit.cause == "finished" && exit.code == Some(0));
        let gone = runner
            .deregistered
            .as_ref()
            .is_some_and(|(answer, _)| answer.is_gone());
        let listed = runner.registered.is_some() || runner.soft.lost || runner.is_consumed();
        let deregister = listed && !clean && !gone && !self.orphans.contains_key(name);
        let spent = runner
            .ran_unnamed(exit.as_ref())
            .then(|| runner.spent(now.mono + self.naming_ms()))
            .flatten();
        self.emit(
            Fact::RunnerRetired {
                runner: name.clone(),
                exit,
                why,
                deregister,
                at: now.utc,
            },
            facts,
        );
        if let Some(spent) = spent {
            self.keep_spent(name, spent);
        }
    }

    /// The shell holds no registration for it: what its node says decides.
    pub(crate) fn registration_lost(&mut self, name: &RunnerName) {
        let Some(runner) = self.runners.get_mut(name) else {
            return;
        };
        if runner.is_consumed() || runner.stopping.is_some() {
            return;
        }
        runner.soft.lost = true;
        self.owe_registration(name);
    }

    /// Consumed after all: kept. Else its registration is deleted and it ends.
    fn check_lost(&mut self, now: Now, name: &RunnerName, facts: &mut Vec<Fact>) {
        let Some(runner) = self.runners.get_mut(name) else {
            return;
        };
        if !runner.soft.lost || runner.stopping.is_some() {
            return;
        }
        if runner.is_consumed() {
            runner.soft.lost = false;
            self.owe_registration(name);
            return;
        }
        self.give_up_lost(now, name, facts);
    }

    pub(crate) fn give_up_lost(&mut self, now: Now, name: &RunnerName, facts: &mut Vec<Fact>) {
        let Some(runner) = self.runners.get(name) else {
            return;
        };
        let orphan = Fact::OrphanSeen {
            runner: name.clone(),
            scope: Scope::clone(&runner.placed.scope),
            credential: runner.placed.credential.clone(),
            github_id: runner
                .registered
                .map_or(0, |registered| registered.github_id),
            at: now.utc,
        };
        self.stop(now, name, StopReason::RegistrationLost, facts);
        self.emit(orphan, facts);
    }

    /// A bulk list of a scope: orphans of ours, and ghosts it no longer names.
    pub(crate) fn runners_listed(
        &mut self,
        now: Now,
        scope: &Scope,
        listed: &[ListedRunner],
        facts: &mut Vec<Fact>,
    ) {
        let prefix = self.name_prefix().to_owned();
        let orphan_age = self.defaults.orphan_age.as_millis() as u64;
        let names: BTreeMap<&RunnerName, &ListedRunner> = listed
            .iter()
            .filter(|runner| runner.name.as_str().starts_with(&prefix))
            .map(|runner| (&runner.name, runner))
            .collect();
        for (name, seen) in &names {
            if self.runners.contains_key(*name) || self.orphans.contains_key(*name) {
                self.soft.strangers.remove(*name);
                continue;
            }
            if seen.online || seen.busy {
                self.soft.strangers.remove(*name);
                continue;
            }
            if self.soft.strangers.len() >= STRANGERS_KEPT
                && !self.soft.strangers.contains_key(*name)
            {
                continue;
            }
            let since = *self
                .soft
                .strangers
                .entry((*name).clone())
                .or_insert(now.mono);
            let Some(credential) = self.credential_of(scope, name) else {
                continue;
            };
            if now.mono - since >= orphan_age {
                self.soft.strangers.remove(*name);
                self.emit(
                    Fact::OrphanSeen {
                        runner: (*name).clone(),
                        scope: scope.clone(),
                        credential,
                        github_id: seen.github_id,
                        at: now.utc,
                    },
                    facts,
                );
            }
        }
        self.find_ghosts(now, scope, &names, facts);
    }

    fn find_ghosts(
        &mut self,
        now: Now,
        scope: &Scope,
        names: &BTreeMap<&RunnerName, &ListedRunner>,
        facts: &mut Vec<Fact>,
    ) {
        let age = self.defaults.ghost_age.as_millis() as u64;
        let confirmation = self.defaults.ghost_confirmation.as_millis() as u64;
        let mut ghosts = Vec::new();
        for runner in self.runners.values_mut() {
            let suspect = *runner.placed.scope == *scope
                && !names.contains_key(&runner.placed.runner)
                && runner.stopping.is_none()
                && runner.job.is_none()
                && !runner.has_worker()
                && runner.is_consumed()
                && runner
                    .registered
                    .is_some_and(|registered| registered.at + age <= now.utc);
            if !suspect {
                if *runner.placed.scope == *scope {
                    runner.soft.absent_since = None;
                }
                continue;
            }
            let since = *runner.soft.absent_since.get_or_insert(now.mono);
            if now.mono - since >= confirmation {
                ghosts.push(runner.placed.runner.clone());
            }
        }
        for name in ghosts {
            self.stop(now, &name, StopReason::Ghost, facts);
        }
    }

    fn credential_of(
        &self,
        scope: &Scope,
        name: &RunnerName,
    ) -> Option<crate::model::CredentialName> {
        if let Some(placed) = self.soft.graves.get(name) {
            return Some(placed.credential.clone());
        }
        self.budgets
            .iter()
            .find(|(_, budget)| budget.scopes.contains(scope))
            .map(|(credential, _)| credential.clone())
    }
}
