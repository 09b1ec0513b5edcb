//! What the demo prints: a line per change, the same on a terminal and in a pipe; colour and a status line only on a terminal.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    time::Instant,
};

use super::verdict::JobState;

/// Prints changes of jobs as they come.
#[derive(Debug)]
pub struct Show {
    terminal: bool,
    started: Instant,
    seen: BTreeMap<u64, String>,
    status_shown: bool,
}

impl Default for Show {
    fn default() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            started: Instant::now(),
            seen: BTreeMap::new(),
            status_shown: false,
        }
    }
}

impl Show {
    /// One line with the time since the demo began.
    pub fn line(&mut self, text: &str) {
        self.wipe();
        print(&format!(
            "{:7.2} s  {text}\n",
            self.started.elapsed().as_secs_f64()
        ));
    }

    /// Prints what changed since the last call.
    pub fn jobs(&mut self, repos: &BTreeMap<u64, String>, jobs: &[JobState]) {
        for job in jobs {
            let state = job.conclusion.clone().unwrap_or_else(|| job.status.clone());
            if self.seen.get(&job.id) == Some(&state) {
                continue;
            }
            let repo = repos.get(&job.id).map_or("", String::as_str);
            let on = job
                .runner_name
                .as_deref()
                .filter(|r| !r.is_empty() && state == "in_progress")
                .map(|r| format!("  on {r}"))
                .unwrap_or_default();
            let word = self.paint(&state);
            self.line(&format!("{repo:16} {:22} {word}{on}", job.name));
            self.seen.insert(job.id, state);
        }
        if self.terminal {
            let count = |s: &str| self.seen.values().filter(|v| *v == s).count();
            let done = self.seen.len() - count("queued") - count("waiting") - count("in_progress");
            let text = format!(
                "          {} queued · {} running · {done} done",
                count("queued"),
                count("in_progress")
            );
            self.wipe();
            print(&text);
            self.status_shown = true;
        }
    }

    fn wipe(&mut self) {
        if self.status_shown {
            print("\r\x1b[2K");
            self.status_shown = false;
        }
    }

    fn paint(&self, state: &str) -> String {
        if !self.terminal {
            return state.to_owned();
        }
        let colour = match state {
            "success" => 32,
            "failure" => 31,
            "cancelled" => 33,
            "in_progress" => 36,
            _ => 90,
        };
        format!("\x1b[{colour}m{state}\x1b[0m")
    }
}

/// A closed pipe is no reason to stop a demo half-way and leave its things about.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        // Nobody reads: nothing to tell anybody.
    }
}
