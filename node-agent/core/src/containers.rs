//! Containers that a job may have beside it: what it asks, and what it gets.
//!
//! The runner program's container hook passes each request on as it came. Here it
//! is read, and everything that would widen a sandbox is refused by name. What is
//! left becomes a [`Sandbox`] of the job's own kind, in the job's own network
//! namespace and control group.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::model::{Resources, RunnerSpec};
use crate::sandbox::{self, Place, RUNNER_ROOT, Request, Sandbox, VolumeMount};

mod listed;
mod options;
mod request;

pub use listed::Listed;
pub use options::Health;
pub use request::{Command, parse};

/// Port of the agent on the gateway of a job's slot.
pub const PORT: u16 = 3_129;
/// File in the runner's root with address, port and secret.
pub const FILE: &str = ".longshore";
/// Most containers of one job at once.
pub const MAX_SIBLINGS: usize = 16;
/// Longest request.
pub const MAX_REQUEST: usize = 1 << 20;

/// Where the job's work folder is in a sibling.
const WORK: &str = "/__w";
/// Where the runner program's own programs are.
const EXTERNALS: &str = "/__e";

/// Why a request is not carried out. Each names what was asked and what to do.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("the request is not one the container hook makes: {0}")]
    Form(String),
    #[error("{0:?} is not an image reference")]
    Image(String),
    #[error("container option {0} is not supported; supported are {1}")]
    Option(String, &'static str),
    #[error("container option {0}: {1:?} is not a value for it")]
    Value(&'static str, String),
    #[error(
        "volume {0:?} is not supported: containers of a job share its work folder and nothing else; use a path below the workspace"
    )]
    Volume(String),
    #[error("{0:?} is not a path for a mount")]
    Target(String),
    #[error(
        "port mapping {0:?} is not supported: a job and its containers share one network, so a service is at localhost with its own port; write only that port"
    )]
    Port(String),
    #[error("{0:?} is not a name for a service: letters, digits, - and _, at most 63")]
    Name(String),
    #[error(
        "registry credentials are not supported; have the image pulled on the node beforehand, or use one that needs none"
    )]
    Registry,
    #[error(
        "an action that is built from a Dockerfile is not supported; use one with a published image (docker://...)"
    )]
    Dockerfile,
    #[error("environment variable {0:?} has a name or value with a line end or NUL in it")]
    Environment(String),
    #[error("more than {MAX_SIBLINGS} containers at once in one job")]
    TooMany,
}

/// A container that a job asks for, after everything in it was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sibling {
    pub image: String,
    /// Empty: the image's own.
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Empty: the image's own.
    pub working_dir: String,
    pub env: BTreeMap<String, String>,
    /// Folders that come ahead of the image's PATH.
    pub prepend_path: Vec<String>,
    /// Links to make before the start: (where, to what), both in the sibling.
    pub links: Vec<(String, String)>,
    pub health: Option<Health>,
    /// At most the job's own.
    pub cpu_millis: Option<u32>,
    pub memory_bytes: Option<u64>,
}

/// A service: a sibling with a name and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub ports: Vec<u16>,
    pub sibling: Sibling,
}

/// The job that siblings belong to, as its own sandbox was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Container whose network namespace they share.
    pub container: String,
    pub resources: Resources,
    pub platform: String,
    pub work_volume: String,
    pub externals_volume: String,
    pub place: Place,
}

/// The sandbox of a sibling: the job's, without what only the runner program needs.
pub fn sandbox(
    job: &Job,
    sibling: &Sibling,
    image_id: &str,
    labels: &[(String, String)],
) -> Sandbox {
    let resources = Resources {
        cpu_millis: sibling.cpu_millis.map_or(job.resources.cpu_millis, |cpu| {
            cpu.min(job.resources.cpu_millis)
        }),
        memory_bytes: sibling
            .memory_bytes
            .map_or(job.resources.memory_bytes, |bytes| {
                bytes.min(job.resources.memory_bytes)
            }),
        gpus: 0,
    };
    let request = Request {
        image: sibling.image.clone(),
        profile: sandbox::Profile::Containers,
        resources,
        platform: job.platform.clone(),
        network: sandbox::Network::None,
        allowed_domains: Vec::new(),
        lifetime_ms: 0,
        // A GPU is the job's own sandbox's alone.
        gpus: vec![],
        runtime: None,
    };
    let place = Place {
        image_id: image_id.to_owned(),
        labels: labels.to_vec(),
        // Root inside is for the job's own sandbox alone.
        users_are_mapped: false,
        ..job.place.clone()
    };
    let mut made = sandbox::of(&request, &place);
    // The network namespace, its names and its resolvers are the job's.
    made.network_mode = format!("container:{}", job.container);
    made.dns = vec![];
    made.hostname = String::new();
    made.entrypoint = sibling.entrypoint.clone();
    made.cmd = sibling.cmd.clone();
    made.working_dir = sibling.working_dir.clone();
    // The proxy of a closed slot is the job's only way out, and so theirs.
    let proxies = made.env.iter().filter(|line| {
        line.split('=')
            .next()
            .is_some_and(|name| name.to_ascii_lowercase().ends_with("_proxy"))
    });
    made.env = proxies
        .cloned()
        .chain(["NVIDIA_VISIBLE_DEVICES=void".to_owned()])
        .chain(
            sibling
                .env
                .iter()
                .filter(|(name, _)| name.as_str() != "NVIDIA_VISIBLE_DEVICES")
                .map(|(name, value)| format!("{name}={value}")),
        )
        .collect();
    made.open_stdin = false;
    made.stdin_once = false;
    made.attach_stdin = false;
    made.tmpfs.retain(|(path, _)| path != RUNNER_ROOT);
    made.mounts = vec![
        VolumeMount {
            volume: job.work_volume.clone(),
            target: WORK.into(),
            read_only: false,
            copy_up: false,
        },
        VolumeMount {
            volume: job.externals_volume.clone(),
            target: EXTERNALS.into(),
            read_only: true,
            copy_up: false,
        },
    ];
    made
}

/// The job container of `container:` waits while steps are run in it.
pub fn waiting(mut sibling: Sibling) -> Sibling {
    sibling.entrypoint = vec!["tail".into()];
    sibling.cmd = vec!["-f".into(), "/dev/null".into()];
    sibling
}

/// Whether a name could be an image's: what the agent accepts from a pool too.
fn is_image(image: &str) -> bool {
    let spec = RunnerSpec {
        image: image.to_owned(),
        platform: "linux/amd64".into(),
        resources: Resources {
            cpu_millis: 1_000,
            memory_bytes: sandbox::MIN_MEMORY,
            gpus: 0,
        },
        ..RunnerSpec::default()
    };
    Request::from_spec(&spec).is_ok()
}

#[cfg(test)]
mod tests;
