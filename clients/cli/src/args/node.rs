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

#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[arg(value_name = "NODE")]
    pub(crate) name: String,
    /// End jobs that still run after this time; without it they may finish
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
}
