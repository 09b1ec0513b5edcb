//! The command line as types.

pub(crate) mod job;
pub(crate) mod local;
pub(crate) mod node;
pub(crate) mod pool;
pub(crate) mod runner;
pub(crate) mod token;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::exit;
use crate::output::Format;
use crate::units::parse_timeout;

/// Runs GitHub Actions jobs on your own machines, each in a fresh container.
#[derive(Debug, Parser)]
#[command(
    name = "longshore",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = exit::HELP
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Address of the scheduler's API listener
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "URL",
        env = "LONGSHORE_ADDRESS",
        hide_env = true,
        default_value = longshore_client::DEFAULT_ADDRESS
    )]
    pub(crate) scheduler: String,
    /// File that holds the token to call with; a fleet on this host has one of its own
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "FILE",
        env = "LONGSHORE_TOKEN_FILE",
        hide_env = true
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Authority of the certificate of an https scheduler, PEM
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "FILE",
        env = "LONGSHORE_CA_FILE",
        hide_env = true
    )]
    pub(crate) ca_file: Option<PathBuf>,
    /// Longest wait for an answer, for example 30s
    #[arg(long, global = true, help_heading = "Everywhere", value_name = "DURATION", default_value = "10s", value_parser = parse_timeout)]
    pub(crate) timeout: Duration,
    /// How results are written [default: table]
    #[arg(
        short,
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "FORMAT",
        value_enum
    )]
    pub(crate) output: Option<Format>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a scheduler and a node agent on this host, until Ctrl-C
    Up(Box<local::Up>),
    /// Stop what `up` or `runner start --background` started on this host
    Down(local::Down),
    /// Scaling and the containers of jobs
    #[command(
        subcommand,
        arg_required_else_help = true,
        disable_help_subcommand = true
    )]
    Runner(runner::Runner),
    /// The machines
    #[command(
        subcommand,
        arg_required_else_help = true,
        disable_help_subcommand = true
    )]
    Node(node::Node),
    /// Jobs as GitHub reports them
    #[command(
        subcommand,
        arg_required_else_help = true,
        disable_help_subcommand = true
    )]
    Job(job::Job),
    /// Why a job waits, and what would unblock it
    Explain(job::Explain),
    /// What kinds of runners there are
    #[command(
        subcommand,
        arg_required_else_help = true,
        disable_help_subcommand = true
    )]
    Pool(pool::Pool),
    /// How owners and repositories share the machines
    #[command(
        subcommand,
        arg_required_else_help = true,
        disable_help_subcommand = true
    )]
    Share(pool::Share),
    /// Who may call the fleet, and what
    #[command(
        subcommand,
        arg_required_else_help = true,
        disable_help_subcommand = true
    )]
    Token(token::Token),
    /// Who did what, and who was denied
    #[command(
        subcommand,
        arg_required_else_help = true,
        disable_help_subcommand = true
    )]
    Audit(token::Audit),
    /// Whom the scheduler takes this caller for
    Whoami,
}

/// `owner/name`, so that a slip is not taken for a repository without jobs.
pub(crate) fn parse_repo(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((owner, name)) if !owner.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err("write owner/name, for example acme/web".to_owned()),
    }
}
