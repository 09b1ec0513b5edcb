//! `Runner.Listener`: waits for the job, starts `Runner.Worker`, and ends.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::diag::Diag;
use crate::os::{self, Signal};
use crate::service::{Failed, Message, Service, persist};
use crate::settings::{self, Settings};
use crate::{VERSION, dates};

/// Exit codes of the real program.
const DONE: u8 = 0;
const TERMINATED: u8 = 1;
const RETRYABLE: u8 = 2;
const SESSION_CONFLICT: u8 = 5;
const VERSION_DEPRECATED: u8 = 7;

const SESSION_RETRY: Duration = Duration::from_secs(30);
const CONFLICT_LIMIT: Duration = Duration::from_secs(4 * 60);
const MAX_POLL_ERRORS: u32 = 10;
/// SIGTERM leaves this long to a running job, SIGINT all the time it takes.
const TERMINATE_LIMIT: Duration = Duration::from_secs(30);

enum Event {
    Signal(Signal),
    Message(Message),
    PollFailed(Failed),
    WorkerEnded(u8),
}

fn say(text: &str) {
    println!("{text}");
    // the log is read while the job runs
    let _ = std::io::stdout().flush();
}

fn say_at(text: &str) {
    say(&format!("{}: {text}", dates::stamp(dates::now_s())));
}

fn env_is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| v == "1" || v.eq_ignore_ascii_case("true"))
}

pub(crate) fn main(args: &[String]) -> u8 {
    match args.first().map(String::as_str) {
        Some("--version") => {
            say(VERSION);
            return DONE;
        }
        Some("--help") => {
            say("Usage: Runner.Listener [run]");
            return DONE;
        }
        None | Some("run") => {}
        Some(other) => {
            eprintln!("`{other}` is not a command of this stand-in; it knows run and --version");
            return TERMINATED;
        }
    }
    os::block_signals();
    let root = match settings::root() {
        Ok(r) => r,
        Err(e) => {
            eprintln!("{e}");
            return TERMINATED;
        }
    };
    let settings = match Settings::load(&root) {
        Ok(s) => s,
        Err(e) => {
            eprintln!("Not configured. {e}");
            return TERMINATED;
        }
    };
    let diag = match Diag::open(&root, "Runner") {
        Ok(d) => Arc::new(d),
        Err(e) => {
            eprintln!(
                "An unhandled exception: {} is not writable: {e}",
                root.join("_diag").display()
            );
            return RETRYABLE;
        }
    };
    Listener::new(root, settings, diag).run()
}

struct Listener {
    root: PathBuf,
    service: Arc<Service>,
    diag: Arc<Diag>,
    busy: Arc<AtomicBool>,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

/// Faults of real runners that a job can ask for by `DEMO_RUNNER_FAULT` in its `env`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `exit-during:N`: ends with code N as soon as the job runs, and the job is never completed.
    ExitDuring(u8),
    /// `exit-after:N`: ends with code N although the job was completed.
    ExitAfter(u8),
    /// `never-exit`: stays alive after the job and says so for ever.
    NeverExit,
}

impl Fault {
    fn of(job: &Value) -> Option<Self> {
        let text = job.get("env")?.get("DEMO_RUNNER_FAULT")?.as_str()?;
        match text.split_once(':') {
            Some(("exit-during", n)) => n.parse().ok().map(Self::ExitDuring),
            Some(("exit-after", n)) => n.parse().ok().map(Self::ExitAfter),
            None if text == "never-exit" => Some(Self::NeverExit),
            _ => None,
        }
    }
}

struct Running {
    fault: Option<Fault>,
    name: String,
    request: String,
    stdin: Option<ChildStdin>,
    pid: u32,
}

impl Listener {
    fn new(root: PathBuf, settings: Settings, diag: Arc<Diag>) -> Self {
        let (sender, events) = channel();
        Self {
            root,
            service: Arc::new(Service::new(settings)),
            diag,
            busy: Arc::new(AtomicBool::new(false)),
            events,
            sender,
        }
    }

    fn run(self) -> u8 {
        self.diag.line(&format!(
            "Listener of runner {} starts, version {VERSION}",
            self.service.settings().agent_name
        ));
        let signals = self.sender.clone();
        std::thread::spawn(move || {
            loop {
                let got = os::wait_for_signal();
                if signals.send(Event::Signal(got)).is_err() {
                    return;
                }
            }
        });
        let session = match self.connect() {
            Ok(s) => s,
            Err(code) => return code,
        };
        say("\n√ Connected to GitHub\n");
        say(&format!("Current runner version: '{VERSION}'"));
        say_at("Listening for Jobs");
        self.poll_in_background(&session);
        let code = self.serve(&session);
        if let Err(e) = self.service.close_session(&session) {
            self.diag.line(&format!("closing the session: {e}"));
        }
        code
    }

    /// Signs in and opens the session; the error is the exit code.
    fn connect(&self) -> Result<String, u8> {
        let begun = Instant::now();
        loop {
            let opened = persist(5, || {
                self.service
                    .authenticate()
                    .and_then(|_| self.service.open_session())
            });
            let e = match opened {
                Ok(s) => return Ok(s),
                Err(e) => e,
            };
            self.diag.line(&format!("opening a session: {e}"));
            match &e {
                Failed::Refused(409, _) if begun.elapsed() < CONFLICT_LIMIT => {
                    eprintln!("A session for this runner already exists.");
                }
                Failed::Refused(409, _) => return Err(SESSION_CONFLICT),
                Failed::Refused(_, kind) if kind == "RunnerVersionTooOld" => {
                    return Err(self.deprecated());
                }
                Failed::Refused(400 | 401 | 403 | 404, _) => {
                    eprintln!(
                        "Failed to create a session. The runner registration has been deleted from the server, please re-configure."
                    );
                    return Err(TERMINATED);
                }
                Failed::Refused(..) | Failed::Transport(_) => {
                    eprintln!("Failed to connect: {e}");
                    return Err(RETRYABLE);
                }
            }
            match self.events.recv_timeout(SESSION_RETRY) {
                Ok(Event::Signal(_)) => return Err(DONE),
                _ => continue,
            }
        }
    }

    fn deprecated(&self) -> u8 {
        eprintln!("Runner version v{VERSION} is deprecated and cannot receive messages.");
        if env_is_set("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE") {
            VERSION_DEPRECATED
        } else {
            TERMINATED
        }
    }

    fn poll_in_background(&self, session: &str) {
        let (service, busy, events) = (
            Arc::clone(&self.service),
            Arc::clone(&self.busy),
            self.sender.clone(),
        );
        let session = session.to_owned();
        std::thread::spawn(move || {
            let mut errors = 0;
            loop {
                match service.poll(&session, busy.load(Ordering::Relaxed)) {
                    Ok(None) => errors = 0,
                    Ok(Some(m)) => {
                        errors = 0;
                        if events.send(Event::Message(m)).is_err() {
                            return;
                        }
                    }
                    Err(e) => {
                        errors += 1;
                        let fatal = matches!(&e, Failed::Refused(400..=499, _))
                            || errors >= MAX_POLL_ERRORS;
                        if fatal {
                            let _ = events.send(Event::PollFailed(e));
                            return;
                        }
                        // 15 to 30 s five times, then 30 to 60 s
                        let base = if errors <= 5 { 15_000 } else { 30_000 };
                        let spread = u64::from(std::process::id()) * 7_919 % base;
                        std::thread::sleep(Duration::from_millis(base + spread));
                    }
                }
            }
        });
    }

    fn serve(&self, session: &str) -> u8 {
        let mut job: Option<Running> = None;
        let mut stopping = false;
        let mut deadline: Option<Instant> = None;
        loop {
            let event = match deadline {
                None => self
                    .events
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(t) => self
                    .events
                    .recv_timeout(t.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(Event::Signal(signal)) => {
                    say_at("Exiting...");
                    let Some(running) = job.as_mut() else {
                        return DONE;
                    };
                    stopping = true;
                    running.tell("shutdown");
                    if signal == Signal::Terminate {
                        deadline = Some(Instant::now() + TERMINATE_LIMIT);
                    }
                }
                Ok(Event::Message(Message::Job { request, run_url }))
                    if job.is_none() && !stopping =>
                {
                    job = self.take(session, &request, &run_url);
                    if let Some(Fault::ExitDuring(code)) = job.as_ref().and_then(|r| r.fault) {
                        if let Some(running) = &job {
                            os::kill_group(running.pid, libc::SIGKILL);
                        }
                        return code;
                    }
                }
                Ok(Event::Message(Message::Cancel { request })) => {
                    if let Some(running) = job.as_mut().filter(|r| r.request == request) {
                        self.diag.line("The job is to be cancelled");
                        running.tell("cancel");
                    }
                }
                Ok(Event::Message(Message::Other(kind))) => {
                    self.diag
                        .line(&format!("A message of the kind {kind} is left alone"));
                }
                Ok(Event::Message(Message::Job { .. })) => {
                    self.diag.line("A second job is left alone")
                }
                Ok(Event::PollFailed(e)) => {
                    self.diag.line(&format!("polling: {e}"));
                    if job.is_some() {
                        // the registration of an ephemeral runner goes with its job; the worker tells the end
                        continue;
                    }
                    return match e {
                        Failed::Refused(_, kind) if kind == "RunnerVersionTooOld" => {
                            self.deprecated()
                        }
                        Failed::Refused(..) => {
                            eprintln!(
                                "The runner registration has been deleted from the server, please re-configure."
                            );
                            TERMINATED
                        }
                        Failed::Transport(_) => RETRYABLE,
                    };
                }
                Ok(Event::WorkerEnded(code)) => {
                    let Some(running) = job.take() else { continue };
                    self.busy.store(false, Ordering::Relaxed);
                    say_at(&format!(
                        "Job {} completed with result: {}",
                        running.name,
                        result_name(code)
                    ));
                    if self.service.settings().ephemeral {
                        settings::forget(&self.root);
                    }
                    match running.fault {
                        Some(Fault::ExitAfter(code)) => return code,
                        Some(Fault::NeverExit) => never_exit(),
                        _ => {}
                    }
                    if stopping || self.service.settings().ephemeral {
                        let wanted =
                            std::env::var_os("ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED")
                                .is_some();
                        return if wanted { code } else { DONE };
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(running) = job.as_ref() {
                        os::kill_group(running.pid, libc::SIGKILL);
                    }
                    return DONE;
                }
                Err(RecvTimeoutError::Disconnected) => return RETRYABLE,
            }
        }
    }

    /// Acknowledges, acquires, starts the worker. `None`: the job was lost to somebody else.
    fn take(&self, session: &str, request: &str, run_url: &str) -> Option<Running> {
        if let Err(e) = self.service.acknowledge(session, request) {
            self.diag.line(&format!("acknowledging: {e}"));
        }
        let body = match persist(5, || self.service.acquire(run_url, request)) {
            Ok(b) => b,
            Err(e) => {
                self.diag.line(&format!("acquiring: {e}"));
                say_at("Skipping message Job. It was cancelled or taken by another runner.");
                return None;
            }
        };
        let name = body
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or("job")
            .to_owned();
        let fault = Fault::of(&body);
        say_at(&format!("Running job: {name}"));
        self.busy.store(true, Ordering::Relaxed);
        match self.start_worker(&body, run_url, request) {
            Ok((mut child, stdin)) => {
                let pid = child.id();
                let events = self.sender.clone();
                std::thread::spawn(move || {
                    let code = wait_code(&mut child);
                    let _ = events.send(Event::WorkerEnded(code));
                });
                Some(Running {
                    fault,
                    name,
                    request: request.to_owned(),
                    stdin: Some(stdin),
                    pid,
                })
            }
            Err(e) => {
                eprintln!("Cannot start Runner.Worker: {e}");
                let failed = persist(3, || self.service.complete(run_url, request, "failed"));
                self.diag.line(&format!(
                    "Runner.Worker: {e}; told the service: {}",
                    failed.is_ok()
                ));
                let _ = self.sender.send(Event::WorkerEnded(102));
                Some(Running {
                    fault,
                    name,
                    request: request.to_owned(),
                    stdin: None,
                    pid: u32::MAX,
                })
            }
        }
    }

    fn start_worker(
        &self,
        job: &Value,
        run_url: &str,
        request: &str,
    ) -> std::io::Result<(Child, ChildStdin)> {
        let program = worker_path(&self.root);
        let mut command = Command::new(&program);
        command.arg("spawnclient").stdin(Stdio::piped());
        os::fresh_signals(&mut command);
        let mut child = command.spawn()?;
        let mut stdin = child
            .stdin
            .take()
            .ok_or_else(|| std::io::Error::other("no pipe"))?;
        let mut line = json!({"job": job, "runUrl": run_url, "requestId": request}).to_string();
        line.push('\n');
        stdin.write_all(line.as_bytes())?;
        stdin.flush()?;
        Ok((child, stdin))
    }
}

/// What some versions do after a cancellation: alive, deregistered, and the same line again and again.
fn never_exit() -> ! {
    loop {
        say_at("Job request was cancelled while it was completed. Waiting for the worker.");
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn worker_path(root: &Path) -> PathBuf {
    root.join("bin").join("Runner.Worker")
}

impl Running {
    fn tell(&mut self, word: &str) {
        if let Some(stdin) = self.stdin.as_mut() {
            // a worker that has ended needs no word
            let _ = writeln!(stdin, "{word}").and_then(|()| stdin.flush());
        }
    }
}

fn wait_code(child: &mut Child) -> u8 {
    match child.wait() {
        // killed, or a code of no meaning: abandoned
        Ok(status) => status
            .code()
            .and_then(|c| u8::try_from(c).ok())
            .filter(|c| (100..=105).contains(c))
            .unwrap_or(105),
        Err(_) => 105,
    }
}

fn result_name(code: u8) -> &'static str {
    match code {
        100 => "Succeeded",
        101 => "SucceededWithIssues",
        102 => "Failed",
        103 => "Canceled",
        104 => "Skipped",
        _ => "Abandoned",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_from_the_environment_of_the_job() {
        let job = |f: &str| json!({"env": {"DEMO_RUNNER_FAULT": f}});
        assert_eq!(Fault::of(&job("exit-during:2")), Some(Fault::ExitDuring(2)));
        assert_eq!(Fault::of(&job("exit-after:7")), Some(Fault::ExitAfter(7)));
        assert_eq!(Fault::of(&job("never-exit")), Some(Fault::NeverExit));
        assert_eq!(Fault::of(&job("exit-after:x")), None);
        assert_eq!(Fault::of(&json!({})), None);
    }

    #[test]
    fn results_have_the_words_of_the_real_program() {
        let words: Vec<&str> = (100..=105).map(result_name).collect();
        assert_eq!(
            words,
            [
                "Succeeded",
                "SucceededWithIssues",
                "Failed",
                "Canceled",
                "Skipped",
                "Abandoned"
            ]
        );
    }
}
