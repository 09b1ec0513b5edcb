//! `longshore node ...`.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::units::parse_duration;

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// All nodes
    List,
    /// One node: what it offers, the evidence, what it cannot guarantee
    Describe(Name),
    /// Look at a node's sandbox from inside, now
    #[command(after_help = CHECKED)]
    Check(Check),
    /// Place nothing more on a node
    Cordon(Name),
    /// Place runners on a node again
    Uncordon(Name),
    /// Cordon a node and let it run empty
    Drain(Drain),
    /// Forget a node; its runners are retired and its certificates count no more
    Remove(Name),
    /// Make a token that lets one host join the fleet, once
    #[command(after_help = JOINING)]
    JoinToken(JoinToken),
}

const JOINING: &str = "\
Prints the token alone, so that it can be carried without a file:

  longshore node join-token | ssh HOST longshore-agent join \\
      --scheduler https://SCHEDULER:9001 --join-token-file -

It names the scheduler's authority: the host trusts this scheduler and no other.";

#[derive(Debug, Args)]
pub(crate) struct JoinToken {
    /// The only name it admits; needed to admit a host again under the name of a node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// How long it is valid: 1m to 24h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1h")]
    pub(crate) ttl: Duration,
    /// Show the tokens that were made instead
    #[arg(long, conflicts_with_all = ["node", "revoke"])]
    pub(crate) list: bool,
    /// Take a token back instead
    #[arg(long, value_name = "ID", conflicts_with = "node")]
    pub(crate) revoke: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    #[arg(value_name = "NODE")]
    pub(crate) name: String,
}

const CHECKED: &str = "\
Starts a sandbox in a real slot of the node, made like a job's, with a program
that tries what the profile promises to be impossible. Takes some seconds, at
most two minutes, and removes all of it again.

Exit codes: 0 when nothing that the profile promises is broken, 1 when something
is, 3 when there is no such node, 5 when the node is not attached, looks already
or cannot look, 6 when it does not answer. What is not guaranteed is told and is
no failure.";

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[arg(value_name = "NODE")]
    pub(crate) name: String,
    /// Sandbox profile: strict, standard or containers
    #[arg(long, value_name = "PROFILE", default_value = "strict")]
    pub(crate) profile: String,
    /// Network mode: open, allowlist or none
    #[arg(long, value_name = "MODE", default_value = "open")]
    pub(crate) network: String,
    /// Class of the runtime that makes the sandbox; without it the engine's own
    #[arg(long, value_name = "CLASS")]
    pub(crate) runtime: Option<String>,
    /// Look from this job image; without it from one that the agent makes
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[arg(value_name = "NODE")]
    pub(crate) name: String,
    /// End jobs that still run after this time; without it they may finish
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
}
