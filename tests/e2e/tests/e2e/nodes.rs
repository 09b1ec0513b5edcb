//! Several agents of unequal size share one queue.

use std::time::Duration;

use crate::rig::{Rig, Settings, job, native};

const QUEUE: Duration = Duration::from_secs(300);

#[tokio::test]
async fn two_unequal_nodes_share_a_queue_and_one_can_be_drained_meanwhile() {
    let mut rig = Rig::start(Settings {
        agents: vec![1, 3],
        ..Settings::default()
    })
    .await;
    let names = rig.node_names();
    let jobs = (0..8)
        .map(|n| job(&format!("job {n}"), &native(), &["sleep 2"]))
        .collect();
    let pushed = rig.push("acme/web", jobs).await;
    // Both full: four at once, no more although forty would fit.
    rig.wait_for(serde_json::json!({"jobs_in_progress": 4}), QUEUE)
        .await;
    let listed = rig.cli_json(&["node", "list"]).await;
    for node in listed.as_array().unwrap() {
        let most = node["max_runners"].as_u64().unwrap();
        assert!(node["runners"].as_u64().unwrap() <= most, "{node:#}");
    }
    rig.drain(&names[1]).await;
    assert_eq!(
        rig.cli_json(&["node", "describe", &names[1]]).await["state"],
        "draining"
    );
    rig.all_end(&pushed.jobs, "success", QUEUE).await;
    // After the drain only the small one served.
    let mut by_node = std::collections::BTreeMap::new();
    for id in &pushed.jobs {
        let job = rig.known_end(*id).await;
        let node = job["node"].as_str().unwrap().to_owned();
        *by_node.entry(node).or_insert(0) += 1;
    }
    assert!(
        by_node.contains_key(&names[0]) && by_node.contains_key(&names[1]),
        "{by_node:?}"
    );
    rig.finish().await;
}
