//! What a sandbox cannot reach, and that the one rule is why: the same packet passes
//! once that rule is gone.
//!
//! All targets are stand-ins in a network namespace joined to the engine's by a veth
//! pair, so nothing here can leave the machine: a neighbour on the LAN, two resolvers,
//! the cloud's metadata service, and one address that stands for the internet.

use std::net::{TcpListener, UdpSocket};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_intent::Desired;

use crate::namespaces::{Namespaces, command, within};
use crate::on::{Kind, On};
use crate::profiles::under;
use crate::support::{Bench, run};

pub(crate) const HOST_ON_LAN: &str = "192.168.77.1";
pub(crate) const NEIGHBOUR: &str = "192.168.77.2";
pub(crate) const RESOLVER: &str = "192.168.77.3";
pub(crate) const METADATA: &str = "169.254.169.254";
pub(crate) const INTERNET: &str = "203.0.113.7";
const NEIGHBOUR_V6: &str = "fd77::2";
const DEADLINE: Duration = Duration::from_secs(60);

/// Everything outside the machine, as far as the engine can tell.
pub(crate) struct Outside {
    namespaces: Namespaces,
    on: On,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The other end goes with it.
        let _ = self
            .on
            .command("ip")
            .args(["link", "del", "out-e"])
            .status();
    }
}

impl Outside {
    /// Process in its namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.namespaces.pid()
    }

    pub(crate) fn put_up(on: &On) -> Self {
        Self::put_up_with(on, &[53, 80])
    }

    /// Takes connections at these ports, whatever the address.
    pub(crate) fn put_up_with(on: &On, ports: &[u16]) -> Self {
        // The tests on Podman share one engine, and so its network: one outside at a time.
        static ONE: Mutex<()> = Mutex::new(());
        let turn = (on.kind() == Kind::Podman)
            .then(|| ONE.lock().unwrap_or_else(|broken| broken.into_inner()));
        let namespaces = Namespaces::new("true");
        on.must(&format!(
            "ip link add out-e type veth peer name out-p netns {pid}
             ip addr add {HOST_ON_LAN}/24 dev out-e
             ip addr add fd77::1/64 dev out-e nodad
             ip link set out-e up
             echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
            pid = namespaces.pid()
        ));
        let inside = format!(
            "ip addr add {NEIGHBOUR}/24 dev out-p
             ip addr add {RESOLVER}/24 dev out-p
             ip addr add {METADATA}/32 dev out-p
             ip addr add {INTERNET}/32 dev out-p
             ip addr add {NEIGHBOUR_V6}/64 dev out-p nodad
             ip link set out-p up
             ip route add default via {HOST_ON_LAN}
             ip -6 route add default via fd77::1"
        );
        let done = command(namespaces.pid(), &["-n"], "sh")
            .args(["-ec", &inside])
            .status();
        assert!(done.is_ok_and(|done| done.success()), "{inside}");
        on.must(&format!(
            "ip route add {METADATA}/32 via {NEIGHBOUR}; ip route add {INTERNET}/32 via {NEIGHBOUR}"
        ));
        for port in ports.iter().copied() {
            serve(within(namespaces.pid(), move || {
                TcpListener::bind(("::", port)).unwrap()
            }));
        }
        for address in [NEIGHBOUR, RESOLVER] {
            answer(within(namespaces.pid(), move || {
                UdpSocket::bind((address, 53)).unwrap()
            }));
        }
        Self {
            namespaces,
            on: on.clone(),
            _turn: turn,
        }
    }
}

/// Takes connections and closes them, as long as the test lives.
pub(crate) fn serve(listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
}

/// Names that lead into a private range.
const REBOUND: [(&str, &str); 2] = [
    ("lan.rebind.test", NEIGHBOUR),
    ("metadata.rebind.test", METADATA),
];

/// Says "no such record" to every question but those of [`REBOUND`].
pub(crate) fn answer(socket: UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    tokio::spawn(async move {
        let mut packet = [0_u8; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            if length > 3 {
                let said = answered(&packet[..length]);
                let _ = socket.send_to(&said, from).await;
            }
        }
    });
}

fn answered(question: &[u8]) -> Vec<u8> {
    let mut said = question.to_vec();
    said[2] |= 0x80;
    said[3] = 0x80;
    // Labels as they stand in the packet: each after its length.
    let labels = |name: &str| -> Vec<u8> {
        let label = |label: &str| [&[label.len() as u8], label.as_bytes()].concat();
        name.split('.').flat_map(label).collect()
    };
    let asked = |name: &str| {
        let of_it = [&labels(name)[..], &[0, 0, 1, 0, 1]].concat();
        question
            .get(12..)
            .is_some_and(|rest| rest.starts_with(&of_it))
    };
    let Some((name, address)) = REBOUND.iter().find(|(name, _)| asked(name)) else {
        return said;
    };
    // One answer and nothing else, whatever else was asked along.
    said.truncate(12 + labels(name).len() + 5);
    said[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    said.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    let address: std::net::Ipv4Addr = address.parse().unwrap();
    said.extend(address.octets());
    said
}

/// A job that stays, so that packets can be sent from its sandbox.
async fn sandbox(bench: &mut Bench, what: &str) -> String {
    let wanted = run(&bench.image());
    sandbox_with(bench, what, wanted).await
}

pub(crate) async fn sandbox_with(bench: &mut Bench, what: &str, wanted: Desired) -> String {
    let runner = bench.name(what);
    bench.want(&runner, wanted).await;
    bench
        .register(
            &runner,
            "while [ ! -e _work/stop ]; do sleep 0.2; done",
            "x",
        )
        .await;
    bench.phase(&runner, Phase::Busy).await;
    runner
}

pub(crate) fn reaches(bench: &Bench, runner: &str, address: &str, port: u16) -> bool {
    let line = format!(
        "if nc -w 2 {address} {port} </dev/null >/dev/null 2>&1; then echo reached; else echo denied; fi"
    );
    bench.exec(runner, &line).contains("reached")
}

pub(crate) fn resolves(bench: &Bench, runner: &str, resolver: &str) -> bool {
    let line = format!("nslookup -timeout=2 -retry=1 -type=a name.test {resolver} 2>&1; true");
    let said = bench.exec(runner, &line);
    let answered = said.contains("answer:");
    assert_ne!(
        answered,
        said.contains("timed out"),
        "nslookup works: {said}"
    );
    answered
}

/// Removes the rules of the agent's table that hold all of these words.
pub(crate) fn remove_rules(bench: &Bench, on: &On, chain: &str, words: &str) {
    let table = bench.table();
    let listing = on.must(&format!("nft -a list chain inet {table} {chain}"));
    let handles: Vec<&str> = listing
        .lines()
        .filter(|line| line.contains(words))
        .filter_map(|line| line.rsplit("# handle ").next())
        .collect();
    assert_eq!(handles.len(), 1, "one rule says {words:?} in\n{listing}");
    on.must(&format!(
        "nft delete rule inet {table} {chain} handle {}",
        handles[0].trim()
    ));
}

/// Until the agent has put its whole table back.
pub(crate) async fn until_restored(bench: &Bench, on: &On, whole: &str) {
    let begin = Instant::now();
    let list = format!("nft -t list table inet {} 2>&1 || true", bench.table());
    while on.must(&list) != whole {
        assert!(begin.elapsed() < DEADLINE, "the table is not restored");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) async fn each_denial_is_one_rule(on: On) {
    let _outside = Outside::put_up(&on);
    let mut bench = Bench::start_with(&on, "deny", &["--dns", RESOLVER]).await;
    let runner = sandbox(&mut bench, "deny").await;
    let table = bench.table();
    let whole = on.must(&format!("nft -t list table inet {table}"));
    let gateway = bench.gateway(&runner);
    serve(on.listen("0.0.0.0:8080"));

    // Without this nothing below would mean anything.
    assert!(reaches(&bench, &runner, INTERNET, 80), "the internet");
    assert!(reaches(&bench, &runner, RESOLVER, 53), "its resolver");
    assert!(resolves(&bench, &runner, RESOLVER), "its resolver by UDP");

    let wall = &bench.wall();
    let lan = "ip daddr 192.168.0.0/16 goto denied";
    let metadata = "ip daddr 169.254.0.0/16 goto denied";
    for (what, address, port, chain, rule) in [
        ("a neighbour", NEIGHBOUR, 80, "forward", lan),
        ("a foreign resolver", NEIGHBOUR, 53, "forward", lan),
        ("another port of the resolver", RESOLVER, 80, "forward", lan),
        ("the metadata service", METADATA, 80, "forward", metadata),
        ("a service of the host", HOST_ON_LAN, 8080, "input", wall),
        ("a service at the gateway", &gateway, 8080, "input", wall),
    ] {
        assert!(!reaches(&bench, &runner, address, port), "{what}");
        // Else it would put the rule back before the packet is sent.
        bench.freeze_agent(true);
        remove_rules(&bench, &on, chain, rule);
        assert!(
            reaches(&bench, &runner, address, port),
            "{what} is denied by something else than {rule:?}"
        );
        bench.freeze_agent(false);
        until_restored(&bench, &on, &whole).await;
        assert!(!reaches(&bench, &runner, address, port), "{what}, again");
    }

    assert!(!resolves(&bench, &runner, NEIGHBOUR), "a foreign resolver");
    bench.freeze_agent(true);
    remove_rules(&bench, &on, "forward", lan);
    assert!(resolves(&bench, &runner, NEIGHBOUR), "without its rule");
    bench.freeze_agent(false);
    until_restored(&bench, &on, &whole).await;

    version_6(&bench, &on, &runner, &whole).await;
    let denied = bench.let_go(&runner).await.denied.expect("it is told");
    assert!(denied.known, "nft counts by bridge");
    for (address, protocol, port) in [
        (NEIGHBOUR, "tcp", 80),
        (NEIGHBOUR, "tcp", 53),
        (NEIGHBOUR, "udp", 53),
        (METADATA, "tcp", 80),
        (HOST_ON_LAN, "tcp", 8080),
        (NEIGHBOUR_V6, "tcp", 80),
    ] {
        let listed = denied.destinations.iter().find(|d| {
            (d.destination.as_str(), d.protocol.as_str(), d.port) == (address, protocol, port)
        });
        let listed = listed.unwrap_or_else(|| panic!("{address} {port}/{protocol}: {denied:#?}"));
        assert!(
            listed.count > 0 && listed.reason == "firewall",
            "{listed:?}"
        );
    }
    let names: Vec<&str> = denied
        .destinations
        .iter()
        .map(|d| &*d.destination)
        .collect();
    assert!(!names.contains(&INTERNET), "it was let through: {names:?}");
    assert!(denied.total >= denied.destinations.iter().map(|d| d.count).sum());

    // The next one on the same bridge begins at nothing.
    let next = sandbox(&mut bench, "next").await;
    assert_eq!(bench.gateway(&next), gateway, "the same slot");
    let denied = bench.let_go(&next).await.denied.expect("it is told");
    assert!(denied.known);
    assert_eq!((denied.total, denied.destinations), (0, vec![]));
    bench.finish().await;
}

/// What the operator opened is reached, and the node does not take that for a broken wall.
pub(crate) async fn an_opened_range_is_reached_and_is_no_breach(on: On) {
    // One of those that every look tries, as a router's would be.
    const ROUTER: &str = "192.168.0.1";
    let outside = Outside::put_up(&on);
    on.must(&format!(
        "nsenter -t {} -n ip addr add {ROUTER}/32 dev out-p; ip route add {ROUTER}/32 via {NEIGHBOUR}",
        outside.pid()
    ));
    let flags = ["--dns", RESOLVER, "--allow-ranges", "192.168.0.0/24"];
    let mut bench = Bench::start_with(&on, "opened", &flags).await;
    bench.looked().await;
    let runner = sandbox(&mut bench, "opened").await;
    assert!(reaches(&bench, &runner, ROUTER, 80), "what was opened");
    assert!(!reaches(&bench, &runner, NEIGHBOUR, 80), "and no more");
    let told = bench.property("no_private_networks");
    assert!(bench.guarantees("no_private_networks"), "{told:?}");
    bench.let_go(&runner).await;
    bench.finish().await;
}

/// Addresses and a way out, which no sandbox has.
pub(crate) fn give_ipv6(bench: &Bench, on: &On, runner: &str) {
    let pid = bench.docker(&["inspect", "-f", "{{.State.Pid}}", runner]);
    let bridge = bench.network(runner);
    // The wall drops neighbour discovery too, so each side is told the other's address.
    on.must(&format!(
        "mac() {{ sed 's/.*ether \\([^ ]*\\).*/\\1/'; }}
         bridge=$(ip -o link show {bridge} | mac)
         inner=$(nsenter -t {pid} -n ip -o link show eth0 | mac)
         echo 0 >/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6
         ip addr add fd99::1/64 dev {bridge} nodad
         ip -6 neigh replace fd99::2 lladdr $inner dev {bridge} nud permanent
         nsenter -t {pid} -n sh -ec \"echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
         ip addr add fd99::2/64 dev eth0 nodad
         ip -6 neigh replace fd99::1 lladdr $bridge dev eth0 nud permanent
         ip -6 route replace default via fd99::1\"",
        pid = pid.trim()
    ));
}

/// Sandboxes get no IPv6. Here one is given some by hand, to show that the rules would hold.
async fn version_6(bench: &Bench, on: &On, runner: &str, whole: &str) {
    let addresses = bench.exec(runner, "cat /proc/net/if_inet6");
    // Scope 10 is loopback, 20 link-local: neither leaves the slot.
    let routable: Vec<&str> = addresses
        .lines()
        .filter(|line| !matches!(line.split_whitespace().nth(3), Some("10" | "20")))
        .collect();
    assert!(routable.is_empty(), "{addresses}");
    give_ipv6(bench, on, runner);
    for (what, address, port, chain, rule) in [
        (
            "a neighbour",
            NEIGHBOUR_V6,
            80,
            "forward",
            "meta nfproto ipv6 goto denied",
        ),
        (
            "a service of the host",
            "fd77::1",
            8086,
            "input",
            &bench.wall(),
        ),
    ] {
        if port == 8086 {
            serve(on.listen("[fd77::1]:8086"));
        }
        assert!(!reaches(bench, runner, address, port), "{what} by IPv6");
        bench.freeze_agent(true);
        remove_rules(bench, on, chain, rule);
        assert!(
            reaches(bench, runner, address, port),
            "{what} by IPv6 is denied by something else than {rule:?}"
        );
        bench.freeze_agent(false);
        until_restored(bench, on, whole).await;
        assert!(!reaches(bench, runner, address, port), "{what}, again");
    }
}

pub(crate) async fn sandboxes_do_not_reach_each_other(on: On) {
    let mut bench = Bench::start(&on, "peers").await;
    let (one, other) = (
        sandbox(&mut bench, "one").await,
        sandbox(&mut bench, "other").await,
    );
    assert_ne!(bench.network(&one), bench.network(&other), "a slot each");
    let address = bench.address(&other);
    let mut listener = bench
        .inside(&other, "while :; do nc -l -p 8000 </dev/null; done")
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !reaches(&bench, &other, &address, 8000) {
        assert!(begin.elapsed() < DEADLINE, "the peer listens");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!reaches(&bench, &one, &address, 8000), "a peer");

    // Two rules deny it, and Docker's own isolation as well: each by itself.
    let range = format!(
        "ip daddr {} goto denied",
        if address.starts_with("10.") {
            "10.0.0.0/8"
        } else {
            "172.16.0.0/12"
        }
    );
    bench.freeze_agent(true);
    remove_rules(&bench, &on, "forward", &range);
    assert!(
        !reaches(&bench, &one, &address, 8000),
        "new connections to a sandbox"
    );
    assert!(
        !reaches(&bench, &one, &address, 8000),
        "what a bridge of ours sends to another"
    );
    remove_rules(&bench, &on, "forward", "oifname \"ls-*\" goto denied");
    assert!(
        !reaches(&bench, &one, &address, 8000),
        "new connections to a sandbox"
    );
    remove_rules(&bench, &on, "forward", "ct state new drop");
    if on.kind() == Kind::Docker {
        assert!(
            !reaches(&bench, &one, &address, 8000),
            "the engine's isolation"
        );
        on.must("iptables -F DOCKER-ISOLATION-STAGE-2");
    } else {
        // Podman has such rules at times, not always: nothing is built on them.
        on.must("iptables -F NETAVARK_ISOLATION_2 2>/dev/null || true");
    }
    assert!(
        reaches(&bench, &one, &address, 8000),
        "something else denies a peer\n{}",
        on.must("iptables -S; nft list ruleset")
    );
    bench.freeze_agent(false);
    let whole = |table: String| table.contains(&range) && table.contains("ct state new drop");
    let begin = Instant::now();
    while !whole(on.must(&format!("nft -t list table inet {}", bench.table()))) {
        assert!(begin.elapsed() < DEADLINE, "the table is not restored");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Only this node's rules are left now, and they are enough.
    assert!(!reaches(&bench, &one, &address, 8000), "a peer, again");
    bench.let_go(&one).await;
    bench.let_go(&other).await;
    // It ended with its sandbox.
    listener.wait().unwrap();
    bench.finish().await;
}

pub(crate) async fn no_hand_over_while_the_table_is_gone(on: On) {
    use std::os::unix::fs::PermissionsExt;
    let tools = tempfile::tempdir().unwrap();
    let broken = tools.path().join("broken");
    let nft = tools.path().join("nft");
    let script = format!(
        "#!/bin/sh\nif [ -e {} ]; then echo refused >&2; exit 1; fi\nPATH=${{PATH#*:}} exec nft \"$@\"\n",
        broken.display()
    );
    std::fs::write(&nft, script).unwrap();
    std::fs::set_permissions(&nft, std::fs::Permissions::from_mode(0o755)).unwrap();

    let mut bench = Bench::start(&on, "flush").await;
    bench.terminate_agent().await;
    bench.prefer_tools(tools.path());
    bench.start_agent().await;
    let runner = bench.name("job");
    bench.want(&runner, run(&bench.image())).await;
    bench.phase(&runner, Phase::Ready).await;

    // Gone, and it cannot be put back.
    std::fs::write(&broken, "").unwrap();
    on.must(&format!("nft delete table inet {}", bench.table()));
    bench.register(&runner, "exit 0", "x").await;
    let report = bench
        .until_report(|report| {
            report
                .conditions
                .iter()
                .any(|c| c.kind == "firewall_missing")
        })
        .await;
    let waiting = report.runners.iter().find(|seen| seen.name == runner);
    assert_eq!(waiting.map(|seen| seen.phase()), Some(Phase::Ready));
    let words = bench.docker(&["ps", "--format", "{{.Names}}"]);
    assert!(!words.contains(&runner), "a hand-over begins with its name");

    std::fs::remove_file(&broken).unwrap();
    let exited = bench.phase(&runner, Phase::Exited).await;
    assert_eq!(exited.exit.expect("an exit").code, Some(0));
    on.must(&format!("nft -t list table inet {}", bench.table()));
    bench
        .until_report(|report| {
            report
                .conditions
                .iter()
                .all(|c| c.kind != "firewall_missing")
        })
        .await;
    bench.let_go(&runner).await;
    bench.finish().await;
}

/// What somebody changes between a load and its reading, or while a job's door is opened, is
/// not taken for what the rules should be.
pub(crate) async fn a_change_at_the_wrong_moment_is_undone_too(on: On) {
    use std::os::unix::fs::PermissionsExt;
    let mut bench = Bench::start(&on, "moment").await;
    let table = bench.table();
    let whole = on.must(&format!("nft -t list table inet {table}"));
    let tools = tempfile::tempdir().unwrap();
    let at = |name: &str| tools.path().join(name);
    let nft = at("nft");
    // Once each: right after the rules were loaded, and right after a door was opened.
    let script = format!(
        "#!/bin/sh\nPATH=${{PATH#*:}}\ninput=$(cat)\nprintf '%s\\n' \"$input\" | nft \"$@\" || exit\n\
         case $input in *'delete table'*) now=load;; *'add element'*' doors {{'*) now=door;; *) exit 0;; esac\n\
         mkdir {}/$now 2>/dev/null && nft insert rule inet {table} denied accept\nexit 0\n",
        tools.path().display()
    );
    std::fs::write(&nft, script).unwrap();
    std::fs::set_permissions(&nft, std::fs::Permissions::from_mode(0o755)).unwrap();
    bench.terminate_agent().await;
    bench.prefer_tools(tools.path());
    bench.start_agent().await;
    let runner = bench.name("job");
    let wanted = under("containers", &bench.image());
    bench.want(&runner, wanted).await;
    bench.phase(&runner, Phase::Ready).await;
    assert!(at("load").exists(), "it was changed after the load");
    until_restored(&bench, &on, &whole).await;
    let job = "while [ ! -e _work/stop ]; do sleep 0.2; done";
    bench.register(&runner, job, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    assert!(at("door").exists(), "and when the door was opened");
    until_restored(&bench, &on, &whole).await;
    // The door itself stays open.
    let doors = on.must(&format!("nft list set inet {table} doors"));
    assert!(doors.contains("3129"), "{doors}");
    bench.touch(&runner, "/home/runner/_work/stop");
    bench.phase(&runner, Phase::Exited).await;
    bench.let_go(&runner).await;
    bench.finish().await;
}

/// A dead agent leaves the host as closed as a living one, and a living one undoes changes.
pub(crate) async fn rules_outlive_the_agent_and_changes_are_undone(on: On) {
    let _outside = Outside::put_up(&on);
    let mut bench = Bench::start_with(&on, "dead", &["--dns", RESOLVER]).await;
    let runner = sandbox(&mut bench, "dead").await;
    let table = bench.table();
    let whole = on.must(&format!("nft -t list table inet {table}"));
    let denied = |bench: &Bench| {
        [(NEIGHBOUR, 80), (METADATA, 80), (HOST_ON_LAN, 8080)]
            .iter()
            .all(|(address, port)| !reaches(bench, &runner, address, *port))
    };
    serve(on.listen("0.0.0.0:8080"));
    assert!(denied(&bench) && reaches(&bench, &runner, INTERNET, 80));

    bench.kill_agent();
    assert_eq!(on.must(&format!("nft -t list table inet {table}")), whole);
    assert!(denied(&bench), "nobody watches, and nothing is open");
    // That the rules are why: without them everything is.
    on.must(&format!("nft delete table inet {table}"));
    for (address, port) in [(NEIGHBOUR, 80), (METADATA, 80), (HOST_ON_LAN, 8080)] {
        assert!(reaches(&bench, &runner, address, port), "{address}");
    }
    bench.start_agent().await;
    until_restored(&bench, &on, &whole).await;
    assert!(denied(&bench), "the next agent closes it again");

    // One rule gone, and one too many ahead of all others.
    remove_rules(
        &bench,
        &on,
        "forward",
        "ip daddr 192.168.0.0/16 goto denied",
    );
    until_restored(&bench, &on, &whole).await;
    on.must(&format!("nft insert rule inet {table} forward accept"));
    until_restored(&bench, &on, &whole).await;
    on.must(&format!("nft insert rule inet {table} denied accept"));
    until_restored(&bench, &on, &whole).await;
    assert!(denied(&bench));
    bench.let_go(&runner).await;
    bench.finish().await;
}
