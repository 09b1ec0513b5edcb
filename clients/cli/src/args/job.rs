//! `longshore job ...` and `longshore explain`.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// Jobs, newest demand first
    List(List),
    /// One job
    Describe(Id),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only jobs of this repository
    #[arg(long, value_name = "OWNER/REPO", value_parser = super::parse_repo)]
    pub(crate) repo: Option<String>,
    /// Only jobs in this state
    #[arg(long, value_name = "STATE", value_enum)]
    pub(crate) state: Option<State>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum State {
    Queued,
    Waiting,
    InProgress,
    Completed,
}

impl State {
    pub(crate) fn word(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Waiting => "waiting",
            State::InProgress => "in_progress",
            State::Completed => "completed",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Number of the job, or its address on GitHub
    #[arg(value_name = "JOB", value_parser = parse_id)]
    pub(crate) id: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Number of the job, or its address on GitHub
    #[arg(value_name = "JOB", value_parser = parse_id)]
    pub(crate) id: u64,
}

/// `123` or `https://github.com/o/r/actions/runs/1/job/123`.
fn parse_id(text: &str) -> Result<u64, String> {
    let number = match text.rsplit_once("/job/") {
        Some((_, tail)) => tail.split(['?', '#', '/']).next().unwrap_or(tail),
        None => text,
    };
    number.parse().map_err(|_| {
        "not a job; give its number (longshore job list) or its address on GitHub".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_by_number_or_by_its_page() {
        assert_eq!(parse_id("42"), Ok(42));
        let page = "https://github.com/acme/web/actions/runs/7/job/42?pr=1#step:2:3";
        assert_eq!(parse_id(page), Ok(42));
        for text in ["", "x", "-1", "https://github.com/acme/web/actions/runs/7"] {
            assert!(parse_id(text).is_err(), "{text}");
        }
    }
}
