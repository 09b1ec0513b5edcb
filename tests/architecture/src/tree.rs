//! What a source file may contain: the rules that need no package graph.

use crate::{Breach, rules::grab_bag};

/// Files nobody writes by hand, or that quote other people's data.
const NOT_OURS: &[&str] = &[
    "proto/src/gen/",
    "tests/github-sim/data/",
    "Cargo.lock",
    "LICENSE",
    "node_modules/",
];

/// Folders whose code must be the same on every run: time, randomness and ids come in as arguments.
pub const PURE: &[&str] = &["scheduler/core/src/", "node-agent/core/src/"];

/// What a pure core may not name, and why.
const IMPURE: &[(&str, &str)] = &[
    ("std::time::Instant", "a clock"),
    ("std::time::SystemTime", "a clock"),
    ("Instant::now", "a clock"),
    ("SystemTime::now", "a clock"),
    ("std::fs", "files"),
    // Addresses are values and welcome.
    ("TcpStream", "the network"),
    ("TcpListener", "the network"),
    ("UdpSocket", "the network"),
    ("ToSocketAddrs", "the network"),
    ("std::thread", "threads"),
    ("std::process", "processes"),
    ("std::env", "the environment"),
    ("std::io", "input and output"),
    ("HashMap", "an order that differs from run to run"),
    ("HashSet", "an order that differs from run to run"),
    ("thread_rng", "randomness of its own"),
];

/// Checks one file. `path` is relative to the root, with forward slashes.
pub fn check(path: &str, text: &str) -> Vec<Breach> {
    if NOT_OURS.iter().any(|part| path.contains(part)) {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    let mut say = |problem: String| breaches.push(Breach::new(path, problem));

    let file = path.rsplit('/').next().unwrap_or(path);
    if let Some(stem) = file.strip_suffix(".rs") {
        if !text.starts_with("//!") {
            say("must open with a `//!` line that says what the file is for".into());
        }
        if stem == "mod" {
            say("use foo.rs beside foo/ in place of mod.rs".into());
        }
        if let Some(word) = grab_bag(stem) {
            say(format!(
                "`{word}` names nothing: call it after what it does"
            ));
        }
        if PURE.iter().any(|folder| path.starts_with(folder)) {
            for (what, why) in IMPURE {
                if let Some(line) = line_of_code(text, what) {
                    say(format!("line {line}: {what} brings {why} into a pure core"));
                }
            }
        }
    }
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        // Spelt in two halves, so that this file passes its own check.
        for mark in [
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("XX", "X:"),
        ] {
            if has_word(line, mark) {
                say(format!(
                    "line {number}: {mark} left behind: do it or open an issue"
                ));
            }
        }
        for folder in [concat!("/ro", "ot/"), concat!("/wo", "rk/")] {
            if has_path(line, folder) {
                say(format!(
                    "line {number}: path of a build machine ({folder}...)"
                ));
            }
        }
        if let Some(kind) = secret(line) {
            say(format!("line {number}: looks like {kind}"));
        }
    }
    breaches
}

/// The first line outside comments in which `what` stands.
fn line_of_code(text: &str, what: &str) -> Option<usize> {
    text.lines()
        .position(|line| !line.trim_start().starts_with("//") && line.contains(what))
        .map(|n| n + 1)
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

/// An absolute path that begins with `folder`, not one that only contains it.
fn has_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| " \t\"'`=(:,[<".contains(c))
    })
}

/// A credential that was not obviously made up: many different characters, and no counting through the alphabet.
fn secret(line: &str) -> Option<&'static str> {
    const TOKENS: &[(&str, usize, &str)] = &[
        (concat!("gh", "p_"), 36, "a GitHub token"),
        (concat!("gh", "s_"), 36, "a GitHub token"),
        (concat!("github_", "pat_"), 60, "a GitHub token"),
        (concat!("AK", "IA"), 16, "a cloud access key"),
        (concat!("npm", "_"), 36, "a package registry token"),
    ];
    for (prefix, length, kind) in TOKENS {
        for (at, _) in line.match_indices(prefix) {
            let body: String = line[at + prefix.len()..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            let mut kinds: Vec<char> = body.chars().collect();
            kinds.sort_unstable();
            kinds.dedup();
            let counted = ["0123456789", "abcdefghij", "ABCDEFGHIJ"]
                .iter()
                .any(|run| body.contains(run));
            if body.len() >= *length && kinds.len() > 10 && !counted {
                return Some(kind);
            }
        }
    }
    let key = concat!("-----BEGIN", " ");
    let begins = line.find(key).is_some_and(|at| {
        line[at..].contains(concat!("PRIVATE", " KEY-----")) && line.trim_start().starts_with(key)
    });
    begins.then_some("a private key")
}
