//! What makes a test's machine a GPU host: the driver's library, its control file and
//! NVIDIA's hook, all stand-ins, in one folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::rig::{Host, PLAIN};
use longshore_e2e::binaries::Binaries;
use nvml_fixture::{Control, Event, Gpu, Instance, Memory, Process};

/// A large one, cut into instances where a test says so.
pub(crate) const H100: &str = "GPU-5a5e9b22-0000-4000-8000-000000000001";
pub(crate) const RTX: &str = "GPU-6b6fac33-0000-4000-8000-000000000002";
pub(crate) const PARTS: [&str; 2] = [
    "MIG-7c70bd44-0000-4000-8000-000000000003",
    "MIG-8d81ce55-0000-4000-8000-000000000004",
];

const HOOK: &str = include_str!("nvidia-container-runtime-hook");

pub(crate) struct GpuHost {
    folder: tempfile::TempDir,
    control: Control,
}

impl GpuHost {
    /// Two models.
    pub(crate) fn new(binaries: &Binaries, cut: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let h100 = Gpu {
            uuid: H100.into(),
            name: "NVIDIA H100 80GB HBM3".into(),
            minor: 0,
            brand: 14,
            architecture: 9,
            memory_mib: 81_559,
            capability: (9, 0),
            bus: "00000000:05:00.0".into(),
            instances: cut.then(|| {
                let part = |at: usize| Instance {
                    uuid: PARTS[at].into(),
                    profile: "3g.40gb".into(),
                    memory_mib: 40_448,
                    cap: 12 + at as u32,
                    ..Instance::default()
                };
                vec![part(0), part(1)]
            }),
            ..Gpu::default()
        };
        let rtx = Gpu {
            uuid: RTX.into(),
            name: "NVIDIA GeForce RTX 3090".into(),
            minor: 1,
            brand: 5,
            architecture: 7,
            memory_mib: 24_576,
            capability: (8, 6),
            bus: "00000000:06:00.0".into(),
            ..Gpu::default()
        };
        let host = Self {
            folder,
            control: Control {
                driver: "550.54.15".into(),
                cuda: 12_040,
                gpus: vec![h100, rtx],
                ..Control::default()
            },
        };
        let mut devices = format!("{H100} 0\n{RTX} 1\n");
        for (at, part) in PARTS.iter().enumerate() {
            devices.push_str(&format!("{part} 0 {}\n", 12 + at));
        }
        fs::write(host.path("devices"), devices).unwrap();
        fs::copy(library(binaries), host.path("libnvidia-ml.so.1")).unwrap();
        let hook = host.path("nvidia-container-runtime-hook");
        fs::write(&hook, HOOK).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        host.control.write(&host.path("control.json")).unwrap();
        host
    }

    /// A host of its own with these GPUs.
    pub(crate) fn as_a_node(&self) -> Host {
        Host {
            engine: PLAIN,
            tools: Some(self.folder.path().to_owned()),
            env: self.environment(),
            ..Host::default()
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the shipped agent is started with.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![
            ("LD_LIBRARY_PATH".into(), text(self.folder.path())),
            (
                nvml_fixture::control::VARIABLE.into(),
                text(&self.path("control.json")),
            ),
        ]
    }

    /// What is known of the memory in use on a GPU or an instance from now on.
    pub(crate) fn memory(&mut self, uuid: &str, memory: Memory) {
        self.change(|control| {
            for gpu in &mut control.gpus {
                if gpu.uuid == uuid {
                    gpu.memory = memory.clone();
                }
                for instance in gpu.instances.iter_mut().flatten() {
                    if instance.uuid == uuid {
                        instance.memory = memory.clone();
                    }
                }
            }
        });
    }

    fn change(&mut self, change: impl FnOnce(&mut Control)) {
        change(&mut self.control);
        self.control.write(&self.path("control.json")).unwrap();
    }

    fn gpu<'a>(control: &'a mut Control, uuid: &str) -> &'a mut Gpu {
        let mut gpus = control.gpus.iter_mut();
        gpus.find(|gpu| gpu.uuid == uuid).expect("a known GPU")
    }

    /// Programs that compute on it from now on.
    pub(crate) fn used_by(&mut self, uuid: &str, pids: &[u32]) {
        let processes = pids.iter().map(|pid| Process {
            pid: *pid,
            memory_bytes: 1 << 30,
        });
        let processes = processes.collect();
        self.change(|control| Self::gpu(control, uuid).processes = processes);
    }

    /// The driver reports an error.
    pub(crate) fn xid(&mut self, uuid: &str, xid: u64) {
        let event = Event {
            uuid: uuid.into(),
            xid,
        };
        self.change(|control| control.events.push(event));
    }

    pub(crate) fn lose(&mut self, uuid: &str) {
        self.change(|control| Self::gpu(control, uuid).lost = true);
    }
}

/// The built fixture, beside the programs or among their parts.
fn library(binaries: &Binaries) -> PathBuf {
    let name = "libnvml_fixture.so";
    let folder = binaries.folder();
    [folder.join(name), folder.join("deps").join(name)]
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no {name} in {}: cargo builds it with these tests",
                folder.display()
            )
        })
}
