//! A scheduler that is only a stream, the agent's process, and an image made offline.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::authority::Authority;
use super::on::{Kind, On};
use agent_core::names::{Instance, label};
use agent_core::sandbox::Profile;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longshore_proto::v1 as pb;
use longshore_proto::v1::attach_request::Message as Up;
use longshore_proto::v1::attach_response::Message as Down;
use longshore_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use longshore_proto::v1::observed_runner::Phase;
pub(crate) use longshore_proto::v1::runner_intent::Desired;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Nothing in these tests takes longer on the slowest machine they run on; an emulated one
/// (`make test-vm`) asks for as many times more.
pub(crate) fn deadline() -> Duration {
    let times = std::env::var("LONGSHORE_TEST_PATIENCE").ok();
    Duration::from_secs(90) * times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

type Downstream = mpsc::Sender<Result<pb::AttachResponse, Status>>;

#[derive(Clone, Default)]
struct Seen {
    attached: u64,
    /// Reports that came, heartbeats among them.
    reports: u64,
    report: pb::NodeReport,
    capability: pb::Capability,
    output: BTreeMap<String, (Vec<u8>, bool)>,
    /// Bytes of output that were let go before they were pushed.
    skipped: BTreeMap<String, u64>,
    /// Answers to questions, by their number.
    checked: BTreeMap<u64, pb::SandboxChecked>,
}

struct Scheduler {
    seen: watch::Sender<Seen>,
    down: Arc<Mutex<Option<Downstream>>>,
    authority: Authority,
}

#[tonic::async_trait]
impl NodeService for Scheduler {
    type AttachStream = ReceiverStream<Result<pb::AttachResponse, Status>>;

    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let answer = self.authority.enroll(request.get_ref());
        Ok(Response::new(answer))
    }

    async fn renew(
        &self,
        _: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        Err(Status::unimplemented("no test lives that long"))
    }

    async fn attach(
        &self,
        request: Request<Streaming<pb::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut up = request.into_inner();
        let (down, stream) = mpsc::channel(64);
        let welcome = pb::Welcome {
            fleet: "test".into(),
            heartbeat: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            lease: Some(prost_types::Duration {
                seconds: 30,
                nanos: 0,
            }),
            ..pb::Welcome::default()
        };
        let first = pb::AttachResponse {
            message: Some(Down::Welcome(welcome)),
        };
        down.send(Ok(first))
            .await
            .map_err(|_| Status::cancelled("gone"))?;
        let seen = self.seen.clone();
        *self.down.lock().unwrap() = Some(down);
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                match message.message {
                    Some(Up::Hello(_)) => seen.send_modify(|seen| {
                        seen.attached += 1;
                        seen.report = pb::NodeReport::default();
                    }),
                    Some(Up::Report(report)) => seen.send_modify(|seen| {
                        // Told when it changes.
                        if let Some(capability) = &report.capability {
                            seen.capability = capability.clone();
                        }
                        seen.report = report;
                        seen.reports += 1;
                    }),
                    Some(Up::Checked(told)) => seen.send_modify(|seen| {
                        seen.checked.insert(told.id, told);
                    }),
                    None => {}
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn push_logs(
        &self,
        request: Request<Streaming<pb::PushLogsRequest>>,
    ) -> Result<Response<pb::PushLogsResponse>, Status> {
        let mut up = request.into_inner();
        while let Some(piece) = up.message().await? {
            self.seen.send_modify(|seen| {
                let (text, end) = seen.output.entry(piece.runner.clone()).or_default();
                text.truncate(piece.offset as usize);
                text.extend_from_slice(&piece.chunk);
                *end = piece.end;
                *seen.skipped.entry(piece.runner).or_default() += piece.skipped;
            });
        }
        Ok(Response::new(pb::PushLogsResponse {}))
    }
}

pub(crate) struct Bench {
    test: String,
    dir: tempfile::TempDir,
    node: String,
    address: String,
    extra: Vec<String>,
    on: On,
    /// Searched for programs before everything else.
    tools: Option<PathBuf>,
    agent: Option<Child>,
    seen: watch::Receiver<Seen>,
    down: Arc<Mutex<Option<Downstream>>>,
    generation: u64,
    wanted: BTreeMap<String, Desired>,
    watched: Vec<pb::LogSubscription>,
    /// Kinds of runner that each intent names.
    expected: Vec<pb::RunnerSpec>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.kill_agent();
        let _ = self.purge();
    }
}

impl Bench {
    pub(crate) async fn start(on: &On, test: &str) -> Self {
        Self::start_with(on, test, &[]).await
    }

    pub(crate) async fn start_with(on: &On, test: &str, extra: &[&str]) -> Self {
        Self::start_in(on, test, tempfile::tempdir().unwrap(), extra).await
    }

    /// The agent and what it starts take these for the host's `/etc/hosts`.
    pub(crate) async fn start_knowing(on: &On, test: &str, hosts: &str, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hosts"), hosts).unwrap();
        Self::start_in(on, test, dir, extra).await
    }

    /// The agent's state and log are in this folder.
    pub(crate) async fn start_in(
        on: &On,
        test: &str,
        dir: tempfile::TempDir,
        extra: &[&str],
    ) -> Self {
        let listener = tokio::net::TcpListener::from_std(on.listen("127.0.0.1:0")).unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let (seen, watcher) = watch::channel(Seen::default());
        let down = Arc::new(Mutex::new(None));
        let authority = Authority::new();
        std::fs::write(dir.path().join("join-token"), authority.join_token()).unwrap();
        let mut server = tonic::transport::Server::builder()
            .tls_config(authority.tls())
            .unwrap();
        let service = NodeServiceServer::new(Scheduler {
            seen,
            down: down.clone(),
            authority,
        });
        tokio::spawn(
            server
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let mut bench = Self {
            test: test.into(),
            dir,
            node: format!("t-{test}-{}", random()),
            address,
            extra: extra.iter().map(|text| (*text).to_owned()).collect(),
            on: on.clone(),
            tools: None,
            agent: None,
            seen: watcher,
            down,
            generation: 0,
            wanted: BTreeMap::new(),
            watched: Vec::new(),
            expected: Vec::new(),
        };
        bench.start_agent().await;
        bench.looked().await;
        bench
    }

    /// Waits until the node's own look at its sandbox is over, so that what it made for
    /// that is gone as well; not where there is no engine.
    pub(crate) async fn looked(&mut self) {
        self.wait("the first look at the sandbox is over", |seen| {
            let down = |condition: &pb::Condition| condition.kind == "engine_down";
            seen.report.conditions.iter().any(down)
                || seen.capability.properties.iter().any(|told| {
                    told.name == "non_root" && !told.evidence.starts_with("not probed yet")
                }) && seen.capability.properties.iter().all(|told| {
                    !told.name.starts_with("runtime_")
                        || !told.evidence.contains("the agent tries after its start")
                })
        })
        .await;
    }

    /// Waits until a look later than the one of this evidence is over; the agent keeps
    /// what it found over its restart, and then looks again.
    pub(crate) async fn looked_since(&mut self, evidence: &str) {
        self.wait("the look after a restart is over", |seen| {
            let told = seen.capability.properties.iter();
            let mut told = told.filter(|told| told.name == "non_root");
            told.any(|told| told.evidence != evidence)
        })
        .await;
    }

    /// Asks the node to look at a sandbox now.
    pub(crate) async fn check(&mut self, profile: &str, image: &str) -> pb::SandboxChecked {
        self.check_under(self.on.runtime_class(), profile, image)
            .await
    }

    /// The same without waiting for the answer; its number.
    pub(crate) async fn ask(&mut self, profile: &str, image: &str) -> u64 {
        self.ask_under(self.on.runtime_class(), profile, image)
            .await
    }

    async fn ask_under(&mut self, runtime: &str, profile: &str, image: &str) -> u64 {
        self.generation += 1;
        let id = self.generation;
        let spec = pb::RunnerSpec {
            profile: profile.into(),
            image: image.into(),
            runtime: runtime.into(),
            ..pb::RunnerSpec::default()
        };
        let spec = Some(spec);
        self.send(Down::Check(pb::CheckSandbox { id, spec })).await;
        id
    }

    /// The same for a sandbox that is made by this class of runtime.
    pub(crate) async fn check_under(
        &mut self,
        runtime: &str,
        profile: &str,
        image: &str,
    ) -> pb::SandboxChecked {
        let begin = Instant::now();
        loop {
            let id = self.ask_under(runtime, profile, image).await;
            self.wait("the check is answered", |seen| {
                seen.checked.contains_key(&id)
            })
            .await;
            let told = self.seen.borrow().checked[&id].clone();
            let busy = |error: &pb::RunnerError| {
                error.detail.contains("is under way") || error.reason == "engine_down"
            };
            // The node's own look, at another runtime or after its start.
            if !told.error.as_ref().is_some_and(busy) || begin.elapsed() > deadline() {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until a property is published in this state.
    pub(crate) async fn told(&mut self, name: &str, state: pb::property::State) {
        self.wait(&format!("{name} is told as {state:?}"), |seen| {
            let told = seen.capability.properties.iter().find(|p| p.name == name);
            told.is_some_and(|told| told.state() == state)
        })
        .await;
    }

    /// Waits until the agent has put its firewall table back.
    pub(crate) async fn table_is_back(&self) {
        let line = format!("nft list table inet {}", self.table());
        let begin = std::time::Instant::now();
        while !self.on.run(&line) {
            assert!(begin.elapsed() < deadline(), "the table is not restored");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// State and evidence of a property.
    pub(crate) fn property(&self, name: &str) -> pb::Property {
        let seen = self.seen.borrow();
        let told = seen.capability.properties.iter().find(|p| p.name == name);
        told.unwrap_or_else(|| panic!("nothing is told of {name}"))
            .clone()
    }

    /// The docker program on this test's engine, whatever its kind.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        docker(&[&["-H", &format!("unix://{}", self.on.socket())], arguments].concat())
    }

    /// A line of a shell among a live sandbox's processes, as its user. Not by the
    /// engine's exec: Podman leaves a helper process behind it for five minutes.
    pub(crate) fn inside(&self, container: &str, line: &str) -> Command {
        let pid = self.docker(&["inspect", "-f", "{{.State.Pid}}", container]);
        let mut command = Command::new("nsenter");
        command
            .args(["-t", pid.trim(), "-m", "-u", "-i", "-n", "-p"])
            .args(["--setuid", "1001", "--setgid", "1001", "--"])
            .args(["/bin/sh", "-c", line]);
        command
    }

    /// Runs a line in a live sandbox.
    pub(crate) fn exec(&self, container: &str, line: &str) -> String {
        let output = self.inside(container, line).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {words}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Puts an empty file into a live sandbox. A job that waits for it may end, and the
    /// program that made it with the sandbox, before that program has ended by itself.
    pub(crate) fn touch(&self, container: &str, file: &str) {
        let output = self.inside(container, &format!("touch {file}")).output();
        let output = output.unwrap();
        let killed = output.status.signal() == Some(9);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || killed, "{file}: {words}");
    }

    fn arguments(&self) -> Vec<String> {
        // Ranges of their own, so that tests beside each other do not wait for one range.
        let range = format!(
            "10.{}.0.0/16",
            100 + self.node.bytes().map(u32::from).sum::<u32>() % 120
        );
        let mut list: Vec<String> = [
            "--scheduler",
            &self.address,
            "--join-token-file",
            &self.dir.path().join("join-token").to_string_lossy(),
            "--node",
            &self.node,
            "--state-dir",
            &self.state_dir().to_string_lossy(),
            "--premade-slots",
            "2",
            "--min-free-disk",
            "64MiB",
        ]
        .map(str::to_owned)
        .to_vec();
        if !self.extra.iter().any(|text| text == "--slots-cidr") {
            list.extend(["--slots-cidr".to_owned(), range]);
        }
        // A standby would be a container too many for scenarios that count them.
        if !self.extra.iter().any(|text| text.starts_with("--standby")) {
            list.extend(["--standby-enabled".to_owned(), "false".to_owned()]);
        }
        if !self.extra.iter().any(|text| text == "--pull") {
            list.extend(["--pull".to_owned(), "false".to_owned()]);
        }
        if !self.extra.iter().any(|text| text == "--engine-socket") {
            list.extend(["--engine-socket".to_owned(), self.on.socket()]);
        }
        list.extend(self.extra.iter().cloned());
        list
    }

    /// From its next start on, the agent finds programs in this folder first.
    pub(crate) fn prefer_tools(&mut self, folder: &Path) {
        self.tools = Some(folder.to_owned());
    }

    fn search_path(&self) -> String {
        let usual = std::env::var("PATH").unwrap_or_default();
        match &self.tools {
            Some(folder) => format!("{}:{usual}", folder.display()),
            None => usual,
        }
    }

    /// Stops the agent where it is, or lets it go on.
    pub(crate) fn freeze_agent(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let agent = self.agent.as_ref().expect("it runs").id().to_string();
        let told = Command::new("kill").args([signal, &agent]).status();
        assert!(told.is_ok_and(|told| told.success()));
    }

    pub(crate) fn containers_of_runners(&self) -> Vec<String> {
        let seen = self.seen.borrow();
        let runners = seen.report.runners.iter();
        runners.map(|runner| runner.container_id.clone()).collect()
    }

    /// On everything of the agent under test.
    pub(crate) fn own_label(&self) -> String {
        format!("{}={}", label::INSTANCE, self.instance().as_str())
    }

    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.as_ref().expect("it runs").id()
    }

    /// Holds the agent's state and its log.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn instance(&self) -> Instance {
        Instance::new(&self.node, &self.state_dir().to_string_lossy())
    }

    /// Parent of its sandboxes' control groups, in each hierarchy.
    pub(crate) fn control_group(&self) -> String {
        format!("longshore-{}", self.instance().as_str())
    }

    /// The rule that keeps open slots from the host itself.
    pub(crate) fn wall(&self) -> String {
        format!("\"{}*\" goto denied", self.instance().bridge_prefix())
    }

    /// The rule that forwards nothing from closed slots.
    pub(crate) fn closed_wall(&self) -> String {
        format!("\"{}*\" goto denied", self.instance().closed_prefix())
    }

    pub(crate) fn table(&self) -> String {
        self.instance().table()
    }

    pub(crate) fn image(&self) -> String {
        image()
    }

    /// A runner's name, unique in the engine.
    pub(crate) fn name(&self, what: &str) -> String {
        format!("ls-{}-{what}-{}", self.test, random())
    }

    pub(crate) async fn start_agent(&mut self) {
        let before = self.seen.borrow().attached;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("agent.log"))
            .unwrap();
        let child = self
            .agent_program()
            .args(self.arguments())
            .env("PATH", self.search_path())
            .env("LONGSHORE_LOG", "debug,hyper=info,h2=info,bollard=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(child);
        self.wait("the agent attaches", |seen| seen.attached > before)
            .await;
    }

    /// The agent in the engine's network namespace; with names of the test's own if it has some.
    fn agent_program(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_longshore-agent");
        let hosts = self.dir.path().join("hosts");
        if !hosts.exists() {
            return self.on.command(program);
        }
        let mut command = self.on.command("unshare");
        command
            .args(["-m", "sh", "-ec"])
            .arg("mount --make-rprivate /; mount --bind \"$0\" /etc/hosts; exec \"$@\"")
            .arg(hosts)
            .arg(program);
        command
    }

    pub(crate) fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    pub(crate) fn stop_agent(&mut self) {
        self.kill_agent();
    }

    /// SIGSTOP: what the agent would notice stays unnoticed for now.
    pub(crate) fn pause_agent(&self) {
        self.signal_agent("STOP");
    }

    pub(crate) fn resume_agent(&self) {
        self.signal_agent("CONT");
    }

    fn signal_agent(&self, signal: &str) {
        let id = self.agent.as_ref().expect("an agent runs").id();
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, &id.to_string()]);
        assert!(kill.status().unwrap().success(), "{signal} to the agent");
    }

    /// SIGTERM; how long the process took to end.
    pub(crate) async fn terminate_agent(&mut self) -> Duration {
        self.signal_agent("TERM");
        let mut agent = self.agent.take().unwrap();
        let begin = Instant::now();
        loop {
            if agent.try_wait().unwrap().is_some() {
                return begin.elapsed();
            }
            assert!(begin.elapsed() < deadline(), "the agent does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn purge(&self) -> Output {
        self.on
            .command(env!("CARGO_BIN_EXE_longshore-agent"))
            .args(self.arguments())
            .arg("purge")
            .output()
            .unwrap()
    }

    /// Removes what a stopped agent made.
    pub(crate) fn purge_now(&self) {
        let output = self.purge();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}");
    }

    /// Stops the agent, removes what is its own, and proves that nothing is left.
    pub(crate) async fn finish(mut self) {
        self.terminate_agent().await;
        let output = self.purge();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let own = format!("label={}={}", label::INSTANCE, self.instance().as_str());
        for list in [
            vec!["ps", "-aq", "--filter", &own],
            vec!["volume", "ls", "-q", "--filter", &own],
            vec!["network", "ls", "-q", "--filter", &own],
        ] {
            assert_eq!(self.docker(&list), "", "{list:?}");
        }
        let images = self.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        let mark = self.instance().as_str().to_owned();
        assert!(
            !images.contains(&mark),
            "an image of {mark} is left: {images}"
        );
        for folder in self.control_groups() {
            assert!(!folder.exists(), "{} is left", folder.display());
        }
        let rules =
            ["nft list tables", "iptables -S", "ip6tables -S"].map(|line| self.on.must(line));
        assert!(!rules.concat().contains(&self.table()), "{rules:#?}");
        let links = self.on.must("cat /proc/self/net/dev");
        let prefix = self.instance().bridge_prefix();
        assert!(!links.contains(&prefix), "{prefix} is left: {links}");
    }

    /// The agent's own firewall table or chains, as they are now.
    pub(crate) fn rules(&self) -> String {
        let table = self.table();
        self.on.must(&format!(
            "nft list table inet {table} 2>/dev/null || iptables -S {table}-in"
        ))
    }

    /// Containers, job volumes and control groups that outlived their runner.
    pub(crate) fn leftovers(&self) -> String {
        let own = format!("label={}={}", label::INSTANCE, self.instance().as_str());
        let which = "{{.ID}} {{.Names}} {{.Status}}";
        let mut text = self.docker(&["ps", "-a", "--format", which, "--filter", &own]);
        for volume in self
            .docker(&["volume", "ls", "-q", "--filter", &own])
            .lines()
        {
            if volume.contains("-work") {
                text.push_str(volume);
            }
        }
        for folder in self.control_groups() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    text.push_str(&entry.path().to_string_lossy());
                }
            }
        }
        text
    }

    /// Folders around the control groups of its sandboxes, as either driver of an engine names
    /// them, in both versions.
    fn control_groups(&self) -> Vec<PathBuf> {
        let plain = format!("longshore-{}", self.instance().as_str());
        let slice = format!("longshore.slice/{plain}.slice");
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"];
        let of_root = |root: &str| [&plain, &slice].map(|name| Path::new(root).join(name));
        roots.into_iter().flat_map(of_root).collect()
    }

    pub(crate) fn agent_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    async fn send(&self, message: Down) {
        let down = self.down.lock().unwrap().clone().expect("attached");
        down.send(Ok(pb::AttachResponse {
            message: Some(message),
        }))
        .await
        .expect("the stream is open");
    }

    /// Sends a whole intent and waits until the node has accepted it.
    pub(crate) async fn intend(
        &mut self,
        runners: &[(&str, Desired)],
        logs: &[pb::LogSubscription],
    ) {
        self.generation += 1;
        let generation = pb::Generation {
            epoch: 1,
            counter: self.generation,
        };
        let intent = pb::NodeIntent {
            generation: Some(generation),
            runners: runners
                .iter()
                .map(|(name, desired)| pb::RunnerIntent {
                    name: (*name).into(),
                    desired: Some(self.under_runtime(desired.clone())),
                })
                .collect(),
            logs: logs.to_vec(),
            cordoned: false,
            expected: self.expected.clone(),
        };
        self.send(Down::Intent(intent)).await;
        self.wait("the intent is accepted", |seen| {
            seen.report.accepted == Some(generation)
        })
        .await;
    }

    /// Made by the runtime that this test is about.
    fn under_runtime(&self, mut desired: Desired) -> Desired {
        if let Desired::Run(spec) = &mut desired {
            spec.runtime = self.on.runtime_class().into();
        }
        desired
    }

    /// From its next start on, the agent has this flag too.
    pub(crate) fn add_argument(&mut self, flag: &str, value: &str) {
        self.extra.extend([flag.to_owned(), value.to_owned()]);
    }

    /// Hands a registration over; `job` is what the stand-in runner runs, empty for an idle one.
    pub(crate) async fn register(&mut self, runner: &str, job: &str, secret: &str) {
        let jit_config = registration(job, secret);
        self.send(Down::Registration(pb::Registration {
            runner: runner.into(),
            jit_config,
        }))
        .await;
    }

    pub(crate) async fn phase(&mut self, runner: &str, phase: Phase) -> pb::ObservedRunner {
        self.until(runner, |observed| observed.phase() == phase)
            .await
    }

    pub(crate) async fn until(
        &mut self,
        runner: &str,
        is: impl Fn(&pb::ObservedRunner) -> bool,
    ) -> pb::ObservedRunner {
        let found = |seen: &Seen| {
            seen.report
                .runners
                .iter()
                .find(|observed| observed.name == runner)
                .cloned()
        };
        self.wait(runner, |seen| {
            found(seen).is_some_and(|observed| is(&observed))
        })
        .await;
        found(&self.seen.borrow()).expect("waited for it")
    }

    /// The observation once it stopped moving: the answer to `stop_if_idle`.
    pub(crate) async fn settled(&mut self, runner: &str) -> pb::ObservedRunner {
        let mut last = self.until(runner, |_| true).await;
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_millis(1_500) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = self.until(runner, |_| true).await;
            if now.observation != last.observation {
                since = Instant::now();
                last = now;
            }
        }
        last
    }

    pub(crate) async fn gone(&mut self, runner: &str) {
        self.wait("the end is let go", |seen| {
            seen.report
                .runners
                .iter()
                .all(|observed| observed.name != runner)
        })
        .await;
    }

    pub(crate) async fn until_report(
        &mut self,
        is: impl Fn(&pb::NodeReport) -> bool,
    ) -> pb::NodeReport {
        self.wait("a report", |seen| is(&seen.report)).await;
        self.seen.borrow().report.clone()
    }

    /// Says from now on what may be asked for.
    pub(crate) async fn expect(&mut self, kinds: &[Desired]) {
        self.expected = kinds
            .iter()
            .filter_map(|kind| match kind {
                Desired::Run(spec) => Some(spec.clone()),
                _ => None,
            })
            .collect();
        self.intend_wanted().await;
    }

    /// Waits until the agent has told of itself that many times more.
    pub(crate) async fn heartbeats(&mut self, more: u64) {
        let enough = self.seen.borrow().reports + more;
        self.wait("heartbeats", |seen| seen.reports >= enough).await;
    }

    /// Wants a runner besides those that are wanted already.
    pub(crate) async fn want(&mut self, runner: &str, desired: Desired) {
        self.wanted.insert(runner.to_owned(), desired);
        self.intend_wanted().await;
    }

    /// Ends a runner and waits until it is forgotten.
    pub(crate) async fn let_go(&mut self, runner: &str) -> pb::RunnerExit {
        self.wanted
            .insert(runner.to_owned(), kill("the test is over", Duration::ZERO));
        self.intend_wanted().await;
        let exited = self.phase(runner, Phase::Exited).await;
        self.wanted.remove(runner);
        self.intend_wanted().await;
        self.gone(runner).await;
        exited.exit.expect("an end has an exit")
    }

    async fn intend_wanted(&mut self) {
        let wanted = self.wanted.clone();
        let list: Vec<(&str, Desired)> = wanted
            .iter()
            .map(|(name, desired)| (name.as_str(), desired.clone()))
            .collect();
        let watched = self.watched.clone();
        self.intend(&list, &watched).await;
    }

    /// Wants the output of a runner that is wanted.
    pub(crate) async fn watch_output(&mut self, wish: pb::LogSubscription) {
        self.watched.push(wish);
        self.intend_wanted().await;
    }

    pub(crate) async fn until_capability(&mut self, is: impl Fn(&pb::Capability) -> bool) {
        self.wait("the node's properties", |seen| is(&seen.capability))
            .await;
    }

    /// One field of each network of a live sandbox; there is one.
    fn of_network(&self, container: &str, field: &str) -> String {
        let format =
            format!("{{{{range $name, $net := .NetworkSettings.Networks}}}}{field}{{{{end}}}}");
        let said = self.docker(&["inspect", "-f", &format, container]);
        said.trim().to_owned()
    }

    pub(crate) fn gateway(&self, container: &str) -> String {
        self.of_network(container, "{{$net.Gateway}}")
    }

    pub(crate) fn address(&self, container: &str) -> String {
        self.of_network(container, "{{$net.IPAddress}}")
    }

    /// The slot's network, and its bridge: they have one name.
    pub(crate) fn network(&self, container: &str) -> String {
        self.of_network(container, "{{$name}}")
    }

    /// Whether the node promises a property of its sandboxes.
    pub(crate) fn guarantees(&self, property: &str) -> bool {
        let seen = self.seen.borrow();
        let told = seen
            .capability
            .properties
            .iter()
            .find(|told| told.name == property);
        let told = told.unwrap_or_else(|| panic!("nothing is told of {property}"));
        assert!(!told.evidence.is_empty(), "{told:?}");
        told.state() == pb::property::State::Guaranteed
    }

    pub(crate) fn skipped(&self, runner: &str) -> u64 {
        let seen = self.seen.borrow();
        seen.skipped.get(runner).copied().unwrap_or_default()
    }

    /// As it was reported last.
    pub(crate) fn phase_now(&self, runner: &str) -> Option<Phase> {
        let seen = self.seen.borrow();
        let mut runners = seen.report.runners.iter();
        let found = runners.find(|observed| observed.name == runner);
        found.map(|observed| observed.phase())
    }

    pub(crate) fn output_so_far(&self, runner: &str) -> String {
        self.seen
            .borrow()
            .output
            .get(runner)
            .map(|(text, _)| String::from_utf8_lossy(text).into_owned())
            .unwrap_or_default()
    }

    pub(crate) async fn until_output(&mut self, runner: &str, is: impl Fn(&str) -> bool) {
        self.wait("output", |seen| {
            seen.output
                .get(runner)
                .is_some_and(|(text, _)| is(&String::from_utf8_lossy(text)))
        })
        .await;
    }

    pub(crate) async fn output_has(&mut self, runner: &str, words: &str) {
        self.until_output(runner, |text| text.contains(words)).await;
    }

    /// The whole output, once the agent said that it is complete.
    pub(crate) async fn output(&mut self, runner: &str) -> String {
        self.wait("the end of the output", |seen| {
            seen.output.get(runner).is_some_and(|(_, end)| *end)
        })
        .await;
        self.output_so_far(runner)
    }

    async fn wait(&mut self, what: &str, is: impl Fn(&Seen) -> bool) {
        let waited = tokio::time::timeout(deadline(), self.seen.wait_for(|seen| is(seen)))
            .await
            .is_ok_and(|seen| seen.is_ok());
        if !waited {
            let report = self.seen.borrow().report.clone();
            let log = self.agent_log();
            let tail: Vec<&str> = log
                .lines()
                .rev()
                .filter(|line| !line.contains("bollard"))
                .take(40)
                .collect();
            panic!(
                "waited in vain for: {what}\nreport: {report:#?}\nagent, newest first:\n{}",
                tail.join("\n")
            );
        }
    }
}

pub(crate) fn run(image: &str) -> Desired {
    Desired::Run(pb::RunnerSpec {
        image: image.into(),
        profile: "strict".into(),
        resources: Some(pb::Resources {
            cpu_millis: 1_000,
            memory_bytes: 256 << 20,
            gpus: 0,
        }),
        network_mode: "open".into(),
        platform: if cfg!(target_arch = "aarch64") {
            "linux/arm64"
        } else {
            "linux/amd64"
        }
        .into(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        ..pb::RunnerSpec::default()
    })
}

/// As it stands in what GitHub encodes.
pub(crate) fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// What GitHub would encode for a runner.
pub(crate) fn registration(job: &str, secret: &str) -> Vec<u8> {
    let mut files = BTreeMap::from([
        (".runner", STANDARD.encode("{}")),
        (".credentials", STANDARD.encode(secret)),
        (".credentials_rsaparams", STANDARD.encode(secret)),
    ]);
    if !job.is_empty() {
        files.insert(".job", STANDARD.encode(job));
    }
    STANDARD
        .encode(serde_json::to_vec(&files).unwrap())
        .into_bytes()
}

pub(crate) fn stop_if_idle() -> Desired {
    Desired::StopIfIdle(pb::StopIfIdle {})
}

pub(crate) fn remove(observation: u64) -> Desired {
    Desired::Remove(pb::Remove { observation })
}

pub(crate) fn kill(reason: &str, grace: Duration) -> Desired {
    let grace = prost_types::Duration {
        seconds: grace.as_secs() as i64,
        nanos: grace.subsec_nanos() as i32,
    };
    Desired::Kill(pb::Kill {
        reason: reason.into(),
        grace: Some(grace),
    })
}

/// Files of work folders that are or were a job's; some are made ahead.
pub(crate) fn files_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with("spare-") && !name.starts_with("making-"))
        .collect()
}

pub(crate) fn random() -> String {
    format!("{:08x}", rand::random::<u32>())
}

pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .expect("the docker program is installed");
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Both streams: a container's errors are part of its logs.
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Makes the tag name another image with the same files.
pub(crate) fn derived(tag: &str) {
    let file = format!("FROM {}\nLABEL longshore.test={}\n", image(), random());
    let mut child = Command::new("docker")
        .args(["build", "-q", "-t", tag, "-"])
        .env("DOCKER_BUILDKIT", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(file.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "docker build");
}

/// What the engine says of a live sandbox, against the table.
pub(crate) fn assert_strict(kind: Kind, inspect: &str) {
    let all: serde_json::Value = serde_json::from_str(inspect).expect("inspect is JSON");
    let (host, config) = (&all[0]["HostConfig"], &all[0]["Config"]);
    assert_eq!(config["User"], "1001:1001");
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["Memory"], host["MemorySwap"]);
    for empty in [
        "CapAdd",
        "Devices",
        "DeviceCgroupRules",
        "GroupAdd",
        "DeviceRequests",
    ] {
        assert!(
            host[empty].as_array().is_none_or(Vec::is_empty),
            "{empty}: {}",
            host[empty]
        );
    }
    for mount in all[0]["Mounts"].as_array().expect("mounts") {
        assert!(
            matches!(mount["Type"].as_str(), Some("volume" | "tmpfs")),
            "{mount}"
        );
    }
    match kind {
        Kind::Docker => assert_strict_of_docker(host),
        Kind::Podman => assert_strict_of_podman(host),
    }
}

fn assert_strict_of_docker(host: &serde_json::Value) {
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    let options = host["SecurityOpt"].as_array().expect("security options");
    assert_eq!(options.len(), 2, "{options:?}");
    assert_eq!(options[0], "no-new-privileges:true");
    // One of the agent's own filters, to the letter.
    let filter = options[1].as_str().and_then(|o| o.strip_prefix("seccomp="));
    let own = Profile::ALL.map(agent_core::seccomp::filter);
    assert!(filter.is_some_and(|f| own.contains(&f)), "{options:?}");
    assert!(host["Binds"].as_array().is_none_or(Vec::is_empty));
    assert_eq!(
        (&host["PidMode"], &host["UTSMode"], &host["UsernsMode"]),
        (&"".into(), &"".into(), &"".into())
    );
    assert_eq!(
        (&host["IpcMode"], &host["CgroupnsMode"]),
        (&"private".into(), &"private".into())
    );
    let masked = host["MaskedPaths"].as_array().expect("masked paths");
    assert!(
        masked.contains(&"/proc/kallsyms".into()) && masked.contains(&"/proc/interrupts".into())
    );
}

/// Podman tells less of what it was asked, and lists volumes as binds.
fn assert_strict_of_podman(host: &serde_json::Value) {
    let dropped = host["CapDrop"].as_array().expect("capabilities").len();
    assert!(dropped >= 10, "{}", host["CapDrop"]);
    assert_eq!(
        (&host["PidMode"], &host["UTSMode"], &host["UsernsMode"]),
        (&"private".into(), &"private".into(), &"".into())
    );
    for bind in host["Binds"].as_array().expect("volumes") {
        assert!(!bind.as_str().is_none_or(|b| b.starts_with('/')), "{bind}");
    }
    let options = host["SecurityOpt"].to_string();
    assert!(options.contains("no-new-privileges"), "{options}");
    let root = host["Tmpfs"]["/home/runner"].as_str().expect("a tmpfs");
    assert!(root.contains("uid=1001,gid=1001,mode=0700"), "{root}");
    for path in ["/home/runner", "/tmp", "/run", "/var/tmp"] {
        let options = host["Tmpfs"][path].as_str().expect("a tmpfs");
        assert!(options.contains("nosuid,nodev,size="), "{path}: {options}");
    }
}

/// A runner image of this host's busybox, in the layout of GitHub's.
pub(crate) fn image() -> String {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(make_image).clone()
}

pub(crate) const LISTENER: &str = r#"#!/bin/sh
echo "√ Connected to GitHub"
echo "Current runner version: '2.336.0'"
trap 'echo interrupted; exit 130' INT
echo "Listening for Jobs"
if [ -f .job ]; then
    echo "Running job: test"
    sh /home/runner/bin/Runner.Worker
    exit $?
fi
while :; do sleep 0.2; done
"#;

fn make_image() -> String {
    let mut hash = agent_core::names::Fnv::default();
    hash.write(LISTENER.as_bytes());
    hash.write(agent_probe::PROGRAM);
    let tag = format!("longshore-agent-test:{:08x}", hash.0 as u32);
    let present = Command::new("docker")
        .args(["image", "inspect", &tag])
        .output();
    if present
        .expect("the docker program is installed")
        .status
        .success()
    {
        return tag;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for folder in [
        "bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "tmp",
        "home/runner/bin",
        "home/runner/externals",
    ] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    // The engine gives a tmpfs the mode of the folder below it.
    let everybodys = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(root.join("tmp"), everybodys).unwrap();
    let busybox = ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("busybox-static is installed (apt-get install busybox-static)");
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let probe = root.join("bin/longshore-probe");
    std::fs::write(&probe, agent_probe::PROGRAM).unwrap();
    let programs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&probe, programs).unwrap();
    let applets = Command::new(busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8_lossy(&applets.stdout)
        .lines()
        .filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "runner:x:1001:1001::/home/runner:/bin/sh\n",
    )
    .unwrap();
    for (name, text) in [
        ("Runner.Listener", LISTENER),
        ("Runner.Worker", "#!/bin/sh\n. /home/runner/.job\n"),
    ] {
        use std::os::unix::fs::PermissionsExt;
        let path = root.join("home/runner/bin").join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", root).unwrap();
    let archive = archive.into_inner().unwrap();
    let mut import = Command::new("docker")
        .args(["import", "-", &tag])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the docker program is installed");
    import.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(
        import.wait().unwrap().success(),
        "docker import: is the engine running?"
    );
    tag
}
