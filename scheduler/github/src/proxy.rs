//! Which proxy a target goes through: pure rules from the usual variables.

use std::net::IpAddr;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri};

use crate::config::{ConfigError, Proxy, without_userinfo};

/// A proxy to dial.
#[derive(Clone)]
pub(crate) struct Hop {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    /// `Basic ...`, from the URL's user part.
    pub(crate) authorization: Option<HeaderValue>,
}

#[derive(Clone, Default)]
pub(crate) struct Rules {
    http: Option<Hop>,
    https: Option<Hop>,
    bypass: Vec<Bypass>,
}

#[derive(Clone, Debug, PartialEq)]
enum Bypass {
    Everything,
    Host { suffix: String, port: Option<u16> },
    Network { address: IpAddr, bits: u8 },
}

impl Rules {
    pub(crate) fn new(proxy: &Proxy) -> Result<Self, ConfigError> {
        let hop = |url: &Option<String>| url.as_deref().map(parse_hop).transpose();
        Ok(Self {
            http: hop(&proxy.http)?,
            https: hop(&proxy.https)?,
            bypass: proxy
                .no_proxy
                .split([',', ' '])
                .filter_map(|entry| parse_bypass(entry.trim()))
                .collect(),
        })
    }

    /// The proxy for this target, unless it is exempt.
    pub(crate) fn hop_for(&self, target: &Uri) -> Option<&Hop> {
        let https = target.scheme_str() == Some("https");
        let hop = if https { &self.https } else { &self.http }.as_ref()?;
        let host = target.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let port = target.port_u16().unwrap_or(if https { 443 } else { 80 });
        let exempt = self.bypass.iter().any(|rule| rule.covers(&host, port));
        (!exempt).then_some(hop)
    }
}

impl Bypass {
    fn covers(&self, host: &str, port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Host { suffix, port: only } => {
                only.is_none_or(|only| only == port)
                    && (host == suffix
                        || host
                            .strip_suffix(suffix.as_str())
                            .is_some_and(|head| head.ends_with('.')))
            }
            Self::Network { address, bits } => host
                .parse::<IpAddr>()
                .is_ok_and(|host| same_network(host, *address, *bits)),
        }
    }
}

fn same_network(host: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (host, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let shift = 32 - u32::from(bits.min(32));
            shift == 32 || a.to_bits() >> shift == b.to_bits() >> shift
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let shift = 128 - u32::from(bits.min(128));
            shift == 128 || a.to_bits() >> shift == b.to_bits() >> shift
        }
        _ => false,
    }
}

fn parse_bypass(entry: &str) -> Option<Bypass> {
    if entry.is_empty() {
        return None;
    }
    if entry == "*" {
        return Some(Bypass::Everything);
    }
    let entry = entry.to_ascii_lowercase();
    let (address, bits) = entry.split_once('/').unwrap_or((&entry, ""));
    if let Ok(address) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let bits = if bits.is_empty() {
            whole
        } else {
            bits.parse().ok()?
        };
        return Some(Bypass::Network { address, bits });
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (entry.as_str(), None),
    };
    let suffix = host.trim_start_matches('*').trim_start_matches('.');
    (!suffix.is_empty()).then(|| Bypass::Host {
        suffix: suffix.to_owned(),
        port,
    })
}

fn parse_hop(url: &str) -> Result<Hop, ConfigError> {
    let bad = |why: &str| ConfigError::Unusable {
        what: "proxy",
        origin: format!("HTTP(S)_PROXY ({})", without_userinfo(url)),
        why: why.to_owned(),
    };
    let full = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let uri: Uri = full.parse().map_err(|_| bad("it is not a URL"))?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(bad("only http:// and https:// proxies are supported")),
    };
    let host = uri.host().ok_or_else(|| bad("it names no host"))?;
    let user = uri
        .authority()
        .and_then(|authority| authority.as_str().rsplit_once('@'))
        .map(|(user, _)| percent_decode(user));
    let authorization = user
        .map(|user| HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(user))))
        .transpose()
        .map_err(|_| bad("its user part cannot be sent"))?
        .map(|mut value| {
            value.set_sensitive(true);
            value
        });
    Ok(Hop {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        tls,
        authorization,
    })
}

fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let decoded = (bytes[i] == b'%')
            .then(|| bytes.get(i + 1..i + 3))
            .flatten()
            .and_then(|digits| hex::decode(digits).ok());
        match decoded {
            Some(byte) => {
                out.extend_from_slice(&byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(no_proxy: &str) -> Rules {
        Rules::new(&Proxy {
            http: Some("plain.proxy:3128".into()),
            https: Some("http://us%65r:p%40ss@tls.proxy:8080".into()),
            no_proxy: no_proxy.into(),
        })
        .unwrap()
    }

    fn hop(rules: &Rules, target: &str) -> Option<String> {
        rules
            .hop_for(&target.parse().unwrap())
            .map(|hop| format!("{}:{}", hop.host, hop.port))
    }

    #[test]
    fn the_scheme_of_the_target_picks_the_proxy() {
        let rules = rules("");
        assert_eq!(
            hop(&rules, "https://api.github.com/x").as_deref(),
            Some("tls.proxy:8080")
        );
        assert_eq!(
            hop(&rules, "http://127.0.0.1:9/x").as_deref(),
            Some("plain.proxy:3128")
        );
        let credentials = rules
            .https
            .as_ref()
            .unwrap()
            .authorization
            .as_ref()
            .unwrap();
        assert_eq!(
            credentials,
            &format!("Basic {}", STANDARD.encode("user:p@ss"))
        );
        assert!(credentials.is_sensitive());
    }

    #[test]
    fn no_proxy_exempts_hosts_suffixes_ports_and_networks() {
        let rules = rules(" localhost, .corp.example ,ghes.local:8443,10.0.0.0/8,::1, *.dev");
        for exempt in [
            "http://localhost:1/",
            "https://LOCALHOST/",
            "https://a.corp.example/",
            "https://corp.example/",
            "https://ghes.local:8443/",
            "http://10.200.3.4/",
            "http://[::1]:8/",
            "https://x.dev/",
        ] {
            assert_eq!(hop(&rules, exempt), None, "{exempt}");
        }
        for served in [
            "https://notcorp.example/",
            "https://ghes.local/",
            "http://11.0.0.1/",
            "https://api.github.com/",
            "http://[::2]/",
        ] {
            assert!(hop(&rules, served).is_some(), "{served}");
        }
        assert_eq!(
            hop(&super::tests::rules("*"), "https://api.github.com/"),
            None
        );
    }

    #[test]
    fn a_proxy_that_cannot_work_is_named_without_its_password() {
        let error = Rules::new(&Proxy {
            https: Some("socks5://user:hunter2@host:1".into()),
            ..Proxy::default()
        })
        .err()
        .unwrap()
        .to_string();
        assert!(
            error.contains("host:1") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
