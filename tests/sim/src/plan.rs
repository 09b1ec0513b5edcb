//! What a run is made of: how much work, which faults, how often.

use github_sim::machine::{Delay, Faults as GithubFaults, RunnerFields};

use crate::dice::Dice;

pub const SECOND: u64 = 1_000;
pub const MINUTE: u64 = 60 * SECOND;

/// Everything that can go wrong on this side of GitHub. GitHub's own faults are
/// github-sim's; both are counted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The scheduler's process dies between two events.
    SchedulerCrash,
    /// It dies at a call of a port: before it, or after its effect.
    SchedulerCrashAtCall,
    /// The commit fails and keeps nothing.
    CommitFails,
    /// The commit is kept, its answer is lost.
    CommitAnswerLost,
    /// The disk is slow for seconds.
    CommitStalls,
    /// The network between a node and the scheduler.
    Partition,
    /// The agent's process dies; containers run on.
    AgentCrash,
    /// The host dies and comes back.
    HostCrash,
    /// The engine restarts without live-restore.
    EngineRestart,
    /// The scheduler's wall clock jumps.
    ClockStep,
    PrepareFails,
    HandOverFails,
    LookFails,
    /// The runner program ends itself instead of taking a job.
    RunnerQuits,
}

impl Fault {
    pub const ALL: [Self; 14] = [
        Self::SchedulerCrash,
        Self::SchedulerCrashAtCall,
        Self::CommitFails,
        Self::CommitAnswerLost,
        Self::CommitStalls,
        Self::Partition,
        Self::AgentCrash,
        Self::HostCrash,
        Self::EngineRestart,
        Self::ClockStep,
        Self::PrepareFails,
        Self::HandOverFails,
        Self::LookFails,
        Self::RunnerQuits,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::SchedulerCrash => "scheduler_crash",
            Self::SchedulerCrashAtCall => "scheduler_crash_at_call",
            Self::CommitFails => "commit_fails",
            Self::CommitAnswerLost => "commit_answer_lost",
            Self::CommitStalls => "commit_stalls",
            Self::Partition => "partition",
            Self::AgentCrash => "agent_crash",
            Self::HostCrash => "host_crash",
            Self::EngineRestart => "engine_restart",
            Self::ClockStep => "clock_step",
            Self::PrepareFails => "prepare_fails",
            Self::HandOverFails => "hand_over_fails",
            Self::LookFails => "look_fails",
            Self::RunnerQuits => "runner_quits",
        }
    }
}

/// GitHub's faults that a run with everything on may meet, by github-sim's names.
pub const GITHUB_FAULTS: [&str; 15] = [
    "webhook_drop",
    "webhook_duplicate",
    "webhook_reorder",
    "webhook_delay",
    "webhook_waiting_after_queued",
    "webhook_runner_fields",
    "list_lag_ms",
    "busy_flip",
    "jit_500_after_create",
    "jit_500_before_create",
    "jit_409",
    "server_502",
    "cut_after_effect",
    "acquire_conflict",
    "drop_assignment",
];

/// How much of what a run contains.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Workflow runs to start.
    pub runs: u64,
    /// They start within this time, and so do all faults.
    pub busy_ms: u64,
    /// Timed faults on our side within that time, of each kind.
    pub faults: Vec<(Fault, u64)>,
    pub github: GithubFaults,
    /// Per 10,000 steps of their kind.
    pub prepare_fails: u64,
    pub hand_over_fails: u64,
    pub look_fails: u64,
    pub runner_quits: u64,
    /// Runs that somebody cancels, per 10,000.
    pub cancels: u64,
    /// Deliveries at all; without them only sweeps tell.
    pub webhooks: bool,
    pub sweep_ms: u64,
    /// Runs that wait for an approval, per 10,000.
    pub approvals: u64,
    /// Jobs with labels nobody here has, per 10,000.
    pub unrunnable: u64,
    /// Crash at exactly this call of a port, once.
    pub crash_at_call: Option<u64>,
    /// Longest time from the end of the busy time until everything is done.
    pub settle_ms: u64,
    /// Jobs of one run, at most.
    pub matrix: u64,
    /// Longest job.
    pub longest_job_ms: u64,
    /// An idle runner is stopped after so long.
    pub idle_ms: u64,
    pub trace: bool,
}

impl Plan {
    /// Nothing goes wrong.
    pub fn calm(seed: u64) -> Self {
        Self {
            seed,
            runs: 40,
            busy_ms: 20 * MINUTE,
            faults: Vec::new(),
            github: GithubFaults::default(),
            prepare_fails: 0,
            hand_over_fails: 0,
            look_fails: 0,
            runner_quits: 0,
            cancels: 0,
            webhooks: true,
            sweep_ms: MINUTE,
            approvals: 0,
            unrunnable: 1_000,
            crash_at_call: None,
            settle_ms: 120 * MINUTE,
            matrix: 4,
            longest_job_ms: 2 * MINUTE,
            idle_ms: 5 * MINUTE,
            trace: false,
        }
    }

    /// Everything goes wrong now and then; how often differs from seed to seed.
    pub fn stormy(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x0706_1a57);
        let mut often = |most: u64| dice.below(most + 1);
        let percent = |n: u64| n as f64 / 100.0;
        let github = GithubFaults {
            webhook_drop: percent(often(30)),
            webhook_duplicate: percent(often(30)),
            webhook_reorder: percent(often(30)),
            webhook_delay: Delay {
                probability: percent(often(30)),
                min_ms: 100,
                max_ms: 90 * SECOND,
                actions: Vec::new(),
            },
            webhook_runner_fields: match often(2) {
                0 => RunnerFields::Null,
                1 => RunnerFields::Zero,
                _ => RunnerFields::Empty,
            },
            webhook_waiting_after_queued: percent(often(20)),
            list_lag_ms: often(1) * often(20 * SECOND),
            busy_flip: percent(often(20)),
            jit_500_after_create: percent(often(15)),
            jit_500_before_create: percent(often(10)),
            jit_409: percent(often(10)),
            server_502: percent(often(5)),
            cut_after_effect: percent(often(5)),
            acquire_conflict: percent(often(5)),
            drop_assignment: percent(often(5)),
            ..GithubFaults::default()
        };
        let faults = [
            (Fault::SchedulerCrash, often(3)),
            (Fault::SchedulerCrashAtCall, often(8)),
            (Fault::CommitFails, often(2)),
            (Fault::CommitAnswerLost, often(2)),
            (Fault::CommitStalls, often(3)),
            (Fault::Partition, often(5)),
            (Fault::AgentCrash, often(4)),
            (Fault::HostCrash, often(2)),
            (Fault::EngineRestart, often(2)),
            (Fault::ClockStep, often(2)),
        ];
        Self {
            faults: faults.to_vec(),
            github,
            prepare_fails: often(300),
            hand_over_fails: often(300),
            look_fails: often(5_000),
            approvals: often(2_000),
            runner_quits: often(200),
            cancels: often(1_500),
            runs: 50 + often(30),
            ..Self::calm(seed)
        }
    }
}
