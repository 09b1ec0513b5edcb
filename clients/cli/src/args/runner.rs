//! `longshore runner ...`: the predecessor's seven verbs, and logs.

use clap::{Args, Subcommand};

use super::local::Local;
use crate::units::parse_size;

#[derive(Debug, Subcommand)]
pub(crate) enum Runner {
    /// Turn scaling on; starts a scheduler and a node agent here if none answers
    Start(Box<Start>),
    /// Turn scaling off; jobs that run finish
    Stop,
    /// What the fleet does now (JSON when piped)
    Status,
    /// Workflow runs of each repository (JSON when piped)
    ListWorkflows(ListWorkflows),
    /// Containers of runners (JSON when piped)
    ListContainers(ListContainers),
    /// Start runners beyond demand, for ten minutes
    Provision(Provision),
    /// Stop one container; the job in it is cancelled
    StopContainer(StopContainer),
    /// What a runner wrote, also after it is gone; -o json: an object for each line
    Logs(Logs),
}

/// Settings of the scaling. What is left out stays as it is.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Scaling {
    /// User or organisation to watch, repeatable; all accessible repositories without it
    #[arg(long = "owner", value_name = "NAME", value_delimiter = ',')]
    pub(crate) owners: Vec<String>,
    /// Seconds between sweeps of GitHub's REST API
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) interval: Option<u64>,
    /// Sweep only repositories updated in the last N days
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=365))]
    pub(crate) since_days: Option<u32>,
    /// Most runners at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_runners: Option<u32>,
    /// Image of pools that name none
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) scaling: Scaling,
    /// Return once it runs; a pid file and a log file lie in the state folder
    #[arg(long)]
    pub(crate) background: bool,
    /// Only check the settings
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) local: Local,
}

#[derive(Debug, Args)]
pub(crate) struct ListWorkflows {
    /// Only repositories of this owner
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ListContainers {
    /// Only runners of this repository
    #[arg(long, value_name = "OWNER/REPO", value_parser = super::parse_repo)]
    pub(crate) repo: Option<String>,
    /// Only runners on this node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Finished runners too, and those without a container yet
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Provision {
    /// For this repository; without it for all with waiting jobs
    #[arg(long, value_name = "OWNER/REPO")]
    pub(crate) repo: Option<String>,
    /// How many runners
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) count: u32,
    /// From this pool
    #[arg(long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// With these labels, repeatable
    #[arg(long = "label", value_name = "LABEL", value_delimiter = ',')]
    pub(crate) labels: Vec<String>,
    /// Only say what would start
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopContainer {
    /// Container id or runner name, or the beginning of one
    #[arg(long, value_name = "ID")]
    pub(crate) container: String,
    /// Why; kept in the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Runner name or container id, or the beginning of one
    #[arg(value_name = "RUNNER")]
    pub(crate) name: String,
    /// Go on until the runner ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last part, for example 16k
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) tail: Option<u64>,
}
