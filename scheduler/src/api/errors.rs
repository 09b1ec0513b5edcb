//! Errors of the API: a stable reason, what it is about, and the next step.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Domain of every `ErrorInfo` of ours.
pub const DOMAIN: &str = "longshore";

/// A status with `google.rpc.ErrorInfo`; `next_step` ends the message too.
pub fn status(code: Code, reason: &str, message: &str, next_step: &str) -> Status {
    let details = ErrorDetails::with_error_info(
        reason,
        DOMAIN,
        HashMap::from([("next_step".to_owned(), next_step.to_owned())]),
    );
    Status::with_error_details(code, format!("{message}; {next_step}"), details)
}

/// Nothing of this kind has this name.
pub fn not_found(kind: &str, name: impl std::fmt::Display, next_step: &str) -> Status {
    status(
        Code::NotFound,
        &format!("{kind}_not_found"),
        &format!("no {kind} is called `{name}`"),
        next_step,
    )
}

/// A field that cannot be used as it is.
pub fn invalid(field: &str, problem: impl std::fmt::Display, next_step: &str) -> Status {
    status(
        Code::InvalidArgument,
        "invalid_argument",
        &format!("{field}: {problem}"),
        next_step,
    )
}

/// The state of things does not allow it.
pub fn precondition(reason: &str, message: &str, next_step: &str) -> Status {
    status(Code::FailedPrecondition, reason, message, next_step)
}

/// The process is on its way down.
pub fn stopping() -> Status {
    status(
        Code::Unavailable,
        "stopping",
        "the scheduler is stopping",
        "try again in a moment",
    )
}

/// The store did not answer a question.
pub fn store(error: &scheduler_store::Error) -> Status {
    if let scheduler_store::Error::BadPageToken = error {
        return bad_page_token();
    }
    tracing::error!(%error, "history cannot be read");
    status(
        Code::Unavailable,
        "store_unavailable",
        "the store did not answer",
        "see the scheduler's log, then try again",
    )
}

/// A page token that this list did not hand out.
pub fn bad_page_token() -> Status {
    invalid(
        "page_token",
        "it is not one of ours",
        "start again without it",
    )
}
