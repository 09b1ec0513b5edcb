//! What jobs take of their GPUs' memory: looked at while a job holds a GPU, and at no other time.
//!
//! The driver keeps no peak of a device. So one thread looks at what is in use now and
//! then, and takes off the least that was ever seen in use: that was there without the
//! job. Where the driver's accounting is on, it knows the peak of each process between
//! two looks as well, and the greater figure counts. The driver is never waited for: one
//! that hangs costs this thread and the figure, no job its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::nvidia::{Library, open};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How long the end of a job waits for the last look.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// Jobs measured at the same time.
const MOST_JOBS: usize = 256;

/// The memory of GPUs, as somebody can tell it.
trait Memory {
    /// Bytes in use on a device or an instance; none where that is not told.
    fn used(&self, uuid: &str) -> Option<u64>;
    /// Processes that the driver keeps account of, and the most each ever had. None
    /// where it keeps none.
    fn accounts(&self, uuid: &str) -> Option<BTreeMap<u32, u64>>;
}

impl Memory for Library {
    fn used(&self, uuid: &str) -> Option<u64> {
        self.memory_used(uuid)
    }

    fn accounts(&self, uuid: &str) -> Option<BTreeMap<u32, u64>> {
        self.memory_accounts(uuid)
    }
}

type Open = Box<dyn Fn() -> Option<Arc<dyn Memory + Send + Sync>> + Send + Sync>;

/// Measures jobs, each from its `begin` to its `end`.
pub struct Meter {
    shared: Arc<Shared>,
}

struct Shared {
    open: Open,
    pause: Duration,
    jobs: Mutex<Jobs>,
    /// A job came, is to be looked at for the last time, or was.
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    of: BTreeMap<String, Job>,
    begun: u64,
    /// The thread lives while there are jobs.
    thread: bool,
}

struct Job {
    /// A name may be begun anew while its GPUs are being looked at.
    number: u64,
    gpus: Vec<String>,
    stage: Stage,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    New,
    Running,
    /// Its end waits for one more look.
    Ending,
    Ended,
}

/// Processes with an account, by GPU and number.
type Accounts = BTreeMap<(String, u32), u64>;

/// What was seen of one job, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Least and most in use on all its GPUs together.
    least: u64,
    most: u64,
    looks: u32,
    /// Processes with an account when it began; none where that was not told.
    before: Option<BTreeSet<(String, u32)>>,
    /// Most that one process of the job had.
    process: Option<u64>,
}

impl Seen {
    fn used(&mut self, bytes: u64) {
        if self.looks == 0 {
            self.least = bytes;
        }
        self.least = self.least.min(bytes);
        self.most = self.most.max(bytes);
        self.looks = self.looks.saturating_add(1);
    }

    fn first_accounts(&mut self, accounts: Accounts) {
        self.before = Some(accounts.into_keys().collect());
    }

    fn last_accounts(&mut self, accounts: &Accounts) {
        let Some(before) = &self.before else { return };
        let of_job = accounts.iter().filter(|(key, _)| !before.contains(*key));
        self.process = of_job.map(|(_, bytes)| *bytes).max();
    }

    /// None while there is nothing to compare the first look with.
    fn peak(&self) -> Option<u64> {
        let looked = (self.looks > 1).then(|| self.most - self.least);
        looked.max(self.process)
    }
}

impl Meter {
    /// Of the GPUs of this host, by the driver's library.
    pub fn new(root: &Path) -> Self {
        let root: PathBuf = root.to_owned();
        Self::of(
            Box::new(move || match open(&root) {
                Ok(library) => Some(library as Arc<dyn Memory + Send + Sync>),
                Err(problem) => {
                    debug!(problem, "memory of GPUs is not measured");
                    None
                }
            }),
            LOOK,
        )
    }

    fn of(open: Open, pause: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                open,
                pause,
                jobs: Mutex::default(),
                changed: Condvar::new(),
            }),
        }
    }

    /// From now on `runner` holds these GPUs. The first look is taken at once.
    pub fn begin(&self, runner: &str, gpus: &[String]) {
        if gpus.is_empty() {
            return;
        }
        let mut jobs = self.shared.lock();
        if jobs.of.len() >= MOST_JOBS {
            return;
        }
        jobs.begun += 1;
        let job = Job {
            number: jobs.begun,
            gpus: gpus.to_vec(),
            stage: Stage::New,
            seen: Seen::default(),
        };
        jobs.of.insert(runner.to_owned(), job);
        if !jobs.thread {
            let shared = self.shared.clone();
            let started = std::thread::Builder::new()
                .name("gpu-memory".into())
                .spawn(move || shared.look_while_needed());
            match started {
                Ok(_) => jobs.thread = true,
                Err(error) => {
                    warn!(%error, "memory of GPUs is not measured: no thread");
                    jobs.of.clear();
                }
            }
        }
        self.shared.changed.notify_all();
    }

    /// Whether `runner` is measured.
    pub fn holds(&self, runner: &str) -> bool {
        self.shared.lock().of.contains_key(runner)
    }

    /// The most that `runner` had at once, in bytes; none where that cannot be told.
    /// Looks once more, which takes two seconds at most, and forgets it.
    pub fn end(&self, runner: &str) -> Option<u64> {
        let until = Instant::now() + LAST_LOOK;
        let mut jobs = self.shared.lock();
        jobs.of.get_mut(runner)?.stage = Stage::Ending;
        self.shared.changed.notify_all();
        while jobs.of.get(runner)?.stage == Stage::Ending {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                debug!(runner, "the driver did not answer for the last look");
                break;
            }
            let waited = self.shared.changed.wait_timeout(jobs, left);
            jobs = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let job = jobs.of.remove(runner)?;
        job.seen.peak()
    }

    /// It has no end that anybody will ask for.
    pub fn forget(&self, runner: &str) {
        self.shared.lock().of.remove(runner);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: ends with the last job, and with it goes its hold on the library.
    fn look_while_needed(&self) {
        let memory = (self.open)();
        let mut due = Instant::now();
        loop {
            let mut jobs = self.lock();
            if jobs.of.is_empty() {
                jobs.thread = false;
                return;
            }
            let all = Instant::now() >= due;
            let turn = |stage: Stage| match stage {
                Stage::New | Stage::Ending => true,
                Stage::Running => all,
                Stage::Ended => false,
            };
            let turns: Vec<(String, u64, Stage, Vec<String>)> = jobs
                .of
                .iter()
                .filter(|(_, job)| turn(job.stage))
                .map(|(runner, job)| (runner.clone(), job.number, job.stage, job.gpus.clone()))
                .collect();
            if all {
                due = Instant::now() + self.pause;
            } else if turns.is_empty() {
                let left = due.saturating_duration_since(Instant::now());
                // Whatever woke it, everything is looked at anew.
                let _ = self.changed.wait_timeout(jobs, left);
                continue;
            }
            drop(jobs);
            for (runner, number, stage, gpus) in turns {
                let (used, accounts) = match &memory {
                    Some(memory) => (
                        used(&**memory, &gpus),
                        (stage != Stage::Running).then(|| accounts(&**memory, &gpus)),
                    ),
                    None => (None, None),
                };
                self.note(&runner, number, stage, used, accounts.flatten());
            }
        }
    }

    fn note(
        &self,
        runner: &str,
        number: u64,
        stage: Stage,
        used: Option<u64>,
        accounts: Option<Accounts>,
    ) {
        let mut jobs = self.lock();
        let job = jobs.of.get_mut(runner);
        let Some(job) = job.filter(|job| job.number == number) else {
            return;
        };
        if let Some(bytes) = used {
            job.seen.used(bytes);
        }
        match (stage, accounts) {
            (Stage::New, Some(accounts)) => job.seen.first_accounts(accounts),
            (Stage::Ending, Some(accounts)) => job.seen.last_accounts(&accounts),
            _ => {}
        }
        job.stage = match (stage, job.stage) {
            (Stage::Ending, _) => Stage::Ended,
            (_, Stage::New) => Stage::Running,
            (_, now) => now,
        };
        self.changed.notify_all();
    }
}

/// On all of them together; none when one does not tell.
fn used(memory: &dyn Memory, gpus: &[String]) -> Option<u64> {
    gpus.iter().map(|gpu| memory.used(gpu)).sum()
}

fn accounts(memory: &dyn Memory, gpus: &[String]) -> Option<Accounts> {
    let mut all = Accounts::new();
    for gpu in gpus {
        let of_gpu = memory.accounts(gpu)?;
        all.extend(
            of_gpu
                .into_iter()
                .map(|(pid, most)| ((gpu.clone(), pid), most)),
        );
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const MIB: u64 = 1 << 20;
    const DEADLINE: Duration = Duration::from_secs(90);

    /// A driver that tells what a test says, and how often it was asked.
    #[derive(Default)]
    struct Scripted {
        used: Mutex<BTreeMap<String, Option<u64>>>,
        accounts: Mutex<Option<BTreeMap<u32, u64>>>,
        asked: AtomicU64,
    }

    impl Memory for Scripted {
        fn used(&self, uuid: &str) -> Option<u64> {
            let used = self.used.lock().unwrap().get(uuid).copied().flatten();
            self.asked.fetch_add(1, Ordering::SeqCst);
            used
        }

        fn accounts(&self, _uuid: &str) -> Option<BTreeMap<u32, u64>> {
            self.accounts.lock().unwrap().clone()
        }
    }

    impl Scripted {
        /// From now on; returns once a whole round of looks saw it.
        fn says(&self, used: &[(&str, Option<u64>)]) {
            let new = used.iter().map(|(uuid, used)| ((*uuid).to_owned(), *used));
            *self.used.lock().unwrap() = new.collect();
            self.is_asked(3 * used.len() as u64);
        }

        fn is_asked(&self, times: u64) {
            let until = Instant::now() + DEADLINE;
            let enough = self.asked.load(Ordering::SeqCst) + times;
            while self.asked.load(Ordering::SeqCst) < enough {
                assert!(Instant::now() < until, "nobody looks");
                std::thread::yield_now();
            }
        }
    }

    fn meter(driver: &Arc<Scripted>) -> Meter {
        let driver = driver.clone();
        let open = move || Some(driver.clone() as Arc<dyn Memory + Send + Sync>);
        Meter::of(Box::new(open), Duration::from_millis(1))
    }

    fn gpus(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_peak_of_a_job_is_the_most_beyond_what_was_there_without_it() {
        let driver = Arc::<Scripted>::default();
        driver
            .used
            .lock()
            .unwrap()
            .insert("a".into(), Some(300 * MIB));
        let meter = meter(&driver);
        meter.begin("one", &gpus(&["a"]));
        driver.says(&[("a", Some(300 * MIB))]);
        driver.says(&[("a", Some(5_300 * MIB))]);
        driver.says(&[("a", Some(310 * MIB))]);
        assert!(meter.holds("one"));
        assert_eq!(meter.end("one"), Some(5_000 * MIB));
        assert!(!meter.holds("one"));
        assert_eq!(meter.end("one"), None, "told once");
    }

    #[test]
    fn gpus_of_one_job_count_together_and_jobs_apart() {
        let driver = Arc::<Scripted>::default();
        let meter = meter(&driver);
        meter.begin("two", &gpus(&["a", "b"]));
        meter.begin("one", &gpus(&["c"]));
        driver.says(&[("a", Some(0)), ("b", Some(0)), ("c", Some(0))]);
        driver.says(&[("a", Some(3)), ("b", Some(4)), ("c", Some(1))]);
        driver.says(&[("a", Some(5)), ("b", Some(0)), ("c", Some(2))]);
        assert_eq!(meter.end("two"), Some(7));
        assert_eq!(meter.end("one"), Some(2));
    }

    #[test]
    fn what_cannot_be_told_is_unknown() {
        let driver = Arc::<Scripted>::default();
        let other = Meter::of(Box::new(|| None), Duration::from_millis(1));
        other.begin("one", &gpus(&["a"]));
        assert_eq!(other.end("one"), None, "no library");
        let meter = meter(&driver);
        meter.begin("one", &gpus(&["a", "b"]));
        driver.says(&[("a", Some(5)), ("b", None)]);
        assert_eq!(meter.end("one"), None, "one of two is not told");
        meter.begin("none", &[]);
        assert!(!meter.holds("none"));
        assert_eq!(meter.end("unheard of"), None);
    }

    #[test]
    fn accounts_of_the_jobs_processes_count_where_they_are_kept() {
        let driver = Arc::<Scripted>::default();
        *driver.accounts.lock().unwrap() = Some(BTreeMap::from([(1, 90 * MIB)]));
        let meter = meter(&driver);
        meter.begin("one", &gpus(&["a"]));
        driver.says(&[("a", Some(0))]);
        driver.says(&[("a", Some(MIB))]);
        let after = BTreeMap::from([(1, 99 * MIB), (2, 7 * MIB), (3, 6 * MIB)]);
        *driver.accounts.lock().unwrap() = Some(after);
        assert_eq!(meter.end("one"), Some(7 * MIB), "between two looks");
    }

    #[test]
    fn nobody_looks_while_no_job_has_a_gpu() {
        let driver = Arc::<Scripted>::default();
        let meter = meter(&driver);
        for round in 0..2 {
            meter.begin("one", &gpus(&["a"]));
            driver.says(&[("a", Some(round))]);
            if round == 0 {
                meter.forget("one");
            } else {
                assert_eq!(meter.end("one"), Some(0));
            }
            let until = Instant::now() + DEADLINE;
            while meter.shared.lock().thread {
                assert!(Instant::now() < until, "it goes on looking");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_driver_that_hangs_costs_two_seconds_and_the_figure_only() {
        struct Hanging(Mutex<()>);
        impl Memory for Hanging {
            fn used(&self, _uuid: &str) -> Option<u64> {
                let _forever = self.0.lock();
                None
            }
            fn accounts(&self, _uuid: &str) -> Option<BTreeMap<u32, u64>> {
                None
            }
        }
        let driver = Arc::new(Hanging(Mutex::new(())));
        let held = driver.0.lock().unwrap();
        let hanging = driver.clone();
        let open = move || Some(hanging.clone() as Arc<dyn Memory + Send + Sync>);
        let meter = Meter::of(Box::new(open), Duration::from_millis(1));
        meter.begin("one", &gpus(&["a"]));
        let began = Instant::now();
        assert_eq!(meter.end("one"), None);
        assert!(began.elapsed() < DEADLINE);
        drop(held);
    }
}
