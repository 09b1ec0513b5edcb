//! One step: a shell script in a process group of its own, its output, and its end.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::os;

/// Cancelled: SIGINT, then SIGTERM, then the end.
const AFTER_INT: Duration = Duration::from_millis(7_500);
const AFTER_TERM: Duration = Duration::from_millis(2_500);
/// Output is passed on this often.
const FLUSH: Duration = Duration::from_millis(200);
const FLUSH_BYTES: usize = 64 * 1024;
/// What a background process still writes after the step has ended is waited for this long.
const LINGER: Duration = Duration::from_secs(2);
const MAX_OUTPUT: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Success,
    Failure,
    Cancelled,
}

pub(crate) struct Context<'a> {
    pub(crate) workspace: &'a Path,
    pub(crate) temp: &'a Path,
    pub(crate) environment: &'a BTreeMap<String, String>,
    pub(crate) cancelled: &'a AtomicBool,
}

pub(crate) struct Result {
    pub(crate) end: End,
    pub(crate) exit_code: Option<i64>,
    /// Output that was not passed on yet.
    pub(crate) rest: String,
}

/// Collects bytes and gives out whole characters, up to a limit.
struct Output {
    pending: Vec<u8>,
    given: usize,
    cut: bool,
}

impl Output {
    fn take(&mut self, all: bool) -> String {
        // a character that is not complete yet waits for its rest
        let end = match std::str::from_utf8(&self.pending) {
            Err(e) if !all && e.error_len().is_none() => e.valid_up_to(),
            _ => self.pending.len(),
        };
        let bytes: Vec<u8> = self.pending.drain(..end).collect();
        if self.cut {
            return String::new();
        }
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        let room = MAX_OUTPUT.saturating_sub(self.given);
        if text.len() > room {
            let mut at = room;
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            text.truncate(at);
            text.push_str("\n[the rest of the output is not kept]\n");
            self.cut = true;
        }
        self.given += text.len();
        text
    }
}

pub(crate) fn failed(text: String) -> Result {
    Result {
        end: End::Failure,
        exit_code: None,
        rest: text,
    }
}

/// Runs a script to its end, passing its output on while it runs.
pub(crate) fn run(
    context: &Context<'_>,
    number: u64,
    script: &str,
    mut pass_on: impl FnMut(&str),
) -> Result {
    if context.cancelled.load(Ordering::SeqCst) {
        return Result {
            end: End::Cancelled,
            exit_code: None,
            rest: String::new(),
        };
    }
    let path = context
        .temp
        .join(format!("step-{number}-{}.sh", std::process::id()));
    if let Err(e) = std::fs::write(&path, script) {
        return failed(format!("{}: {e}\n", path.display()));
    }
    let (mut reader, writer) = match std::io::pipe() {
        Ok(p) => p,
        Err(e) => return failed(format!("no pipe: {e}\n")),
    };
    let Ok(second) = writer.try_clone() else {
        return failed("no pipe\n".into());
    };
    // the kernel is to kill a step before the runner; raising the score needs no right
    let score = std::env::var("PIPELINE_JOB_OOMSCOREADJ")
        .ok()
        .and_then(|v| v.parse::<i32>().ok())
        .unwrap_or(500);
    let wrapper =
        format!("{{ echo {score} > /proc/self/oom_score_adj; }} 2>/dev/null; exec sh -e \"$0\"");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(wrapper)
        .arg(&path)
        .current_dir(context.workspace)
        .env_clear()
        .envs(context.environment)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(second);
    os::fresh_signals(&mut command);
    let mut child = match command.spawn() {
        Ok(c) => c,
        Err(e) => return failed(format!("sh: {e}\n")),
    };
    // the parent's ends of the pipe go with the command
    drop(command);
    let group = child.id();
    let (bytes, incoming) = channel::<Option<Vec<u8>>>();
    let ended = bytes.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    if bytes.send(Some(buffer[..n].to_vec())).is_err() {
                        return;
                    }
                }
            }
        }
        // an empty piece says that nothing more can come
        let _ = bytes.send(Some(Vec::new()));
    });
    let (status_sent, status) = channel();
    std::thread::spawn(move || {
        let code = child.wait();
        let _ = status_sent.send(code);
        let _ = ended.send(None);
    });
    let mut output = Output {
        pending: Vec::new(),
        given: 0,
        cut: false,
    };
    let mut last_flush = Instant::now();
    let mut cancel: Option<(Instant, u8)> = None;
    let (mut closed, mut exited): (bool, Option<Instant>) = (false, None);
    loop {
        match incoming.recv_timeout(FLUSH) {
            Ok(Some(piece)) if piece.is_empty() => closed = true,
            Ok(Some(piece)) => output.pending.extend_from_slice(&piece),
            Ok(None) => exited = Some(Instant::now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => closed = true,
        }
        if last_flush.elapsed() >= FLUSH || output.pending.len() >= FLUSH_BYTES {
            let text = output.take(false);
            if !text.is_empty() {
                pass_on(&text);
            }
            last_flush = Instant::now();
        }
        if let Some(at) = exited {
            if closed || at.elapsed() >= LINGER {
                break;
            }
        } else if context.cancelled.load(Ordering::SeqCst) {
            let stage = cancel.get_or_insert_with(|| {
                os::kill_group(group, libc::SIGINT);
                (Instant::now(), 0)
            });
            if stage.1 == 0 && stage.0.elapsed() >= AFTER_INT {
                os::kill_group(group, libc::SIGTERM);
                stage.1 = 1;
            } else if stage.1 == 1 && stage.0.elapsed() >= AFTER_INT + AFTER_TERM {
                os::kill_group(group, libc::SIGKILL);
                stage.1 = 2;
            }
        }
    }
    let _ = std::fs::remove_file(&path);
    if cancel.is_some() {
        // what the script left behind in its group goes with it
        os::kill_group(group, libc::SIGKILL);
    }
    let exit_code = match status.try_recv() {
        Ok(Ok(s)) => {
            use std::os::unix::process::ExitStatusExt as _;
            // as a shell counts: 128 and the number of the signal
            s.code()
                .or_else(|| s.signal().map(|n| 128 + n))
                .map(i64::from)
        }
        _ => None,
    };
    let end = match (cancel.is_some(), exit_code) {
        (true, _) => End::Cancelled,
        (false, Some(0)) => End::Success,
        (false, _) => End::Failure,
    };
    Result {
        end,
        exit_code,
        rest: output.take(true),
    }
}

/// Kills every process that carries the tracking id of the job in its environment; gives their number.
pub(crate) fn kill_tracked(tracking: &str) -> usize {
    let wanted = format!("RUNNER_TRACKING_ID={tracking}").into_bytes();
    let own = std::process::id();
    let mut killed = 0;
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return 0;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == own {
            continue;
        }
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        if environment.split(|b| *b == 0).any(|v| v == wanted) {
            os::kill_process(pid as i32);
            killed += 1;
        }
    }
    killed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context<'a>(
        dir: &'a Path,
        env: &'a BTreeMap<String, String>,
        cancelled: &'a AtomicBool,
    ) -> Context<'a> {
        Context {
            workspace: dir,
            temp: dir,
            environment: env,
            cancelled,
        }
    }

    fn path_only() -> BTreeMap<String, String> {
        BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap())])
    }

    #[test]
    fn output_and_exit_code_are_those_of_the_script() {
        let (dir, no, env) = (
            tempfile::tempdir().unwrap(),
            AtomicBool::new(false),
            path_only(),
        );
        let mut passed = String::new();
        let c = context(dir.path(), &env, &no);
        let r = run(&c, 1, "echo out\necho err >&2\nexit 3", |t| {
            passed.push_str(t)
        });
        passed.push_str(&r.rest);
        assert_eq!(
            (passed.as_str(), r.exit_code, r.end),
            ("out\nerr\n", Some(3), End::Failure)
        );
        let r = run(&c, 2, "false\necho never", |_| ());
        assert_eq!(
            (r.rest.as_str(), r.end),
            ("", End::Failure),
            "the script ends at the first failure"
        );
    }

    #[test]
    fn a_step_runs_with_a_raised_oom_score_and_a_closed_environment() {
        let (dir, no) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        let mut env = path_only();
        env.insert("GREETING".into(), "hello".into());
        let c = context(dir.path(), &env, &no);
        let r = run(
            &c,
            1,
            "cat /proc/self/oom_score_adj; echo $GREETING; echo ${CARGO_PKG_NAME:-none}",
            |_| (),
        );
        let lines: Vec<&str> = r.rest.lines().collect();
        assert!(lines[0].parse::<i32>().unwrap() >= 500, "{lines:?}");
        assert_eq!(lines[1..], ["hello", "none"]);
    }

    #[test]
    fn a_cancelled_step_is_interrupted_first_even_where_interrupts_are_ignored() {
        os::ignore_interrupts();
        let (dir, env) = (tempfile::tempdir().unwrap(), path_only());
        let cancelled = AtomicBool::new(false);
        let c = context(dir.path(), &env, &cancelled);
        let begun = Instant::now();
        let mut heard = String::new();
        let r = run(
            &c,
            1,
            "trap 'echo interrupted; exit 9' INT\necho ready\nwhile :; do sleep 0.1; done",
            |t| {
                heard.push_str(t);
                cancelled.store(true, Ordering::SeqCst);
            },
        );
        heard.push_str(&r.rest);
        assert_eq!(
            (heard.as_str(), r.end),
            ("ready\ninterrupted\n", End::Cancelled)
        );
        assert!(begun.elapsed() < AFTER_INT, "SIGINT was enough");
    }

    #[test]
    fn a_background_process_that_keeps_the_pipe_does_not_hold_the_step() {
        let (dir, no, mut env) = (
            tempfile::tempdir().unwrap(),
            AtomicBool::new(false),
            path_only(),
        );
        env.insert(
            "RUNNER_TRACKING_ID".into(),
            format!("github_test_{}", std::process::id()),
        );
        let c = context(dir.path(), &env, &no);
        let begun = Instant::now();
        let r = run(&c, 1, "sleep 60 &\necho done", |_| ());
        assert_eq!(r.end, End::Success);
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!(
            kill_tracked(&env["RUNNER_TRACKING_ID"]),
            1,
            "the orphan is found by its tracking id"
        );
    }

    #[test]
    fn characters_are_never_cut_between_two_pieces() {
        let mut o = Output {
            pending: "ab√".as_bytes()[..4].to_vec(),
            given: 0,
            cut: false,
        };
        assert_eq!(o.take(false), "ab");
        o.pending.push("√".as_bytes()[2]);
        assert_eq!(o.take(false), "√");
        o.pending = vec![b'x'; MAX_OUTPUT + 5];
        assert!(o.take(true).ends_with("not kept]\n"));
        o.pending = b"more".to_vec();
        assert_eq!(o.take(true), "");
    }
}
