//! What the state owes the world, kept as it changes; recomputed as the oracle.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    effect::Effect,
    fleet::{Fleet, NodeIx},
    model::{CredentialName, NodeName, RunnerName, Scope},
    state::{Node, Runner},
    table::Table,
};

/// Registration calls in flight per credential.
const WIDTH: usize = 8;
/// Registrations in a row after which a credential that hit a limit goes wide again.
const CALM_AFTER: u32 = 8;

#[derive(Debug, Default)]
pub(crate) struct Owed {
    registers: BTreeMap<RunnerName, Effect>,
    deregisters: BTreeMap<RunnerName, Effect>,
    intents: Table<NodeName, Effect>,
    /// Registrations owed per credential in order of placement; the first few are offered.
    queues: BTreeMap<CredentialName, BTreeSet<(u64, RunnerName)>>,
    /// Soft: registrations still to be answered one by one after a secondary limit.
    serial: BTreeMap<CredentialName, u32>,
}

impl Owed {
    /// In the order of their keys.
    pub(crate) fn effects(&self) -> impl Iterator<Item = &Effect> {
        self.registers
            .values()
            .chain(self.deregisters.values())
            .chain(self.intents.values())
    }

    pub(crate) fn settle_intent(&mut self, node: &NodeName, owed: Option<Effect>) {
        match owed {
            Some(effect) => {
                self.intents.insert(node.clone(), effect);
            }
            None => {
                self.intents.remove(node);
            }
        }
    }

    pub(crate) fn go_serial(&mut self, credential: &CredentialName) {
        self.serial.insert(credential.clone(), CALM_AFTER);
    }

    pub(crate) fn calm(&mut self, credential: &CredentialName) {
        if let Some(left) = self.serial.get_mut(credential) {
            *left -= 1;
            if *left == 0 {
                self.serial.remove(credential);
            }
        }
    }

    fn width(&self, credential: &CredentialName) -> usize {
        if self.serial.contains_key(credential) {
            1
        } else {
            WIDTH
        }
    }
}

impl Fleet {
    /// The node must hear its newest intent while it is attached and has not accepted it.
    pub(crate) fn intent_effect(node: &Node) -> Option<Effect> {
        (node.soft.session.is_some() && node.soft.accepted < node.generation).then(|| {
            Effect::SendIntent {
                node: node.name.clone(),
                generation: node.generation,
            }
        })
    }

    pub(crate) fn owe_intent(&mut self, ix: NodeIx) {
        if let Some(node) = &self.nodes[ix as usize] {
            let owed = Self::intent_effect(node);
            self.owed.settle_intent(&node.name, owed);
        }
    }

    fn wants_registration(&self, runner: &Runner) -> bool {
        runner.awaits_registration() && !runner.soft.lost
    }

    pub(crate) fn owe_registration(&mut self, name: &RunnerName) {
        let Some(runner) = self.runners.get(name) else {
            return;
        };
        let entry = (runner.soft.order, name.clone());
        let wanted = self.wants_registration(runner);
        let credential = runner.placed.credential.clone();
        let queue = self.owed.queues.entry(credential.clone()).or_default();
        if wanted {
            // Behind the ones on offer it changes nothing yet.
            let far_behind = queue.len() > WIDTH && queue.last().is_some_and(|last| *last < entry);
            if !queue.insert(entry) || far_behind {
                return;
            }
        } else if !queue.remove(&entry) {
            return;
        }
        self.owed.registers.remove(name);
        self.owe_registrations(&credential);
    }

    pub(crate) fn unowe_registration(&mut self, name: &RunnerName, runner: &Runner) {
        let credential = &runner.placed.credential;
        if let Some(queue) = self.owed.queues.get_mut(credential)
            && queue.remove(&(runner.soft.order, name.clone()))
        {
            self.owed.registers.remove(name);
            let credential = credential.clone();
            self.owe_registrations(&credential);
        }
    }

    /// Offers the first registrations of a credential, none while it is limited.
    pub(crate) fn owe_registrations(&mut self, credential: &CredentialName) {
        let Some(queue) = self.owed.queues.get(credential) else {
            return;
        };
        let width = if self.is_limited(credential) {
            0
        } else {
            self.owed.width(credential)
        };
        let offered: Vec<RunnerName> = queue
            .iter()
            .take(WIDTH + 1)
            .map(|(_, name)| name.clone())
            .collect();
        for (place, name) in offered.into_iter().enumerate() {
            if place >= width {
                self.owed.registers.remove(&name);
            } else if !self.owed.registers.contains_key(&name)
                && let Some(effect) = self.registration_effect(&name)
            {
                self.owed.registers.insert(name, effect);
            }
        }
    }

    fn registration_effect(&self, name: &RunnerName) -> Option<Effect> {
        let placed = &self.runners.get(name)?.placed;
        Some(Effect::Register {
            runner: name.clone(),
            scope: placed.scope.clone(),
            credential: placed.credential.clone(),
            labels: placed.labels.clone(),
            runner_group: placed.runner_group.clone(),
        })
    }

    /// A registration to delete: of a retired or given-up runner, or as the second
    /// step of the four-way check.
    fn deregistration_effect(&self, name: &RunnerName) -> Option<Effect> {
        let now = self.soft.last.map_or(0, |now| now.mono);
        let effect = |scope: &Scope, credential: &CredentialName, github_id| {
            Some(Effect::Deregister {
                runner: name.clone(),
                scope: scope.clone(),
                credential: credential.clone(),
                github_id,
            })
        };
        if let Some(orphan) = self.orphans.get(name) {
            let rests = self
                .soft
                .orphan_rests
                .get(name)
                .is_some_and(|(until, _)| *until > now);
            return if rests {
                None
            } else {
                effect(&orphan.scope, &orphan.credential, orphan.github_id)
            };
        }
        let runner = self.runners.get(name)?;
        let due = runner.stops_softly()
            && runner.deregistered.is_none()
            && runner.soft.checked
            && runner.soft.deregister_after <= now;
        if !due {
            return None;
        }
        let id = runner.registered.map(|registered| registered.github_id);
        effect(&runner.placed.scope, &runner.placed.credential, id)
    }

    pub(crate) fn owe_deregistration(&mut self, name: &RunnerName) {
        match self.deregistration_effect(name) {
            Some(effect) => {
                self.owed.deregisters.insert(name.clone(), effect);
            }
            None => {
                self.owed.deregisters.remove(name);
            }
        }
    }

    pub(crate) fn owe_everything(&mut self) {
        let serial = std::mem::take(&mut self.owed.serial);
        self.owed = Owed {
            serial,
            ..Owed::default()
        };
        for ix in 0..self.nodes.len() as NodeIx {
            self.owe_intent(ix);
        }
        let names: Vec<RunnerName> = self
            .runners
            .keys()
            .chain(self.orphans.keys())
            .cloned()
            .collect();
        for name in names {
            self.owe_registration(&name);
            self.owe_deregistration(&name);
        }
    }

    /// Everything owed, computed from the whole state: the oracle of the tests.
    pub fn outstanding_recomputed(&self) -> Vec<Effect> {
        let mut effects = BTreeMap::new();
        for node in self.nodes() {
            if let Some(effect) = Self::intent_effect(node) {
                effects.insert(effect.key(), effect);
            }
        }
        let mut waiting: BTreeMap<&CredentialName, Vec<&Runner>> = BTreeMap::new();
        for (_, runner) in self.runners.unordered() {
            if self.wants_registration(runner) {
                waiting
                    .entry(&runner.placed.credential)
                    .or_default()
                    .push(runner);
            }
        }
        for (credential, mut runners) in waiting {
            if self.is_limited(credential) {
                continue;
            }
            runners.sort_by_key(|runner| runner.soft.order);
            for runner in runners.into_iter().take(self.owed.width(credential)) {
                if let Some(effect) = self.registration_effect(runner.name()) {
                    effects.insert(effect.key(), effect);
                }
            }
        }
        for name in self.runners.keys().chain(self.orphans.keys()) {
            if let Some(effect) = self.deregistration_effect(name) {
                effects.insert(effect.key(), effect);
            }
        }
        effects.into_values().collect()
    }
}
