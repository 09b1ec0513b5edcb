//! What the probe is told of the sandbox it is in.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// A place that the sandbox must not reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Name of the property.
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// The host saw that somebody listens there.
    pub(crate) answers: bool,
}

/// Addresses that begin with these bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    base: Ipv4Addr,
    bits: u32,
}

impl Range {
    pub(crate) fn holds(self, address: Ipv4Addr) -> bool {
        let differ = u32::from(self.base) ^ u32::from(address);
        differ.leading_zeros() >= self.bits
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) root: PathBuf,
    pub(crate) json: bool,
    pub(crate) profile: String,
    pub(crate) network: String,
    /// runc, crun, runsc; empty: found out.
    pub(crate) runtime: String,
    /// Class that was asked for; empty: the engine's own.
    pub(crate) asked_runtime: String,
    /// Where volumes of this runner are mounted.
    pub(crate) volumes: Vec<String>,
    pub(crate) targets: Vec<Target>,
    /// Namespaces of the host, as `pid:[4026531836]`.
    pub(crate) host_namespaces: Vec<String>,
    pub(crate) unclaimed: Vec<String>,
    /// Resolvers of the node, which sandboxes may ask.
    pub(crate) resolvers: Vec<String>,
    /// Private ranges that the operator opened to sandboxes.
    pub(crate) allowed: Vec<Range>,
    pub(crate) memory: Option<u64>,
    pub(crate) pids: Option<u64>,
    /// Listens here and does nothing else.
    pub(crate) listen: Option<u16>,
}

/// Names of the properties that targets stand for, with their rows.
pub(crate) const REACH: [(&str, u32); 4] = [
    ("no_peers", 21),
    ("no_host_services", 22),
    ("no_metadata", 23),
    ("no_private_networks", 23),
];

/// What the agent mounts into every sandbox.
const VOLUMES: [&str; 4] = [
    "/home/runner/bin",
    "/home/runner/externals",
    "/home/runner/_work",
    "/opt/longshore",
];

/// Told: no profile promises these. A host that has one may claim it.
const TOLD: [&str; 4] = [
    "user_namespace",
    "egress_allowlist",
    "disk_quota",
    "apparmor",
];

/// What gVisor answers in its own way: options of a tmpfs and the making of device files,
/// which are its own kernel's alone, and who is refused first on a read-only root.
pub(crate) const OPEN_UNDER_GVISOR: [&str; 3] = ["no_devices", "read_only_rootfs", "tmpfs"];

impl Setting {
    /// From arguments, each `--name=value`.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut setting = Self {
            root: "/".into(),
            json: false,
            profile: "strict".into(),
            network: "open".into(),
            runtime: String::new(),
            asked_runtime: String::new(),
            volumes: VOLUMES.map(str::to_owned).to_vec(),
            targets: Vec::new(),
            host_namespaces: Vec::new(),
            unclaimed: TOLD.map(str::to_owned).to_vec(),
            resolvers: Vec::new(),
            allowed: Vec::new(),
            memory: None,
            pids: None,
            listen: None,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| format!("{name}: {value:?} is not a number"))
            };
            match name {
                "--json" => setting.json = true,
                "--root" => setting.root = value.into(),
                "--profile" => setting.profile = one_of(name, value, &PROFILES)?,
                "--network" => setting.network = one_of(name, value, &NETWORKS)?,
                "--asked-runtime" => setting.asked_runtime = value.to_owned(),
                "--runtime" => setting.runtime = value.to_owned(),
                "--volume" => setting.volumes.push(value.to_owned()),
                "--host-namespace" => setting.host_namespaces.push(value.to_owned()),
                "--unclaimed" => setting.unclaimed.push(value.to_owned()),
                "--claimed" => setting.unclaimed.retain(|name| name != value),
                "--resolver" => setting.resolvers.push(value.to_owned()),
                "--allowed" => setting.allowed.push(range(value)?),
                "--memory" => setting.memory = Some(number()?),
                "--pids" => setting.pids = Some(number()?),
                "--listen" => {
                    let port = number()?.try_into();
                    setting.listen = Some(port.map_err(|_| format!("{value} is no port"))?);
                }
                "--deny" => setting.targets.push(target(value)?),
                _ => return Err(format!("unknown argument {argument:?}")),
            }
        }
        if setting.profile != "strict" {
            setting.unclaimed.push("read_only_rootfs".into());
            // 32-bit programs get sockets by a call whose kind no filter sees.
            setting.unclaimed.push("no_vsock".into());
            setting.unclaimed.push("no_rare_sockets".into());
        }
        Ok(setting)
    }

    pub(crate) fn is_gvisor(&self) -> bool {
        self.runtime == "runsc"
    }
}

const PROFILES: [&str; 3] = ["strict", "standard", "containers"];
const NETWORKS: [&str; 3] = ["open", "allowlist", "none"];

fn one_of(name: &str, value: &str, words: &[&str]) -> Result<String, String> {
    if words.contains(&value) {
        return Ok(value.to_owned());
    }
    Err(format!("{name}: {value:?} is none of {}", words.join(", ")))
}

fn range(value: &str) -> Result<Range, String> {
    let parsed = value.split_once('/').and_then(|(base, bits)| {
        Some(Range {
            base: base.parse().ok()?,
            bits: bits.parse().ok().filter(|bits| *bits <= 32)?,
        })
    });
    parsed.ok_or_else(|| format!("--allowed: {value:?} is not ADDRESS/BITS"))
}

/// `no_host_services,10.0.0.1:80` or, where the host saw a listener, `...,answers`.
fn target(value: &str) -> Result<Target, String> {
    let wrong = || format!("--deny: {value:?} is not PROPERTY,ADDRESS:PORT[,answers]");
    let mut parts = value.split(',');
    let name = parts.next().unwrap_or_default();
    let (name, _) = REACH
        .into_iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(wrong)?;
    let address = parts.next().unwrap_or_default();
    let answers = match parts.next() {
        None => false,
        Some("answers") => true,
        Some(_) => return Err(wrong()),
    };
    Ok(Target {
        name,
        address: address.parse().map_err(|_| wrong())?,
        answers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Setting, String> {
        Setting::parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn arguments_are_read_and_nonsense_is_refused() {
        let setting = parse(&[
            "--profile=standard",
            "--network=none",
            "--deny=no_host_services,10.0.0.1:80,answers",
            "--deny=no_metadata,169.254.169.254:80",
            "--memory=1024",
        ])
        .unwrap();
        assert_eq!(setting.targets.len(), 2);
        assert!(setting.targets[0].answers && !setting.targets[1].answers);
        assert!(setting.unclaimed.iter().any(|p| p == "read_only_rootfs"));
        assert!(
            !parse(&[])
                .unwrap()
                .unclaimed
                .contains(&"read_only_rootfs".to_owned())
        );
        for wrong in [
            "--profile=loose",
            "--deny=other,10.0.0.1:80",
            "--deny=no_peers,10.0.0.1",
            "--deny=no_peers,10.0.0.1:80,perhaps",
            "--memory=much",
            "--listen=70000",
            "--allowed=10.0.0.0",
            "--allowed=10.0.0.0/33",
            "-x",
        ] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
    }
}
