//! What the commands print: the JSON fields and the columns. Field names are a
//! contract; they are added to, never renamed.

pub(crate) mod audit;
pub(crate) mod check;
mod denied;
pub(crate) mod explain;
pub(crate) mod job;
pub(crate) mod join_token;
pub(crate) mod node;
pub(crate) mod outcome;
pub(crate) mod pool;
pub(crate) mod provisioned;
pub(crate) mod queue;
pub(crate) mod runner;
pub(crate) mod status;
pub(crate) mod token;

use std::collections::{BTreeMap, HashMap};

use longshore_proto::v1;
use prost_types::Timestamp;
use serde::Serialize;

use crate::units;

pub(crate) use denied::Denied;

/// What a runner may take or a node offers.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Resources {
    pub(crate) cpu_millis: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) gpus: u32,
}

impl From<v1::Resources> for Resources {
    fn from(r: v1::Resources) -> Resources {
        Resources {
            cpu_millis: r.cpu_millis,
            memory_bytes: r.memory_bytes,
            gpus: r.gpus,
        }
    }
}

impl Resources {
    /// `2 CPU, 4 GiB`.
    fn text(&self) -> String {
        let mut text = format!(
            "{} CPU, {}",
            units::show_cpu(self.cpu_millis),
            units::show_bytes(self.memory_bytes)
        );
        if self.gpus > 0 {
            text.push_str(&format!(", {} GPU", self.gpus));
        }
        text
    }
}

fn time(t: Option<&Timestamp>) -> Option<String> {
    t.and_then(units::rfc3339)
}

/// A stable order, so that the same state gives the same bytes.
fn sorted(map: HashMap<String, u32>) -> BTreeMap<String, u32> {
    map.into_iter().collect()
}

fn none_if_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
