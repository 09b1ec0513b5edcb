//! What there is on a host that a fleet could leave behind, and what came or went between two looks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use bollard::{
    Docker,
    query_parameters::{ListContainersOptions, ListNetworksOptions, ListVolumesOptions},
};
use serde::{Deserialize, Serialize};

use super::identity::RUN_VARIABLE;

/// A named thing and every text about it by which its owner can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thing {
    /// How it is called in a finding.
    pub name: String,
    /// Labels, addresses, command line: where an owner's mark may stand.
    pub about: String,
}

/// One look at a host. Keys are ids that no two things share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Containers, whatever their state.
    pub containers: BTreeMap<String, Thing>,
    /// Engine networks, network namespaces and links.
    pub networks: BTreeMap<String, Thing>,
    /// Engine volumes.
    pub volumes: BTreeMap<String, Thing>,
    /// Firewall rules and chains, counters left out; the value is how often the line stands there.
    pub firewall: BTreeMap<String, u32>,
    /// Processes by id and start time.
    pub processes: BTreeMap<String, Thing>,
    /// Facts for the summary.
    pub host: HostFacts,
}

/// What kind of host it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Processor architecture.
    pub arch: String,
    /// Processors.
    pub cpus: u32,
    /// Engine name and version.
    pub engine: String,
    /// `1` or `2`.
    pub cgroup: String,
}

/// Looks at this host.
pub async fn look(engine: &Docker) -> Result<HostState> {
    look_inside(engine, &[]).await
}

/// Looks at a host whose network is seen by programs that are run behind these words, such as `nsenter -t 1 -n`.
pub async fn look_inside(engine: &Docker, inside: &[String]) -> Result<HostState> {
    let mut state = HostState::default();
    containers(engine, &mut state).await?;
    networks(engine, &mut state).await?;
    volumes(engine, &mut state).await?;
    links(inside, &mut state)?;
    firewall(inside, &mut state)?;
    processes(&mut state)?;
    let version = engine.version().await.context("engine version")?;
    let info = engine.info().await.context("engine info")?;
    state.host = HostFacts {
        arch: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        engine: format!("docker {}", version.version.unwrap_or_default()),
        cgroup: info
            .cgroup_version
            .map(|v| v.to_string())
            .unwrap_or_default(),
    };
    Ok(state)
}

fn marks(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    pairs
        .into_iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join(" ")
}

async fn containers(engine: &Docker, state: &mut HostState) -> Result<()> {
    let options = ListContainersOptions {
        all: true,
        ..Default::default()
    };
    for c in engine
        .list_containers(Some(options))
        .await
        .context("list containers")?
    {
        let name = c.names.unwrap_or_default().join(",");
        let about = format!("{name} {}", marks(c.labels.unwrap_or_default()));
        state
            .containers
            .insert(c.id.unwrap_or_default(), Thing { name, about });
    }
    Ok(())
}

async fn networks(engine: &Docker, state: &mut HostState) -> Result<()> {
    for n in engine
        .list_networks(None::<ListNetworksOptions>)
        .await
        .context("list networks")?
    {
        let name = n.name.unwrap_or_default();
        let subnets: Vec<String> = n
            .ipam
            .and_then(|i| i.config)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|c| c.subnet)
            .collect();
        let about = format!(
            "{name} {} {} {}",
            subnets.join(" "),
            marks(n.labels.unwrap_or_default()),
            marks(n.options.unwrap_or_default())
        );
        state.networks.insert(
            format!("network {}", n.id.unwrap_or_default()),
            Thing { name, about },
        );
    }
    Ok(())
}

async fn volumes(engine: &Docker, state: &mut HostState) -> Result<()> {
    let listed = engine
        .list_volumes(None::<ListVolumesOptions>)
        .await
        .context("list volumes")?;
    for v in listed.volumes.unwrap_or_default() {
        let about = format!("{} {}", v.name, marks(v.labels));
        state.volumes.insert(
            v.name.clone(),
            Thing {
                name: v.name,
                about,
            },
        );
    }
    Ok(())
}

fn links(inside: &[String], state: &mut HostState) -> Result<()> {
    for line in run(inside, "ip", &["-o", "link", "show"])?.lines() {
        // 7: ls-ab12@if6: <...>: ports of containers come and go with them, bridges and pairs must not stay.
        let Some(name) = line.split(": ").nth(1) else {
            continue;
        };
        let name = name.split('@').next().unwrap_or(name);
        let thing = Thing {
            name: format!("link {name}"),
            about: name.to_owned(),
        };
        state.networks.insert(format!("link {name}"), thing);
    }
    for line in run(inside, "ip", &["netns", "list"])?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let thing = Thing {
            name: format!("network namespace {name}"),
            about: name.to_owned(),
        };
        state.networks.insert(format!("netns {name}"), thing);
    }
    Ok(())
}

fn firewall(inside: &[String], state: &mut HostState) -> Result<()> {
    let mut add = |line: String| *state.firewall.entry(line).or_default() += 1;
    let mut block: Vec<String> = Vec::new();
    for line in run(inside, "nft", &["list", "ruleset"])?.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || ends_by_itself(line) {
            continue;
        }
        if let Some(opened) = line.strip_suffix('{') {
            block.push(opened.trim().to_owned());
            add(block.join(" / "));
        } else if line == "}" {
            block.pop();
        } else {
            add(format!(
                "{} / {}",
                block.join(" / "),
                without_counters(line)
            ));
        }
    }
    // Hosts whose iptables still speaks to the old tables keep rules that nft does not show.
    for tool in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let Ok(text) = run(inside, tool, &[]) else {
            continue;
        };
        for line in text
            .lines()
            .filter(|l| l.starts_with('-') || l.starts_with(':'))
        {
            let line = line.split(" [").next().unwrap_or(line);
            add(format!("{tool} {line}"));
        }
    }
    Ok(())
}

/// What a rule noted of a packet for a while: an element of a set with a timeout.
fn ends_by_itself(line: &str) -> bool {
    line.split_whitespace().any(|word| word == "expires")
}

/// `counter packets 12 bytes 3456` as `counter`.
fn without_counters(line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if matches!(word, "packets" | "bytes")
            && words
                .peek()
                .is_some_and(|n| n.chars().all(|c| c.is_ascii_digit()))
        {
            words.next();
            continue;
        }
        kept.push(word);
    }
    kept.join(" ")
}

fn processes(state: &mut HostState) -> Result<()> {
    for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|n| n.chars().all(|c| c.is_ascii_digit()))
        else {
            continue;
        };
        if let Some((key, thing)) = process(pid) {
            state.processes.insert(key, thing);
        }
    }
    Ok(())
}

/// A process; `None` when it ended while we looked, and for the kernel's own threads.
fn process(pid: &str) -> Option<(String, Thing)> {
    let folder = Path::new("/proc").join(pid);
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    // The name may hold spaces and brackets: fields count from the last bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (status, started) = (fields.first()?, fields.get(19)?);
    if *status == "Z" {
        return None;
    }
    let command = std::fs::read(folder.join("cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let command = command.trim().to_owned();
    if command.is_empty() {
        return None;
    }
    let environment = std::fs::read(folder.join("environ")).unwrap_or_default();
    let mark = environment
        .split(|b| *b == 0)
        .filter_map(|v| std::str::from_utf8(v).ok())
        .find(|v| v.starts_with(RUN_VARIABLE))
        .unwrap_or_default();
    let cgroup = std::fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
    let container = cgroup
        .lines()
        .find_map(|l| l.rsplit('/').next().filter(|n| n.len() >= 64))
        .unwrap_or_default();
    Some((
        format!("{pid} {started}"),
        Thing {
            name: format!("{command} ({pid})"),
            about: format!("{command} {mark} {container}"),
        },
    ))
}

fn run(inside: &[String], program: &str, arguments: &[&str]) -> Result<String> {
    let mut words = inside.iter().map(String::as_str).chain([program]);
    let output = Command::new(words.next().unwrap_or(program))
        .args(words)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}: is it installed?"))?;
    if !output.status.success() {
        bail!(
            "{program} {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What belongs to one demo: texts of which at least one stands in everything it makes.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// The texts.
    pub ours: BTreeSet<String>,
}

impl Marks {
    /// Whether a text carries one of ours.
    pub fn stand_in(&self, text: &str) -> bool {
        self.ours.iter().any(|mark| text.contains(mark.as_str()))
    }
}

/// What a demo left behind and what it took away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Containers that stayed.
    pub containers: Vec<String>,
    /// Networks, namespaces and links that stayed.
    pub networks: Vec<String>,
    /// Volumes that stayed.
    pub volumes: Vec<String>,
    /// Firewall lines that stayed.
    pub firewall: Vec<String>,
    /// Processes that stayed.
    pub processes: Vec<String>,
    /// Things that were there before, were not ours, and are gone or changed.
    pub missing: Vec<String>,
}

/// Compares two looks. `strangers` says that another fleet is at work on this host, whose unmarked things are not ours to answer for.
pub fn difference(
    before: &HostState,
    after: &HostState,
    marks: &Marks,
    strangers: bool,
) -> Difference {
    let stayed = |b: &BTreeMap<String, Thing>, a: &BTreeMap<String, Thing>| -> Vec<String> {
        a.iter()
            .filter(|(key, thing)| !b.contains_key(*key) && marks.stand_in(&thing.about))
            .map(|(_, thing)| thing.name.clone())
            .collect()
    };
    let mut found = Difference {
        containers: stayed(&before.containers, &after.containers),
        networks: stayed(&before.networks, &after.networks),
        volumes: stayed(&before.volumes, &after.volumes),
        processes: stayed(&before.processes, &after.processes),
        ..Difference::default()
    };
    for (line, count) in &after.firewall {
        let had = before.firewall.get(line).copied().unwrap_or_default();
        let fleet_wide = line.contains("longshore") || line.contains("\"ls-");
        if *count > had && (marks.stand_in(line) || (fleet_wide && !strangers)) {
            found.firewall.push(line.clone());
        }
    }
    for (kind, b, a) in [
        ("container", &before.containers, &after.containers),
        ("network", &before.networks, &after.networks),
        ("volume", &before.volumes, &after.volumes),
    ] {
        found.missing.extend(
            b.iter()
                // Ports of foreign containers go with their containers, and other fleets tidy up after themselves.
                .filter(|(key, thing)| {
                    !a.contains_key(*key)
                        && !key.starts_with("link veth")
                        && !is_a_fleets(&thing.about)
                })
                .map(|(_, thing)| format!("{kind} {}", thing.name)),
        );
    }
    for (line, had) in &before.firewall {
        if after.firewall.get(line).copied().unwrap_or_default() < *had && !is_a_fleets(line) {
            found.missing.push(format!("firewall rule {line}"));
        }
    }
    found
}

/// Whether a thing carries the marks by which every fleet of this product is known.
fn is_a_fleets(about: &str) -> bool {
    about.contains("longshore")
        || about.contains("ls-")
        || about.contains("lsdemo-")
        || about.starts_with("gs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(name: &str, about: &str) -> Thing {
        Thing {
            name: name.into(),
            about: about.into(),
        }
    }

    fn marks() -> Marks {
        Marks {
            ours: BTreeSet::from(["demo-7".to_owned(), "10.195.".to_owned()]),
        }
    }

    #[test]
    fn nothing_new_is_no_leak_and_nothing_missing() {
        let mut state = HostState::default();
        state.containers.insert("a".into(), thing("/db", ""));
        state.firewall.insert("table ip nat".into(), 1);
        assert_eq!(
            difference(&state, &state, &marks(), false),
            Difference::default()
        );
    }

    #[test]
    fn what_carries_our_mark_and_stays_is_a_leak_of_its_kind() {
        let before = HostState::default();
        let mut after = HostState::default();
        after
            .containers
            .insert("a".into(), thing("/ls-1", "longshore.node=demo-7"));
        after
            .networks
            .insert("n".into(), thing("ls-2", "10.195.0.0/29"));
        after
            .volumes
            .insert("v".into(), thing("work", "node=demo-7"));
        after
            .processes
            .insert("9 1".into(), thing("sleep", "LONGSHORE_DEMO_RUN=demo-7"));
        after
            .firewall
            .insert("chain nat / ip saddr 10.195.0.0/29 masquerade".into(), 1);
        let found = difference(&before, &after, &marks(), true);
        assert_eq!(found.containers.len(), 1);
        assert_eq!(found.networks.len(), 1);
        assert_eq!(found.volumes.len(), 1);
        assert_eq!(found.processes.len(), 1);
        assert_eq!(found.firewall.len(), 1);
    }

    #[test]
    fn a_strangers_new_things_are_not_ours() {
        let before = HostState::default();
        let mut after = HostState::default();
        after
            .containers
            .insert("a".into(), thing("/postgres", "app=db"));
        after.processes.insert("9 1".into(), thing("vim", "vim"));
        after.firewall.insert("table inet longshore".into(), 1);
        assert_eq!(
            difference(&before, &after, &marks(), true),
            Difference::default()
        );
        assert_eq!(
            difference(&before, &after, &marks(), false).firewall.len(),
            1
        );
    }

    #[test]
    fn a_foreign_thing_that_vanished_is_reported_and_a_fleets_own_is_not() {
        let mut before = HostState::default();
        before
            .containers
            .insert("a".into(), thing("/postgres", "app=db"));
        before
            .containers
            .insert("b".into(), thing("/ls-old", "longshore.node=other"));
        before
            .firewall
            .insert("chain INPUT / tcp dport 22 accept".into(), 2);
        let mut after = HostState::default();
        after
            .firewall
            .insert("chain INPUT / tcp dport 22 accept".into(), 1);
        let found = difference(&before, &after, &marks(), false);
        assert_eq!(found.missing.len(), 2, "{found:?}");
    }

    #[test]
    fn what_rules_note_for_a_while_is_no_difference() {
        let noted = "\"ls-4c85ea-0\" . 10.193.0.1 . tcp . 22 counter packets 1 bytes 60 expires 8m11s692ms,";
        assert!(ends_by_itself(noted));
        assert!(!ends_by_itself("iifname \"ls-*\" goto denied"));
    }

    #[test]
    fn counters_are_no_difference() {
        assert_eq!(
            without_counters("iifname \"ls-*\" counter packets 12 bytes 3456 drop"),
            "iifname \"ls-*\" counter drop"
        );
        assert_eq!(
            without_counters("meta length 5 bytes accept"),
            "meta length 5 bytes accept"
        );
    }
}
