//! Configuration: defaults, then a TOML file, then `LONGSHORE_*`, then flags.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_core::containers::Listed;
use agent_core::ranges::Range;
use agent_core::sandbox::{Offered, OfferedRuntimes};
use agent_core::slots::SlotsCidr;
use agent_detect::emulation::Asked;
use agent_docker::FirewallTool;
use thiserror::Error;

use crate::dial::{Address, addresses};

const MAX_RANGES: usize = 64;

/// Every key, its default and what it means. Flags are the same with dashes.
pub const KEYS: [(&str, &str, &str); 32] = [
    (
        "scheduler",
        "https://127.0.0.1:9001",
        "URL of the scheduler's node listener; several addresses of one scheduler comma separated",
    ),
    (
        "node",
        "",
        "name of this node, [a-z0-9-]; default is the host's name",
    ),
    (
        "join_token_file",
        "",
        "file with the line of `longshore node join-token`, - for standard input; needed once",
    ),
    (
        "state_dir",
        "/var/lib/longshore-agent",
        "folder for state and kept output",
    ),
    (
        "engine_socket",
        "/var/run/docker.sock",
        "Unix socket of Docker or Podman",
    ),
    (
        "slots_cidr",
        "10.231.0.0/16",
        "private range that slot networks are cut from",
    ),
    (
        "max_runners",
        "0",
        "most runners at once; 0 means as CPU and memory allow",
    ),
    (
        "cpu",
        "",
        "most CPUs to offer, for example 3.5; default is all",
    ),
    (
        "memory",
        "",
        "most memory to offer, for example 12GiB; default leaves a tenth to the host",
    ),
    (
        "premade_slots",
        "",
        "slot networks made at start; default max_runners, else one per CPU",
    ),
    (
        "parallel_starts",
        "",
        "sandboxes started at once; default three per CPU",
    ),
    (
        "dns",
        "",
        "resolvers of jobs, comma separated; default is the host's",
    ),
    ("firewall", "auto", "auto, nft or iptables"),
    (
        "egress_socket",
        "",
        "control socket of an egress proxy that runs as a service; default is one that the agent starts",
    ),
    (
        "allow_ranges",
        "",
        "private IPv4 ranges that every job may reach, comma separated; default is none",
    ),
    (
        "min_free_disk",
        "2GiB",
        "no new runner below this much free disk",
    ),
    (
        "job_disk",
        "32GiB",
        "most disk the files of one job may take; 0 for no limit",
    ),
    ("pull", "true", "pull images that are missing"),
    (
        "engine_timeout",
        "120",
        "seconds that one call to the engine may take",
    ),
    (
        "image_refresh",
        "3600",
        "seconds between two questions to a registry for a newer image under a tag; 0 for never",
    ),
    (
        "image_keep",
        "3600",
        "seconds that an image the agent pulled is kept after no name means it any more",
    ),
    (
        "container_images",
        "",
        "images on this node that containers of jobs may be made from although the agent cannot pull them, comma separated, with *; default is none",
    ),
    (
        "profiles",
        "strict,standard,containers",
        "sandbox profiles to offer, comma separated",
    ),
    (
        "emulated",
        "",
        "architectures to offer by emulation as arm64-emulated and so on, of arm64, arm, x64; default is none",
    ),
    (
        "runtimes",
        "runc,crun,runsc,kata,sysbox",
        "runtime classes to offer where the engine has them, comma separated; CLASS=NAME gives the engine's name of one",
    ),
    (
        "standby_enabled",
        "true",
        "keep sandboxes started before a runner asks for one",
    ),
    (
        "standby_floor",
        "1",
        "kept of each kind of runner that is expected or was asked for lately",
    ),
    (
        "standby_ceiling",
        "",
        "most kept of one kind, as many as came at once lately; default one per CPU",
    ),
    (
        "otlp_endpoint",
        "",
        "OTLP gRPC receiver for spans, for example http://127.0.0.1:4317",
    ),
    ("log", "info", "log filter"),
    (
        "probe_root",
        "/",
        "folder under which the files that describe the machine and its GPUs are read; another one is for recorded hosts",
    ),
    (
        "lease",
        "30",
        "seconds without a scheduler after which nothing new starts",
    ),
];

/// Keys that a running agent takes in at SIGHUP; the others need a restart, which stops no job.
pub const RELOADED: [&str; 1] = ["log"];

/// Keys that stand for a file which systemd hands over (`LoadCredential=`) when nothing else sets them.
pub const CREDENTIALS: [(&str, &str); 1] = [("join_token_file", "join-token")];

/// Below it a file system has no room for files.
const SMALLEST_JOB_DISK: u64 = 16 << 20;
/// A container is given five seconds to stop, and an engine has other things to do.
const SHORTEST_CALL: Duration = Duration::from_secs(20);

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("{0}: {1}")]
    Toml(PathBuf, String),
    #[error("{place}: unknown key {key:?}; {hint}")]
    Unknown {
        /// File and line.
        place: String,
        key: String,
        hint: String,
    },
    #[error("{key} = {value:?} (from {origin}): {problem}")]
    Value {
        key: &'static str,
        value: String,
        origin: String,
        problem: String,
    },
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub struct Set {
    pub value: String,
    pub origin: String,
}

/// All keys with their values as text.
#[derive(Clone, Debug)]
pub struct Settings(BTreeMap<&'static str, Set>);

impl Settings {
    pub fn gather(
        file: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
        flags: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut all: BTreeMap<&'static str, Set> = KEYS
            .iter()
            .map(|(key, value, _)| {
                (
                    *key,
                    Set {
                        value: (*value).into(),
                        origin: "default".into(),
                    },
                )
            })
            .collect();
        for (key, name) in CREDENTIALS {
            let folder = env("CREDENTIALS_DIRECTORY").map(PathBuf::from);
            let path = folder.map(|folder| folder.join(name));
            if let (Some(path), Some(key)) = (path.filter(|path| path.exists()), known(key)) {
                all.insert(
                    key,
                    Set {
                        value: path.display().to_string(),
                        origin: format!("credential {name}"),
                    },
                );
            }
        }
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError::Read(path.into(), error))?;
            let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
                ConfigError::Toml(path.into(), error.to_string())
            })?;
            for (key, value) in flat(table) {
                let place = match line_of(&text, &key) {
                    Some(line) => format!("{}:{line}", path.display()),
                    None => path.display().to_string(),
                };
                let Some(known) = known(&key) else {
                    return Err(ConfigError::Unknown {
                        place,
                        hint: hint(&key),
                        key,
                    });
                };
                let value = plain(&value).ok_or_else(|| ConfigError::Value {
                    key: known,
                    value: value.to_string(),
                    origin: place.clone(),
                    problem: "must be text, a number, true or false, or a list of texts".into(),
                })?;
                all.insert(
                    known,
                    Set {
                        value,
                        origin: place,
                    },
                );
            }
        }
        for (key, _, _) in KEYS {
            let name = format!("LONGSHORE_{}", key.to_uppercase());
            if let Some(value) = env(&name) {
                all.insert(
                    key,
                    Set {
                        value,
                        origin: name,
                    },
                );
            }
            if let Some(value) = flags.get(key) {
                all.insert(
                    key,
                    Set {
                        value: value.clone(),
                        origin: format!("--{}", key.replace('_', "-")),
                    },
                );
            }
        }
        Ok(Self(all))
    }

    /// What is in force, one line per key.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.0
            .iter()
            .map(|(key, set)| format!("{key} = {:?}  # {}", set.value, set.origin))
    }

    /// Keys whose value is another one in `newer`.
    pub fn changed(&self, newer: &Self) -> Vec<&'static str> {
        let differs = |key: &&'static str| {
            let value = |all: &Self| all.0.get(key).map(|set| set.value.clone());
            value(self) != value(newer)
        };
        self.0.keys().copied().filter(differs).collect()
    }

    fn parse<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let Some(set) = self.0.get(key) else {
            unreachable!("every key has a default")
        };
        parse(set.value.trim()).map_err(|problem| ConfigError::Value {
            key,
            value: set.value.clone(),
            origin: set.origin.clone(),
            problem,
        })
    }
}

/// Keys of `[section]` are written as `section_key` everywhere else.
fn flat(table: toml::Table) -> Vec<(String, toml::Value)> {
    let mut all = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(section) => {
                all.extend(
                    section
                        .into_iter()
                        .map(|(sub, value)| (format!("{key}_{sub}"), value)),
                );
            }
            value => all.push((key, value)),
        }
    }
    all
}

/// The line, from 1, that sets a key, which is written as in [`flat`].
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut prefix = String::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(section) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            prefix = format!("{}_", section.trim());
        } else if let Some((left, _)) = line.split_once('=')
            && format!("{prefix}{}", left.trim().trim_matches(['"', '\''])) == key
        {
            return Some(number + 1);
        }
    }
    None
}

fn known(key: &str) -> Option<&'static str> {
    KEYS.iter()
        .map(|(known, _, _)| *known)
        .find(|known| *known == key.replace('-', "_"))
}

fn hint(key: &str) -> String {
    let nearest = KEYS
        .iter()
        .map(|(known, _, _)| (strsim::damerau_levenshtein(key, known), *known))
        .min();
    match nearest {
        Some((distance, known)) if distance <= 4 => format!("did you mean {known:?}?"),
        _ => format!("known keys: {}", KEYS.map(|(key, _, _)| key).join(", ")),
    }
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        toml::Value::Array(list) => list
            .iter()
            .map(plain)
            .collect::<Option<Vec<_>>>()
            .map(|list| list.join(",")),
        _ => None,
    }
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Config {
    pub scheduler: Vec<Address>,
    /// Read when the host has not joined yet.
    pub join_token_file: Option<PathBuf>,
    pub node: String,
    pub state_dir: PathBuf,
    pub engine_socket: PathBuf,
    pub slots_cidr: SlotsCidr,
    pub max_runners: u32,
    pub cpu_millis: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub premade_slots: Option<u32>,
    pub parallel_starts: Option<usize>,
    /// None takes the host's.
    pub dns: Option<Vec<IpAddr>>,
    pub firewall: FirewallTool,
    /// Opened to every job of this node.
    pub allow_ranges: Vec<Range>,
    /// None lets the agent start a proxy of its own.
    pub egress_socket: Option<PathBuf>,
    pub min_free_disk: u64,
    pub job_disk: u64,
    pub pull: bool,
    pub engine_timeout: Duration,
    /// None asks never.
    pub image_refresh: Option<Duration>,
    pub image_keep: Duration,
    pub profiles: Offered,
    /// What jobs may name beyond what anybody can pull.
    pub container_images: Listed,
    /// Offered under labels of their own.
    pub emulated: Asked,
    pub runtimes: OfferedRuntimes,
    /// Whether standbys are kept, and the fewest and the most of a kind.
    pub standby_enabled: bool,
    pub standby_floor: u32,
    pub standby_ceiling: Option<u32>,
    pub otlp_endpoint: Option<String>,
    pub log: String,
    pub probe_root: PathBuf,
    pub lease_ms: u64,
}

impl Config {
    pub fn new(settings: &Settings, hostname: &str) -> Result<Self, ConfigError> {
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|_| "must be a whole number".to_owned())
        };
        let optional = |text: &str| {
            if text.is_empty() {
                Ok(None)
            } else {
                number(text).map(Some)
            }
        };
        Ok(Self {
            scheduler: settings.parse("scheduler", addresses)?,
            join_token_file: settings.parse("join_token_file", |text| match text {
                "" => Ok(None),
                text => Ok(Some(PathBuf::from(text))),
            })?,
            node: settings.parse("node", |text| node_name(text, hostname))?,
            state_dir: settings.parse("state_dir", absolute)?,
            engine_socket: settings.parse("engine_socket", |text| {
                absolute(text.trim_start_matches("unix://"))
            })?,
            slots_cidr: settings.parse("slots_cidr", |text| {
                SlotsCidr::parse(text).map_err(|error| error.to_string())
            })?,
            max_runners: settings.parse("max_runners", number)?,
            cpu_millis: settings.parse("cpu", cpus)?,
            memory_bytes: settings.parse("memory", |text| {
                if text.is_empty() {
                    Ok(None)
                } else {
                    bytes(text).map(Some)
                }
            })?,
            premade_slots: settings.parse("premade_slots", optional)?,
            parallel_starts: settings
                .parse("parallel_starts", optional)?
                .map(|n| n as usize),
            dns: settings.parse("dns", resolvers)?,
            firewall: settings.parse("firewall", |text| match text {
                "auto" => Ok(FirewallTool::Auto),
                "nft" => Ok(FirewallTool::Nft),
                "iptables" => Ok(FirewallTool::Iptables),
                _ => Err("must be auto, nft or iptables".into()),
            })?,
            allow_ranges: settings.parse("allow_ranges", ranges)?,
            egress_socket: settings.parse("egress_socket", |text| match text {
                "" => Ok(None),
                text if text.starts_with('/') => Ok(Some(PathBuf::from(text))),
                _ => Err("must be an absolute path".into()),
            })?,
            min_free_disk: settings.parse("min_free_disk", bytes)?,
            job_disk: settings.parse("job_disk", |text| match bytes(text)? {
                size @ 1..SMALLEST_JOB_DISK => Err(format!(
                    "{size} bytes are too few; give a job at least 16MiB, or 0 for no limit"
                )),
                size => Ok(size),
            })?,
            emulated: settings.parse("emulated", Asked::parse)?,
            container_images: settings.parse("container_images", Listed::parse)?,
            profiles: settings.parse("profiles", |text| {
                Offered::parse(text).map_err(|word| {
                    format!("{word:?} is not one of strict, standard and containers")
                })
            })?,
            runtimes: settings.parse("runtimes", OfferedRuntimes::parse)?,
            pull: settings.parse("pull", truth)?,
            engine_timeout: settings.parse("engine_timeout", |text| match seconds(text)? {
                Some(limit) if limit >= SHORTEST_CALL => Ok(limit),
                _ => Err(format!(
                    "an engine that works takes longer at times; at least {}",
                    SHORTEST_CALL.as_secs()
                )),
            })?,
            image_refresh: settings
                .parse("image_refresh", seconds)?
                .filter(|every| !every.is_zero()),
            image_keep: settings.parse("image_keep", seconds)?.unwrap_or_default(),
            standby_enabled: settings.parse("standby_enabled", truth)?,
            standby_floor: settings.parse("standby_floor", few)?,
            standby_ceiling: settings.parse("standby_ceiling", |text| match text {
                "" => Ok(None),
                text => few(text).map(Some),
            })?,
            otlp_endpoint: settings.parse("otlp_endpoint", |text| {
                Ok::<_, String>((!text.is_empty()).then(|| text.to_owned()))
            })?,
            log: settings.parse("log", |text| Ok::<_, String>(text.to_owned()))?,
            probe_root: settings.parse("probe_root", absolute)?,
            lease_ms: settings.parse("lease", |text| {
                number(text).map(|seconds| u64::from(seconds) * 1_000)
            })?,
        })
    }
}

fn seconds(text: &str) -> Result<Option<Duration>, String> {
    let seconds: u32 = text
        .parse()
        .map_err(|_| "must be a whole number of seconds".to_owned())?;
    Ok(Some(Duration::from_secs(seconds.into())))
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
}

/// Each of them is a process and 14 MB.
fn few(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ 0..=1_000) => Ok(number),
        _ => Err("must be a whole number up to 1000".into()),
    }
}

/// Registrations are secrets: without certificates they only travel on this host.
fn ranges(text: &str) -> Result<Vec<Range>, String> {
    let ranges = text.split(',').map(str::trim).filter(|r| !r.is_empty());
    let ranges: Vec<Range> = ranges.map(Range::allowable).collect::<Result<_, _>>()?;
    if ranges.len() > MAX_RANGES {
        return Err(format!("must be at most {MAX_RANGES} ranges"));
    }
    Ok(ranges)
}

fn node_name(text: &str, hostname: &str) -> Result<String, String> {
    let name = if text.is_empty() {
        hostname
            .split('.')
            .next()
            .unwrap_or_default()
            .to_lowercase()
    } else {
        text.to_owned()
    };
    let good = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-');
    if good {
        Ok(name)
    } else {
        Err(format!(
            "{name:?} is not a node name: [a-z0-9-], at most 63 characters"
        ))
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("must be an absolute path".into())
    }
}

fn cpus(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let cpus: f64 = text
        .parse()
        .map_err(|_| "must be a number of CPUs, for example 3.5")?;
    if (0.01..=4_096.0).contains(&cpus) {
        Ok(Some((cpus * 1_000.0) as u32))
    } else {
        Err("must be between 0.01 and 4096".into())
    }
}

/// `4g`, `512MiB`, `2GB` or plain bytes. All units are powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "must be a size, for example 12GiB")?;
    let shift = match unit
        .trim()
        .to_lowercase()
        .trim_end_matches('b')
        .trim_end_matches('i')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("has an unknown unit; use KiB, MiB, GiB or TiB".into()),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "is too large".into())
}

fn resolvers(text: &str) -> Result<Option<Vec<IpAddr>>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.split(',')
        .map(|one| {
            one.trim()
                .parse::<IpAddr>()
                .map_err(|_| format!("{one:?} is not an IP address"))
        })
        .collect::<Result<Vec<_>, _>>()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(
        toml: &str,
        env: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, toml).unwrap();
        let env: BTreeMap<String, String> = env
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let flags = flags
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let settings = Settings::gather(Some(&path), |name| env.get(name).cloned(), &flags)?;
        Config::new(&settings, "Host.example.org")
    }

    #[test]
    fn everything_has_a_working_default() {
        let config = gather("", &[], &[]).unwrap();
        assert_eq!(config.node, "host");
        assert_eq!(config.min_free_disk, 2 << 30);
    }

    #[test]
    fn flags_stand_over_environment_over_file() {
        let toml = "node = 'file'\nmax_runners = 3\ndns = ['9.9.9.9', '1.1.1.1']";
        let config = gather(toml, &[("LONGSHORE_NODE", "env")], &[]).unwrap();
        assert_eq!((config.node.as_str(), config.max_runners), ("env", 3));
        assert_eq!(config.dns.unwrap().len(), 2);
        let config = gather(toml, &[("LONGSHORE_NODE", "env")], &[("node", "flag")]).unwrap();
        assert_eq!(config.node, "flag");
    }

    #[test]
    fn a_section_of_the_file_is_a_prefix_elsewhere() {
        let toml = "[standby]\nfloor = 2\nenabled = false";
        let config = gather(toml, &[("LONGSHORE_STANDBY_CEILING", "7")], &[]).unwrap();
        assert_eq!((config.standby_enabled, config.standby_floor), (false, 2));
        assert_eq!(config.standby_ceiling, Some(7));
        let text = gather("[standby]\nflor = 2", &[], &[])
            .unwrap_err()
            .to_string();
        assert!(text.contains("did you mean \"standby_floor\""), "{text}");
        let text = gather("", &[], &[("standby_floor", "-1")])
            .unwrap_err()
            .to_string();
        assert!(text.contains("whole number"), "{text}");
    }

    #[test]
    fn mistakes_name_the_key_the_origin_and_the_way_out() {
        let text = gather("max_runer = 3", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("did you mean \"max_runners\""), "{text}");
        let text = gather("", &[("LONGSHORE_MEMORY", "12 apples")], &[])
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("memory") && text.contains("LONGSHORE_MEMORY") && text.contains("GiB"),
            "{text}"
        );
        let text = gather("scheduler = 'http://10.0.0.1:9001'", &[], &[])
            .unwrap_err()
            .to_string();
        assert!(text.contains("TLS only"), "{text}");
        let text = gather("node = 'Bad Name'", &[], &[])
            .unwrap_err()
            .to_string();
        assert!(text.contains("[a-z0-9-]"), "{text}");
    }

    #[test]
    fn a_mistake_in_the_file_names_its_line() {
        let error = |toml| gather(toml, &[], &[]).unwrap_err().to_string();
        let text = error("node = 'a'\n\n[standby]\n# few\nflor = 2\n");
        assert!(
            text.contains("agent.toml:5: unknown key \"standby_flor\""),
            "{text}"
        );
        let text = error("pull = true\nmax_runners = 'many'\n");
        assert!(text.contains("agent.toml:2)"), "{text}");
    }

    #[test]
    fn what_changed_is_named() {
        let gather = |flags: &[(&str, &str)]| {
            let flags = flags.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            Settings::gather(None, |_| None, &flags.collect()).unwrap()
        };
        let (old, new) = (gather(&[]), gather(&[("log", "debug"), ("cpu", "2")]));
        assert_eq!(old.changed(&new), ["cpu", "log"]);
        assert!(old.changed(&old).is_empty());
    }

    #[test]
    fn sizes_in_the_predecessors_and_in_our_words() {
        assert_eq!(bytes("4g"), Ok(4 << 30));
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("1024"), Ok(1024));
        assert!(bytes("4 parsecs").is_err());
    }
}
