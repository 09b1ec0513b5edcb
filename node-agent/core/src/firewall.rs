//! The firewall rules of an agent, as text for `nft` and for `iptables-restore`.
//!
//! Docker's networks protect containers from each other, not the host from
//! containers. These rules do: slot bridges reach the internet and the
//! configured resolver, and nothing else. They are in a table of the agent's
//! own, ahead of the engine's chains, and stay when the agent is gone.

use std::net::{IpAddr, Ipv4Addr};

use crate::denied::set;
use crate::ranges::Range;

/// Seconds that a denied destination is remembered by the kernel after its last packet.
const KEPT_S: u32 = 600;

/// Destinations that are never the internet.
pub const DENIED: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "192.88.99.0/24",
];

/// What the rules are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Name of the nftables table; prefix of the iptables chains.
    pub table: String,
    /// What the agent's bridges begin with.
    pub bridge_prefix: String,
    /// Resolvers that sandboxes may ask, port 53 only. IPv6 ones are left out:
    /// slot networks have none.
    pub resolvers: Vec<IpAddr>,
    /// What the bridges of closed slots begin with; itself begins with `bridge_prefix`.
    pub closed_prefix: String,
    /// Private ranges that the operator opens to all sandboxes of mode `open`.
    pub allowed: Vec<Range>,
}

/// An opening from one slot to one port on its own gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Door {
    pub bridge: String,
    pub gateway: Ipv4Addr,
    pub port: u16,
}

/// Openings, each from one bridge; empty unless a job has one.
const NFT_DOORS: &str =
    "\tset doors {\n\t\ttype ifname . ipv4_addr . inet_service\n\t\tsize 16384\n\t}\n";

/// Connections a second that one sandbox may begin for long, and how many it may begin at once
/// before that counts. The kernel has one table of connections for the whole host, and what
/// answers nobody stays in it for minutes: without a bound one scan fills it for everybody.
pub const PACE: u32 = 200;
pub const BURST: u32 = 4_096;

/// Port of the egress proxy on each closed slot's gateway.
pub const PROXY_PORT: u16 = 3_128;

impl Rules {
    fn nft_doors_rule(&self) -> String {
        format!(
            "iifname \"{}*\" iifname . ip daddr . tcp dport @doors goto paced",
            self.bridge_prefix
        )
    }

    /// Arguments of `nft` that add or delete an opening.
    pub fn nft_door(&self, verb: &str, door: &Door) -> String {
        format!(
            "{verb} element inet {} doors {{ \"{}\" . {} . {} }}\n",
            self.table, door.bridge, door.gateway, door.port
        )
    }

    /// Arguments of `iptables` that insert (`-I`) or delete (`-D`) an opening.
    pub fn iptables_door(&self, verb: &str, door: &Door) -> Vec<String> {
        let [input, _] = self.chains();
        let mut arguments = vec!["-w".to_owned(), verb.to_owned(), input];
        if verb == "-I" {
            arguments.push("1".into());
        }
        let (gateway, port) = (format!("{}/32", door.gateway), door.port.to_string());
        for word in [
            "-i",
            &door.bridge,
            "-d",
            &gateway,
            "-p",
            "tcp",
            "--dport",
            &port,
            "-j",
            "ACCEPT",
        ] {
            arguments.push(word.to_owned());
        }
        arguments
    }

    fn resolvers_v4(&self) -> impl Iterator<Item = String> + '_ {
        self.resolvers
            .iter()
            .filter(|ip| ip.is_ipv4() && !ip.is_loopback())
            .map(IpAddr::to_string)
    }

    /// Counts what is dropped, and drops it. The sets are bounded, and what finds no room in
    /// one of them is dropped all the same: a rule whose set is full only ends there.
    fn nft_denied() -> String {
        let keyed = |name: &str, kind: &str, size: u32| {
            format!(
                "\tset {name} {{\n\t\ttype {kind}\n\t\tsize {size}\n\t\tflags dynamic,timeout\n\t\ttimeout {KEPT_S}s\n\t}}\n"
            )
        };
        let mut text = keyed(
            set::V4,
            "ifname . ipv4_addr . inet_proto . inet_service",
            4_096,
        );
        text.push_str(&keyed(
            set::V4_OTHER,
            "ifname . ipv4_addr . inet_proto",
            1_024,
        ));
        text.push_str(&keyed(
            set::V6,
            "ifname . ipv6_addr . inet_proto . inet_service",
            1_024,
        ));
        // One element per bridge: a job cannot make more of them.
        for name in [set::TOTAL, set::CROWDED, set::PACE] {
            text.push_str(&format!(
                "\tset {name} {{\n\t\ttype ifname\n\t\tsize 16384\n\t\tflags dynamic\n\t}}\n"
            ));
        }
        let ported = "meta l4proto { tcp, udp }";
        text.push_str("\tchain denied {\n");
        for rule in [
            // What any kernel says on a link by itself is not an attempt of a job.
            "ip6 daddr ff02::/16 meta l4proto ipv6-icmp drop".to_owned(),
            format!("update @{} {{ iifname counter }}", set::TOTAL),
            format!(
                "meta nfproto ipv4 {ported} update @{} {{ iifname . ip daddr . meta l4proto . th dport counter }}",
                set::V4
            ),
            format!(
                "meta nfproto ipv4 meta l4proto != {{ tcp, udp }} update @{} {{ iifname . ip daddr . meta l4proto counter }}",
                set::V4_OTHER
            ),
            format!(
                "meta nfproto ipv6 {ported} update @{} {{ iifname . ip6 daddr . meta l4proto . th dport counter }}",
                set::V6
            ),
            "drop".to_owned(),
        ] {
            text.push_str(&format!("\t\t{rule}\n"));
        }
        text.push_str("\t}\n");
        text
    }

    /// Where everything goes that is let through: as fast as one sandbox may.
    fn nft_paced() -> String {
        format!(
            "\tchain crowded {{\n\t\tupdate @{} {{ iifname counter }}\n\t\tupdate @{} {{ iifname counter }}\n\t\tdrop\n\t}}\n\
             \tchain paced {{\n\t\tct state new update @{} {{ iifname limit rate over {PACE}/second burst {BURST} packets }} goto crowded\n\t\taccept\n\t}}\n",
            set::TOTAL,
            set::CROWDED,
            set::PACE
        )
    }

    /// One transaction that replaces the table, whatever was in it.
    pub fn nft(&self) -> String {
        let table = &self.table;
        let bridge = format!("iifname \"{}*\"", self.bridge_prefix);
        let mut text =
            format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        text.push_str(NFT_DOORS);
        text.push_str(&Self::nft_denied());
        text.push_str(&Self::nft_paced());
        let closed = format!("iifname \"{}*\"", self.closed_prefix);
        for hook in ["input", "forward"] {
            text.push_str(&format!(
                "\tchain {hook} {{\n\t\ttype filter hook {hook} priority filter - 10; policy accept;\n"
            ));
            let rules = match hook {
                "input" => self.nft_input(&bridge, &closed),
                _ => self.nft_forward(&bridge, &closed),
            };
            for rule in rules {
                text.push_str(&format!("\t\t{rule}\n"));
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }

    fn nft_resolvers(&self, bridge: &str) -> impl Iterator<Item = String> {
        let resolvers: Vec<String> = self.resolvers_v4().collect();
        let bridge = bridge.to_owned();
        resolvers.into_iter().flat_map(move |ip| {
            ["udp", "tcp"]
                .map(|protocol| format!("{bridge} ip daddr {ip} {protocol} dport 53 goto paced"))
        })
    }

    /// To the host itself: a closed slot's own gateway has the proxy, and nothing else.
    fn nft_input(&self, bridge: &str, closed: &str) -> Vec<String> {
        let mut rules = vec![
            self.nft_doors_rule(),
            format!("{closed} fib daddr . iif type local tcp dport {PROXY_PORT} goto paced"),
            format!("{closed} goto denied"),
        ];
        rules.extend(self.nft_resolvers(bridge));
        rules.push(format!("{bridge} goto denied"));
        rules
    }

    /// Through the host.
    fn nft_forward(&self, bridge: &str, closed: &str) -> Vec<String> {
        let mut rules = vec![format!("{closed} goto denied")];
        rules.extend(self.nft_resolvers(bridge));
        rules.push(format!("{bridge} meta nfproto ipv6 goto denied"));
        // Ahead of the allowed ranges: other sandboxes are never among them.
        rules.push(format!("{bridge} oifname \"ls-*\" goto denied"));
        rules.extend(
            self.allowed
                .iter()
                .map(|range| format!("{bridge} ip daddr {range} goto paced")),
        );
        rules.extend(
            DENIED
                .iter()
                .map(|range| format!("{bridge} ip daddr {range} goto denied")),
        );
        // Nothing from outside begins a connection to a sandbox.
        rules.push(format!(
            "oifname \"{}*\" ct state new drop",
            self.bridge_prefix
        ));
        rules.push(format!("{bridge} goto paced"));
        rules
    }

    /// Rules that `nft list table` must show: one line each.
    pub fn nft_rule_count(&self) -> usize {
        let resolvers = self.resolvers_v4().count();
        4 * resolvers + self.allowed.len() + DENIED.len() + 9
    }

    /// Chain names of the fallback.
    pub fn chains(&self) -> [String; 2] {
        [format!("{}-in", self.table), format!("{}-fw", self.table)]
    }

    /// `iptables-restore --noflush` input that fills the two chains.
    pub fn iptables(&self) -> String {
        let [input, forward] = self.chains();
        let bridge = format!("{}+", self.bridge_prefix);
        let closed = format!("{}+", self.closed_prefix);
        let mut text =
            format!("*filter\n:{input} - [0:0]\n:{forward} - [0:0]\n-F {input}\n-F {forward}\n");
        for chain in [&input, &forward] {
            text.push_str(&format!(
                "-A {chain} -i {bridge} -m conntrack --ctstate NEW -m hashlimit --hashlimit-above {PACE}/second --hashlimit-burst {BURST} --hashlimit-mode srcip --hashlimit-srcmask 29 --hashlimit-name {} -j DROP\n",
                self.table
            ));
        }
        // The gateways of other slots are refused by the proxy, which knows its own.
        text.push_str(&format!(
            "-A {input} -i {closed} -p tcp --dport {PROXY_PORT} -m addrtype --dst-type LOCAL --limit-iface-in -j ACCEPT\n"
        ));
        for chain in [&input, &forward] {
            text.push_str(&format!("-A {chain} -i {closed} -j DROP\n"));
            for ip in self.resolvers_v4() {
                for protocol in ["udp", "tcp"] {
                    text.push_str(&format!(
                        "-A {chain} -i {bridge} -d {ip}/32 -p {protocol} --dport 53 -j ACCEPT\n"
                    ));
                }
            }
        }
        text.push_str(&format!("-A {input} -i {bridge} -j DROP\n"));
        text.push_str(&format!("-A {forward} -i {bridge} -o ls-+ -j DROP\n"));
        for range in &self.allowed {
            text.push_str(&format!("-A {forward} -i {bridge} -d {range} -j ACCEPT\n"));
        }
        for range in DENIED {
            text.push_str(&format!("-A {forward} -i {bridge} -d {range} -j DROP\n"));
        }
        text.push_str(&format!(
            "-A {forward} -o {bridge} -m conntrack --ctstate NEW -j DROP\nCOMMIT\n"
        ));
        text
    }

    /// The same for IPv6, where everything is dropped.
    pub fn ip6tables(&self) -> String {
        let [input, forward] = self.chains();
        let bridge = format!("{}+", self.bridge_prefix);
        format!(
            "*filter\n:{input} - [0:0]\n:{forward} - [0:0]\n-F {input}\n-F {forward}\n\
             -A {input} -i {bridge} -j DROP\n-A {forward} -i {bridge} -j DROP\nCOMMIT\n"
        )
    }
}

/// Resolvers of a `resolv.conf`, in its order, without loopback ones: those
/// the engine's own resolver asks from the host's side.
pub fn resolvers_of(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .filter(|ip| !ip.is_loopback())
        .take(3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            table: "longshore_0a1b2c".into(),
            bridge_prefix: "ls-0a1b2c-".into(),
            resolvers: vec!["10.0.0.2".parse().unwrap(), "fd00::1".parse().unwrap()],
            closed_prefix: "ls-0a1b2c-a".into(),
            allowed: vec!["10.7.0.0/16".parse().unwrap()],
        }
    }

    #[test]
    fn the_rule_count_is_what_the_text_holds() {
        let text = rules().nft();
        let lines = text
            .lines()
            .filter(|line| line.contains("ifname \""))
            .count();
        assert_eq!(lines, rules().nft_rule_count());
    }

    #[test]
    fn a_resolver_is_let_through_before_its_range_is_denied() {
        let text = rules().nft();
        let forward = text.split("chain forward").nth(1).unwrap();
        let allowed = forward.find("10.0.0.2 udp dport 53 goto paced").unwrap();
        let denied = forward.find("10.0.0.0/8 goto denied").unwrap();
        assert!(allowed < denied);
        assert!(!text.contains("fd00"));
    }

    #[test]
    fn every_rule_names_this_agents_bridges_only() {
        for text in [rules().nft(), rules().iptables(), rules().ip6tables()] {
            // The nft chain that counts and drops is only gone to by the others.
            let hooked = text.split("chain input").last().unwrap_or(&text);
            for line in hooked.lines().filter(|l| {
                ["drop", "goto", "-j", "accept"]
                    .iter()
                    .any(|verdict| l.contains(verdict))
                    && !l.contains("policy")
            }) {
                assert!(line.contains("ls-0a1b2c-"), "{line}");
            }
        }
    }

    #[test]
    fn a_door_is_one_port_of_one_gateway_for_one_bridge() {
        let door = Door {
            bridge: "ls-0a1b2c-7".into(),
            gateway: "10.231.0.57".parse().unwrap(),
            port: 3_129,
        };
        let text = rules().nft();
        let input = text.split("chain input").nth(1).unwrap();
        let rule = input
            .find("iifname . ip daddr . tcp dport @doors goto paced")
            .unwrap();
        assert!(rule < input.find("goto denied").unwrap());
        assert!(!text.contains("elements"), "closed unless a job has one");
        assert_eq!(
            rules().nft_door("add", &door),
            "add element inet longshore_0a1b2c doors { \"ls-0a1b2c-7\" . 10.231.0.57 . 3129 }\n"
        );
        assert_eq!(
            rules().iptables_door("-I", &door).join(" "),
            "-w -I longshore_0a1b2c-in 1 -i ls-0a1b2c-7 -d 10.231.0.57/32 -p tcp --dport 3129 -j ACCEPT"
        );
    }

    #[test]
    fn what_is_counted_is_bounded_and_dropped_whether_it_was_counted_or_not() {
        let text = rules().nft();
        let sets = text.matches("\tset ").count();
        assert_eq!((sets, text.matches("\tsize ").count()), (7, 7));
        assert_eq!(
            text.matches("\ttimeout ").count(),
            3,
            "all but those of one element per bridge"
        );
        let chain = text.split("chain denied {").nth(1).unwrap();
        let rules: Vec<&str> = chain
            .lines()
            .map(str::trim)
            .take_while(|line| *line != "}")
            .filter(|line| !line.is_empty())
            .collect();
        assert_eq!(rules.last(), Some(&"drop"));
        let (_, counting) = rules.split_last().unwrap();
        assert!(
            counting
                .iter()
                .all(|rule| rule.contains("update @") || rule.ends_with("drop")),
            "{counting:?}"
        );
    }

    /// Whatever a sandbox may reach, it begins connections to it at its pace and no faster.
    #[test]
    fn nothing_is_let_through_past_the_pace() {
        let text = rules().nft();
        let hooked = text.split("chain input").last().unwrap();
        assert!(!hooked.contains(" accept\n"), "{hooked}");
        let last = hooked.lines().rfind(|line| line.contains("ifname"));
        assert_eq!(
            last.map(str::trim),
            Some("iifname \"ls-0a1b2c-*\" goto paced")
        );
        let paced = text.split("chain paced {\n").nth(1).unwrap();
        let first = paced.lines().next().unwrap().trim();
        assert_eq!(
            first,
            "ct state new update @pace { iifname limit rate over 200/second burst 4096 packets } goto crowded"
        );
        let text = rules().iptables();
        for chain in ["-in", "-fw"] {
            let mut of_chain = text
                .lines()
                .filter(|line| line.starts_with(&format!("-A longshore_0a1b2c{chain} ")));
            let first = of_chain.next().unwrap();
            assert!(first.contains("--hashlimit-above 200/second"), "{first}");
        }
    }

    #[test]
    fn an_allowed_range_opens_neither_other_sandboxes_nor_a_closed_slot() {
        for (text, allow, before) in [
            (
                rules().nft(),
                "ip daddr 10.7.0.0/16 goto paced",
                [
                    "iifname \"ls-0a1b2c-a*\" goto denied",
                    "oifname \"ls-*\" goto denied",
                ],
            ),
            (
                rules().iptables(),
                "-d 10.7.0.0/16 -j ACCEPT",
                ["-fw -i ls-0a1b2c-a+ -j DROP", "-o ls-+ -j DROP"],
            ),
        ] {
            let forward = text.split("chain forward").last().unwrap();
            let allowed = forward.find(allow).unwrap();
            for rule in before {
                assert!(forward.find(rule).unwrap() < allowed, "{rule}");
            }
            assert!(allowed < forward.find("10.0.0.0/8").unwrap());
        }
    }

    #[test]
    fn a_closed_slot_reaches_one_port_of_its_own_gateway() {
        let text = rules().nft();
        let closed: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("ls-0a1b2c-a*"))
            .map(str::trim)
            .collect();
        assert_eq!(
            closed,
            [
                "iifname \"ls-0a1b2c-a*\" fib daddr . iif type local tcp dport 3128 goto paced",
                "iifname \"ls-0a1b2c-a*\" goto denied",
                "iifname \"ls-0a1b2c-a*\" goto denied",
            ]
        );
        // Ahead of what other slots may, but for the doors, which are a slot's own.
        for hook in ["\tchain input ", "\tchain forward "] {
            let chain = text.split(hook).nth(1).unwrap();
            let mut rules = chain.lines().filter(|line| !line.contains("@doors"));
            let first = rules.find(|line| line.contains("iifname")).unwrap();
            assert!(first.contains("ls-0a1b2c-a*"), "{first}");
        }
    }

    #[test]
    fn chain_names_fit_iptables() {
        assert!(rules().chains().iter().all(|chain| chain.len() <= 28));
    }

    #[test]
    fn resolvers_come_from_resolv_conf_without_loopback() {
        let text =
            "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\n nameserver 9.9.9.9\noptions a\n";
        assert_eq!(
            resolvers_of(text),
            [
                "10.0.0.2".parse::<IpAddr>().unwrap(),
                "9.9.9.9".parse().unwrap()
            ]
        );
        assert!(resolvers_of("nameserver nonsense\n").is_empty());
    }
}
