//! GitHub's JSON as tolerant structs: what is read is typed, the rest is kept.
//!
//! Every field may be absent, null or of an odd type without failing the
//! document, and a document serialises back equal to what was read. Statuses,
//! conclusions and actions are plain words, so that new ones parse.

mod accounts;
mod actions;
mod answers;
mod field;
mod hooks;
mod payload;
mod runners;

pub use accounts::{
    AccessToken, Account, Installation, Permissions, RateLimit, RateLimits, Repository,
    RepositoryList,
};
pub use actions::{Job, JobList, Run, RunList};
pub use answers::{ErrorBody, ErrorDetail};
pub use field::{Extra, Field, Read, Wire};
pub use hooks::{Hook, HookConfig, HookDelivery};
pub use payload::Payload;
pub use runners::{Jit, JitRequest, Runner, RunnerGroup, RunnerGroupList, RunnerLabel, RunnerList};
