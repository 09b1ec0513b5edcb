//! `longshore token ...`, `longshore audit ...`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::units::parse_duration;

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token; it is shown once
    Create(Create),
    /// Tokens, when they end and when each was last used
    List(List),
    /// End a token at once
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Who will hold it, for example ci-dashboard
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// scrape reads /metrics, viewer reads, operator runs, admin decides
    #[arg(long, value_name = "ROLE", value_parser = ["scrape", "viewer", "operator", "admin"])]
    pub(crate) role: String,
    /// Only this owner or owner/name; for viewer and operator
    #[arg(long, value_name = "SCOPE")]
    pub(crate) scope: Option<String>,
    /// How long it is valid [default: 90 days]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "no_expiry")]
    pub(crate) ttl: Option<Duration>,
    /// Valid until it is revoked
    #[arg(long)]
    pub(crate) no_expiry: bool,
    /// Write the token to a new file (0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    pub(crate) to: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Expired and revoked ones too
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Its name or its id
    #[arg(value_name = "TOKEN")]
    pub(crate) token: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Who did what and who was denied, newest first
    List(Entries),
    /// Check that no entry was changed, removed, inserted or moved
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Entries {
    /// Only by this caller
    #[arg(long, value_name = "NAME")]
    pub(crate) actor: Option<String>,
    /// Only this call, for example FleetService/StopRunner
    #[arg(long, value_name = "CALL")]
    pub(crate) action: Option<String>,
    /// Only on this runner, node, pool or token
    #[arg(long, value_name = "NAME")]
    pub(crate) subject: Option<String>,
    /// Only with this result: ok or denied
    #[arg(long, value_name = "RESULT")]
    pub(crate) outcome: Option<String>,
    /// Only of the last such time, for example 24h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// Most entries shown
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// ID:HASH as an earlier verify printed it: shows a log that was rewritten since
    #[arg(long, value_name = "ID:HASH", value_parser = parse_noted)]
    pub(crate) expect: Option<(u64, String)>,
}

fn parse_noted(text: &str) -> Result<(u64, String), String> {
    let parsed = text.split_once(':').and_then(|(id, hash)| {
        let is_hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        Some((id.parse().ok()?, is_hash.then(|| hash.to_owned())?))
    });
    parsed.ok_or_else(|| "write it as `longshore audit verify` printed it".to_owned())
}
