//! What differs between two configurations, and what of it a running process can take in.

use super::{
    Config,
    keys::{KEYS, is_reloaded},
};

/// Names of what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Taken in while running.
    pub applied: Vec<&'static str>,
    /// In force only after a restart.
    pub restart: Vec<&'static str>,
}

impl Changes {
    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.restart.is_empty()
    }
}

impl Config {
    /// What `newer` has that this one has not.
    pub fn changes(&self, newer: &Self) -> Changes {
        let mut changes = Changes::default();
        let value = |config: &Self, path: &str| {
            let found = config.origins.get(path);
            found.map(|(values, _)| values.clone())
        };
        for key in KEYS {
            if value(self, key.path) == value(newer, key.path) {
                continue;
            }
            match is_reloaded(key.path) {
                true => changes.applied.push(key.path),
                false => changes.restart.push(key.path),
            }
        }
        for (differs, what) in [
            (
                self.github.accounts != newer.github.accounts,
                "github's accounts",
            ),
            (self.pools != newer.pools, "pools"),
            (self.shares != newer.shares, "shares"),
        ] {
            if differs {
                changes.applied.push(what);
            }
        }
        changes
    }
}
