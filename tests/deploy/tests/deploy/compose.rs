//! The compose file, as docker-compose reads it.

use std::process::Command;

use super::ground::{root, run, said, text};

const FILE: &str = "deploy/compose/compose.yaml";

fn compose(words: &[&str]) -> std::process::Output {
    run(Command::new("docker-compose")
        .current_dir(root())
        .args(["-f", FILE])
        .args(words))
}

#[test]
fn compose_reads_the_file_and_the_simulator_is_there_when_asked_for() {
    let output = compose(&["config", "--quiet"]);
    assert!(output.status.success(), "{}", said(&output));
    let services = |words: &[&str]| {
        let output = compose(&[words, &["config", "--services"]].concat());
        let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    let asked = services(&["--profile", "simulator"]);
    assert_eq!(asked, ["agent", "scheduler", "simulator"]);
    let shown = said(&compose(&["config"]));
    for what in [
        "longshore/scheduler:",
        "longshore/agent:",
        "/var/run/docker.sock",
    ] {
        assert!(shown.contains(what), "{what}: {shown}");
    }
}

/// An image's name there is one that the build gives.
#[test]
fn the_images_it_names_are_those_that_are_built() {
    let (file, build) = (text(FILE), text("deploy/docker/build"));
    for name in ["scheduler", "agent", "simulator"] {
        assert!(
            file.contains(&format!("${{PREFIX:-longshore}}/{name}:${{TAG:-")),
            "{name}"
        );
        assert!(build.contains(&format!("image {name} ")), "{name}");
    }
    let manifest: toml::Table = text("Cargo.toml").parse().expect("TOML");
    let version = manifest["workspace"]["package"]["version"]
        .as_str()
        .expect("a version");
    assert_eq!(
        file.matches(&format!("${{TAG:-{version}}}")).count(),
        3,
        "{version}"
    );
}
