//! Whose doing the end of a job was: its own result, the infrastructure's, or a person's.
//!
//! GitHub only says success, failure or cancelled, and says failure of a job whose
//! machine died. What the node saw of the runner decides between the two.

use crate::{
    fact::{RetireReason, StopReason},
    model::Conclusion,
};

/// Whose doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The job's steps decided.
    Result,
    /// The machines or the fleet.
    Infrastructure,
    /// A person, or GitHub for one.
    Cancelled,
}

impl Kind {
    /// The word of every surface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Infrastructure => "infrastructure",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The end of a job, classified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub kind: Kind,
    /// Stable word: GitHub's conclusion of a result, else what was at fault.
    pub reason: String,
    /// For people; may be empty.
    pub detail: String,
    /// Of the runner program.
    pub exit_code: Option<i32>,
}

/// How the runner that took the job ended, in the words of the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunnerEnd<'a> {
    pub code: Option<i32>,
    /// `RunnerExit.Cause` in lower case; empty when nobody saw it end.
    pub cause: &'a str,
    pub detail: &'a str,
    /// Why the fleet told it to stop: a word, and after a colon a person's reason.
    pub told_to_stop: Option<&'a str>,
    /// Why it is over.
    pub retired: &'a str,
}

/// Classifies. `conclusion` is GitHub's word, absent while it gave none; `end` is
/// absent while the runner lives or is not ours. `None`: the job has not ended.
pub fn of(conclusion: Option<&str>, end: Option<RunnerEnd<'_>>) -> Option<Ending> {
    let end = end.unwrap_or_default();
    let fault = fault(&end);
    let ending = |kind, reason: &str, detail: &str| Ending {
        kind,
        reason: reason.to_owned(),
        detail: detail.to_owned(),
        exit_code: end.code,
    };
    let (word, rest) = split(end.told_to_stop.unwrap_or_default());
    match (conclusion, fault) {
        // A person's stop looks like a fault to the node.
        (None | Some("failure" | "cancelled"), _) if word == "asked" && !end.retired.is_empty() => {
            Some(ending(Kind::Cancelled, "stopped", rest))
        }
        // GitHub waits for a dead runner's word for minutes; the fleet knows already.
        (None, Some((reason, detail))) => Some(ending(Kind::Infrastructure, reason, detail)),
        (None, None) => None,
        // Whatever happened besides, its steps came to their end.
        (Some(word @ ("success" | "skipped" | "neutral")), _) => {
            Some(ending(Kind::Result, word, ""))
        }
        (Some(_), Some((reason, detail))) => Some(ending(Kind::Infrastructure, reason, detail)),
        (Some("cancelled"), None) => Some(ending(Kind::Cancelled, "cancelled", "")),
        (Some(word), None) => Some(ending(Kind::Result, word, "")),
    }
}

/// What was at fault, when it was not the job.
fn fault<'a>(end: &RunnerEnd<'a>) -> Option<(&'a str, &'a str)> {
    let (word, rest) = split(end.told_to_stop.unwrap_or_default());
    match (end.cause, end.retired) {
        // These say more than the order to stop that may have come on top.
        (
            cause @ ("out_of_memory" | "disk_full" | "engine" | "version_deprecated"
            | "session_conflict" | "runner_refused" | "never_started"),
            _,
        ) => Some((cause, end.detail)),
        (_, "vanished" | "node_removed") => Some((
            "node_lost",
            "its node lost it or was removed from the fleet",
        )),
        ("lifetime", _) => Some(("lifetime", end.detail)),
        ("killed", _) => match word {
            // The job was over when it was told to stop, or nobody cares about a job.
            "completed_but_alive" | "idle" | "surplus" => None,
            "" => Some(("killed", end.detail)),
            "not_admitted" => Some(("not_admitted", rest)),
            "asked" => None,
            word => Some((word_of(word), end.detail)),
        },
        _ => None,
    }
}

fn word_of(word: &str) -> &'static str {
    match word {
        "lifetime" => "lifetime",
        "drain_deadline" => "drain_deadline",
        "ghost" => "ghost",
        "never_started" => "never_started",
        _ => "killed",
    }
}

fn split(words: &str) -> (&str, &str) {
    words.split_once(": ").unwrap_or((words, ""))
}

impl Conclusion {
    /// GitHub's word.
    pub fn word(&self) -> &str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::TimedOut => "timed_out",
            Self::Other(word) => word,
        }
    }
}

impl StopReason {
    /// The history's words: a stable one, and after a colon what a person or GitHub said.
    pub fn words(&self) -> String {
        let (word, said) = match self {
            Self::Idle => ("idle", None),
            Self::Surplus => ("surplus", None),
            Self::Lifetime => ("lifetime", None),
            Self::Asked(reason) => ("asked", Some(reason)),
            Self::DrainDeadline => ("drain_deadline", None),
            Self::NotAdmitted(reason) => ("not_admitted", Some(reason)),
            Self::NotRegistered(detail) => ("not_registered", Some(detail)),
            Self::RegistrationLost => ("registration_lost", None),
            Self::Ghost => ("ghost", None),
            Self::CompletedButAlive => ("completed_but_alive", None),
            Self::NeverStarted => ("never_started", None),
        };
        match said {
            Some(said) => format!("{word}: {said}"),
            None => word.to_owned(),
        }
    }
}

impl RetireReason {
    /// The history's word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::NotRegistered => "not_registered",
            Self::NotPrepared(_) => "not_prepared",
            Self::RegistrationLost => "registration_lost",
            Self::NodeRemoved => "node_removed",
            Self::Vanished => "vanished",
            Self::Stopped => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(cause: &'static str, code: i32) -> RunnerEnd<'static> {
        RunnerEnd {
            code: Some(code),
            cause,
            detail: "why",
            told_to_stop: None,
            retired: "finished",
        }
    }

    fn kind(conclusion: &str, end: RunnerEnd<'_>) -> (Kind, String) {
        let ending = of(Some(conclusion), Some(end)).unwrap();
        (ending.kind, ending.reason)
    }

    #[test]
    fn a_failed_job_is_its_own_result_unless_the_node_saw_something_else() {
        assert_eq!(
            kind("failure", ran("finished", 0)),
            (Kind::Result, "failure".into())
        );
        for fault in [
            "out_of_memory",
            "disk_full",
            "engine",
            "lifetime",
            "killed",
            "version_deprecated",
        ] {
            let ending = of(Some("failure"), Some(ran(fault, 137))).unwrap();
            assert_eq!(
                (ending.kind, ending.reason.as_str()),
                (Kind::Infrastructure, fault)
            );
            assert_eq!(
                (ending.detail.as_str(), ending.exit_code),
                ("why", Some(137))
            );
        }
    }

    #[test]
    fn a_success_is_one_whatever_the_runner_did_afterwards() {
        let oom = kind("success", ran("out_of_memory", 0));
        assert_eq!(oom, (Kind::Result, "success".into()));
        let stuck = RunnerEnd {
            told_to_stop: Some("completed_but_alive"),
            ..ran("killed", 137)
        };
        assert_eq!(kind("failure", stuck), (Kind::Result, "failure".into()));
        assert_eq!(kind("cancelled", stuck).0, Kind::Cancelled);
    }

    #[test]
    fn who_stopped_a_job_is_told() {
        let asked = RunnerEnd {
            told_to_stop: Some("asked: too loud"),
            retired: "stopped",
            ..ran("killed", 130)
        };
        let ending = of(Some("cancelled"), Some(asked)).unwrap();
        assert_eq!(
            (ending.kind, ending.detail.as_str()),
            (Kind::Cancelled, "too loud")
        );
        let life = RunnerEnd {
            told_to_stop: Some("lifetime"),
            ..ran("killed", 130)
        };
        assert_eq!(
            kind("cancelled", life),
            (Kind::Infrastructure, "lifetime".into())
        );
        let refused = RunnerEnd {
            told_to_stop: Some("not_admitted: forks are refused"),
            ..ran("killed", 130)
        };
        let ending = of(Some("cancelled"), Some(refused)).unwrap();
        assert_eq!(ending.reason, "not_admitted");
        assert_eq!(ending.detail, "forks are refused");
        assert_eq!(
            kind("cancelled", ran("finished", 0)),
            (Kind::Cancelled, "cancelled".into())
        );
    }

    #[test]
    fn a_lost_node_is_known_before_github_gives_up() {
        let lost = RunnerEnd {
            retired: "vanished",
            ..RunnerEnd::default()
        };
        let ending = of(None, Some(lost)).unwrap();
        assert_eq!(
            (ending.kind, ending.reason.as_str()),
            (Kind::Infrastructure, "node_lost")
        );
        assert_eq!(of(None, None), None, "it runs");
        assert_eq!(
            of(None, Some(ran("finished", 0))),
            None,
            "GitHub's word is still to come"
        );
    }

    #[test]
    fn a_job_of_a_strangers_runner_has_githubs_word_only() {
        let ending = of(Some("timed_out"), None).unwrap();
        assert_eq!(
            (ending.kind, ending.reason.as_str()),
            (Kind::Result, "timed_out")
        );
    }
}
