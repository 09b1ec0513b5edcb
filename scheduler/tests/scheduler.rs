//! The shell from outside: real listeners and requests, a store in memory, a GitHub of our own.

mod scheduler {
    pub(crate) mod api;
    pub(crate) mod bad_luck;
    pub(crate) mod fake_github;
    pub(crate) mod harness;
    pub(crate) mod job;
    pub(crate) mod joined;
    pub(crate) mod joining;
    pub(crate) mod limits;
    pub(crate) mod node;
    pub(crate) mod process;
    pub(crate) mod roles;
    pub(crate) mod surfaces;
    pub(crate) mod trace;
    pub(crate) mod watching;
    pub(crate) mod webhooks;
}
