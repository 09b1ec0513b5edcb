//! Running the built `longshore`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// No command of the tests takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Ended well and said nothing on stderr.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(
            (self.code, self.stderr.as_str()),
            (0, ""),
            "{}",
            self.stdout
        );
        self.stdout
    }

    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.good();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Ended with `code`, nothing on stdout and exactly these two lines.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, what: &str, next: &str) {
        assert_eq!(self.stderr, format!("error: {what}\n  next: {next}\n"));
        assert_eq!((self.code, self.stdout.as_str()), (code, ""));
    }
}

/// The program with nothing of the caller's environment that it would heed.
pub(crate) fn command(scheduler: &str, args: &[&str]) -> Command {
    command_at(Path::new(env!("CARGO_BIN_EXE_longshore")), scheduler, args)
}

pub(crate) fn command_at(program: &Path, scheduler: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env("LONGSHORE_ADDRESS", scheduler)
        .env("LONGSHORE_HOME", "/nonexistent/longshore-test")
        .env("COLUMNS", "100")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn run(scheduler: &str, args: &[&str]) -> Ended {
    finish(command(scheduler, args))
}

/// Runs it to its end; one that hangs fails the test.
pub(crate) fn finish(mut command: Command) -> Ended {
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).unwrap();
        text
    });
    let err = std::thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).unwrap();
        text
    });
    let status = wait(&mut child);
    Ended {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.join().unwrap()).into_owned(),
        stderr: String::from_utf8_lossy(&err.join().unwrap()).into_owned(),
    }
}

pub(crate) fn wait(child: &mut std::process::Child) -> std::process::ExitStatus {
    until("the program ends", || child.try_wait().unwrap().ok_or(()))
}

/// Looks again until `look` succeeds; fails the test after a minute.
pub(crate) fn until<T, E>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Compares with a file beside the tests; `BLESS=1` rewrites the file.
#[track_caller]
pub(crate) fn golden(name: &str, got: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/cli/golden")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(got, want, "golden/{name} differs; BLESS=1 rewrites it");
}
