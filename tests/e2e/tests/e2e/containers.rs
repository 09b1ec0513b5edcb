//! Jobs with `container:` and `services:`, from the push to their end.

use std::time::Duration;

use longshore_e2e::wait;
use serde_json::{Value, json};

use crate::image;
use crate::rig::{Rig, SOON, Settings, job, native};

/// A job whose steps run in a container beside a web server.
fn with_containers(name: &str) -> Value {
    let image = image::runner();
    let mut job = job(
        name,
        &native(),
        &[
            "id -u; pwd; test ! -e /home/runner/.credentials; echo kept >kept",
            "cat kept; grep -w web /etc/hosts; until nc -w 1 127.0.0.1 8081 -e true; do sleep 0.2; done; echo reached",
        ],
    );
    job["container"] = json!({"image": image});
    job["services"] = json!({"web": {"image": image, "ports": ["8081"], "entrypoint": "httpd",
                                     "arguments": ["-f", "-p", "8081", "-h", "/etc"]}});
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_in_its_container_beside_its_service() {
    let mut rig = Rig::start(Settings::default()).await;
    rig.cli_out(&["pool", "set", "siblings", "--profile", "containers"])
        .await;
    let pushed = rig.push("acme/web", vec![with_containers("build")]).await;
    let ended = rig.job_is(pushed.jobs[0], "completed").await;
    assert_eq!(ended["conclusion"], "success", "{ended:#}");
    assert_eq!(ended["steps"][0]["output"], "1001\n/__w/web/web\n");
    assert_eq!(
        ended["steps"][1]["output"],
        "kept\n127.0.0.1\tweb\nreached\n"
    );
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_job_fails_at_once_under_strict_and_names_the_profile_that_has_it() {
    let mut rig = Rig::start(Settings::default()).await;
    let pushed = rig.push("acme/web", vec![with_containers("build")]).await;
    let ended = rig.job_is(pushed.jobs[0], "completed").await;
    assert_eq!(ended["conclusion"], "failure", "{ended:#}");
    let said = ended["steps"][0]["output"].as_str().unwrap_or_default();
    assert!(
        said.contains("use a pool with profile containers"),
        "{said}"
    );
    assert_eq!(ended["steps"][1]["conclusion"], "skipped", "{ended:#}");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_whose_profile_no_node_offers_waits_and_says_so() {
    let mut rig = Rig::start(Settings {
        agent_env: vec![("LONGSHORE_PROFILES".to_owned(), "strict".to_owned())],
        ..Settings::default()
    })
    .await;
    rig.cli_out(&["pool", "set", "siblings", "--profile", "containers"])
        .await;
    let pushed = rig.push("acme/web", vec![with_containers("build")]).await;
    let id = pushed.jobs[0].to_string();
    wait::until("the reason", Duration::from_secs(60), || async {
        let output = rig.cli(&["explain", &id, "-o", "json"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match text.contains("missing_property")
            && text.contains("has profile containers, which this node does not offer")
        {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await
    .unwrap();
    assert_eq!(rig.registrations_ever().await, 0);
    rig.cancel(pushed.run).await;
    rig.all_end(&pushed.jobs, "cancelled", SOON).await;
    rig.finish().await;
}
