//! Requests as the runner program makes them, and what comes of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::dialect::Dialect;

const PREPARE: &str = include_str!("requests/prepare_job.json");
const SCRIPT: &str = include_str!("requests/run_script_step.json");
const CONTAINER: &str = include_str!("requests/run_container_step.json");
const CLEANUP: &str = include_str!("requests/cleanup_job.json");

fn read(text: &str) -> (Command, Option<String>) {
    parse(text.as_bytes()).unwrap()
}

fn link(at: &str, to: &str) -> (String, String) {
    (at.to_owned(), to.to_owned())
}

fn job() -> Job {
    Job {
        container: "abc123".into(),
        resources: Resources {
            cpu_millis: 2_000,
            memory_bytes: 1 << 30,
            gpus: 1,
        },
        platform: "linux/amd64".into(),
        work_volume: "work".into(),
        externals_volume: "externals".into(),
        place: Place {
            image_id: "sha256:runner".into(),
            network: "ls-0a1b2c-7".into(),
            work_volume: "work".into(),
            bin_volume: "bin".into(),
            externals_volume: "externals".into(),
            tools_volume: "tools".into(),
            dns: vec!["9.9.9.9".into()],
            proxy: None,
            host_cpus: 2,
            cgroup_parent: "/longshore/x".into(),
            labels: vec![],
            dialect: Dialect::DOCKER,
            seccomp: Default::default(),
            users_are_mapped: true,
            gpus: vec![],
            runtimes: vec![],
        },
    }
}

#[test]
fn prepare_job_is_read_whole() {
    let (command, answer) = read(PREPARE);
    assert_eq!(
        answer.as_deref(),
        Some("/home/runner/_work/_temp/3f1e0f0e-prepare.json")
    );
    let Command::Prepare {
        container,
        services,
    } = command
    else {
        panic!("{command:?}")
    };
    let container = container.unwrap();
    assert_eq!(container.image, "debian:12");
    assert_eq!(container.cpu_millis, Some(1_000));
    assert_eq!(container.env["STAGE"], "ci");
    assert_eq!(container.env["EMPTY"], "");
    // The engine's socket is gone, and what the work folder holds needs nothing.
    assert_eq!(
        container.links,
        [
            link("/github/home", "/__w/_temp/_github_home"),
            link("/github/workflow", "/__w/_temp/_github_workflow"),
        ]
    );
    let waiting = waiting(container);
    assert_eq!(
        (&waiting.entrypoint[..], &waiting.cmd[..]),
        (
            &["tail".to_owned()][..],
            &["-f".to_owned(), "/dev/null".to_owned()][..]
        )
    );
    let [redis] = &services[..] else {
        panic!("{services:?}")
    };
    assert_eq!(
        (redis.name.as_str(), &redis.ports[..]),
        ("redis", &[6_379][..])
    );
    assert_eq!(redis.sibling.image, "redis:7");
    let health = redis.sibling.health.as_ref().unwrap();
    assert_eq!(
        (health.command.as_str(), health.retries),
        ("redis-cli ping", 10)
    );
}

#[test]
fn steps_and_cleanup_are_read_whole() {
    let (Command::Script(step), None) = read(SCRIPT) else {
        panic!("a script step")
    };
    assert_eq!(step.entrypoint, ["sh"]);
    assert_eq!(step.cmd, ["-e", "/__w/_temp/71c2.sh"]);
    assert_eq!(step.prepend_path, ["/__w/_tool/go/bin", "/opt/extra/bin"]);
    assert_eq!(step.working_dir, "/__w/web/web");
    let (Command::Container(step), Some(_)) = read(CONTAINER) else {
        panic!("a container step")
    };
    assert_eq!(
        (step.image.as_str(), step.working_dir.as_str()),
        ("alpine:3.20", "/github/workspace")
    );
    assert!(
        step.links
            .contains(&link("/github/workspace", "/__w/web/web"))
    );
    assert!(step.links.contains(&link("/data", "/__w/web/web/data")));
    assert_eq!(step.links.len(), 5);
    assert_eq!(read(CLEANUP), (Command::Cleanup, None));
}

/// The container step with something else in one place.
fn with(pointer: &str, value: Value) -> Result<(Command, Option<String>), Refusal> {
    let mut request: Value = serde_json::from_str(CONTAINER).unwrap();
    *request.pointer_mut(pointer).unwrap() = value;
    parse(request.to_string().as_bytes())
}

#[test]
fn mounts_lead_to_the_work_folder_or_nowhere() {
    let mount = |source: &str, target: &str| {
        with(
            "/args/userMountVolumes",
            json!([{"sourceVolumePath": source, "targetVolumePath": target}]),
        )
    };
    assert!(mount("/home/runner/_work/web", "/web").is_ok());
    for source in [
        "/",
        "/etc",
        "my_volume",
        "",
        "/var/run/docker.sock",
        "/home/runner",
        "/home/runner/.credentials",
        "/home/runner/_workshop",
        "/home/runner/_work/../.credentials",
        "/home/runner2/_work",
    ] {
        let refused = mount(source, "/x").unwrap_err();
        assert!(matches!(refused, Refusal::Volume(_)), "{source}: {refused}");
    }
    for target in [
        "/", "x", "/proc/x", "/sys", "/dev/kvm", "/a/../..", "/__w/x", "/__e", "/a\nb",
    ] {
        let refused = mount("/home/runner/_work/web", target).unwrap_err();
        assert!(matches!(refused, Refusal::Target(_)), "{target}: {refused}");
    }
    // The runner program's own mounts are held to the same, but for the socket.
    let system = |source: &str| {
        with(
            "/args/systemMountVolumes",
            json!([{"sourceVolumePath": source, "targetVolumePath": "/x"}]),
        )
    };
    assert!(system("/var/run/docker.sock").is_ok());
    assert!(matches!(system("/etc"), Err(Refusal::Volume(_))));
}

#[test]
fn what_is_not_supported_is_named() {
    assert_eq!(
        with("/args/dockerfile", json!("/__w/_actions/a/Dockerfile")),
        Err(Refusal::Dockerfile)
    );
    let registry = json!({"username": "u", "password": "p", "serverUrl": "s"});
    assert_eq!(with("/args/registry", registry), Err(Refusal::Registry));
    assert!(matches!(
        with("/args/image", json!("a b")),
        Err(Refusal::Image(_))
    ));
    assert!(matches!(
        with("/args/image", Value::Null),
        Err(Refusal::Image(_))
    ));
    assert!(matches!(
        with("/args/createOptions", json!("--privileged")),
        Err(Refusal::Option(..))
    ));
    assert!(matches!(
        with("/args/environmentVariables", json!({"A=B": "c"})),
        Err(Refusal::Environment(_))
    ));
    assert!(matches!(
        with("/command", json!("run_anything")),
        Err(Refusal::Form(_))
    ));
    for path in ["/etc/passwd", "/home/runner/../x", "x"] {
        assert!(
            matches!(with("/responseFile", json!(path)), Err(Refusal::Form(_))),
            "{path}"
        );
    }
    assert!(matches!(parse(b"{"), Err(Refusal::Form(_))));
}

#[test]
fn services_have_plain_names_and_their_own_ports() {
    let service = |name: &str, ports: Value| {
        let mut request: Value = serde_json::from_str(PREPARE).unwrap();
        request["args"]["services"][0]["contextName"] = json!(name);
        request["args"]["services"][0]["portMappings"] = ports;
        parse(request.to_string().as_bytes())
    };
    for ports in [
        json!(["6379"]),
        json!(["6379:6379/tcp"]),
        json!({"6379": "6379"}),
        json!([":6379"]),
        Value::Null,
    ] {
        assert!(service("redis", ports.clone()).is_ok(), "{ports}");
    }
    for ports in ["8080:80", "127.0.0.1:80:80", "0", "x", "1-9"] {
        let refused = service("redis", json!([ports])).unwrap_err();
        assert!(matches!(refused, Refusal::Port(_)), "{ports}: {refused}");
    }
    for name in ["", "localhost", "a b", "a.b", "a\nb", &"x".repeat(64)] {
        let refused = service(name, json!([])).unwrap_err();
        assert!(matches!(refused, Refusal::Name(_)), "{name}: {refused}");
    }
    let many: Vec<Value> = vec![json!({"contextName": "a", "image": "i"}); MAX_SIBLINGS];
    let mut request: Value = serde_json::from_str(PREPARE).unwrap();
    request["args"]["services"] = json!(many);
    assert_eq!(parse(request.to_string().as_bytes()), Err(Refusal::TooMany));
}

/// A sibling is the job's sandbox but for what is named here.
#[test]
fn a_sibling_is_held_as_the_job_is() {
    let (Command::Container(step), _) = read(CONTAINER) else {
        panic!("a container step")
    };
    let labels = [("longshore.role".to_owned(), "sibling".to_owned())];
    let made = sandbox(&job(), &step, "sha256:step", &labels);
    assert_eq!(made.network_mode, "container:abc123");
    assert_eq!(
        (made.image.as_str(), made.user.as_str()),
        ("sha256:step", "1001:1001")
    );
    assert_eq!(
        (made.cap_drop.as_slice(), made.cap_add.len()),
        (&["ALL"][..], 0)
    );
    let filter = crate::seccomp::filter(crate::sandbox::Profile::Containers);
    assert_eq!(
        made.security_opt,
        [
            "no-new-privileges:true".to_owned(),
            format!("seccomp={filter}")
        ]
    );
    assert_eq!(made.cgroup_parent, "/longshore/x");
    assert_eq!(
        (made.memory, made.memory_swap, made.nano_cpus),
        (1 << 30, 1 << 30, 2_000_000_000)
    );
    assert_eq!(made.env, ["NVIDIA_VISIBLE_DEVICES=void", "INPUT_WHO=world"]);
    let mounts: Vec<(&str, &str, bool)> = made
        .mounts
        .iter()
        .map(|mount| {
            (
                mount.volume.as_str(),
                mount.target.as_str(),
                mount.read_only,
            )
        })
        .collect();
    assert_eq!(
        mounts,
        [("work", "/__w", false), ("externals", "/__e", true)]
    );
    assert!(made.tmpfs.iter().all(|(path, _)| path == "/tmp"));
    assert!(!made.open_stdin && !made.attach_stdin && made.init);
    // The rest is the job's own, field by field.
    let request = Request {
        image: "runner".into(),
        profile: sandbox::Profile::Containers,
        resources: Resources {
            gpus: 0,
            ..job().resources
        },
        platform: "linux/amd64".into(),
        network: sandbox::Network::Open,
        allowed_domains: vec![],
        lifetime_ms: 0,
        gpus: vec![],
        runtime: None,
    };
    let place = Place {
        users_are_mapped: false,
        ..job().place
    };
    let own = crate::sandbox::of(&request, &place);
    let same = Sandbox {
        image: own.image.clone(),
        hostname: own.hostname.clone(),
        working_dir: own.working_dir.clone(),
        entrypoint: own.entrypoint.clone(),
        cmd: own.cmd.clone(),
        env: own.env.clone(),
        labels: own.labels.clone(),
        open_stdin: own.open_stdin,
        stdin_once: own.stdin_once,
        attach_stdin: own.attach_stdin,
        tmpfs: own.tmpfs.clone(),
        mounts: own.mounts.clone(),
        network_mode: own.network_mode.clone(),
        dns: own.dns.clone(),
        ..made
    };
    assert_eq!(same, own);
}

#[test]
fn a_sibling_gets_at_most_what_the_job_has() {
    let of = |cpu_millis, memory_bytes| {
        let sibling = Sibling {
            cpu_millis,
            memory_bytes,
            ..Sibling::default()
        };
        let made = sandbox(&job(), &sibling, "sha256:x", &[]);
        (made.nano_cpus, made.memory)
    };
    assert_eq!(of(Some(500), Some(256 << 20)), (500_000_000, 256 << 20));
    assert_eq!(of(Some(64_000), Some(1 << 40)), (2_000_000_000, 1 << 30));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Whatever a hook says, a sibling is no wider than its job.
    #[test]
    fn no_request_widens_a_sibling(
        options in prop_oneof![".{0,40}", "(--[a-z-]{2,12}[= ][a-z0-9/:.]{0,10} ?){0,4}"],
        source in prop_oneof!["(/[a-z._]{1,8}){0,4}", "/home/runner/_work(/[a-z.]{1,6}){0,3}", ".{0,30}"],
        target in prop_oneof!["(/[a-z._]{1,8}){0,4}", ".{0,30}"],
        name in ".{0,12}", value in ".{0,12}", workdir in "(/[a-z.]{0,5}){0,3}",
    ) {
        let mut request: Value = serde_json::from_str(CONTAINER).unwrap();
        request["args"]["createOptions"] = json!(options);
        request["args"]["environmentVariables"] = json!({ name: value });
        request["args"]["workingDirectory"] = json!(workdir);
        request["args"]["userMountVolumes"] = json!([{"sourceVolumePath": source, "targetVolumePath": target}]);
        let Ok((Command::Container(step), _)) = parse(request.to_string().as_bytes()) else { return Ok(()) };
        for (at, to) in &step.links {
            prop_assert!(at.starts_with('/') && !at.split('/').any(|part| part == ".."));
            prop_assert!(to == "/__e" || to == "/__w" || to.starts_with("/__w/"));
            prop_assert!(!to.split('/').any(|part| part == ".."));
        }
        let plain = sandbox(&job(), &Sibling { image: step.image.clone(), ..Sibling::default() }, "i", &[]);
        let made = sandbox(&job(), &step, "i", &[]);
        prop_assert!(made.memory <= plain.memory && made.nano_cpus <= plain.nano_cpus);
        let same = Sandbox {
            entrypoint: vec![], cmd: vec![], working_dir: String::new(), env: plain.env.clone(),
            memory: plain.memory, memory_swap: plain.memory_swap, nano_cpus: plain.nano_cpus,
            shm_size: plain.shm_size, tmpfs: plain.tmpfs.clone(),
            ..made
        };
        prop_assert_eq!(same, plain);
    }
}
