//! Planted bugs: each must be found, by a named check or a named test.
//!
//! The production code knows nothing of this. A copy of the sources is made
//! under the target folder, every bug is written into the copy behind a switch,
//! the copy is built once, and each bug is then switched on in turn.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

mod copy;
mod list;

use copy::{Programs, SWITCH};
pub use list::{MUTANTS, SHARD};

/// One planted bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    pub name: &'static str,
    /// From the root of the repository.
    pub file: &'static str,
    /// Stands there exactly once.
    pub find: &'static str,
    /// `PLANTED` is true while the bug is switched on.
    pub replace: &'static str,
    pub found_by: FoundBy,
}

/// What finds a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FoundBy {
    /// A check of [`crate::checks`].
    Check(&'static str),
    /// A test of one of the products' own suites.
    Test(Suite, &'static str),
}

/// Suites of tests whose tests find planted bugs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Behaviour of the scheduler's core.
    SchedulerCore,
    /// A difficult GitHub.
    SchedulerGitHub,
    /// Unit tests of the node agent's core.
    AgentCore,
}

impl FoundBy {
    fn words(self) -> String {
        match self {
            Self::Check(name) => format!("check {name}"),
            Self::Test(suite, name) => format!("test {name} of {}", suite.package()),
        }
    }
}

/// What a run with or without a bug gave.
struct Shown {
    found: bool,
    /// First thing that was found wrong, in one line.
    what: String,
    took: Duration,
}

/// A check or test that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(600);

/// Builds the copy and shows that each of these bugs is found; all when empty.
/// Prints one line per bug.
pub fn run(only: &[String]) -> anyhow::Result<()> {
    for name in only {
        ensure!(
            MUTANTS.iter().any(|mutant| mutant.name == name),
            "there is no planted bug {name}"
        );
    }
    let chosen: Vec<_> = (1..)
        .zip(MUTANTS)
        .filter(|(_, mutant)| only.is_empty() || only.iter().any(|name| name == mutant.name))
        .collect();
    let mut finders: Vec<FoundBy> = chosen.iter().map(|(_, mutant)| mutant.found_by).collect();
    finders.sort();
    finders.dedup();
    let begun = Instant::now();
    let programs = copy::build(&finders)?;
    println!(
        "built with {} planted bugs, switched off, in {} s",
        MUTANTS.len(),
        begun.elapsed().as_secs()
    );
    // Control: with every bug switched off each finder is content. It is run as
    // well for what it costs: a test that does not exist is content with nothing.
    let controls = on_every_core(&finders, |finder| {
        let shown = show(&programs, 0, *finder)?;
        ensure!(
            !shown.found,
            "the {} fails without any planted bug: {}",
            finder.words(),
            shown.what
        );
        Ok(())
    });
    controls.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    let found = on_every_core(&chosen, |(n, mutant)| {
        let shown = show(&programs, *n, mutant.found_by)
            .with_context(|| format!("with {} planted", mutant.name))?;
        println!(
            "{:6} {} by {}: {} ({:.1} s)",
            if shown.found { "found" } else { "MISSED" },
            mutant.name,
            mutant.found_by.words(),
            shown.what,
            shown.took.as_secs_f64()
        );
        Ok((!shown.found).then_some(mutant.name))
    });
    let found = found.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let missed: Vec<_> = found.into_iter().flatten().collect();
    ensure!(missed.is_empty(), "planted and not found: {missed:?}");
    println!(
        "{} planted bugs, all found, in {} s",
        chosen.len(),
        begun.elapsed().as_secs()
    );
    Ok(())
}

/// The answers in the order of the questions.
fn on_every_core<T: Sync, R: Send>(of: &[T], ask: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(2, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((n, question)) = {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    of.get(n).map(|question| (n, question))
                } {
                    let answer = ask(question);
                    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                    answers.push((n, answer));
                }
            });
        }
    });
    let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    answers.sort_by_key(|(n, _)| *n);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Runs a finder with bug `n` switched on, 0 for none.
fn show(programs: &Programs, n: usize, finder: FoundBy) -> anyhow::Result<Shown> {
    let begun = Instant::now();
    let mut command = Command::new(programs.of(finder)?);
    match finder {
        FoundBy::Check(name) => command.args(["check", name]),
        FoundBy::Test(_, name) => command.args(["--exact", name]),
    };
    let (code, text) = output(command.env(SWITCH, n.to_string()), &programs.log(n, finder))?;
    let took = begun.elapsed();
    let Some(code) = code else {
        return Ok(Shown {
            found: true,
            what: format!("it does not end within {} s", LONGEST.as_secs()),
            took,
        });
    };
    let (found, what) = match (finder, code) {
        (FoundBy::Check(name), 0 | 1) => {
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix(name).unwrap_or(line);
            (code == 1, line.trim_start_matches(": "))
        }
        (FoundBy::Test(_, name), 0) => {
            ensure!(text.contains("1 passed"), "there is no test {name}");
            (false, "")
        }
        (FoundBy::Test(..), 101) => (true, assertion(&text)),
        _ => bail!("the {} ended with {code}:\n{text}", finder.words()),
    };
    Ok(Shown {
        found,
        what: what.chars().take(160).collect(),
        took,
    })
}

/// The line after the one that says where a test panicked.
fn assertion(text: &str) -> &str {
    let mut lines = text
        .lines()
        .skip_while(|line| !line.contains("panicked at"));
    lines.nth(1).unwrap_or_default()
}

/// Exit code, `None` after [`LONGEST`], and what the program printed.
fn output(command: &mut Command, log: &Path) -> anyhow::Result<(Option<i32>, String)> {
    let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stderr(file.try_clone()?)
        .stdout(file)
        .spawn()
        .with_context(|| format!("run {command:?}"))?;
    let begun = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status.code().context("it was killed")?);
        }
        if begun.elapsed() > LONGEST {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = fs::read(log)?;
    Ok((code, String::from_utf8_lossy(&text).into_owned()))
}
