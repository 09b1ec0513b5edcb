//! Starting and stopping a fleet on this host.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::runner::Scaling;

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) scaling: Scaling,
    #[command(flatten)]
    pub(crate) local: Local,
    /// Started by `runner start --background`: report on stdout as JSON and go on
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Folder of state, pid file and log
    #[arg(long, value_name = "DIR", env = "LONGSHORE_HOME", hide_env = true)]
    pub(crate) state_dir: Option<PathBuf>,
}

/// The processes on this host.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "When it starts the processes itself")]
pub(crate) struct Local {
    /// Folder of state, pid file and log [default: /var/lib/longshore for root, else ~/.local/state/longshore]
    #[arg(long, value_name = "DIR", env = "LONGSHORE_HOME", hide_env = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// The scheduler's configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The node agent's configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) agent_config: Option<PathBuf>,
    /// Where node agents reach the scheduler [default: 127.0.0.1:9001]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node_listen: Option<SocketAddr>,
    /// Where GitHub's webhooks arrive [default: 127.0.0.1:9002]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) webhook_listen: Option<SocketAddr>,
    /// GitHub's API, when it is not github.com
    #[arg(long, value_name = "URL")]
    pub(crate) github_api_url: Option<String>,
    /// File with a GitHub token; the environment's GITHUB_TOKEN serves too
    #[arg(long, value_name = "FILE")]
    pub(crate) github_token_file: Option<PathBuf>,
    /// Number of the GitHub App
    #[arg(long, value_name = "N", requires = "github_app_key_file")]
    pub(crate) github_app_id: Option<u64>,
    /// File with the App's private key
    #[arg(long, value_name = "FILE", requires = "github_app_id")]
    pub(crate) github_app_key_file: Option<PathBuf>,
    /// File with a webhook secret, repeatable
    #[arg(long = "webhook-secret-file", value_name = "FILE")]
    pub(crate) webhook_secret_files: Vec<PathBuf>,
    /// Name of this host in the fleet
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Socket of the container engine
    #[arg(long, value_name = "PATH")]
    pub(crate) engine_socket: Option<PathBuf>,
    /// Addresses the runners' networks are cut from
    #[arg(long, value_name = "CIDR")]
    pub(crate) slots_cidr: Option<String>,
    /// Show the processes' logs here too
    #[arg(long)]
    pub(crate) verbose: bool,
}
