//! The SQL merges rows exactly as the written rules do: the same random facts,
//! in the same commits, give the same rows in both stores.

use std::sync::Arc;

use scheduler_core::{
    fact::{Fact, RetireReason, StopReason},
    input::ObservedPhase,
    model::{Conclusion, JobId, JobPhase, RunnerName, Scope},
};
use scheduler_store::{Commit, JobQuery, Memory, Options, RunnerQuery, Sqlite, Store};

use super::samples::{exit, job, placed};

/// xorshift: seeded, no dependency.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let n = self.below(of.len() as u64);
        of[usize::try_from(n).expect("small")].clone()
    }
}

fn any_fact(dice: &mut Dice, at: u64) -> Fact {
    let id = 1 + dice.below(6);
    let runner = RunnerName::new(format!("ls-f-{}", dice.below(5)));
    let phases = [
        JobPhase::Waiting,
        JobPhase::Queued,
        JobPhase::InProgress,
        JobPhase::Completed,
    ];
    match dice.below(11) {
        0 | 1 => {
            let mut seen = job(id, dice.pick(&phases));
            seen.repository.name = dice.pick(&["web", "api"]).to_owned();
            seen.conclusion = dice.pick(&[None, Some(Conclusion::Success)]);
            seen.started_at = dice.pick(&[None, Some(at)]);
            seen.completed_at = dice.pick(&[None, Some(at + 1)]);
            Fact::JobLearnt {
                job: Arc::new(seen),
                at,
            }
        }
        2 | 3 => Fact::JobPhaseChanged {
            job: JobId(id),
            phase: dice.pick(&phases),
            conclusion: dice.pick(&[None, Some(Conclusion::Failure)]),
            at,
        },
        4 => Fact::JobBound {
            job: JobId(id),
            runner,
            ours: dice.below(2) == 0,
            at,
        },
        5 => match dice.below(4) {
            0 => Fact::RepositoryGone {
                id: 77,
                full_name: "mona/api".into(),
            },
            _ => Fact::JobForgotten { job: JobId(id) },
        },
        6 => {
            let mut there = placed(runner.as_str(), "n1", at);
            if dice.below(2) == 0 {
                *Arc::make_mut(&mut there.scope) = Scope::Organization {
                    login: "mona".into(),
                };
                there.repository = None;
            }
            Fact::RunnerPlaced(Arc::new(there))
        }
        7 => Fact::RunnerRegistered {
            runner,
            github_id: at,
            at,
        },
        8 => Fact::RunnerObserved {
            runner,
            phase: dice.pick(&[
                ObservedPhase::Preparing,
                ObservedPhase::Ready,
                ObservedPhase::Consumed,
                ObservedPhase::Online,
                ObservedPhase::Busy,
                ObservedPhase::Exited,
            ]),
            observation: at,
            worker: false,
            container_id: dice.pick(&["", "c1", "c2"]).to_owned(),
            at,
        },
        9 => Fact::RunnerStopping {
            runner,
            why: dice.pick(&[StopReason::Idle, StopReason::Asked("me".into())]),
            at,
        },
        _ => Fact::RunnerRetired {
            runner,
            exit: dice.pick(&[None, Some(exit())]),
            why: dice.pick(&[
                RetireReason::Finished,
                RetireReason::NotPrepared("no image".into()),
            ]),
            deregister: false,
            at,
        },
    }
}

async fn all_rows(
    store: &impl Store,
) -> (
    Vec<scheduler_store::JobRow>,
    Vec<scheduler_store::RunnerRow>,
    Vec<scheduler_store::RepositoryCounts>,
) {
    let jobs = store.jobs(JobQuery::default()).await.expect("jobs").items;
    let runners = RunnerQuery {
        include_finished: true,
        ..RunnerQuery::default()
    };
    let runners = store.runners(runners).await.expect("runners").items;
    let counts = store.repository_counts(0, None).await.expect("counts");
    (jobs, runners, counts)
}

#[tokio::test]
async fn sql_and_rules_agree_on_random_facts() {
    for seed in 1..=12 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let dir = tempfile::tempdir().expect("temporary folder");
        let sqlite = Sqlite::open(Options::new(dir.path())).await.expect("open");
        let memory = Memory::new("f");
        let mut at = 0;
        for _ in 0..60 {
            let facts: Vec<_> = (0..dice.below(6))
                .map(|_| {
                    at += 1;
                    any_fact(&mut dice, at)
                })
                .collect();
            let commit = Commit {
                at: 10_000 + at,
                facts,
                ..Commit::default()
            };
            sqlite.commit(commit.clone()).await.expect("commit");
            memory.commit(commit.clone()).await.expect("commit");
            assert_eq!(
                all_rows(&sqlite).await,
                all_rows(&memory).await,
                "seed {seed}, after {:#?}",
                commit.facts
            );
        }
    }
}
