//! An allow-listed sandbox: what it reaches through its slot's proxy, what it is refused and
//! why, and that the proxy neither needs the agent nor outlives the node.
//!
//! Targets and their names are stand-ins, see `walls.rs`; names come from a file that only
//! the agent's processes see as the host's.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use agent_egress::control::{Request, call};
use longshore_proto::v1 as pb;
use longshore_proto::v1::runner_intent::Desired;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::namespaces::within;
use crate::on::{Kind, On};
use crate::support::{Bench, run};
use crate::walls::{
    INTERNET, METADATA, NEIGHBOUR, Outside, RESOLVER, answer, reaches, remove_rules, resolves,
    sandbox_with, until_restored,
};

const DEADLINE: Duration = Duration::from_secs(60);
/// An address of the host that looks like one of the internet.
const OWN: &str = "203.0.113.1";

fn allowlist(image: &str) -> Desired {
    let Desired::Run(spec) = run(image) else {
        unreachable!("run runs")
    };
    Desired::Run(pb::RunnerSpec {
        network_mode: "allowlist".into(),
        allowed_domains: [
            "allowed.test",
            "*.wild.test",
            "private.test",
            "metadata.test",
            "own.test",
            "nat64.test",
            "odd.test:8081",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..spec
    })
}

fn hosts() -> String {
    format!(
        "127.0.0.1 localhost
         {INTERNET} allowed.test a.wild.test wild.test other.test odd.test
         {NEIGHBOUR} private.test
         {METADATA} metadata.test
         {OWN} own.test
         64:ff9b::a9fe:a9fe nat64.test\n"
    )
}

/// Servers of the stand-in for the internet: HTTP that says which host was asked, and a
/// port that answers whatever comes first.
fn serve(outside: &Outside) {
    for port in [80, 8081, 443] {
        let listener = within(outside.pid(), move || {
            std::net::TcpListener::bind((INTERNET, port)).unwrap()
        });
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut said = vec![0_u8; 4_096];
                    let Ok(length) = stream.read(&mut said).await else {
                        return;
                    };
                    let said = String::from_utf8_lossy(&said[..length]).into_owned();
                    let host = said.lines().find(|line| line.starts_with("host: "));
                    let answer = match host {
                        Some(host) => format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\nasked for {host}",
                            10 + host.len()
                        ),
                        None => "TUNNELLED".to_owned(),
                    };
                    // The proxy may have gone: then nobody asks for the answer.
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
    }
}

/// The first message of a TLS handshake for a host; without one when it is empty.
fn client_hello(host: &str) -> Vec<u8> {
    fn sized(bytes: &[u8], width: usize) -> Vec<u8> {
        let length = (bytes.len() as u32).to_be_bytes();
        [&length[4 - width..], bytes].concat()
    }
    let mut extensions = Vec::new();
    let mut extend = |kind: u16, body: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(sized(body, 2));
    };
    if !host.is_empty() {
        let name = [&[0][..], &sized(host.as_bytes(), 2)].concat();
        extend(0, &sized(&name, 2));
    }
    extend(13, &sized(&[0x04, 0x03, 0x08, 0x04], 2));
    extend(10, &sized(&[0x00, 0x1d, 0x00, 0x17], 2));
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.extend(sized(&[], 1));
    body.extend(sized(&[0xc0, 0x2b, 0xc0, 0x2f], 2));
    body.extend(sized(&[0], 1));
    body.extend(sized(&extensions, 2));
    let message = [&[1][..], &sized(&body, 3)].concat();
    [&[0x16, 0x03, 0x01][..], &sized(&message, 2)].concat()
}

/// Says something to a proxy from inside a sandbox; what it answered.
fn say(bench: &Bench, runner: &str, gateway: &str, words: &[u8]) -> String {
    let octal: String = words.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let line = format!("{{ printf '{octal}'; sleep 2; }} | nc -w 4 {gateway} 3128 2>&1; true");
    bench.exec(runner, &line)
}

fn get(bench: &Bench, runner: &str, url: &str) -> String {
    let gateway = bench.gateway(runner);
    let request = format!("GET {url} HTTP/1.1\r\nHost: lies.test\r\nConnection: close\r\n\r\n");
    say(bench, runner, &gateway, request.as_bytes())
}

fn connect(bench: &Bench, runner: &str, to: &str, first: &[u8]) -> String {
    let gateway = bench.gateway(runner);
    let mut words = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").into_bytes();
    words.extend(first);
    say(bench, runner, &gateway, &words)
}

async fn pid(socket: &Path) -> Option<u32> {
    call(socket, &Request::List)
        .await
        .ok()
        .map(|answer| answer.pid)
}

/// Not there, and not only waiting for whoever inherited it.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn socket(bench: &Bench) -> PathBuf {
    bench.state_dir().join("egress/control.sock")
}

pub(crate) async fn only_what_is_listed_is_reached_and_only_by_the_proxy(on: On) {
    let outside = Outside::put_up_with(&on, &[53]);
    on.must(&format!("ip addr add {OWN}/32 dev out-e"));
    serve(&outside);
    let mut bench = Bench::start_knowing(&on, "allow", &hosts(), &["--dns", RESOLVER]).await;
    let wanted = allowlist(&bench.image());
    let runner = sandbox_with(&mut bench, "allow", wanted).await;
    assert!(bench.guarantees("egress_allowlist"));
    let whole = on.must(&format!("nft -t list table inet {}", bench.table()));

    let inspect = bench.docker(&["inspect", &runner]);
    let proxy = format!("http://{}:3128", bench.gateway(&runner));
    for name in ["http_proxy", "https_proxy"] {
        assert!(inspect.contains(&format!("{name}={proxy}")), "{inspect}");
    }

    // What is listed is reached, by the host that was checked.
    for (url, host) in [
        ("http://allowed.test/x", "allowed.test"),
        ("http://A.Wild.Test/", "a.wild.test"),
        ("http://odd.test:8081/", "odd.test:8081"),
    ] {
        let said = get(&bench, &runner, url);
        assert!(
            said.contains(&format!("asked for host: {host}")),
            "{url}: {said}"
        );
    }
    let hello = client_hello("allowed.test");
    let said = connect(&bench, &runner, "allowed.test:443", &hello);
    assert!(
        said.contains("200 OK") && said.contains("TUNNELLED"),
        "{said}"
    );

    // What is not, is not.
    for url in [
        "http://other.test/",
        "http://wild.test/",
        "http://odd.test/",
        "http://allowed.test:8081/",
        "http://private.test/",
        "http://metadata.test/latest/meta-data",
        "http://own.test/",
        "http://nat64.test/",
        &format!("http://{INTERNET}/"),
        &format!("http://{METADATA}/"),
        "http://127.0.0.1/",
    ] {
        let said = get(&bench, &runner, url);
        assert!(said.contains("403 Forbidden"), "{url}: {said}");
        assert!(!said.contains("asked for"), "{url}: {said}");
    }
    for malformed in [
        "GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let said = say(
            &bench,
            &runner,
            &bench.gateway(&runner),
            malformed.as_bytes(),
        );
        assert!(said.contains("400 Bad Request"), "{said}");
    }
    let said = connect(
        &bench,
        &runner,
        "other.test:443",
        &client_hello("other.test"),
    );
    assert!(said.contains("403 Forbidden"), "{said}");
    // Other ports, addresses in every spelling, and what is no host and port.
    for (to, status) in [
        ("allowed.test:22", "403 Forbidden"),
        ("allowed.test:8081", "403 Forbidden"),
        ("wild.test:443", "403 Forbidden"),
        ("private.test:443", "403 Forbidden"),
        ("127.0.0.1:443", "403 Forbidden"),
        ("2130706433:443", "403 Forbidden"),
        ("169.254.169.254:80", "403 Forbidden"),
        ("[::1]:443", "400 Bad Request"),
        ("[64:ff9b::a9fe:a9fe]:443", "400 Bad Request"),
        ("allowed.test", "400 Bad Request"),
    ] {
        let said = connect(&bench, &runner, to, &hello);
        assert!(said.contains(status), "{to}: {said}");
        assert!(!said.contains("TUNNELLED"), "{to}: {said}");
    }
    // A tunnel that was allowed carries TLS for that very host, or nothing.
    for (what, first) in [
        ("another name", client_hello("other.test")),
        ("no name", client_hello("")),
        (
            "no TLS",
            b"GET / HTTP/1.1\r\nhost: other.test\r\n\r\n".to_vec(),
        ),
    ] {
        let said = connect(&bench, &runner, "allowed.test:443", &first);
        assert!(said.contains("200 OK"), "{what}: {said}");
        assert!(
            !said.contains("TUNNELLED") && !said.contains("asked for"),
            "{what}: {said}"
        );
    }

    // Past the proxy there is nothing; the one rule is why.
    assert!(!reaches(&bench, &runner, INTERNET, 80), "past the proxy");
    assert!(
        !resolves(&bench, &runner, RESOLVER),
        "a resolver of its own"
    );
    bench.freeze_agent(true);
    remove_rules(&bench, &on, "forward", &bench.closed_wall());
    assert!(reaches(&bench, &runner, INTERNET, 80), "without that rule");
    bench.freeze_agent(false);
    until_restored(&bench, &on, &whole).await;
    assert!(!reaches(&bench, &runner, INTERNET, 80), "again");

    if on.kind() == Kind::Docker {
        the_engines_resolver_asks_nobody(&bench, &on, &runner);
    }
    another_slot_is_not_served(&mut bench, &runner).await;

    let denied = bench.let_go(&runner).await.denied.expect("it is told");
    assert!(denied.known);
    for (destination, protocol, port, reason) in [
        (INTERNET, "tcp", 80, "firewall"),
        ("other.test", "http", 80, "not_listed"),
        ("other.test", "connect", 443, "not_listed"),
        ("allowed.test", "http", 8081, "port_not_listed"),
        ("allowed.test", "connect", 22, "port_not_listed"),
        ("private.test", "http", 80, "private_address"),
        ("metadata.test", "http", 80, "private_address"),
        ("own.test", "http", 80, "private_address"),
        ("nat64.test", "http", 80, "private_address"),
        ("allowed.test", "connect", 443, "sni_mismatch"),
        ("allowed.test", "connect", 443, "sni_missing"),
        ("allowed.test", "connect", 443, "not_tls"),
    ] {
        let listed = denied.destinations.iter().any(|d| {
            (&*d.destination, &*d.protocol, d.port, &*d.reason)
                == (destination, protocol, port, reason)
        });
        assert!(
            listed,
            "{destination} {port}/{protocol} {reason}: {denied:#?}"
        );
    }

    let proxy = pid(&socket(&bench)).await.expect("the proxy runs");
    has_no_rights(proxy);
    bench.finish().await;
    let begin = Instant::now();
    while lives(proxy) {
        assert!(begin.elapsed() < DEADLINE, "a purged node leaves its proxy");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nobody's user, without a group, a capability or a way to any: though root started it.
fn has_no_rights(proxy: u32) {
    let status = std::fs::read_to_string(format!("/proc/{proxy}/status")).unwrap();
    let field = |name: &str| -> Vec<String> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or_else(|| panic!("{name} in {status}"));
        words.split_whitespace().map(str::to_owned).collect()
    };
    for name in ["Uid:", "Gid:"] {
        let ids = field(name);
        assert!(ids.iter().all(|id| id != "0" && *id == ids[0]), "{status}");
    }
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(name), ["0000000000000000"], "{name} {status}");
    }
    assert_eq!(field("Groups:"), Vec::<String>::new());
    assert_eq!(field("NoNewPrivs:"), ["1"]);
}

/// Not even one on the host's loopback, which is where it is the engine that asks.
fn the_engines_resolver_asks_nobody(bench: &Bench, on: &On, runner: &str) {
    answer(on.within(|| UdpSocket::bind(("127.0.0.1", 53)).unwrap()));
    let name = "lan.rebind.test";
    let there = on.must(&format!("busybox nslookup -type=a {name} 127.0.0.1"));
    assert!(
        there.contains(NEIGHBOUR),
        "it is there and answers: {there}"
    );
    let ask = format!("nslookup -timeout=2 -retry=1 -type=a {name} 127.0.0.11 2>&1; true");
    let said = bench.exec(runner, &ask);
    assert!(!said.contains(NEIGHBOUR), "{said}");
}

/// Each slot has its own list: the gateway of another one is out of reach.
async fn another_slot_is_not_served(bench: &mut Bench, runner: &str) {
    let wanted = allowlist(&bench.image());
    let other = sandbox_with(bench, "other", wanted).await;
    let gateway = bench.gateway(&other);
    let request = b"GET http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n";
    let own = say(bench, &other, &gateway, request);
    assert!(own.contains("asked for"), "{own}");
    let said = say(bench, runner, &gateway, request);
    assert!(!said.contains("HTTP/1.1"), "{said}");
    bench.let_go(&other).await;
}

pub(crate) async fn the_proxy_needs_no_agent_and_the_agent_a_living_proxy(on: On) {
    let outside = Outside::put_up_with(&on, &[53]);
    serve(&outside);
    let mut bench = Bench::start_knowing(&on, "proxy", &hosts(), &["--dns", RESOLVER]).await;
    let wanted = allowlist(&bench.image());
    let runner = sandbox_with(&mut bench, "proxy", wanted).await;
    let socket = socket(&bench);
    let first = pid(&socket).await.expect("the proxy runs");
    let serves = |bench: &Bench| get(bench, &runner, "http://allowed.test/").contains("asked for");
    let refuses =
        |bench: &Bench| get(bench, &runner, "http://other.test/").contains("403 Forbidden");
    assert!(serves(&bench) && refuses(&bench));

    bench.kill_agent();
    assert!(serves(&bench), "it does not need the agent");
    assert!(refuses(&bench) && !reaches(&bench, &runner, INTERNET, 80));

    bench.start_agent().await;
    bench
        .until(&runner, |seen| !seen.container_id.is_empty())
        .await;
    assert_eq!(pid(&socket).await, Some(first), "the same proxy goes on");
    assert!(serves(&bench) && refuses(&bench));

    // A proxy that dies is started again, with the lists of the jobs that need it.
    on.must(&format!("kill -9 {first}"));
    let begin = Instant::now();
    while pid(&socket).await.is_none_or(|pid| pid == first) || !serves(&bench) {
        assert!(
            begin.elapsed() < DEADLINE,
            "no new proxy\n{}",
            bench.agent_log()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(refuses(&bench));
    bench.let_go(&runner).await;
    let open = call(&socket, &Request::List)
        .await
        .expect("it answers")
        .open;
    assert!(open.is_empty(), "its slot is closed: {open:?}");
    bench.finish().await;
}

/// A proxy that somebody else keeps, as a unit of the host does.
struct Service {
    program: Child,
    socket: PathBuf,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Service {
    async fn start(on: &On, folder: &Path) -> Self {
        let socket = folder.join("proxy/control.sock");
        let known = folder.join("hosts");
        std::fs::write(&known, hosts()).unwrap();
        let program = on
            .command("unshare")
            .args(["-m", "sh", "-ec"])
            .arg("mount --make-rprivate /; mount --bind \"$0\" /etc/hosts; exec \"$@\"")
            .arg(known)
            .arg(env!("CARGO_BIN_EXE_longshore-egress"))
            .args(["--linger", "0", "--user", "61183", "--socket"])
            .arg(&socket)
            .spawn()
            .unwrap();
        let service = Self { program, socket };
        let begin = Instant::now();
        while pid(&service.socket).await.is_none() {
            assert!(begin.elapsed() < DEADLINE, "the proxy does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        service
    }
}

pub(crate) async fn a_proxy_that_is_a_service_is_used_and_left_alone(on: On) {
    let outside = Outside::put_up_with(&on, &[53]);
    serve(&outside);
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(&on, folder.path()).await;
    let at = service.socket.display().to_string();
    let given = ["--dns", RESOLVER, "--egress-socket", &at];
    let mut bench = Bench::start_with(&on, "given", &given).await;
    assert!(bench.guarantees("egress_allowlist"));
    let wanted = allowlist(&bench.image());
    let runner = sandbox_with(&mut bench, "given", wanted).await;
    let serves = |bench: &Bench| get(bench, &runner, "http://allowed.test/").contains("asked for");
    assert!(serves(&bench));
    assert!(get(&bench, &runner, "http://other.test/").contains("403 Forbidden"));
    assert!(!socket(&bench).exists(), "the agent has none of its own");
    has_no_rights(pid(&service.socket).await.expect("it runs"));

    // Gone: told, and not replaced by the agent. Started again: it serves as before.
    drop(service);
    let down = |report: &pb::NodeReport| report.conditions.iter().any(|c| c.kind == "egress_down");
    let report = bench.until_report(down).await;
    let told = report.conditions.iter().find(|c| c.kind == "egress_down");
    let step = &told.expect("waited for it").next_step;
    assert!(
        step.contains("systemctl restart longshore-egress"),
        "{step}"
    );
    assert!(!serves(&bench) && !reaches(&bench, &runner, INTERNET, 80));
    let service = Service::start(&on, folder.path()).await;
    let begin = Instant::now();
    while !serves(&bench) {
        assert!(begin.elapsed() < DEADLINE, "{}", bench.agent_log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bench.until_report(|report| !down(report)).await;
    bench.let_go(&runner).await;
    bench.finish().await;
    let left = call(&service.socket, &Request::List).await;
    assert!(left.expect("it outlives a node").open.is_empty());
}
