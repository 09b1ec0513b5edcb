//! One runner's life on a node: its phase, what is under way, what is owed next.

use crate::model::{
    Cause, Desired, Exit, Now, ObservedRunner, Phase, RunnerError, RunnerSpec, Times,
};

/// Longest life of a runner when its spec names none: 6 h 15 min.
pub const DEFAULT_LIFETIME_MS: u64 = (6 * 60 + 15) * 60_000;
/// Longest life a spec may name: GitHub ends a job after 5 days.
pub const MAX_LIFETIME_MS: u64 = 5 * 24 * 3_600_000;
/// Grace between SIGINT and SIGKILL when a runner lived too long: the runner
/// program needs a minute to cancel its job (facts.md 4.6).
pub const LIFETIME_GRACE_MS: u64 = 90_000;
/// Grace for a runner that is idle and already deregistered.
pub const IDLE_GRACE_MS: u64 = 5_000;
/// A sandbox without a registration that no intent names is given up after this.
pub const UNWANTED_SANDBOX_MS: u64 = 10 * 60_000;
/// Pause before a failed look, collection or removal is tried again.
pub const RETRY_MS: u64 = 5_000;

/// What the shell is doing for a runner right now. One at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Prepare,
    HandOver,
    Look,
    End,
    Collect,
    Remove,
}

/// Where a runner is, more finely than what is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Named by an intent, nothing made yet.
    Wanted,
    Preparing,
    Ready,
    HandingOver,
    Consumed,
    Online,
    Busy,
    /// Its process ended, or it is being taken away: only collecting is left.
    Ending,
    /// Its end is known; what is left of it is being removed.
    Removing,
    Exited,
    Failed,
}

/// One runner of this node.
#[derive(Clone, Debug)]
pub struct Runner {
    pub(crate) name: String,
    /// What the newest accepted intent says; none when it does not name it.
    pub(crate) desired: Option<Desired>,
    pub(crate) spec: Option<RunnerSpec>,
    pub(crate) stage: Stage,
    pub(crate) step: Option<Step>,
    pub(crate) observation: u64,
    pub(crate) worker: bool,
    /// The shell holds its registration in memory.
    pub(crate) registration: bool,
    /// Was ever handed a registration.
    pub(crate) consumed: bool,
    /// Why we end it; set before its end is asked for.
    pub(crate) ending: Option<(Cause, String)>,
    /// An end was asked for and its process has not died yet.
    pub(crate) end_asked: bool,
    /// The look that `stop_if_idle` asks for was made.
    pub(crate) looked_for_idle: bool,
    pub(crate) remove_refused: bool,
    pub(crate) exit: Option<Exit>,
    pub(crate) error: Option<RunnerError>,
    pub(crate) container_id: String,
    pub(crate) times: Times,
    /// Mono deadline of its life; set at the hand-over.
    pub(crate) deadline_ms: Option<u64>,
    pub(crate) unwanted_since_ms: Option<u64>,
    pub(crate) retry_not_before_ms: u64,
    pub(crate) foreign: bool,
    /// A report with its end was made.
    pub(crate) end_reported: bool,
}

impl Runner {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            desired: None,
            spec: None,
            stage: Stage::Wanted,
            step: None,
            observation: 1,
            worker: false,
            registration: false,
            consumed: false,
            ending: None,
            end_asked: false,
            looked_for_idle: false,
            remove_refused: false,
            exit: None,
            error: None,
            container_id: String::new(),
            times: Times::default(),
            deadline_ms: None,
            unwanted_since_ms: None,
            retry_not_before_ms: 0,
            foreign: false,
            end_reported: false,
        }
    }

    pub(crate) fn restored(observed: ObservedRunner) -> Self {
        let mut runner = Self::new(&observed.name);
        runner.stage = match observed.phase {
            Phase::Failed => Stage::Failed,
            Phase::Exited => Stage::Exited,
            Phase::Busy => Stage::Busy,
            Phase::Online => Stage::Online,
            Phase::Preparing | Phase::Ready | Phase::Consumed => Stage::Consumed,
        };
        runner.consumed = !observed.phase.is_over();
        runner.worker = observed.worker;
        runner.observation = observed.observation;
        runner.exit = observed.exit;
        runner.error = observed.error;
        runner.container_id = observed.container_id;
        runner.times = observed.times;
        runner.foreign = observed.foreign;
        runner
    }

    /// The phase that is reported.
    pub fn phase(&self) -> Phase {
        match self.stage {
            Stage::Wanted | Stage::Preparing => Phase::Preparing,
            Stage::Ready | Stage::HandingOver => Phase::Ready,
            Stage::Consumed => Phase::Consumed,
            Stage::Online => Phase::Online,
            Stage::Busy => Phase::Busy,
            // Until everything of it is gone it is what it was last.
            Stage::Ending | Stage::Removing => self.last_phase(),
            Stage::Exited => Phase::Exited,
            Stage::Failed => Phase::Failed,
        }
    }

    fn last_phase(&self) -> Phase {
        if self.times.busy.is_some() {
            Phase::Busy
        } else if self.times.online.is_some() {
            Phase::Online
        } else if self.consumed {
            Phase::Consumed
        } else if self.times.ready.is_some() {
            Phase::Ready
        } else {
            Phase::Preparing
        }
    }

    /// As it will be reported once it is gone.
    pub(crate) fn ended(&self) -> ObservedRunner {
        let phase = if self.stage == Stage::Failed {
            Phase::Failed
        } else {
            Phase::Exited
        };
        ObservedRunner {
            phase,
            ..self.observed()
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Exited | Stage::Failed)
    }

    /// A container of it may exist.
    pub(crate) fn has_sandbox(&self) -> bool {
        !self.is_over() && self.stage != Stage::Wanted
    }

    pub(crate) fn lives(&self) -> bool {
        matches!(self.stage, Stage::Consumed | Stage::Online | Stage::Busy)
    }

    /// Something of it changed: the old observation is no longer true.
    pub(crate) fn changed(&mut self) {
        self.observation += 1;
    }

    pub(crate) fn observed(&self) -> ObservedRunner {
        ObservedRunner {
            name: self.name.clone(),
            phase: self.phase(),
            observation: self.observation,
            worker: self.worker,
            // Told only with the phase it belongs to.
            exit: self.exit.clone(),
            error: self.error.clone(),
            container_id: self.container_id.clone(),
            times: self.times,
            foreign: self.foreign,
            remove_refused: self.remove_refused,
        }
    }

    pub(crate) fn lifetime_ms(&self) -> u64 {
        match self.spec.as_ref().map_or(0, |spec| spec.lifetime_ms) {
            0 => DEFAULT_LIFETIME_MS,
            ms => ms.min(MAX_LIFETIME_MS),
        }
    }

    pub(crate) fn finish_unstarted(&mut self, cause: Cause, detail: &str, now: Now) {
        self.stage = Stage::Exited;
        self.worker = false;
        self.exit = Some(Exit {
            code: None,
            cause,
            detail: detail.to_owned(),
            usage: None,
            finished_utc_ms: now.utc_ms,
            denied: None,
        });
        self.changed();
    }

    /// A look at its processes came back.
    pub(crate) fn saw(&mut self, worker: bool, now: Now) {
        if !self.lives() {
            return;
        }
        if worker {
            let first = self.times.busy.is_none();
            if first {
                self.times.online.get_or_insert(now.utc_ms);
                self.times.busy = Some(now.utc_ms);
            }
            if !self.worker || first {
                self.worker = true;
                self.stage = Stage::Busy;
                self.changed();
            }
        } else if self.worker {
            self.worker = false;
            self.changed();
        }
    }

    pub(crate) fn online(&mut self, now: Now) {
        if self.stage == Stage::Consumed {
            self.stage = Stage::Online;
            self.times.online = Some(now.utc_ms);
            self.changed();
        }
    }
}
