//! What a sandbox tried to reach and was not let: read from the firewall's counters,
//! added up for one runner, cut down to what is worth telling.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domains::Refusal;

/// Most destinations told of one runner.
pub const DESTINATIONS: usize = 32;
/// Most destinations added up for one runner; what comes later is only in the total.
const KEPT: usize = 1_024;

/// What one runner was denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// Packets dropped and requests refused, listed or not.
    pub total: u64,
    /// Most tried first, at most [`DESTINATIONS`].
    pub destinations: Vec<Destination>,
    /// There were more than are listed.
    pub more: bool,
}

/// One thing it tried to reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// An address, or a host name where the egress proxy refused it.
    pub destination: String,
    pub protocol: String,
    /// 0 where the protocol has none.
    pub port: u16,
    pub count: u64,
    /// `firewall`, `too_many_connections`, or the egress proxy's word.
    pub reason: String,
}

impl Denied {
    /// Both, most tried first, within bounds.
    pub fn and(mut self, other: Denied) -> Denied {
        self.total = self.total.saturating_add(other.total);
        self.destinations.extend(other.destinations);
        self.more |= other.more;
        self.cut()
    }

    fn cut(mut self) -> Denied {
        self.destinations.sort_by(|a, b| {
            let key = |d: &Destination| (d.destination.clone(), d.protocol.clone(), d.port);
            b.count.cmp(&a.count).then_with(|| key(a).cmp(&key(b)))
        });
        self.more |= self.destinations.len() > DESTINATIONS;
        self.destinations.truncate(DESTINATIONS);
        self
    }
}

/// Address, protocol, port.
pub type Key = (String, String, u16);

/// The firewall's counters at one moment, by bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub bridges: BTreeMap<String, Counted>,
}

/// The counters of one bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub total: u64,
    pub by_key: BTreeMap<Key, u64>,
}

/// Names of the sets that `firewall::Rules` fills.
pub(crate) mod set {
    pub(crate) const TOTAL: &str = "denied_total";
    pub(crate) const V4: &str = "denied4";
    pub(crate) const V4_OTHER: &str = "denied4_other";
    pub(crate) const V6: &str = "denied6";
    /// Connections that were begun faster than a sandbox may.
    pub(crate) const CROWDED: &str = "crowded";
    /// How fast each bridge begins connections; counts nothing.
    pub(crate) const PACE: &str = "pace";
}

/// What [`set::CROWDED`] counts, in the words of the egress proxy.
const CROWD: &str = "connection";

impl Reading {
    /// From `nft -j list table`.
    pub fn of_json(text: &str) -> Result<Self, String> {
        let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let entries = all["nftables"].as_array().ok_or("no list of objects")?;
        let mut reading = Self::default();
        for found in entries.iter().filter_map(|entry| entry.get("set")) {
            for element in found["elem"].as_array().into_iter().flatten() {
                let element = &element["elem"];
                let packets = element["counter"]["packets"].as_u64().unwrap_or(0);
                reading.add(found["name"].as_str().unwrap_or(""), element, packets);
            }
        }
        Ok(reading)
    }

    fn add(&mut self, name: &str, element: &Value, packets: u64) {
        let words: Vec<String> = match &element["val"]["concat"] {
            Value::Array(parts) => parts.iter().map(word).collect(),
            _ => vec![word(&element["val"])],
        };
        let Some((bridge, rest)) = words.split_first() else {
            return;
        };
        let counted = self.bridges.entry(bridge.clone()).or_default();
        match (name, rest) {
            (set::TOTAL, []) => counted.total = packets,
            (set::CROWDED, []) => {
                let crowd = (String::new(), CROWD.to_owned(), 0);
                counted.by_key.insert(crowd, packets);
            }
            (_, [address, protocol, port @ ..]) => {
                let port = port.first().and_then(|port| port.parse().ok()).unwrap_or(0);
                counted
                    .by_key
                    .insert((address.clone(), protocol.clone(), port), packets);
            }
            _ => {}
        }
    }

    /// Input of `nft -f` that takes out what is counted for a bridge; nothing when nothing is.
    pub fn removal(&self, table: &str, bridge: &str) -> Option<String> {
        let counted = self.bridges.get(bridge)?;
        let mut text = String::new();
        let mut forget = |name: &str, element: String| {
            // Added first: it may have expired meanwhile, and then deleting it would fail.
            for verb in ["add", "delete"] {
                text.push_str(&format!(
                    "{verb} element inet {table} {name} {{ {element} }}\n"
                ));
            }
        };
        for name in [set::TOTAL, set::CROWDED, set::PACE] {
            forget(name, format!("\"{bridge}\""));
        }
        for (address, protocol, port) in counted.by_key.keys() {
            let plain = |text: &str| {
                !text.is_empty()
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b".:-".contains(&b))
            };
            if !plain(address) || !plain(protocol) {
                continue;
            }
            let (name, port) = match (address.contains(':'), protocol.as_str()) {
                (true, _) => (set::V6, format!(" . {port}")),
                (false, "tcp" | "udp") => (set::V4, format!(" . {port}")),
                (false, _) => (set::V4_OTHER, String::new()),
            };
            forget(name, format!("\"{bridge}\" . {address} . {protocol}{port}"));
        }
        Some(text)
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A counter that begins again at zero when its table is loaded again or it expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counter {
    before: u64,
    now: u64,
}

impl Counter {
    fn read(&mut self, now: u64) {
        if now < self.now {
            self.before = self.before.saturating_add(self.now);
        }
        self.now = now;
    }

    fn sum(self) -> u64 {
        self.before.saturating_add(self.now)
    }
}

/// One runner's denials, over all readings of its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    total: Counter,
    by_key: BTreeMap<Key, Counter>,
    more: bool,
}

impl Tally {
    /// Takes in what is counted for its bridge now.
    pub fn read(&mut self, counted: Option<&Counted>) {
        static NOTHING: Counted = Counted {
            total: 0,
            by_key: BTreeMap::new(),
        };
        let counted = counted.unwrap_or(&NOTHING);
        self.total.read(counted.total);
        for (key, counter) in &mut self.by_key {
            counter.read(counted.by_key.get(key).copied().unwrap_or(0));
        }
        for (key, packets) in &counted.by_key {
            if self.by_key.contains_key(key) {
                continue;
            }
            if self.by_key.len() >= KEPT {
                self.more = true;
                break;
            }
            let counter = Counter {
                before: 0,
                now: *packets,
            };
            self.by_key.insert(key.clone(), counter);
        }
    }

    pub fn denied(&self) -> Denied {
        let listed = |(key, counter): (&Key, &Counter)| Destination {
            destination: key.0.clone(),
            protocol: key.1.clone(),
            port: key.2,
            count: counter.sum(),
            reason: match key.1.as_str() {
                CROWD => Refusal::TooMany.word().into(),
                _ => "firewall".into(),
            },
        };
        let denied = Denied {
            total: self.total.sum(),
            destinations: self.by_key.iter().map(listed).collect(),
            more: self.more,
        };
        // A full set counts in the total only.
        let listed: u64 = denied.destinations.iter().map(|d| d.count).sum();
        let more = denied.more || listed < denied.total;
        Denied { more, ..denied }.cut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "t", "handle": 1}},
        {"set": {"family": "inet", "name": "denied4", "table": "t", "size": 4096,
            "type": ["ifname", "ipv4_addr", "inet_proto", "inet_service"], "elem": [
            {"elem": {"val": {"concat": ["ls-a", "10.9.0.1", "udp", 53]}, "expires": 599, "counter": {"packets": 1, "bytes": 29}}},
            {"elem": {"val": {"concat": ["ls-a", "10.9.0.1", "tcp", 81]}, "expires": 599, "counter": {"packets": 2, "bytes": 120}}},
            {"elem": {"val": {"concat": ["ls-b", "10.9.0.9", "tcp", 81]}, "expires": 599, "counter": {"packets": 9, "bytes": 120}}}]}},
        {"set": {"family": "inet", "name": "denied4_other", "table": "t", "elem": [
            {"elem": {"val": {"concat": ["ls-a", "10.9.0.1", "icmp"]}, "counter": {"packets": 3, "bytes": 29}}}]}},
        {"set": {"family": "inet", "name": "denied6", "table": "t", "size": 1024}},
        {"set": {"family": "inet", "name": "denied_total", "table": "t", "elem": [
            {"elem": {"val": "ls-a", "counter": {"packets": 7, "bytes": 317}}}]}},
        {"rule": {"family": "inet", "table": "t", "chain": "input", "expr": [{"drop": null}]}}]}"#;

    #[test]
    fn a_listing_is_read_by_bridge() {
        let reading = Reading::of_json(LISTED).unwrap();
        let counted = &reading.bridges["ls-a"];
        assert_eq!(counted.total, 7);
        assert_eq!(counted.by_key.len(), 3);
        assert_eq!(
            counted.by_key[&("10.9.0.1".into(), "icmp".into(), 0)],
            3,
            "no port"
        );
        assert_eq!(reading.bridges["ls-b"].total, 0);
        assert!(Reading::of_json("table inet t {").is_err());
    }

    #[test]
    fn the_most_tried_comes_first_and_what_no_set_could_hold_is_said() {
        let reading = Reading::of_json(LISTED).unwrap();
        let mut tally = Tally::default();
        tally.read(reading.bridges.get("ls-a"));
        let denied = tally.denied();
        assert_eq!(denied.total, 7);
        let counts: Vec<u64> = denied.destinations.iter().map(|d| d.count).collect();
        assert_eq!(counts, [3, 2, 1]);
        assert!(denied.more, "six of seven are listed");
    }

    /// A job's own haste is not told as a wall, and the next one on its bridge begins afresh.
    #[test]
    fn connections_begun_too_fast_are_told_as_that() {
        let listed = LISTED.replace(
            r#"{"set": {"family": "inet", "name": "denied6""#,
            r#"{"set": {"family": "inet", "name": "pace", "table": "t", "elem": [{"elem": {"val": "ls-a", "limit": {"rate": 200}}}]}},
               {"set": {"family": "inet", "name": "crowded", "table": "t", "elem": [{"elem": {"val": "ls-a", "counter": {"packets": 900, "bytes": 1}}}]}},
               {"set": {"family": "inet", "name": "denied6""#,
        );
        let reading = Reading::of_json(&listed).unwrap();
        let mut tally = Tally::default();
        tally.read(reading.bridges.get("ls-a"));
        let first = tally.denied().destinations.remove(0);
        assert_eq!(
            (
                &*first.destination,
                &*first.protocol,
                first.count,
                &*first.reason
            ),
            ("", "connection", 900, "too_many_connections")
        );
        let text = reading.removal("t", "ls-a").unwrap();
        for set in ["crowded", "pace", "denied_total"] {
            assert!(text.contains(&format!("delete element inet t {set} {{ \"ls-a\" }}")));
        }
    }

    #[test]
    fn a_counter_that_began_again_is_added_and_not_lost() {
        let key: Key = ("10.0.0.1".into(), "tcp".into(), 80);
        let at = |total, packets: Option<u64>| Counted {
            total,
            by_key: packets.map(|p| (key.clone(), p)).into_iter().collect(),
        };
        let mut tally = Tally::default();
        for (total, packets) in [(4, Some(4)), (4, Some(4)), (0, None), (2, Some(2))] {
            tally.read(Some(&at(total, packets)));
        }
        let denied = tally.denied();
        assert_eq!((denied.total, denied.destinations[0].count), (6, 6));
        assert!(!denied.more);
        tally.read(None);
        assert_eq!(tally.denied().total, 6, "nothing read takes nothing away");
    }

    #[test]
    fn a_scan_fills_neither_memory_nor_the_report() {
        let by_key = (0..5_000_u32)
            .map(|n| {
                let address = std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
                ((address, "tcp".to_owned(), 22), 1)
            })
            .collect();
        let counted = Counted {
            total: 9_000,
            by_key,
        };
        let mut tally = Tally::default();
        tally.read(Some(&counted));
        tally.read(Some(&counted));
        assert_eq!(tally.by_key.len(), KEPT);
        let denied = tally.denied();
        assert_eq!(
            (denied.total, denied.destinations.len(), denied.more),
            (9_000, DESTINATIONS, true)
        );
    }

    #[test]
    fn a_bridge_is_cleared_alone_and_by_what_was_read() {
        let reading = Reading::of_json(LISTED).unwrap();
        let text = reading.removal("t", "ls-a").unwrap();
        assert!(text.contains("delete element inet t denied_total { \"ls-a\" }"));
        assert!(text.contains("delete element inet t denied4 { \"ls-a\" . 10.9.0.1 . tcp . 81 }"));
        assert!(
            text.contains("delete element inet t denied4_other { \"ls-a\" . 10.9.0.1 . icmp }")
        );
        assert!(!text.contains("ls-b"));
        assert_eq!(reading.removal("t", "ls-c"), None);
    }
}
