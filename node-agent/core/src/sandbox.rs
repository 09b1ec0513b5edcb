//! The whole container of a runner as data. The engine crate only translates it.
//!
//! Rows are those of the isolation table in `docs/security.md`: 1 to 24, 26,
//! 27, 29 and 30 hold for profile `strict`; [`profile`] says what another one
//! changes. What may differ between two sandboxes of a profile is in [`Request`]
//! and [`Place`], and nothing in either can add a capability, a device, a host
//! folder or a host namespace.

use serde::Serialize;
use thiserror::Error;

use crate::dialect::{Dialect, TmpfsOwner};
use crate::domains::Allowed;
use crate::gpu::{self, DeviceAsk, Lease};
use crate::model::{Resources, RunnerSpec};
use crate::names::Fnv;
use crate::{seccomp, tools};

pub mod gpu_proof;
pub mod profile;
pub mod runtime_class;

pub use profile::{Offered, Profile};
pub use runtime_class::{OfferedRuntimes, RuntimeClass};

/// Root of the runner program in GitHub's image and in ours.
pub const RUNNER_ROOT: &str = "/home/runner";
/// User and group of the runner program.
pub const RUNNER_UID: u32 = 1001;

/// Waits for the registration on standard input, checks that all of it came,
/// and becomes the runner program. POSIX shell; busybox and GNU tools alike. What can
/// be done before the wait is done before it, and two processes are all it takes after:
/// a cut stream fails tar, and the marker, the last member, has the hash of each other.
/// Its argument is a folder whose `bin` comes first in PATH, or empty.
pub const ENTRY: &str = r#"umask 077
[ -z "$1" ] || PATH=$1/bin:$PATH
cd /home/runner && chmod 0700 . && mkdir -p _work/_tmp || exit 70
tar -x -f - 2>/dev/null || exit 71
[ -s .handover ] || exit 72
sha256sum -c .handover >/dev/null 2>&1 || exit 73
: >.handover
exec /home/runner/bin/Runner.Listener run </dev/null
"#;

/// Smallest memory a sandbox is made with: below it the runner program dies.
pub const MIN_MEMORY: u64 = 64 << 20;

/// Bytes of a tmpfs that an engine adds by itself.
const UNASKED_SIZE: u64 = 1 << 20;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("profile {0:?} is not offered by this node; there are strict, standard and containers")]
    Profile(String),
    #[error("network mode {0:?} is not offered by this node; there are open, allowlist and none")]
    Network(String),
    #[error("{0}")]
    Domains(String),
    #[error("platform {0:?} is not linux/amd64, linux/arm64 or linux/arm/v7")]
    Platform(String),
    #[error("image {0:?} is not an image reference")]
    Image(String),
    #[error("{0:?} is no runtime class; there are runc, crun, runsc, kata and sysbox")]
    Runtime(String),
    #[error("{0}")]
    OfRuntime(String),
    #[error("{0} bytes of memory are less than the 64 MiB a sandbox needs")]
    Memory(u64),
    #[error("a runner needs at least 10 thousandths of a CPU, not {0}")]
    Cpu(u32),
    #[error(
        "{asked} GPUs were asked for by {named} UUIDs ({text}); each is named once, as GPU-... or MIG-..."
    )]
    Gpu {
        asked: u32,
        named: usize,
        text: String,
    },
}

/// Which network a sandbox gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The internet; not the host, its neighbours or the cloud's metadata.
    Open,
    /// What is listed, through the egress proxy of its slot.
    Allowlist,
    None,
}

/// What a sandbox may be asked to be. Everything else is fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Reference as the scheduler gave it, for messages.
    pub image: String,
    pub profile: Profile,
    pub resources: Resources,
    pub platform: String,
    pub network: Network,
    /// Entries of an allow-list; empty in other modes.
    pub allowed_domains: Vec<String>,
    pub lifetime_ms: u64,
    /// UUIDs of the GPUs that the scheduler leased for it.
    pub gpus: Vec<String>,
    /// None is the engine's own.
    pub runtime: Option<RuntimeClass>,
}

fn check_domains(entries: &[String]) -> Result<(), Refusal> {
    if entries.is_empty() {
        let why = "network mode allowlist without allowed_domains would reach nothing; use none";
        return Err(Refusal::Domains(why.into()));
    }
    Allowed::parse(entries.iter().map(String::as_str))
        .map(drop)
        .map_err(|bad| Refusal::Domains(bad.to_string()))
}

impl Request {
    /// Checks a spec that came over the wire.
    pub fn from_spec(spec: &RunnerSpec) -> Result<Self, Refusal> {
        let Some(profile) = Profile::parse(&spec.profile) else {
            return Err(Refusal::Profile(spec.profile.clone()));
        };
        let network = match spec.network_mode.as_str() {
            "" | "open" => Network::Open,
            "allowlist" => Network::Allowlist,
            "none" => Network::None,
            other => return Err(Refusal::Network(other.to_owned())),
        };
        if network == Network::Allowlist {
            check_domains(&spec.allowed_domains)?;
        }
        if !matches!(
            spec.platform.as_str(),
            "linux/amd64" | "linux/arm64" | "linux/arm/v7"
        ) {
            return Err(Refusal::Platform(spec.platform.clone()));
        }
        let image_ok = !spec.image.is_empty()
            && spec.image.len() <= 512
            && !spec.image.starts_with('-')
            && spec
                .image
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b));
        if !image_ok {
            return Err(Refusal::Image(spec.image.clone()));
        }
        if spec.resources.memory_bytes < MIN_MEMORY {
            return Err(Refusal::Memory(spec.resources.memory_bytes));
        }
        if spec.resources.cpu_millis < 10 {
            return Err(Refusal::Cpu(spec.resources.cpu_millis));
        }
        let uuids = &spec.gpu_uuids;
        let each_once = uuids
            .iter()
            .enumerate()
            .all(|(at, uuid)| gpu::is_uuid(uuid) && !uuids[..at].contains(uuid));
        if uuids.len() != spec.resources.gpus as usize || uuids.len() > gpu::MOST || !each_once {
            return Err(Refusal::Gpu {
                asked: spec.resources.gpus,
                named: uuids.len(),
                text: uuids
                    .iter()
                    .take(gpu::MOST)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        }
        let runtime = runtime_of(&spec.runtime, profile, uuids)?;
        Ok(Self {
            image: spec.image.clone(),
            profile,
            resources: spec.resources,
            platform: spec.platform.clone(),
            network,
            allowed_domains: match network {
                Network::Allowlist => spec.allowed_domains.clone(),
                Network::Open | Network::None => Vec::new(),
            },
            lifetime_ms: spec.lifetime_ms,
            gpus: uuids.clone(),
            runtime,
        })
    }
}

/// A word of the closed list, where its sandbox can be what the profile and the leases ask.
fn runtime_of(
    word: &str,
    profile: Profile,
    gpus: &[String],
) -> Result<Option<RuntimeClass>, Refusal> {
    if word.is_empty() {
        return Ok(None);
    }
    let class = RuntimeClass::parse(word).ok_or_else(|| Refusal::Runtime(word.to_owned()))?;
    let why = if profile.terms().containers {
        // They share the job's network namespace, which another kernel does not have.
        "profile containers needs the engine's own runtime; leave runtime out"
    } else if !gpus.is_empty() && !class.terms().takes_gpus {
        "a GPU is given by the engine's hooks, which do not reach into this runtime"
    } else {
        return Ok(Some(class));
    };
    Err(Refusal::OfRuntime(format!("runtime {word}: {why}")))
}

/// What the node adds: names of what it made for this sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `sha256:...` of the image that is on the node.
    pub image_id: String,
    /// Name of the slot's network.
    pub network: String,
    pub work_volume: String,
    pub bin_volume: String,
    pub externals_volume: String,
    /// Volume with the files of [`crate::tools`].
    pub tools_volume: String,
    /// Resolvers; empty leaves the engine's choice.
    pub dns: Vec<String>,
    /// URL of the slot's egress proxy; set in network mode `allowlist` only.
    pub proxy: Option<String>,
    /// Processors of the host, for the masked paths.
    pub host_cpus: u32,
    /// Parent control group that outlives the container; empty for none.
    pub cgroup_parent: String,
    pub labels: Vec<(String, String)>,
    /// The engine's words.
    pub dialect: Dialect,
    /// How the engine is given the filter of system calls.
    pub seccomp: Filter,
    /// The engine maps the sandbox's users to powerless ones of the host.
    pub users_are_mapped: bool,
    /// How the engine gives it the GPUs of the request; others are left out.
    pub gpus: Vec<Lease>,
    /// What the engine calls the runtime classes that it has.
    pub runtimes: Vec<(RuntimeClass, String)>,
}

/// How an engine takes the filter of system calls, [`crate::seccomp`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Its text, over the API.
    #[default]
    Text,
    /// From files in this folder on the engine's host, one for each profile.
    Files(String),
    /// Not at all, and why: this engine filters nothing.
    Without(String),
}

impl Filter {
    /// Name of a profile's file.
    pub fn file(profile: Profile) -> String {
        format!("seccomp-{}.json", profile.word())
    }

    fn option(&self, profile: Profile) -> Option<String> {
        match self {
            Self::Text => Some(format!("seccomp={}", seccomp::filter(profile))),
            Self::Files(folder) => Some(format!("seccomp={folder}/{}", Self::file(profile))),
            Self::Without(_) => None,
        }
    }
}

/// A volume mounted into the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeMount {
    pub volume: String,
    pub target: String,
    pub read_only: bool,
    /// Filled from the image when it is empty.
    pub copy_up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ulimit {
    pub name: &'static str,
    pub soft: i64,
    pub hard: i64,
}

/// Every field of a container that this node sets. A field that is not here is
/// never set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sandbox {
    pub image: String,
    pub platform: String,
    pub user: String,
    pub hostname: String,
    pub working_dir: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub labels: Vec<(String, String)>,
    pub stop_signal: &'static str,
    pub stop_timeout_s: i64,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub attach_stdin: bool,
    pub tty: bool,
    pub cap_drop: Vec<&'static str>,
    pub cap_add: Vec<String>,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub security_opt: Vec<String>,
    pub pids_limit: i64,
    pub memory: i64,
    pub memory_swap: i64,
    pub nano_cpus: i64,
    pub oom_kill_disable: bool,
    pub oom_score_adj: i64,
    pub ulimits: Vec<Ulimit>,
    pub tmpfs: Vec<(String, String)>,
    pub mounts: Vec<VolumeMount>,
    pub binds: Vec<String>,
    pub devices: Vec<String>,
    /// The leased GPUs and nothing else.
    pub device_requests: Vec<DeviceAsk>,
    pub device_cgroup_rules: Vec<String>,
    pub group_add: Vec<String>,
    pub ipc_mode: &'static str,
    pub pid_mode: &'static str,
    pub uts_mode: &'static str,
    pub userns_mode: &'static str,
    pub cgroupns_mode: &'static str,
    pub cgroup_parent: String,
    pub network_mode: String,
    pub dns: Vec<String>,
    pub publish_all_ports: bool,
    pub shm_size: i64,
    pub init: bool,
    pub auto_remove: bool,
    pub restart: &'static str,
    pub log_driver: &'static str,
    pub log_options: Vec<(&'static str, &'static str)>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<&'static str>,
    /// The engine's name of a runtime; empty for its own.
    pub runtime: String,
}

impl Sandbox {
    /// Short hash of everything but names that differ between two of a kind.
    pub fn spec_hash(&self) -> String {
        let mut same = self.clone();
        same.labels.clear();
        same.network_mode.clear();
        same.cgroup_parent.clear();
        for mount in &mut same.mounts {
            mount.volume.clear();
        }
        let mut hash = Fnv::default();
        // Serialising plain data cannot fail; an empty text would only make hashes equal.
        hash.write(serde_json::to_string(&same).unwrap_or_default().as_bytes());
        format!("{:016x}", hash.0)
    }
}

/// The sandbox of a request's profile at a place.
pub fn of(request: &Request, place: &Place) -> Sandbox {
    let terms = request.profile.terms();
    let sudo = request.profile.has_sudo(place.users_are_mapped);
    let leases: Vec<Lease> = place
        .gpus
        .iter()
        .filter(|lease| request.gpus.contains(&lease.uuid))
        .cloned()
        .collect();
    let memory = i64::try_from(request.resources.memory_bytes).unwrap_or(i64::MAX);
    // Everything in memory is charged to the runner: half of it at most (row 10).
    let root_size = (memory / 8).min(64 << 20);
    let tmp_size = memory / 4;
    let shm_size = (memory / 8).min(64 << 20);
    let uid = RUNNER_UID;
    let masked = masked_paths(place.host_cpus);
    let dialect = &place.dialect;
    let suffix = dialect.tmpfs_suffix;
    let owner = match dialect.tmpfs_owner {
        TmpfsOwner::Number => format!("uid={uid},gid={uid}"),
        TmpfsOwner::User => "U".to_owned(),
    };
    let mut tmpfs = vec![
        (
            RUNNER_ROOT.into(),
            format!("rw,exec,nosuid,nodev,size={root_size},{owner},mode=0700{suffix}"),
        ),
        (
            "/tmp".into(),
            format!("rw,noexec,nosuid,nodev,size={tmp_size},mode=1777{suffix}"),
        ),
    ];
    tmpfs.extend(dialect.unasked_tmpfs.iter().map(|path| {
        (
            (*path).to_owned(),
            format!("rw,noexec,nosuid,nodev,size={UNASKED_SIZE},mode=0755{suffix}"),
        )
    }));
    Sandbox {
        image: place.image_id.clone(),
        platform: request.platform.clone(),
        user: format!("{uid}:{uid}"),
        hostname: "runner".into(),
        working_dir: RUNNER_ROOT.into(),
        entrypoint: vec!["/bin/sh".into(), "-c".into()],
        cmd: vec![
            ENTRY.into(),
            "sandbox".into(),
            format!("{}/{}", tools::ROOT, tools::folder(request.profile, sudo)),
        ],
        env: environment(request.profile, sudo, place, &leases),
        labels: place.labels.clone(),
        stop_signal: "SIGINT",
        stop_timeout_s: 90,
        open_stdin: true,
        stdin_once: true,
        attach_stdin: true,
        tty: false,
        cap_drop: vec!["ALL"],
        cap_add: capabilities(sudo),
        privileged: false,
        readonly_rootfs: terms.readonly_rootfs,
        security_opt: security_options(request.profile, place, &masked, sudo),
        pids_limit: 2048,
        memory,
        memory_swap: memory,
        nano_cpus: i64::from(request.resources.cpu_millis) * 1_000_000,
        oom_kill_disable: false,
        oom_score_adj: 500,
        ulimits: vec![
            Ulimit {
                name: "core",
                soft: 0,
                hard: 0,
            },
            Ulimit {
                name: "nofile",
                soft: 8_192,
                hard: 8_192,
            },
            // Below the hard limits of every engine met so far: without CAP_SYS_RESOURCE it
            // cannot raise them. nproc counts one user's processes over all sandboxes of the
            // host, so pids_limit is the real bound.
            Ulimit {
                name: "nproc",
                soft: 32_768,
                hard: 32_768,
            },
        ],
        tmpfs,
        mounts: vec![
            VolumeMount {
                volume: place.bin_volume.clone(),
                target: format!("{RUNNER_ROOT}/bin"),
                read_only: true,
                copy_up: false,
            },
            VolumeMount {
                volume: place.externals_volume.clone(),
                target: format!("{RUNNER_ROOT}/externals"),
                read_only: true,
                copy_up: false,
            },
            VolumeMount {
                volume: place.tools_volume.clone(),
                target: tools::ROOT.into(),
                read_only: true,
                copy_up: false,
            },
            VolumeMount {
                volume: place.work_volume.clone(),
                target: format!("{RUNNER_ROOT}/_work"),
                read_only: false,
                copy_up: false,
            },
        ],
        binds: vec![],
        devices: vec![],
        device_requests: gpu::requests(&leases),
        device_cgroup_rules: vec![],
        group_add: vec![],
        ipc_mode: "private",
        pid_mode: "",
        uts_mode: "",
        userns_mode: "",
        cgroupns_mode: "private",
        cgroup_parent: place.cgroup_parent.clone(),
        network_mode: match request.network {
            Network::Open | Network::Allowlist => place.network.clone(),
            Network::None => "none".into(),
        },
        dns: match request.network {
            Network::Open => place.dns.clone(),
            // The proxy resolves. Without a word of ours the engine would ask the host's
            // resolver on the sandbox's behalf.
            Network::Allowlist => vec!["127.0.0.1".into()],
            Network::None => vec![],
        },
        publish_all_ports: false,
        shm_size,
        init: true,
        auto_remove: false,
        restart: "no",
        log_driver: dialect.log_driver,
        log_options: dialect.log_options.to_vec(),
        masked_paths: masked,
        readonly_paths: vec![
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ],
        runtime: request
            .runtime
            .and_then(|asked| place.runtimes.iter().find(|(class, _)| *class == asked))
            .map(|(_, name)| name.clone())
            .unwrap_or_default(),
    }
}

fn capabilities(sudo: bool) -> Vec<String> {
    match sudo {
        true => profile::SUDO_CAPABILITIES.map(String::from).to_vec(),
        false => vec![],
    }
}

fn environment(profile: Profile, sudo: bool, place: &Place, leases: &[Lease]) -> Vec<String> {
    let mut environment = vec![
        format!("HOME={RUNNER_ROOT}"),
        // On disk, and executable: /tmp is neither.
        format!("TMPDIR={RUNNER_ROOT}/_work/_tmp"),
        "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE=1".into(),
        // Steps die before the runner program does.
        "PIPELINE_JOB_OOMSCOREADJ=900".into(),
        format!("NVIDIA_VISIBLE_DEVICES={}", gpu::visible(leases)),
        // Without it the runner program would look for an engine.
        format!(
            "ACTIONS_RUNNER_CONTAINER_HOOKS={}",
            tools::hook(profile, sudo)
        ),
    ];
    if let Some(proxy) = &place.proxy {
        // Programs differ in which of the two spellings they read.
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            environment.push(format!("{name}={proxy}"));
        }
        for name in ["no_proxy", "NO_PROXY"] {
            environment.push(format!("{name}=localhost,127.0.0.1,::1"));
        }
    }
    environment
}

fn security_options(profile: Profile, place: &Place, masked: &[String], sudo: bool) -> Vec<String> {
    let mut options = match sudo {
        true => vec![],
        false => vec!["no-new-privileges:true".to_owned()],
    };
    if place.dialect.mask_by_option {
        options.push(format!("mask={}", masked.join(":")));
    }
    options.extend(place.seccomp.option(profile));
    options
}

/// Files of the host's kernel that say something about it or its other users.
/// Sets the whole list, since engines mask fewer.
pub fn masked_paths(host_cpus: u32) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/proc/asound",
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/interrupts",
        "/proc/kallsyms",
        "/proc/modules",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ]
    .map(String::from)
    .to_vec();
    paths.extend(
        (0..host_cpus).map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle")),
    );
    paths
}

#[cfg(test)]
mod tests;
