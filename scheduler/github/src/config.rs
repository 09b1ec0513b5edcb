//! What the crate must be told: base URL, credentials, what to watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};

use http::Uri;
use scheduler_core::model::CredentialName;
use secrecy::SecretString;

/// Where GitHub answers and what is watched there. Holds no secret in the clear.
#[derive(Clone, Debug)]
pub struct Config {
    pub api_url: ApiUrl,
    /// Tried in order: the first that reaches an owner serves it.
    pub credentials: Vec<Credential>,
    /// Users and organisations to watch; empty: every accessible repository.
    pub owners: Vec<String>,
    /// `owner/name`: register for this repository itself, even inside an organisation.
    pub repositories: Vec<String>,
    /// Organisations that register at organisation level without being asked first.
    pub organizations: Vec<String>,
    /// Accounts with a credential or a level of their own.
    pub accounts: Vec<Account>,
    /// Enterprises that register at enterprise level (token only).
    pub enterprises: Vec<Enterprise>,
    /// Repositories without activity for this long are not swept; 0: no window.
    pub since_days: u32,
    /// Time between two sweeps while webhooks are unproven; doubled when they prove healthy.
    pub poll_interval: Duration,
    /// Any of these may have signed a delivery, so that secrets can be rotated.
    pub webhook_secrets: Vec<SecretSource>,
    /// Where hooks at GitHub send to: finds ours at the start. Without it they are
    /// learnt from their first delivery.
    pub webhook_url: Option<String>,
    pub proxy: Proxy,
    /// PEM certificates trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Only runners whose name starts with one of these are reported by lists; empty: all.
    pub runner_prefixes: Vec<String>,
    /// Time between two lists of a scope's runners, for orphans and ghosts.
    pub list_runners_every: Duration,
    /// Longest wait for one answer. GitHub itself cuts at 10 s.
    pub call_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_url: ApiUrl::github_com(),
            credentials: Vec::new(),
            owners: Vec::new(),
            repositories: Vec::new(),
            organizations: Vec::new(),
            accounts: Vec::new(),
            enterprises: Vec::new(),
            since_days: 1,
            poll_interval: Duration::from_secs(60),
            webhook_secrets: Vec::new(),
            webhook_url: None,
            proxy: Proxy::default(),
            ca_file: None,
            runner_prefixes: Vec::new(),
            list_runners_every: Duration::from_secs(300),
            call_timeout: Duration::from_secs(15),
        }
    }
}

/// A user or organisation with settings of its own. It is watched whatever
/// [`Config::owners`] says, and does not narrow what others watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub login: String,
    /// An organisation that registers at its own level, without being asked first.
    pub organization: bool,
    /// Serves this account and nothing else; `None`: whichever credential reaches it.
    pub credential: Option<CredentialName>,
}

/// An enterprise at whose level runners register when nothing narrower may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enterprise {
    pub slug: String,
    /// A token with `manage_runners:enterprise`; never a GitHub App.
    pub credential: CredentialName,
    /// Its organisations; empty with a single enterprise: every organisation
    /// where neither repository nor organisation may register.
    pub organizations: Vec<String>,
}

/// One way to authenticate.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Name in inputs, errors and metrics. Installations of an App add `/<id>`.
    pub name: CredentialName,
    pub kind: CredentialKind,
}

#[derive(Clone, Debug)]
pub enum CredentialKind {
    /// Personal token, classic or fine-grained.
    Token(SecretSource),
    /// Token with `manage_runners:enterprise`, used for enterprise scopes only.
    EnterpriseToken(SecretSource),
    /// GitHub App: numeric id (or client id) and its PEM key.
    App { id: String, key: SecretSource },
}

/// Where a secret is. Files are read again when they change.
#[derive(Clone)]
pub enum SecretSource {
    File(PathBuf),
    /// Taken from the environment at start; the name is for messages.
    Value {
        origin: String,
        value: SecretString,
    },
}

impl SecretSource {
    /// The value of an environment variable, when it is set and not blank.
    pub fn from_env(variable: &str) -> Option<Self> {
        let value = std::env::var(variable).ok()?;
        let value = value.trim();
        (!value.is_empty()).then(|| Self::Value {
            origin: variable.to_owned(),
            value: SecretString::from(value.to_owned()),
        })
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Value { origin, .. } => write!(f, "Value({origin} = ***)"),
        }
    }
}

/// Proxy settings as the usual variables give them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// For `http://` targets (absolute form).
    pub http: Option<String>,
    /// For `https://` targets (CONNECT).
    pub https: Option<String>,
    /// Comma separated: hosts, `.suffix`, addresses, networks (`10.0.0.0/8`), `*`.
    pub no_proxy: String,
}

impl Proxy {
    /// `https_proxy`, `http_proxy`, `all_proxy`, `no_proxy`, either case; lower case first.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            names
                .iter()
                .filter_map(|name| lookup(name))
                .map(|value| value.trim().to_owned())
                .find(|value| !value.is_empty())
        };
        let all = first(&["all_proxy", "ALL_PROXY"]);
        Self {
            http: first(&["http_proxy", "HTTP_PROXY"]).or_else(|| all.clone()),
            https: first(&["https_proxy", "HTTPS_PROXY"]).or(all),
            no_proxy: first(&["no_proxy", "NO_PROXY"]).unwrap_or_default(),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A proxy URL may carry a password.
        let shown = |url: &Option<String>| url.as_deref().map(without_userinfo);
        f.debug_struct("Proxy")
            .field("http", &shown(&self.http))
            .field("https", &shown(&self.https))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// The URL without the part before `@`.
pub(crate) fn without_userinfo(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{path}"),
        None => format!("{scheme}://{authority}{path}"),
    }
}

/// Base of the REST API, without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiUrl {
    base: String,
    uri: Uri,
}

impl ApiUrl {
    pub fn github_com() -> Self {
        Self {
            base: "https://api.github.com".to_owned(),
            uri: Uri::from_static("https://api.github.com"),
        }
    }

    /// Reads what people write: `github.com`, a `ghe.com` tenant, a GHES host or
    /// a full API URL. Plain `http` is accepted on loopback only.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let bad = |why: &str| ConfigError::ApiUrl {
            given: without_userinfo(text.trim()),
            why: why.to_owned(),
        };
        let text = text.trim().trim_end_matches('/');
        let with_scheme = if text.contains("://") {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let uri: Uri = with_scheme.parse().map_err(|_| bad("it is not a URL"))?;
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| bad("it names no host"))?
            .to_ascii_lowercase();
        let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
        if authority.contains('@') {
            return Err(bad("credentials do not belong into it"));
        }
        if uri.query().is_some() {
            return Err(bad("it has a query"));
        }
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if is_loopback(&host) => {}
            Some("http") => {
                return Err(bad("tokens travel over https only (http is for loopback)"));
            }
            _ => return Err(bad("it is neither https nor http")),
        }
        let scheme = uri.scheme_str().unwrap_or("https");
        let path = uri.path().trim_end_matches('/');
        let base = if matches!(
            host.as_str(),
            "github.com" | "www.github.com" | "api.github.com"
        ) {
            "https://api.github.com".to_owned()
        } else if let Some(tenant) = host.strip_suffix(".ghe.com") {
            let tenant = tenant.strip_prefix("api.").unwrap_or(tenant);
            format!("https://api.{tenant}.ghe.com")
        } else if is_loopback(&host) || !path.is_empty() {
            // A simulator, or the API path of a server was written out.
            format!("{scheme}://{authority}{path}")
        } else {
            format!("{scheme}://{authority}/api/v3")
        };
        let uri = base.parse().map_err(|_| bad("it is not a URL"))?;
        Ok(Self { base, uri })
    }

    pub fn as_str(&self) -> &str {
        &self.base
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost"
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// A setting that cannot work, named with the next step.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "GitHub API URL '{given}': {why}. Use https://api.github.com, https://HOST/api/v3 (GitHub Enterprise Server) or https://api.NAME.ghe.com"
    )]
    ApiUrl { given: String, why: String },
    #[error(
        "cannot read {what} from {path}: {error}. Check the path and that the file is readable by this user"
    )]
    Unreadable {
        what: &'static str,
        path: PathBuf,
        error: String,
    },
    #[error("{what} in {origin} is not usable: {why}")]
    Unusable {
        what: &'static str,
        origin: String,
        why: String,
    },
    #[error("repository '{0}' must be written owner/name")]
    Repository(String),
    #[error("two GitHub credentials are named '{0}'; give each its own name")]
    DuplicateCredential(CredentialName),
    #[error(
        "enterprise '{slug}' cannot register runners with the GitHub App '{credential}': GitHub enables no App on its enterprise runner endpoints. Give it a token of its own: a classic personal token with manage_runners:enterprise, as token_file under [[github.enterprises]]"
    )]
    EnterpriseApp {
        slug: String,
        credential: CredentialName,
    },
    #[error(
        "{what} names credential '{credential}', which does not exist; configure it or take the name out"
    )]
    UnknownCredential {
        what: String,
        credential: CredentialName,
    },
    #[error("{what} is configured twice; keep one entry, with one token")]
    Twice { what: String },
    #[error(
        "several enterprises are configured and '{0}' lists no organizations: GitHub does not tell to which enterprise an organisation belongs, so list them in each"
    )]
    WhichOrganizations(String),
    #[error(
        "organisation '{login}' is listed in enterprises '{first}' and '{second}'; it belongs to one, take it out of the other"
    )]
    TwoEnterprises {
        login: String,
        first: String,
        second: String,
    },
}

impl Config {
    /// Refuses accounts and enterprises that can never work together.
    pub(crate) fn check_accounts(&self) -> Result<(), ConfigError> {
        let kind_of = |name: &CredentialName| {
            let found = self.credentials.iter().find(|known| known.name == *name);
            found.map(|credential| &credential.kind)
        };
        let mut logins = BTreeSet::new();
        for account in &self.accounts {
            let what = || format!("account '{}'", account.login);
            if !logins.insert(account.login.to_lowercase()) {
                return Err(ConfigError::Twice { what: what() });
            }
            if let Some(credential) = &account.credential
                && kind_of(credential).is_none()
            {
                return Err(ConfigError::UnknownCredential {
                    what: what(),
                    credential: credential.clone(),
                });
            }
        }
        let mut slugs = BTreeSet::new();
        let mut belongs: BTreeMap<String, &str> = BTreeMap::new();
        for enterprise in &self.enterprises {
            let slug = &enterprise.slug;
            if !slugs.insert(slug.to_lowercase()) {
                let what = format!("enterprise '{slug}'");
                return Err(ConfigError::Twice { what });
            }
            match kind_of(&enterprise.credential) {
                Some(CredentialKind::App { .. }) => {
                    return Err(ConfigError::EnterpriseApp {
                        slug: slug.clone(),
                        credential: enterprise.credential.clone(),
                    });
                }
                Some(CredentialKind::Token(_) | CredentialKind::EnterpriseToken(_)) => {}
                None => {
                    return Err(ConfigError::UnknownCredential {
                        what: format!("enterprise '{slug}'"),
                        credential: enterprise.credential.clone(),
                    });
                }
            }
            if self.enterprises.len() > 1 && enterprise.organizations.is_empty() {
                return Err(ConfigError::WhichOrganizations(slug.clone()));
            }
            for login in &enterprise.organizations {
                if let Some(first) = belongs.insert(login.to_lowercase(), slug) {
                    return Err(ConfigError::TwoEnterprises {
                        login: login.clone(),
                        first: first.to_owned(),
                        second: slug.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_base_form_is_understood() {
        for (given, base) in [
            ("github.com", "https://api.github.com"),
            ("https://github.com/", "https://api.github.com"),
            ("https://api.github.com", "https://api.github.com"),
            (
                "https://ghes.example.org",
                "https://ghes.example.org/api/v3",
            ),
            (
                "https://ghes.example.org/api/v3/",
                "https://ghes.example.org/api/v3",
            ),
            (
                "ghes.example.org:8443",
                "https://ghes.example.org:8443/api/v3",
            ),
            ("octo.ghe.com", "https://api.octo.ghe.com"),
            ("https://api.octo.ghe.com/", "https://api.octo.ghe.com"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:8080/api/v3", "http://[::1]:8080/api/v3"),
        ] {
            assert_eq!(ApiUrl::parse(given).expect(given).as_str(), base, "{given}");
        }
    }

    #[test]
    fn unsafe_or_senseless_bases_are_refused() {
        for given in [
            "http://ghes.example.org",
            "ftp://github.com",
            "https://user:pw@ghes.example.org",
            "https://ghes.example.org/api/v3?x=1",
            "",
        ] {
            let error = ApiUrl::parse(given).expect_err(given).to_string();
            assert!(!error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn proxy_variables_are_read_in_both_cases_and_shown_without_password() {
        let proxy = Proxy::from_lookup(|name| match name {
            "HTTPS_PROXY" => Some("http://user:hunter2@proxy:3128/".into()),
            "all_proxy" => Some("http://other:1".into()),
            "NO_PROXY" => Some("localhost,.internal".into()),
            _ => None,
        });
        assert_eq!(
            proxy.https.as_deref(),
            Some("http://user:hunter2@proxy:3128/")
        );
        assert_eq!(proxy.http.as_deref(), Some("http://other:1"));
        assert_eq!(proxy.no_proxy, "localhost,.internal");
        assert!(!format!("{proxy:?}").contains("hunter2"));
    }

    fn with_app_and_tokens() -> Config {
        let value = || SecretSource::Value {
            origin: "test".into(),
            value: "ghp_secret".to_owned().into(),
        };
        let credential = |name: &str, kind| Credential {
            name: CredentialName::new(name),
            kind,
        };
        let app = CredentialKind::App {
            id: "1".into(),
            key: value(),
        };
        Config {
            credentials: vec![
                credential("app", app),
                credential("corp", CredentialKind::EnterpriseToken(value())),
                credential("acme", CredentialKind::Token(value())),
            ],
            ..Config::default()
        }
    }

    fn enterprise(slug: &str, credential: &str, organizations: &[&str]) -> Enterprise {
        Enterprise {
            slug: slug.into(),
            credential: CredentialName::new(credential),
            organizations: organizations.iter().map(|&login| login.into()).collect(),
        }
    }

    #[test]
    fn accounts_and_enterprises_that_cannot_work_are_refused_with_the_next_step() {
        let refused = |enterprises: Vec<Enterprise>, accounts: &[(&str, Option<&str>)]| {
            let config = Config {
                enterprises,
                accounts: accounts
                    .iter()
                    .map(|(login, credential)| Account {
                        login: (*login).into(),
                        organization: true,
                        credential: credential.map(CredentialName::new),
                    })
                    .collect(),
                ..with_app_and_tokens()
            };
            config.check_accounts().map_err(|error| error.to_string())
        };
        let corp = || enterprise("corp", "corp", &["sub"]);
        assert_eq!(
            refused(
                vec![corp(), enterprise("two", "acme", &["x"])],
                &[("acme", Some("acme"))]
            ),
            Ok(())
        );
        for (enterprises, accounts, says) in [
            (
                vec![enterprise("corp", "app", &[])],
                vec![],
                ["'corp' cannot register", "manage_runners:enterprise"],
            ),
            (
                vec![enterprise("corp", "gone", &[])],
                vec![],
                ["enterprise 'corp'", "'gone', which does not exist"],
            ),
            (
                vec![corp(), enterprise("two", "corp", &[])],
                vec![],
                ["'two' lists no organizations", "list them in each"],
            ),
            (
                vec![corp(), enterprise("two", "acme", &["SUB"])],
                vec![],
                ["'SUB' is listed in", "take it out of the other"],
            ),
            (
                vec![corp(), enterprise("Corp", "corp", &["x"])],
                vec![],
                ["enterprise 'Corp' is configured twice", "keep one"],
            ),
            (
                vec![],
                vec![("acme", None), ("ACME", Some("acme"))],
                ["account 'ACME' is configured twice", "keep one"],
            ),
            (
                vec![],
                vec![("acme", Some("gone"))],
                ["account 'acme'", "configure it"],
            ),
        ] {
            let error = refused(enterprises, &accounts).unwrap_err();
            assert!(says.iter().all(|text| error.contains(text)), "{error}");
        }
    }
}
