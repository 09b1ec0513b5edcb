//! Each property broken by hand turns the probe red, and nothing else does.
//!
//! The sandbox is production's, asked of the engine as production asks; one field of
//! it is then changed by the test. So each row also shows that the probe passes by
//! what that field says and by nothing else.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent_core::RunnerSpec;
use agent_core::dialect::Dialect;
use agent_core::probe::{self, Check, Found};
use agent_core::sandbox::{self, Place, Profile, Request};
use agent_core::seccomp::filter;
use serde_json::{Value, json};

use crate::support;

const SOCKET: &str = "/var/run/docker.sock";
const LABEL: &str = "longshore.test=broken";

/// What a strict sandbox is, as the engine is asked for it, with the probe as its
/// command, no volumes and no network.
fn strict(image: &str) -> Value {
    let spec = RunnerSpec {
        network_mode: "none".into(),
        ..longshore_agent::probing::spec("strict", "none", image, "")
    };
    let place = Place {
        image_id: image.into(),
        network: String::new(),
        work_volume: String::new(),
        bin_volume: String::new(),
        externals_volume: String::new(),
        tools_volume: String::new(),
        dns: vec![],
        proxy: None,
        host_cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        cgroup_parent: String::new(),
        labels: vec![("longshore.test".into(), "broken".into())],
        dialect: Dialect::DOCKER,
        seccomp: Default::default(),
        users_are_mapped: false,
        gpus: vec![],
        runtimes: vec![],
    };
    let request = Request::from_spec(&spec).expect("a good spec");
    let sandbox = sandbox::of(&request, &place);
    let mut body = serde_json::to_value(agent_docker::container_body(&sandbox)).unwrap();
    body["Entrypoint"] = json!(["/bin/longshore-probe"]);
    body["HostConfig"]["Mounts"] = json!([]);
    body["OpenStdin"] = json!(false);
    body
}

/// One call to the engine, without a client in between that could add something.
fn post(path: &str, body: &Value) -> Value {
    let mut stream = UnixStream::connect(SOCKET).expect("the engine runs");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 2"), "{answer}");
    // Chunked or not, the object is the only one there.
    let object = text.find('{').zip(text.rfind('}'));
    object.map_or(Value::Null, |(from, to)| {
        serde_json::from_str(&text[from..=to]).expect("JSON")
    })
}

struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        support::docker(&["rm", "-f", "-v", &self.0]);
    }
}

fn start(mut body: Value, arguments: &[String]) -> Container {
    body["Cmd"] = json!(arguments);
    let made = post("/containers/create", &body);
    let container = Container(made["Id"].as_str().expect("an id").to_owned());
    support::docker(&["start", &container.0]);
    container
}

fn probe(body: Value, arguments: &[String]) -> Vec<Check> {
    let container = start(body, arguments);
    support::docker(&["wait", &container.0]);
    let output = support::docker(&["logs", &container.0]);
    let checks = probe::parse(&output);
    assert!(!checks.is_empty(), "{output}");
    probe::by_property(&checks)
}

fn failed(checks: &[Check]) -> BTreeSet<&'static str> {
    let failed = checks.iter().filter(|check| check.found == Found::Fail);
    failed.map(|check| check.name).collect()
}

/// A property, what is done to the sandbox, and what else that breaks.
type Case = (&'static str, fn(&mut Value), &'static [&'static str]);

fn host(body: &mut Value, field: &str, value: Value) {
    body["HostConfig"][field] = value;
}

/// Another filter of system calls.
fn security(body: &mut Value, filter: &str) {
    let options = json!(["no-new-privileges:true", format!("seccomp={filter}")]);
    host(body, "SecurityOpt", options);
}

/// The own filter and one rule more.
fn also(body: &mut Value, rule: Value) {
    let mut filter: Value = serde_json::from_str(filter(Profile::Strict)).unwrap();
    filter["syscalls"].as_array_mut().unwrap().push(rule);
    security(body, &filter.to_string());
}

fn also_allowed(body: &mut Value, name: &str) {
    also(body, json!({"names": [name], "action": "SCMP_ACT_ALLOW"}));
}

fn also_allowed_socket(body: &mut Value, family: u32) {
    let of_family = json!({"index": 0, "value": family, "valueTwo": 0, "op": "SCMP_CMP_EQ"});
    also(
        body,
        json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [of_family]}),
    );
}

const CASES: &[Case] = &[
    // Root makes files in / and can become anybody.
    ("non_root", |b| b["User"] = json!("0:0"), &["no_escalation"]),
    (
        "no_capabilities",
        |b| host(b, "CapAdd", json!(["NET_RAW"])),
        &[],
    ),
    (
        "no_escalation",
        |b| {
            let filter = b["HostConfig"]["SecurityOpt"][1].clone();
            host(b, "SecurityOpt", json!([filter]));
        },
        &[],
    ),
    (
        "seccomp",
        |b| security(b, "unconfined"),
        &[
            "no_io_uring",
            "no_kernel_keyring",
            "no_rare_sockets",
            "no_vsock",
        ],
    ),
    // One call more than the own list has.
    ("no_io_uring", |b| also_allowed(b, "io_uring_setup"), &[]),
    ("no_kernel_keyring", |b| also_allowed(b, "keyctl"), &[]),
    // Of a profile that lets 32-bit programs have sockets.
    ("no_vsock", |b| security(b, filter(Profile::Standard)), &[]),
    (
        "no_raw_sockets",
        |b| {
            b["User"] = json!("0:0");
            host(b, "CapAdd", json!(["NET_RAW"]));
            also_allowed_socket(b, 17);
        },
        &["non_root", "no_capabilities", "no_escalation"],
    ),
    (
        "read_only_rootfs",
        |b| host(b, "ReadonlyRootfs", json!(false)),
        &[],
    ),
    (
        "tmpfs",
        |b| b["HostConfig"]["Tmpfs"]["/tmp"] = json!("rw,exec,nosuid,nodev,size=16m,mode=1777"),
        &[],
    ),
    ("process_limit", |b| host(b, "PidsLimit", json!(-1)), &[]),
    (
        "memory_limit",
        |b| {
            host(b, "Memory", json!(0));
            host(b, "MemorySwap", json!(0));
        },
        &[],
    ),
    (
        "no_swap",
        |b| {
            let memory = b["HostConfig"]["Memory"].as_i64().expect("a limit");
            host(b, "MemorySwap", json!(2 * memory));
        },
        &[],
    ),
    (
        "tmpfs_in_memory",
        |b| {
            b["HostConfig"]["Tmpfs"]["/tmp"] = json!("rw,noexec,nosuid,nodev,size=1024m,mode=1777");
        },
        &[],
    ),
    ("cpu_limit", |b| host(b, "NanoCpus", json!(0)), &[]),
    (
        "ulimits",
        |b| {
            host(
                b,
                "Ulimits",
                json!([{"Name": "core", "Soft": 1024, "Hard": 1024}]),
            );
        },
        &[],
    ),
    (
        "no_host_mounts",
        |b| host(b, "Binds", json!(["/usr/share:/host:ro"])),
        &[],
    ),
    (
        "no_engine_socket",
        |b| {
            // Not the engine's own: something that looks like it is enough.
            host(b, "Tmpfs", {
                let mut tmpfs = b["HostConfig"]["Tmpfs"].clone();
                tmpfs["/run/docker.sock"] = json!("ro,size=4k");
                tmpfs
            });
        },
        &[],
    ),
    ("masked_proc", |b| host(b, "MaskedPaths", json!([])), &[]),
    (
        "read_only_proc_sys",
        |b| host(b, "ReadonlyPaths", json!([])),
        &[],
    ),
    (
        "own_namespaces",
        |b| host(b, "PidMode", json!("host")),
        &["init_process"],
    ),
    (
        "own_namespaces",
        |b| {
            host(b, "UTSMode", json!("host"));
            b["Hostname"] = json!("");
        },
        &[],
    ),
    (
        "own_cgroup_namespace",
        |b| host(b, "CgroupnsMode", json!("host")),
        &[],
    ),
    (
        "no_devices",
        |b| {
            host(
                b,
                "Devices",
                json!([{"PathOnHost": "/dev/kmsg", "PathInContainer": "/dev/kmsg", "CgroupPermissions": "r"}]),
            );
        },
        &[],
    ),
    ("init_process", |b| host(b, "Init", json!(false)), &[]),
];

fn namespaces() -> Vec<String> {
    ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
        .iter()
        .map(|kind| {
            let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
            format!("--host-namespace={}", own.display())
        })
        .collect()
}

#[test]
fn each_property_broken_by_hand_turns_red() {
    let image = support::image();
    let told = namespaces();
    let whole = probe(strict(&image), &told);
    assert_eq!(failed(&whole), BTreeSet::new(), "{whole:#?}");
    let mut wrong = Vec::new();
    for (name, change, besides) in CASES {
        let mut body = strict(&image);
        change(&mut body);
        let checks = probe(body, &told);
        let mut expected: BTreeSet<&str> = besides.iter().copied().collect();
        expected.insert(name);
        let failed = failed(&checks);
        if failed != expected {
            let details: Vec<_> = checks
                .iter()
                .filter(|c| c.found == Found::Fail || c.name == *name)
                .collect();
            wrong.push(format!("{name}: expected {expected:?}, saw {details:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The gateway of Docker's default network: an address of this host that an
/// ordinary container reaches.
fn gateway() -> IpAddr {
    let format = "{{(index .IPAM.Config 0).Gateway}}";
    let text = support::docker(&["network", "inspect", "-f", format, "bridge"]);
    text.trim()
        .parse()
        .expect("the default bridge has a gateway")
}

#[test]
fn each_wall_that_is_missing_turns_red() {
    let image = support::image();
    let listener = TcpListener::bind((gateway(), 0)).expect("the host's own address");
    let here = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream)
        }
    });
    let open = |image: &str| {
        let mut body = strict(image);
        // The engine's default network: none of the agent's rules holds there.
        host(&mut body, "NetworkMode", json!("bridge"));
        host(&mut body, "Dns", json!(["198.51.100.53"]));
        body
    };
    let neighbour = start(open(&image), &["--listen=8022".into()]);
    let address = support::docker(&[
        "inspect",
        "-f",
        "{{.NetworkSettings.IPAddress}}",
        &neighbour.0,
    ]);
    let told = [
        format!("--deny=no_host_services,{here},answers"),
        format!("--deny=no_metadata,{here},answers"),
        format!("--deny=no_private_networks,{here},answers"),
        format!("--deny=no_peers,{}:8022,answers", address.trim()),
        "--resolver=198.51.100.1".to_owned(),
    ];
    let checks = probe(open(&image), &told);
    let walls = BTreeSet::from([
        "no_host_services",
        "no_metadata",
        "no_peers",
        "no_private_networks",
        "named_resolvers",
    ]);
    assert_eq!(failed(&checks), walls, "{checks:#?}");

    // With an address of the next version of the protocol.
    let mut body = open(&image);
    host(
        &mut body,
        "Sysctls",
        json!({"net.ipv6.conf.all.disable_ipv6": "0", "net.ipv6.conf.default.disable_ipv6": "0"}),
    );
    let checks = probe(body, &[]);
    assert!(failed(&checks).contains("no_ipv6"), "{checks:#?}");
}

#[test]
fn what_an_earlier_job_left_turns_red() {
    let image = support::image();
    let volume = support::docker(&["volume", "create", "--label", LABEL]);
    let volume = volume.trim();
    let run = || {
        let mut body = strict(&image);
        let mount = json!([{"Type": "volume", "Source": volume, "Target": "/var/tmp"}]);
        host(&mut body, "Mounts", mount);
        body["User"] = json!("0:0");
        probe(body, &["--volume=/var/tmp".into()])
    };
    let first = run();
    let second = run();
    support::docker(&["volume", "rm", volume]);
    assert!(!failed(&first).contains("complete_removal"), "{first:#?}");
    assert!(failed(&second).contains("complete_removal"), "{second:#?}");
}
