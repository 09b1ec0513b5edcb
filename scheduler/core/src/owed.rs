//! What the state owes the world, kept as it changes; recomputed as the oracle.

use std::collections::BTreeMap;

use crate::{
    effect::Effect,
    fleet::{Fleet, NodeIx},
    model::{CredentialName, Generation, NodeName, RunnerName, Scope},
    ordered::Ordered,
    state::{Node, Runner},
    table::Slot,
};

/// Registration calls in flight per credential.
const WIDTH: usize = 8;
/// Registrations in a row after which a credential that hit a limit goes wide again.
const CALM_AFTER: u32 = 8;

#[derive(Debug, Default)]
pub(crate) struct Owed {
    registers: BTreeMap<RunnerName, Effect>,
    deregisters: BTreeMap<RunnerName, Effect>,
    intents: Vec<(NodeIx, Effect)>,
    /// By node: place and one among the intents; 0 is none.
    intent_at: Vec<u32>,
    /// Registrations owed per credential in order of placement; the first few are offered.
    queues: BTreeMap<CredentialName, Ordered<(u64, Slot)>>,
    /// Soft: registrations still to be answered one by one after a secondary limit.
    serial: BTreeMap<CredentialName, u32>,
}

impl Owed {
    /// In the order of their keys.
    pub(crate) fn effects(&self) -> impl Iterator<Item = &Effect> {
        let mut intents: Vec<&Effect> = self.intents.iter().map(|(_, effect)| effect).collect();
        intents.sort_unstable();
        self.registers
            .values()
            .chain(self.deregisters.values())
            .chain(intents)
    }

    /// The one intent of each node that it has not accepted.
    pub(crate) fn settle_intent(&mut self, ix: NodeIx, owed: Option<(&NodeName, Generation)>) {
        if self.intent_at.len() <= ix as usize {
            self.intent_at.resize(ix as usize + 1, 0);
        }
        let at = self.intent_at[ix as usize];
        let known = at.checked_sub(1).map(|at| at as usize);
        match (known, owed) {
            (Some(at), Some((_, newest))) => {
                if let Effect::SendIntent { generation, .. } = &mut self.intents[at].1 {
                    *generation = newest;
                }
            }
            (None, Some((node, generation))) => {
                let effect = Effect::SendIntent {
                    node: node.clone(),
                    generation,
                };
                self.intents.push((ix, effect));
                self.intent_at[ix as usize] = self.intents.len() as u32;
            }
            (Some(hole), None) => {
                self.intents.swap_remove(hole);
                self.intent_at[ix as usize] = 0;
                if let Some((moved, _)) = self.intents.get(hole) {
                    self.intent_at[*moved as usize] = at;
                }
            }
            (None, None) => {}
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

fn registration_effect(runner: &Runner) -> Effect {
    let placed = &runner.placed;
    Effect::Register {
        runner: placed.runner.clone(),
        scope: Scope::clone(&placed.scope),
        credential: placed.credential.clone(),
        labels: placed.labels.clone(),
        runner_group: placed.runner_group.clone(),
    }
}

impl Fleet {
    /// The node must hear its newest intent while it is attached and has not accepted it.
    fn intent_owed(node: &Node) -> Option<(&NodeName, Generation)> {
        (node.soft.session.is_some() && node.soft.accepted < node.generation)
            .then_some((&node.name, node.generation))
    }

    pub(crate) fn owe_intent(&mut self, ix: NodeIx) {
        if let Some(node) = &self.nodes[ix as usize] {
            self.owed.settle_intent(ix, Self::intent_owed(node));
        }
    }

    fn wants_registration(&self, runner: &Runner) -> bool {
        runner.awaits_registration() && !runner.soft.lost
    }

    pub(crate) fn owe_registration(&mut self, name: &RunnerName) {
        if let Some(slot) = self.runners.slot(name) {
            self.owe_registration_at(slot);
        }
    }

    pub(crate) fn owe_registration_at(&mut self, slot: Slot) {
        let Some((name, runner)) = self.runners.at(slot) else {
            return;
        };
        let entry = (runner.soft.order, slot);
        let wanted = self.wants_registration(runner);
        let credential = &runner.placed.credential;
        match self.owed.queues.get_mut(credential) {
            Some(queue) if wanted => {
                // Behind the ones on offer it changes nothing yet.
                let far_behind =
                    queue.len() > WIDTH && queue.last().is_some_and(|last| last < entry);
                if !queue.insert(entry) || far_behind {
                    return;
                }
            }
            Some(queue) => {
                if !queue.remove(entry) {
                    return;
                }
            }
            None if wanted => {
                let queue = self.owed.queues.entry(credential.clone()).or_default();
                queue.insert(entry);
            }
            None => return,
        }
        self.owed.registers.remove(name);
        let credential = credential.clone();
        self.owe_registrations(&credential);
    }

    pub(crate) fn unowe_registration(&mut self, name: &RunnerName, runner: &Runner) {
        let credential = &runner.placed.credential;
        if let Some(queue) = self.owed.queues.get_mut(credential)
            && let Some(entry) = queue.at_or_after((runner.soft.order, 0))
            && entry.0 == runner.soft.order
        {
            queue.remove(entry);
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
        let runners = &self.runners;
        let offered = queue.iter().take(WIDTH + 1);
        let offered = offered.filter_map(|(_, slot)| runners.at(slot));
        for (place, (name, runner)) in offered.enumerate() {
            if place >= width {
                self.owed.registers.remove(name);
            } else if !self.owed.registers.contains_key(name) {
                let effect = registration_effect(runner);
                self.owed.registers.insert(name.clone(), effect);
            }
        }
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
            if let Some((node, generation)) = Self::intent_owed(node) {
                let node = node.clone();
                let effect = Effect::SendIntent { node, generation };
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
                let effect = registration_effect(runner);
                effects.insert(effect.key(), effect);
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
