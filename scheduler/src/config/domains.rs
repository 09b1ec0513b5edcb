//! `allowed_domains` of a pool: said to be wrong here, before a node refuses a job for it.
//!
//! The node reads the same grammar (`agent_core::domains`) and has the last word.

use std::net::IpAddr;

/// Names that stand for several, known to every node.
const SETS: [&str; 2] = ["github", "github-storage"];
const MAX_ENTRIES: usize = 256;

/// Checks a whole list against the pool's mode.
pub fn list(network_mode: &str, entries: &[String]) -> Result<Vec<String>, String> {
    match (network_mode, entries.is_empty()) {
        ("allowlist", true) => {
            return Err("network mode allowlist needs allowed_domains, for example [\"github\", \"example.com\"]; to reach nothing use none".to_owned());
        }
        ("allowlist", false) | (_, true) => {}
        (_, false) => {
            return Err("allowed_domains is for network mode allowlist only".to_owned());
        }
    }
    if entries.len() > MAX_ENTRIES {
        return Err(format!(
            "allowed_domains holds at most {MAX_ENTRIES} entries"
        ));
    }
    for text in entries {
        entry(text).map_err(|why| format!("{text:?}: {why}"))?;
    }
    Ok(entries.to_vec())
}

/// Checks one entry.
pub fn entry(text: &str) -> Result<(), &'static str> {
    if SETS.contains(&text) {
        return Ok(());
    }
    let name = match text.rsplit_once(':') {
        Some((name, port)) => {
            let port = port.parse::<u16>().ok().filter(|port| *port > 0);
            port.ok_or("after the colon comes a port")?;
            name
        }
        None => text,
    };
    let (below, name) = match name.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let labels_ok = name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    if !labels_ok || !name.contains('.') {
        return Err(
            "use example.com, *.example.com, example.com:8443, an IPv4 address, github or github-storage",
        );
    }
    if below && name.parse::<IpAddr>().is_ok() {
        return Err("an address has nothing below it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_list_belongs_to_its_mode() {
        assert!(list("allowlist", &words(&["github", "*.example.com:8443"])).is_ok());
        assert!(list("allowlist", &[]).is_err_and(|why| why.contains("none")));
        assert!(list("open", &words(&["example.com"])).is_err());
        assert!(list("open", &[]).is_ok());
        assert!(list("allowlist", &vec!["a.test".to_owned(); 257]).is_err());
    }

    #[test]
    fn entries_that_mean_nothing_are_told() {
        for wrong in [
            "",
            "*",
            "com",
            "http://a.test",
            "a.test/x",
            "a.test:0",
            "*.*.test",
            "[::1]",
            "*.10.0.0.1",
            "a..test",
        ] {
            let said = list("allowlist", &words(&[wrong]));
            assert!(
                said.is_err_and(|why| why.starts_with(&format!("{wrong:?}"))),
                "{wrong}"
            );
        }
    }
}
