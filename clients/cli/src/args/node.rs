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
    /// Forget a node; its runners are retired
    Remove(Name),
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
