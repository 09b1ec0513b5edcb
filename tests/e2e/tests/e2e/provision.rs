//! Runners beyond demand, for a while.

use longshore_e2e::wait;
use serde_json::json;

use crate::rig::{Rig, SOON, Settings, job, native};

#[tokio::test]
async fn provisioned_runners_wait_for_work_and_take_it() {
    let mut rig = Rig::start(Settings::default()).await;
    let label = native().join(",");
    let args = [
        "runner",
        "provision",
        "--repo",
        "acme/web",
        "--count",
        "2",
        "--label",
        &label,
    ];
    let dry = [&args[..], &["--dry-run"]].concat();
    wait::until("the node's labels to be committed", SOON, || async {
        let output = rig.cli(&dry).await;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    })
    .await
    .unwrap();
    assert_eq!(
        rig.registrations_ever().await,
        0,
        "a dry run starts nothing"
    );
    let provisioned = rig.cli_json(&args).await;
    assert_eq!(provisioned[0]["count"], 2, "{provisioned:#}");
    assert_eq!(provisioned[0]["problem"], serde_json::Value::Null);
    rig.wait_for(json!({"runners_online": 2}), SOON).await;
    let status = rig.cli_json(&["runner", "status"]).await;
    assert!(status["active_runners"].as_u64() >= Some(2), "{status:#}");
    let pushed = rig
        .push("acme/web", vec![job("build", &native(), &["true"])])
        .await;
    rig.all_end(&pushed.jobs, "success", SOON).await;
    rig.finish().await;
}

#[tokio::test]
async fn what_cannot_be_provisioned_is_said_at_once() {
    let rig = Rig::start(Settings::default()).await;
    for missing in [
        ["--repo", "nobody/none"],
        ["--repo", "acme/none"],
        ["--pool", "no-such-pool"],
    ] {
        let output = rig
            .cli(&[&["runner", "provision"], &missing[..]].concat())
            .await;
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
    let label = "self-hosted,quantum";
    let args = [
        "runner",
        "provision",
        "--repo",
        "acme/web",
        "--label",
        label,
    ];
    let output = rig.cli(&args).await;
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(rig.registrations_ever().await, 0);
    rig.finish().await;
}
