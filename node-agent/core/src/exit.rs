//! Reads a container's end: which cause, in which words.
//!
//! Codes of the runner program are facts.md 4.5 (actions/runner 2.336.0).

use crate::model::Cause;

/// Exit codes of the entry script (`sandbox::ENTRY`), outside the runner's own.
pub mod entry {
    /// The runner's root folder is missing.
    pub const NO_ROOT: i32 = 70;
    /// Standard input ended before a whole archive came.
    pub const NO_ARCHIVE: i32 = 71;
    /// The archive's last member, the marker, is missing.
    pub const NO_MARKER: i32 = 72;
    /// Length or hash of what arrived is not what the marker says.
    pub const MISMATCH: i32 = 73;
}

/// The runner program's own word that GitHub takes it no more.
pub const VERSION_DEPRECATED: i32 = 7;

/// What the engine says of a container that ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub code: Option<i32>,
    /// True even with code 0, when a child was killed.
    pub oom_killed: bool,
    /// It ended while the engine was away.
    pub engine_restarted: bool,
    /// The engine told it to end when it came back.
    pub engine_stopped: bool,
    /// Nobody saw it end: the engine has no time for it.
    pub unseen: bool,
    /// The engine's own error text.
    pub engine_error: String,
    /// The hand-over was complete.
    pub consumed: bool,
    /// Its use of the disk: which limit, in words.
    pub disk_full: Option<String>,
    /// We ended it, and why.
    pub ended_by_us: Option<(Cause, String)>,
}

/// Cause and a sentence for people.
pub fn classify(end: &Ended) -> (Cause, String) {
    // A job that ran out of memory while being stopped still ran out of memory.
    if end.oom_killed {
        return (
            Cause::OutOfMemory,
            "the memory limit was reached and the kernel killed a process; give the pool more memory".into(),
        );
    }
    if let Some(detail) = end.disk_full.as_ref().filter(|_| end.consumed) {
        return (Cause::DiskFull, detail.clone());
    }
    if let Some((cause, detail)) = &end.ended_by_us {
        return (*cause, detail.clone());
    }
    if !end.engine_error.is_empty() {
        return (
            Cause::Engine,
            format!("the engine says: {}", end.engine_error),
        );
    }
    let Some(code) = end.code else {
        return (Cause::Engine, "the engine lost the container".into());
    };
    match code {
        // The engine's word for an end that it was not there to see.
        _ if end.consumed && (end.unseen || code == 255) => (
            Cause::Engine,
            "the host or the container engine was restarted under it, and nobody saw its end".into(),
        ),
        _ if end.engine_stopped => (
            Cause::Engine,
            "the container engine restarted and told it to end; with live-restore in its configuration containers run on".into(),
        ),
        129..=192 if end.engine_restarted => (
            Cause::Engine,
            "the container engine restarted and ended it; with live-restore in its configuration containers run on".into(),
        ),
        entry::NO_ROOT => (
            Cause::NeverStarted,
            "the image has no usable /home/runner".into(),
        ),
        entry::NO_ARCHIVE | entry::NO_MARKER => (
            Cause::NeverStarted,
            "the hand-over was cut off; nothing was started".into(),
        ),
        entry::MISMATCH => (
            Cause::NeverStarted,
            "the hand-over arrived damaged; nothing was started".into(),
        ),
        126 | 127 => (
            Cause::NeverStarted,
            "the image has no runnable bin/Runner.Listener under /home/runner".into(),
        ),
        _ if !end.consumed => (
            Cause::NeverStarted,
            format!("the sandbox ended with code {code} before it got a registration"),
        ),
        0 => (Cause::Finished, String::new()),
        1 => (
            Cause::RunnerRefused,
            "the runner program refused its configuration or its registration is gone".into(),
        ),
        2 => (
            Cause::RunnerRefused,
            "the runner program met an unhandled error".into(),
        ),
        3 | 4 => (
            Cause::RunnerRefused,
            "the runner program wanted to update itself; use an image with a newer runner".into(),
        ),
        5 => (
            Cause::SessionConflict,
            "another session of this registration is open".into(),
        ),
        6 => (
            Cause::RunnerRefused,
            "the runner program restarted itself after a new configuration".into(),
        ),
        VERSION_DEPRECATED => (
            Cause::VersionDeprecated,
            "GitHub refuses this runner version; use an image with a newer runner".into(),
        ),
        100..=105 => (Cause::Finished, job_result(code).into()),
        129..=192 => (
            Cause::Killed,
            format!("ended by signal {} from outside the agent", code - 128),
        ),
        _ => (
            Cause::Finished,
            format!("the runner program ended with code {code}"),
        ),
    }
}

fn job_result(code: i32) -> &'static str {
    match code {
        100 => "job succeeded",
        101 => "job succeeded with issues",
        102 => "job failed",
        103 => "job cancelled",
        104 => "job skipped",
        _ => "job abandoned",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(code: i32) -> Ended {
        Ended {
            code: Some(code),
            consumed: true,
            ..Ended::default()
        }
    }

    #[test]
    fn codes_of_the_runner_program() {
        for (code, cause) in [
            (0, Cause::Finished),
            (1, Cause::RunnerRefused),
            (2, Cause::RunnerRefused),
            (3, Cause::RunnerRefused),
            (4, Cause::RunnerRefused),
            (5, Cause::SessionConflict),
            (6, Cause::RunnerRefused),
            (7, Cause::VersionDeprecated),
            (100, Cause::Finished),
            (101, Cause::Finished),
            (102, Cause::Finished),
            (103, Cause::Finished),
            (104, Cause::Finished),
            (105, Cause::Finished),
            (106, Cause::Finished),
            (137, Cause::Killed),
            (126, Cause::NeverStarted),
            (127, Cause::NeverStarted),
            (entry::MISMATCH, Cause::NeverStarted),
        ] {
            assert_eq!(classify(&ran(code)).0, cause, "code {code}");
        }
    }

    #[test]
    fn every_result_has_its_word_and_what_is_none_says_its_code() {
        for (code, word) in [
            (100, "job succeeded"),
            (101, "job succeeded with issues"),
            (102, "job failed"),
            (103, "job cancelled"),
            (104, "job skipped"),
            (105, "job abandoned"),
            (106, "the runner program ended with code 106"),
        ] {
            assert_eq!(classify(&ran(code)).1, word);
        }
    }

    #[test]
    fn out_of_memory_counts_even_with_code_zero() {
        let end = Ended {
            oom_killed: true,
            ..ran(0)
        };
        assert_eq!(classify(&end).0, Cause::OutOfMemory);
    }

    #[test]
    fn a_full_disk_is_the_cause_of_what_came_after_it() {
        let end = Ended {
            disk_full: Some("64 MiB".into()),
            ended_by_us: Some((Cause::Lifetime, "6 h".into())),
            ..ran(137)
        };
        assert_eq!(classify(&end), (Cause::DiskFull, "64 MiB".into()));
        let hungry = Ended {
            oom_killed: true,
            ..end.clone()
        };
        assert_eq!(classify(&hungry).0, Cause::OutOfMemory);
        let never_given = Ended {
            consumed: false,
            ended_by_us: None,
            ..end
        };
        assert_eq!(classify(&never_given).0, Cause::NeverStarted);
    }

    #[test]
    fn our_own_reason_stands_over_the_code() {
        let end = Ended {
            ended_by_us: Some((Cause::Lifetime, "6 h".into())),
            ..ran(137)
        };
        assert_eq!(classify(&end), (Cause::Lifetime, "6 h".into()));
    }

    #[test]
    fn nothing_started_before_the_hand_over_counts_as_a_job() {
        let end = Ended {
            code: Some(0),
            consumed: false,
            ..Ended::default()
        };
        assert_eq!(classify(&end).0, Cause::NeverStarted);
    }

    #[test]
    fn a_signal_while_the_engine_was_away_is_the_engines_doing() {
        let end = Ended {
            engine_restarted: true,
            ..ran(137)
        };
        assert_eq!(classify(&end).0, Cause::Engine);
        let own = Ended {
            engine_restarted: true,
            ..ran(0)
        };
        assert_eq!(classify(&own).0, Cause::Finished, "it ended by itself");
        let told = Ended {
            engine_stopped: true,
            ..own
        };
        assert_eq!(
            classify(&told).0,
            Cause::Engine,
            "a runner program that is told to end does so in good order"
        );
        assert_eq!(classify(&ran(137)).0, Cause::Killed);
    }

    #[test]
    fn a_lost_container_is_the_engines_doing() {
        let end = Ended {
            consumed: true,
            ..Ended::default()
        };
        assert_eq!(classify(&end).0, Cause::Engine);
    }
}
