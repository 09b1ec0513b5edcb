//! Accounts, repositories, installations, tokens and limits.

use std::{collections::BTreeMap, fmt};

use secrecy::SecretString;
use serde::Deserialize;

use super::{Field, field::document};

document!(
    /// A user, organisation or enterprise.
    Account {
        id: u64,
        login: String,
        slug: String,
        /// `User`, `Organization`, `Enterprise`, `Bot`.
        r#type: String,
    }
);

document!(
    /// What the asking identity may do with a repository.
    Permissions {
        admin: bool,
        push: bool,
        pull: bool,
    }
);

document!(
    /// A repository; the minimal forms inside runs have fewer fields.
    Repository {
        id: u64,
        name: String,
        full_name: String,
        owner: Account,
        private: bool,
        archived: bool,
        disabled: bool,
        fork: bool,
        html_url: String,
        permissions: Permissions,
    }
);

impl Repository {
    /// Owner and name, from `full_name` when the owner object is missing.
    pub fn owner_and_name(&self) -> Option<(&str, &str)> {
        let split = self.full_name.text().and_then(|full| full.split_once('/'));
        let owner = self
            .owner
            .get()
            .and_then(|owner| owner.login.text())
            .or(split.map(|(owner, _)| owner))?;
        let name = self.name.text().or(split.map(|(_, name)| name))?;
        Some((owner, name))
    }

    /// Last sign of activity as RFC 3339, pushes included.
    pub fn last_activity(&self) -> Option<&str> {
        // Webhooks send `pushed_at` as a number; then the other one stands.
        let text = |field: &str| self.extra.get(field).and_then(|value| value.as_str());
        text("pushed_at").max(text("updated_at"))
    }
}

document!(
    /// `GET /installation/repositories`.
    RepositoryList {
        total_count: u64,
        repositories: Vec<Field<Repository>>,
    }
);

document!(
    /// An App's installation on an account.
    Installation {
        id: u64,
        account: Account,
        target_type: String,
        /// `all` or `selected`.
        repository_selection: String,
        permissions: BTreeMap<String, Field<String>>,
        events: Vec<Field<String>>,
        suspended_at: String,
    }
);

impl Installation {
    /// `write` on the named permission.
    pub fn may_write(&self, permission: &str) -> bool {
        self.permissions
            .get()
            .and_then(|granted| granted.get(permission))
            .and_then(|level| level.text())
            == Some("write")
    }
}

/// Answer of `POST /app/installations/{id}/access_tokens`. Read only: it is never written anywhere.
#[derive(Deserialize)]
pub struct AccessToken {
    pub token: SecretString,
    /// RFC 3339.
    pub expires_at: String,
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("token", &"***")
            .field("expires_at", &self.expires_at)
            .finish()
    }
}

document!(
    /// One bucket of `GET /rate_limit`.
    RateLimit {
        limit: u64,
        remaining: u64,
        used: u64,
        reset: u64,
    }
);

document!(
    /// `GET /rate_limit`; the top-level `rate` is never read.
    RateLimits { resources: BTreeMap<String, Field<RateLimit>> }
);
