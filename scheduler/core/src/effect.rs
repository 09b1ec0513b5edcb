//! What the state still owes the world.
//!
//! Effects are a function of state: they are offered after each commit and
//! again after each load. Each is idempotent or was named before it is tried.

use crate::{
    input::Deregistration,
    model::{CredentialName, Generation, NodeName, PoolName, Resources, RunnerName, Scope},
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Create the JIT registration under this name. Answer: `RegistrationReady` or `RegistrationFailed`.
    Register {
        runner: RunnerName,
        scope: Scope,
        credential: CredentialName,
        labels: Vec<String>,
        runner_group: Option<String>,
    },
    /// Delete the registration, by id when known, else by name. Answer: `Deregistered`.
    Deregister {
        runner: RunnerName,
        scope: Scope,
        credential: CredentialName,
        github_id: Option<u64>,
    },
    /// The node must hear its intent of this generation; owed until a report accepts it.
    SendIntent {
        node: NodeName,
        generation: Generation,
    },
}

/// What in-flight bookkeeping is keyed by: one of a kind and subject at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EffectKey {
    Register(RunnerName),
    Deregister(RunnerName),
    Intent(NodeName),
}

impl Effect {
    pub fn key(&self) -> EffectKey {
        match self {
            Self::Register { runner, .. } => EffectKey::Register(runner.clone()),
            Self::Deregister { runner, .. } => EffectKey::Deregister(runner.clone()),
            Self::SendIntent { node, .. } => EffectKey::Intent(node.clone()),
        }
    }
}

/// A node's whole intent, derived from state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIntent {
    pub generation: Generation,
    pub cordoned: bool,
    pub runners: Vec<RunnerIntent>,
    /// What pools may place there, for a node that gets ready beforehand.
    pub expected: Vec<Expected>,
}

/// A kind of runner without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The first pool that may ask for it.
    pub pool: PoolName,
    pub image: String,
    pub profile: String,
    pub network_mode: String,
    /// Class; empty: the engine's own.
    pub runtime: String,
    pub platform: String,
    pub resources: Resources,
    pub lifetime_ms: u64,
}

impl Expected {
    /// The same but for the pool.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        Self {
            pool: other.pool.clone(),
            ..self.clone()
        } == *other
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerIntent {
    pub name: RunnerName,
    pub desired: Desired,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    Run(std::sync::Arc<crate::fact::RunnerPlaced>),
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

impl Deregistration {
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Gone)
    }
}
