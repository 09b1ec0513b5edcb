//! A Podman of the tests' own: its service, its files in one folder, its namespaces.
//! Nothing of another Podman on this machine is seen or touched.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::namespaces::{Namespaces, command};

const DEADLINE: Duration = Duration::from_secs(90);

/// Podman keeps locks and addresses in the first two folders, one set for all Podmans of
/// a machine; and it asks the package manager at each call for its version, which takes
/// seconds where the processor is busy.
const PREPARE: &str = "mount -t tmpfs none /dev/shm && mount -t tmpfs none /run && { [ ! -e /usr/bin/dpkg-query ] || mount --bind /bin/true /usr/bin/dpkg-query; } && echo 1 >/proc/sys/net/ipv4/ip_forward";

pub(crate) struct Podman {
    folder: tempfile::TempDir,
    namespaces: Namespaces,
    service: Child,
}

impl Drop for Podman {
    fn drop(&mut self) {
        let service = self.service.id().to_string();
        let _ = Command::new("kill").arg(service).status();
        let begin = Instant::now();
        while matches!(self.service.try_wait(), Ok(None)) && begin.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.service.kill();
        let _ = self.service.wait();
    }
}

impl Podman {
    /// Starts it, waits until it answers, and gives it an image of the usual Docker.
    pub(crate) fn start(image: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let namespaces = Namespaces::new(PREPARE);
        let log = File::create(path("engine.log")).unwrap();
        let service = command(namespaces.pid(), &["-m", "-n"], "podman")
            .args(["--root", &path("data")])
            .args(["--runroot", &path("run")])
            .args(["--tmpdir", &path("tmp")])
            .args(["--network-config-dir", &path("networks")])
            .args(["--cgroup-manager=cgroupfs", "--events-backend=file"])
            // Podman would take crun where it is installed, and crun refuses hosts that have
            // both kinds of control groups.
            .args(["--runtime", "runc"])
            .args(["system", "service", "--time=0"])
            .arg(format!("unix://{}", path("engine.sock")))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("nsenter is installed");
        let mut podman = Self {
            folder,
            namespaces,
            service,
        };
        podman.wait();
        podman.load(image);
        podman
    }

    pub(crate) fn socket(&self) -> String {
        self.folder.path().join("engine.sock").display().to_string()
    }

    /// Process that stands for its namespaces.
    pub(crate) fn keeper(&self) -> u32 {
        self.namespaces.pid()
    }

    fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.args(["-H", &format!("unix://{}", self.socket())]);
        docker
    }

    fn wait(&mut self) {
        let begin = Instant::now();
        loop {
            let answer = self.docker().arg("version").output();
            if answer.is_ok_and(|answer| answer.status.success()) {
                return;
            }
            let runs = matches!(self.service.try_wait(), Ok(None));
            let log = self.folder.path().join("engine.log");
            assert!(
                runs && begin.elapsed() < DEADLINE,
                "no answer of podman (deploy/prepare-host --for test installs it)\n{}",
                fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn load(&self, image: &str) {
        let mut save = Command::new("docker")
            .args(["save", image])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let load = self
            .docker()
            .arg("load")
            .stdin(save.stdout.take().unwrap())
            .stdout(Stdio::null())
            .status();
        assert!(save.wait().unwrap().success() && load.unwrap().success());
    }
}
