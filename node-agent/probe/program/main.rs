//! Proves from inside a sandbox what its profile promises: each row of the
//! isolation table of docs/security.md that can be seen from there.
//!
//! Runs in any image and under runc, crun and gVisor, with control groups of
//! version 1 or 2. Prints one line per check, `PASS|FAIL|NOT_GUARANTEED row name
//! detail`, or with `--json` one object. Ends with 1 when anything failed and
//! with 64 when an argument is wrong. What the sandbox claims is an argument, so
//! that a job may run it as it is.

#![warn(clippy::unwrap_used)]

mod devices;
mod files;
mod identity;
mod kernel;
mod leftovers;
mod limits;
mod namespaces;
mod network;
mod report;
mod setting;
mod sys;
mod view;

use std::io::Read;
use std::process::ExitCode;

use report::Report;
use setting::Setting;
use view::View;

/// Longest list of arguments that is read.
const MOST_TOLD: u64 = 64 << 10;
/// EX_USAGE.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut setting = match Setting::parse(arguments()) {
        Ok(setting) => setting,
        Err(problem) => {
            eprintln!("longshore-probe: {problem}");
            return ExitCode::from(USAGE);
        }
    };
    if let Some(port) = setting.listen {
        return network::listen(port);
    }
    let view = View::new(setting.root.clone());
    if setting.runtime.is_empty() {
        setting.runtime = view.runtime().unwrap_or("runc").to_owned();
    }
    let report = look(&view, &setting);
    if setting.json {
        print!(
            "{}",
            report.json(&setting.runtime, &setting.profile, &setting.network)
        );
    } else {
        print!("{}", report.lines());
    }
    ExitCode::from(u8::from(report.failed()))
}

/// Of the command line; without any, of the file that was handed over with the
/// program; with `--stdin` alone, of standard input. One on each line.
fn arguments() -> impl Iterator<Item = String> {
    let mut given: Vec<String> = std::env::args().skip(1).collect();
    let told = match given.as_slice() {
        [] => std::fs::read_to_string(".probe").unwrap_or_default(),
        [only] if only == "--stdin" => {
            given.clear();
            let mut told = String::new();
            // Nothing told is nothing to add: the sandbox is judged as it is.
            let _ = std::io::stdin().take(MOST_TOLD).read_to_string(&mut told);
            told
        }
        _ => String::new(),
    };
    let told: Vec<String> = told.lines().map(str::to_owned).collect();
    given.into_iter().chain(told)
}

/// Every check, in the order of the table. Checks that make threads come last.
fn look(view: &View, setting: &Setting) -> Report {
    let mut report = Report {
        unclaimed: setting.unclaimed.clone(),
        ..Report::default()
    };
    if setting.is_gvisor() {
        let open = setting::OPEN_UNDER_GVISOR.map(str::to_owned);
        report.unclaimed.extend(open);
    }
    identity::look(view, setting, &mut report);
    kernel::look(view, setting, &mut report);
    files::look(view, setting, &mut report);
    limits::look(view, setting, &mut report);
    namespaces::look(view, setting, &mut report);
    devices::look(view, &mut report);
    leftovers::look(view, &mut report);
    network::look(view, setting, &mut report);
    report.checks.sort_by_key(|check| check.row);
    report
}

#[cfg(test)]
mod recorded;
