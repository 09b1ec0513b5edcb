//! Reads a system-call trace: was the answer written only after the store was flushed?
//!
//! Killing a process cannot show this, because the kernel keeps what was written; the order of calls can.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// One finished system call, in the order in which calls finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Thread that made it.
    pub thread: String,
    /// `read`, `fdatasync`, ...
    pub name: String,
    /// First argument with the path or socket that it names.
    pub target: String,
    /// The whole line.
    pub text: String,
    /// It did what it should.
    pub good: bool,
}

/// Calls of a trace written by `strace -f -y`.
pub fn parse(text: &str) -> Vec<Call> {
    let mut unfinished: Vec<(String, String, String)> = Vec::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((name, tail)) = resumed.split_once(" resumed>") else {
                continue;
            };
            let Some(at) = unfinished
                .iter()
                .position(|(t, n, _)| t == thread && n == name)
            else {
                continue;
            };
            let (_, _, head) = unfinished.remove(at);
            calls.push(call(thread, name, format!("{head}{tail}")));
            continue;
        }
        let Some((name, _)) = rest.split_once('(') else {
            continue;
        };
        match rest.strip_suffix("<unfinished ...>") {
            Some(head) => unfinished.push((thread.into(), name.into(), head.trim_end().into())),
            None => calls.push(call(thread, name, rest.to_owned())),
        }
    }
    calls
}

fn call(thread: &str, name: &str, text: String) -> Call {
    let arguments = text.split_once('(').map_or("", |(_, a)| a);
    let target = arguments
        .split([',', ')'])
        .next()
        .unwrap_or_default()
        .to_owned();
    let good = text
        .rsplit_once(") = ")
        .or_else(|| text.rsplit_once(")  = "))
        .or_else(|| text.rsplit_once("= "))
        .is_some_and(|(_, result)| !result.trim_start().starts_with('-'));
    Call {
        thread: thread.into(),
        name: name.into(),
        target,
        text,
        good,
    }
}

/// Checks that between the last read of the request that carries `mark` and the answer that begins with `answer`, a file whose path contains `file`
/// was flushed.
pub fn flushed_before_answer(calls: &[Call], mark: &str, answer: &str, file: &str) -> Result<()> {
    const READS: &[&str] = &["read", "recvfrom", "readv", "recvmsg"];
    const WRITES: &[&str] = &["write", "sendto", "writev", "sendmsg"];
    const FLUSHES: &[&str] = &["fdatasync", "fsync"];
    let asked = calls
        .iter()
        .position(|c| READS.contains(&c.name.as_str()) && c.text.contains(mark))
        .with_context(|| format!("no read carries {mark}"))?;
    let socket = &calls[asked].target;
    let answered = calls
        .iter()
        .enumerate()
        .skip(asked)
        .find(|(_, c)| {
            WRITES.contains(&c.name.as_str()) && c.target == *socket && c.text.contains(answer)
        })
        .map(|(at, _)| at)
        .with_context(|| format!("no {answer} was written to {socket} after the request"))?;
    let read_last = calls[..answered]
        .iter()
        .rposition(|c| READS.contains(&c.name.as_str()) && c.target == *socket && c.good)
        .unwrap_or(asked);
    let flushed = calls[read_last..answered]
        .iter()
        .any(|c| FLUSHES.contains(&c.name.as_str()) && c.good && c.target.contains(file));
    if !flushed {
        let between: Vec<&str> = calls[read_last..=answered]
            .iter()
            .map(|c| c.text.as_str())
            .collect();
        bail!(
            "{file} was not flushed between the request and {answer}:\n{}",
            between.join("\n")
        );
    }
    Ok(())
}

/// A running `strace` on a process.
#[derive(Debug)]
pub struct Strace {
    child: Child,
}

impl Strace {
    /// Attaches to `pid` and its threads; returns once it is attached.
    pub async fn attach(pid: u32, out: &Path) -> Result<Self> {
        let mut child = Command::new("strace")
            .args(["-f", "-y", "-s", "4096", "-e"])
            .arg("trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,fdatasync,fsync")
            .arg("-o")
            .arg(out)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("run strace: deploy/prepare-host --for test installs it")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let mut lines = BufReader::new(stderr).lines();
        let attached = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains("attached") {
                    return Ok(());
                }
            }
            bail!("strace ended without attaching: may this user trace processes?")
        };
        timeout(Duration::from_secs(20), attached)
            .await
            .context("strace did not attach")??;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child })
    }

    /// Detaches; the trace is complete afterwards.
    pub async fn detach(mut self) -> Result<()> {
        let pid = self.child.id().context("strace has ended by itself")?;
        Command::new("kill")
            .arg("-INT")
            .arg(pid.to_string())
            .status()
            .await?;
        timeout(Duration::from_secs(20), self.child.wait())
            .await
            .context("strace did not end")??;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = r#"11 recvfrom(9<TCP:[1]>, "POST /webhooks/github HTTP/1.1\r\nx-github-delivery: abc\r\n", 8192, 0, NULL, NULL) = 60"#;
    const BODY: &str =
        r#"11 recvfrom(9<TCP:[1]>, "{\"action\":\"queued\"}", 8192, 0, NULL, NULL) = 19"#;
    const ANSWER: &str =
        r#"11 sendto(9<TCP:[1]>, "HTTP/1.1 202 Accepted\r\n", 23, MSG_NOSIGNAL, NULL, 0) = 23"#;
    const FLUSH: &str = "14 fdatasync(7</x/longshore.db-wal>) = 0";

    fn check(lines: &[&str]) -> Result<()> {
        flushed_before_answer(
            &parse(&lines.join("\n")),
            "abc",
            "HTTP/1.1 202",
            "longshore.db",
        )
    }

    #[test]
    fn a_flush_between_request_and_answer_is_seen() {
        check(&[REQUEST, BODY, FLUSH, ANSWER]).unwrap();
    }

    #[test]
    fn a_flush_whose_return_was_interleaved_counts_from_its_return() {
        let begun = "14 fdatasync(7</x/longshore.db-wal> <unfinished ...>";
        let ended = "14 <... fdatasync resumed>) = 0";
        check(&[REQUEST, BODY, begun, ended, ANSWER]).unwrap();
        check(&[REQUEST, BODY, begun, ANSWER, ended]).unwrap_err();
    }

    #[test]
    fn an_answer_without_a_flush_before_it_is_found() {
        for lines in [
            &[REQUEST, BODY, ANSWER][..],
            &[REQUEST, BODY, ANSWER, FLUSH],
            &[FLUSH, REQUEST, BODY, ANSWER],
            &[REQUEST, FLUSH, BODY, ANSWER],
            &[REQUEST, BODY, "14 fdatasync(8</x/other>) = 0", ANSWER],
            &[
                REQUEST,
                BODY,
                "14 fdatasync(7</x/longshore.db-wal>) = -1 EIO (Input/output error)",
                ANSWER,
            ],
        ] {
            check(lines).unwrap_err();
        }
    }

    #[test]
    fn a_trace_without_the_request_proves_nothing() {
        check(&[FLUSH, ANSWER]).unwrap_err();
        check(&[REQUEST, BODY, FLUSH]).unwrap_err();
    }
}
