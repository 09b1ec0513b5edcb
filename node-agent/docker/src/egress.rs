//! The egress proxy's process: started when the first allow-listed sandbox needs it, found
//! again after a restart of the agent, told which slot may reach what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use agent_core::denied::Denied;
use agent_core::model::Condition;
use agent_core::names::{Fnv, Instance};
use agent_core::runtime::RuntimeError;
use agent_egress::control::{Answer, Open, Request, call};
use tracing::{info, warn};

use crate::engine::refused;
use crate::runtime::lock;
use crate::usage;

/// The program beside the agent's own.
const PROGRAM: &str = "longshore-egress";
/// Between the numbers of people's accounts and those that systemd gives to services.
const FIRST_USER: u32 = 60_578;
const USERS: u32 = 600;
const STARTS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(crate) struct Egress {
    /// Of its own, closed to everybody else: the socket and the program's log.
    folder: PathBuf,
    program: Program,
    /// Slots that have to be open, by slot.
    wanted: Mutex<BTreeMap<u32, Open>>,
    /// Those of them whose proxy died and was started again.
    recounted: Mutex<BTreeSet<u32>>,
    problem: Mutex<Option<String>>,
    /// One at a time starts it.
    starting: tokio::sync::Mutex<()>,
}

/// Whose process it is.
enum Program {
    /// Of this agent, which starts the program as that user when it is root.
    Own {
        path: Result<PathBuf, String>,
        user: Option<u32>,
    },
    /// Somebody else's, who listens there: a service of the host.
    Given(PathBuf),
}

impl Egress {
    pub(crate) fn new(state_dir: &Path, instance: &Instance, given: Option<PathBuf>) -> Self {
        let own = || Program::Own {
            path: sibling(),
            user: user(instance),
        };
        Self {
            folder: state_dir.join("egress"),
            program: given.map_or_else(own, Program::Given),
            wanted: Mutex::default(),
            recounted: Mutex::default(),
            problem: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
        }
    }

    /// Why this node offers no allow-list.
    pub(crate) fn gap(&self) -> Option<String> {
        match &self.program {
            Program::Own { path, .. } => path.as_ref().err().cloned(),
            Program::Given(_) => None,
        }
    }

    fn socket(&self) -> PathBuf {
        match &self.program {
            Program::Own { .. } => self.folder.join("control.sock"),
            Program::Given(socket) => socket.clone(),
        }
    }

    /// Opens a slot's proxy; it stays open until `close`, whatever becomes of the agent.
    pub(crate) async fn open(&self, slot: u32, open: Open) -> Result<(), RuntimeError> {
        let opened = self.tell(&Request::Open(open.clone())).await;
        opened.map_err(refused)?;
        lock(&self.wanted).insert(slot, open);
        Ok(())
    }

    /// What a slot was refused; absent when the proxy that knew is gone.
    pub(crate) async fn denied(&self, slot: u32) -> Option<Denied> {
        let listen = self.listen(slot)?;
        let answer = call(&self.socket(), &Request::Denied(listen)).await;
        let mut denied = answer.ok()?.denied?;
        // What an earlier proxy counted died with it.
        denied.more |= lock(&self.recounted).contains(&slot);
        Some(denied)
    }

    pub(crate) async fn close(&self, slot: u32) {
        let Some(listen) = self.listen(slot) else {
            return;
        };
        // Not there: then nothing of it is open.
        let closed = call(&self.socket(), &Request::Close(listen)).await;
        if let Err(why) = closed
            && self.socket().exists()
        {
            warn!(slot, why, "a slot's proxy was not closed");
        }
        lock(&self.wanted).remove(&slot);
        lock(&self.recounted).remove(&slot);
    }

    /// Slots of adopted runners; every other one that a living proxy has is closed.
    pub(crate) async fn recover(&self, adopted: BTreeMap<u32, Open>) {
        let keep: Vec<SocketAddr> = adopted.values().map(|open| open.listen).collect();
        *lock(&self.wanted) = adopted;
        if let Ok(answer) = call(&self.socket(), &Request::List).await {
            info!(slots = answer.open.len(), "found the egress proxy");
            for listen in answer.open.iter().filter(|open| !keep.contains(open)) {
                if let Err(why) = call(&self.socket(), &Request::Close(*listen)).await {
                    warn!(%listen, why, "a slot's proxy was not closed");
                }
            }
        }
        // What it refuses is told by the condition.
        let _ = self.assert().await;
    }

    /// Every wanted slot is open, with a new proxy if need be; nothing is done without one.
    pub(crate) async fn assert(&self) -> Result<(), String> {
        let wanted: Vec<Open> = lock(&self.wanted).values().cloned().collect();
        let mut result = Ok(());
        if !wanted.is_empty()
            && let Ok(answer) = call(&self.socket(), &Request::List).await
        {
            // Open for this agent, and not for the proxy: it was started again meanwhile.
            let of_another = |open: &Open| !answer.open.contains(&open.listen);
            let slots = lock(&self.wanted);
            let again = slots.iter().filter(|(_, open)| of_another(open));
            lock(&self.recounted).extend(again.map(|(slot, _)| *slot));
        }
        for open in wanted {
            result = self.tell(&Request::Open(open)).await.map(drop);
            if result.is_err() {
                break;
            }
        }
        let mut problem = lock(&self.problem);
        if let Err(why) = &result
            && problem.as_ref() != Some(why)
        {
            warn!(why, "allow-listed jobs reach nothing");
        }
        *problem = result.clone().err();
        result
    }

    pub(crate) fn condition(&self) -> Option<Condition> {
        lock(&self.problem).clone().map(|detail| Condition {
            kind: "egress_down",
            detail,
            next_step: match &self.program {
                Program::Own { .. } => format!(
                    "look into {} and see that {PROGRAM} lies beside longshore-agent",
                    self.folder.join("log").display()
                ),
                Program::Given(_) => format!("start it again: systemctl restart {PROGRAM}"),
            },
            image: String::new(),
        })
    }

    /// Ends the proxy, or closes its slots where it is a service of the host. Only for a
    /// node that is given up.
    pub(crate) async fn stop(&self) {
        lock(&self.wanted).clear();
        if let Program::Given(socket) = &self.program {
            let answer = call(socket, &Request::List).await.unwrap_or_default();
            for listen in answer.open {
                if let Err(why) = call(socket, &Request::Close(listen)).await {
                    warn!(%listen, why, "a slot's proxy was not closed");
                }
            }
            return;
        }
        // Nobody there is what is wanted.
        let _ = call(&self.socket(), &Request::Stop).await;
        let begin = Instant::now();
        while call(&self.socket(), &Request::List).await.is_ok() && begin.elapsed() < STARTS_WITHIN
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        // The proxy itself may not: its folder is not its user's.
        let _ = std::fs::remove_file(self.socket());
    }

    fn listen(&self, slot: u32) -> Option<SocketAddr> {
        lock(&self.wanted).get(&slot).map(|open| open.listen)
    }

    /// Asks the proxy, after starting it when nobody listens.
    async fn tell(&self, request: &Request) -> Result<Answer, String> {
        let _one = self.starting.lock().await;
        if call(&self.socket(), &Request::List).await.is_err() {
            self.start().await?;
            let open: Vec<u32> = lock(&self.wanted).keys().copied().collect();
            lock(&self.recounted).extend(open);
        }
        call(&self.socket(), request).await
    }

    async fn start(&self) -> Result<(), String> {
        let (program, user) = match &self.program {
            Program::Own { path, user } => (path.as_deref().map_err(Clone::clone)?, user),
            Program::Given(socket) => {
                return Err(format!("no egress proxy answers at {}", socket.display()));
            }
        };
        let log = self.prepare().map_err(|error| {
            format!(
                "making {} for the egress proxy: {error}",
                self.folder.display()
            )
        })?;
        let mut command = std::process::Command::new(program);
        command
            .arg("--socket")
            .arg(self.socket())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir("/")
            // What ends the agent's group does not end the connections of its jobs.
            .process_group(0);
        if let Some(user) = user {
            command.arg("--user").arg(user.to_string());
        }
        let mut child = command
            .spawn()
            .map_err(|error| format!("starting {}: {error}", program.display()))?;
        info!(pid = child.id(), "started the egress proxy");
        let begin = Instant::now();
        let mut last = String::new();
        while begin.elapsed() < STARTS_WITHIN {
            match call(&self.socket(), &Request::List).await {
                Ok(_) => {
                    // Reaped when it ends before the agent does. A thread that the agent's own
                    // end does not wait for.
                    std::thread::spawn(move || child.wait());
                    return Ok(());
                }
                Err(why) => last = why,
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("{} ended at once: {status}", program.display()));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(format!("the egress proxy does not answer: {last}"))
    }

    fn prepare(&self) -> std::io::Result<std::fs::File> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        match std::fs::DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Of its last start only, so that it stays small.
        std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(self.folder.join("log"))
    }
}

/// Whom the proxy becomes when root starts it: the account of its name where the host has
/// one, else a number of its own in a range that no distribution and no service gives
/// away. None where the agent is not root: then the proxy is its user.
fn user(instance: &Instance) -> Option<u32> {
    if !usage::is_root() {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Some(account(&accounts).unwrap_or_else(|| {
        let mut hash = Fnv::default();
        hash.write(instance.as_str().as_bytes());
        FIRST_USER + u32::try_from(hash.0 % u64::from(USERS)).unwrap_or(0)
    }))
}

fn account(accounts: &str) -> Option<u32> {
    accounts
        .lines()
        .filter_map(|line| line.strip_prefix(PROGRAM)?.strip_prefix(':'))
        .find_map(|rest| rest.split(':').nth(1)?.parse().ok())
        .filter(|user| *user != 0)
}

fn sibling() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("own program: {error}"))?;
    let path = own.with_file_name(PROGRAM);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{} is missing: install {PROGRAM} beside longshore-agent",
            path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_account_is_taken_where_there_is_one_and_never_roots() {
        let accounts = "root:x:0:0::/:/bin/sh\nlongshore-egress:x:997:996::/:/bin/false\n";
        assert_eq!(account(accounts), Some(997));
        assert_eq!(account("longshore-egress-2:x:5:5::/:\n"), None);
        assert_eq!(account("longshore-egress:x:0:0::/:\n"), None);
    }
}
