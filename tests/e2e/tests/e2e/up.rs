//! `longshore up` and `longshore runner start`: a whole fleet by one command, with the real programs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use longshore_e2e::binaries::Binaries;
use longshore_e2e::demo::host_state::{self, Difference, HostState, Marks};
use longshore_e2e::demo::identity::{self, Claim, RUN_VARIABLE};
use longshore_e2e::fleet::{self, AgentSettings, STOP_WITHIN, Sim, secret_file};
use longshore_e2e::process::{Launch, Process};
use longshore_e2e::wait;
use serde_json::{Value, json};

use crate::image;
use crate::rig::node::{quietly, usual_engine};
use crate::rig::{ENGINE_SOCKET, SOON, Settings, WEBHOOK_SECRET, job, native, world};

/// Small runners, and nobody waits for idle ones.
const SCHEDULER: &str = "[defaults]\ncpu = \"0.25\"\nmemory = \"256m\"\nidle_timeout = \"5s\"\n";

/// A host on which nothing of us runs yet, and a GitHub with work for it.
struct Host {
    binaries: Binaries,
    folder: tempfile::TempDir,
    claim: Claim,
    before: HostState,
    sim: Sim,
    image: &'static str,
    cleared: bool,
}

impl Host {
    async fn new() -> Host {
        let binaries = Binaries::find().unwrap();
        let image = tokio::task::spawn_blocking(image::runner).await.unwrap();
        let claim = identity::claim().unwrap();
        let before = host_state::look(&usual_engine().await).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let net = claim.identity.runner_net();
        let sim = Sim::start(&binaries, folder.path(), Some(&net), 1, &["--no-limits"])
            .await
            .unwrap();
        let token = world(&sim, &Settings::default()).await;
        secret_file(&folder.path().join("token"), &token).unwrap();
        secret_file(&folder.path().join("webhook"), WEBHOOK_SECRET).unwrap();
        std::fs::write(folder.path().join("scheduler.toml"), SCHEDULER).unwrap();
        Host {
            binaries,
            folder,
            claim,
            before,
            sim,
            image,
            cleared: false,
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// `longshore` with these words and whatever starts a fleet needs to know.
    fn launch(&self, words: &[&str]) -> Launch {
        let file = |name: &str| self.folder.path().join(name);
        let id = &self.claim.identity;
        let program = self.binaries.program("longshore").unwrap();
        let mut launch = Launch::new("longshore", program, file("longshore.log"))
            .env(RUN_VARIABLE, &id.run)
            .without_env("GITHUB_TOKEN");
        for word in words {
            launch = launch.arg(word);
        }
        launch
            .flag("-o", "jsonl")
            .flag("--scheduler", "http://127.0.0.1:0")
            .flag("--node-listen", "127.0.0.1:0")
            .flag("--webhook-listen", "127.0.0.1:0")
            .flag("--state-dir", self.state())
            .flag("--config", file("scheduler.toml"))
            .flag("--github-api-url", self.sim.url())
            .flag("--github-token-file", file("token"))
            .flag("--webhook-secret-file", file("webhook"))
            .flag("--owner", "acme")
            .flag("--image", self.image)
            .flag("--node", &id.node)
            .flag("--engine-socket", ENGINE_SOCKET)
            .flag("--slots-cidr", &id.slots_cidr)
    }

    /// GitHub learns where its webhooks go, and a job is served.
    async fn serves_a_job(&self, webhooks: &str) {
        let url = format!("http://{webhooks}/webhooks/github");
        let hook = json!({"organization": "acme", "url": url, "secret": WEBHOOK_SECRET,
                          "events": ["workflow_job", "workflow_run"]});
        self.sim.control("hooks", hook).await.unwrap();
        let run =
            json!({"repository": "acme/web", "jobs": [job("build", &native(), &["echo served"])]});
        let pushed = self.sim.control("runs", run).await.unwrap();
        let id = pushed["jobs"][0]["id"].as_u64().unwrap();
        self.sim
            .wait_for(json!({"job": id, "status": "completed"}), SOON)
            .await
            .unwrap();
        let ended = self.sim.look(&format!("jobs/{id}")).await.unwrap();
        assert_eq!(ended["conclusion"], "success", "{ended:#}");
        assert_eq!(ended["steps"][0]["output"], "served\n");
        self.sim
            .wait_for(json!({"runners": 0}), SOON)
            .await
            .unwrap();
    }

    /// Processes of this test, without their ids.
    async fn processes(&self) -> BTreeSet<String> {
        let mark = format!("{RUN_VARIABLE}={}", self.claim.identity.run);
        let state = host_state::look(&usual_engine().await).await.unwrap();
        let ours = state.processes.values().filter(|p| p.about.contains(&mark));
        ours.filter_map(|p| {
            let program = p.name.split(' ').next()?;
            Some(Path::new(program).file_name()?.to_str()?.to_owned())
        })
        .collect()
    }

    /// What the agent made beforehand goes with it, and then nothing is left.
    async fn nothing_is_left(mut self) {
        assert_eq!(self.processes().await, BTreeSet::new());
        let id = &self.claim.identity;
        let agent = AgentSettings {
            node: id.node.clone(),
            state: self.state().join("agent"),
            engine_socket: Some(ENGINE_SOCKET.into()),
            ..AgentSettings::default()
        };
        let purged = agent.purge(&self.binaries, self.folder.path()).await;
        purged.unwrap();
        self.cleared = true;
        self.sim.process.terminate(STOP_WITHIN).await.unwrap();
        let marks = Marks {
            ours: BTreeSet::from([
                id.node.clone(),
                id.namespace.clone(),
                format!("{RUN_VARIABLE}={}", id.run),
                id.host.to_string(),
                id.slots_cidr.trim_end_matches("0.0/16").to_owned(),
            ]),
        };
        let after = host_state::look(&usual_engine().await).await.unwrap();
        let left = Difference {
            missing: Vec::new(),
            ..host_state::difference(&self.before, &after, &marks, true)
        };
        assert_eq!(left, Difference::default(), "left behind");
    }
}

/// A failed test leaves nothing either, as far as that can still be done.
impl Drop for Host {
    fn drop(&mut self) {
        if self.cleared {
            return;
        }
        let mark = format!("{RUN_VARIABLE}={}", self.claim.identity.run);
        let Ok(folders) = std::fs::read_dir("/proc") else {
            return;
        };
        for folder in folders.flatten() {
            let environment = std::fs::read(folder.path().join("environ")).unwrap_or_default();
            let mut variables = environment.split(|b| *b == 0);
            if variables.any(|v| v == mark.as_bytes()) {
                let _ = std::process::Command::new("kill")
                    .arg("-9")
                    .arg(folder.file_name())
                    .status();
            }
        }
        let id = &self.claim.identity;
        if let Ok(agent) = self.binaries.program("longshore-agent") {
            let mut purge = std::process::Command::new("timeout");
            purge.arg("60").arg(agent);
            purge.args(["purge", "--node", &id.node]);
            purge.args(["--engine-socket", ENGINE_SOCKET, "--state-dir"]);
            quietly(purge.arg(self.state().join("agent")));
        }
        let _ = self.sim.process.signal(libc::SIGTERM);
        quietly(std::process::Command::new("ip").args(["netns", "del", &id.namespace]));
    }
}

const FLEET: [&str; 3] = ["longshore", "longshore-agent", "longshore-scheduler"];

fn fleet() -> BTreeSet<String> {
    FLEET.map(str::to_owned).into()
}

/// What a terminal does: the signal goes to the whole group.
fn ctrl_c(process: &Process) {
    let status = std::process::Command::new("kill")
        .args(["-INT", "--", &format!("-{}", process.pid())])
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn up_serves_a_job_and_ctrl_c_ends_it_all() {
    let host = Host::new().await;
    let mut up = host.launch(&["up"]).ready().await.unwrap();
    host.serves_a_job(&up.said_text("webhooks").unwrap()).await;
    assert_eq!(host.processes().await, fleet());

    ctrl_c(&up);
    let status = up.wait(STOP_WITHIN).await.unwrap();
    assert!(status.success(), "{status}: {}", up.tail());
    host.nothing_is_left().await;
}

#[tokio::test]
async fn a_job_that_runs_when_up_ends_goes_on_and_is_known_to_the_next_up() {
    let host = Host::new().await;
    let mut up = host.launch(&["up"]).ready().await.unwrap();
    let hook = json!({"organization": "acme", "url": format!("http://{}/webhooks/github", up.said_text("webhooks").unwrap()),
                      "secret": WEBHOOK_SECRET, "events": ["workflow_job"]});
    host.sim.control("hooks", hook).await.unwrap();
    let run = json!({"repository": "acme/web", "jobs": [job("long", &native(), &["sleep 6; echo finished"])]});
    let pushed = host.sim.control("runs", run).await.unwrap();
    let id = pushed["jobs"][0]["id"].as_u64().unwrap();
    let is = |status: &str| json!({"job": id, "status": status});
    host.sim.wait_for(is("in_progress"), SOON).await.unwrap();
    ctrl_c(&up);
    let status = up.wait(STOP_WITHIN).await.unwrap();
    assert!(status.success(), "{status}: {}", up.tail());
    assert_eq!(
        host.sim.look(&format!("jobs/{id}")).await.unwrap()["status"],
        "in_progress"
    );

    let mut again = host.launch(&["up"]).ready().await.unwrap();
    host.sim.wait_for(is("completed"), SOON).await.unwrap();
    let ended = host.sim.look(&format!("jobs/{id}")).await.unwrap();
    assert_eq!(ended["conclusion"], "success", "{ended:#}");
    // Its end is seen, and its container taken away.
    let api = format!("http://{}", again.said_text("api").unwrap());
    let token = PathBuf::from(again.said_text("token_file").unwrap());
    wait::until("the job's runner to be over", SOON, || async {
        let words = ["runner", "list-containers", "-o", "json"];
        let output = fleet::cli(&host.binaries, &api, &token, &words)
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match serde_json::from_str::<Value>(&text) {
            Ok(Value::Array(containers)) if containers.is_empty() => Ok(()),
            _ => Err(text),
        }
    })
    .await
    .unwrap();
    ctrl_c(&again);
    let status = again.wait(STOP_WITHIN).await.unwrap();
    assert!(status.success(), "{status}: {}", again.tail());
    host.nothing_is_left().await;
}

#[tokio::test]
async fn a_fleet_in_the_background_serves_a_job_until_it_is_taken_down() {
    let host = Host::new().await;
    let mut start = host
        .launch(&["runner", "start", "--background"])
        .ready()
        .await
        .unwrap();
    let status = start.wait(STOP_WITHIN).await.unwrap();
    assert!(status.success(), "{status}: {}", start.tail());
    host.serves_a_job(&start.said_text("webhooks").unwrap())
        .await;
    assert_eq!(host.processes().await, fleet());

    let api = format!("http://{}", start.said_text("api").unwrap());
    let token = PathBuf::from(start.said_text("token_file").unwrap());
    let state = host.state().display().to_string();
    for (words, field) in [
        (&["runner", "stop"][..], ("was_running", json!(true))),
        (&["runner", "status"], ("running", json!(false))),
        (&["down", "--state-dir", &state], ("kind", json!("process"))),
    ] {
        let words = [words, &["-o", "json"]].concat();
        let output = fleet::cli(&host.binaries, &api, &token, &words)
            .await
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said[field.0], field.1, "{words:?}: {said:#}");
    }
    host.nothing_is_left().await;
}
