//! The container that proves a GPU: as closed as a strict job's, without a job.

use super::{Network, Place, Profile, Request, Sandbox, of};
use crate::gpu::Lease;
use crate::model::Resources;

/// Where the image has the program, and the libraries it was linked with.
pub const PROGRAM: &str = "/proof/program";
pub const LIBRARIES: &str = "/proof/lib";
/// What the program is asked for.
pub const ARGUMENT: &str = "see-gpus";

/// Where an engine puts the driver's libraries, by distribution.
const DRIVER_FOLDERS: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
];
const MEMORY: u64 = 512 << 20;

/// Strict, with that one GPU, no network and nothing of a job. `place` has the
/// image and what every sandbox of this node has; its volumes are not used.
pub fn sandbox(lease: &Lease, platform: &str, place: &Place) -> Sandbox {
    let request = Request {
        image: String::new(),
        profile: Profile::Strict,
        resources: Resources {
            cpu_millis: 1_000,
            memory_bytes: MEMORY,
            gpus: 1,
        },
        platform: platform.to_owned(),
        network: Network::None,
        allowed_domains: vec![],
        lifetime_ms: 0,
        gpus: vec![lease.uuid.clone()],
        runtime: None,
    };
    let place = Place {
        gpus: vec![lease.clone()],
        ..place.clone()
    };
    let mut sandbox = of(&request, &place);
    sandbox.entrypoint = vec![PROGRAM.into()];
    sandbox.cmd = vec![ARGUMENT.into()];
    sandbox.working_dir = "/".into();
    sandbox.env.push(format!(
        "LD_LIBRARY_PATH={LIBRARIES}:{}",
        DRIVER_FOLDERS.join(":")
    ));
    sandbox.open_stdin = false;
    sandbox.stdin_once = false;
    sandbox.attach_stdin = false;
    sandbox.mounts.clear();
    sandbox.tmpfs.clear();
    sandbox.init = false;
    sandbox.stop_signal = "SIGKILL";
    sandbox
}
