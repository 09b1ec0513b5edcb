//! What can go wrong with a call, in words a person can act on.

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Key of the `ErrorInfo` metadata that carries the next step.
const NEXT_STEP: &str = "next_step";

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be one of a scheduler.
    #[error("scheduler address {address:?} is not valid: {problem}")]
    Address { address: String, problem: String },
    /// Nothing answers there, or something that is no scheduler.
    #[error("no scheduler answers at {address}: {problem}")]
    Unreachable {
        address: String,
        problem: String,
        /// The port is closed: nothing listens there at all.
        refused: bool,
    },
    /// The deadline passed without an answer.
    #[error("{address} did not answer {call} within {}", seconds(.after))]
    TimedOut {
        address: String,
        call: &'static str,
        after: Duration,
    },
    /// The scheduler answered with an error.
    #[error("{}", .0.message)]
    Api(Api),
}

/// An error as the scheduler sent it.
#[derive(Clone, Debug)]
pub struct Api {
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// Stable word such as `runner_not_found`; empty when none was sent.
    pub reason: String,
    /// What to do about it; empty when none was sent.
    pub next_step: String,
}

/// The classes of failure that a caller tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong.
    Usage,
    NotFound,
    Unreachable,
    /// Refused: no permission, or the state does not allow it.
    Refused,
    TimedOut,
    Failed,
}

impl Error {
    pub fn kind(&self) -> Kind {
        match self {
            Error::Address { .. } => Kind::Usage,
            Error::Unreachable { .. } => Kind::Unreachable,
            Error::TimedOut { .. } => Kind::TimedOut,
            Error::Api(api) => match api.code {
                Code::InvalidArgument | Code::OutOfRange => Kind::Usage,
                Code::NotFound => Kind::NotFound,
                Code::Unavailable => Kind::Unreachable,
                Code::PermissionDenied
                | Code::Unauthenticated
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::Aborted
                | Code::ResourceExhausted => Kind::Refused,
                Code::DeadlineExceeded => Kind::TimedOut,
                _ => Kind::Failed,
            },
        }
    }

    /// A stable word for programs.
    pub fn reason(&self) -> &str {
        match self {
            Error::Address { .. } => "invalid_address",
            Error::Unreachable { .. } => "unreachable",
            Error::TimedOut { .. } => "timed_out",
            Error::Api(api) => &api.reason,
        }
    }

    /// What to do about it; empty when nothing better is known than to try again.
    pub fn next_step(&self) -> String {
        match self {
            Error::Address { .. } => "give it as http://HOST:PORT, or https://HOST:PORT with the \
                                      authority of its certificate"
                .into(),
            Error::Unreachable { refused: true, .. } => {
                "start a scheduler with `longshore up`, or name another with --scheduler or \
                 LONGSHORE_ADDRESS"
                    .into()
            }
            Error::Unreachable { .. } => {
                "check that the address is a scheduler's API listener (--scheduler, \
                 LONGSHORE_ADDRESS)"
                    .into()
            }
            Error::TimedOut { .. } => {
                "look at the scheduler's log, or allow more time with --timeout".into()
            }
            Error::Api(api) => api.next_step.clone(),
        }
    }

    /// Whether the same read may succeed in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { .. } => true,
            Error::Api(api) => api.code == Code::Unavailable,
            Error::Address { .. } | Error::TimedOut { .. } => false,
        }
    }

    pub(crate) fn from_status(status: &Status, address: &str) -> Error {
        // A status made on this side has a source: the transport failed. One
        // that came over the wire has none.
        if let Some(source) = status.source() {
            let (problem, refused) = transport_problem(source);
            return Error::Unreachable {
                address: address.to_owned(),
                problem,
                refused,
            };
        }
        if let Some(problem) = stranger(status) {
            return Error::Unreachable {
                address: address.to_owned(),
                problem: problem.into(),
                refused: false,
            };
        }
        let info = status.get_details_error_info();
        let mut message = one_line(status.message());
        let mut next_step = info
            .as_ref()
            .and_then(|i| i.metadata.get(NEXT_STEP))
            .map(|s| one_line(s))
            .unwrap_or_default();
        // The message ends with the next step, for clients that show nothing else.
        if !next_step.is_empty()
            && let Some(what) = message.strip_suffix(&next_step)
            && let what = what.trim_end_matches([' ', ';', ':', '.'])
            && !what.is_empty()
        {
            message = what.to_owned();
        }
        // Proxies may strip binary trailers; the text then still has both.
        if let Some((what, step)) = status.message().split_once("next: ")
            && !what.trim().is_empty()
        {
            message = one_line(what.trim_end().trim_end_matches(';'));
            if next_step.is_empty() {
                next_step = one_line(step);
            }
        }
        if message.is_empty() {
            message = format!("{:?} without a message", status.code());
        }
        Error::Api(Api {
            code: status.code(),
            message,
            reason: info.map(|i| i.reason).unwrap_or_default(),
            next_step,
        })
    }
}

/// What gives away that something else than a scheduler's API answers: a web server without gRPC (tonic makes these
/// statuses itself, whatever the HTTP status was), or a gRPC server that does not know the call and says not a word.
fn stranger(status: &Status) -> Option<&'static str> {
    let text = status.message();
    if text.starts_with("grpc-status header")
        || text.starts_with("protocol error: received message with invalid compression flag")
    {
        return Some("what answers there does not speak gRPC");
    }
    let unknown = status.code() == Code::Unimplemented && text.is_empty();
    unknown.then_some(
        "what answers there does not know the call; it is another listener, or another version",
    )
}

/// The innermost cause says most ("Connection refused"); the outer layers
/// only say that a transport failed.
fn transport_problem(source: &(dyn std::error::Error + 'static)) -> (String, bool) {
    let mut innermost = source;
    let mut refused = false;
    let mut cause = Some(source);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            refused |= io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        innermost = error;
        cause = error.source();
    }
    let mut text = innermost.to_string();
    if refused {
        text = "connection refused".into();
    }
    (text, refused)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn seconds(d: &Duration) -> String {
    if d.subsec_millis() == 0 {
        format!("{} s", d.as_secs())
    } else {
        format!("{} ms", d.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn read(status: &Status) -> Api {
        match Error::from_status(status, "http://x") {
            Error::Api(api) => api,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_reason_and_the_next_step_come_from_the_error_info() {
        let status = Status::with_error_details(
            Code::NotFound,
            "no node is called n9",
            ErrorDetails::with_error_info(
                "node_not_found",
                "longshore",
                HashMap::from([("next_step".into(), "list them: longshore node list".into())]),
            ),
        );
        let api = read(&status);
        assert_eq!(api.message, "no node is called n9");
        assert_eq!(api.reason, "node_not_found");
        assert_eq!(api.next_step, "list them: longshore node list");
        assert_eq!(Error::Api(api).kind(), Kind::NotFound);
    }

    #[test]
    fn a_next_step_is_not_said_twice() {
        let status = Status::with_error_details(
            Code::FailedPrecondition,
            "node `n1` runs 2 jobs; drain it first",
            ErrorDetails::with_error_info(
                "node_busy",
                "longshore",
                HashMap::from([("next_step".into(), "drain it first".into())]),
            ),
        );
        let api = read(&status);
        assert_eq!(api.message, "node `n1` runs 2 jobs");
        assert_eq!(api.next_step, "drain it first");
    }

    #[test]
    fn a_next_step_inside_the_message_is_found_when_details_are_lost() {
        let api = read(&Status::failed_precondition(
            "node n1 runs 2 jobs; next: drain it first",
        ));
        assert_eq!(api.message, "node n1 runs 2 jobs");
        assert_eq!(api.next_step, "drain it first");
        assert_eq!(Error::Api(api).kind(), Kind::Refused);
    }

    #[test]
    fn broken_details_lose_nothing_of_the_message() {
        let status = Status::with_details(
            Code::Internal,
            "store is full",
            vec![0xff, 0x00, 0x13].into(),
        );
        let api = read(&status);
        assert_eq!(api.message, "store is full");
        assert_eq!(api.reason, "");
    }

    #[test]
    fn an_empty_message_still_says_something() {
        assert_eq!(
            read(&Status::internal("")).message,
            "Internal without a message"
        );
    }
}
