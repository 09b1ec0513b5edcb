//! How a command ends: the exit codes and the two lines of an error.

use std::io::Write;

use longshore_client::Kind;

use crate::output::style;

pub(crate) const OK: i32 = 0;
pub(crate) const FAILED: i32 = 1;
pub(crate) const USAGE: i32 = 2;
pub(crate) const NOT_FOUND: i32 = 3;
pub(crate) const UNREACHABLE: i32 = 4;
pub(crate) const REFUSED: i32 = 5;
pub(crate) const TIMED_OUT: i32 = 6;

/// The part of `--help` that documents them.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  not found
  4  the scheduler does not answer
  5  refused: not permitted, or the state does not allow it
  6  timed out

Environment:
  LONGSHORE_ADDRESS     address of the scheduler, as --scheduler
  LONGSHORE_TOKEN_FILE  file with the token, as --token-file
  LONGSHORE_CA_FILE     authority of the scheduler's certificate, as --ca-file
  LONGSHORE_HOME        folder of state of a fleet on this host, as --state-dir
  NO_COLOR              no colour; so does any output that is not a terminal";

/// Why a command ended without doing what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call failed.
    Call(longshore_client::Error),
    /// Something else, with its exit code.
    Said {
        code: i32,
        what: String,
        next: String,
    },
    /// Whoever read our output has had enough.
    BrokenPipe,
}

impl Failure {
    pub(crate) fn said(code: i32, what: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::Said {
            code,
            what: what.into(),
            next: next.into(),
        }
    }

    pub(crate) fn failed(what: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::said(FAILED, what, next)
    }

    pub(crate) fn usage(what: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::said(USAGE, what, next)
    }

    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Failure::Call(e) => match e.kind() {
                Kind::Usage => USAGE,
                Kind::NotFound => NOT_FOUND,
                Kind::Unreachable => UNREACHABLE,
                Kind::Refused => REFUSED,
                Kind::TimedOut => TIMED_OUT,
                Kind::Failed => FAILED,
            },
            Failure::Said { code, .. } => *code,
            Failure::BrokenPipe => OK,
        }
    }

    /// What is wrong and what to do, without control characters.
    pub(crate) fn text(&self) -> (String, String) {
        let (what, next) = match self {
            Failure::Call(e) => (e.to_string(), e.next_step()),
            Failure::Said { what, next, .. } => (what.clone(), next.clone()),
            Failure::BrokenPipe => Default::default(),
        };
        (style::printable(&what), style::printable(&next))
    }

    pub(crate) fn print(&self) {
        if matches!(self, Failure::BrokenPipe) {
            return;
        }
        let (what, next) = self.text();
        let mut stderr = std::io::stderr().lock();
        let word = style::on_stderr().red("error:");
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(stderr, "{word} {what}");
        if !next.is_empty() {
            let _ = writeln!(stderr, "  next: {next}");
        }
    }
}

impl From<longshore_client::Error> for Failure {
    fn from(e: longshore_client::Error) -> Failure {
        Failure::Call(e)
    }
}

/// For writes to stdout only.
impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        if e.kind() == std::io::ErrorKind::BrokenPipe {
            Failure::BrokenPipe
        } else {
            Failure::failed(
                format!("write the output: {e}"),
                "check where it is redirected to",
            )
        }
    }
}
