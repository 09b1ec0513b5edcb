//! What nodes say about themselves for people: kept beside the core, which decides on less.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use longshore_proto::v1;
use scheduler_core::model::{NodeName, UtcMillis};

/// The last words of one node to this process.
#[derive(Clone, Debug, Default)]
pub struct Vital {
    pub capability: Option<v1::Capability>,
    pub last_report: Option<UtcMillis>,
    /// Node's clock minus ours.
    pub clock_offset_ms: i64,
}

/// The last words of all nodes.
#[derive(Debug, Default)]
pub struct Vitals {
    nodes: Mutex<BTreeMap<NodeName, Vital>>,
}

impl Vitals {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Vital>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a node's word.
    pub fn heard(
        &self,
        node: &NodeName,
        capability: Option<&v1::Capability>,
        at: UtcMillis,
        clock_offset_ms: i64,
    ) {
        let mut nodes = self.lock();
        let vital = nodes.entry(node.clone()).or_default();
        if let Some(capability) = capability {
            vital.capability = Some(capability.clone());
        }
        vital.last_report = Some(at);
        vital.clock_offset_ms = clock_offset_ms;
    }

    pub fn of(&self, node: &NodeName) -> Vital {
        self.lock().get(node).cloned().unwrap_or_default()
    }

    pub fn forget(&self, node: &NodeName) {
        self.lock().remove(node);
    }
}
