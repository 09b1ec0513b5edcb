//! Registrations: in memory only, wiped when dropped, never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// Registrations held for runners that have not taken theirs. More are refused;
/// the scheduler sends again on the next attach.
const MAX_HELD: usize = 4_096;

/// One registration. Its `Debug` says nothing.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Debug, Default)]
pub struct Secrets {
    held: BTreeMap<String, Secret>,
}

impl Secrets {
    pub fn hold(&mut self, runner: &str, secret: Secret) -> bool {
        if self.held.len() >= MAX_HELD && !self.held.contains_key(runner) {
            return false;
        }
        self.held.insert(runner.to_owned(), secret);
        true
    }

    pub fn get(&self, runner: &str) -> Option<Secret> {
        self.held.get(runner).cloned()
    }

    pub fn drop_for(&mut self, runner: &str) {
        self.held.remove(runner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let mut secrets = Secrets::default();
        secrets.hold("ls-a", Secret::new(b"canary".to_vec()));
        let printed = format!("{secrets:?} {:?}", secrets.get("ls-a"));
        assert!(
            !printed.contains("canary") && !printed.contains("99, 97, 110"),
            "{printed}"
        );
        secrets.drop_for("ls-a");
        assert!(secrets.get("ls-a").is_none());
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut secrets = Secrets::default();
        for n in 0..MAX_HELD {
            assert!(secrets.hold(&n.to_string(), Secret::new(vec![])));
        }
        assert!(!secrets.hold("one more", Secret::new(vec![])));
        assert!(
            secrets.hold("0", Secret::new(vec![])),
            "replacing is allowed"
        );
    }
}
