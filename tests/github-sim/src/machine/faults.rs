//! What can go wrong on purpose, and the limits GitHub sets. Everything is off, or strict, by default.

use serde::{Deserialize, Serialize};

/// How the runner fields of a job look that no runner ever took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerFields {
    /// `null`
    #[default]
    Null,
    /// `0` and `""`
    Zero,
    /// `null` for the numbers and `""` for the names
    Empty,
}

/// Holds deliveries back for a random time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delay {
    /// 0.0 to 1.0
    pub probability: f64,
    pub min_ms: u64,
    pub max_ms: u64,
    /// Actions it applies to; empty: all.
    pub actions: Vec<String>,
}

/// The seeded faults; the README's section 4 says what each does. Numbers without a unit in their name are probabilities.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    pub webhook_drop: f64,
    pub webhook_duplicate: f64,
    pub webhook_reorder: f64,
    pub webhook_bad_signature: f64,
    pub webhook_delay: Delay,
    pub webhook_pad_bytes: u64,
    pub webhook_runner_fields: RunnerFields,
    pub webhook_empty_labels: f64,
    pub webhook_waiting_after_queued: f64,
    pub list_lag_ms: u64,
    pub busy_lag_ms: u64,
    pub busy_flip: f64,
    pub link_absent: f64,
    pub page_shift: f64,
    pub no_etag: bool,
    pub delete_always_422: f64,
    pub delete_busy_succeeds: f64,
    pub jit_500_after_create: f64,
    pub jit_500_before_create: f64,
    pub jit_409: f64,
    pub jit_delay_ms: u64,
    pub token_401: f64,
    pub not_found_for_missing_permission: bool,
    pub secondary_limit: f64,
    pub secondary_limit_without_retry_after: f64,
    pub too_many_requests_429: f64,
    pub server_502: f64,
    pub cut_after_effect: f64,
    pub acquire_conflict: f64,
    pub ghost_runner: bool,
    pub runner_version_too_old: bool,
    pub cancel_loop: bool,
    pub drop_assignment: f64,
    pub clock_offset_ms: i64,
}

/// GitHub's limits; `None` switches one off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests an hour and credential.
    pub primary_per_hour: Option<u64>,
    /// Requests an hour of a caller without credential, by GitHub's rule.
    pub anonymous_per_hour: Option<u64>,
    /// Size of the bucket `actions_runner_registration`.
    pub registration_per_hour: Option<u64>,
    /// Registrations in five minutes per repository, organisation or enterprise.
    pub registrations_per_5min: Option<u64>,
    /// Points a minute per credential and endpoint: 1 for a read, 5 for a write.
    pub points_per_minute: Option<u64>,
    /// Requests open at the same time per credential.
    pub concurrent: Option<u64>,
    /// Bucket that generate-jitconfig counts in: `core` or `actions_runner_registration`. The sources conflict.
    pub jit_resource: String,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            primary_per_hour: Some(5_000),
            anonymous_per_hour: Some(60),
            registration_per_hour: Some(10_000),
            registrations_per_5min: Some(1_500),
            points_per_minute: Some(900),
            concurrent: Some(100),
            jit_resource: "core".into(),
        }
    }
}

impl Limits {
    /// None at all, as on a GitHub Enterprise Server out of the box.
    pub fn off() -> Self {
        Self {
            primary_per_hour: None,
            anonymous_per_hour: None,
            registration_per_hour: None,
            registrations_per_5min: None,
            points_per_minute: None,
            concurrent: None,
            jit_resource: "core".into(),
        }
    }
}
