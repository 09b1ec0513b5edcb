//! What is watched, and where each repository's runners register. Pure.
//!
//! A job seen through repository, organisation and enterprise belongs to one
//! scope: the narrowest configured one that may register runners.

use std::collections::{BTreeMap, BTreeSet};

use scheduler_core::model::{CredentialName, Repository, Scope, UtcMillis};

use crate::translate::Route;

/// A list that no longer shows a repository counts only when repeated this much later.
const CONFIRM_AFTER_MS: u64 = 60_000;

/// At which level an owner's runners register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// User accounts, and organisations that allow nothing wider.
    Repository,
    Organization,
    Enterprise {
        slug: String,
        credential: CredentialName,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) login: String,
    pub(crate) level: Level,
    /// Reads the owner's repositories, and registers unless an enterprise does.
    pub(crate) credential: CredentialName,
    pub(crate) installation: Option<u64>,
}

/// One repository that is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) repository: Repository,
    pub(crate) reader: CredentialName,
    pub(crate) last_activity: UtcMillis,
    /// `Some(false)`: this identity cannot register at repository level here.
    pub(crate) admin: Option<bool>,
}

/// Owners and repositories by what GitHub said last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    owners: BTreeMap<String, Owner>,
    repositories: BTreeMap<String, Watched>,
    /// Repositories a list did not show, since when.
    absent: BTreeMap<u64, UtcMillis>,
    /// Lower-case `owner/name` that register for themselves whatever their owner does.
    own_scope: BTreeSet<String>,
}

fn key(owner: &str, name: &str) -> String {
    format!("{owner}/{name}").to_lowercase()
}

impl Directory {
    pub(crate) fn new(own_scope: &[String]) -> Self {
        Self {
            own_scope: own_scope.iter().map(|name| name.to_lowercase()).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn owner(&self, login: &str) -> Option<&Owner> {
        self.owners.get(&login.to_lowercase())
    }

    pub(crate) fn owners(&self) -> usize {
        self.owners.len()
    }

    pub(crate) fn set_owner(&mut self, owner: Owner) {
        self.owners.insert(owner.login.to_lowercase(), owner);
    }

    pub(crate) fn remove_installation(&mut self, id: u64) -> Vec<Watched> {
        let gone: Vec<String> = self
            .owners
            .iter()
            .filter(|(_, owner)| owner.installation == Some(id))
            .map(|(login, _)| login.clone())
            .collect();
        for login in &gone {
            self.owners.remove(login);
        }
        let names: Vec<String> = self
            .repositories
            .iter()
            .filter(|(_, watched)| gone.contains(&watched.repository.owner.to_lowercase()))
            .map(|(name, _)| name.clone())
            .collect();
        names
            .iter()
            .filter_map(|name| self.repositories.remove(name))
            .collect()
    }

    pub(crate) fn watched(&self, owner: &str, name: &str) -> Option<&Watched> {
        self.repositories.get(&key(owner, name))
    }

    pub(crate) fn repositories(&self) -> impl Iterator<Item = &Watched> {
        self.repositories.values()
    }

    /// Adds or refreshes; a renamed repository (same id) leaves its old name.
    pub(crate) fn watch(&mut self, mut watched: Watched) {
        let id = watched.repository.id;
        if id != 0 {
            self.repositories.retain(|_, known| {
                known.repository.id != id || {
                    watched.last_activity = watched.last_activity.max(known.last_activity);
                    false
                }
            });
        }
        let name = key(&watched.repository.owner, &watched.repository.name);
        self.repositories.insert(name, watched);
    }

    /// Activity that lists may not show yet, e.g. a webhook.
    pub(crate) fn touch(&mut self, owner: &str, name: &str, now: UtcMillis) {
        if let Some(watched) = self.repositories.get_mut(&key(owner, name)) {
            watched.last_activity = watched.last_activity.max(now);
        }
    }

    pub(crate) fn remove(&mut self, owner: &str, name: &str) -> Option<Watched> {
        self.repositories.remove(&key(owner, name))
    }

    /// Takes one reader's whole list: what it shows stays. What it does not show
    /// is returned and forgotten only when a list a minute later says the same,
    /// because lists lag.
    pub(crate) fn retain(
        &mut self,
        reader: &CredentialName,
        keep: &BTreeSet<u64>,
        now: UtcMillis,
    ) -> Vec<Watched> {
        self.absent.retain(|id, _| !keep.contains(id));
        let mut gone = Vec::new();
        for (name, watched) in &self.repositories {
            let id = watched.repository.id;
            if watched.reader != *reader || keep.contains(&id) {
                continue;
            }
            let since = *self.absent.entry(id).or_insert(now);
            if now.saturating_sub(since) >= CONFIRM_AFTER_MS {
                gone.push(name.clone());
            }
        }
        gone.iter()
            .filter_map(|name| self.repositories.remove(name))
            .inspect(|watched| {
                self.absent.remove(&watched.repository.id);
            })
            .collect()
    }

    /// Where runners for this repository register; `None` while its owner is unknown.
    pub(crate) fn route(&self, owner: &str, name: &str) -> Option<Route> {
        let known = self.owner(owner)?;
        let itself = || Route {
            scope: Scope::Repository {
                owner: owner.to_owned(),
                repo: name.to_owned(),
            },
            credential: known.credential.clone(),
        };
        if self.own_scope.contains(&key(owner, name)) {
            return Some(itself());
        }
        Some(match &known.level {
            Level::Repository => itself(),
            Level::Organization => Route {
                scope: Scope::Organization {
                    login: known.login.clone(),
                },
                credential: known.credential.clone(),
            },
            Level::Enterprise { slug, credential } => Route {
                scope: Scope::Enterprise { slug: slug.clone() },
                credential: credential.clone(),
            },
        })
    }

    /// Every scope in use with its credential, once.
    pub(crate) fn routes(&self) -> BTreeMap<Scope, CredentialName> {
        self.repositories
            .values()
            .filter_map(|w| self.route(&w.repository.owner, &w.repository.name))
            .map(|route| (route.scope, route.credential))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(login: &str, level: Level) -> Owner {
        Owner {
            login: login.into(),
            level,
            credential: CredentialName::new("token"),
            installation: None,
        }
    }

    fn watched(id: u64, full: &str) -> Watched {
        let (owner, name) = full.split_once('/').unwrap();
        Watched {
            repository: Repository {
                id,
                owner: owner.into(),
                name: name.into(),
                private: Some(true),
            },
            reader: CredentialName::new("token"),
            last_activity: id,
            admin: None,
        }
    }

    #[test]
    fn the_narrowest_configured_scope_wins() {
        let mut directory = Directory::new(&["Acme/Special".into()]);
        directory.set_owner(owner("Acme", Level::Organization));
        directory.set_owner(owner("mona", Level::Repository));
        directory.set_owner(owner(
            "big",
            Level::Enterprise {
                slug: "corp".into(),
                credential: CredentialName::new("ent"),
            },
        ));
        let scope = |o: &str, n: &str| {
            directory
                .route(o, n)
                .map(|r| (r.scope.to_string(), r.credential.to_string()))
        };
        let token = || "token".to_owned();
        assert_eq!(scope("acme", "web"), Some(("Acme".into(), token())));
        assert_eq!(
            scope("acme", "special"),
            Some(("acme/special".into(), token()))
        );
        assert_eq!(scope("mona", "x"), Some(("mona/x".into(), token())));
        assert_eq!(
            scope("big", "x"),
            Some(("enterprises/corp".into(), "ent".into()))
        );
        assert_eq!(scope("nobody", "x"), None);
    }

    #[test]
    fn a_rename_keeps_the_repository_once_with_its_activity() {
        let mut directory = Directory::default();
        directory.watch(watched(7, "acme/old"));
        directory.touch("ACME", "Old", 99);
        directory.watch(watched(7, "acme/new"));
        assert!(directory.watched("acme", "old").is_none());
        assert_eq!(directory.watched("acme", "new").unwrap().last_activity, 99);
        assert_eq!(directory.repositories().count(), 1);
    }

    #[test]
    fn what_a_reader_no_longer_sees_is_returned_once_confirmed() {
        let mut directory = Directory::default();
        directory.watch(watched(1, "acme/a"));
        directory.watch(watched(2, "acme/b"));
        let token = CredentialName::new("token");
        let mut retain = |keep: &[u64], now| {
            let keep = keep.iter().copied().collect();
            let gone = directory.retain(&token, &keep, now);
            gone.iter().map(|w| w.repository.id).collect::<Vec<_>>()
        };
        assert_eq!(retain(&[2], 0), [0_u64; 0], "one list may lag");
        assert_eq!(retain(&[2], 59_999), [0_u64; 0]);
        assert_eq!(retain(&[1, 2], 60_000), [0_u64; 0], "it is back");
        assert_eq!(retain(&[2], 70_000), [0_u64; 0]);
        assert_eq!(retain(&[2], 130_000), [1]);
        let other = CredentialName::new("other");
        assert!(directory.retain(&other, &BTreeSet::new(), 0).is_empty());
        assert!(
            directory
                .retain(&other, &BTreeSet::new(), 900_000)
                .is_empty()
        );
    }
}
