//! One agent with addresses of its own, on the usual engine or on one of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bollard::Docker;
use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions};
use longshore_e2e::binaries::Binaries;
use longshore_e2e::demo::identity::{Claim, RUN_VARIABLE};
use longshore_e2e::fleet::{Agent, AgentSettings, Scheduler};

use super::ENGINE_SOCKET;
use super::own_engine::OwnEngine;

/// What the agent labels its things with.
const INSTANCE: &str = "longshore.instance";

pub(crate) struct Node {
    claim: Claim,
    pub(crate) settings: AgentSettings,
    pub(crate) agent: Agent,
    pub(crate) engine: Docker,
    pub(crate) own: Option<OwnEngine>,
}

/// What a node is made of.
pub(crate) struct Plan<'a> {
    pub(crate) claim: Claim,
    pub(crate) own: Option<OwnEngine>,
    pub(crate) max_runners: Option<u32>,
    /// The mark of the test's processes.
    pub(crate) run: &'a str,
    pub(crate) more: Vec<String>,
    /// Further environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where it finds this host's engine; absent: at its usual socket.
    pub(crate) socket: Option<PathBuf>,
}

impl Node {
    pub(crate) async fn start(
        binaries: &Binaries,
        folder: &Path,
        scheduler: &Scheduler,
        plan: Plan<'_>,
    ) -> Node {
        let (socket, inside, engine) = match &plan.own {
            None => {
                let socket = plan.socket.unwrap_or_else(|| ENGINE_SOCKET.into());
                (socket, Vec::new(), usual_engine().await)
            }
            Some(own) => (own.socket(), own.inside(), own.client().await),
        };
        let id = &plan.claim.identity;
        let mut env = plan.env;
        env.push((RUN_VARIABLE.to_owned(), plan.run.to_owned()));
        let settings = AgentSettings {
            node: id.node.clone(),
            state: folder.join(format!("agent-{}", id.run)),
            scheduler: scheduler.nodes_url(),
            api: Some(scheduler.door()),
            engine_socket: Some(socket),
            slots_cidr: Some(id.slots_cidr.clone()),
            max_runners: plan.max_runners,
            more: plan.more,
            env,
            inside,
            ..AgentSettings::default()
        };
        let agent = Agent::start(binaries, &folder.join("logs"), &settings)
            .await
            .unwrap();
        Node {
            claim: plan.claim,
            settings,
            agent,
            engine,
            own: plan.own,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.claim.identity.node
    }

    pub(crate) fn label(&self) -> String {
        format!("longshore.node={}", self.name())
    }

    fn socket(&self) -> String {
        let socket = self.settings.engine_socket.as_ref();
        socket.expect("always set").display().to_string()
    }

    /// Texts of which one stands in everything that the agent makes.
    pub(crate) async fn marks(&self) -> BTreeSet<String> {
        let id = &self.claim.identity;
        let mut marks = BTreeSet::from([
            id.node.clone(),
            id.slots_cidr.trim_end_matches("0.0/16").to_owned(),
        ]);
        let filters = Some([("label".to_owned(), vec![self.label()])].into());
        let options = ListContainersOptions {
            all: true,
            filters: filters.clone(),
            ..Default::default()
        };
        let mut labels = Vec::new();
        for c in self.engine.list_containers(Some(options)).await.unwrap() {
            marks.extend(c.id);
            labels.extend(c.labels);
        }
        // Networks are made before runners and stay after them: an idle node is known by them.
        let options = ListNetworksOptions { filters };
        let networks = self.engine.list_networks(Some(options)).await.unwrap();
        labels.extend(networks.into_iter().filter_map(|n| n.labels));
        for instance in labels.iter().filter_map(|labels| labels.get(INSTANCE)) {
            marks.insert(format!("ls-{instance}-"));
            marks.insert(format!("longshore_{instance}"));
        }
        marks
    }

    /// After a failure: as little as can be left, without a word.
    pub(crate) fn abandon(&self, binaries: &Binaries) {
        let _ = self.agent.process.signal(libc::SIGKILL);
        let bounded = || {
            let mut command = Command::new("timeout");
            command.arg("60").args(&self.settings.inside);
            command
        };
        if let Ok(agent) = binaries.program("longshore-agent") {
            quietly(bounded().arg(agent).args([
                "purge",
                "--node",
                self.name(),
                "--engine-socket",
                &self.socket(),
                "--state-dir",
                &self.settings.state.to_string_lossy(),
            ]));
        }
        // With an engine of its own, everything else ends with it.
        if self.own.is_some() {
            return;
        }
        let script = "for c in $(docker ps -aq --filter label=$1); do docker rm -fv $c; done; \
                      for v in $(docker volume ls -q --filter label=$1); do docker volume rm $v; done; \
                      for n in $(docker network ls -q --filter label=$1); do docker network rm $n; done";
        quietly(bounded().args(["sh", "-c", script, "sh", &self.label()]));
    }
}

/// The engine of this host.
pub(crate) async fn usual_engine() -> Docker {
    Docker::connect_with_unix(ENGINE_SOCKET, 60, bollard::API_DEFAULT_VERSION)
        .unwrap()
        .negotiate_version()
        .await
        .expect("a container engine answers at /var/run/docker.sock")
}

pub(crate) fn quietly(command: &mut Command) {
    let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
}
