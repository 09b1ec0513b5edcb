//! One fleet of its own for each test, and the proof that it left nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bollard::Docker;
use longshore_client::{Client, v1};
use longshore_e2e::binaries::Binaries;
use longshore_e2e::demo::gather::rows;
use longshore_e2e::demo::host_state::{self, Difference, HostState, Marks};
use longshore_e2e::demo::identity::{self, RUN_VARIABLE};
use longshore_e2e::fleet::{
    Agent, AgentSettings, Listen, STOP_WITHIN, Scheduler, SchedulerSettings, Sim, secret_file,
};
use longshore_e2e::process::Process;
use longshore_e2e::wait;
use serde_json::{Value, json};

use crate::image;

pub(crate) mod node;
mod own_engine;

use node::{Node, Plan, quietly, usual_engine};
use own_engine::OwnEngine;
pub(crate) use own_engine::{ArmEngine, Host, LIVE_RESTORE, PLAIN};

pub(crate) const ENGINE_SOCKET: &str = "/var/run/docker.sock";
/// Runner group that serves public repositories too; made when there are any.
pub(crate) const GROUP: &str = "open to the public";
pub(crate) const WEBHOOK_SECRET: &str = "a secret of the tests";

/// One job from the push to its end, on a busy machine of two cores.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// What a test wants to be different.
#[derive(Default)]
pub(crate) struct Settings {
    /// Repositories, `owner/name`; absent: `acme/web`.
    pub(crate) repos: Vec<&'static str>,
    /// Public ones among them.
    pub(crate) public: Vec<&'static str>,
    /// Image of the runners; absent: the stand-in's.
    pub(crate) image: Option<String>,
    /// Further flags of the scheduler.
    pub(crate) scheduler: Vec<&'static str>,
    /// Without webhooks: what is learnt is swept.
    pub(crate) no_webhooks: bool,
    /// The most runners of each agent; absent: one agent without a limit of its own.
    pub(crate) agents: Vec<u32>,
    /// After them come agents on hosts of their own.
    pub(crate) hosts: Vec<Host>,
    /// The agents speak to the engine here; absent: at its usual socket.
    pub(crate) engine_socket: Option<PathBuf>,
    /// Further environment of the agents.
    pub(crate) agent_env: Vec<(String, String)>,
    /// The scheduler starts over this database.
    pub(crate) store: Option<&'static [u8]>,
    /// Where scheduler and agents send their spans.
    pub(crate) otlp: Option<String>,
    /// A GitHub App is there besides the token, and comes before it.
    pub(crate) app: bool,
}

/// A run that was pushed.
pub(crate) struct Pushed {
    pub(crate) run: u64,
    pub(crate) jobs: Vec<u64>,
}

/// A fleet: simulator, scheduler, agents.
pub(crate) struct Rig {
    pub(crate) binaries: Binaries,
    folder: tempfile::TempDir,
    engine: Docker,
    before: HostState,
    marks: Marks,
    pub(crate) sim: Sim,
    pub(crate) scheduler: Scheduler,
    scheduler_settings: SchedulerSettings,
    nodes: Vec<Node>,
    namespace: String,
    done: bool,
}

/// The labels of a job that this host can run.
pub(crate) fn native() -> Vec<&'static str> {
    vec!["self-hosted", "linux", own_arch()]
}

/// The labels of a job for the architecture that this host lacks.
pub(crate) fn foreign() -> Vec<&'static str> {
    vec!["self-hosted", "linux", other_arch()]
}

pub(crate) fn own_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "x64"
    }
}

pub(crate) fn other_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "x64"
    } else {
        "arm64"
    }
}

/// A job for [`Rig::push`].
pub(crate) fn job(name: &str, labels: &[&str], steps: &[&str]) -> Value {
    json!({"name": name, "labels": labels, "steps": steps})
}

impl Rig {
    pub(crate) async fn start(settings: Settings) -> Rig {
        let binaries = Binaries::find().unwrap();
        let image = match &settings.image {
            Some(image) => image.clone(),
            None => tokio::task::spawn_blocking(image::runner)
                .await
                .unwrap()
                .to_owned(),
        };
        let engine = usual_engine().await;
        let claim = identity::claim().unwrap();
        let before = host_state::look(&engine).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("logs");
        let sim = Sim::start(
            &binaries,
            &logs,
            Some(&claim.identity.runner_net()),
            1,
            &["--no-limits"],
        )
        .await
        .unwrap();
        let token = world(&sim, &settings).await;
        let token_file = folder.path().join("secrets/token");
        let webhook_file = folder.path().join("secrets/webhook");
        secret_file(&token_file, &token).unwrap();
        secret_file(&webhook_file, WEBHOOK_SECRET).unwrap();
        let app = match settings.app {
            true => Some(app(&sim, &settings, &folder.path().join("secrets/app-key")).await),
            false => None,
        };
        // Small runners, so that a machine of two cores runs several at once;
        // short times, so that nobody waits for idle ones.
        let mut more: Vec<String> = ["--default-cpu", "0.25", "--default-memory", "256m"]
            .map(str::to_owned)
            .to_vec();
        if !settings.scheduler.contains(&"--idle-timeout") {
            more.extend(["--idle-timeout", "5s"].map(str::to_owned));
        }
        if !settings.scheduler.contains(&"--interval") {
            more.extend(["--interval", "3s"].map(str::to_owned));
        }
        more.extend(settings.scheduler.iter().map(|s| (*s).to_owned()));
        let otlp: Vec<String> = settings
            .otlp
            .iter()
            .flat_map(|endpoint| ["--otlp-endpoint".to_owned(), endpoint.clone()])
            .collect();
        more.extend(otlp.iter().cloned());
        // Other hosts reach the scheduler at an address of this one.
        let listen = (!settings.hosts.is_empty()).then(|| Listen {
            api: "127.0.0.1:0".to_owned(),
            nodes: format!("{}:0", claim.identity.host),
            webhooks: "127.0.0.1:0".to_owned(),
        });
        let scheduler_settings = SchedulerSettings {
            state: folder.path().join("scheduler"),
            github_url: Some(sim.url().to_owned()),
            token_file: Some(token_file),
            app,
            webhook_secret_file: Some(webhook_file),
            owners: owners(&settings),
            image: Some(image.clone()),
            more,
            listen,
            env: vec![(RUN_VARIABLE.to_owned(), claim.identity.run.clone())],
            ..SchedulerSettings::default()
        };
        if let Some(store) = settings.store {
            std::fs::create_dir(&scheduler_settings.state).unwrap();
            std::fs::write(scheduler_settings.state.join("longshore.db"), store).unwrap();
        }
        let scheduler = Scheduler::start(&binaries, &logs, &scheduler_settings)
            .await
            .unwrap();
        // Once started, it is started again at the same addresses.
        let scheduler_settings = SchedulerSettings {
            listen: Some(scheduler.listen.clone()),
            ..scheduler_settings
        };
        if !settings.no_webhooks {
            for owner in owners(&settings) {
                sim.control(
                    "hooks",
                    json!({"organization": owner, "url": scheduler.webhook_url(), "secret": WEBHOOK_SECRET,
                           "events": ["workflow_job", "workflow_run"]}),
                )
                .await
                .unwrap();
            }
        }
        let id = claim.identity.clone();
        let marks = Marks {
            ours: BTreeSet::from([
                id.namespace.clone(),
                format!("{RUN_VARIABLE}={}", id.run),
                id.host.to_string(),
            ]),
        };
        let mut places: Vec<(Option<u32>, Option<OwnEngine>, _)> = settings
            .agents
            .iter()
            .map(|most| (Some(*most), None, settings.agent_env.clone()))
            .collect();
        for (at, host) in settings.hosts.iter().enumerate() {
            let own = OwnEngine::start(host, at, &image, &id.namespace).await;
            let env = settings.agent_env.iter().chain(&host.env).cloned();
            places.push((host.max_runners, Some(own), env.collect()));
        }
        if places.is_empty() {
            places.push((None, None, settings.agent_env.clone()));
        }
        let mut claims = vec![claim];
        while claims.len() < places.len() {
            claims.push(identity::claim().unwrap());
        }
        let mut nodes = Vec::new();
        for (claim, (max_runners, own, env)) in claims.into_iter().zip(places) {
            let plan = Plan {
                claim,
                own,
                max_runners,
                run: &id.run,
                more: otlp.clone(),
                env,
                socket: settings.engine_socket.clone(),
            };
            nodes.push(Node::start(&binaries, folder.path(), &scheduler, plan).await);
        }
        let rig = Rig {
            binaries,
            folder,
            engine,
            before,
            marks,
            sim,
            scheduler,
            scheduler_settings,
            nodes,
            namespace: id.namespace,
            done: false,
        };
        rig.nodes_are_known().await;
        rig
    }

    /// An attached node is of use once its first report has arrived.
    async fn nodes_are_known(&self) {
        let client = self.client();
        wait::until("the nodes to be ready", SOON, || async {
            let request = v1::ListNodesRequest::default();
            let answer = client
                .list_nodes(request)
                .await
                .map_err(|e| e.to_string())?;
            let known = |n: &v1::Node| {
                n.state == "ready" && n.capability.as_ref().is_some_and(|c| !c.arch.is_empty())
            };
            let ready = answer.nodes.iter().filter(|n| known(n)).count();
            match ready == self.nodes.len() {
                true => Ok(()),
                false => Err(format!("{:?}", answer.nodes)),
            }
        })
        .await
        .unwrap();
    }

    /// Everything that the programs of this fleet write lies below it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// Name of the first node.
    pub(crate) fn node(&self) -> &str {
        self.nodes[0].name()
    }

    pub(crate) fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.name().to_owned()).collect()
    }

    pub(crate) fn client(&self) -> Client {
        self.scheduler.client().unwrap()
    }

    /// Pushes one run.
    pub(crate) async fn push(&self, repo: &str, jobs: Vec<Value>) -> Pushed {
        self.push_run(json!({"repository": repo, "jobs": jobs}))
            .await
    }

    pub(crate) async fn push_run(&self, run: Value) -> Pushed {
        let made = self.sim.control("runs", run).await.unwrap();
        let jobs = made["jobs"].as_array().expect("jobs of the run");
        Pushed {
            run: made["run_id"].as_u64().expect("a run id"),
            jobs: jobs
                .iter()
                .map(|j| j["id"].as_u64().expect("a job id"))
                .collect(),
        }
    }

    pub(crate) async fn cancel(&self, run: u64) {
        self.sim
            .control(&format!("runs/{run}/cancel"), json!({}))
            .await
            .unwrap();
    }

    /// A job as GitHub sees it.
    pub(crate) async fn job(&self, id: u64) -> Value {
        self.sim.look(&format!("jobs/{id}")).await.unwrap()
    }

    /// Waits until GitHub sees the job in this state or a later one.
    pub(crate) async fn job_is(&mut self, id: u64, status: &str) -> Value {
        self.wait_for(json!({"job": id, "status": status}), SOON)
            .await;
        self.job(id).await
    }

    /// Waits for a condition at GitHub; a failure shows the programs' last words.
    pub(crate) async fn wait_for(&mut self, until: Value, within: Duration) {
        if let Err(error) = self.sim.wait_for(until, within).await {
            self.scheduler.process.must_run().unwrap();
            let mut tails = self.scheduler.process.tail();
            for node in &mut self.nodes {
                node.agent.process.must_run().unwrap();
                tails.push('\n');
                tails.push_str(&node.agent.process.tail());
            }
            panic!("{error:#}\n{tails}");
        }
    }

    /// Waits until these jobs ended, and checks how.
    pub(crate) async fn all_end(&mut self, jobs: &[u64], conclusion: &str, within: Duration) {
        for id in jobs {
            self.wait_for(json!({"job": id, "status": "completed"}), within)
                .await;
            let job = self.job(*id).await;
            assert_eq!(job["conclusion"], conclusion, "{job:#}");
        }
    }

    /// A job as the fleet sees it, once it has heard that it ended. GitHub
    /// says so by a webhook, so the fleet knows a moment later.
    pub(crate) async fn known_end(&self, id: u64) -> Value {
        let client = self.client();
        wait::until("the fleet to know the job's end", SOON, || async {
            let request = v1::GetJobRequest { id };
            match client.get_job(request).await {
                Ok(v1::GetJobResponse { job: Some(job) }) if job.state == "completed" => Ok(()),
                Ok(other) => Err(format!("{other:?}")),
                Err(e) => Err(e.to_string()),
            }
        })
        .await
        .unwrap();
        self.cli_json(&["job", "describe", &id.to_string()]).await
    }

    /// Runners that were ever registered.
    pub(crate) async fn registrations_ever(&self) -> usize {
        let history = self.sim.look("runners/history").await.unwrap();
        rows(&history).len()
    }

    /// Runs the command line client; it must succeed. Its output.
    pub(crate) async fn cli_out(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) async fn cli_json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["-o", "json"]].concat();
        let text = self.cli_out(&arguments).await;
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn cli(&self, arguments: &[&str]) -> std::process::Output {
        self.scheduler.cli(&self.binaries, arguments).await.unwrap()
    }

    /// The scheduler dies as by a power cut and comes back over its store.
    pub(crate) async fn crash_scheduler(&mut self) {
        self.scheduler.process.kill9().await.unwrap();
        self.start_scheduler().await;
    }

    /// The scheduler is stopped and started as for an upgrade.
    pub(crate) async fn restart_scheduler(&mut self) {
        let status = self.scheduler.process.terminate(STOP_WITHIN).await.unwrap();
        assert!(
            status.success(),
            "{status}: {}",
            self.scheduler.process.tail()
        );
        self.start_scheduler().await;
    }

    async fn start_scheduler(&mut self) {
        self.scheduler = Scheduler::start(&self.binaries, &self.logs(), &self.scheduler_settings)
            .await
            .unwrap();
    }

    /// The first agent dies as by a power cut and comes back; its containers live on.
    pub(crate) async fn crash_agent(&mut self) {
        let logs = self.logs();
        let node = &mut self.nodes[0];
        node.agent.process.kill9().await.unwrap();
        node.agent = Agent::start(&self.binaries, &logs, &node.settings)
            .await
            .unwrap();
    }

    /// Both die at the same moment and come back at the same moment.
    pub(crate) async fn crash_both(&mut self) {
        let (a, b) = tokio::join!(
            self.scheduler.process.kill9(),
            self.nodes[0].agent.process.kill9()
        );
        a.and(b).unwrap();
        let launch = Agent::launch(&self.binaries, &self.logs(), &self.nodes[0].settings).unwrap();
        // The agent is ready only when attached, so neither may wait for the other.
        let (process, ()) = tokio::join!(launch.ready(), self.start_scheduler());
        self.nodes[0].agent.process = process.unwrap();
    }

    /// The agent of a node is stopped and started as for an upgrade; its jobs run on.
    pub(crate) async fn upgrade_agent(&mut self, node: &str) {
        let logs = self.logs();
        let at = self.place(node);
        ends_well(&mut self.nodes[at].agent.process).await;
        self.nodes[at].agent = Agent::start(&self.binaries, &logs, &self.nodes[at].settings)
            .await
            .unwrap();
    }

    /// Folder of an agent's state.
    pub(crate) fn agent_state(&self, node: &str) -> &Path {
        &self.nodes[self.place(node)].settings.state
    }

    /// The agent is away until its certificate counts no more, is refused, and joins again by
    /// a new token; what it said when it was refused.
    pub(crate) async fn agent_missed_its_renewal(&mut self, node: &str, life: Duration) -> String {
        let (logs, at) = (self.logs(), self.place(node));
        ends_well(&mut self.nodes[at].agent.process).await;
        let pem = std::fs::metadata(self.agent_state(node).join("identity/node.pem"));
        let issued = pem.and_then(|file| file.modified()).unwrap();
        wait::until("the certificate to run out", SOON, || async {
            match issued.elapsed() {
                Ok(age) if age > life => Ok(()),
                age => Err(format!("{age:?}")),
            }
        })
        .await
        .unwrap();
        let settings = self.nodes[at].settings.clone();
        let agent = Agent::launch(&self.binaries, &logs, &settings)
            .unwrap()
            .spawn()
            .unwrap();
        wait::until("the agent to be refused", SOON, || async {
            let told = agent.tail();
            match told.contains("not attached") {
                true => Ok(()),
                false => Err(told),
            }
        })
        .await
        .unwrap();
        // Under the agent that waits: it takes the new identity up by itself.
        let token = self.scheduler.door().join_token(&self.binaries, node).await;
        let joined = settings.join(&self.binaries, &logs, &token.unwrap()).await;
        let (joined, said) = joined.unwrap();
        assert!(joined, "{said}");
        let told = agent.tail();
        self.nodes[at].agent.process = agent;
        told
    }

    /// What a host is told that asks this scheduler to join with a token of another one.
    pub(crate) async fn join_with_a_token_of(&self, other: &Rig) -> String {
        let folder = self.folder.path().join("stranger");
        std::fs::create_dir(&folder).unwrap();
        let settings = AgentSettings {
            node: "stranger".to_owned(),
            state: folder.join("agent"),
            scheduler: self.scheduler.nodes_url(),
            ..AgentSettings::default()
        };
        let door = other.scheduler.door();
        let token = door.join_token(&other.binaries, "stranger").await.unwrap();
        let (joined, said) = settings
            .join(&self.binaries, &folder, &token)
            .await
            .unwrap();
        assert!(!joined, "{said}");
        said
    }

    /// Cuts a host of its own off the network, or lets it back.
    pub(crate) fn cut(&self, node: &str, cut: bool) {
        let own = self.nodes[self.place(node)].own.as_ref();
        own.expect("a host of its own").cut(cut);
    }

    /// A host of its own loses its power for good.
    pub(crate) async fn power_off(&mut self, node: &str) {
        let mut node = self.nodes.remove(self.place(node));
        let own = node.own.take().expect("a host of its own");
        own.power_off().await;
        node.agent.process.kill9().await.unwrap();
    }

    fn place(&self, node: &str) -> usize {
        let mut nodes = self.nodes.iter();
        nodes
            .position(|n| n.name() == node)
            .expect("a node of ours")
    }

    /// The engine of the last node dies under its containers and comes back.
    pub(crate) fn crash_own_engine(&mut self) {
        let own = self.nodes.last_mut().and_then(|node| node.own.as_mut());
        own.expect("the last node has an engine of its own").crash();
    }

    /// Asks the nodes' engines what their things are known by.
    async fn learn_marks(&mut self) {
        for node in &self.nodes {
            self.marks.ours.extend(node.marks().await);
        }
    }

    /// Lets a node run empty.
    pub(crate) async fn drain(&self, node: &str) {
        let client = self.client();
        let request = v1::DrainNodeRequest {
            name: node.to_owned(),
            deadline: None,
            request_id: format!("drain-{node}"),
        };
        client.drain_node(request).await.unwrap();
        wait::until("no runner to be left on the node", SOON, || async {
            let request = v1::ListRunnersRequest {
                node: node.to_owned(),
                ..Default::default()
            };
            let answer = client
                .list_runners(request)
                .await
                .map_err(|e| e.to_string())?;
            match answer.runners.is_empty() {
                true => Ok(()),
                false => Err(format!("{:?}", answer.runners)),
            }
        })
        .await
        .unwrap();
    }

    /// Lets the nodes run empty, stops everything in order, and shows that
    /// nothing is left: on the hosts and at GitHub.
    pub(crate) async fn finish(mut self) {
        self.stop_nodes().await;
        assert_eq!(self.registrations().await, Vec::<String>::new());
        self.stop_the_rest().await;
        assert_eq!(self.left().await, Difference::default(), "left behind");
    }

    /// The nodes run empty, their agents end and take their things along.
    pub(crate) async fn stop_nodes(&mut self) {
        self.learn_marks().await;
        for node in self.node_names() {
            self.drain(&node).await;
        }
        self.wait_for(json!({"runners": 0}), SOON).await;
        let logs = self.logs();
        for node in &mut self.nodes {
            ends_well(&mut node.agent.process).await;
            let purged = node.settings.purge(&self.binaries, &logs).await;
            purged.unwrap();
        }
        self.nothing_on_own_engines().await;
    }

    pub(crate) async fn stop_the_rest(&mut self) {
        ends_well(&mut self.scheduler.process).await;
        ends_well(&mut self.sim.process).await;
        self.done = true;
    }

    /// What everything of this fleet is known by.
    pub(crate) fn marks(&self) -> &BTreeSet<String> {
        &self.marks.ours
    }

    /// Registrations that GitHub still has, by name.
    pub(crate) async fn registrations(&self) -> Vec<String> {
        let runners = rows(&self.sim.look("runners").await.unwrap());
        let names = runners.iter().filter_map(|r| r["name"].as_str());
        names.map(str::to_owned).collect()
    }

    /// What this fleet left on this host.
    pub(crate) async fn left(&self) -> Difference {
        let after = host_state::look(&self.engine).await.unwrap();
        // Other tests run beside this one: only what carries our marks counts.
        Difference {
            missing: Vec::new(),
            ..host_state::difference(&self.before, &after, &self.marks, true)
        }
    }

    /// Where nobody else is, everything counts. Looked at while the simulator still holds its end of the pair.
    async fn nothing_on_own_engines(&self) {
        for own in self.nodes.iter().filter_map(|node| node.own.as_ref()) {
            let left = Difference {
                processes: Vec::new(),
                ..host_state::difference(own.before(), &own.look().await, &self.marks, false)
            };
            assert_eq!(left, Difference::default(), "left behind on its own engine");
        }
    }
}

async fn ends_well(process: &mut Process) {
    let status = process.terminate(STOP_WITHIN).await.unwrap();
    assert!(status.success(), "{status}: {}", process.tail());
}

/// A failed test leaves nothing either, as far as that can still be done.
impl Drop for Rig {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let folder = self.folder.path().to_owned();
        eprintln!(
            "the logs of the failed test are copied to {}",
            keep(&folder).display()
        );
        let _ = self.scheduler.process.signal(libc::SIGKILL);
        let _ = self.sim.process.signal(libc::SIGTERM);
        for node in &self.nodes {
            node.abandon(&self.binaries);
        }
        quietly(Command::new("ip").args(["netns", "del", &self.namespace]));
    }
}

/// Copies the programs' logs out of the folder that goes away.
fn keep(folder: &Path) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(
        folder
            .file_name()
            .map_or_else(|| "logs".into(), std::ffi::OsStr::to_owned),
    );
    let _ = std::fs::create_dir_all(&place);
    if let Ok(logs) = std::fs::read_dir(folder.join("logs")) {
        for log in logs.flatten() {
            let _ = std::fs::copy(log.path(), place.join(log.file_name()));
        }
    }
    place
}

fn repos(settings: &Settings) -> Vec<&'static str> {
    match settings.repos.is_empty() {
        true => vec!["acme/web"],
        false => settings.repos.clone(),
    }
}

pub(crate) fn owners(settings: &Settings) -> Vec<String> {
    let mut owners: Vec<_> = repos(settings)
        .iter()
        .filter_map(|r| r.split_once('/'))
        .map(|(owner, _)| owner.to_owned())
        .collect();
    owners.sort();
    owners.dedup();
    owners
}

/// Organisations, their repositories and a token that may do everything there.
pub(crate) async fn world(sim: &Sim, settings: &Settings) -> String {
    let make =
        |what: &'static str, body: Value| async move { sim.control(what, body).await.unwrap() };
    make("owners", json!({"login": "mona", "kind": "user"})).await;
    for owner in owners(settings) {
        let members = json!({"mona": "admin"});
        make(
            "owners",
            json!({"login": owner, "kind": "organization", "members": members}),
        )
        .await;
    }
    for repo in repos(settings) {
        let (owner, name) = repo.split_once('/').expect("owner/name");
        let private = !settings.public.contains(&repo);
        make(
            "repos",
            json!({"owner": owner, "name": name, "private": private}),
        )
        .await;
    }
    // GitHub's default group serves no public repository.
    if !settings.public.is_empty() {
        for owner in owners(settings) {
            make(
                "groups",
                json!({"organization": owner, "name": GROUP, "visibility": "all",
                       "allows_public_repositories": true}),
            )
            .await;
        }
    }
    let scopes = json!(["repo", "admin:org"]);
    let token = make("tokens", json!({"login": "mona", "scopes": scopes})).await;
    token["token"].as_str().expect("a token").to_owned()
}

/// An App that may do everything that a fleet does, installed at every owner: its id and its key.
async fn app(sim: &Sim, settings: &Settings, key: &Path) -> (String, PathBuf) {
    let permissions = json!({"actions": "read", "metadata": "read", "administration": "write",
                             "organization_self_hosted_runners": "write"});
    let app = sim
        .control(
            "apps",
            json!({"slug": "longshore", "permissions": permissions, "events": ["workflow_job"]}),
        )
        .await
        .unwrap();
    for owner in owners(settings) {
        sim.control(
            "installations",
            json!({"app_id": app["id"], "account": owner, "repositories": null}),
        )
        .await
        .unwrap();
    }
    secret_file(key, app["private_key"].as_str().expect("a key")).unwrap();
    (app["id"].to_string(), key.to_owned())
}
