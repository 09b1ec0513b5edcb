//! Which names a sandbox may reach: exact names, `*.` names, ports, named sets.

use std::fmt;
use std::net::IpAddr;

/// Ports of an entry that names none.
const USUAL: [u16; 2] = [80, 443];
/// Longest list and longest entry that are taken.
pub const MAX_ENTRIES: usize = 256;
const MAX_NAME: usize = 253;

/// Names that stand for several. What the runner needs of GitHub is from its
/// documentation and was not verified against the service.
const SETS: [(&str, &[&str]); 2] = [
    (
        "github",
        &[
            "github.com",
            "api.github.com",
            "codeload.github.com",
            "uploads.github.com",
            "raw.githubusercontent.com",
            "objects.githubusercontent.com",
            "objects-origin.githubusercontent.com",
            "release-assets.githubusercontent.com",
            "github-releases.githubusercontent.com",
            "github-registry-files.githubusercontent.com",
            "*.actions.githubusercontent.com",
            "ghcr.io",
            "pkg-containers.githubusercontent.com",
            "*.pkg.github.com",
        ],
    ),
    // Logs, caches and artifacts. Anybody can rent a name below it, so it is asked for by itself.
    ("github-storage", &["*.blob.core.windows.net"]),
];

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Lower case, without a leading `*.`.
    name: String,
    below: bool,
    port: Option<u16>,
}

/// What one sandbox may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(Vec<Entry>);

/// An entry that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} is not an allowed domain: {why}")]
pub struct BadEntry {
    entry: String,
    why: &'static str,
}

/// Why a name is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotListed,
    Port,
    Private,
    Unresolved,
    NotTls,
    SniMissing,
    SniMismatch,
    Malformed,
    TooMany,
}

impl Refusal {
    /// The stable word that is counted and told.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotListed => "not_listed",
            Self::Port => "port_not_listed",
            Self::Private => "private_address",
            Self::Unresolved => "not_resolved",
            Self::NotTls => "not_tls",
            Self::SniMissing => "sni_missing",
            Self::SniMismatch => "sni_mismatch",
            Self::Malformed => "malformed",
            Self::TooMany => "too_many_connections",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotListed => "it is not in the pool's allowed_domains",
            Self::Port => "this port is not in the pool's allowed_domains (80 and 443 are, others as host:port)",
            Self::Private => "its name leads to a private address",
            Self::Unresolved => "its name cannot be resolved",
            Self::NotTls => "a tunnel has to begin with TLS",
            Self::SniMissing => "the TLS handshake names no host",
            Self::SniMismatch => "the TLS handshake names another host",
            Self::Malformed => "the request is not one for a forward proxy",
            Self::TooMany => "the job has too many connections open",
        })
    }
}

impl Allowed {
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, BadEntry> {
        let mut list = Vec::new();
        for text in entries {
            match SETS.iter().find(|(name, _)| *name == text) {
                Some((_, names)) => {
                    for name in *names {
                        list.push(Entry::parse(name)?);
                    }
                }
                None => list.push(Entry::parse(text)?),
            }
            if list.len() > MAX_ENTRIES {
                return Err(BadEntry {
                    entry: text.to_owned(),
                    why: "the list is longer than 256 entries",
                });
            }
        }
        Ok(Self(list))
    }

    /// Whether a host, in lower case and without a final dot, may be reached at a port.
    pub fn check(&self, host: &str, port: u16) -> Result<(), Refusal> {
        let mut named = false;
        for entry in self.0.iter().filter(|entry| entry.matches(host)) {
            named = true;
            let fits = match entry.port {
                Some(only) => only == port,
                None => USUAL.contains(&port),
            };
            if fits {
                return Ok(());
            }
        }
        Err(if named {
            Refusal::Port
        } else {
            Refusal::NotListed
        })
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, BadEntry> {
        let bad = |why| BadEntry {
            entry: text.chars().take(80).collect(),
            why,
        };
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (
                    name,
                    Some(port.ok_or_else(|| bad("after the colon comes a port"))?),
                )
            }
            None => (text, None),
        };
        let (below, name) = match name.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let Some(name) = normal(name) else {
            return Err(bad(
                "a name like example.com, *.example.com or example.com:8443, or the sets github and github-storage",
            ));
        };
        let address = name.parse::<IpAddr>().is_ok();
        if !address && !name.contains('.') {
            return Err(bad(
                "a name has a dot; the sets are github and github-storage",
            ));
        }
        if below && address {
            return Err(bad("an address has nothing below it"));
        }
        Ok(Self { name, below, port })
    }

    fn matches(&self, host: &str) -> bool {
        if self.below {
            host.strip_suffix(self.name.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        } else {
            host == self.name
        }
    }
}

/// A host name in lower case without its final dot; none when it is not one.
pub fn normal(host: &str) -> Option<String> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let ok = !host.is_empty()
        && host.len() <= MAX_NAME
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    ok.then(|| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(list: &[&str]) -> Allowed {
        Allowed::parse(list.iter().copied()).unwrap()
    }

    #[test]
    fn exact_names_and_names_below() {
        let list = allowed(&["example.com", "*.Example.org", "mirror.test:8443"]);
        for (host, port, says) in [
            ("example.com", 443, Ok(())),
            ("example.com", 80, Ok(())),
            ("example.com", 22, Err(Refusal::Port)),
            ("www.example.com", 443, Err(Refusal::NotListed)),
            ("notexample.com", 443, Err(Refusal::NotListed)),
            ("example.com.evil.test", 443, Err(Refusal::NotListed)),
            ("a.example.org", 443, Ok(())),
            ("a.b.example.org", 443, Ok(())),
            ("example.org", 443, Err(Refusal::NotListed)),
            ("evilexample.org", 443, Err(Refusal::NotListed)),
            (".example.org", 443, Err(Refusal::NotListed)),
            ("mirror.test", 8443, Ok(())),
            ("mirror.test", 443, Err(Refusal::Port)),
        ] {
            assert_eq!(list.check(host, port), says, "{host}:{port}");
        }
    }

    #[test]
    fn a_set_is_its_names() {
        let list = allowed(&["github"]);
        assert_eq!(list.check("api.github.com", 443), Ok(()));
        assert_eq!(
            list.check("pipelines.actions.githubusercontent.com", 443),
            Ok(())
        );
        assert_eq!(
            list.check("x.blob.core.windows.net", 443),
            Err(Refusal::NotListed)
        );
        let list = allowed(&["github-storage"]);
        assert_eq!(list.check("x.blob.core.windows.net", 443), Ok(()));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for entry in [
            "",
            "*",
            "*.",
            "com",
            "localhost",
            "http://a.test",
            "a.test/x",
            "a b.test",
            "a.test:",
            "a.test:0",
            "a.test:99999",
            "*.*.test",
            "a.*.test",
            "[::1]",
            "*.10.0.0.1",
            "-a.test",
            "a..test",
        ] {
            assert!(Allowed::parse([entry]).is_err(), "{entry:?}");
        }
        let many = vec!["a.test"; MAX_ENTRIES + 1];
        assert!(Allowed::parse(many.iter().copied()).is_err());
    }

    #[test]
    fn hosts_are_made_one_way() {
        assert_eq!(normal("EXAMPLE.com.").as_deref(), Some("example.com"));
        for wrong in ["", ".", "a..b", "a\0b", "a/b", "a:b", "exa mple"] {
            assert_eq!(normal(wrong), None, "{wrong:?}");
        }
    }
}
