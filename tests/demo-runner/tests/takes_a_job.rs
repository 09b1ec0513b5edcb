//! demo-runner as a plain process against the simulator's sockets.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use github_sim::control::Control;
use github_sim::machine::{Faults, JobSpec, OwnerSpec, RepoSpec, Request, RunSpec, TokenSpec};
use github_sim::shell::{Options, Server};
use serde_json::{Value, json};

const LABELS: &[&str] = &["self-hosted", "linux"];
const PATIENCE: Duration = Duration::from_secs(60);

struct Stage {
    sim: Server,
    control: Control,
    token: String,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Self {
        let sim = Server::start(Options::default()).await.unwrap();
        let token = sim.with(|w| {
            w.add_owner(OwnerSpec::organization("acme")).unwrap();
            w.add_repo(RepoSpec::new("acme", "web")).unwrap();
            w.add_token(TokenSpec::classic("acme-admin", &["repo", "admin:org"]))
                .unwrap()
        });
        let control = Control::new(&sim.control_url());
        Self {
            sim,
            control,
            token,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A runner root with the program and the files of a fresh registration.
    fn root(&self, name: &str) -> PathBuf {
        let body = json!({"name": name, "runner_group_id": 1, "labels": LABELS});
        let request = Request::post("/orgs/acme/actions/runners/generate-jitconfig", &body)
            .token(&self.token);
        let answer = self.sim.with(|w| w.call(&request));
        assert_eq!(answer.status, 201);
        let root = self.folder.path().join(name);
        std::fs::create_dir_all(root.join("bin")).unwrap();
        for program in ["Runner.Listener", "Runner.Worker"] {
            std::fs::copy(
                env!("CARGO_BIN_EXE_demo-runner"),
                root.join("bin").join(program),
            )
            .unwrap();
        }
        for (file, content) in decode(answer.value()["encoded_jit_config"].as_str().unwrap()) {
            std::fs::write(root.join(file), content).unwrap();
        }
        root
    }

    fn queue(&self, job: JobSpec) -> (u64, u64) {
        self.sim.with(|w| {
            let run = w.queue_run(&RunSpec::one("acme/web", job)).unwrap();
            (run, w.run(run).unwrap().jobs()[0])
        })
    }

    async fn wait(&self, until: Value) -> Value {
        let (met, state) = self.control.wait(&until, PATIENCE).await.unwrap();
        assert!(met, "{until} within {PATIENCE:?}: {state}");
        state
    }
}

fn base64(text: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

fn decode(encoded: &str) -> Vec<(String, Vec<u8>)> {
    let files: serde_json::Map<String, Value> =
        serde_json::from_slice(&base64(encoded.as_bytes())).unwrap();
    files
        .into_iter()
        .map(|(name, v)| (name, base64(v.as_str().unwrap().as_bytes())))
        .collect()
}

fn start(root: &Path) -> Child {
    Command::new(root.join("bin/Runner.Listener"))
        .arg0(root.join("bin/Runner.Listener"))
        .arg("run")
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The exit code and what was printed.
async fn end(child: Child) -> (Option<i32>, String) {
    let pid = child.id();
    let out = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let Ok(out) = tokio::time::timeout(PATIENCE, out).await else {
        panic!("process {pid} does not end")
    };
    let out = out.unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    (out.status.code(), text)
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill")
        .args([format!("-{name}"), child.id().to_string()])
        .status()
        .unwrap();
    assert!(done.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_taken_run_and_reported_and_nothing_is_left() {
    let stage = Stage::new().await;
    let steps = [
        "echo hello; echo oops >&2; pwd",
        "test \"$GITHUB_REPOSITORY\" = acme/web",
        "echo $RUNNER_TRACKING_ID",
    ];
    let (_, job) = stage.queue(JobSpec::new("build", LABELS).steps(&steps));
    let root = stage.root("r1");
    let (code, out) = end(start(&root)).await;
    assert_eq!(code, Some(0), "{out}");
    for line in [
        "√ Connected to GitHub",
        "Current runner version: '2.336.0'",
        ": Listening for Jobs",
        ": Running job: build",
        ": Job build completed with result: Succeeded",
    ] {
        assert!(out.contains(line), "{line} is missing in:\n{out}");
    }
    let view = stage.control.get(&format!("jobs/{job}")).await.unwrap();
    assert_eq!(view["conclusion"], "success", "{view}");
    let first = view["steps"][0]["output"].as_str().unwrap();
    assert!(
        first.starts_with("hello\noops\n") && first.trim_end().ends_with("_work/web/web"),
        "{first}"
    );
    assert!(
        view["steps"][2]["output"]
            .as_str()
            .unwrap()
            .starts_with("github_")
    );
    assert_eq!(view["runner_name"], "r1");
    assert_eq!(
        stage.control.get("runners").await.unwrap(),
        json!([]),
        "the registration is gone"
    );
    assert!(
        !root.join(".credentials").exists(),
        "an ephemeral runner deletes its credentials"
    );
    let logs = std::fs::read_dir(root.join("_diag")).unwrap().count();
    assert!(logs >= 2, "the listener and the worker keep a log");
    assert_eq!(stage.sim.with(|w| w.check()), Vec::<String>::new());
    stage.sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_step_ends_the_job_and_skips_the_rest() {
    let stage = Stage::new().await;
    let (_, job) =
        stage.queue(JobSpec::new("build", LABELS).steps(&["echo one", "exit 7", "echo never"]));
    let (code, out) = end(start(&stage.root("r1"))).await;
    assert_eq!(code, Some(0));
    assert!(
        out.contains("Job build completed with result: Failed"),
        "{out}"
    );
    let view = stage.control.get(&format!("jobs/{job}")).await.unwrap();
    assert_eq!(view["conclusion"], "failure");
    let ends: Vec<Value> = view["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| json!([s["conclusion"], s["exit_code"]]))
        .collect();
    assert_eq!(
        json!(ends),
        json!([["success", 0], ["failure", 7], ["skipped", null]])
    );
    stage.sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_waits_is_given_a_job_that_comes_later_and_a_cancelled_one_ends_early() {
    let stage = Stage::new().await;
    let child = start(&stage.root("r1"));
    stage.wait(json!({"runners_online": 1})).await;
    let (run, job) = stage.queue(JobSpec::new("slow", LABELS).steps(&["echo started; sleep 300"]));
    stage
        .wait(json!({"job": job, "status": "in_progress"}))
        .await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let view = stage.control.get(&format!("jobs/{job}")).await.unwrap();
        if view["steps"][0]["output"]
            .as_str()
            .is_some_and(|o| o.contains("started"))
        {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "no output while the step runs: {view}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage
        .control
        .post(&format!("runs/{run}/cancel"), &json!({}))
        .await
        .unwrap();
    let (code, out) = end(child).await;
    assert_eq!(code, Some(0), "{out}");
    assert!(
        out.contains("Job slow completed with result: Canceled"),
        "{out}"
    );
    let view = stage.control.get(&format!("jobs/{job}")).await.unwrap();
    assert_eq!(
        (&view["conclusion"], &view["steps"][0]["conclusion"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    stage.sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_runner_ends_on_sigint_and_on_sigterm() {
    let stage = Stage::new().await;
    for (i, name) in ["INT", "TERM"].iter().enumerate() {
        let child = start(&stage.root(&format!("r{i}")));
        stage.wait(json!({"runners_online": 1})).await;
        signal(&child, name);
        let (code, out) = end(child).await;
        assert_eq!(code, Some(0), "{out}");
        assert!(out.contains("Exiting..."), "{out}");
    }
    stage.sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_registration_and_a_version_that_is_too_old_have_their_own_exit_codes() {
    let stage = Stage::new().await;
    let root = stage.root("r1");
    let path = format!(
        "/orgs/acme/actions/runners/{}",
        stage.sim.with(|w| w.runner_named("r1").unwrap())
    );
    assert_eq!(
        stage
            .sim
            .with(|w| w.call(&Request::delete(&path).token(&stage.token)).status),
        204
    );
    let (code, out) = end(start(&root)).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("registration has been deleted"), "{out}");
    let root = stage.root("r2");
    stage.sim.with(|w| {
        w.set_faults(Faults {
            runner_version_too_old: true,
            ..Faults::default()
        })
    });
    let (code, out) = end(start(&root)).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains("is deprecated and cannot receive messages"),
        "{out}"
    );
    stage.sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_faults_of_real_runners_can_be_asked_for() {
    let stage = Stage::new().await;
    let with_fault = |fault: &str| {
        let mut job = JobSpec::new("odd", LABELS).steps(&["true"]);
        job.env.insert("DEMO_RUNNER_FAULT".into(), fault.into());
        job
    };
    let (_, job) = stage.queue(with_fault("exit-after:7"));
    assert_eq!(end(start(&stage.root("r1"))).await.0, Some(7));
    assert_eq!(
        stage.control.get(&format!("jobs/{job}")).await.unwrap()["conclusion"],
        "success"
    );

    let (_, job) = stage.queue(with_fault("exit-during:2"));
    assert_eq!(end(start(&stage.root("r2"))).await.0, Some(2));
    assert_eq!(
        stage.control.get(&format!("jobs/{job}")).await.unwrap()["status"],
        "in_progress",
        "nobody ends it"
    );

    let (_, job) = stage.queue(with_fault("never-exit"));
    let mut child = start(&stage.root("r3"));
    stage.wait(json!({"job": job, "status": "completed"})).await;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let again = tokio::task::spawn_blocking(move || {
        lines
            .by_ref()
            .flatten()
            .filter(|l| l.contains("was cancelled"))
            .take(2)
            .count()
    });
    assert_eq!(
        tokio::time::timeout(PATIENCE, again)
            .await
            .unwrap()
            .unwrap(),
        2
    );
    assert!(child.try_wait().unwrap().is_none(), "it is alive");
    child.kill().unwrap();
    child.wait().unwrap();
    stage.sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_the_registrations_own_is_refused() {
    let stage = Stage::new().await;
    let (one, two) = (stage.root("r1"), stage.root("r2"));
    std::fs::copy(
        two.join(".credentials_rsaparams"),
        one.join(".credentials_rsaparams"),
    )
    .unwrap();
    let (code, out) = end(start(&one)).await;
    assert_eq!(code, Some(1), "{out}");
    stage.sim.stop().await;
}
