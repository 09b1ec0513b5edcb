//! `explain`: why a job waits, node by node.

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::job::Job;
use super::time;
use crate::output::{Described, Page, Table};

#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    job: Job,
    summary: String,
    reason: String,
    next_step: String,
    not_before: Option<String>,
    nodes: Vec<Node>,
    pools: Vec<Pool>,
}

#[derive(Debug, Serialize)]
struct Node {
    node: String,
    feasible: bool,
    reasons: Vec<Reason>,
}

#[derive(Debug, Serialize)]
struct Pool {
    pool: String,
    admits: bool,
    reasons: Vec<Reason>,
}

#[derive(Debug, Serialize)]
struct Reason {
    code: String,
    detail: String,
    unblocked_by: String,
}

fn reasons(list: Vec<v1::Reason>) -> Vec<Reason> {
    list.into_iter()
        .map(|r| Reason {
            code: r.code,
            detail: r.detail,
            unblocked_by: r.unblocked_by,
        })
        .collect()
}

impl From<v1::ExplainJobResponse> for Explanation {
    fn from(e: v1::ExplainJobResponse) -> Explanation {
        Explanation {
            job: e.job.unwrap_or_default().into(),
            summary: e.summary,
            reason: e.reason,
            next_step: e.next_step,
            not_before: time(e.not_before.as_ref()),
            nodes: e
                .nodes
                .into_iter()
                .map(|n| Node {
                    node: n.node,
                    feasible: n.feasible,
                    reasons: reasons(n.reasons),
                })
                .collect(),
            pools: e
                .pools
                .into_iter()
                .map(|p| Pool {
                    pool: p.pool,
                    admits: p.admits,
                    reasons: reasons(p.reasons),
                })
                .collect(),
        }
    }
}

/// One row for each reason; one row in all when there is none.
fn rows(table: &mut Table, name: &str, yes: bool, reasons: &[Reason]) {
    let verdict = if yes { "yes" } else { "no" };
    let mut first = vec![name.to_owned(), verdict.to_owned()];
    if reasons.is_empty() {
        first.extend([String::new(), String::new(), String::new()]);
        table.row(first);
        return;
    }
    for reason in reasons {
        let mut cells = first.clone();
        cells.extend([
            reason.code.clone(),
            reason.detail.clone(),
            reason.unblocked_by.clone(),
        ]);
        table.row(cells);
    }
}

impl Described for Explanation {
    fn describe(&self, page: &mut Page, now: Timestamp) {
        self.job.heading(page, now);
        page.line("Reason", self.reason.clone());
        page.line("Why", self.summary.clone());
        page.line("Next", self.next_step.clone());
        page.line("Not before", self.not_before.clone().unwrap_or_default());
        let mut pools = Table::new(&["POOL", "ADMITS", "REASON", "DETAIL", "UNBLOCKED BY"]);
        for p in &self.pools {
            rows(&mut pools, &p.pool, p.admits, &p.reasons);
        }
        page.table("Pools", pools);
        let mut nodes = Table::new(&["NODE", "CAN RUN IT", "REASON", "DETAIL", "UNBLOCKED BY"]);
        for n in &self.nodes {
            rows(&mut nodes, &n.node, n.feasible, &n.reasons);
        }
        page.table("Nodes", nodes);
    }

    fn name(&self) -> String {
        self.reason.clone()
    }
}
