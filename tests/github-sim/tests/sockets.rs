//! The shell: control API, webhooks over real sockets, clocks, the network namespace, the binary.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use github_sim::control::{Control, ControlError};
use github_sim::machine::{JobSpec, OwnerSpec, RepoSpec, RunSpec};
use github_sim::shell::{Namespace, Options, RunnerListen, Server};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

async fn server() -> (Server, Control) {
    let sim = Server::start(Options {
        runner_keys: 1,
        ..Options::default()
    })
    .await
    .unwrap();
    let control = Control::new(&sim.control_url());
    control
        .post(
            "owners",
            &json!({"login": "acme", "kind": "organization", "members": {"root": "admin"}}),
        )
        .await
        .unwrap();
    control
        .post("repos", &json!({"owner": "acme", "name": "web"}))
        .await
        .unwrap();
    (sim, control)
}

type Received = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// A receiver that answers with one status; its URL and what it got.
async fn receiver(status: StatusCode) -> (String, Received) {
    let got: Received = Arc::default();
    let keep = Arc::clone(&got);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let app = axum::Router::new().route(
        "/hook",
        axum::routing::post(move |headers: HeaderMap, body: Bytes| {
            keep.lock().unwrap().push((headers, body));
            async move { status }
        }),
    );
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, got)
}

async fn waited(control: &Control, until: Value) {
    let (met, state) = control.wait(&until, PATIENCE).await.unwrap();
    assert!(met, "{until}: {state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_made_once_and_what_became_of_them_is_told() {
    let (sim, control) = server().await;
    let (good, got) = receiver(StatusCode::ACCEPTED).await;
    let (bad, refused) = receiver(StatusCode::SERVICE_UNAVAILABLE).await;
    for url in [&good, &bad, &"http://127.0.0.1:9/".to_owned()] {
        let hook =
            json!({"organization": "acme", "url": url, "secret": "s", "events": ["workflow_job"]});
        control.post("hooks", &hook).await.unwrap();
    }
    control
        .post("jobs", &json!({"repository": "acme/web", "labels": ["x"]}))
        .await
        .unwrap();
    waited(&control, json!({"deliveries_idle": true})).await;
    assert_eq!(got.lock().unwrap().len(), 2, "a ping and a job");
    assert_eq!(
        refused.lock().unwrap().len(),
        2,
        "a refused delivery is not repeated"
    );
    let all = control.get("deliveries?payload=1").await.unwrap();
    let jobs: Vec<&Value> = all
        .as_array()
        .unwrap()
        .iter()
        .filter(|d| d["event"] == "workflow_job")
        .collect();
    let mut ends: Vec<&str> = jobs.iter().map(|d| d["status"].as_str().unwrap()).collect();
    ends.sort_unstable();
    assert_eq!(
        ends,
        [
            "Invalid HTTP Response: 503",
            "OK",
            "failed to connect to host"
        ]
    );
    assert!(
        jobs.iter().all(|d| d["guid"] == jobs[0]["guid"]),
        "every hook of one event carries its GUID"
    );
    assert_eq!(jobs[0]["payload"]["workflow_job"]["labels"], json!(["x"]));
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_its_condition_or_with_its_deadline() {
    let (sim, control) = server().await;
    let job = control
        .post(
            "jobs",
            &json!({"repository": "acme/web", "labels": ["x"], "expect": "success"}),
        )
        .await
        .unwrap();
    let id = job["job_id"].as_u64().unwrap();
    let until = json!({"job": id, "status": "completed"});
    let (met, state) = control
        .wait(&until, Duration::from_millis(50))
        .await
        .unwrap();
    assert!(!met);
    assert_eq!(state["job"]["status"], "queued");
    let waiter = control.clone();
    let waiting = tokio::spawn(async move { waiter.wait(&until, PATIENCE).await.unwrap().0 });
    control
        .post(&format!("jobs/{id}/start"), &json!({}))
        .await
        .unwrap();
    control
        .post(
            &format!("jobs/{id}/complete"),
            &json!({"conclusion": "success"}),
        )
        .await
        .unwrap();
    assert!(waiting.await.unwrap());
    let summary = control.get("summary").await.unwrap();
    assert_eq!(summary["expected"], json!({"met": 1, "unmet": []}));
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_control_calls_are_named() {
    let (sim, control) = server().await;
    for (path, body, status, word) in [
        (
            "jobs",
            json!({"repository": "acme/none", "labels": []}),
            404,
            "acme/none",
        ),
        (
            "jobs",
            json!({"repository": "acme/web", "labels": [], "colour": 1}),
            400,
            "colour",
        ),
        (
            "runs",
            json!({"repository": "acme/web", "jobs": []}),
            400,
            "at least one job",
        ),
        (
            "repos",
            json!({"owner": "acme", "name": "web"}),
            409,
            "acme/web",
        ),
        ("clock", json!({"advance_ms": 5}), 400, "virtual"),
        ("wait", json!({"until": {"jib": 1}}), 400, "jib"),
    ] {
        match control.post(path, &body).await {
            Err(ControlError::Refused {
                status: got,
                body: text,
                ..
            }) => {
                assert_eq!(got, status, "{path}: {text}");
                assert!(text.contains(word), "{path}: {text}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    assert!(matches!(
        control.patch("faults", &json!({"webhook_dorp": 1.0})).await,
        Err(ControlError::Refused { status: 400, .. })
    ));
    let kept = control
        .patch("faults", &json!({"webhook_drop": 0.5}))
        .await
        .unwrap();
    let kept2 = control
        .patch("faults", &json!({"busy_lag_ms": 7}))
        .await
        .unwrap();
    assert_eq!(
        (
            &kept["faults"]["webhook_drop"],
            &kept2["faults"]["webhook_drop"]
        ),
        (&json!(0.5), &json!(0.5))
    );
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_log_counts_by_endpoint_and_leaves_control_calls_out() {
    let (sim, control) = server().await;
    let token = control
        .post("tokens", &json!({"login": "root", "scopes": ["repo"]}))
        .await
        .unwrap();
    let rest = Control::new(&sim.rest_url());
    // this client sends no User-Agent: refused, and counted
    assert!(matches!(
        rest.get("user").await,
        Err(ControlError::Refused { status: 403, .. })
    ));
    assert!(token["token"].as_str().unwrap().starts_with("ghp_"));
    let log = control.get("requests").await.unwrap();
    assert_eq!(
        (&log["total"], &log["by_endpoint"][0]["status"]),
        (&json!(1), &json!(403))
    );
    waited(&control, json!({"requests": {"at_least": 1}})).await;
    control.delete("requests").await.unwrap();
    assert_eq!(control.get("requests").await.unwrap()["total"], 0);
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_clock_stands_until_it_is_moved() {
    let sim = Server::start(Options {
        virtual_clock: true,
        runner_keys: 1,
        ..Options::default()
    })
    .await
    .unwrap();
    let control = Control::new(&sim.control_url());
    let run = sim.with(|w| {
        w.add_owner(OwnerSpec::organization("acme")).unwrap();
        w.add_repo(RepoSpec::new("acme", "web")).unwrap();
        w.queue_run(&RunSpec::one("acme/web", JobSpec::new("b", &["x"])))
            .unwrap()
    });
    let before = control.get("health").await.unwrap();
    assert_eq!(before["clock"], "virtual");
    let after = control
        .post("clock", &json!({"advance_ms": 86_400_000}))
        .await
        .unwrap();
    assert_eq!(
        after["now_ms"].as_u64().unwrap() - before["now_ms"].as_u64().unwrap(),
        86_400_000
    );
    let view = control.get(&format!("runs/{run}")).await.unwrap();
    assert_eq!(view["conclusion"], "cancelled", "queued for a day");
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_simulated_end_by_the_real_clock() {
    let (sim, control) = server().await;
    let runner = json!({"scope": "orgs/acme", "name": "theirs", "labels": ["x"]});
    control.post("runners", &runner).await.unwrap();
    let how = json!({"duration_ms": 30});
    let job = control
        .post(
            "jobs",
            &json!({"repository": "acme/web", "labels": ["x"], "simulate": how}),
        )
        .await
        .unwrap();
    waited(&control, json!({"run": job["run_id"]})).await;
    let view = control
        .get(&format!("jobs/{}", job["job_id"]))
        .await
        .unwrap();
    assert_eq!(
        (&view["conclusion"], &view["runner_name"]),
        (&json!("success"), &json!("theirs"))
    );
    let took = view["completed_ms"].as_u64().unwrap() - view["started_ms"].as_u64().unwrap();
    assert!(took >= 30, "{took} ms");
    sim.stop().await;
}

/// A namespace needs root; without it this test can only say so.
#[tokio::test(flavor = "multi_thread")]
async fn the_runner_socket_answers_inside_its_own_namespace_and_is_gone_afterwards() {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root {
        eprintln!("skipped: a network namespace needs root");
        return;
    }
    // every process has its own /30 of the documentation range
    let block = (std::process::id() % 60 + 3) as u8 * 4;
    let spec = Namespace {
        name: format!("gs-test-{}", std::process::id()),
        address: Ipv4Addr::new(198, 51, 100, block + 2),
        host_address: Ipv4Addr::new(198, 51, 100, block + 1),
        port: 80,
    };
    let options = || Options {
        runner: RunnerListen::Namespace(spec.clone()),
        runner_keys: 1,
        ..Options::default()
    };
    let sim = Server::start(options()).await.unwrap();
    assert_eq!(sim.runner_url(), format!("http://{}", spec.address));
    let face = Control::new(sim.runner_url());
    assert_eq!(face.get("livez").await.unwrap(), json!("ok"));
    let second = Server::start(options()).await.err().unwrap();
    assert!(second.to_string().contains("in use"), "{second}");
    sim.stop().await;
    assert!(!std::path::Path::new("/run/netns").join(&spec.name).exists());
    let links = Command::new("ip").args(["-o", "addr"]).output().unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains(&spec.host_address.to_string()), "{links}");
    // and what a dead process left is replaced
    let made = Command::new("ip")
        .args(["netns", "add", &spec.name])
        .status()
        .unwrap();
    assert!(made.success());
    Server::start(options()).await.unwrap().stop().await;
}

#[test]
fn the_binary_says_when_it_is_ready_and_ends_cleanly_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready.json");
    let mut child = Command::new(env!("CARGO_BIN_EXE_github-sim"))
        .args(["--seed", "3", "--ready-file", ready.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(said["pid"], child.id());
    assert_eq!(std::fs::read_to_string(&ready).unwrap(), line);
    assert!(said["control"].as_str().unwrap().ends_with("/_sim"));
    assert!(
        Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
