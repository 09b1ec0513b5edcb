//! A second Docker engine that a test may kill: in a mount and a network namespace
//! of its own, with a folder of its own. In the host's network namespace it would
//! remove the host's `docker0`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::namespaces::{Namespaces, command};

const DEADLINE: Duration = Duration::from_secs(90);

pub(crate) struct PrivateEngine {
    folder: tempfile::TempDir,
    engine: Option<Child>,
    /// Searched for programs before everything else.
    tools: Option<PathBuf>,
    /// Last: they go after the engine.
    namespaces: Namespaces,
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            let _ = Command::new("kill").arg(engine.id().to_string()).status();
            let begin = Instant::now();
            while matches!(engine.try_wait(), Ok(None)) && begin.elapsed() < DEADLINE {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = engine.kill();
            let _ = engine.wait();
        }
    }
}

impl PrivateEngine {
    /// `settings` is its `daemon.json`; programs are looked for in `tools` first.
    pub(crate) fn start(settings: &str, tools: Option<&Path>) -> Self {
        Self::start_in(settings, tools, "true")
    }

    /// `prepare` is run first in its namespaces.
    pub(crate) fn start_in(settings: &str, tools: Option<&Path>, prepare: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("daemon.json"), settings).unwrap();
        let mut engine = Self {
            folder,
            engine: None,
            tools: tools.map(Path::to_owned),
            namespaces: Namespaces::new(prepare),
        };
        engine.start_again();
        engine
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(crate) fn socket(&self) -> String {
        self.path("docker.sock")
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket())
    }

    /// Process that stands for its namespaces.
    pub(crate) fn keeper(&self) -> u32 {
        self.namespaces.pid()
    }

    /// Starts it, or starts it again, and waits until it answers.
    pub(crate) fn start_again(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("dockerd.log"))
            .unwrap();
        let usual = std::env::var("PATH").unwrap_or_default();
        let search = match &self.tools {
            Some(tools) => format!("{}:{usual}", tools.display()),
            None => usual,
        };
        let engine = command(self.keeper(), &["-m", "-n"], "dockerd")
            .env("PATH", search)
            .args(["--config-file", &self.path("daemon.json")])
            .args(["--data-root", &self.path("data")])
            .args(["--exec-root", &self.path("exec")])
            .args(["--pidfile", &self.path("docker.pid")])
            .args(["--host", &self.host()])
            .args(["--bridge=none", "--iptables=true"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("nsenter is installed");
        self.engine = Some(engine);
        self.wait("the engine answers", |engine| {
            let answer = Command::new("docker")
                .args(["-H", &engine.host(), "version"])
                .output();
            answer.is_ok_and(|answer| answer.status.success())
        });
    }

    /// SIGKILL for it and, with it, its containerd.
    pub(crate) fn kill(&mut self) {
        let mut engine = self.engine.take().expect("it runs");
        engine.kill().unwrap();
        engine.wait().unwrap();
        let file = self.path("exec/containerd/containerd.pid");
        let pid = fs::read_to_string(&file).unwrap();
        let program = Path::new("/proc").join(pid.trim()).join("cmdline");
        // A zombie has no command line any more.
        self.wait("its containerd ends with it", |_| {
            fs::read(&program).map_or(true, |line| line.is_empty())
        });
        // Where nobody reaps it, the next engine would take the zombie for alive.
        fs::remove_file(&file).unwrap();
        let _ = fs::remove_file(self.path("docker.pid"));
    }

    /// Gives it an image of the usual engine.
    pub(crate) fn load(&self, image: &str) {
        let mut save = Command::new("docker")
            .args(["save", image])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let load = Command::new("docker")
            .args(["-H", &self.host(), "load"])
            .stdin(save.stdout.take().unwrap())
            .stdout(Stdio::null())
            .status();
        assert!(save.wait().unwrap().success() && load.unwrap().success());
    }

    fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is(self) {
            let log = || fs::read_to_string(self.path("dockerd.log")).unwrap_or_default();
            assert!(begin.elapsed() < DEADLINE, "{what}: in vain\n{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
