//! What a runner tried to reach and was not let: of `job describe` and of a runner.

use longshore_proto::v1;
use serde::Serialize;

use crate::output::{Page, Table};

/// `total` is null where the node cannot tell.
#[derive(Debug, Serialize)]
pub(crate) struct Denied {
    total: Option<u64>,
    destinations: Vec<Destination>,
    more: bool,
}

#[derive(Debug, Serialize)]
struct Destination {
    destination: String,
    protocol: String,
    port: Option<u32>,
    count: u64,
    reason: String,
}

impl From<v1::DeniedEgress> for Denied {
    fn from(d: v1::DeniedEgress) -> Denied {
        Denied {
            total: d.known.then_some(d.total),
            destinations: d.destinations.into_iter().map(Destination::from).collect(),
            more: d.more,
        }
    }
}

impl From<v1::DeniedDestination> for Destination {
    fn from(d: v1::DeniedDestination) -> Destination {
        Destination {
            destination: d.destination,
            protocol: d.protocol,
            port: (d.port != 0).then_some(d.port),
            count: d.count,
            reason: d.reason,
        }
    }
}

impl Denied {
    /// A line for the total, then one for each destination.
    pub(crate) fn show(&self, page: &mut Page) {
        let Some(total) = self.total else {
            page.line("Denied", "unknown: the node cannot count it".to_owned());
            return;
        };
        page.line("Denied", format!("{total} packets and requests"));
        let mut table = Table::new(&["DESTINATION", "PORT", "COUNT", "REASON"]);
        for d in &self.destinations {
            table.row(vec![
                d.destination.clone(),
                match d.port {
                    Some(port) => format!("{port}/{}", d.protocol),
                    None => d.protocol.clone(),
                },
                d.count.to_string(),
                d.reason.clone(),
            ]);
        }
        let heading = if self.more {
            "Denied, the most tried of them"
        } else {
            "Denied"
        };
        page.table(heading, table);
    }
}
