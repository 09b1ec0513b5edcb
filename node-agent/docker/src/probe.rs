//! Looks at a sandbox from inside: a real slot, made like a job's, with the probe
//! program instead of a runner.
//!
//! The program and what it is told go in over standard input. Places that it must
//! not reach are made to answer for that time, and are tried from the host first:
//! silence then means a rule, not that nobody was there. The neighbour is a second
//! sandbox in a slot of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use agent_core::dialect;
use agent_core::model::{ErrorReason, RunnerSpec};
use agent_core::names::label;
use agent_core::probe::{self, Probed};
use agent_core::runtime::RuntimeError;
use agent_core::sandbox;
use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{AttachContainerOptionsBuilder, CreateContainerOptionsBuilder};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::debug;

use crate::ending::remove_group;
use crate::engine::{EngineFacts, bounded, refused, remove_container, status, whole_output};
use crate::loops::Loop;
use crate::making::request;
use crate::recover::inspect;
use crate::runtime::Inner;
use crate::slots::Kind;
use crate::translate::container_body;
use crate::unanswered::Unanswered;
use crate::volumes::Program;

mod image;

use image::archive;

/// From the start of the program to the end of its output: seconds, but for an emulated host.
const LOOK: Duration = Duration::from_secs(100);
/// Largest output that is read.
const MOST_OUTPUT: usize = 256 << 10;
/// Where the neighbour listens.
const NEIGHBOUR: u16 = 8_022;
const REACH_FROM_HOST: Duration = Duration::from_secs(5);
const LISTENS: Duration = Duration::from_secs(10);
/// What the filter of system calls gives.
const FILTERED: [&str; 5] = [
    "seccomp",
    "no_io_uring",
    "no_kernel_keyring",
    "no_rare_sockets",
    "no_vsock",
];
const KINDS: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// One sandbox of a probe.
struct Look {
    container: String,
    volume: String,
    group: String,
    /// Under the volume; held until it is mounted.
    device: Option<Loop>,
}

/// Ears on the host's addresses, open while this lives.
#[derive(Default)]
struct Ears(JoinSet<()>);

impl Inner {
    /// Runs the probe in a slot of its own. One at a time; removes all of it.
    pub(crate) async fn probe(&self, spec: &RunnerSpec) -> Result<Probed, RuntimeError> {
        let _one = self.probing.lock().await;
        let (docker, facts) = self.connected()?;
        self.enough_disk(&facts)?;
        let from = Instant::now();
        let own = self.own_image(&docker, &spec.platform).await?;
        let slot = self.slots.take(&docker, Kind::Open).await?;
        let neighbour = self.slots.take(&docker, Kind::Open).await;
        let looked = self
            .look_inside(&docker, &facts, spec, &own, slot, neighbour.as_ref().ok())
            .await;
        self.slots.release(slot).await;
        match neighbour {
            Ok(neighbour) => self.slots.release(neighbour).await,
            Err(error) => debug!(%error, "the probe had no slot for a neighbour"),
        }
        self.forget_own_image(&docker, &own).await;
        Ok(Probed {
            checks: looked?,
            image: spec.image.clone(),
            took_ms: u64::try_from(from.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    async fn look_inside(
        &self,
        docker: &Docker,
        facts: &EngineFacts,
        spec: &RunnerSpec,
        own: &str,
        slot: u32,
        neighbour: Option<&u32>,
    ) -> Result<Vec<probe::Check>, RuntimeError> {
        let bare = RunnerSpec {
            image: own.to_owned(),
            ..spec.clone()
        };
        let mut told = self.told(spec, facts);
        let mut ears = Ears::default();
        let mut second = None;
        if spec.network_mode != "none" {
            if let Some(slot) = neighbour {
                let look = self
                    .make_probe(docker, facts, &bare, true, *slot, "neighbour")
                    .await?;
                let address = self.neighbour(docker, &look).await;
                second = Some(look);
                match address {
                    Ok((address, listens)) => told.push(deny("no_peers", address, listens)),
                    Err(error) => debug!(%error, "the probe's neighbour did not come up"),
                }
            }
            // After the neighbour: an engine may give a bridge its address with its
            // first container.
            told.extend(self.listen(&mut ears, slot, neighbour.copied()).await);
        }
        let looked = self.run_probe(docker, facts, spec, own, slot, &told).await;
        drop(ears);
        if let Some(look) = second {
            self.unmake(docker, &look).await?;
        }
        looked
    }

    /// What the program is told of the sandbox it is in.
    fn told(&self, spec: &RunnerSpec, facts: &EngineFacts) -> Vec<String> {
        let profile = if spec.profile.is_empty() {
            "strict"
        } else {
            &spec.profile
        };
        let network = if spec.network_mode.is_empty() {
            "open"
        } else {
            &spec.network_mode
        };
        let mut told = vec![
            format!("--profile={profile}"),
            format!("--network={network}"),
            format!("--memory={}", spec.resources.memory_bytes),
        ];
        if !spec.runtime.is_empty() {
            told.push(format!("--asked-runtime={}", spec.runtime));
        }
        for kind in KINDS {
            if let Ok(own) = std::fs::read_link(format!("/proc/self/ns/{kind}")) {
                told.push(format!("--host-namespace={}", own.display()));
            }
        }
        for resolver in &self.config.dns {
            told.push(format!("--resolver={resolver}"));
        }
        for range in &self.config.allow_ranges {
            told.push(format!("--allowed={range}"));
        }
        // What the engine says it has is seen or broken, not a matter of taste.
        if facts.has_apparmor() {
            told.push("--claimed=apparmor".into());
        }
        for gap in dialect::gaps(&facts.kind, facts.cgroup_version) {
            told.push(format!("--unclaimed={}", gap.property));
        }
        if matches!(facts.seccomp, sandbox::Filter::Without(_)) {
            told.extend(FILTERED.map(|name| format!("--unclaimed={name}")));
        }
        let sudo = sandbox::Profile::parse(profile)
            .is_some_and(|profile| profile.has_sudo(facts.users_are_mapped()));
        if sudo {
            told.extend(["no_capabilities", "no_escalation"].map(|n| format!("--unclaimed={n}")));
        }
        told
    }

    /// Opens ears where a sandbox must not reach: its gateway, another slot's, and
    /// the host's own address.
    async fn listen(&self, ears: &mut Ears, slot: u32, other: Option<u32>) -> Vec<String> {
        let gateway = |index| {
            let net = self.config.slots_cidr.net(index)?;
            net.gateway.parse::<IpAddr>().ok()
        };
        let mut told = Vec::new();
        for (name, address) in [
            ("no_host_services", gateway(slot)),
            ("no_host_services", other.and_then(gateway)),
            ("no_host_services", primary_address()),
        ] {
            let Some(address) = address else { continue };
            let Ok(listener) = TcpListener::bind((address, 0)).await else {
                continue;
            };
            let Ok(place) = listener.local_addr() else {
                continue;
            };
            ears.0.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    drop(stream);
                }
            });
            told.push(deny(name, place, answers(place).await));
        }
        told
    }

    /// Makes and starts a sandbox with the probe as its command.
    async fn make_probe(
        &self,
        docker: &Docker,
        facts: &EngineFacts,
        spec: &RunnerSpec,
        own: bool,
        slot: u32,
        what: &str,
    ) -> Result<Look, RuntimeError> {
        let request = request(spec)?;
        let image_id = self
            .images
            .ensure(
                docker,
                &spec.image,
                &spec.platform,
                self.config.pull && !own,
            )
            .await?;
        self.offers(request.profile)?;
        self.has_runtime(facts, request.runtime)?;
        let volumes = &self.volumes;
        let (program, tools) = if own {
            let none = Program {
                bin: String::new(),
                externals: String::new(),
            };
            (none, String::new())
        } else {
            (
                volumes.program(docker, &image_id, &spec.platform).await?,
                volumes.tools(docker, &image_id, &spec.platform).await?,
            )
        };
        let salt = format!("{:08x}", rand::random::<u32>());
        let mut place = self.place(facts, slot, &salt, &image_id, &program);
        place.tools_volume = tools;
        for (key, value) in &mut place.labels {
            if key == label::ROLE {
                *value = "probe".into();
            }
        }
        let mut sandbox = probe::instead_of_a_job(sandbox::of(&request, &place), own);
        if what == "neighbour" {
            sandbox.cmd = vec![format!("--listen={NEIGHBOUR}")];
        }
        let name = self.config.instance.unnamed_container(slot, &salt);
        let mut look = Look {
            container: name.clone(),
            volume: place.work_volume.clone(),
            group: place.cgroup_parent.clone(),
            device: None,
        };
        let device = self
            .volumes
            .make_work(docker, &look.volume, &image_id, &spec.platform)
            .await;
        look.device = device.inspect_err(|error| self.settle_later(&look, error))?;
        let options = CreateContainerOptionsBuilder::new()
            .name(&name)
            .platform(&spec.platform)
            .build();
        let made = bounded(
            &format!("making container {name} for the probe"),
            docker.create_container(Some(options), container_body(&sandbox)),
        )
        .await;
        match made {
            Ok(_) => Ok(look),
            Err(error) if error.reason == ErrorReason::EngineDown => {
                self.settle_later(&look, &error);
                Err(error)
            }
            Err(error) => {
                self.unmake(docker, &look).await?;
                Err(error)
            }
        }
    }

    /// Starts the neighbour. Where it listens, and whether it said that it does: the
    /// host cannot try, since it gets no answers from a slot either.
    async fn neighbour(
        &self,
        docker: &Docker,
        look: &Look,
    ) -> Result<(SocketAddr, bool), RuntimeError> {
        bounded(
            "starting the probe's neighbour",
            docker.start_container(&look.container, None),
        )
        .await?;
        let container = inspect(docker, &look.container).await?.unwrap_or_default();
        let address = container
            .network_settings
            .and_then(|settings| settings.networks)
            .into_iter()
            .flatten()
            .find_map(|(_, network)| network.ip_address?.parse::<IpAddr>().ok())
            .ok_or_else(|| refused("the probe's neighbour has no address".into()))?;
        let mut logs = std::pin::pin!(docker.logs(&look.container, Some(whole_output())));
        let first = tokio::time::timeout(LISTENS, logs.next()).await;
        let word = match first {
            Ok(Some(Ok(piece))) => piece.into_bytes(),
            _ => Default::default(),
        };
        let listens = word.starts_with(b"listening");
        Ok((SocketAddr::from((address, NEIGHBOUR)), listens))
    }

    async fn run_probe(
        &self,
        docker: &Docker,
        facts: &EngineFacts,
        spec: &RunnerSpec,
        own: &str,
        slot: u32,
        told: &[String],
    ) -> Result<Vec<probe::Check>, RuntimeError> {
        let in_own = spec.image.is_empty();
        let spec = RunnerSpec {
            image: if in_own {
                own.to_owned()
            } else {
                spec.image.clone()
            },
            ..spec.clone()
        };
        let look = self
            .make_probe(docker, facts, &spec, in_own, slot, "probe")
            .await?;
        let input = if in_own {
            told.join("\n").into_bytes()
        } else {
            archive(told)?
        };
        let output = match tokio::time::timeout(LOOK, converse(docker, &look, &input)).await {
            Ok(output) => output,
            Err(_) => Err(refused(format!(
                "the probe did not end within {} s",
                LOOK.as_secs()
            ))),
        };
        let seen = inspect(docker, &look.container).await;
        let gone = self.unmake(docker, &look).await;
        let output = output?;
        let mut checks = probe::parse(&output);
        let code = seen
            .as_ref()
            .ok()
            .and_then(|seen| seen.as_ref()?.state.as_ref()?.exit_code);
        if checks.is_empty() || !matches!(code, Some(0 | 1)) {
            return Err(refused(format!(
                "the probe ended with code {code:?} and said: {}",
                output.chars().take(400).collect::<String>()
            )));
        }
        if let Ok(Some(seen)) = &seen {
            if !spec.runtime.is_empty() {
                let (good, detail) = self.made_by(seen, facts, &spec.runtime);
                probe::settle(&mut checks, "runtime_class", good, detail);
            }
            let (good, detail) = log_cap(seen, &facts.kind);
            probe::settle(&mut checks, "log_cap", good, detail);
        }
        let (good, detail) = match gone {
            Ok(()) => (true, "container and volume are gone".to_owned()),
            Err(error) => (false, error.detail),
        };
        probe::settle(&mut checks, "complete_removal", good, detail);
        Ok(checks)
    }

    /// Row 31, where the sandbox itself cannot tell.
    fn made_by(
        &self,
        seen: &ContainerInspectResponse,
        facts: &EngineFacts,
        asked: &str,
    ) -> (bool, String) {
        let host = seen.host_config.as_ref();
        let by = host
            .and_then(|host| host.runtime.clone())
            .unwrap_or_default();
        let offered = self.runtimes(facts);
        let wanted = offered.iter().find(|(class, _)| class.word() == asked);
        (
            wanted.is_some_and(|(_, name)| *name == by),
            format!("inspected: made by {by}"),
        )
    }

    /// Removes a sandbox and sees that it is gone.
    async fn unmake(&self, docker: &Docker, look: &Look) -> Result<(), RuntimeError> {
        let unmade = self.try_to_unmake(docker, look).await;
        if let Err(error) = &unmade {
            self.settle_later(look, error);
        }
        unmade
    }

    /// What an engine that does not answer keeps of a look.
    fn settle_later(&self, look: &Look, error: &RuntimeError) {
        if error.reason == ErrorReason::EngineDown {
            self.unanswered.enter(Unanswered {
                container: look.container.clone(),
                work_volume: look.volume.clone(),
                cgroup_parent: look.group.clone(),
                slot: None,
                why: error.detail.clone(),
            });
        }
    }

    async fn try_to_unmake(&self, docker: &Docker, look: &Look) -> Result<(), RuntimeError> {
        remove_container(docker, &look.container).await?;
        self.volumes.delete(docker, &look.volume).await?;
        remove_group(&look.group).await;
        if inspect(docker, &look.container).await?.is_some() {
            return Err(refused(format!("{} is still there", look.container)));
        }
        match docker.inspect_volume(&look.volume).await {
            Err(error) if status(&error) == Some(404) => Ok(()),
            Ok(_) => Err(refused(format!("volume {} is still there", look.volume))),
            Err(error) => Err(refused(format!("looking for a volume: {error}"))),
        }
    }
}

/// Starts the sandbox, hands the input over, and reads until it ends.
async fn converse(docker: &Docker, look: &Look, input: &[u8]) -> Result<String, RuntimeError> {
    let options = AttachContainerOptionsBuilder::new()
        .stdin(true)
        .stream(true)
        .build();
    let mut attached = bounded(
        "attaching to the probe",
        docker.attach_container(&look.container, Some(options)),
    )
    .await?;
    bounded(
        "starting the probe",
        docker.start_container(&look.container, None),
    )
    .await?;
    let write = async {
        attached.input.write_all(input).await?;
        attached.input.flush().await?;
        attached.input.shutdown().await
    };
    // A program that ended early has said why: its words are read below.
    if let Err(error) = write.await {
        debug!(%error, "the probe did not take all of its input");
    }
    let mut output = Vec::new();
    let mut logs = std::pin::pin!(docker.logs(&look.container, Some(whole_output())));
    while let Some(piece) = logs.next().await {
        let piece = piece.map_err(|error| refused(format!("reading the probe: {error}")))?;
        output.extend_from_slice(&piece.into_bytes());
        if output.len() > MOST_OUTPUT {
            return Err(refused("the probe said too much".into()));
        }
    }
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Row 27, which only the host sees.
fn log_cap(seen: &ContainerInspectResponse, engine: &str) -> (bool, String) {
    let config = seen
        .host_config
        .as_ref()
        .and_then(|host| host.log_config.clone())
        .unwrap_or_default();
    let driver = config.typ.unwrap_or_default();
    let size = config
        .config
        .as_ref()
        .and_then(|options| options.get("max-size").cloned());
    match size {
        Some(size) => (true, format!("inspected: {driver} keeps at most {size}")),
        // Podman's Docker-compatible inspection leaves the size out.
        None if engine == "podman" => (true, "asked for; podman's inspection does not tell".into()),
        None => (driver == "none", format!("inspected: {driver}, no size")),
    }
}

fn deny(name: &str, address: SocketAddr, answers: bool) -> String {
    let answers = if answers { ",answers" } else { "" };
    format!("--deny={name},{address}{answers}")
}

/// The control: the same connection from the host.
async fn answers(address: SocketAddr) -> bool {
    let connected = tokio::time::timeout(REACH_FROM_HOST, TcpStream::connect(address)).await;
    matches!(connected, Ok(Ok(_)))
}

/// The address by which this host reaches others; nothing is sent.
fn primary_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use bollard::models::{HostConfig, HostConfigLogConfig};

    use super::*;

    fn seen(driver: &str, size: Option<&str>) -> ContainerInspectResponse {
        let options = size.map(|size| [("max-size".to_owned(), size.to_owned())].into());
        ContainerInspectResponse {
            host_config: Some(HostConfig {
                log_config: Some(HostConfigLogConfig {
                    typ: Some(driver.to_owned()),
                    config: options,
                }),
                ..HostConfig::default()
            }),
            ..ContainerInspectResponse::default()
        }
    }

    #[test]
    fn output_without_a_bound_is_seen() {
        assert!(log_cap(&seen("local", Some("1m")), "docker").0);
        assert!(log_cap(&seen("none", None), "docker").0);
        assert!(!log_cap(&seen("json-file", None), "docker").0);
        assert!(!log_cap(&ContainerInspectResponse::default(), "docker").0);
    }
}
