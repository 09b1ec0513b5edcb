//! The images as deploy/docker/build makes them, started by the engine of this host.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::ground::{root, run, said};

const PATIENCE: Duration = Duration::from_secs(90);

/// Images and a container of one test; they go with it.
struct Made {
    prefix: String,
    image: String,
    containers: Vec<String>,
}

impl Made {
    /// Builds one image from what the build has made already.
    fn image(name: &str) -> (Self, String) {
        // Tests run beside each other: each has images of its own.
        let prefix = format!("ls-deploy-{name}-{}", std::process::id());
        let test = std::env::current_exe().expect("a path");
        let target: &Path = test.ancestors().nth(3).expect("target/debug/deps/deploy-…");
        let output = run(Command::new(root().join("deploy/docker/build"))
            .arg(name)
            .env("PREFIX", &prefix)
            .env("TAG", "test")
            .env("PROFILE", "debug")
            .env("CARGO_TARGET_DIR", target));
        assert!(output.status.success(), "{}", said(&output));
        let image = format!("{prefix}/{name}:test");
        let made = Self {
            prefix,
            image: image.clone(),
            containers: Vec::new(),
        };
        (made, image)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for container in &self.containers {
            let _ = docker(&["rm", "--force", "--volumes", container]);
        }
        let _ = docker(&["rmi", &self.image]);
    }
}

fn docker(words: &[&str]) -> std::process::Output {
    run(Command::new("docker").args(words))
}

/// Asks again until there is an answer.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let from = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(from.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The program inside an image, copied out of it.
fn program_of(image: &str, path: &str, folder: &Path) -> PathBuf {
    let output = docker(&["create", image]);
    assert!(output.status.success(), "{}", said(&output));
    let container = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let to = folder.join("program");
    let copied = docker(&[
        "cp",
        &format!("{container}:{path}"),
        &to.display().to_string(),
    ]);
    let _ = docker(&["rm", "--volumes", &container]);
    assert!(copied.status.success(), "{}", said(&copied));
    to
}

/// Whether the kernel is asked to start it by a loader.
fn asks_for_a_loader(program: &Path) -> bool {
    let output = run(Command::new("readelf").arg("-lW").arg(program));
    assert!(output.status.success(), "{}", said(&output));
    said(&output).contains("INTERP")
}

#[test]
fn the_image_of_the_scheduler_is_one_static_program_that_starts_and_answers() {
    let (mut made, image) = Made::image("scheduler");
    let folder = tempfile::tempdir().expect("a folder");
    let program = program_of(&image, "/usr/bin/longshore-scheduler", folder.path());
    assert!(!asks_for_a_loader(&program), "the scheduler is not static");
    // The same look finds one in a program that is not.
    assert!(asks_for_a_loader(&super::ground::program(
        "longshore-agent"
    )));

    let name = format!("{}-scheduler", made.prefix);
    made.containers.push(name.clone());
    let output = docker(&[
        "run",
        "--detach",
        "--name",
        &name,
        "--network",
        "host",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges:true",
        &image,
        "--api-listen",
        "127.0.0.1:0",
        "--node-listen",
        "127.0.0.1:0",
        "--webhook-listen",
        "127.0.0.1:0",
        // Nobody answers there: a scheduler starts while GitHub is down.
        "--github-api-url",
        "http://127.0.0.1:1",
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let ready = until("the ready line", || {
        let output = docker(&["logs", &name]);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = lines.lines().find(|line| line.contains("\"ready\""))?;
        serde_json::from_str::<serde_json::Value>(line).ok()
    });
    let api = ready["api"].as_str().expect("an address").to_owned();
    for path in ["/livez", "/readyz"] {
        let answer = get(&api, path).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let told = docker(&["stop", "--time", "30", &name]);
    assert!(told.status.success(), "{}", said(&told));
    let code = docker(&[
        "inspect",
        "--format",
        "{{.State.ExitCode}} {{.Config.User}}",
        &name,
    ]);
    assert_eq!(said(&code).trim(), "0 10001:10001");
}

#[test]
fn the_image_of_the_agent_sees_what_the_host_can_do() {
    let (_made, image) = Made::image("agent");
    let folder = tempfile::tempdir().expect("a folder");
    let program = program_of(&image, "/usr/bin/longshore-agent", folder.path());
    assert!(
        asks_for_a_loader(&program),
        "a static agent cannot open a GPU driver's library"
    );
    let output = docker(&[
        "run",
        "--rm",
        "--network",
        "host",
        "--volume",
        "/var/run/docker.sock:/var/run/docker.sock",
        &image,
        "detect",
        "--json",
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(seen["engine_problem"], serde_json::Value::Null, "{seen}");
    let engine = docker(&["version", "--format", "{{.Server.Version}}"]);
    assert!(
        seen["capability"]
            .to_string()
            .contains(said(&engine).trim()),
        "the engine's version is not told: {seen}"
    );
    // What it calls at work is there with all that it is linked to.
    for (tool, words) in [
        ("nft", "--version"),
        ("nsenter", "--version"),
        ("mkfs.ext4", "-V"),
        ("mount", "--version"),
        ("longshore-egress", "--version"),
    ] {
        let output = docker(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            tool,
            &image,
            words,
        ]);
        assert!(output.status.success(), "{tool}: {}", said(&output));
    }
}
