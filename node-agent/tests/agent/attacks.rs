//! What hostile code tries, as jobs in the real sandbox: past TCP, into the kernel, into
//! other processes, and out by links. Each attempt is made again where the one rule is
//! not, to show that the rule is why it failed. `walls.rs` has the same for TCP.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;
use tokio::sync::mpsc;

use crate::namespaces::within;
use crate::on::On;
use crate::support::{Bench, deadline, run};
use crate::walls::{
    HOST_ON_LAN, INTERNET, METADATA, NEIGHBOUR, Outside, RESOLVER, give_ipv6, reaches,
    remove_rules, serve, until_restored,
};

const PORT: u16 = 9_999;
/// Of the host by IPv6: the other one is taken by a socket for both.
const PORT_6: u16 = 9_998;
/// More than fits one packet.
const LARGE: usize = 4_000;
/// The neighbour, in the range that a translator of protocols would stand at.
const NAT64: &str = "64:ff9b::c0a8:4d02";

/// Does what it is told, so that each attempt is a job's own process under its filter.
const OBEY: &str = "cd _work; while [ ! -e stop ]; do \
                    if [ -e ask ]; then sh ask >said 2>&1; rm ask; mv said answer; \
                    else sleep 0.05; fi; done";

/// The program of the attempts, as a file of the host.
fn program() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attack");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/agent/attacks/attack.c");
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-static", "-o"])
            .args([&path, Path::new(source)])
            .status();
        assert!(
            built.is_ok_and(|built| built.success()),
            "a C compiler with the static C library (apt-get install build-essential)"
        );
        (folder, path)
    });
    path
}

/// A job that obeys, with the program in its work folder.
async fn attacker(bench: &mut Bench, what: &str) -> String {
    let runner = bench.name(what);
    bench.want(&runner, run(&bench.image())).await;
    bench.register(&runner, OBEY, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    let line = "cd /home/runner/_work && cat >attack && chmod 755 attack";
    let mut copy = bench
        .inside(&runner, line)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut from = std::fs::File::open(program()).unwrap();
    std::io::copy(&mut from, &mut copy.stdin.take().unwrap()).unwrap();
    assert!(copy.wait().unwrap().success());
    runner
}

/// What the job said that did this.
fn attempt(bench: &Bench, runner: &str, line: &str) -> String {
    bench.exec(
        runner,
        &format!(
            "cd /home/runner/_work; rm -f answer; cat >new <<'END'\n{line}\nEND\nmv new ask; t=0\n\
             until [ -e answer ]; do sleep 0.05; t=$((t+1)); [ $t -lt 1800 ] || exit 1; done; cat answer"
        ),
    )
}

/// Sizes of what came to a socket, as long as the test lives.
type Caught = mpsc::Receiver<usize>;

fn catch(socket: UdpSocket) -> Caught {
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    let (tell, caught) = mpsc::channel(256);
    tokio::spawn(async move {
        let mut packet = vec![0; 65_536];
        while let Ok((length, _)) = socket.recv_from(&mut packet).await {
            // What nobody looks at any more is not needed.
            let _ = tell.try_send(length);
        }
    });
    caught
}

fn outside_at(outside: &Outside, address: &'static str, port: u16) -> Caught {
    catch(within(outside.pid(), move || {
        UdpSocket::bind((address, port)).unwrap()
    }))
}

/// How an attempt shows that it worked.
#[derive(Clone, Copy)]
enum Shown {
    /// By these words of its own.
    Says(&'static str),
    /// At one of the sockets, by so many bytes.
    At(usize, usize),
}

struct Try {
    what: &'static str,
    line: String,
    shown: Shown,
}

fn datagram(what: &'static str, to: &str, port: u16, size: usize, at: usize) -> Try {
    Try {
        what,
        line: format!("./attack udp {to} {port} {size}"),
        shown: Shown::At(at, size),
    }
}

fn ping(what: &'static str, to: &str) -> Try {
    Try {
        what,
        line: format!("./attack ping {to}"),
        shown: Shown::Says("reply"),
    }
}

/// Connects to whatever the name leads to, asked of the engine's resolver.
fn by_name(what: &'static str, name: &str) -> Try {
    Try {
        what,
        line: format!(
            "a=$(nslookup -type=a {name} 127.0.0.11 | awk '/^Address/ {{print $2}}' | tail -n 1); \
             echo it is at $a; nc -w 2 $a 80 </dev/null >/dev/null 2>&1 && echo reached"
        ),
        shown: Shown::Says("reached"),
    }
}

/// Whether it worked. A datagram that goes its way by a rule is sent after each: once it
/// has come, one that was sent before would have come too.
async fn works(bench: &Bench, runner: &str, sockets: &mut [Caught], one: &Try) -> bool {
    for socket in sockets.iter_mut() {
        while socket.try_recv().is_ok() {}
    }
    let said = attempt(bench, runner, &one.line);
    match one.shown {
        Shown::Says(words) => {
            assert!(!said.contains("refused"), "{}: {said}", one.what);
            said.contains(words)
        }
        Shown::At(at, size) => {
            // Not even sent: that would be another reason than a rule.
            assert!(said.contains("sent done"), "{}: {said}", one.what);
            let after = format!("./attack udp {INTERNET} {PORT} 11");
            attempt(bench, runner, &after);
            let mut seen = None;
            let marked = tokio::time::timeout(deadline(), async {
                while let Some(length) = sockets[0].recv().await.filter(|n| *n != 11) {
                    seen = Some(length);
                }
            });
            marked.await.expect("the internet is reached");
            if at != 0 {
                seen = sockets[at].try_recv().ok();
            }
            assert!(seen.is_none_or(|length| length == size), "{}", one.what);
            seen.is_some()
        }
    }
}

/// Denied, let through without that rule, and denied again.
async fn only_by(
    (bench, on, runner, whole): (&Bench, &On, &str, &str),
    sockets: &mut [Caught],
    (chain, rule): (&str, &str),
    tries: &[Try],
) {
    for one in tries {
        assert!(!works(bench, runner, sockets, one).await, "{}", one.what);
    }
    // Else it would put the rule back before the packet is sent.
    bench.freeze_agent(true);
    remove_rules(bench, on, chain, rule);
    for one in tries {
        let begin = Instant::now();
        // Again: the first may wait for who has the next address until it is too late.
        while !works(bench, runner, sockets, one).await {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{} is denied by something else than {rule:?}",
                one.what
            );
        }
    }
    bench.freeze_agent(false);
    until_restored(bench, on, whole).await;
    for one in tries {
        let again = works(bench, runner, sockets, one).await;
        assert!(!again, "{}, again", one.what);
    }
}

pub(crate) async fn what_goes_past_tcp_is_denied_by_one_rule(on: On) {
    let outside = Outside::put_up(&on);
    let mut bench = Bench::start_with(&on, "past", &["--dns", RESOLVER]).await;
    let runner = attacker(&mut bench, "past").await;
    let whole = on.must(&format!("nft -t list table inet {}", bench.table()));
    let gateway = bench.gateway(&runner);
    let broadcast = {
        let first: Ipv4Addr = gateway.parse().unwrap();
        Ipv4Addr::from(u32::from(first) | 7).to_string()
    };
    let on_bridge: Ipv4Addr = gateway.parse().unwrap();
    let mut sockets = [
        outside_at(&outside, INTERNET, PORT),
        outside_at(&outside, NEIGHBOUR, PORT),
        outside_at(&outside, METADATA, PORT),
        outside_at(&outside, RESOLVER, 80),
        catch(on.within(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap())),
        catch(on.within(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 5_353)).unwrap();
            let group = Ipv4Addr::new(224, 0, 0, 251);
            socket.join_multicast_v4(&group, &on_bridge).unwrap();
            socket
        })),
    ];
    let [internet, neighbour, metadata, resolver, host, group] = [0, 1, 2, 3, 4, 5];
    // Without these nothing below would mean anything.
    for one in [
        datagram("fragments to the internet", INTERNET, PORT, LARGE, internet),
        ping("the internet", INTERNET),
    ] {
        assert!(
            works(&bench, &runner, &mut sockets, &one).await,
            "{}",
            one.what
        );
    }

    let all = (&bench, &on, &*runner, &*whole);
    let lan = ("forward", "ip daddr 192.168.0.0/16 goto denied");
    let tries = [
        ping("an echo of a neighbour", NEIGHBOUR),
        datagram(
            "fragments to a neighbour",
            NEIGHBOUR,
            PORT,
            LARGE,
            neighbour,
        ),
        datagram(
            "fragments past the resolver's port",
            RESOLVER,
            80,
            LARGE,
            resolver,
        ),
        by_name("a name that leads to a neighbour", "lan.rebind.test"),
    ];
    only_by(all, &mut sockets, lan, &tries).await;
    let cloud = ("forward", "ip daddr 169.254.0.0/16 goto denied");
    let tries = [
        ping("an echo of the metadata service", METADATA),
        datagram(
            "fragments to the metadata service",
            METADATA,
            PORT,
            LARGE,
            metadata,
        ),
        by_name(
            "a name that leads to the metadata service",
            "metadata.rebind.test",
        ),
    ];
    only_by(all, &mut sockets, cloud, &tries).await;
    let wall = bench.wall();
    let tries = [
        ping("an echo of the gateway", &gateway),
        ping("an echo of the host", HOST_ON_LAN),
        datagram("fragments to the gateway", &gateway, PORT, LARGE, host),
        datagram("fragments to the host", HOST_ON_LAN, PORT, LARGE, host),
        datagram("a group of many", "224.0.0.251", 5_353, 100, group),
        datagram("everybody on the link", "255.255.255.255", PORT, 100, host),
        datagram("everybody in the slot", &broadcast, PORT, 100, host),
    ];
    only_by(all, &mut sockets, ("input", &wall), &tries).await;

    ports_of_ours(all, &gateway).await;
    version_6(all, &outside, &mut sockets[0..1]).await;
    let denied = bench.let_go(&runner).await.denied.expect("it is told");
    for (address, protocol) in [(NEIGHBOUR, "icmp"), (METADATA, "udp"), (NAT64, "udp")] {
        let told = denied
            .destinations
            .iter()
            .any(|d| d.destination == address && d.protocol == protocol && d.reason == "firewall");
        assert!(told, "{address} by {protocol}: {denied:#?}");
    }
    bench.finish().await;
}

/// Where a scheduler, an engine, an agent's door and its proxy would listen on this host.
async fn ports_of_ours((bench, on, runner, whole): (&Bench, &On, &str, &str), gateway: &str) {
    const PORTS: [u16; 6] = [9_000, 9_001, 9_002, 2_375, 3_128, 3_129];
    for port in PORTS {
        serve(on.listen(&format!("0.0.0.0:{port}")));
    }
    let places = || {
        [gateway, HOST_ON_LAN]
            .into_iter()
            .flat_map(|address| PORTS.map(|port| (address, port)))
    };
    for (address, port) in places() {
        assert!(!reaches(bench, runner, address, port), "{address}:{port}");
    }
    bench.freeze_agent(true);
    remove_rules(bench, on, "input", &bench.wall());
    for (address, port) in places() {
        assert!(reaches(bench, runner, address, port), "{address}:{port}");
    }
    bench.freeze_agent(false);
    until_restored(bench, on, whole).await;
}

/// Sandboxes get no IPv6. Here one is given some by hand, to show that the rules would hold.
async fn version_6(
    all @ (bench, on, runner, whole): (&Bench, &On, &str, &str),
    outside: &Outside,
    internet: &mut [Caught],
) {
    let none = attempt(bench, runner, &format!("./attack udp {NAT64} {PORT} 100"));
    assert!(none.contains("sent refused"), "it has no IPv6: {none}");
    give_ipv6(bench, on, runner);
    let enter = format!("nsenter -t {} -n", outside.pid());
    on.must(&format!(
        "{enter} ip addr add {NAT64}/128 dev out-p nodad; ip -6 route add 64:ff9b::/96 via fd77::2"
    ));
    let bridge = bench.network(runner);
    let link_local = {
        let begin = Instant::now();
        loop {
            let told = on.must(&format!("ip -o -6 addr show dev {bridge} scope link"));
            let ready = !told.is_empty() && !told.contains("tentative");
            if let (true, Some(address)) = (ready, told.split_whitespace().nth(3)) {
                break address.trim_end_matches("/64").to_owned();
            }
            assert!(
                begin.elapsed() < deadline(),
                "no link-local address: {told}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let at_bridge = format!("{link_local}%eth0");
    let placeholder = || mpsc::channel(1).1;
    let mut sockets = [
        std::mem::replace(&mut internet[0], placeholder()),
        outside_at(outside, NAT64, PORT),
        catch(on.within(|| UdpSocket::bind(("::", PORT_6)).unwrap())),
    ];
    let tries = [
        datagram("a neighbour through NAT64", NAT64, PORT, 100, 1),
        datagram("fragments through NAT64", NAT64, PORT, LARGE, 1),
    ];
    let rule = ("forward", "meta nfproto ipv6 goto denied");
    only_by(all, &mut sockets, rule, &tries).await;
    // Who has that address is asked first, and that question is not heard either.
    let wall = bench.wall();
    let ask = format!(
        "./attack udp {at_bridge} {PORT_6} 100; t=0; until ip -6 neigh show {link_local} dev eth0 | grep lladdr; \
         do t=$((t+1)); [ $t -lt 30 ] || break; sleep 0.1; done"
    );
    let told = attempt(bench, runner, &ask);
    assert!(!told.contains("lladdr"), "discovery is answered: {told}");
    bench.freeze_agent(true);
    remove_rules(bench, on, "input", &wall);
    let begin = Instant::now();
    loop {
        let told = attempt(bench, runner, &ask);
        if told.contains("lladdr") {
            break;
        }
        let rules = on.must("nft list ruleset");
        assert!(begin.elapsed() < deadline(), "unanswered: {told}\n{rules}");
    }
    bench.freeze_agent(false);
    until_restored(bench, on, whole).await;
    let pid = bench.docker(&["inspect", "-f", "{{.State.Pid}}", runner]);
    on.must(&format!(
        "address=$(ip -o link show {bridge} | sed 's/.*ether \\([^ ]*\\).*/\\1/')
         nsenter -t {} -n ip -6 neigh replace {link_local} lladdr $address dev eth0 nud permanent",
        pid.trim()
    ));
    let tries = [datagram("the host on the link", &at_bridge, PORT_6, 100, 2)];
    only_by(all, &mut sockets, ("input", &wall), &tries).await;
}

/// One table of connections is everybody's on a host.
pub(crate) async fn a_flood_of_connections_leaves_the_host_its_table(on: On) {
    const MANY: usize = 12_000;
    let outside = Outside::put_up(&on);
    let _caught = outside_at(&outside, INTERNET, PORT);
    let mut bench = Bench::start_with(&on, "many", &["--dns", RESOLVER]).await;
    let runner = attacker(&mut bench, "many").await;
    let neighbour = attacker(&mut bench, "neighbour").await;
    let whole = on.must(&format!("nft -t list table inet {}", bench.table()));
    let held = || {
        let count = on.must("cat /proc/sys/net/netfilter/nf_conntrack_count");
        count.trim().parse::<usize>().unwrap()
    };
    let flood = || {
        let begin = Instant::now();
        let said = attempt(
            &bench,
            &runner,
            &format!("./attack flood {INTERNET} {PORT} {MANY}"),
        );
        assert_eq!(said.trim(), format!("sent {MANY}"));
        begin.elapsed()
    };
    let before = held();
    let took = flood();
    let most = 4_096 + 200 * (took.as_secs() as usize + 1) + before + 64;
    assert!(most < MANY, "too slow to be a flood: {took:?}");
    let now = held();
    assert!(
        (4_096..most).contains(&now),
        "{now} connections, {before} before"
    );
    // Its haste is its own.
    assert!(reaches(&bench, &neighbour, INTERNET, 80), "a neighbour");

    bench.freeze_agent(true);
    remove_rules(&bench, &on, "paced", "limit rate over");
    flood();
    let now = held();
    assert!(now > MANY, "{now} connections without the rule");
    bench.freeze_agent(false);
    until_restored(&bench, &on, &whole).await;
    let denied = bench.let_go(&runner).await.denied.expect("it is told");
    let told = denied
        .destinations
        .iter()
        .find(|d| d.reason == "too_many_connections");
    let told = told.unwrap_or_else(|| panic!("{denied:#?}"));
    assert!(
        told.count > 1_000 && denied.total >= told.count,
        "{denied:#?}"
    );
    let denied = bench.let_go(&neighbour).await.denied.expect("it is told");
    assert_eq!((denied.total, denied.destinations), (0, vec![]));
    bench.finish().await;
}

/// Every attempt, with what became of it.
fn outcomes(said: &str) -> Vec<(&str, &str)> {
    let outcomes: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    assert!(outcomes.len() >= 5, "{said}");
    outcomes
}

/// What a kernel says that lacks something altogether.
const NOT_THERE: [&str; 4] = ["ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EOPNOTSUPP"];

/// Each is done here, by root and without the sandbox's rules.
fn is_done_outside(said: &str) {
    for (name, outcome) in outcomes(said) {
        match outcome.strip_prefix("refused ") {
            Some(error) if NOT_THERE.contains(&error) => {
                eprintln!("{name}: unproven, this kernel has it not ({error})");
            }
            Some(error) => panic!("{name} outside of a sandbox: {error}"),
            None => assert_eq!(outcome, "done", "{name}"),
        }
    }
}

fn on_the_host(program: &str, words: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(words)
        .current_dir(folder.path())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) async fn what_reaches_for_the_kernel_or_other_processes_is_refused(on: On) {
    let mut bench = Bench::start(&on, "kernel").await;
    let runner = attacker(&mut bench, "kernel").await;
    let neighbour = attacker(&mut bench, "neighbour").await;
    let said = attempt(&bench, &runner, "./attack kernel");
    let seen = outcomes(&said);
    assert!(seen.len() >= 25, "{said}");
    for (name, outcome) in &seen {
        assert!(outcome.starts_with("refused "), "{name}: {outcome}");
    }
    let path = program().to_str().unwrap();
    let outside = on_the_host("unshare", &["-m", "-u", path, "kernel"]);
    assert_eq!(outcomes(&outside).len(), seen.len(), "{outside}");
    is_done_outside(&outside);

    // By the numbers that the host gives them: the agent's, and another sandbox's first.
    let of_neighbour = bench.docker(&["inspect", "-f", "{{.State.Pid}}", &neighbour]);
    for pid in [&bench.agent_pid().to_string(), of_neighbour.trim()] {
        let said = attempt(&bench, &runner, &format!("./attack process {pid}"));
        for (name, outcome) in outcomes(&said) {
            let absent = ["refused ESRCH", "refused ENOENT"].contains(&outcome);
            assert!(absent, "{name} of {pid}: {outcome}");
        }
        is_done_outside(&on_the_host(path, &["process", pid]));
    }
    let alive = attempt(&bench, &neighbour, "echo unharmed");
    assert_eq!(alive.trim(), "unharmed");

    a_setuid_program_gives_nothing(&bench, &runner);
    bench.let_go(&neighbour).await;
    bench.let_go(&runner).await;
    bench.finish().await;
}

/// Root's own program with the bit, put into the work folder from outside.
fn a_setuid_program_gives_nothing(bench: &Bench, runner: &str) {
    let pid = bench.docker(&["inspect", "-f", "{{.State.Pid}}", runner]);
    let line = "cd /home/runner/_work && cp attack up && chown 0:0 up && chmod 4755 up";
    let put = Command::new("nsenter")
        .args(["-t", pid.trim(), "-m", "--", "/bin/sh", "-c", line])
        .status();
    assert!(put.is_ok_and(|put| put.success()));
    let said = attempt(bench, runner, "ls -ln up; ./up whoami");
    assert!(said.starts_with("-rwsr-xr-x"), "{said}");
    assert_eq!(said.lines().last(), Some("1001"), "{said}");

    let folder = tempfile::tempdir().unwrap();
    let up = folder.path().join("up");
    std::fs::copy(program(), &up).unwrap();
    let mode = std::fs::Permissions::from_mode;
    std::fs::set_permissions(folder.path(), mode(0o755)).unwrap();
    std::fs::set_permissions(&up, mode(0o4755)).unwrap();
    let user = ["--reuid", "1001", "--regid", "1001", "--clear-groups"];
    let outside = on_the_host(
        "setpriv",
        &[&user[..], &[up.to_str().unwrap(), "whoami"]].concat(),
    );
    assert_eq!(outside.trim(), "0", "without no_new_privs the bit works");
}

/// A folder of the host that a link of a job leads to: larger than any job may be.
fn canary() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "the host's own\n").unwrap();
    let large = std::fs::File::create(folder.path().join("large")).unwrap();
    std::io::copy(
        &mut std::io::Read::take(std::io::repeat(b'x'), 100 << 20),
        &mut &large,
    )
    .unwrap();
    folder
}

/// Names, owners, sizes and times of everything in a folder.
fn state_of(folder: &Path) -> String {
    let line = format!(
        "cd {} && find . -printf '%p %u %m %s %T@ %C@\\n' | sort",
        folder.display()
    );
    let output = Command::new("sh").args(["-ec", &line]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_leads_to_the_host_is_followed_by_nobody() {
    // Measured and not sized, so that the agent walks through the folder itself.
    let tools = tempfile::tempdir().unwrap();
    let broken = tools.path().join("mkfs.ext4");
    std::fs::write(&broken, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut bench = Bench::start_with(&On::Host, "links", &["--job-disk", "64MiB"]).await;
    bench.prefer_tools(tools.path());
    bench.kill_agent();
    bench.start_agent().await;
    bench.looked().await;

    let folder = canary();
    let at = folder.path().display();
    let (runner, measured) = (bench.name("links"), bench.name("measured"));
    bench.want(&runner, run(&bench.image())).await;
    bench.want(&measured, run(&bench.image())).await;
    let job = format!(
        "cd _work; ln -s / root; ln -s /proc proc; ln -s {at} host; ln -s {at}/secret secret; \
         ln -s ../../../../../../../../..{at} up; rmdir _tmp; ln -s {at} _tmp; mkdir -p _diag; \
         ln -s {at}/secret _diag/Worker.log; ln -s . loop; mkfifo fifo; touch made; \
         while [ ! -e go ]; do sleep 0.1; done; exit 36"
    );
    bench.register(&runner, &job, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    let begin = Instant::now();
    while !bench
        .exec(&runner, "ls /home/runner/_work")
        .contains("made")
    {
        assert!(begin.elapsed() < deadline(), "the links are not made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = state_of(folder.path());
    // The control: whoever follows them gets there.
    let volumes = bench.docker(&[
        "inspect",
        "-f",
        "{{range .Mounts}}{{if eq .Destination \"/home/runner/_work\"}}{{.Source}}{{end}}{{end}}",
        &runner,
    ]);
    let work = Path::new(volumes.trim());
    let followed = std::fs::read_to_string(work.join("secret")).unwrap();
    assert_eq!(followed, "the host's own\n");
    let size = std::fs::metadata(work.join("host/large")).unwrap().len();
    assert!(size > 64 << 20, "more than the job may have");

    // Another job that really takes too much ends: so both were measured.
    let grow =
        "dd if=/dev/zero of=_work/fill bs=1M count=100 2>/dev/null; while :; do sleep 0.2; done";
    bench.register(&measured, grow, "x").await;
    let exit = bench.phase(&measured, Phase::Exited).await.exit.unwrap();
    assert_eq!(exit.cause(), Cause::DiskFull, "{exit:?}");
    bench.touch(&runner, "/home/runner/_work/go");
    let exit = bench.phase(&runner, Phase::Exited).await.exit.unwrap();
    assert_eq!((exit.code, exit.cause()), (Some(36), Cause::Finished));
    assert_eq!(bench.leftovers(), "");
    assert!(!work.exists(), "the folder is gone");
    assert_eq!(state_of(folder.path()), before, "and nothing it led to");
    bench.finish().await;
}
