//! IPv4 ranges: which addresses are never the internet, and which the operator allows.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::firewall::DENIED;

/// `a.b.c.d/n`, without bits below the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    base: u32,
    bits: u8,
}

/// Ranges that nothing may open: this host, its link, the cloud's metadata, many at once.
const NEVER: [&str; 5] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, bits)| {
            let base = u32::from(address.parse::<Ipv4Addr>().ok()?);
            let bits = bits.parse::<u8>().ok().filter(|bits| *bits <= 32)?;
            Some(Self { base, bits })
        });
        let range =
            parsed.ok_or_else(|| format!("{text:?} is not an IPv4 range like 10.1.0.0/16"))?;
        if range.base & !range.mask() != 0 {
            return Err(format!("{text} has bits below its mask"));
        }
        Ok(range)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

impl Range {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0)
    }

    pub fn holds(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == self.base
    }

    pub fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        self.base & mask == other.base & mask
    }

    /// A range that sandboxes may be let into, or why not.
    pub fn allowable(text: &str) -> Result<Self, String> {
        let range: Self = text.parse()?;
        let never = NEVER
            .iter()
            .filter_map(|never| never.parse::<Self>().ok())
            .find(|never| never.overlaps(range));
        match never {
            Some(never) => Err(format!(
                "{range} overlaps {never}, which is never opened to a sandbox"
            )),
            None => Ok(range),
        }
    }
}

/// Whether an address is one that only this host or its network knows, and not allowed.
pub fn is_private(address: IpAddr, allowed: &[Range]) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let denied = DENIED
                .iter()
                .filter_map(|range| range.parse::<Range>().ok())
                .any(|range| range.holds(v4));
            denied && !allowed.iter().any(|range| range.holds(v4))
        }
        IpAddr::V6(v6) => is_private_v6(v6, allowed),
    }
}

fn is_private_v6(address: Ipv6Addr, allowed: &[Range]) -> bool {
    let s = address.segments();
    // Only 2000::/3 is the internet; what embeds an IPv4 address is judged by that one.
    let v4 = |high: u16, low: u16| {
        let address = Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
        is_private(address.into(), allowed)
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        // Teredo, documentation, benchmarking, ORCHID.
        [0x2001, second, ..] => second < 0x0200 || second == 0x0db8,
        [first, ..] => first & 0xe000 != 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_hold_what_they_say() {
        let range: Range = "10.1.0.0/16".parse().unwrap();
        assert!(range.holds("10.1.255.255".parse().unwrap()));
        assert!(!range.holds("10.2.0.0".parse().unwrap()));
        assert_eq!(range.to_string(), "10.1.0.0/16");
        assert!(
            "0.0.0.0/0"
                .parse::<Range>()
                .unwrap()
                .holds("9.9.9.9".parse().unwrap())
        );
        for wrong in [
            "",
            "10.1.0.0",
            "10.1.0.0/33",
            "10.1.0.1/16",
            "fd00::/8",
            "a/8",
        ] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn some_ranges_cannot_be_allowed_by_anybody() {
        for never in [
            "0.0.0.0/0",
            "169.254.169.254/32",
            "127.0.0.1/32",
            "224.0.0.0/8",
        ] {
            assert!(Range::allowable(never).is_err(), "{never}");
        }
        assert!(Range::allowable("10.0.0.0/8").is_ok());
    }

    #[test]
    fn private_addresses_are_known_in_every_dress() {
        let allowed = [Range::allowable("10.9.0.0/16").unwrap()];
        for address in [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.1.1",
            "192.168.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:a00:1::",
            "2001::1",
            "100::1",
            "::10.0.0.1",
        ] {
            assert!(is_private(address.parse().unwrap(), &allowed), "{address}");
        }
        for address in [
            "9.9.9.9",
            "10.9.0.1",
            "::ffff:10.9.0.1",
            "::ffff:9.9.9.9",
            "2606:4700::1111",
            "203.0.113.7",
        ] {
            assert!(!is_private(address.parse().unwrap(), &allowed), "{address}");
        }
    }
}
