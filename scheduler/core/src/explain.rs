//! Why a job waits, per node and pool, and what would unblock it.

use crate::model::{JobId, NodeName, PoolName, UtcMillis};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub job: JobId,
    pub reason: ReasonCode,
    /// One sentence for people.
    pub summary: String,
    pub next_step: String,
    pub not_before: Option<UtcMillis>,
    pub nodes: Vec<(NodeName, Vec<Reason>)>,
    pub pools: Vec<(PoolName, Vec<Reason>)>,
}

/// One rejection: an empty list of them means feasible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub code: ReasonCode,
    pub detail: String,
    pub unblocked_by: String,
}

/// Stable words, `snake_case` on every surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReasonCode {
    /// A runner is on its way or idle; GitHub decides which job it takes.
    RunnerOnItsWay,
    NotQueued,
    AutoscalerStopped,
    NoNodes,
    NoLabels,
    BareSelfHosted,
    MissingLabel,
    NoGpu,
    NoCapacity,
    TooBig,
    Cordoned,
    Draining,
    Unreachable,
    NodeCondition,
    MissingProperty,
    ImageUnavailable,
    NoPool,
    RepositoryNotAdmitted,
    PublicRepositoryRefused,
    ForkRefused,
    OriginUnknown,
    PoolMaximum,
    ShareMaximum,
    FleetMaximum,
    RateLimited,
    CredentialProblem,
    ScopeResting,
    WaitsItsTurn,
}

impl ReasonCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunnerOnItsWay => "runner_on_its_way",
            Self::NotQueued => "not_queued",
            Self::AutoscalerStopped => "autoscaler_stopped",
            Self::NoNodes => "no_nodes",
            Self::NoLabels => "no_labels",
            Self::BareSelfHosted => "bare_self_hosted",
            Self::MissingLabel => "missing_label",
            Self::NoGpu => "no_gpu",
            Self::NoCapacity => "no_capacity",
            Self::TooBig => "too_big",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
            Self::NodeCondition => "node_condition",
            Self::MissingProperty => "missing_property",
            Self::ImageUnavailable => "image_unavailable",
            Self::NoPool => "no_pool",
            Self::RepositoryNotAdmitted => "repository_not_admitted",
            Self::PublicRepositoryRefused => "public_repository_refused",
            Self::ForkRefused => "fork_refused",
            Self::OriginUnknown => "origin_unknown",
            Self::PoolMaximum => "pool_maximum",
            Self::ShareMaximum => "share_maximum",
            Self::FleetMaximum => "fleet_maximum",
            Self::RateLimited => "rate_limited",
            Self::CredentialProblem => "credential_problem",
            Self::ScopeResting => "scope_resting",
            Self::WaitsItsTurn => "waits_its_turn",
        }
    }
}
