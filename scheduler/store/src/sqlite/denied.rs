//! What a runner was denied, as the JSON of one column.

use scheduler_core::model::{Denied, DeniedDestination};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) struct Row {
    total: u64,
    more: bool,
    /// Destination, protocol, port, count, reason.
    list: Vec<(String, String, u16, u64, String)>,
}

pub(super) fn row(denied: &Denied) -> Row {
    let one = |d: &DeniedDestination| {
        (
            d.destination.clone(),
            d.protocol.clone(),
            d.port,
            d.count,
            d.reason.clone(),
        )
    };
    Row {
        total: denied.total,
        more: denied.more,
        list: denied.destinations.iter().map(one).collect(),
    }
}

pub(super) fn back(row: Row) -> Denied {
    let one = |(destination, protocol, port, count, reason)| DeniedDestination {
        destination,
        protocol,
        port,
        count,
        reason,
    };
    Denied {
        total: row.total,
        more: row.more,
        destinations: row.list.into_iter().map(one).collect(),
    }
}
