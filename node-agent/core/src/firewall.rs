//! The firewall rules of an agent, as text for `nft` and for `iptables-restore`.
//!
//! Docker's networks protect containers from each other, not the host from
//! containers. These rules do: slot bridges reach the internet and the
//! configured resolver, and nothing else. They are in a table of the agent's
//! own, ahead of the engine's chains, and stay when the agent is gone.

use std::net::{IpAddr, Ipv4Addr};

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

impl Rules {
    fn nft_doors_rule(&self) -> String {
        format!(
            "iifname \"{}*\" iifname . ip daddr . tcp dport @doors accept",
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

    /// One transaction that replaces the table, whatever was in it.
    pub fn nft(&self) -> String {
        let table = &self.table;
        let bridge = format!("iifname \"{}*\"", self.bridge_prefix);
        let mut text =
            format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        text.push_str(NFT_DOORS);
        text.push_str(
            "\tchain input {\n\t\ttype filter hook input priority filter - 10; policy accept;\n",
        );
        text.push_str(&format!("\t\t{}\n", self.nft_doors_rule()));
        for ip in self.resolvers_v4() {
            text.push_str(&format!("\t\t{bridge} ip daddr {ip} udp dport 53 accept\n"));
            text.push_str(&format!("\t\t{bridge} ip daddr {ip} tcp dport 53 accept\n"));
        }
        text.push_str(&format!("\t\t{bridge} drop\n\t}}\n"));
        text.push_str("\tchain forward {\n\t\ttype filter hook forward priority filter - 10; policy accept;\n");
        for ip in self.resolvers_v4() {
            text.push_str(&format!("\t\t{bridge} ip daddr {ip} udp dport 53 accept\n"));
            text.push_str(&format!("\t\t{bridge} ip daddr {ip} tcp dport 53 accept\n"));
        }
        text.push_str(&format!("\t\t{bridge} meta nfproto ipv6 drop\n"));
        for range in DENIED {
            text.push_str(&format!("\t\t{bridge} ip daddr {range} drop\n"));
        }
        // Nothing from outside begins a connection to a sandbox.
        text.push_str(&format!(
            "\t\toifname \"{}*\" ct state new drop\n",
            self.bridge_prefix
        ));
        text.push_str("\t}\n}\n");
        text
    }

    /// Rules that `nft list table` must show: one line each.
    pub fn nft_rule_count(&self) -> usize {
        let resolvers = self.resolvers_v4().count();
        4 * resolvers + 1 + 1 + DENIED.len() + 1 + 1
    }

    /// Chain names of the fallback.
    pub fn chains(&self) -> [String; 2] {
        [format!("{}-in", self.table), format!("{}-fw", self.table)]
    }

    /// `iptables-restore --noflush` input that fills the two chains.
    pub fn iptables(&self) -> String {
        let [input, forward] = self.chains();
        let bridge = format!("{}+", self.bridge_prefix);
        let mut text =
            format!("*filter\n:{input} - [0:0]\n:{forward} - [0:0]\n-F {input}\n-F {forward}\n");
        for chain in [&input, &forward] {
            for ip in self.resolvers_v4() {
                for protocol in ["udp", "tcp"] {
                    text.push_str(&format!(
                        "-A {chain} -i {bridge} -d {ip}/32 -p {protocol} --dport 53 -j ACCEPT\n"
                    ));
                }
            }
        }
        text.push_str(&format!("-A {input} -i {bridge} -j DROP\n"));
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
        }
    }

    #[test]
    fn the_rule_count_is_what_the_text_holds() {
        let text = rules().nft();
        let lines = text
            .lines()
            .filter(|line| line.contains("iifname") || line.contains("oifname"))
            .count();
        assert_eq!(lines, rules().nft_rule_count());
    }

    #[test]
    fn a_resolver_is_let_through_before_its_range_is_denied() {
        let text = rules().nft();
        let forward = text.split("chain forward").nth(1).unwrap();
        let allowed = forward.find("10.0.0.2 udp dport 53 accept").unwrap();
        let denied = forward.find("10.0.0.0/8 drop").unwrap();
        assert!(allowed < denied);
        assert!(!text.contains("fd00"));
    }

    #[test]
    fn every_rule_names_this_agents_bridges_only() {
        for text in [rules().nft(), rules().iptables(), rules().ip6tables()] {
            for line in text
                .lines()
                .filter(|l| l.contains("drop") || l.contains("-j") || l.contains("accept\n"))
            {
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
            .find("iifname . ip daddr . tcp dport @doors accept")
            .unwrap();
        assert!(rule < input.find("drop").unwrap());
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
