//! The nouns of a node: intents, observed runners, how they end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::denied::Denied;

/// Orders of a scheduler carry a generation; a node refuses an older one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation {
    pub epoch: u64,
    pub counter: u64,
}

/// The present: `mono` for leases and timeouts, `utc` for what people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back.
    pub mono_ms: u64,
    /// Milliseconds since 1970.
    pub utc_ms: u64,
}

/// What one runner may take of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub gpus: u32,
}

/// What the scheduler asks a runner's sandbox to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerSpec {
    pub image: String,
    pub profile: String,
    pub resources: Resources,
    pub gpu_uuids: Vec<String>,
    pub network_mode: String,
    /// For network mode `allowlist`: what it may reach.
    #[serde(default)]
    pub allowed_domains: Vec<String>,
    pub platform: String,
    /// Longest life from the hand-over; 0 means the default.
    pub lifetime_ms: u64,
    pub traceparent: String,
    pub pool: String,
    pub scope: String,
    /// Class of the runtime; empty is the engine's own.
    #[serde(default)]
    pub runtime: String,
}

/// What the scheduler wants of one runner.
#[derive(Clone, Debug, PartialEq, Eq)]
// Most are runs: a box for each would save nothing.
#[allow(clippy::large_enum_variant)]
pub enum Desired {
    Run(RunnerSpec),
    StopIfIdle,
    /// Valid for exactly this observation.
    Remove {
        observation: u64,
    },
    Kill {
        reason: String,
        grace_ms: u64,
    },
}

/// Everything the scheduler wants of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    pub generation: Generation,
    pub cordoned: bool,
    pub runners: BTreeMap<String, Desired>,
    /// Runners that may be asked for, without a name. Nothing is decided by them.
    pub expected: Vec<RunnerSpec>,
}

/// How far a runner got, in the words of `node.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    Preparing,
    Ready,
    Consumed,
    Online,
    Busy,
    Exited,
    Failed,
}

impl Phase {
    /// Nothing of it is left on the host.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Exited | Self::Failed)
    }

    /// The registration went into the sandbox: a job may run in it.
    pub fn has_registration(self) -> bool {
        matches!(self, Self::Consumed | Self::Online | Self::Busy)
    }
}

/// Why a runner ended, in the words of `types.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    Finished,
    RunnerRefused,
    OutOfMemory,
    Lifetime,
    Idle,
    Killed,
    Engine,
    NeverStarted,
    VersionDeprecated,
    SessionConflict,
    DiskFull,
}

/// What a finished runner used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_ns: u64,
    pub peak_memory_bytes: u64,
    /// From and to disks; none where the host cannot tell.
    #[serde(default)]
    pub read_bytes: Option<u64>,
    #[serde(default)]
    pub written_bytes: Option<u64>,
    #[serde(default)]
    pub peak_gpu_memory_bytes: Option<u64>,
}

/// How a runner ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub cause: Cause,
    pub detail: String,
    /// Absent when the host could not tell.
    pub usage: Option<Usage>,
    pub finished_utc_ms: u64,
    /// What it tried to reach and was not let; absent when the host could not tell.
    #[serde(default)]
    pub denied: Option<Denied>,
}

/// Why a runner could not be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorReason {
    ImageUnavailable,
    EngineDown,
    OutOfSlots,
    DiskFull,
    SpecRefused,
    StartFailed,
}

impl ErrorReason {
    /// The stable word of `node.proto`.
    pub fn word(self) -> &'static str {
        match self {
            Self::ImageUnavailable => "image_unavailable",
            Self::EngineDown => "engine_down",
            Self::OutOfSlots => "out_of_slots",
            Self::DiskFull => "disk_full",
            Self::SpecRefused => "spec_refused",
            Self::StartFailed => "start_failed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerError {
    pub reason: ErrorReason,
    pub detail: String,
}

/// When a runner reached each phase, milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    pub created: Option<u64>,
    pub ready: Option<u64>,
    pub consumed: Option<u64>,
    pub online: Option<u64>,
    pub busy: Option<u64>,
}

/// What goes up to the scheduler about one runner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedRunner {
    pub name: String,
    pub phase: Phase,
    pub observation: u64,
    pub worker: bool,
    pub exit: Option<Exit>,
    pub error: Option<RunnerError>,
    pub container_id: String,
    pub times: Times,
    pub foreign: bool,
    pub remove_refused: bool,
}

/// What must outlive the agent's process: written before a finished runner's
/// container is forgotten, read at start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    pub highest: Generation,
    /// Runners that hold a registration, as they were last seen: reported while
    /// the engine cannot be asked, and looked for once it can.
    #[serde(default)]
    pub live: Vec<ObservedRunner>,
    /// Finished runners that no accepted intent has let go yet.
    pub finished: Vec<ObservedRunner>,
}

/// Something that keeps new work away from the node, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// engine_down, disk_full, firewall_missing, clock_offset or image_unavailable.
    pub kind: &'static str,
    pub detail: String,
    pub next_step: String,
    /// Set for image_unavailable.
    pub image: String,
}
