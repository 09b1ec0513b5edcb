//! What facts about nodes change: what they can carry, hold and must hear.

use super::runners::add;
use crate::{
    fleet::{Fleet, NodeIx},
    model::{Generation, NodeName, Resources, RunnerName},
    state::{Node, NodeSoft},
    timers::Often,
};

impl Fleet {
    pub(super) fn node_slot(&mut self, name: &NodeName) -> NodeIx {
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
            runners: Vec::new(),
            foreign: Vec::new(),
            used: Resources::default(),
            leases: Default::default(),
            leasable: Vec::new(),
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

    pub(super) fn change_node(
        &mut self,
        name: &NodeName,
        change: impl FnOnce(&mut Node),
    ) -> Option<NodeIx> {
        let ix = self.node_ix(name)?;
        change(self.nodes[ix as usize].as_mut()?);
        Some(ix)
    }

    pub(super) fn change_capability(&mut self, ix: NodeIx, capability: &crate::model::Capability) {
        if let Some(node) = &mut self.nodes[ix as usize] {
            node.capability = capability.clone();
            node.list_leasable();
        }
        self.recount_node(ix);
        self.reclass(ix);
    }

    pub(super) fn change_willingness(&mut self, name: &NodeName, change: impl FnOnce(&mut Node)) {
        if let Some(ix) = self.change_node(name, change) {
            self.relist(ix);
            self.bump(ix);
            self.timers.touch(Often::Node(ix));
            self.touch_runners_of(ix);
        }
    }

    pub(super) fn change_reach(&mut self, name: &NodeName, since: Option<u64>) {
        self.ensure_index();
        if let Some(ix) = self.change_node(name, |node| node.unreachable_since = since) {
            self.relist(ix);
            for runner in self.runners_of(ix) {
                self.recount(&runner);
            }
            self.timers.touch(Often::Node(ix));
        }
    }

    pub(super) fn apply_node_removed(&mut self, name: &NodeName) {
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

    /// Ordered by name.
    pub(crate) fn runners_of(&self, ix: NodeIx) -> Vec<RunnerName> {
        let mut names = self.nodes[ix as usize]
            .as_ref()
            .map(|node| node.runners.clone())
            .unwrap_or_default();
        names.sort_unstable();
        names
    }

    /// Adds up what the runners on a node hold.
    pub(super) fn recount_node(&mut self, ix: NodeIx) {
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
}
