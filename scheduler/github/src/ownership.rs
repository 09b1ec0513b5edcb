//! Who is watched and which credential may serve whom, as configured. Asks nobody.

use std::collections::BTreeSet;

use scheduler_core::model::CredentialName;

use crate::{
    config::{Config, CredentialKind},
    directory::Level,
};

impl Config {
    /// Owners that were named; empty: whatever is accessible.
    fn named_owners(&self) -> BTreeSet<String> {
        self.owners
            .iter()
            .chain(&self.organizations)
            .map(String::as_str)
            .chain(
                self.repositories
                    .iter()
                    .filter_map(|full| Some(full.split_once('/')?.0)),
            )
            .map(str::to_lowercase)
            .collect()
    }

    /// Accounts with settings of their own, and the organisations of enterprises.
    fn configured_owners(&self) -> impl Iterator<Item = &str> {
        let accounts = self.accounts.iter().map(|account| account.login.as_str());
        let organizations = self
            .enterprises
            .iter()
            .flat_map(|enterprise| &enterprise.organizations);
        accounts.chain(organizations.map(String::as_str))
    }

    /// Owners that must be found somewhere, or it is told.
    pub(crate) fn expected_owners(&self) -> BTreeSet<String> {
        let named = self.owners.iter().chain(&self.organizations);
        named
            .map(String::as_str)
            .chain(self.configured_owners())
            .map(str::to_lowercase)
            .collect()
    }

    pub(crate) fn wants_owner(&self, login: &str) -> bool {
        let named = self.named_owners();
        named.is_empty()
            || named.contains(&login.to_lowercase())
            || self
                .configured_owners()
                .any(|owner| owner.eq_ignore_ascii_case(login))
    }

    /// A repository is wanted by its own name, by its owner, or when nothing is named.
    pub(crate) fn wants(&self, owner: &str, name: &str) -> bool {
        let whole = self.owners.iter().chain(&self.organizations);
        let full = format!("{owner}/{name}");
        (self.owners.is_empty() && self.organizations.is_empty() && self.repositories.is_empty())
            || whole
                .map(String::as_str)
                .chain(self.configured_owners())
                .any(|wanted| wanted.eq_ignore_ascii_case(owner))
            || self
                .repositories
                .iter()
                .any(|wanted| wanted.eq_ignore_ascii_case(&full))
    }

    /// Whether this credential may serve this owner: an account with a credential
    /// of its own is served by nothing else, and such a credential serves nobody else.
    pub(crate) fn serves(&self, credential: &CredentialName, login: &str) -> bool {
        let own = self
            .accounts
            .iter()
            .find(|account| account.login.eq_ignore_ascii_case(login))
            .and_then(|account| account.credential.as_ref());
        match own {
            Some(own) => own == credential,
            None => self.own_accounts(credential).next().is_none(),
        }
    }

    fn own_accounts(&self, credential: &CredentialName) -> impl Iterator<Item = &str> {
        self.accounts
            .iter()
            .filter(move |account| account.credential.as_ref() == Some(credential))
            .map(|account| account.login.as_str())
    }

    /// Owners this credential looks for; `None`: everything it can reach.
    pub(crate) fn looked_for(&self, credential: &CredentialName) -> Option<BTreeSet<String>> {
        let own: BTreeSet<String> = self
            .own_accounts(credential)
            .map(str::to_lowercase)
            .collect();
        if !own.is_empty() {
            return Some(own);
        }
        let kind = self.credentials.iter().find(|c| c.name == *credential);
        let enterprise = kind.is_some_and(|credential| {
            matches!(credential.kind, CredentialKind::EnterpriseToken(_))
        });
        let named = self.named_owners();
        // An enterprise's token reads only what it was told of.
        if named.is_empty() && !enterprise {
            return None;
        }
        let configured = self.configured_owners().map(str::to_lowercase);
        let wanted = named.into_iter().chain(configured);
        Some(
            wanted
                .filter(|login| self.serves(credential, login))
                .collect(),
        )
    }

    pub(crate) fn names_organization(&self, login: &str) -> bool {
        let accounts = self.accounts.iter().filter(|account| account.organization);
        self.organizations
            .iter()
            .chain(accounts.map(|account| &account.login))
            .any(|name| name.eq_ignore_ascii_case(login))
    }

    /// The enterprise an organisation registers at when nothing narrower may.
    pub(crate) fn enterprise_level(&self, login: &str) -> Option<Level> {
        let listed = self.enterprises.iter().find(|enterprise| {
            let mut organizations = enterprise.organizations.iter();
            organizations.any(|name| name.eq_ignore_ascii_case(login))
        });
        let any = || {
            self.enterprises
                .iter()
                .find(|enterprise| enterprise.organizations.is_empty())
        };
        listed.or_else(any).map(|enterprise| Level::Enterprise {
            slug: enterprise.slug.clone(),
            credential: enterprise.credential.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Account, Credential, Enterprise, SecretSource};

    fn config() -> Config {
        let credential = |name: &str, kind: fn(SecretSource) -> CredentialKind| Credential {
            name: CredentialName::new(name),
            kind: kind(SecretSource::Value {
                origin: "test".into(),
                value: "x".to_owned().into(),
            }),
        };
        Config {
            credentials: vec![
                credential("acme", CredentialKind::Token),
                credential("main", CredentialKind::Token),
                credential("corp", CredentialKind::EnterpriseToken),
            ],
            accounts: vec![
                Account {
                    login: "Acme".into(),
                    organization: true,
                    credential: Some(CredentialName::new("acme")),
                },
                Account {
                    login: "wide".into(),
                    organization: true,
                    credential: None,
                },
            ],
            enterprises: vec![Enterprise {
                slug: "corp".into(),
                credential: CredentialName::new("corp"),
                organizations: vec!["Sub".into()],
            }],
            ..Config::default()
        }
    }

    fn looked_for(config: &Config, name: &str) -> Option<Vec<String>> {
        let found = config.looked_for(&CredentialName::new(name))?;
        Some(found.into_iter().collect())
    }

    #[test]
    fn an_account_with_its_own_credential_is_served_by_nothing_else() {
        let mut config = config();
        let serves = |config: &Config, name: &str, login: &str| {
            config.serves(&CredentialName::new(name), login)
        };
        assert!(serves(&config, "acme", "ACME") && !serves(&config, "main", "acme"));
        assert!(serves(&config, "main", "mona") && !serves(&config, "acme", "mona"));
        assert_eq!(looked_for(&config, "acme").unwrap(), ["acme"]);
        assert_eq!(looked_for(&config, "main"), None, "everything it reaches");
        assert_eq!(looked_for(&config, "corp").unwrap(), ["sub", "wide"]);
        assert!(config.wants("anybody", "x") && config.wants_owner("anybody"));
        config.owners = vec!["mona".into()];
        assert_eq!(
            looked_for(&config, "main").unwrap(),
            ["mona", "sub", "wide"],
            "not acme, which has its own"
        );
        for (owner, wanted) in [
            ("mona", true),
            ("acme", true),
            ("sub", true),
            ("other", false),
        ] {
            assert_eq!(config.wants(owner, "x"), wanted, "{owner}");
            assert_eq!(config.wants_owner(owner), wanted, "{owner}");
        }
    }

    #[test]
    fn an_organisation_registers_at_the_enterprise_that_lists_it() {
        let mut config = config();
        let slug = |config: &Config, login: &str| match config.enterprise_level(login) {
            Some(Level::Enterprise { slug, .. }) => Some(slug),
            _ => None,
        };
        assert_eq!(slug(&config, "sub").as_deref(), Some("corp"));
        assert_eq!(slug(&config, "other"), None);
        config.enterprises[0].organizations.clear();
        assert_eq!(slug(&config, "other").as_deref(), Some("corp"));
        assert!(config.names_organization("ACME") && config.names_organization("wide"));
        assert!(!config.names_organization("sub"));
    }
}
