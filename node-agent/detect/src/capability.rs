//! Puts the findings together into what the node offers.

use agent_core::Resources;
use agent_core::sandbox::Offered;
use serde::Serialize;

use crate::Host;
use crate::cpu::arch_of;
use crate::emulation::{Asked, is_emulated};
use crate::offer::{Findings, OfferedGpu};
use crate::profiles::offers;
use crate::properties::{Property, of_engine};

/// What the container engine said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Engine {
    pub kind: String,
    pub version: String,
    pub api_version: String,
    pub cgroup_version: u32,
    pub cgroup_driver: String,
    pub storage_driver: String,
    pub backing_filesystem: String,
    pub live_restore: bool,
    pub rootless: bool,
    pub security_options: Vec<String>,
    /// Why its filter is looser than asked; empty when it is not.
    pub seccomp_gap: String,
    /// Work folders are file systems of their own size.
    pub work_quota: bool,
    /// Why they are not.
    pub work_quota_gap: String,
    pub architecture: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// Its own names of the runtimes it has.
    pub runtimes: Vec<String>,
    pub default_runtime: String,
}

impl Engine {
    /// The engine maps every user of a container to a powerless one of the host.
    pub(crate) fn maps_users(&self) -> bool {
        self.security_options
            .iter()
            .any(|option| option.contains("name=userns"))
    }
}

/// What the operator allows; it may only take away, but for emulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_millis: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub max_runners: u32,
    /// Profiles that may be offered.
    pub profiles: Offered,
    /// Foreign architectures to offer under a label of their own; the one thing an
    /// operator adds, and only where the host shows that it can.
    pub emulated: Asked,
}

/// One probe's finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    pub subject: String,
    pub source: String,
    pub finding: String,
}

/// What the node offers and how it came to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    pub arch: String,
    pub os: String,
    pub labels: Vec<String>,
    pub capacity: Resources,
    pub gpus: Vec<OfferedGpu>,
    pub engine: Option<Engine>,
    pub properties: Vec<Property>,
    pub evidence: Vec<Evidence>,
    pub max_runners: u32,
    pub kernel: String,
    pub hostname: String,
}

/// Memory left to the host itself: a tenth, at least 256 MiB, at most 2 GiB.
fn reserve(memory: u64) -> u64 {
    (memory / 10).clamp(256 << 20, 2 << 30)
}

/// Without an engine nothing can run, so nothing is offered but the findings.
pub fn assemble(
    host: &Host,
    engine: Option<&Engine>,
    limits: &Limits,
    gpus: &Findings,
) -> Capability {
    let mut evidence = vec![];
    let mut say = |subject: &str, source: &str, finding: String| {
        evidence.push(Evidence {
            subject: subject.into(),
            source: source.into(),
            finding,
        });
    };
    let cpu = &host.cpu;
    // An agent in an emulated sandbox or program is told the emulator's machine.
    let emulated_agent = is_emulated(&cpu.machine, cpu.x86_vendor);
    let kernel_arch = arch_of(&cpu.machine).filter(|_| !emulated_agent);
    if let Some(tree) = &host.recorded {
        say(
            "host",
            "probe_root",
            format!("recorded in {tree}; not looked at here"),
        );
    }
    say(
        "arch",
        &cpu.machine_source,
        match kernel_arch {
            None if emulated_agent => format!(
                "machine {} on a processor of {} is emulation of the agent itself; nothing is offered",
                cpu.machine, cpu.vendor
            ),
            known => format!(
                "machine {} is {}",
                cpu.machine,
                known.unwrap_or("not supported")
            ),
        },
    );
    let engine_arch = engine.and_then(|engine| arch_of(&engine.architecture));
    if let Some(engine) = engine {
        say(
            "arch",
            "engine",
            format!("architecture {}", engine.architecture),
        );
        say(
            "engine",
            "engine",
            format!(
                "{} {}, API {}",
                engine.kind, engine.version, engine.api_version
            ),
        );
    }
    if let Some(engine) = engine {
        say(
            "runtime",
            "engine",
            format!(
                "has {}; {} unless a sandbox asks for another",
                engine.runtimes.join(", "),
                engine.default_runtime
            ),
        );
    }
    let arch = match (kernel_arch, engine_arch) {
        (Some(kernel), Some(engine)) if kernel == engine => kernel,
        (kernel, Some(other)) => {
            say(
                "arch",
                "kernel and engine",
                format!("they disagree ({kernel:?} and {other}); nothing is offered"),
            );
            ""
        }
        (_, None) => "",
    };
    if let Some(engine) = engine
        && engine.kind == "podman"
    {
        say(
            "engine",
            "dialect",
            "podman: tmpfs owners are named by U, masked paths by a security option, output is kept by k8s-file".into(),
        );
        for gap in agent_core::dialect::gaps(&engine.kind, engine.cgroup_version) {
            say(
                "engine",
                "dialect",
                format!("{}: {}", gap.property, gap.reason),
            );
        }
    }
    let mut emulated_labels = vec![];
    for found in host.emulation.emulated() {
        if found == arch || limits.emulated.list().any(|asked| asked == found) {
            continue;
        }
        say(
            "emulation",
            "binfmt_misc",
            format!(
                "{found} programs run by emulation; never offered as {found}, and as {found}-emulated only when `emulated` names it"
            ),
        );
    }
    for asked in limits.emulated.list().filter(|asked| *asked != arch) {
        let finding = match host.emulation.gap(asked) {
            None => {
                emulated_labels.push(format!("{asked}-emulated"));
                let by = host
                    .emulation
                    .handlers
                    .iter()
                    .find(|handler| handler.arch == asked)
                    .map_or("", |handler| handler.interpreter.as_str());
                format!("{asked} programs run by {by}: offered as {asked}-emulated")
            }
            Some(why) => format!("{asked}-emulated is asked for and not offered: {why}"),
        };
        say("emulation", "binfmt_misc", finding);
    }
    let memory = match engine {
        Some(engine) if engine.memory_bytes > 0 => engine.memory_bytes.min(cpu.memory_bytes),
        _ => cpu.memory_bytes,
    };
    let cpus = match engine {
        Some(engine) if engine.cpus > 0 => engine.cpus.min(cpu.cpus),
        _ => cpu.cpus,
    };
    let memory = memory.saturating_sub(reserve(memory));
    let capacity = Resources {
        cpu_millis: limits
            .cpu_millis
            .map_or(cpus * 1_000, |limit| limit.min(cpus * 1_000)),
        memory_bytes: limits
            .memory_bytes
            .map_or(memory, |limit| limit.min(memory)),
        gpus: 0,
    };
    say(
        "cpu",
        "scheduler affinity and engine",
        format!("{cpus} processors, {} {}", cpu.vendor, cpu.model),
    );
    say(
        "memory",
        "/proc/meminfo and engine",
        format!("{} MiB for runners", memory >> 20),
    );
    let nvidia = &gpus.nvidia;
    if !nvidia.note.is_empty() {
        say("gpu", &nvidia.source, nvidia.note.clone());
    }
    for gpu in &gpus.offered {
        let finding = match &gpu.withheld {
            None => "seen by a container that was started with it".to_owned(),
            Some(why) => format!("not offered: {} ({})", why.detail, why.next_step),
        };
        say(
            "gpu",
            &nvidia.source,
            format!("{} {}: {finding}", gpu.gpu.product, gpu.gpu.uuid),
        );
    }
    for problem in &nvidia.cdi.problems {
        say("gpu", "cdi", problem.clone());
    }
    let mut labels = vec![];
    if !arch.is_empty() {
        labels = vec![
            "self-hosted".to_owned(),
            "linux".to_owned(),
            arch.to_owned(),
        ];
        // What its runners are started by.
        if engine.is_some_and(|engine| engine.kind == "docker") {
            labels.push("docker".to_owned());
        }
        if gpus.offered.iter().any(OfferedGpu::is_offered) {
            labels.extend(["gpu".to_owned(), "cuda".to_owned()]);
        }
        labels.extend(emulated_labels);
    }
    let offered = gpus.offered.iter().filter(|gpu| gpu.is_offered()).count();
    Capability {
        arch: arch.to_owned(),
        os: "linux".into(),
        labels,
        capacity: Resources {
            gpus: u32::try_from(offered).unwrap_or(0),
            ..if arch.is_empty() {
                Resources::default()
            } else {
                capacity
            }
        },
        gpus: gpus.offered.clone(),
        properties: engine
            .map(|engine| [of_engine(engine), offers(engine, limits.profiles)].concat())
            .unwrap_or_default(),
        engine: engine.cloned(),
        evidence,
        max_runners: limits.max_runners,
        kernel: cpu.kernel.clone(),
        hostname: cpu.hostname.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::nvidia::{Gpu, Nvidia};
    use crate::offer::{Standing, offer};

    fn host(machine: &str) -> Host {
        Host {
            cpu: Cpu {
                machine: machine.into(),
                cpus: 8,
                memory_bytes: 32 << 30,
                ..Cpu::default()
            },
            ..Host::default()
        }
    }

    fn engine(architecture: &str) -> Engine {
        Engine {
            architecture: architecture.into(),
            cpus: 8,
            memory_bytes: 32 << 30,
            kind: "docker".into(),
            ..Engine::default()
        }
    }

    #[test]
    fn kernel_and_engine_have_to_agree() {
        let offered = assemble(
            &host("x86_64"),
            Some(&engine("x86_64")),
            &Limits::default(),
            &Findings::default(),
        );
        assert_eq!(offered.arch, "x64");
        assert_eq!(offered.labels, ["self-hosted", "linux", "x64", "docker"]);
        let disagreeing = assemble(
            &host("x86_64"),
            Some(&engine("aarch64")),
            &Limits::default(),
            &Findings::default(),
        );
        assert_eq!(disagreeing.arch, "");
        assert!(disagreeing.labels.is_empty());
        assert_eq!(disagreeing.capacity, Resources::default());
        assert!(
            disagreeing
                .evidence
                .iter()
                .any(|e| e.finding.contains("disagree"))
        );
    }

    #[test]
    fn without_an_engine_nothing_is_offered() {
        let offered = assemble(
            &host("x86_64"),
            None,
            &Limits::default(),
            &Findings::default(),
        );
        assert_eq!(
            (offered.labels.len(), offered.capacity),
            (0, Resources::default())
        );
    }

    #[test]
    fn podman_offers_what_docker_does_and_says_where_it_differs() {
        let podman = Engine {
            kind: "podman".into(),
            cgroup_version: 1,
            ..engine("x86_64")
        };
        let offered = assemble(
            &host("x86_64"),
            Some(&podman),
            &Limits::default(),
            &Findings::default(),
        );
        assert_eq!(offered.labels, ["self-hosted", "linux", "x64"]);
        let told = |word: &str| offered.evidence.iter().any(|e| e.finding.contains(word));
        assert!(told("k8s-file") && told("own_cgroup_namespace"));
    }

    #[test]
    fn limits_only_take_away() {
        let more = Limits {
            cpu_millis: Some(64_000),
            memory_bytes: Some(1 << 40),
            max_runners: 3,
            ..Limits::default()
        };
        let offered = assemble(
            &host("x86_64"),
            Some(&engine("amd64")),
            &more,
            &Findings::default(),
        );
        assert_eq!(offered.capacity.cpu_millis, 8_000);
        assert_eq!(offered.capacity.memory_bytes, 30 << 30);
        assert_eq!(offered.max_runners, 3);
        let less = Limits {
            cpu_millis: Some(500),
            ..more
        };
        assert_eq!(
            assemble(
                &host("x86_64"),
                Some(&engine("amd64")),
                &less,
                &Findings::default()
            )
            .capacity
            .cpu_millis,
            500
        );
    }

    #[test]
    fn a_gpu_is_offered_only_when_a_container_saw_it() {
        let nvidia = Nvidia {
            gpus: vec![Gpu {
                uuid: "GPU-1".into(),
                ..Gpu::default()
            }],
            source: "nvml".into(),
            ..Nvidia::default()
        };
        let with = |standing: &Standing<'_>| {
            let gpus = offer(nvidia.clone(), standing);
            assemble(
                &host("x86_64"),
                Some(&engine("x86_64")),
                &Limits::default(),
                &gpus,
            )
        };
        let found = with(&Standing::default());
        assert!(!found.labels.contains(&"gpu".to_owned()));
        assert_eq!(found.capacity.gpus, 0);
        let told = |word: &str| found.evidence.iter().any(|e| e.finding.contains(word));
        assert!(told("not offered"));
        let proven = with(&Standing {
            proofs: [("GPU-1".to_owned(), Ok("seen".to_owned()))].into(),
            ..Standing::default()
        });
        assert!(proven.labels.contains(&"cuda".to_owned()));
        assert_eq!(proven.capacity.gpus, 1);
    }

    fn emulating(name: &str, magic: &str) -> Host {
        let text =
            format!("enabled\ninterpreter /usr/bin/q\nflags: OCF\noffset 0\nmagic {magic}\n");
        Host {
            emulation: crate::emulation::Emulation {
                visible: true,
                handlers: vec![crate::emulation::parse_handler(name, &text)],
            },
            ..host("x86_64")
        }
    }

    const ARM64_MAGIC: &str = "7f454c460201010000000000000000000200b700";

    #[test]
    fn emulation_is_offered_only_when_asked_for_and_under_its_own_label() {
        let host = emulating("qemu-aarch64", ARM64_MAGIC);
        let with = |emulated: &str| {
            let limits = Limits {
                emulated: Asked::parse(emulated).unwrap(),
                ..Limits::default()
            };
            assemble(
                &host,
                Some(&engine("x86_64")),
                &limits,
                &Findings::default(),
            )
        };
        let unasked = with("");
        assert_eq!(unasked.labels, ["self-hosted", "linux", "x64", "docker"]);
        let told = |found: &Capability, word: &str| {
            found.evidence.iter().any(|e| e.finding.contains(word))
        };
        assert!(told(&unasked, "arm64 programs run by emulation"));
        let asked = with("arm64,arm,x64");
        assert_eq!(asked.arch, "x64");
        let labels = ["self-hosted", "linux", "x64", "docker", "arm64-emulated"];
        assert_eq!(asked.labels, labels);
        assert!(told(&asked, "offered as arm64-emulated"));
        assert!(told(&asked, "arm-emulated is asked for and not offered"));
    }

    #[test]
    fn an_agent_that_is_emulated_itself_offers_nothing() {
        let mut host = host("aarch64");
        host.cpu.x86_vendor = true;
        host.cpu.vendor = "GenuineIntel".into();
        let found = assemble(
            &host,
            Some(&engine("aarch64")),
            &Limits::default(),
            &Findings::default(),
        );
        assert_eq!((found.arch.as_str(), found.labels.len()), ("", 0));
        let told = found
            .evidence
            .iter()
            .any(|e| e.finding.contains("emulation of the agent"));
        assert!(told, "{:?}", found.evidence);
    }

    #[test]
    fn a_recorded_arm64_host_is_native() {
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/arm64-tree");
        let host = crate::host(std::path::Path::new(tree));
        let limits = Limits {
            emulated: Asked::parse("arm64,arm").unwrap(),
            ..Limits::default()
        };
        let found = assemble(
            &host,
            Some(&engine("aarch64")),
            &limits,
            &Findings::default(),
        );
        assert_eq!(found.arch, "arm64");
        assert_eq!(found.labels, ["self-hosted", "linux", "arm64", "docker"]);
        assert_eq!(found.capacity.cpu_millis, 4_000);
        assert!(
            found
                .evidence
                .iter()
                .any(|e| e.finding.contains("recorded in"))
        );
    }
}
