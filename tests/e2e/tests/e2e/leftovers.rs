//! The check at the end of every test finds what it is there to find.

use std::process::Command;

use longshore_e2e::demo::host_state::Difference;
use longshore_e2e::demo::identity::RUN_VARIABLE;
use longshore_e2e::process::Launch;
use serde_json::json;

use crate::image;
use crate::rig::{Rig, SOON, Settings, job, native};

/// Things planted on the host; what takes each away again, also after a failure.
#[derive(Default)]
struct Planted {
    undo: Vec<Vec<String>>,
}

impl Planted {
    fn plant(&mut self, make: &[&str], undo: &[&str]) {
        let output = Command::new(make[0]).args(&make[1..]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{make:?}: {stderr}");
        self.undo
            .push(undo.iter().map(|word| (*word).to_owned()).collect());
    }

    fn take_away(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        while let Some(words) = self.undo.pop() {
            match Command::new(&words[0]).args(&words[1..]).output() {
                Ok(output) if output.status.success() => {}
                other => failed.push(format!("{words:?}: {other:?}")),
            }
        }
        failed
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        self.take_away();
    }
}

#[tokio::test]
async fn whatever_a_fleet_leaves_behind_is_named_by_its_kind() {
    let mut rig = Rig::start(Settings::default()).await;
    let pushed = rig
        .push("acme/web", vec![job("build", &native(), &["true"])])
        .await;
    rig.all_end(&pushed.jobs, "success", SOON).await;
    rig.stop_nodes().await;

    let name = "ls-left-behind";
    let runner = json!({"scope": "orgs/acme", "name": name, "labels": ["linux"], "online": false});
    rig.sim.control("runners", runner).await.unwrap();
    assert_eq!(rig.registrations().await, [name]);
    rig.stop_the_rest().await;
    assert_eq!(rig.left().await, Difference::default(), "nothing yet");

    let mark = |with: &str| {
        let mut marks = rig.marks().iter();
        let found = marks.find(|mark| mark.starts_with(with));
        found.unwrap_or_else(|| panic!("no mark begins with {with}: {:?}", rig.marks()))
    };
    let label = format!("longshore.node={}", rig.node());
    let id = mark("longshore_").trim_start_matches("longshore_");
    let container = format!("{}-container", rig.node());
    let network = format!("{}-network", rig.node());
    let volume = format!("{}-volume", rig.node());
    let table = mark("longshore_");
    let namespace = mark("lsdemo-");
    let link = format!("ls-{id}-99");
    let image = image::runner();
    let mut planted = Planted::default();
    for (make, undo) in [
        (
            vec![
                "docker", "create", "--name", &container, "--label", &label, image, "true",
            ],
            vec!["docker", "rm", "-f", &container],
        ),
        (
            vec!["docker", "network", "create", "--label", &label, &network],
            vec!["docker", "network", "rm", &network],
        ),
        (
            vec!["docker", "volume", "create", "--label", &label, &volume],
            vec!["docker", "volume", "rm", &volume],
        ),
        (
            vec!["nft", "add", "table", "inet", table],
            vec!["nft", "delete", "table", "inet", table],
        ),
        (
            vec!["ip", "link", "add", &link, "type", "bridge"],
            vec!["ip", "link", "del", &link],
        ),
        (
            vec!["ip", "netns", "add", namespace],
            vec!["ip", "netns", "del", namespace],
        ),
    ] {
        planted.plant(&make, &undo);
    }
    let run = mark(RUN_VARIABLE);
    let run = run.split_once('=').expect("a variable and its value").1;
    let log = tempfile::tempdir().unwrap();
    let mut process = Launch::new("sleep", "sleep", log.path().join("log"))
        .arg("300")
        .env(RUN_VARIABLE, run)
        .spawn()
        .unwrap();

    let left = rig.left().await;
    assert_eq!(left.containers, [format!("/{container}")]);
    assert_eq!(left.volumes, std::slice::from_ref(&volume));
    for what in [
        network.clone(),
        format!("link {link}"),
        format!("network namespace {namespace}"),
    ] {
        assert!(left.networks.contains(&what), "{what}: {left:#?}");
    }
    assert_eq!(left.networks.len(), 3, "{left:#?}");
    assert_eq!(left.firewall, [format!("table inet {table}")]);
    assert_eq!(
        left.processes,
        [format!("sleep 300 ({})", process.pid())],
        "{left:#?}"
    );

    process.kill9().await.unwrap();
    assert_eq!(planted.take_away(), Vec::<String>::new());
    assert_eq!(rig.left().await, Difference::default(), "taken away again");
}
