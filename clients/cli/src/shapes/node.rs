//! `node list`, `node describe`.

use jiff::Timestamp;
use longshore_proto::v1;
use longshore_proto::v1::property::State;
use serde::Serialize;

use super::{Resources, time};
use crate::output::{Described, Listed, Page, Table};
use crate::units;

#[derive(Debug, Serialize)]
pub(crate) struct Node {
    name: String,
    state: String,
    arch: String,
    os: String,
    labels: Vec<String>,
    capacity: Resources,
    free: Resources,
    runners: u32,
    max_runners: u32,
    last_report: Option<String>,
    clock_offset_seconds: Option<f64>,
    drain_deadline: Option<String>,
    engine: Option<Engine>,
    gpus: Vec<Gpu>,
    conditions: Vec<Condition>,
    properties: Vec<Property>,
    evidence: Vec<Evidence>,
    agent_version: String,
    kernel: String,
    hostname: String,
    #[serde(skip)]
    reported: Option<prost_types::Timestamp>,
}

#[derive(Debug, Serialize)]
struct Engine {
    kind: String,
    version: String,
    api_version: String,
    cgroup_version: u32,
    storage_driver: String,
    live_restore: bool,
}

#[derive(Debug, Serialize)]
struct Gpu {
    uuid: String,
    product: String,
    brand: String,
    architecture: String,
    memory_mib: u64,
    compute_capability: String,
    driver_version: String,
    cuda_version: String,
    pci_bus_id: String,
    numa_node: Option<u32>,
    /// The GPU that a MIG instance is cut from.
    parent_uuid: String,
    mig_profile: String,
    proven: bool,
    /// Why it is not offered; absent when it is.
    withheld: Option<Condition>,
}

#[derive(Debug, Serialize)]
struct Condition {
    kind: String,
    detail: String,
    next_step: String,
}

#[derive(Debug, Serialize)]
struct Property {
    name: String,
    state: &'static str,
    evidence: String,
}

#[derive(Debug, Serialize)]
struct Evidence {
    subject: String,
    source: String,
    finding: String,
}

fn property_word(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Guaranteed => "guaranteed",
        State::NotGuaranteed => "not_guaranteed",
        State::Failed => "failed",
    }
}

impl From<v1::Node> for Node {
    fn from(n: v1::Node) -> Node {
        let c = n.capability.unwrap_or_default();
        Node {
            name: n.name,
            state: n.state,
            arch: c.arch,
            os: c.os,
            labels: c.labels,
            capacity: c.capacity.unwrap_or_default().into(),
            free: n.free.unwrap_or_default().into(),
            runners: n.runners,
            max_runners: c.max_runners,
            last_report: time(n.last_report.as_ref()),
            clock_offset_seconds: n.clock_offset.as_ref().map(units::seconds),
            drain_deadline: time(n.drain_deadline.as_ref()),
            engine: c.engine.map(|e| Engine {
                kind: e.kind,
                version: e.version,
                api_version: e.api_version,
                cgroup_version: e.cgroup_version,
                storage_driver: e.storage_driver,
                live_restore: e.live_restore,
            }),
            gpus: c
                .gpus
                .into_iter()
                .map(|g| Gpu {
                    uuid: g.uuid,
                    product: g.product,
                    brand: g.brand,
                    architecture: g.architecture,
                    memory_mib: g.memory_mib,
                    compute_capability: g.compute_capability,
                    driver_version: g.driver_version,
                    cuda_version: g.cuda_version,
                    pci_bus_id: g.pci_bus_id,
                    numa_node: g.numa_node,
                    parent_uuid: g.parent_uuid,
                    mig_profile: g.mig_profile,
                    proven: g.proven,
                    withheld: g.withheld.map(|c| Condition {
                        kind: c.kind,
                        detail: c.detail,
                        next_step: c.next_step,
                    }),
                })
                .collect(),
            conditions: n
                .conditions
                .into_iter()
                .map(|c| Condition {
                    kind: c.kind,
                    detail: c.detail,
                    next_step: c.next_step,
                })
                .collect(),
            properties: c
                .properties
                .into_iter()
                .map(|p| Property {
                    state: property_word(p.state()),
                    name: p.name,
                    evidence: p.evidence,
                })
                .collect(),
            evidence: c
                .evidence
                .into_iter()
                .map(|e| Evidence {
                    subject: e.subject,
                    source: e.source,
                    finding: e.finding,
                })
                .collect(),
            agent_version: c.agent_version,
            kernel: c.kernel,
            hostname: c.hostname,
            reported: n.last_report,
        }
    }
}

impl Node {
    /// `docker 20.10.24`.
    fn engine_text(&self) -> String {
        match &self.engine {
            Some(e) => format!("{} {}", e.kind, e.version),
            None => String::new(),
        }
    }

    fn runners_text(&self) -> String {
        if self.max_runners > 0 {
            format!("{}/{}", self.runners, self.max_runners)
        } else {
            self.runners.to_string()
        }
    }
}

impl Listed for Node {
    const COLUMNS: &'static [&'static str] = &[
        "NODE",
        "STATE",
        "ARCH",
        "RUNNERS",
        "FREE CPU",
        "FREE MEMORY",
        "GPUS",
        "REPORT",
    ];
    const WIDE: &'static [&'static str] = &["LABELS", "ENGINE", "AGENT", "CONDITIONS"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.name.clone(),
            self.state.clone(),
            self.arch.clone(),
            self.runners_text(),
            format!(
                "{}/{}",
                units::show_cpu(self.free.cpu_millis),
                units::show_cpu(self.capacity.cpu_millis)
            ),
            format!(
                "{}/{}",
                units::show_bytes(self.free.memory_bytes),
                units::show_bytes(self.capacity.memory_bytes)
            ),
            format!("{}/{}", self.free.gpus, self.capacity.gpus),
            units::age(self.reported.as_ref(), now),
        ]
    }

    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        let conditions: Vec<_> = self.conditions.iter().map(|c| c.kind.as_str()).collect();
        vec![
            self.labels.join(","),
            self.engine_text(),
            self.agent_version.clone(),
            conditions.join(","),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Described for Node {
    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.line("Node", self.name.clone());
        page.line("State", self.state.clone());
        page.line("Host", self.hostname.clone());
        page.line(
            "Kernel",
            format!("{} {}, {}", self.os, self.kernel, self.arch),
        );
        page.line("Labels", self.labels.join(", "));
        page.line("Capacity", self.capacity.text());
        page.line("Free", self.free.text());
        page.line("Runners", self.runners_text());
        if let Some(e) = &self.engine {
            page.line(
                "Engine",
                format!(
                    "{} {}, API {}, cgroup v{}, {}, live-restore {}",
                    e.kind,
                    e.version,
                    e.api_version,
                    e.cgroup_version,
                    e.storage_driver,
                    if e.live_restore { "on" } else { "off" }
                ),
            );
        }
        page.line("Agent", self.agent_version.clone());
        page.line(
            "Last report",
            format!("{} ago", units::age(self.reported.as_ref(), now)),
        );
        if let Some(offset) = self.clock_offset_seconds {
            page.line("Clock offset", format!("{offset:.3} s"));
        }
        page.line(
            "Drained by",
            self.drain_deadline.clone().unwrap_or_default(),
        );
        let mut conditions = Table::new(&["CONDITION", "DETAIL", "NEXT STEP"]);
        for c in &self.conditions {
            conditions.row(vec![c.kind.clone(), c.detail.clone(), c.next_step.clone()]);
        }
        page.table("Conditions", conditions);
        let mut gpus = Table::new(&[
            "GPU", "PRODUCT", "MEMORY", "COMPUTE", "DRIVER", "CUDA", "PROVEN", "OFFERED",
        ]);
        for g in &self.gpus {
            gpus.row(vec![
                g.uuid.clone(),
                g.product.clone(),
                format!("{} MiB", g.memory_mib),
                g.compute_capability.clone(),
                g.driver_version.clone(),
                g.cuda_version.clone(),
                if g.proven { "yes" } else { "no" }.to_owned(),
                match &g.withheld {
                    Some(c) => format!("no: {}", c.kind),
                    None if g.proven => "yes".to_owned(),
                    None => "no".to_owned(),
                },
            ]);
        }
        page.table("GPUs", gpus);
        let mut properties = Table::new(&["PROPERTY", "STATE", "EVIDENCE"]);
        // What holds under a runtime that is not the engine's own is summed up by
        // runtime_NAME; the list of it is in the other forms of output.
        for p in self.properties.iter().filter(|p| !p.name.contains('/')) {
            properties.row(vec![p.name.clone(), p.state.to_owned(), p.evidence.clone()]);
        }
        page.table("Sandbox", properties);
        let mut evidence = Table::new(&["SUBJECT", "SOURCE", "FINDING"]);
        for e in &self.evidence {
            evidence.row(vec![e.subject.clone(), e.source.clone(), e.finding.clone()]);
        }
        page.table("Evidence", evidence);
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
