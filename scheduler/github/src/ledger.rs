//! What became of the runs seen within the window, for listings. Pure.
//!
//! Failures come from what webhooks and sweeps told anyway, never from a call
//! of their own, and a failed run is never demand.

use std::collections::BTreeMap;

use scheduler_core::model::UtcMillis;

use crate::status::ArchForecast;

/// Runs remembered per repository; the oldest fall out.
const MOST_RUNS: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunState {
    Queued,
    /// Waiting for an approval or a concurrency group.
    Held,
    Running,
    Failed,
    /// Completed otherwise.
    Done,
}

impl RunState {
    pub(crate) fn of(status: Option<&str>, conclusion: Option<&str>) -> Self {
        match status {
            Some("queued") => Self::Queued,
            Some("in_progress") => Self::Running,
            Some("completed") => match conclusion {
                Some("failure" | "timed_out" | "startup_failure") => Self::Failed,
                _ => Self::Done,
            },
            _ => Self::Held,
        }
    }

    fn is_live(self) -> bool {
        matches!(self, Self::Queued | Self::Held | Self::Running)
    }
}

/// Architecture a workflow's file name mentions: a forecast, never routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X64,
    Arm64,
    Unknown,
}

/// Reads `.github/workflows/build-arm64.yml` and its like.
pub(crate) fn arch_of(path: &str) -> Arch {
    let file = path.split('@').next().unwrap_or_default();
    let file = file.rsplit('/').next().unwrap_or_default().to_lowercase();
    let arm = ["arm64", "aarch64"].iter().any(|word| file.contains(word));
    let x64 = ["amd64", "x86", "x64"]
        .iter()
        .any(|word| file.contains(word));
    match (arm, x64) {
        (true, false) => Arch::Arm64,
        (false, true) => Arch::X64,
        _ => Arch::Unknown,
    }
}

#[derive(Clone, Copy, Debug)]
struct Note {
    state: RunState,
    arch: Arch,
    at: UtcMillis,
    /// A job of it failed: that is how it will end.
    failed_job: bool,
}

impl Note {
    fn end(&mut self) {
        self.state = if self.failed_job {
            RunState::Failed
        } else {
            RunState::Done
        };
    }
}

/// Counts of one repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) total: u32,
    pub(crate) running: u32,
    pub(crate) failed: u32,
    pub(crate) queued: u32,
    pub(crate) held: u32,
    pub(crate) forecast: ArchForecast,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    repositories: BTreeMap<u64, BTreeMap<u64, Note>>,
}

impl Ledger {
    pub(crate) fn set(
        &mut self,
        repository: u64,
        run: u64,
        state: RunState,
        path: Option<&str>,
        now: UtcMillis,
    ) {
        let runs = self.repositories.entry(repository).or_default();
        let arch = path.map(arch_of);
        let note = runs.entry(run).or_insert(Note {
            state,
            arch: Arch::Unknown,
            at: now,
            failed_job: false,
        });
        note.state = state;
        note.failed_job &= state != RunState::Queued;
        note.at = now;
        note.arch = arch.unwrap_or(note.arch);
        while runs.len() > MOST_RUNS {
            runs.pop_first();
        }
    }

    /// Live runs that a complete look at the repository did not show any more are over.
    pub(crate) fn settle(&mut self, repository: u64, still: impl Fn(u64) -> bool) {
        for (run, note) in self.repositories.entry(repository).or_default() {
            if note.state.is_live() && !still(*run) {
                note.end();
            }
        }
    }

    /// A job of the run failed: so will the run.
    pub(crate) fn fail(&mut self, repository: u64, run: u64) {
        let runs = self.repositories.get_mut(&repository);
        if let Some(note) = runs.and_then(|runs| runs.get_mut(&run)) {
            note.failed_job = true;
        }
    }

    /// No job of the run is left.
    pub(crate) fn finish(&mut self, repository: u64, run: u64) {
        let runs = self.repositories.get_mut(&repository);
        if let Some(note) = runs.and_then(|runs| runs.get_mut(&run))
            && note.state.is_live()
        {
            note.end();
        }
    }

    pub(crate) fn is_live(&self, repository: u64) -> bool {
        self.repositories
            .get(&repository)
            .is_some_and(|runs| runs.values().any(|note| note.state.is_live()))
    }

    pub(crate) fn forget_repository(&mut self, repository: u64) {
        self.repositories.remove(&repository);
    }

    /// Forgets what is over and older than the window.
    pub(crate) fn prune(&mut self, oldest: UtcMillis) {
        for runs in self.repositories.values_mut() {
            runs.retain(|_, note| note.state.is_live() || note.at >= oldest);
        }
        self.repositories.retain(|_, runs| !runs.is_empty());
    }

    pub(crate) fn counts(&self, repository: u64) -> Counts {
        let mut counts = Counts::default();
        for note in self
            .repositories
            .get(&repository)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            counts.total += 1;
            match note.state {
                RunState::Queued => counts.queued += 1,
                RunState::Held => counts.held += 1,
                RunState::Running => counts.running += 1,
                RunState::Failed => counts.failed += 1,
                RunState::Done => {}
            }
            if note.state.is_live() {
                match note.arch {
                    Arch::X64 => counts.forecast.x64 += 1,
                    Arch::Arm64 => counts.forecast.arm64 += 1,
                    Arch::Unknown => counts.forecast.unknown += 1,
                }
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_name_alone_forecasts_the_architecture() {
        for (path, arch) in [
            (".github/workflows/build-arm64.yml", Arch::Arm64),
            (".github/workflows/AArch64.yaml@refs/heads/x64", Arch::Arm64),
            (".github/workflows/docker-amd64.yml", Arch::X64),
            (".github/workflows/test_x86_64.yml", Arch::X64),
            (".github/workflows/multi-x64-arm64.yml", Arch::Unknown),
            ("x64/ci.yml", Arch::Unknown),
            ("", Arch::Unknown),
        ] {
            assert_eq!(arch_of(path), arch, "{path}");
        }
    }

    #[test]
    fn counts_follow_the_runs_and_the_window() {
        let mut ledger = Ledger::default();
        ledger.set(1, 10, RunState::Queued, Some("a-arm64.yml"), 100);
        ledger.set(1, 11, RunState::Running, Some("b.yml"), 100);
        ledger.set(
            1,
            12,
            RunState::of(Some("completed"), Some("timed_out")),
            None,
            100,
        );
        ledger.set(
            1,
            13,
            RunState::of(Some("pending"), None),
            Some("c-x64.yml"),
            100,
        );
        let counts = ledger.counts(1);
        assert_eq!(
            (
                counts.total,
                counts.queued,
                counts.running,
                counts.failed,
                counts.held
            ),
            (4, 1, 1, 1, 1)
        );
        assert_eq!(
            counts.forecast,
            ArchForecast {
                x64: 1,
                arm64: 1,
                unknown: 1
            }
        );
        ledger.set(1, 10, RunState::Running, None, 200);
        assert_eq!(ledger.counts(1).forecast.arm64, 1, "the path is remembered");
        ledger.fail(1, 11);
        ledger.settle(1, |run| run == 10);
        assert_eq!(
            ledger.counts(1).failed,
            2,
            "a failed job fails its run when that ends"
        );
        ledger.prune(150);
        let counts = ledger.counts(1);
        assert_eq!((counts.total, counts.running, counts.failed), (1, 1, 0));
        ledger.finish(1, 10);
        assert!(!ledger.is_live(1));
    }

    #[test]
    fn a_flood_of_runs_is_bounded() {
        let mut ledger = Ledger::default();
        for run in 0..3_000 {
            ledger.set(1, run, RunState::Queued, None, run);
        }
        assert_eq!(ledger.counts(1).total, 1_000);
    }
}
