//! `[[github.organizations]]`, `[[github.users]]` and `[[github.enterprises]]` of the file.

use std::path::PathBuf;

use super::{credentials::Credentials, keys::nearest, suggestion};

/// A user or organisation with settings of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub login: String,
    pub organization: bool,
    /// Token that serves this account and nothing else.
    pub token_file: Option<PathBuf>,
}

/// An enterprise: always with a token of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enterprise {
    pub slug: String,
    pub token_file: PathBuf,
    pub organizations: Vec<String>,
}

/// All three lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    pub accounts: Vec<Account>,
    pub enterprises: Vec<Enterprise>,
}

/// The lists as the file has them: which list, and its tables.
pub(super) type Lists = Vec<(&'static str, Vec<toml::Table>)>;

const LISTS: [&str; 3] = ["organizations", "users", "enterprises"];
const ACCOUNT_KEYS: &[&str] = &["login", "token_file"];
const ENTERPRISE_KEYS: &[&str] = &["slug", "token_file", "organizations"];

/// Takes the lists out of `[github]`, so that what is left are plain settings.
pub(super) fn take(github: &mut toml::Table, problems: &mut Vec<String>) -> Lists {
    let mut lists = Lists::new();
    for name in LISTS {
        let tables = match github.remove(name) {
            None => continue,
            Some(toml::Value::Array(entries)) => entries
                .into_iter()
                .map(|entry| match entry {
                    toml::Value::Table(table) => Some(table),
                    _ => None,
                })
                .collect(),
            Some(_) => None,
        };
        match tables {
            Some(tables) => lists.push((name, tables)),
            None => problems.push(format!("write each entry as [[github.{name}]]")),
        }
    }
    lists
}

/// What the lists say; what is wrong goes to `problems`.
pub(super) fn read(
    lists: &Lists,
    credentials: &Credentials,
    problems: &mut Vec<String>,
) -> Accounts {
    let mut accounts = Accounts::default();
    for (list, tables) in lists {
        for (index, table) in tables.iter().enumerate() {
            let entry = Entry {
                list,
                index,
                table,
                credentials,
            };
            if *list == "enterprises" {
                accounts.enterprises.extend(entry.enterprise(problems));
            } else {
                accounts.accounts.extend(entry.account(problems));
            }
        }
    }
    accounts
}

struct Entry<'a> {
    list: &'a str,
    index: usize,
    table: &'a toml::Table,
    credentials: &'a Credentials,
}

impl Entry<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        let text = self.table.get(key)?.as_str()?.trim();
        (!text.is_empty()).then_some(text)
    }

    /// The file of the entry's token; `credential:NAME` is one of systemd's.
    fn token_file(&self, name: &str, problems: &mut Vec<String>) -> Option<PathBuf> {
        let path = self.credentials.path(self.text("token_file")?);
        path.map_err(|problem| problems.push(format!("github.{} `{name}`: {problem}", self.list)))
            .ok()
    }

    /// The entry's name, after its keys were looked at.
    fn name(&self, key: &str, known: &[&str], problems: &mut Vec<String>) -> Option<String> {
        let list = self.list;
        let Some(name) = self.text(key) else {
            problems.push(format!(
                "github.{list} number {} has no `{key}`",
                self.index + 1
            ));
            return None;
        };
        for (given, value) in self.table {
            if self.list == "enterprises" && given.starts_with("app_") {
                problems.push(format!(
                    "github.enterprises `{name}`: `{given}` cannot be used: GitHub lets no App register runners at an enterprise. \
                     Name the file of a classic token with manage_runners:enterprise as token_file"
                ));
            } else if !known.contains(&given.as_str()) {
                let hint = suggestion(given, known.iter().copied());
                problems.push(format!(
                    "github.{list} `{name}`: unknown key `{given}`{hint}"
                ));
            } else if given != "organizations" && !value.is_str() {
                problems.push(format!("github.{list} `{name}`: `{given}` takes a text"));
            }
        }
        Some(name.to_owned())
    }

    fn account(&self, problems: &mut Vec<String>) -> Option<Account> {
        let login = self.name("login", ACCOUNT_KEYS, problems)?;
        let token_file = self.token_file(&login, problems);
        let organization = self.list == "organizations";
        if !organization && self.text("token_file").is_none() {
            problems.push(format!(
                "github.users `{login}` has no `token_file`; without a token of its own name it in scheduler.owners"
            ));
        }
        Some(Account {
            login,
            organization,
            token_file,
        })
    }

    fn enterprise(&self, problems: &mut Vec<String>) -> Option<Enterprise> {
        let slug = self.name("slug", ENTERPRISE_KEYS, problems)?;
        let organizations = match self.table.get("organizations") {
            None => Some(Vec::new()),
            Some(value) => value.as_array().and_then(|entries| {
                let texts = entries
                    .iter()
                    .map(|entry| entry.as_str().map(str::to_owned));
                texts.collect()
            }),
        };
        if organizations.is_none() {
            problems.push(format!(
                "github.enterprises `{slug}`: `organizations` takes a list of texts"
            ));
        }
        if self.text("token_file").is_none() {
            problems.push(format!(
                "github.enterprises `{slug}` has no `token_file`; an enterprise needs a token of its own: a classic one with \
                 manage_runners:enterprise (a GitHub App cannot register runners there)"
            ));
            return None;
        }
        Some(Enterprise {
            token_file: self.token_file(&slug, problems)?,
            slug,
            organizations: organizations?,
        })
    }
}

/// The list a misspelt name below `[github]` may have meant.
pub(super) fn nearest_list(key: &str) -> Option<&'static str> {
    nearest(key, LISTS)
}
