//! Two nodes of unequal size, each with a container engine of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore_e2e::wait;
use serde_json::json;

use crate::rig::{
    Host, LIVE_RESTORE, PLAIN, Rig, SOON, Settings, foreign, job, native, other_arch,
};

/// The whole queue on a busy machine of two cores.
const QUEUE: Duration = Duration::from_secs(400);

/// How many of these jobs each node ran.
async fn shares(rig: &Rig, jobs: &[u64]) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for id in jobs {
        let job = rig.known_end(*id).await;
        let node = job["node"].as_str().unwrap().to_owned();
        *shares.entry(node).or_default() += 1;
    }
    shares
}

fn own(engine: &'static str, most: u32) -> Host {
    Host {
        engine,
        max_runners: Some(most),
        ..Host::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_repositories_with_41_jobs_of_which_12_need_another_architecture() {
    let mut rig = Rig::start(Settings {
        repos: vec!["acme/web", "acme/api", "acme/tools"],
        agents: vec![2],
        hosts: vec![own(PLAIN, 4)],
        ..Settings::default()
    })
    .await;
    let (native, foreign) = (native(), foreign());
    let jobs = |here: usize, elsewhere: usize| {
        let mut jobs = Vec::new();
        for n in 0..here {
            jobs.push(job(&format!("job {n}"), &native, &["sleep 3; echo done"]));
        }
        for n in 0..elsewhere {
            jobs.push(job(&format!("other {n}"), &foreign, &["echo never"]));
        }
        jobs
    };
    let mut served = Vec::new();
    let mut waiting = Vec::new();
    for (repo, here, elsewhere) in [
        ("acme/web", 8, 12),
        ("acme/api", 14, 0),
        ("acme/tools", 7, 0),
    ] {
        let pushed = rig.push(repo, jobs(here, elsewhere)).await;
        served.extend_from_slice(&pushed.jobs[..here]);
        waiting.extend_from_slice(&pushed.jobs[here..]);
    }
    assert_eq!(served.len() + waiting.len(), 41);
    // Both full, and neither fuller than it is big.
    rig.wait_for(json!({"jobs_in_progress": 6}), QUEUE).await;
    for node in rig.cli_json(&["node", "list"]).await.as_array().unwrap() {
        let most = node["max_runners"].as_u64().unwrap();
        assert!(node["runners"].as_u64().unwrap() <= most, "{node:#}");
    }
    rig.all_end(&served, "success", QUEUE).await;

    // The bigger node has two thirds of the places and did about two thirds of the work.
    let shares = shares(&rig, &served).await;
    let names = rig.node_names();
    let of = |node: usize| shares.get(&names[node]).copied().unwrap_or_default();
    assert_eq!(of(0) + of(1), served.len(), "{shares:?}");
    assert!((5..=14).contains(&of(0)), "{shares:?}");

    // Counts are shown, by architecture.
    let line = format!("12 filtered: no node can run {}\n", other_arch());
    for command in ["status", "list-workflows"] {
        wait::until("the filtered jobs to be counted", SOON, || async {
            let text = rig.cli_out(&["runner", command, "-o", "table"]).await;
            match text.contains(&line) {
                true => Ok(()),
                false => Err(text),
            }
        })
        .await
        .unwrap();
    }
    let status = rig.cli_json(&["runner", "status"]).await;
    assert_eq!(status["filtered"], json!({other_arch(): 12}));
    assert_eq!(status["queued_workflows"], 12);
    assert_eq!(status["repositories_monitored"], 3);
    let queues = rig.cli_json(&["runner", "list-workflows"]).await;
    let of = |repo: &str| {
        let mut queues = queues.as_array().unwrap().iter();
        queues
            .find(|q| q["repo"] == repo)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(of("acme/web")["filtered"][other_arch()], 12);
    assert_eq!(of("acme/api")["filtered"], json!({}));

    // None was started in vain.
    assert_eq!(rig.registrations_ever().await, served.len());
    for id in &waiting {
        assert_eq!(rig.job(*id).await["status"], "queued");
    }
    let why = rig.cli_json(&["explain", &waiting[0].to_string()]).await;
    for node in why["nodes"].as_array().unwrap() {
        assert_eq!(node["feasible"], false, "{why:#}");
        assert_eq!(node["reasons"][0]["code"], "missing_label", "{why:#}");
    }
    rig.finish().await;
}

/// A queue on both nodes, some of it running on each.
async fn a_queue_under_way(how: &'static str) -> (Rig, Vec<u64>) {
    let mut rig = Rig::start(Settings {
        agents: vec![1],
        hosts: vec![own(how, 2)],
        ..Settings::default()
    })
    .await;
    let steps = ["echo started", "sleep 6", "echo finished"];
    let jobs = (0..8)
        .map(|n| job(&format!("job {n}"), &native(), &steps))
        .collect();
    let pushed = rig.push("acme/web", jobs).await;
    rig.wait_for(json!({"jobs_in_progress": 3}), QUEUE).await;
    (rig, pushed.jobs)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_takes_its_jobs_along_and_nothing_else() {
    let (mut rig, jobs) = a_queue_under_way(PLAIN).await;
    let on = rig.node_names()[1].clone();
    let lost = wait::until("both runners of the second node to work", SOON, || async {
        let listed = rig.cli_json(&["runner", "list-containers"]).await;
        let busy = listed.as_array().unwrap().iter();
        let names: Vec<String> = busy
            .filter(|c| c["node"] == on && c["state"] == "busy")
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect();
        match names.len() {
            2 => Ok(names),
            _ => Err(format!("{listed:#}")),
        }
    })
    .await
    .unwrap();
    rig.crash_own_engine();

    // The fleet says whose fault it was; GitHub only sees jobs that were cancelled.
    wait::until("the lost runners' ends to be known", SOON, || async {
        let all = rig.cli_json(&["runner", "list-containers", "--all"]).await;
        let all = all.as_array().unwrap();
        let ended = |name: &String| {
            all.iter()
                .any(|c| c["name"] == **name && c["exit"]["cause"] == "engine")
        };
        match lost.iter().all(ended) {
            true => Ok(()),
            false => Err(format!("{all:#?}")),
        }
    })
    .await
    .unwrap();
    let mut others = Vec::new();
    let mut given_up = Vec::new();
    for id in jobs {
        let job = rig.job(id).await;
        let runner = job["runner_name"].as_str().unwrap_or_default().to_owned();
        match lost.contains(&runner) {
            true => given_up.push(id),
            false => others.push(id),
        }
    }
    assert_eq!(given_up.len(), lost.len());
    // Told to end by the engine that came back, their runner programs said goodbye.
    rig.all_end(&given_up, "cancelled", SOON).await;
    rig.all_end(&others, "success", QUEUE).await;
    let served = shares(&rig, &others).await;
    assert!(served.contains_key(&on), "it works again: {served:?}");

    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_live_restore_dies_and_no_job_notices() {
    let (mut rig, jobs) = a_queue_under_way(LIVE_RESTORE).await;
    rig.crash_own_engine();
    rig.all_end(&jobs, "success", QUEUE).await;
    for id in &jobs {
        let job = rig.job(*id).await;
        assert_eq!(job["assignments"].as_array().unwrap().len(), 1, "{job:#}");
    }
    let served = shares(&rig, &jobs).await;
    assert_eq!(served.len(), 2, "{served:?}");
    rig.finish().await;
}
