//! Rows 21 to 26: what can be reached. A connection that is refused by the other
//! side was let through: only silence, or no way at all, is a denial.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use crate::report::Report;
use crate::setting::{REACH, Range, Setting, Target};
use crate::view::View;

const PATIENCE: Duration = Duration::from_millis(1_500);
/// Where the agent does not name others: gateway, metadata services, private ranges.
const METADATA: [[u8; 4]; 3] = [
    [169, 254, 169, 254],
    [169, 254, 170, 2],
    [100, 100, 100, 200],
];
const PRIVATE: [[u8; 4]; 4] = [
    [10, 0, 0, 1],
    [172, 16, 0, 1],
    [192, 168, 0, 1],
    [100, 64, 0, 1],
];

/// Docker's, inside the sandbox's own network namespace.
const ENGINES_RESOLVER: &str = "127.0.0.11";

/// How an attempt to connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Connected,
    /// The other side said no: it was reached.
    Answered,
    Silence,
    NoWay,
}

pub(crate) fn look(view: &View, setting: &Setting, report: &mut Report) {
    ipv6(view, report);
    resolvers(view, setting, report);
    allowlist(setting, report);
    if !view.is_live() {
        return;
    }
    let mut targets = setting.targets.clone();
    targets.extend(usual(view, &targets, &setting.allowed));
    // Beside each other: each may take all of its patience.
    let ended: Vec<(Target, Ended)> = std::thread::scope(|scope| {
        let started: Vec<_> = targets
            .into_iter()
            .map(|target| scope.spawn(move || (target.clone(), attempt(target.address))))
            .collect();
        started
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    let neighbour = reaches_neighbour(view);
    for (name, row) in REACH {
        let of_it: Vec<&(Target, Ended)> = ended
            .iter()
            .filter(|(target, _)| target.name == name)
            .collect();
        judge(report, name, row, &of_it, neighbour);
    }
}

fn judge(
    report: &mut Report,
    name: &'static str,
    row: u32,
    attempts: &[&(Target, Ended)],
    neighbour: bool,
) {
    if attempts.is_empty() {
        report.open(row, name, "no address to try is known");
        return;
    }
    let address = |(target, _): &(Target, Ended)| target.address.to_string();
    let reached: Vec<String> = attempts
        .iter()
        .filter(|(_, ended)| matches!(ended, Ended::Connected | Ended::Answered))
        .map(|attempt| address(attempt))
        .collect();
    if !reached.is_empty() {
        report.fail(row, name, format!("reached {}", reached.join(", ")));
        return;
    }
    let answering: Vec<String> = attempts
        .iter()
        .filter(|(target, _)| target.answers)
        .map(|attempt| address(attempt))
        .collect();
    let all: Vec<String> = attempts.iter().map(|attempt| address(attempt)).collect();
    let detail = if attempts.iter().all(|(_, ended)| *ended == Ended::NoWay) {
        format!("no way to {}", all.join(", "))
    } else if !answering.is_empty() {
        format!(
            "silence from {}, where somebody listens",
            answering.join(", ")
        )
    } else if neighbour {
        format!(
            "silence from {} (whether anybody listens there is not known)",
            all.join(", ")
        )
    } else {
        format!(
            "silence from {}; the gateway was not seen either",
            all.join(", ")
        )
    };
    report.pass(row, name, detail);
}

fn attempt(address: SocketAddr) -> Ended {
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => Ended::Connected,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Ended::Answered,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Ended::Silence,
            _ => Ended::NoWay,
        },
    }
}

/// Addresses that every sandbox tries, besides those it was told. What the operator opened
/// is no private network to it.
fn usual(view: &View, told: &[Target], allowed: &[Range]) -> Vec<Target> {
    let mut more = Vec::new();
    let mut add = |name, address: Ipv4Addr, port| {
        let address = SocketAddr::from((address, port));
        if !told.iter().any(|target| target.address == address) {
            more.push(Target {
                name,
                address,
                answers: false,
            });
        }
    };
    if let Some(gateway) = gateway(view) {
        for port in [22, 2375, 9000, 9001, 10250] {
            add("no_host_services", gateway, port);
        }
    }
    for address in METADATA {
        add("no_metadata", address.into(), 80);
    }
    for address in PRIVATE.map(Ipv4Addr::from) {
        if !allowed.iter().any(|range| range.holds(address)) {
            add("no_private_networks", address, 80);
        }
    }
    more
}

/// The default route's gateway, from `/proc/net/route`.
fn gateway(view: &View) -> Option<Ipv4Addr> {
    let routes = view.read("/proc/net/route")?;
    routes.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (to, by) = (words.next()?, words.next()?);
        let by = u32::from_str_radix(by, 16).ok()?;
        (to == "00000000" && by != 0).then(|| Ipv4Addr::from(by.to_le_bytes()))
    })
}

/// The gateway answered on the wire, so that silence means a rule and not a dead network.
fn reaches_neighbour(view: &View) -> bool {
    let Some(gateway) = gateway(view) else {
        return false;
    };
    let gateway = gateway.to_string();
    let table = view.read("/proc/net/arp").unwrap_or_default();
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first() == Some(&gateway.as_str()) && words.get(2) == Some(&"0x2")
    })
}

fn ipv6(view: &View, report: &mut Report) {
    let addresses = view.read("/proc/net/if_inet6").unwrap_or_default();
    let others: Vec<&str> = addresses
        .lines()
        .filter(|line| !line.trim_end().ends_with(" lo"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    report.hold(
        others.is_empty(),
        26,
        "no_ipv6",
        "no address",
        format!("addresses {}", others.join(", ")),
    );
}

/// Names are asked of the engine's own resolver or of those the node configured.
fn resolvers(view: &View, setting: &Setting, report: &mut Report) {
    const NAME: &str = "named_resolvers";
    if setting.network == "none" {
        report.pass(24, NAME, "there is no network");
        return;
    }
    let text = view.read("/etc/resolv.conf").unwrap_or_default();
    let found: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .map(str::trim)
        .collect();
    let strange: Vec<&str> = found
        .iter()
        .copied()
        .filter(|resolver| *resolver != ENGINES_RESOLVER)
        .filter(|resolver| !setting.resolvers.iter().any(|named| named == resolver))
        .collect();
    if found.is_empty() {
        report.open(24, NAME, "no resolver is named");
    } else if strange.is_empty() {
        report.pass(24, NAME, found.join(", "));
    } else if setting.resolvers.is_empty() {
        let all = found.join(", ");
        report.open(
            24,
            NAME,
            format!("{all}; which are the node's was not told"),
        );
    } else {
        report.fail(24, NAME, format!("not the node's: {}", strange.join(", ")));
    }
}

fn allowlist(setting: &Setting, report: &mut Report) {
    const NAME: &str = "egress_allowlist";
    report.open(25, NAME, format!("the network mode is {}", setting.network));
}

/// Stands for a neighbour: answers connections until it is killed.
pub(crate) fn listen(port: u16) -> ExitCode {
    let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) else {
        eprintln!("longshore-probe: port {port} is not free");
        return ExitCode::FAILURE;
    };
    println!("listening");
    for stream in listener.incoming() {
        drop(stream);
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_other_side_counts_as_reached() {
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = open.local_addr().unwrap();
        assert_eq!(attempt(address), Ended::Connected);
        drop(open);
        // A child of another test may hold the listener for a moment.
        let begin = std::time::Instant::now();
        while attempt(address) == Ended::Connected && begin.elapsed().as_secs() < 5 {}
        assert_eq!(attempt(address), Ended::Answered);
    }

    #[test]
    fn what_the_operator_opened_is_not_tried() {
        let arguments = ["--allowed=192.168.0.0/24", "--allowed=10.0.0.0/8"];
        let setting = Setting::parse(arguments.map(str::to_owned).into_iter()).unwrap();
        let of = |allowed: &[Range]| -> Vec<String> {
            usual(&View::new("/nowhere"), &[], allowed)
                .into_iter()
                .filter(|target| target.name == "no_private_networks")
                .map(|target| target.address.to_string())
                .collect()
        };
        assert_eq!(of(&setting.allowed), ["172.16.0.1:80", "100.64.0.1:80"]);
        assert_eq!(of(&[]).len(), PRIVATE.len());
    }

    #[test]
    fn one_address_that_is_reached_fails_the_property() {
        let target = |answers| Target {
            name: "no_peers",
            address: "10.0.0.1:80".parse().unwrap(),
            answers,
        };
        let mut report = Report::default();
        let silent = (target(true), Ended::Silence);
        let reached = (target(false), Ended::Answered);
        judge(&mut report, "no_peers", 21, &[&silent], true);
        judge(&mut report, "no_peers", 21, &[&silent, &reached], true);
        judge(&mut report, "no_peers", 21, &[], true);
        let lines = report.lines();
        let lines: Vec<&str> = lines.lines().collect();
        assert!(lines[0].starts_with("PASS") && lines[0].contains("somebody listens"));
        assert!(lines[1].starts_with("FAIL 21 no_peers reached 10.0.0.1:80"));
        assert!(lines[2].starts_with("NOT_GUARANTEED"));
    }
}
