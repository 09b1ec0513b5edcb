//! `longshore pool ...` and `longshore share ...`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::units::{parse_cpu, parse_duration, parse_size};

#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// All pools
    List,
    /// Make a pool or change one; what is left out stays as it is
    Set(Box<Set>),
    /// Delete a pool; its runners finish
    Delete(Name),
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    #[arg(value_name = "POOL")]
    pub(crate) name: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Policy {
    Refuse,
    Strict,
    Allow,
}

impl Policy {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Policy::Refuse => "refuse",
            Policy::Strict => "strict",
            Policy::Allow => "allow",
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Priority {
    Low,
    Normal,
    High,
}

impl Priority {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Placement {
    Pack,
    Spread,
}

impl Placement {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Placement::Pack => "pack",
            Placement::Spread => "spread",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    #[arg(value_name = "POOL")]
    pub(crate) name: String,
    /// Labels a job may ask for, repeatable; '' means what the nodes prove
    #[arg(long = "label", value_name = "LABEL", value_delimiter = ',')]
    pub(crate) labels: Option<Vec<String>>,
    /// Repositories served, repeatable, * is a wildcard; '' means all
    #[arg(long = "repository", value_name = "PATTERN", value_delimiter = ',')]
    pub(crate) repositories: Option<Vec<String>>,
    /// Jobs of public repositories
    #[arg(long, value_name = "POLICY", value_enum)]
    pub(crate) public_repositories: Option<Policy>,
    /// Jobs of pull requests from forks
    #[arg(long, value_name = "POLICY", value_enum)]
    pub(crate) fork_pull_requests: Option<Policy>,
    /// Image of the runners
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// GitHub runner group to register in
    #[arg(long, value_name = "NAME")]
    pub(crate) runner_group: Option<String>,
    /// Beginning of the runners' names
    #[arg(long, value_name = "TEXT")]
    pub(crate) name_prefix: Option<String>,
    /// Cores of one runner, for example 1.5
    #[arg(long, value_name = "CORES", value_parser = parse_cpu)]
    pub(crate) cpu: Option<u32>,
    /// Memory of one runner, for example 4g
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,
    /// GPUs of one runner
    #[arg(long, value_name = "N")]
    pub(crate) gpus: Option<u32>,
    /// Least memory of each GPU, for example 40g; 0 means any
    #[arg(long, value_name = "SIZE", value_parser = parse_gpu_memory)]
    pub(crate) gpu_memory: Option<u64>,
    /// Least compute capability of each GPU, for example 8.0; '' means any
    #[arg(long, value_name = "VERSION")]
    pub(crate) gpu_compute_capability: Option<String>,
    /// Words of which a GPU's name must hold one, repeatable; '' means any
    #[arg(long = "gpu-model", value_name = "WORD", value_delimiter = ',')]
    pub(crate) gpu_models: Option<Vec<String>>,
    /// Sandbox profile
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Network mode of the sandbox
    #[arg(long, value_name = "MODE")]
    pub(crate) network_mode: Option<String>,
    /// What runners of network mode allowlist may reach, repeatable; '' means none
    #[arg(long = "allow-domain", value_name = "DOMAIN", value_delimiter = ',')]
    pub(crate) allowed_domains: Option<Vec<String>>,
    /// Class of the runtime that makes the sandboxes: runc, crun, runsc, kata or sysbox;
    /// '' means the engine's own
    #[arg(long, value_name = "CLASS")]
    pub(crate) runtime: Option<String>,
    /// Runners kept idle
    #[arg(long, value_name = "N")]
    pub(crate) idle_floor: Option<u32>,
    /// Most runners at once; 0 means no limit of its own
    #[arg(long, value_name = "N")]
    pub(crate) maximum: Option<u32>,
    /// Band of its jobs
    #[arg(long, value_name = "BAND", value_enum)]
    pub(crate) priority: Option<Priority>,
    /// How runners are spread over nodes
    #[arg(long, value_name = "HOW", value_enum)]
    pub(crate) placement: Option<Placement>,
    /// Properties a node must guarantee, repeatable; '' means none
    #[arg(long = "require", value_name = "PROPERTY", value_delimiter = ',')]
    pub(crate) required_properties: Option<Vec<String>>,
    /// Time after which an idle runner is retired
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Longest life of a runner
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) lifetime: Option<Duration>,
    /// Serve jobs that ask for [self-hosted] alone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) bare_self_hosted: Option<bool>,
    /// Only check it
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Share {
    /// Set the weight of an owner or a repository
    Set(SetShare),
}

#[derive(Debug, Args)]
pub(crate) struct SetShare {
    /// owner or owner/name
    #[arg(value_name = "SUBJECT")]
    pub(crate) subject: String,
    /// Its part relative to the others
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) weight: u32,
    /// Most runners at once; 0 means no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) maximum: u32,
}

/// MiB of a size; `0` lifts the bound.
fn parse_gpu_memory(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => parse_size(text).map(|bytes| bytes.div_ceil(1 << 20)),
    }
}
