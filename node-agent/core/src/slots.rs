//! Which /29 each slot's network gets out of `slots_cidr`.

use std::net::Ipv4Addr;

use thiserror::Error;

/// Most slots an agent ever uses: bridge names have room for four digits.
pub const MAX_SLOTS: u32 = 9_999;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum CidrError {
    #[error("{0:?} is not ADDRESS/PREFIX, for example 10.231.0.0/16")]
    Form(String),
    #[error("{0} is too small: a slot takes a /29, so the prefix is at most 29")]
    TooSmall(String),
    #[error("{0} is not private address space (10/8, 172.16/12 or 192.168/16)")]
    NotPrivate(String),
}

/// The address space slots are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsCidr {
    base: u32,
    prefix: u8,
}

/// Addresses of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotNet {
    pub subnet: String,
    pub gateway: String,
}

impl SlotsCidr {
    pub fn parse(text: &str) -> Result<Self, CidrError> {
        let form = || CidrError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        if prefix == 0 || prefix > 32 {
            return Err(form());
        }
        if prefix > 29 {
            return Err(CidrError::TooSmall(text.to_owned()));
        }
        let base = u32::from(address) & (u32::MAX << (32 - prefix));
        if !Ipv4Addr::from(base).is_private() {
            return Err(CidrError::NotPrivate(text.to_owned()));
        }
        Ok(Self { base, prefix })
    }

    /// How many slots fit.
    pub fn len(&self) -> u32 {
        (1u32 << (29 - self.prefix)).min(MAX_SLOTS)
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// The network of slot `index`; none past the end.
    pub fn net(&self, index: u32) -> Option<SlotNet> {
        if index >= self.len() {
            return None;
        }
        let base = self.base + index * 8;
        Some(SlotNet {
            subnet: format!("{}/29", Ipv4Addr::from(base)),
            gateway: Ipv4Addr::from(base + 1).to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap() {
        let cidr = SlotsCidr::parse("10.231.0.0/16").unwrap();
        assert_eq!(cidr.len(), 8192);
        assert_eq!(cidr.net(0).unwrap().subnet, "10.231.0.0/29");
        assert_eq!(cidr.net(33).unwrap().subnet, "10.231.1.8/29");
        assert_eq!(cidr.net(33).unwrap().gateway, "10.231.1.9");
        assert_eq!(cidr.net(8191).unwrap().subnet, "10.231.255.248/29");
        assert_eq!(cidr.net(8192), None);
    }

    #[test]
    fn bad_ranges_name_the_mistake() {
        assert!(matches!(
            SlotsCidr::parse("10.0.0.0"),
            Err(CidrError::Form(_))
        ));
        assert!(matches!(
            SlotsCidr::parse("10.0.0.0/30"),
            Err(CidrError::TooSmall(_))
        ));
        assert!(matches!(
            SlotsCidr::parse("8.8.0.0/16"),
            Err(CidrError::NotPrivate(_))
        ));
        assert!(matches!(
            SlotsCidr::parse("10.0.0.0/0"),
            Err(CidrError::Form(_))
        ));
    }
}
