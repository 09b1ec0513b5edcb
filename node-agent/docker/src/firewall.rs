//! Loads the firewall rules, verifies them, and notices when they are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use agent_core::denied::{Denied, Reading, Tally};
use agent_core::firewall::{Door, Rules};
use agent_core::model::Condition;
use agent_core::runtime::RuntimeError;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tracing::{debug, info, warn};

use crate::config::FirewallTool;
use crate::engine::refused;
use crate::netfilter::Changes;
use crate::runtime::lock;

const TOOL: Duration = Duration::from_secs(10);
/// Until what was loaded is what was read twice in a row.
const LOADS: u32 = 5;
/// Two hand-overs within this time share one verification.
const VERIFIED_FOR: Duration = Duration::from_millis(200);
/// Nor is it listed again before this while the kernel says that no rule changed.
const UNCHANGED_FOR: Duration = Duration::from_secs(30);

#[derive(Default)]
struct State {
    tool: Option<Tool>,
    /// The listing right after loading: anything else is a change.
    listing: Option<Listing>,
    verified: Option<Instant>,
    problem: Option<String>,
    /// Put back when the rules are.
    doors: BTreeSet<Door>,
    changes: Option<Changes>,
    /// The kernel told of a change that no listing has been compared with yet.
    doubtful: bool,
}

impl State {
    /// The kernel says that no rule changed since the listing began that was compared
    /// last. It tells of nftables only.
    fn unchanged(&mut self) -> bool {
        if self.tool != Some(Tool::Nft) {
            return false;
        }
        let none = match &self.changes {
            Some(changes) => changes.none(),
            None => {
                self.changes = Changes::watch();
                false
            }
        };
        self.doubtful |= !none;
        !self.doubtful
    }
}

/// What is loaded, as the tool tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listing {
    /// The same until they are loaded anew.
    rules: String,
    /// Openings come and go between.
    doors: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Nft,
    Iptables,
}

pub(crate) struct Firewall {
    rules: Rules,
    choice: FirewallTool,
    state: tokio::sync::Mutex<State>,
    /// What is denied to whoever uses each bridge now.
    tallies: Mutex<BTreeMap<String, Tally>>,
}

impl Firewall {
    pub(crate) fn new(rules: Rules, choice: FirewallTool) -> Self {
        Self {
            rules,
            choice,
            state: Default::default(),
            tallies: Mutex::default(),
        }
    }

    /// In place now, restored if need be; or why not.
    pub(crate) async fn assert(&self) -> Result<(), RuntimeError> {
        let mut state = self.state.lock().await;
        let verified = state.verified.map(|at| at.elapsed());
        // Asked before any listing: what changes after it is told at the next.
        let unchanged = state.unchanged();
        if verified.is_some_and(|age| age < VERIFIED_FOR || (unchanged && age < UNCHANGED_FOR)) {
            return Ok(());
        }
        state.doubtful = false;
        let result = self.verify_or_load(&mut state).await;
        match result {
            Ok(()) => {
                state.verified = Some(Instant::now());
                state.problem = None;
                Ok(())
            }
            Err(detail) => {
                if state.problem.as_ref() != Some(&detail) {
                    warn!(detail, "the firewall rules are not in place");
                }
                state.verified = None;
                state.problem = Some(detail.clone());
                Err(refused(detail))
            }
        }
    }

    /// Opens a port of a slot's gateway to that slot alone, until it is closed.
    pub(crate) async fn open(&self, door: Door) -> Result<(), RuntimeError> {
        self.assert().await?;
        let mut state = self.state.lock().await;
        if !state.doors.contains(&door) {
            self.change(&mut state, &door, true)
                .await
                .map_err(refused)?;
            state.doors.insert(door);
            if state.listing.is_none() {
                self.verify_or_load(&mut state).await.map_err(refused)?;
            }
        }
        Ok(())
    }

    pub(crate) async fn close(&self, door: &Door) -> Result<(), RuntimeError> {
        let mut state = self.state.lock().await;
        if state.doors.remove(door) && state.listing.is_some() {
            let closed = self.change(&mut state, door, false).await;
            if closed.is_err() {
                // Whatever is there now, it is not what it should be: all of it is loaded anew.
                state.listing = None;
                state.verified = None;
            }
            closed.map_err(refused)?;
        }
        Ok(())
    }

    async fn change(&self, state: &mut State, door: &Door, open: bool) -> Result<(), String> {
        match state.tool.unwrap_or(Tool::Nft) {
            Tool::Nft => {
                let verb = if open { "add" } else { "delete" };
                run("nft", &["-f", "-"], &self.rules.nft_door(verb, door)).await?;
            }
            Tool::Iptables => {
                let verb = if open { "-I" } else { "-D" };
                let arguments = self.rules.iptables_door(verb, door);
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                run("iptables", &arguments, "").await?;
            }
        }
        if let Some(tool) = state.tool
            && let Some(before) = &state.listing
        {
            let now = self.list(tool).await?;
            // What else changed since it was verified is nothing to get used to.
            let only_doors = now.rules == before.rules;
            state.listing = only_doors.then_some(now);
            if !only_doors {
                state.verified = None;
            }
        }
        Ok(())
    }

    pub(crate) async fn condition(&self) -> Option<Condition> {
        self.state.lock().await.problem.clone().map(|detail| Condition {
            kind: "firewall_missing",
            detail,
            next_step: "run the agent as root or with CAP_NET_ADMIN, and install nftables (apt-get install nftables)".into(),
            image: String::new(),
        })
    }

    /// Takes the rules away. Only for a node that is given up.
    pub(crate) async fn remove(&self) -> Result<(), String> {
        let mut state = self.state.lock().await;
        state.listing = None;
        state.verified = None;
        let tool = match state.tool {
            Some(tool) => tool,
            None => self.pick().await?,
        };
        match tool {
            // Adding first makes deleting an absent table a success.
            Tool::Nft => {
                let table = &self.rules.table;
                run(
                    "nft",
                    &["-f", "-"],
                    &format!("table inet {table}\ndelete table inet {table}\n"),
                )
                .await
                .map(drop)
            }
            Tool::Iptables => self.remove_iptables().await,
        }
    }

    /// Forgets what was denied to the last user of a bridge, in the kernel too.
    pub(crate) async fn begin(&self, bridge: &str) {
        if let Some(reading) = self.read().await
            && let Some(removal) = reading.removal(&self.rules.table, bridge)
            && let Err(why) = run("nft", &["-f", "-"], &removal).await
        {
            warn!(
                bridge,
                why, "old denials are counted for the next runner too"
            );
        }
        self.adopt(bridge);
    }

    /// Everything that is counted on a bridge is its present user's.
    pub(crate) fn adopt(&self, bridge: &str) {
        lock(&self.tallies).insert(bridge.to_owned(), Tally::default());
    }

    /// Adds up what was denied since the last time; cheap when nothing is watched.
    pub(crate) async fn count(&self) {
        if lock(&self.tallies).is_empty() {
            return;
        }
        if let Some(reading) = self.read().await {
            self.add_up(&reading);
        }
    }

    fn add_up(&self, reading: &Reading) {
        for (bridge, tally) in lock(&self.tallies).iter_mut() {
            tally.read(reading.bridges.get(bridge));
        }
    }

    /// What was denied on a bridge since `begin`; absent where that cannot be told.
    pub(crate) async fn denied(&self, bridge: &str) -> Option<Denied> {
        let reading = self.read().await?;
        let mut tallies = lock(&self.tallies);
        let tally = tallies.get_mut(bridge)?;
        tally.read(reading.bridges.get(bridge));
        Some(tally.denied())
    }

    pub(crate) fn end(&self, bridge: &str) {
        lock(&self.tallies).remove(bridge);
    }

    /// Nothing with iptables: its counters do not tell one bridge from another.
    async fn read(&self) -> Option<Reading> {
        let tool = self.state.lock().await.tool;
        self.read_by(tool).await
    }

    async fn read_by(&self, tool: Option<Tool>) -> Option<Reading> {
        if tool != Some(Tool::Nft) {
            return None;
        }
        let arguments = ["-j", "list", "table", "inet", &self.rules.table];
        let text = run("nft", &arguments, "").await;
        match text.and_then(|text| Reading::of_json(&text)) {
            Ok(reading) => Some(reading),
            Err(why) => {
                debug!(why, "denied attempts cannot be read");
                None
            }
        }
    }

    async fn verify_or_load(&self, state: &mut State) -> Result<(), String> {
        let tool = match state.tool {
            Some(tool) => tool,
            None => {
                let tool = self.pick().await?;
                state.tool = Some(tool);
                tool
            }
        };
        if let Some(expected) = &state.listing {
            match self.list(tool).await {
                Ok(found) if &found == expected => return Ok(()),
                Ok(_) => warn!(
                    table = self.rules.table,
                    "the firewall rules were changed; loading them again"
                ),
                Err(_) => warn!(
                    table = self.rules.table,
                    "the firewall rules were flushed; loading them again"
                ),
            }
        }
        state.listing = None;
        // Loading begins every counter again.
        if let Some(reading) = self.read_by(state.tool).await {
            self.add_up(&reading);
        }
        let listing = self.load(tool).await?;
        let prefix = &self.rules.bridge_prefix;
        let rules = listing
            .rules
            .lines()
            .filter(|line| line.contains(prefix.as_str()))
            .count();
        let expected = match tool {
            Tool::Nft => self.rules.nft_rule_count(),
            Tool::Iptables => self
                .rules
                .iptables()
                .lines()
                .chain(self.rules.ip6tables().lines())
                .filter(|l| l.starts_with("-A"))
                .count(),
        };
        if rules != expected {
            return Err(format!(
                "{rules} of {expected} firewall rules are in place after loading them"
            ));
        }
        info!(
            table = self.rules.table,
            rules,
            ?tool,
            "firewall rules loaded"
        );
        state.listing = Some(listing);
        for door in state.doors.clone() {
            self.change(state, &door, true).await?;
        }
        match state.listing {
            Some(_) => Ok(()),
            None => Err("somebody changes the firewall rules while they are loaded".into()),
        }
    }

    /// Loads until two loads in a row read the same: what somebody changed between a load and
    /// its reading would be taken for what was loaded.
    async fn load(&self, tool: Tool) -> Result<Listing, String> {
        let mut before = None;
        for _ in 0..LOADS {
            match tool {
                Tool::Nft => {
                    run("nft", &["-f", "-"], &self.rules.nft()).await?;
                }
                Tool::Iptables => self.load_iptables().await?,
            }
            let now = self.list(tool).await?;
            if before.as_ref() == Some(&now) {
                return Ok(now);
            }
            before = Some(now);
        }
        Err(format!(
            "somebody changes the firewall rules: {LOADS} loads in a row read differently"
        ))
    }

    async fn pick(&self) -> Result<Tool, String> {
        let nft = async { run("nft", &["--version"], "").await.is_ok() };
        match self.choice {
            FirewallTool::Nft => Ok(Tool::Nft),
            FirewallTool::Iptables => Ok(Tool::Iptables),
            FirewallTool::Auto if nft.await => Ok(Tool::Nft),
            FirewallTool::Auto => match run("iptables", &["--version"], "").await {
                Ok(_) => Ok(Tool::Iptables),
                Err(_) => Err("neither nft nor iptables is installed".into()),
            },
        }
    }

    async fn list(&self, tool: Tool) -> Result<Listing, String> {
        match tool {
            Tool::Nft => {
                // Without what the counting sets hold: that changes with every denied packet.
                let table = &self.rules.table;
                let rules = run("nft", &["-t", "list", "table", "inet", table], "").await?;
                let doors = run("nft", &["list", "set", "inet", table, "doors"], "").await?;
                Ok(Listing { rules, doors })
            }
            Tool::Iptables => {
                let [input, forward] = self.rules.chains();
                let mut text = String::new();
                for program in ["iptables", "ip6tables"] {
                    for (chain, hook) in [(&input, "INPUT"), (&forward, "FORWARD")] {
                        text.push_str(&run(program, &["-w", "-S", chain], "").await?);
                        // Not ahead of the engine's rules is as good as absent.
                        let first = run(program, &["-w", "-S", hook, "1"], "").await?;
                        if first.trim() != format!("-A {hook} -j {chain}") {
                            return Err(format!(
                                "{program} {hook} does not begin with a jump to {chain}"
                            ));
                        }
                    }
                }
                let door = format!(" --dport {} ", agent_core::containers::PORT);
                let (doors, rules): (Vec<&str>, Vec<&str>) =
                    text.lines().partition(|line| line.contains(&door));
                Ok(Listing {
                    rules: rules.join("\n"),
                    doors: doors.join("\n"),
                })
            }
        }
    }

    async fn load_iptables(&self) -> Result<(), String> {
        let [input, forward] = self.rules.chains();
        for (program, restore, rules) in [
            ("iptables", "iptables-restore", self.rules.iptables()),
            ("ip6tables", "ip6tables-restore", self.rules.ip6tables()),
        ] {
            run(restore, &["-w", "--noflush"], &rules).await?;
            for (chain, hook) in [(&input, "INPUT"), (&forward, "FORWARD")] {
                // At most one jump, and that one first.
                let _ = run(program, &["-w", "-D", hook, "-j", chain], "").await;
                run(program, &["-w", "-I", hook, "1", "-j", chain], "").await?;
            }
        }
        Ok(())
    }

    async fn remove_iptables(&self) -> Result<(), String> {
        let [input, forward] = self.rules.chains();
        for program in ["iptables", "ip6tables"] {
            for (chain, hook) in [(&input, "INPUT"), (&forward, "FORWARD")] {
                let _ = run(program, &["-w", "-D", hook, "-j", chain], "").await;
                run(program, &["-w", "-F", chain], "").await?;
                run(program, &["-w", "-X", chain], "").await?;
            }
        }
        Ok(())
    }
}

/// Runs a tool with a bound; the error holds its own words.
async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let work = async {
        let mut child = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A tool that fails early closes its input; its own words say more.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child
            .wait_with_output()
            .await
            .map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let words = String::from_utf8_lossy(&output.stderr);
            Err(format!(
                "{program} {}: {}",
                arguments.join(" "),
                words.lines().next().unwrap_or("failed").trim()
            ))
        }
    };
    match tokio::time::timeout(TOOL, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("{program} did not end within {} s", TOOL.as_secs())),
    }
}
