//! The port to whatever runs sandboxes: Docker today, memory in the simulation.

use std::future::Future;
use std::time::Duration;

use crate::denied::Denied;
use crate::exit::Ended;
use crate::model::{Condition, ErrorReason, Resources, RunnerError, RunnerSpec, Usage};
use crate::probe::Probed;

/// A sandbox that runs and waits for its registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub container_id: String,
}

/// Processes of a sandbox that matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    pub listener: bool,
    pub worker: bool,
}

/// A runner that was there when the agent started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub container_id: String,
    pub running: bool,
    pub processes: Processes,
    pub started_utc_ms: u64,
    pub lifetime_ms: u64,
}

/// What is known of a sandbox after its end, everything of it being removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub ended: Ended,
    pub usage: Option<Usage>,
    pub finished_utc_ms: u64,
    /// What it was denied; absent when the host could not tell.
    pub denied: Option<Denied>,
}

/// What may be asked of this node, and how much of it runners may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// As the scheduler expects them; nothing in them names a runner.
    pub expected: Vec<RunnerSpec>,
    /// None where nothing bounds it.
    pub capacity: Option<Resources>,
    /// 0 where nothing bounds it.
    pub max_runners: u32,
    /// Nothing new starts here.
    pub cordoned: bool,
}

/// What the runtime tells without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The sandbox's first process ended.
    Died { runner: String },
    /// Output since the last notice of this runner. `skipped` bytes before it
    /// were lost.
    Output {
        runner: String,
        chunk: Vec<u8>,
        skipped: u64,
    },
    /// The runner's output is complete.
    OutputEnd { runner: String },
    /// The engine stopped or started answering.
    Engine { problem: Option<String> },
}

/// An operation failed; the text names the operation and the thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct RuntimeError {
    pub reason: ErrorReason,
    pub detail: String,
}

impl From<RuntimeError> for RunnerError {
    fn from(error: RuntimeError) -> Self {
        Self {
            reason: error.reason,
            detail: error.detail,
        }
    }
}

/// Runs sandboxes. Every call has a bound of its own; calls for different
/// runners may be made at the same time, calls for one runner one by one.
pub trait Runtime: Send + Sync + 'static {
    /// Removes what an earlier process of this agent left, and returns the
    /// runners that are still there.
    fn recover(&self) -> impl Future<Output = Result<Vec<Found>, RuntimeError>> + Send;

    /// Makes a sandbox and starts it; it waits for a registration.
    fn prepare(
        &self,
        runner: &str,
        spec: &RunnerSpec,
    ) -> impl Future<Output = Result<Prepared, RuntimeError>> + Send;

    /// Renames the sandbox to the runner's name, writes the registration
    /// (`encoded_jit_config`) into it and closes its input.
    fn hand_over(
        &self,
        runner: &str,
        jit_config: &[u8],
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Looks for the runner program and its worker now.
    fn look(&self, runner: &str) -> impl Future<Output = Result<Processes, RuntimeError>> + Send;

    /// Interrupts the sandbox, and kills it after `grace`. Its end arrives as
    /// [`Notice::Died`].
    fn end(
        &self,
        runner: &str,
        grace: Duration,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Reads how it ended; ends it first if it still runs. May be repeated.
    fn collect(&self, runner: &str) -> impl Future<Output = Result<Outcome, RuntimeError>> + Send;

    /// Removes container, volumes and everything else of it. May be repeated.
    fn remove(&self, runner: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Looks at a sandbox of this kind from inside, in a slot of its own that is gone
    /// afterwards. An empty image means one of the runtime's own. None when this
    /// runtime's sandboxes have no inside.
    fn probe(
        &self,
        spec: &RunnerSpec,
    ) -> impl Future<Output = Result<Option<Probed>, RuntimeError>> + Send {
        let _ = spec;
        async { Ok(None) }
    }

    /// Verifies the firewall rules now and restores them when they are gone.
    /// No hand-over happens after an error.
    fn assert_firewall(&self) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// What keeps new work away at the moment.
    fn conditions(&self) -> impl Future<Output = Vec<Condition>> + Send;

    /// The fleet's id, once the scheduler said it; for labels.
    fn set_fleet(&self, fleet: &str);

    /// What may come next. A runtime may get ready for it, and may as well not.
    fn outlook(&self, outlook: Outlook) {
        drop(outlook);
    }

    /// This process is about to end: removes, within seconds, what serves no runner
    /// and no later process.
    fn detach(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Waits for the next notice.
    fn notice(&self) -> impl Future<Output = Notice> + Send;
}
