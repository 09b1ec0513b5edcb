//! Several hosts of different hardware and one scheduler: network, engine and agent of each are its own.
//!
//! What stands in: the GPU's driver library, and the files of a recorded arm64 host whose jobs
//! run under emulation. Everything else is as on machines that stand apart: each host joined
//! by its own token and reaches the scheduler over a network that can fail.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use longshore_e2e::binaries::Binaries;
use longshore_e2e::wait;
use serde_json::{Value, json};

use crate::gpu::host::GpuHost;
use crate::image;
use crate::rig::{Host, PLAIN, Pushed, Rig, SOON, Settings, job, own_arch};

const LONG: Duration = Duration::from_secs(300);
/// Of a certificate, where a test is about that.
const LIFE: Duration = Duration::from_secs(15);

fn labels(more: &[&'static str]) -> Vec<&'static str> {
    [&["self-hosted", "linux"], more].concat()
}

fn plain() -> Host {
    Host {
        engine: PLAIN,
        max_runners: Some(4),
        ..Host::default()
    }
}

fn arm(image: &str) -> Host {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../node-agent/detect/fixtures/arm64-tree")
        .canonicalize()
        .unwrap();
    Host {
        engine: PLAIN,
        max_runners: Some(2),
        images: vec![image.to_owned()],
        env: vec![(
            "LONGSHORE_PROBE_ROOT".to_owned(),
            tree.display().to_string(),
        )],
        arm: true,
        ..Host::default()
    }
}

async fn pool(rig: &Rig, name: &str, more: &[&'static str], flags: &[&str]) {
    let mut call = vec!["pool", "set", name];
    call.extend(labels(more).iter().flat_map(|label| ["--label", label]));
    call.extend(flags);
    rig.cli_out(&call).await;
}

/// The node each of these jobs ran on.
async fn nodes_of(rig: &Rig, jobs: &[u64]) -> Vec<String> {
    let mut nodes = Vec::new();
    for id in jobs {
        let ended = rig.known_end(*id).await;
        nodes.push(ended["node"].as_str().unwrap_or_default().to_owned());
    }
    nodes
}

/// Waits until a node is in this state.
async fn becomes(rig: &Rig, node: &str, state: &str) {
    wait::until(&format!("{node} to be {state}"), SOON, || async {
        let told = rig.cli_json(&["node", "describe", node]).await;
        match told["state"] == state {
            true => Ok(()),
            false => Err(format!("{told:#}")),
        }
    })
    .await
    .unwrap();
}

/// Two jobs of this kind at the same time.
async fn two_at_once(rig: &mut Rig, kind: &'static str) -> BTreeSet<String> {
    let both = ["one", "two"].map(|name| job(name, &labels(&[own_arch(), kind]), &["sleep 8"]));
    let Pushed { jobs, .. } = rig.push("acme/web", both.into()).await;
    for id in [jobs[0], jobs[1], jobs[0]] {
        let seen = rig.job_is(id, "in_progress").await;
        assert_eq!(seen["status"], "in_progress", "they run at once");
    }
    rig.all_end(&jobs, "success", SOON).await;
    nodes_of(rig, &jobs).await.into_iter().collect()
}

async fn assignments(rig: &Rig, id: u64) -> usize {
    let job = rig.job(id).await;
    job["assignments"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_land_where_their_labels_say_and_operators_steer_the_rest() {
    let gpu = GpuHost::new(&Binaries::find().unwrap(), false);
    let arm_image = image::runner_for("arm64");
    let mut rig = Rig::start(Settings {
        hosts: vec![plain(), plain(), gpu.as_a_node(), arm(&arm_image)],
        ..Settings::default()
    })
    .await;
    let names = rig.node_names();
    let [first, second, with_gpus, on_arm] = &names[..] else {
        panic!("{names:?}")
    };
    let image = ["--image", &arm_image];
    pool(&rig, "arm", &["arm64"], &image).await;
    pool(
        &rig,
        "wide",
        &[own_arch(), "wide"],
        &["--placement", "spread"],
    )
    .await;
    pool(
        &rig,
        "dense",
        &[own_arch(), "dense"],
        &["--placement", "pack"],
    )
    .await;
    wait::until("the GPUs to be offered", SOON, || async {
        let told = rig.cli_json(&["node", "describe", with_gpus]).await;
        match told["capacity"]["gpus"] == 2 {
            true => Ok(()),
            false => Err(format!("{told:#}")),
        }
    })
    .await
    .unwrap();

    let run = vec![
        job("gpu", &labels(&["cuda"]), &["true"]),
        job("arm", &labels(&["arm64"]), &["uname -m"]),
    ];
    let landed = rig.push("acme/web", run).await.jobs;
    rig.all_end(&landed, "success", LONG).await;
    assert_eq!(
        nodes_of(&rig, &landed).await,
        [with_gpus.as_str(), on_arm.as_str()]
    );
    let machine = rig.job(landed[1]).await["steps"].to_string();
    assert!(machine.contains("aarch64"), "{machine}");

    let spread = two_at_once(&mut rig, "wide").await;
    let ordinary = BTreeSet::from([first.clone(), second.clone()]);
    // The host with GPUs is kept for those who need them.
    assert_eq!(spread, ordinary);
    let packed = two_at_once(&mut rig, "dense").await;
    assert_eq!(packed.len(), 1, "packed onto one host: {packed:?}");

    // Cordoned hosts get nothing more; uncordoned they do.
    rig.cli_out(&["node", "cordon", second]).await;
    rig.cli_out(&["node", "cordon", with_gpus]).await;
    let waits = rig
        .push("acme/web", vec![job("gpu", &labels(&["cuda"]), &["true"])])
        .await
        .jobs;
    let seen = two_at_once(&mut rig, "wide").await;
    assert_eq!(seen, BTreeSet::from([first.clone()]));
    rig.cli_out(&["node", "uncordon", second]).await;
    assert_eq!(rig.job(waits[0]).await["status"], "queued");
    rig.cli_out(&["node", "uncordon", with_gpus]).await;
    rig.all_end(&waits, "success", SOON).await;

    // A drain with a deadline ends what still runs then, and says so.
    let stuck = vec![job("stuck", &labels(&["cuda"]), &["sleep 600"])];
    let stuck = rig.push("acme/web", stuck).await.jobs;
    rig.job_is(stuck[0], "in_progress").await;
    rig.cli_out(&["node", "drain", with_gpus, "--deadline", "3s"])
        .await;
    wait::until("the job to be told why it ended", SOON, || async {
        let told = rig
            .cli_json(&["job", "describe", &stuck[0].to_string()])
            .await;
        match told["ending"].to_string().contains("drain") {
            true => Ok(()),
            false => Err(format!("{told:#}")),
        }
    })
    .await
    .unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_cut_off_upgraded_and_lost_and_no_job_runs_twice() {
    let mut rig = Rig::start(Settings {
        hosts: vec![plain(), plain(), plain()],
        scheduler: vec!["--node-lease", "5s"],
        ..Settings::default()
    })
    .await;
    let names = rig.node_names();
    let step = |seconds: u32| format!("echo begun; sleep {seconds}; echo done");
    let one = |seconds| vec![job("one", &labels(&[own_arch()]), &[&step(seconds)])];

    // Cut off: the job runs on and ends once, on the host it began on.
    let cut = rig.push("acme/web", one(25)).await.jobs[0];
    let begun = rig.job_is(cut, "in_progress").await;
    let host = node_of(&rig, &begun).await;
    rig.cut(&host, true);
    becomes(&rig, &host, "unreachable").await;
    rig.cut(&host, false);
    becomes(&rig, &host, "ready").await;
    rig.all_end(&[cut], "success", LONG).await;
    assert_eq!(nodes_of(&rig, &[cut]).await, [host.as_str()]);
    assert_eq!(assignments(&rig, cut).await, 1, "it ran once");

    // Upgraded in place: the agent ends and another starts under the same job.
    let upgraded = rig.push("acme/web", one(15)).await.jobs[0];
    let begun = rig.job_is(upgraded, "in_progress").await;
    let host = node_of(&rig, &begun).await;
    rig.upgrade_agent(&host).await;
    rig.all_end(&[upgraded], "success", LONG).await;
    assert_eq!(assignments(&rig, upgraded).await, 1, "it ran once");

    // Lost for good: the job's end is told, and what comes next runs elsewhere.
    let lost = rig.push("acme/web", one(900)).await.jobs[0];
    let begun = rig.job_is(lost, "in_progress").await;
    let host = node_of(&rig, &begun).await;
    rig.power_off(&host).await;
    becomes(&rig, &host, "unreachable").await;
    let next = rig.push("acme/web", one(1)).await.jobs;
    rig.all_end(&next, "success", LONG).await;
    assert_ne!(nodes_of(&rig, &next).await, [host.as_str()]);
    assert_eq!(
        rig.job(lost).await["status"],
        "in_progress",
        "GitHub still waits"
    );
    rig.cli_out(&["node", "remove", &host]).await;
    wait::until(
        "the runner of the lost host to be retired",
        SOON,
        || async {
            let all = rig.cli_json(&["runner", "list-containers", "--all"]).await;
            let rows = all["containers"].as_array().or(all.as_array()).cloned();
            let of_host = |row: &&Value| row["node"] == host && row["status"] != "exited";
            let left: Vec<_> = rows.iter().flatten().filter(of_host).cloned().collect();
            match left.is_empty() {
                true => Ok(()),
                false => Err(format!("{left:?}")),
            }
        },
    )
    .await
    .unwrap();
    // GitHub gives up fifteen minutes after the runner's last sign of life.
    let clock = |body: Value| rig.sim.control("clock", body);
    clock(json!({"mode": "virtual"})).await.unwrap();
    clock(json!({"mode": "virtual", "advance_ms": 16 * 60_000}))
        .await
        .unwrap();
    rig.job_is(lost, "completed").await;
    rig.known_end(lost).await;
    let told = rig.cli_json(&["job", "describe", &lost.to_string()]).await;
    assert!(
        told.to_string().contains("node"),
        "it is told why: {told:#}"
    );
    assert_eq!(rig.node_names().len(), names.len() - 1);
    rig.finish().await;
}

/// The node of the runner that a job was given to.
async fn node_of(rig: &Rig, job: &Value) -> String {
    let runner = job["runner_name"].as_str().expect("a runner").to_owned();
    let mut node = String::new();
    wait::until("the runner's node to be known", SOON, || async {
        let all = rig.cli_json(&["runner", "list-containers"]).await;
        match all.to_string().contains(&runner) {
            true => Ok(()),
            false => Err(format!("{all:#}")),
        }
    })
    .await
    .unwrap();
    let all = rig.cli_json(&["runner", "list-containers"]).await;
    let rows = all["containers"].as_array().or(all.as_array()).cloned();
    for row in rows.into_iter().flatten() {
        if row.to_string().contains(&runner) {
            node = row["node"].as_str().unwrap_or_default().to_owned();
        }
    }
    node
}

/// The agent's certificate as it lies on disk.
fn certificate(rig: &Rig, node: &str) -> String {
    let file = rig.agent_state(node).join("identity/node.pem");
    std::fs::read_to_string(file).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_renews_its_certificate_and_one_that_missed_it_joins_again() {
    let mut rig = Rig::start(Settings {
        scheduler: vec!["--certificate-life", "15s"],
        ..Settings::default()
    })
    .await;
    let node = rig.node().to_owned();
    let first = certificate(&rig, &node);
    let job = rig
        .push(
            "acme/web",
            vec![job("long", &labels(&[own_arch()]), &["sleep 25"])],
        )
        .await
        .jobs;
    wait::until("two renewals", SOON, || async {
        let audit = rig.cli_out(&["audit", "list", "-o", "json"]).await;
        match audit.matches("NodeService/Renew").count() {
            0 | 1 => Err(audit),
            _ => Ok(()),
        }
    })
    .await
    .unwrap();
    assert_ne!(certificate(&rig, &node), first);
    // The stream that the first certificate opened is older than any certificate lives.
    rig.all_end(&job, "success", SOON).await;
    becomes(&rig, &node, "ready").await;
    rig.upgrade_agent(&node).await;
    becomes(&rig, &node, "ready").await;

    // Away for longer than its certificate lives: told what to do, and let in by a new token.
    let last = certificate(&rig, &node);
    let told = rig.agent_missed_its_renewal(&node, LIFE).await;
    assert!(
        told.contains("join again") || told.contains("expired"),
        "{told}"
    );
    becomes(&rig, &node, "ready").await;
    assert_ne!(certificate(&rig, &node), last);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_scheduler_lets_nobody_in_and_says_so() {
    let rig = Rig::start(Settings::default()).await;
    let other = Rig::start(Settings::default()).await;
    let told = rig.join_with_a_token_of(&other).await;
    assert!(
        told.contains("is not the one that made the join token"),
        "{told}"
    );
    rig.finish().await;
    other.finish().await;
}
