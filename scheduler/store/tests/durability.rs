//! What a commit promises the disk, shown by system calls, and what happens
//! when the state folder cannot be written.
//!
//! `kill -9` cannot show durability (the kernel keeps what was written), so a
//! child of this program commits under strace, and between the moment before
//! the call and the moment after it the write-ahead log must have been synced.
//! The same child without the flush is the control: there the trace must show
//! no sync, or this test could not fail.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

use scheduler_core::{fact::Fact, model::JobId};
use scheduler_store::{Commit, Options, Sqlite, Store};

const COMMITS: u64 = 5;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if let [role, dir] = args.as_slice()
        && let Some(role) = role.strip_prefix("--child=")
    {
        child(role, Path::new(dir));
        return ExitCode::SUCCESS;
    }
    let tests: [(&str, fn()); 3] = [
        (
            "a_commit_is_synced_before_it_returns",
            a_commit_is_synced_before_it_returns,
        ),
        (
            "a_snapshot_is_synced_before_the_facts_it_replaces_go",
            a_snapshot_is_synced_before_the_facts_it_replaces_go,
        ),
        (
            "a_state_folder_without_permission_is_named",
            a_state_folder_without_permission_is_named,
        ),
    ];
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    for (name, test) in tests {
        if filter.is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

/// Marks a moment in the trace: a write to a pipe nobody else writes to.
fn mark(what: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "mark {what}")
        .and_then(|()| out.flush())
        .expect("mark");
}

#[tokio::main(flavor = "current_thread")]
async fn child(role: &str, dir: &Path) {
    let store = match Sqlite::open(Options::new(dir)).await {
        Ok(store) => store,
        Err(error) => {
            println!("{error}");
            return;
        }
    };
    match role {
        "open" => println!("opened"),
        "commit" => {
            for n in 0..COMMITS {
                mark("begin");
                let facts = vec![Fact::JobForgotten { job: JobId(n) }];
                let commit = Commit {
                    facts,
                    ..Commit::default()
                };
                store.commit(commit).await.expect("commit");
                mark("end");
            }
        }
        "unflushed" => {
            use sqlx::ConnectOptions;
            let mut db = sqlx::sqlite::SqliteConnectOptions::new()
                .filename(dir.join("longshore.db"))
                .pragma("synchronous", "NORMAL")
                .connect()
                .await
                .expect("open");
            for n in 0..COMMITS {
                mark("begin");
                sqlx::query("INSERT INTO settings (key, value) VALUES (?1, 'x')")
                    .bind(n.to_string())
                    .execute(&mut db)
                    .await
                    .expect("insert");
                mark("end");
            }
        }
        "snapshot" => {
            let facts: Vec<_> = (0..12_000)
                .map(|n| Fact::JobForgotten { job: JobId(n) })
                .collect();
            let commit = Commit {
                facts: facts.clone(),
                ..Commit::default()
            };
            let at = store.commit(commit).await.expect("commit");
            mark("begin");
            store.write_snapshot(0, at, facts).await.expect("snapshot");
            mark("end");
        }
        other => panic!("unknown role {other}"),
    }
}

/// Syncs of the write-ahead log between each pair of marks.
fn syncs_between_marks(role: &str) -> Vec<usize> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let trace = dir.path().join("trace");
    let output = Command::new("strace")
        .args(["-f", "-y", "-s", "64"])
        .args(["-e", "trace=write,fsync,fdatasync", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().expect("own path"))
        .arg(format!("--child={role}"))
        .arg(dir.path().join("state"))
        .output()
        .expect("strace runs (package strace)");
    assert!(output.status.success(), "{}", text(&output));
    let trace = fs::read_to_string(&trace).expect("trace");
    let mut found = Vec::new();
    let mut open = None;
    for line in trace.lines() {
        if line.contains("\"mark begin") {
            open = Some(0);
        } else if line.contains("\"mark end") {
            found.push(open.take().expect("begin before end"));
        } else if let Some(count) = &mut open
            && synced(line)
        {
            *count += 1;
        }
    }
    assert!(open.is_none(), "the last mark is missing");
    found
}

/// A finished, successful sync of the write-ahead log. An interleaved call
/// shows its end on a line of its own, without the file's name.
fn synced(line: &str) -> bool {
    let call = line.contains("fdatasync") || line.contains("fsync");
    let subject = line.contains("longshore.db-wal") || line.contains("resumed>");
    call && subject && line.trim_end().ends_with("= 0")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn a_commit_is_synced_before_it_returns() {
    let syncs = syncs_between_marks("commit");
    assert_eq!(syncs.len() as u64, COMMITS);
    assert!(syncs.iter().all(|n| *n >= 1), "syncs per commit: {syncs:?}");
    let control = syncs_between_marks("unflushed");
    assert_eq!(control.len() as u64, COMMITS);
    assert!(
        control.contains(&0),
        "without the flush the trace must show its absence: {control:?}"
    );
}

fn a_snapshot_is_synced_before_the_facts_it_replaces_go() {
    // Three parts, the switch, and at least one deletion: each its own commit.
    let syncs = syncs_between_marks("snapshot");
    assert!(syncs.len() == 1 && syncs[0] >= 5, "{syncs:?}");
}

fn a_state_folder_without_permission_is_named() {
    // Root may write anywhere, so the child is somebody else when we are root.
    let dir = tempfile::tempdir().expect("temporary folder");
    let state = dir.path().join("state");
    fs::create_dir(&state).expect("state folder");
    let program = copy_of_this_program(dir.path());
    chmod(dir.path(), 0o755);

    let run = || {
        let mut child = Command::new(&program);
        child.arg("--child=open").arg(&state);
        if is_root() {
            child.uid(65_534).gid(65_534);
        }
        let output = child.output().expect("child runs");
        text(&output)
    };
    chmod(&state, 0o777);
    let writable = run();
    assert!(writable.contains("opened"), "positive control: {writable}");

    chmod(&state, 0o555);
    for name in ["longshore.lock", "longshore.db"] {
        chmod(&state.join(name), 0o444);
    }
    let refused = run();
    assert!(
        refused.contains("read-only") && refused.contains("make it writable"),
        "{refused}"
    );
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").expect("own entry").uid() == 0
}

fn copy_of_this_program(dir: &Path) -> PathBuf {
    let copy = dir.join("program");
    fs::copy(std::env::current_exe().expect("own path"), &copy).expect("copy");
    chmod(&copy, 0o755);
    copy
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}
