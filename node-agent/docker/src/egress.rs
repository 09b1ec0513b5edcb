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
use agent_core::model::{Condition, ErrorReason};
use agent_core::runtime::RuntimeError;
use agent_egress::control::{Answer, Open, Request, call};
use tracing::{info, warn};

use crate::runtime::lock;

/// The program beside the agent's own.
const PROGRAM: &str = "longshore-egress";
const STARTS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(crate) struct Egress {
    /// Of its own, closed to everybody else: the socket and the program's log.
    folder: PathBuf,
    program: Result<PathBuf, String>,
    /// Slots that have to be open, by slot.
    wanted: Mutex<BTreeMap<u32, Open>>,
    /// Those of them whose proxy died and was started again.
    recounted: Mutex<BTreeSet<u32>>,
    problem: Mutex<Option<String>>,
    /// One at a time starts it.
    starting: tokio::sync::Mutex<()>,
}

impl Egress {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            folder: state_dir.join("egress"),
            program: sibling(),
            wanted: Mutex::default(),
            recounted: Mutex::default(),
            problem: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
        }
    }

    /// Where the program is, or why this node offers no allow-list.
    pub(crate) fn program(&self) -> Result<&Path, String> {
        self.program.as_deref().map_err(Clone::clone)
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Opens a slot's proxy; it stays open until `close`, whatever becomes of the agent.
    pub(crate) async fn open(&self, slot: u32, open: Open) -> Result<(), RuntimeError> {
        let opened = self.tell(&Request::Open(open.clone())).await;
        opened.map_err(|detail| RuntimeError {
            reason: ErrorReason::StartFailed,
            detail,
        })?;
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
            next_step: format!(
                "look into {} and see that {PROGRAM} lies beside longshore-agent",
                self.folder.join("log").display()
            ),
            image: String::new(),
        })
    }

    /// Ends the proxy. Only for a node that is given up.
    pub(crate) async fn stop(&self) {
        lock(&self.wanted).clear();
        // Nobody there is what is wanted.
        let _ = call(&self.socket(), &Request::Stop).await;
        let begin = Instant::now();
        while call(&self.socket(), &Request::List).await.is_ok() && begin.elapsed() < STARTS_WITHIN
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
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
        let program = self.program()?;
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
