//! What `--check-config` prints: each value in force and where it came from.

use scheduler_core::model::Pool;

use super::{Config, KEYS, pools};

impl Config {
    /// One line per setting: value and origin. Nothing secret is part of it.
    pub fn report(&self, token_in_environment: bool) -> String {
        let mut text = String::new();
        for key in KEYS {
            let (value, origin) = match self.origins.get(key.path) {
                Some((values, origin)) if key.list => (format!("{values:?}"), origin.to_string()),
                Some((values, origin)) => (
                    values.first().map(|v| format!("{v:?}")).unwrap_or_default(),
                    origin.to_string(),
                ),
                None => ("(unset)".to_owned(), "default".to_owned()),
            };
            text.push_str(&format!("{} = {value}  # {origin}\n", key.path));
        }
        if token_in_environment {
            text.push_str("github.token = \"********\"  # environment GITHUB_TOKEN\n");
        }
        for account in &self.github.accounts.accounts {
            let kind = match account.organization {
                true => "organization",
                false => "user",
            };
            let file = account.token_file.as_ref();
            let token = file.map_or("the general credential".to_owned(), |f| {
                f.display().to_string()
            });
            text.push_str(&format!(
                "{kind} {}: token {token}  # file\n",
                account.login
            ));
        }
        for enterprise in &self.github.accounts.enterprises {
            text.push_str(&format!(
                "enterprise {}: token {}, organizations {:?}  # file\n",
                enterprise.slug,
                enterprise.token_file.display(),
                enterprise.organizations
            ));
        }
        for pool in &self.pools {
            text.push_str(&self.pool(pool));
        }
        for (subject, weight, maximum) in &self.shares {
            text.push_str(&format!(
                "share {subject}: weight {weight}, maximum {maximum}  # file\n"
            ));
        }
        text
    }

    /// A pool as a table that the file could hold.
    fn pool(&self, pool: &Pool) -> String {
        let written = self.pool_keys.get(pool.name.as_str());
        let mut text = "[[pools]]\n".to_owned();
        for (key, value) in pools::values(pool) {
            let origin = match written.is_some_and(|keys| keys.contains(key)) {
                true => "file",
                false => "default",
            };
            text.push_str(&format!("{key} = {value}  # {origin}\n"));
        }
        text
    }
}
