//! Hosts with GPUs: the shipped agent on a stand-in for the driver's library, and an
//! engine that runs a stand-in for NVIDIA's hook. No real GPU is met here.

pub(crate) mod host;

use std::process::Command;

use longshore_e2e::binaries::Binaries;
use longshore_e2e::wait;
use nvml_fixture::{Memory, Process};
use serde_json::{Value, json};

use crate::rig::{Rig, SOON, Settings, job, own_arch};
use host::{GpuHost, H100, PARTS, RTX};

/// The predecessor's label set.
fn cuda() -> Vec<&'static str> {
    vec!["self-hosted", "linux", own_arch(), "docker", "cuda", "gpu"]
}

async fn rig(host: &GpuHost) -> Rig {
    Rig::start(Settings {
        hosts: vec![host.as_a_node()],
        ..Settings::default()
    })
    .await
}

/// Each GPU of the node: UUID and why it is not offered; nothing when it is.
async fn offers(rig: &Rig) -> Vec<(String, String)> {
    let node = rig.cli_json(&["node", "describe", rig.node()]).await;
    let gpus = node["gpus"].as_array().expect("GPUs").clone();
    let mut list: Vec<(String, String)> = gpus
        .iter()
        .map(|gpu| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let proven = gpu["proven"] == true || !gpu["withheld"].is_null();
            assert!(proven, "neither proven nor withheld: {gpu:#}");
            (text(&gpu["uuid"]), text(&gpu["withheld"]["kind"]))
        })
        .collect();
    list.sort();
    list
}

async fn offers_become(rig: &Rig, expected: &[(&str, &str)]) {
    let mut expected: Vec<(String, String)> = expected
        .iter()
        .map(|(uuid, why)| ((*uuid).to_owned(), (*why).to_owned()))
        .collect();
    expected.sort();
    wait::until("the node to offer other GPUs", SOON, || async {
        let now = offers(rig).await;
        match now == expected {
            true => Ok(()),
            false => Err(format!("{now:?}, not {expected:?}")),
        }
    })
    .await
    .unwrap();
}

/// Of a host whose first GPU is cut into instances.
const CUT: [(&str, &str); 4] = [
    (H100, "gpu_mig_enabled"),
    (PARTS[0], ""),
    (PARTS[1], ""),
    (RTX, ""),
];

/// A condition of the node, by its kind; nothing without one. One GPU keeps nothing else
/// away: the node is ready, or will be as soon as an engine that came back was asked.
async fn condition(rig: &Rig, kind: &str) -> String {
    let node = wait::until("the node to be ready", SOON, || async {
        let node = rig.cli_json(&["node", "describe", rig.node()]).await;
        match node["state"] == "ready" {
            true => Ok(node),
            false => Err(format!("{node:#}")),
        }
    });
    let node = node.await.unwrap();
    let list = node["conditions"].as_array().expect("conditions");
    let told = list.iter().find(|told| told["kind"] == kind);
    told.map(Value::to_string).unwrap_or_default()
}

/// Waits until the node's condition of this kind has all these words.
async fn is_told(rig: &Rig, kind: &str, words: &[&str]) {
    wait::until("the node to tell of it", SOON, || async {
        let told = condition(rig, kind).await;
        match words.iter().all(|words| told.contains(words)) {
            true => Ok(()),
            false => Err(told),
        }
    })
    .await
    .unwrap();
}

/// Waits until it is told with all these words why the job waits.
async fn is_explained(rig: &Rig, job: u64, words: &[&str]) {
    wait::until("the job to be explained", SOON, || async {
        let output = rig.cli(&["explain", &job.to_string(), "-o", "json"]).await;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        match words.iter().all(|words| told.contains(words)) {
            true => Ok(()),
            // The fleet hears of the job by a webhook, a moment later.
            false => Err(told),
        }
    })
    .await
    .unwrap();
}

/// What the step of a job printed.
async fn printed(rig: &Rig, id: u64) -> String {
    let job = rig.job(id).await;
    job["steps"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cuda_job_gets_its_gpu_alone_and_a_job_without_one_sees_none() {
    let mut host = GpuHost::new(&Binaries::find().unwrap(), false);
    let mut rig = rig(&host).await;
    offers_become(&rig, &[(H100, ""), (RTX, "")]).await;
    let node = rig.cli_json(&["node", "describe", rig.node()]).await;
    let labels = node["labels"].to_string();
    assert!(
        labels.contains("\"cuda\"") && labels.contains("\"gpu\""),
        "{labels}"
    );
    assert_eq!(node["capacity"]["gpus"], 2);

    let look = "echo visible=$NVIDIA_VISIBLE_DEVICES; for n in /dev/nvidia[0-9]*; do test -c $n && echo node=$n; done; true";
    // Which runner takes which of them GitHub decides, and a runner with a GPU fits every job:
    // the third is asked for when two run, the one without when none is left that has one.
    let two = vec![
        job("one", &cuda(), &[look, "sleep 20"]),
        job("two", &cuda(), &[look, "sleep 20"]),
    ];
    let first = rig.push("acme/web", two).await.jobs;
    for id in [first[0], first[1], first[0]] {
        let seen = rig.job_is(id, "in_progress").await;
        assert_eq!(seen["status"], "in_progress", "two run at once");
    }
    let third = vec![job("three", &cuda(), &[look])];
    let third = rig.push("acme/web", third).await.jobs;
    let all = [first[0], first[1], third[0]];
    rig.all_end(&all, "success", SOON * 2).await;
    let plain = job("plain", &["self-hosted", "linux", own_arch()], &[look]);
    let plain = rig.push("acme/web", vec![plain]).await.jobs;
    rig.all_end(&plain, "success", SOON).await;
    let mut seen = Vec::new();
    for id in &all {
        let text = printed(&rig, *id).await;
        assert_eq!(text.matches("node=/dev/nvidia").count(), 1, "{text}");
        let (minor, uuid) = match text.contains("node=/dev/nvidia0") {
            true => (0, H100),
            false => (1, RTX),
        };
        assert!(text.contains(&format!("node=/dev/nvidia{minor}")), "{text}");
        assert!(text.contains(&format!("visible={uuid}")), "{text}");
        seen.push(minor);
    }
    seen[..2].sort_unstable();
    assert_eq!(seen[..2], [0, 1], "two at once had one each");
    let plain = printed(&rig, plain[0]).await;
    assert!(plain.contains("visible=void"), "{plain}");
    assert!(!plain.contains("node=/dev/nvidia"), "{plain}");

    // A program of somebody else's keeps a GPU until it ends.
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    host.used_by(RTX, &[stranger.id()]);
    offers_become(&rig, &[(H100, ""), (RTX, "gpu_in_foreign_use")]).await;
    is_told(&rig, "gpu_in_foreign_use", &["sleep"]).await;
    host.used_by(RTX, &[]);
    stranger.kill().and_then(|()| stranger.wait()).unwrap();
    offers_become(&rig, &[(H100, ""), (RTX, "")]).await;

    // An error of a program harms nobody; one of a GPU takes that GPU away, and the job on it goes on.
    let long = rig
        .push(
            "acme/web",
            vec![job("long", &cuda(), &["sleep 20; echo unharmed"])],
        )
        .await;
    rig.job_is(long.jobs[0], "in_progress").await;
    host.xid(RTX, 31);
    host.xid(RTX, 79);
    offers_become(&rig, &[(H100, ""), (RTX, "gpu_fault")]).await;
    is_told(&rig, "gpu_fault", &["Xid 79"]).await;
    host.lose(H100);
    offers_become(&rig, &[(H100, "gpu_lost"), (RTX, "gpu_fault")]).await;
    rig.all_end(&long.jobs, "success", SOON).await;

    // Nothing is left to give: the job waits, and is told why.
    let last = rig
        .push("acme/web", vec![job("last", &cuda(), &["true"])])
        .await;
    is_explained(&rig, last.jobs[0], &["Xid 79", "no_gpu"]).await;
    rig.cancel(last.run).await;
    rig.wait_for(json!({"job": last.jobs[0], "status": "completed"}), SOON)
        .await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_offered_instead_of_the_gpu_they_are_cut_from() {
    let host = GpuHost::new(&Binaries::find().unwrap(), true);
    let mut rig = rig(&host).await;
    offers_become(&rig, &CUT).await;
    let node = rig.cli_json(&["node", "describe", rig.node()]).await;
    let part = node["gpus"]
        .as_array()
        .unwrap()
        .iter()
        .find(|gpu| gpu["uuid"] == PARTS[0]);
    let part = part.expect("an instance").clone();
    assert_eq!(
        (&part["parent_uuid"], &part["mig_profile"]),
        (&json!(H100), &json!("3g.40gb"))
    );
    assert_eq!(
        condition(&rig, "gpu_mig_enabled").await,
        "",
        "that is no fault"
    );

    // Only instances have that much memory and that model.
    rig.cli_out(&[
        "pool",
        "set",
        "large",
        "--gpu-memory",
        "30g",
        "--gpu-model",
        "h100",
        "--gpu-compute-capability",
        "9.0",
    ])
    .await;
    let look = "ls /dev/nvidia-caps; sleep 4";
    let pushed = rig
        .push(
            "acme/web",
            vec![job("one", &cuda(), &[look]), job("two", &cuda(), &[look])],
        )
        .await;
    rig.all_end(&pushed.jobs, "success", SOON * 2).await;
    let mut caps = Vec::new();
    for id in &pushed.jobs {
        let text = printed(&rig, *id).await;
        assert_eq!(text.matches("nvidia-cap1").count(), 1, "{text}");
        caps.push(text.contains("nvidia-cap12"));
    }
    caps.sort_unstable();
    assert_eq!(caps, [false, true], "each had an instance of its own");

    rig.cli_out(&["pool", "set", "large", "--gpu-memory", "60g"])
        .await;
    let pushed = rig
        .push("acme/web", vec![job("huge", &cuda(), &["true"])])
        .await;
    is_explained(&rig, pushed.jobs[0], &["at least 61440 MiB", "40448 MiB"]).await;
    rig.cancel(pushed.run).await;
    rig.wait_for(json!({"job": pushed.jobs[0], "status": "completed"}), SOON)
        .await;
    rig.finish().await;
}

/// In use on a device, and what its accounts say.
fn memory(used_mib: u64, accounts: Option<&[(u32, u64)]>) -> Memory {
    let process = |(pid, mib): &(u32, u64)| Process {
        pid: *pid,
        memory_bytes: mib << 20,
    };
    Memory {
        used_bytes: used_mib << 20,
        untold: false,
        accounts: accounts.map(|list| list.iter().map(process).collect()),
    }
}

/// A job once its runner's end is known: GitHub may tell of the job's before.
async fn used(rig: &Rig, id: u64) -> Value {
    let id = id.to_string();
    wait::until("the runner's end to be known", SOON, || async {
        let told = rig.cli_json(&["job", "describe", &id]).await;
        match told["gpus"].is_null() {
            false => Ok(told),
            true => Err(told.to_string()),
        }
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_gpu_memory_that_a_job_had_is_told_or_that_nobody_can_tell() {
    let mut host = GpuHost::new(&Binaries::find().unwrap(), true);
    // One without accounts, one that tells nothing, one with the account of an earlier program.
    host.memory(PARTS[0], memory(100, None));
    let untold = Memory {
        untold: true,
        ..Memory::default()
    };
    host.memory(PARTS[1], untold);
    host.memory(RTX, memory(200, Some(&[(17, 20_000)])));
    let mut rig = rig(&host).await;
    offers_become(&rig, &CUT).await;
    let steps = ["echo visible=$NVIDIA_VISIBLE_DEVICES; sleep 20"];
    let mut jobs = vec![];
    for name in ["one", "two", "three"] {
        jobs.push(job(name, &cuda(), &steps));
    }
    let pushed = rig.push("acme/web", jobs).await;
    for id in &pushed.jobs[..3] {
        rig.job_is(*id, "in_progress").await;
    }
    host.memory(PARTS[0], memory(100 + 5_000, None));
    host.memory(
        RTX,
        memory(200 + 1_000, Some(&[(17, 20_000), (18, 9_000), (19, 10)])),
    );
    rig.all_end(&pushed.jobs, "success", SOON * 2).await;
    let mut seen = vec![];
    for id in &pushed.jobs[..3] {
        let text = printed(&rig, *id).await;
        let all = [PARTS[0], PARTS[1], RTX];
        let on = all.into_iter().find(|uuid| text.contains(uuid));
        let on = on.unwrap_or_else(|| panic!("on no GPU: {text}"));
        let told = used(&rig, *id).await;
        let page = rig.cli_out(&["job", "describe", &id.to_string()]).await;
        let line = page.lines().find(|line| line.contains("Peak GPU memory"));
        let (bytes, words) = match on {
            RTX => (json!(9_000_u64 << 20), "8.8 GiB"),
            on if on == PARTS[0] => (json!(5_000_u64 << 20), "4.9 GiB"),
            _ => (Value::Null, "unknown"),
        };
        assert_eq!(
            (&told["peak_gpu_memory_bytes"], &told["gpus"]),
            (&bytes, &json!(1))
        );
        assert!(line.is_some_and(|line| line.contains(words)), "{page}");
        seen.push(on);
    }
    seen.sort_unstable();
    assert_eq!(seen, [RTX, PARTS[0], PARTS[1]], "each had one of its own");
    // When no runner with a GPU is left that GitHub could give it to.
    let labels = ["self-hosted", "linux", own_arch()];
    let plain = rig.push("acme/web", vec![job("plain", &labels, &["true"])]);
    let plain = plain.await.jobs;
    rig.all_end(&plain, "success", SOON).await;
    used(&rig, plain[0]).await;
    let page = rig
        .cli_out(&["job", "describe", &plain[0].to_string()])
        .await;
    assert!(
        page.contains("Peak memory") && !page.contains("GPU memory"),
        "{page}"
    );
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_no_container_sees_is_not_offered_until_the_engine_can() {
    let host = GpuHost::new(&Binaries::find().unwrap(), false);
    // The engine injects a second device: not exactly that GPU.
    std::fs::write(host.path("one-too-many"), "").unwrap();
    let mut rig = rig(&host).await;
    offers_become(&rig, &[(H100, "gpu_unproven"), (RTX, "gpu_unproven")]).await;
    is_told(&rig, "gpu_unproven", &["saw other GPUs"]).await;
    let node = rig.cli_json(&["node", "describe", rig.node()]).await;
    assert!(!node["labels"].to_string().contains("cuda"), "{node:#}");
    std::fs::remove_file(host.path("one-too-many")).unwrap();
    // The hook's own error is told; after the engine's next start all is well.
    std::fs::write(host.path("broken"), "").unwrap();
    rig.crash_own_engine();
    is_told(
        &rig,
        "gpu_unproven",
        &["driver not loaded", "nvidia-container-toolkit"],
    )
    .await;
    std::fs::remove_file(host.path("broken")).unwrap();
    rig.crash_own_engine();
    offers_become(&rig, &[(H100, ""), (RTX, "")]).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn detect_tells_everything_and_changes_nothing() {
    let binaries = Binaries::find().unwrap();
    let host = GpuHost::new(&binaries, true);
    let run = |environment: Vec<(String, String)>, more: &[&str]| {
        let output = Command::new(binaries.program("longshore-agent").unwrap())
            .args([
                "detect",
                "--json",
                "--engine-socket",
                "/nowhere/docker.sock",
            ])
            .args(more)
            .envs(environment)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let found = run(host.environment(), &[]);
    let gpus = found["host"]["nvidia"]["gpus"].as_array().unwrap().clone();
    let of = |uuid: &str| {
        gpus.iter()
            .find(|gpu| gpu["uuid"] == uuid)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(gpus.len(), 4);
    let h100 = of(H100);
    for (key, value) in [
        ("product", json!("NVIDIA H100 80GB HBM3")),
        ("architecture", json!("Hopper")),
        ("brand", json!("Nvidia")),
        ("memory_mib", json!(81_559)),
        ("compute_capability", json!("9.0")),
        ("pci_bus_id", json!("0000:05:00.0")),
        ("mig_enabled", json!(true)),
        ("health", json!("good")),
    ] {
        assert_eq!(h100[key], value, "{key}");
    }
    assert_eq!(of(PARTS[1])["parent_uuid"], H100);
    assert_eq!(of(RTX)["compute_capability"], "8.6");
    assert_eq!(found["host"]["nvidia"]["driver_version"], "550.54.15");
    assert_eq!(found["host"]["nvidia"]["cuda_version"], "12.4");
    let evidence = found["capability"]["evidence"].to_string();
    assert!(
        evidence.contains("has not been proven by the start of a container"),
        "{evidence}"
    );
    assert_eq!(found["capability"]["capacity"]["gpus"], 0);

    // A host without the library says so, and a recorded host is read from its files.
    let found = run(vec![], &[]);
    assert!(
        !found["host"]["nvidia"]["note"].as_str().unwrap().is_empty()
            || found["host"]["nvidia"]["source"] == "nvml"
    );
    let tree = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../node-agent/detect/fixtures/gpu-tree"
    );
    let found = run(
        host.environment(),
        &[
            "--probe-root",
            &std::fs::canonicalize(tree).unwrap().to_string_lossy(),
        ],
    );
    assert_eq!(found["host"]["nvidia"]["source"], "cdi");
    assert_eq!(found["host"]["nvidia"]["gpus"].as_array().unwrap().len(), 3);
}
