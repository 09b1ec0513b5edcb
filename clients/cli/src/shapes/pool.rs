//! `pool list`, `pool set`.

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::Resources;
use crate::output::{Described, Listed, Page};
use crate::units;

#[derive(Debug, Serialize)]
pub(crate) struct Pool {
    name: String,
    origin: String,
    labels: Vec<String>,
    repositories: Vec<String>,
    public_repositories: String,
    fork_pull_requests: String,
    image: String,
    runner_group: String,
    name_prefix: String,
    resources: Resources,
    gpu: GpuNeeds,
    profile: String,
    network_mode: String,
    idle_floor: u32,
    maximum: u32,
    priority: String,
    placement: String,
    required_properties: Vec<String>,
    idle_timeout_seconds: Option<f64>,
    lifetime_seconds: Option<f64>,
    bare_self_hosted: bool,
    runners: u32,
    allowed_domains: Vec<String>,
    runtime: String,
}

/// What each GPU must have; 0 and empty mean any.
#[derive(Debug, Serialize)]
struct GpuNeeds {
    memory_mib: u64,
    compute_capability: String,
    models: Vec<String>,
}

impl From<v1::GpuNeeds> for GpuNeeds {
    fn from(n: v1::GpuNeeds) -> GpuNeeds {
        GpuNeeds {
            memory_mib: n.memory_mib,
            compute_capability: n.compute_capability,
            models: n.models,
        }
    }
}

impl GpuNeeds {
    /// `40960 MiB, 8.0 or higher, H100 or A100`; empty for any.
    fn text(&self) -> String {
        let mut parts = Vec::new();
        if self.memory_mib > 0 {
            parts.push(format!("{} MiB", self.memory_mib));
        }
        if !self.compute_capability.is_empty() {
            parts.push(format!("{} or higher", self.compute_capability));
        }
        if !self.models.is_empty() {
            parts.push(self.models.join(" or "));
        }
        parts.join(", ")
    }
}

impl From<v1::Pool> for Pool {
    fn from(p: v1::Pool) -> Pool {
        Pool {
            name: p.name,
            origin: p.origin,
            labels: p.labels,
            repositories: p.repositories,
            public_repositories: p.public_repositories,
            fork_pull_requests: p.fork_pull_requests,
            image: p.image,
            runner_group: p.runner_group,
            name_prefix: p.name_prefix,
            resources: p.resources.unwrap_or_default().into(),
            gpu: p.gpu.unwrap_or_default().into(),
            profile: p.profile,
            network_mode: p.network_mode,
            idle_floor: p.idle_floor,
            maximum: p.maximum,
            priority: p.priority,
            placement: p.placement,
            required_properties: p.required_properties,
            idle_timeout_seconds: p.idle_timeout.as_ref().map(units::seconds),
            lifetime_seconds: p.lifetime.as_ref().map(units::seconds),
            bare_self_hosted: p.bare_self_hosted,
            runners: p.runners,
            allowed_domains: p.allowed_domains,
            runtime: p.runtime,
        }
    }
}

fn or(list: &[String], empty: &str) -> String {
    if list.is_empty() {
        empty.to_owned()
    } else {
        list.join(",")
    }
}

fn limit(n: u32) -> String {
    if n == 0 { String::new() } else { n.to_string() }
}

fn duration(seconds: Option<f64>) -> String {
    seconds.map(|s| units::exact(s as u64)).unwrap_or_default()
}

impl Listed for Pool {
    const COLUMNS: &'static [&'static str] = &[
        "POOL",
        "LABELS",
        "REPOSITORIES",
        "RUNNER",
        "RUNNERS",
        "MAXIMUM",
        "IDLE",
        "PRIORITY",
        "ORIGIN",
    ];
    const WIDE: &'static [&'static str] = &["PROFILE", "PUBLIC", "FORKS", "PLACEMENT", "IMAGE"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.name.clone(),
            or(&self.labels, "(proven)"),
            or(&self.repositories, "*"),
            self.resources.text(),
            self.runners.to_string(),
            limit(self.maximum),
            self.idle_floor.to_string(),
            self.priority.clone(),
            self.origin.clone(),
        ]
    }

    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.profile.clone(),
            self.public_repositories.clone(),
            self.fork_pull_requests.clone(),
            self.placement.clone(),
            self.image.clone(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Described for Pool {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        page.line("Pool", self.name.clone());
        page.line("Origin", self.origin.clone());
        page.line("Labels", or(&self.labels, "what its nodes prove"));
        page.line("Repositories", or(&self.repositories, "all"));
        page.line("Public repositories", self.public_repositories.clone());
        page.line("Fork pull requests", self.fork_pull_requests.clone());
        page.line("Image", self.image.clone());
        page.line("Runner group", self.runner_group.clone());
        page.line("Name prefix", self.name_prefix.clone());
        page.line("One runner", self.resources.text());
        page.line("Each GPU", self.gpu.text());
        page.line("Profile", self.profile.clone());
        page.line("Network mode", self.network_mode.clone());
        page.line("Allowed domains", self.allowed_domains.join(", "));
        page.line("Runtime", self.runtime.clone());
        page.line("Idle floor", self.idle_floor.to_string());
        page.line("Maximum", limit(self.maximum));
        page.line("Priority", self.priority.clone());
        page.line("Placement", self.placement.clone());
        page.line("Requires", self.required_properties.join(", "));
        page.line("Idle timeout", duration(self.idle_timeout_seconds));
        page.line("Lifetime", duration(self.lifetime_seconds));
        if self.bare_self_hosted {
            page.line("Bare self-hosted", "served");
        }
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
