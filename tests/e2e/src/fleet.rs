//! The parts of a fleet as processes: simulator, scheduler, agent, each with the settings tests and the demo need.
//!
//! Every part is started as an operator would start it: the same programs, flags and files, nothing that production lacks.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use longshore_client::{Builder, Client};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    binaries::Binaries,
    http::Http,
    process::{Launch, Process},
};

/// Longest a part may take to end after SIGTERM.
pub const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Longest an agent may take to join.
const JOIN_WITHIN: Duration = Duration::from_secs(90);

/// Longest an agent may take to clear its host.
const PURGE_WITHIN: Duration = Duration::from_secs(60);

/// The runner face of the simulator in a network namespace of its own: how sandboxed runners reach it as they reach GitHub.
#[derive(Debug, Clone)]
pub struct RunnerNet {
    /// Name of the network namespace.
    pub namespace: String,
    /// Address of the runner face, inside the namespace.
    pub inside: Ipv4Addr,
    /// Address of the host's end of the pair.
    pub host: Ipv4Addr,
}

/// A running simulator.
#[derive(Debug)]
pub struct Sim {
    /// The process.
    pub process: Process,
    /// REST and control API.
    pub http: Http,
}

impl Sim {
    /// Starts github-sim; without `net` its runner face is on loopback, where no container reaches it.
    pub async fn start(
        binaries: &Binaries,
        folder: &Path,
        net: Option<&RunnerNet>,
        seed: u64,
        more: &[&str],
    ) -> Result<Self> {
        let mut launch = Launch::new(
            "github-sim",
            binaries.program("github-sim")?,
            folder.join("github-sim.log"),
        )
        .flag("--listen", "127.0.0.1:0")
        .flag("--seed", seed.to_string());
        if let Some(net) = net {
            launch = launch
                .flag("--runner-netns", &net.namespace)
                .flag("--runner-address", net.inside.to_string())
                .flag("--runner-host-address", net.host.to_string());
        }
        for argument in more {
            launch = launch.arg(argument);
        }
        let process = launch.ready().await?;
        let http = Http::new(process.said_text("rest")?);
        Ok(Self { process, http })
    }

    /// Address for the scheduler's `--github-api-url`.
    pub fn url(&self) -> &str {
        self.http.base()
    }

    /// POST to the control API.
    pub async fn control(&self, path: &str, body: Value) -> Result<Value> {
        self.http.post(&format!("/_sim/{path}"), &body).await
    }

    /// GET from the control API.
    pub async fn look(&self, path: &str) -> Result<Value> {
        self.http.get(&format!("/_sim/{path}")).await
    }

    /// Waits in the simulator for a condition of its control API; a state that did not come is an error that shows what there was.
    pub async fn wait_for(&self, until: Value, within: Duration) -> Result<Value> {
        let body =
            serde_json::json!({"until": until, "timeout_ms": u64::try_from(within.as_millis())?});
        let (status, answer) = self
            .http
            .raw(
                hyper::Method::POST,
                "/_sim/wait",
                &[("content-type", "application/json")],
                body.to_string().into(),
                within + Duration::from_secs(10),
            )
            .await?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        if !status.is_success() {
            bail!("waited {within:?} for {until}: {status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }
}

/// Settings of a scheduler. Everything absent keeps the program's default.
#[derive(Debug, Clone, Default)]
pub struct SchedulerSettings {
    /// Folder of the database and the secrets.
    pub state: PathBuf,
    /// `--github-api-url`.
    pub github_url: Option<String>,
    /// A file that holds the token.
    pub token_file: Option<PathBuf>,
    /// GitHub App: id and key file.
    pub app: Option<(String, PathBuf)>,
    /// A file that holds the webhook secret.
    pub webhook_secret_file: Option<PathBuf>,
    /// Owners to watch.
    pub owners: Vec<String>,
    /// Image of pools that name none.
    pub image: Option<String>,
    /// Configuration file.
    pub config: Option<PathBuf>,
    /// Addresses of a scheduler that is started again, so that agents and webhooks find it. Absent: any free port.
    pub listen: Option<Listen>,
    /// Further flags.
    pub more: Vec<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
}

/// The three addresses of a scheduler, `127.0.0.1:port`.
#[derive(Debug, Clone)]
pub struct Listen {
    /// People and programs.
    pub api: String,
    /// Agents.
    pub nodes: String,
    /// GitHub.
    pub webhooks: String,
}

/// A running scheduler.
#[derive(Debug)]
pub struct Scheduler {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub listen: Listen,
    /// Holds a token of role admin.
    pub token_file: PathBuf,
}

impl Scheduler {
    /// Starts longshore-scheduler.
    pub async fn start(
        binaries: &Binaries,
        folder: &Path,
        settings: &SchedulerSettings,
    ) -> Result<Self> {
        let (api, nodes, webhooks) = settings
            .listen
            .as_ref()
            .map_or(("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"), |l| {
                (l.api.as_str(), l.nodes.as_str(), l.webhooks.as_str())
            });
        let mut launch = Launch::new(
            "longshore-scheduler",
            binaries.program("longshore-scheduler")?,
            folder.join("scheduler.log"),
        )
        .flag("--state-dir", &settings.state)
        .flag("--api-listen", api)
        .flag("--node-listen", nodes)
        .flag("--webhook-listen", webhooks)
        // What is meant for another program of the caller must not slip in.
        .without_env("GITHUB_TOKEN");
        if let Some(file) = &settings.config {
            launch = launch.flag("--config", file);
        }
        if let Some(url) = &settings.github_url {
            launch = launch.flag("--github-api-url", url);
        }
        if let Some(file) = &settings.token_file {
            launch = launch.flag("--github-token-file", file);
        }
        if let Some((id, key)) = &settings.app {
            launch = launch
                .flag("--github-app-id", id)
                .flag("--github-app-key-file", key);
        }
        if let Some(file) = &settings.webhook_secret_file {
            launch = launch.flag("--webhook-secret-file", file);
        }
        for owner in &settings.owners {
            launch = launch.flag("--owner", owner);
        }
        if let Some(image) = &settings.image {
            launch = launch.flag("--image", image);
        }
        for argument in &settings.more {
            launch = launch.arg(argument);
        }
        for (name, value) in &settings.env {
            launch = launch.env(name, value);
        }
        let process = launch.ready().await?;
        let listen = Listen {
            api: process.said_text("api")?,
            nodes: process.said_text("nodes")?,
            webhooks: process.said_text("webhooks")?,
        };
        let token_file = PathBuf::from(process.said_text("token_file")?);
        Ok(Self {
            process,
            listen,
            token_file,
        })
    }

    /// A client of its API.
    pub fn client(&self) -> Result<Client> {
        let token = std::fs::read_to_string(&self.token_file)
            .with_context(|| format!("read {}", self.token_file.display()))?;
        Ok(Builder::new(self.api_url()).token(token.into()).build()?)
    }

    /// Runs the command line client against it.
    pub async fn cli(&self, binaries: &Binaries, arguments: &[&str]) -> Result<Output> {
        cli(binaries, &self.api_url(), &self.token_file, arguments).await
    }

    /// Its API and what opens it.
    pub fn door(&self) -> Door {
        Door {
            url: self.api_url(),
            token_file: self.token_file.clone(),
        }
    }

    /// Base address of its API.
    pub fn api_url(&self) -> String {
        format!("http://{}", self.listen.api)
    }

    /// Where agents attach.
    pub fn nodes_url(&self) -> String {
        format!("https://{}", self.listen.nodes)
    }

    /// Where GitHub sends webhooks.
    pub fn webhook_url(&self) -> String {
        format!("http://{}/webhooks/github", self.listen.webhooks)
    }
}

/// Settings of an agent. Everything absent keeps the program's default.
#[derive(Debug, Clone, Default)]
pub struct AgentSettings {
    /// The node's name.
    pub node: String,
    /// Folder of its state.
    pub state: PathBuf,
    /// `https://127.0.0.1:port` of the scheduler's node listener.
    pub scheduler: String,
    /// Where a join token is asked for when the node has not joined yet.
    pub api: Option<Door>,
    /// Socket of the container engine.
    pub engine_socket: Option<PathBuf>,
    /// Address range of its slots.
    pub slots_cidr: Option<String>,
    /// Most runners at once.
    pub max_runners: Option<u32>,
    /// CPUs to offer.
    pub cpu: Option<String>,
    /// Memory to offer.
    pub memory: Option<String>,
    /// Configuration file.
    pub config: Option<PathBuf>,
    /// Further flags.
    pub more: Vec<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
    /// Words put before the program, such as `nsenter --net=..`, for an agent that lives in another namespace.
    pub inside: Vec<String>,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub process: Process,
}

impl Agent {
    /// Starts longshore-agent and waits until it is attached to the scheduler.
    pub async fn start(
        binaries: &Binaries,
        folder: &Path,
        settings: &AgentSettings,
    ) -> Result<Self> {
        let mut launch = Self::launch(binaries, folder, settings)?;
        let joined = settings.state.join("identity/identity.json").exists();
        if let (Some(api), false) = (&settings.api, joined) {
            let file = settings.state.with_extension("join-token");
            let token = api.join_token(binaries, &settings.node).await?;
            secret_file(&file, &token)?;
            launch = launch.flag("--join-token-file", file);
        }
        let process = launch.ready().await?;
        Ok(Self { process })
    }

    /// How it would be started.
    pub fn launch(binaries: &Binaries, folder: &Path, settings: &AgentSettings) -> Result<Launch> {
        let name = format!("longshore-agent {}", settings.node);
        let log = folder.join(format!("agent-{}.log", settings.node));
        let mut launch = settings.program(binaries, name, log)?;
        launch = launch
            .flag("--node", &settings.node)
            .flag("--scheduler", &settings.scheduler)
            .flag("--state-dir", &settings.state);
        if let Some(file) = &settings.config {
            launch = launch.flag("--config", file);
        }
        if let Some(socket) = &settings.engine_socket {
            launch = launch.flag("--engine-socket", socket);
        }
        if let Some(range) = &settings.slots_cidr {
            launch = launch.flag("--slots-cidr", range);
        }
        if let Some(n) = settings.max_runners {
            launch = launch.flag("--max-runners", n.to_string());
        }
        if let Some(cpu) = &settings.cpu {
            launch = launch.flag("--cpu", cpu);
        }
        if let Some(memory) = &settings.memory {
            launch = launch.flag("--memory", memory);
        }
        for argument in &settings.more {
            launch = launch.arg(argument);
        }
        for (name, value) in &settings.env {
            launch = launch.env(name, value);
        }
        Ok(launch)
    }
}

impl AgentSettings {
    /// The agent's program, in the namespaces it lives in.
    fn program(&self, binaries: &Binaries, name: String, log: PathBuf) -> Result<Launch> {
        let program = binaries.program("longshore-agent")?;
        let Some((first, rest)) = self.inside.split_first() else {
            return Ok(Launch::new(name, program, log));
        };
        let launch = Launch::new(name, first, log);
        Ok(rest.iter().fold(launch, Launch::arg).arg(program))
    }

    /// Joins with this token and ends, as an operator would do it by hand: whether it worked, and what was said.
    pub async fn join(
        &self,
        binaries: &Binaries,
        folder: &Path,
        token: &str,
    ) -> Result<(bool, String)> {
        let file = self.state.with_extension("join-token");
        secret_file(&file, token)?;
        let name = format!("longshore-agent join {}", self.node);
        let log = folder.join(format!("join-{}.log", self.node));
        let mut join = self
            .program(binaries, name, log)?
            .arg("join")
            .flag("--node", &self.node)
            .flag("--scheduler", &self.scheduler)
            .flag("--join-token-file", file)
            .flag("--state-dir", &self.state)
            .spawn()?;
        let status = join.wait(JOIN_WITHIN).await?;
        Ok((status.success(), join.tail()))
    }

    /// Takes a stopped agent off its host, as an operator would: what it made beforehand goes with it.
    pub async fn purge(&self, binaries: &Binaries, folder: &Path) -> Result<()> {
        let name = format!("longshore-agent purge {}", self.node);
        let log = folder.join(format!("purge-{}.log", self.node));
        let mut launch = self
            .program(binaries, name, log)?
            .arg("purge")
            .flag("--node", &self.node)
            .flag("--state-dir", &self.state);
        if let Some(socket) = &self.engine_socket {
            launch = launch.flag("--engine-socket", socket);
        }
        let mut purge = launch.spawn()?;
        let status = purge.wait(PURGE_WITHIN).await?;
        if !status.success() {
            bail!("{} failed ({status}):\n{}", purge.name(), purge.tail());
        }
        Ok(())
    }
}

/// Runs the command line client against a scheduler.
pub async fn cli(
    binaries: &Binaries,
    api_url: &str,
    token_file: &Path,
    arguments: &[&str],
) -> Result<Output> {
    let call = Command::new(binaries.program("longshore")?)
        .arg("--scheduler")
        .arg(api_url)
        .arg("--token-file")
        .arg(token_file)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(Duration::from_secs(30), call)
        .await
        .with_context(|| format!("longshore {} did not end", arguments.join(" ")))?
        .context("run longshore")
}

/// The API of a scheduler and what opens it.
#[derive(Debug, Clone)]
pub struct Door {
    /// Base address.
    pub url: String,
    /// Holds a token of role admin.
    pub token_file: PathBuf,
}

impl Door {
    /// A token that lets a host join under this name.
    pub async fn join_token(&self, binaries: &Binaries, node: &str) -> Result<String> {
        let made = cli(
            binaries,
            &self.url,
            &self.token_file,
            &["node", "join-token", "--node", node, "-o", "name"],
        )
        .await?;
        if !made.status.success() {
            bail!(
                "no join token for {node}: {}",
                String::from_utf8_lossy(&made.stderr)
            );
        }
        Ok(String::from_utf8(made.stdout)?.trim().to_owned())
    }
}

/// Writes a secret to a file only its owner can read.
pub fn secret_file(path: &Path, secret: &str) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(secret.as_bytes())?;
    Ok(())
}
