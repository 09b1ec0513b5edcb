//! Credentials: who is calling, and what that caller may do.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::jwt;
use super::model::OwnerKind;
use super::rest::Response;
use super::spec::TokenSpec;
use super::world::{HOUR, SECOND, SimError, World};

#[derive(Debug, Clone)]
pub(crate) enum Holder {
    Classic {
        user: u64,
        scopes: BTreeSet<String>,
    },
    FineGrained {
        user: u64,
        permissions: BTreeMap<String, String>,
        repositories: Option<BTreeSet<u64>>,
    },
    Installation {
        id: u64,
        permissions: BTreeMap<String, String>,
        repositories: Option<BTreeSet<u64>>,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) holder: Holder,
    pub(crate) expires_ms: Option<u64>,
}

impl Token {
    pub(crate) fn installation(&self) -> Option<u64> {
        match self.holder {
            Holder::Installation { id, .. } => Some(id),
            _ => None,
        }
    }
}

/// Who is calling.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    Anonymous,
    App(u64),
    Holder(Holder),
}

impl Caller {
    /// What limits and the log count by.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".into(),
            Self::App(id) => format!("app:{id}"),
            Self::Holder(Holder::Classic { user, .. } | Holder::FineGrained { user, .. }) => {
                format!("user:{user}")
            }
            Self::Holder(Holder::Installation { id, .. }) => format!("installation:{id}"),
        }
    }

    pub(crate) fn user(&self) -> Option<u64> {
        match self {
            Self::Holder(Holder::Classic { user, .. } | Holder::FineGrained { user, .. }) => {
                Some(*user)
            }
            _ => None,
        }
    }
}

/// How much of a permission is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Read,
    Write,
}

impl Level {
    fn text(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    fn met_by(self, have: Option<&String>) -> bool {
        match have.map(String::as_str) {
            Some("admin" | "write") => true,
            Some("read") => self == Self::Read,
            _ => false,
        }
    }
}

impl World {
    /// A personal token.
    pub fn add_token(&mut self, spec: TokenSpec) -> Result<String, SimError> {
        let user = self.owner_of_kind(&spec.login, OwnerKind::User)?;
        let expires_ms = spec.expires_in_s.map(|s| self.now + s * SECOND);
        let (holder, prefix) = match (spec.scopes, spec.permissions) {
            (Some(scopes), None) => (
                Holder::Classic {
                    user,
                    scopes: scopes.into_iter().collect(),
                },
                format!("ghp_{}", self.chance.alphanumeric(36)),
            ),
            (None, Some(permissions)) => {
                let repositories = match spec.repositories {
                    Some(names) => Some(names.iter().map(|n| self.repo_id(n)).collect::<Result<
                        BTreeSet<_>,
                        _,
                    >>(
                    )?),
                    None => None,
                };
                let text = format!(
                    "github_pat_{}_{}",
                    self.chance.alphanumeric(22),
                    self.chance.alphanumeric(59)
                );
                (
                    Holder::FineGrained {
                        user,
                        permissions,
                        repositories,
                    },
                    text,
                )
            }
            _ => {
                return Err(SimError::Invalid(
                    "a token has either `scopes` or `permissions`".into(),
                ));
            }
        };
        self.tokens
            .insert(prefix.clone(), Token { holder, expires_ms });
        Ok(prefix)
    }

    pub fn revoke_token(&mut self, token: &str) -> bool {
        self.tokens.remove(token).is_some()
    }

    /// A token of an installation, in the long form of 2026. One hour.
    pub(crate) fn new_installation_token(
        &mut self,
        installation: u64,
        permissions: BTreeMap<String, String>,
        repositories: Option<BTreeSet<u64>>,
    ) -> (String, u64) {
        let app = self.installations.get(&installation).map_or(0, |i| i.app);
        let expires = self.now + HOUR;
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": "ES256", "typ": "JWT"}).to_string());
        let claims = json!({"iss": "github", "sub": installation, "exp": expires / 1000, "jti": self.chance.guid()});
        let body = URL_SAFE_NO_PAD.encode(claims.to_string());
        let tail = self.chance.alphanumeric(342);
        let text = format!("ghs_{app}_{header}.{body}.{tail}");
        let holder = Holder::Installation {
            id: installation,
            permissions,
            repositories,
        };
        self.tokens.insert(
            text.clone(),
            Token {
                holder,
                expires_ms: Some(expires),
            },
        );
        (text, expires)
    }

    /// Who sent this `Authorization` header.
    pub(crate) fn identify(&mut self, authorization: Option<&str>) -> Result<Caller, Response> {
        let Some(text) = authorization else {
            return Ok(Caller::Anonymous);
        };
        let bad = || Response::error(401, "Bad credentials");
        let secret = match text.split_once(' ') {
            Some((scheme, rest))
                if scheme.eq_ignore_ascii_case("bearer")
                    || scheme.eq_ignore_ascii_case("token") =>
            {
                rest.trim()
            }
            _ => return Err(bad()),
        };
        if self.roll(self.cfg.faults.token_401, "token_401") {
            return Err(bad());
        }
        if let Some(token) = self.tokens.get(secret) {
            if token.expires_ms.is_some_and(|t| t <= self.now) {
                self.tokens.remove(secret);
                return Err(bad());
            }
            let holder = token.holder.clone();
            if let Holder::Installation { id, .. } = &holder
                && self
                    .installations
                    .get(id)
                    .is_some_and(|i| i.suspended_ms.is_some())
            {
                return Err(Response::error(403, "This installation has been suspended"));
            }
            return Ok(Caller::Holder(holder));
        }
        if secret.matches('.').count() == 2 && !secret.starts_with("gh") {
            return self.identify_app(secret);
        }
        Err(bad())
    }

    fn identify_app(&self, token: &str) -> Result<Caller, Response> {
        let refuse = |why: &str| Err(Response::error(401, why));
        let Some(claims) = jwt::claims(token) else {
            return refuse("A JSON web token could not be decoded");
        };
        let issuer = match claims.get("iss") {
            Some(Value::String(s)) => s.clone(),
            Some(Value::Number(n)) => n.to_string(),
            _ => return refuse("Missing 'issuer' claim ('iss') in assertion"),
        };
        let Some(app) = self
            .apps
            .values()
            .find(|a| a.id.to_string() == issuer || a.client_id == issuer)
        else {
            return Err(Response::error(404, "Integration not found"));
        };
        if !jwt::signed_by(token, &app.public_key) {
            return refuse("A JSON web token could not be decoded");
        }
        let now = self.now / 1000;
        let number = |k: &str| claims.get(k).and_then(Value::as_f64).map(|v| v as u64);
        match number("exp") {
            None => return refuse("Missing 'expiration' claim ('exp') in assertion"),
            Some(exp) if exp <= now => {
                return refuse(
                    "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
                );
            }
            Some(exp) if exp > now + 600 => {
                return refuse("'Expiration time' claim ('exp') is too far in the future");
            }
            Some(_) => {}
        }
        match number("iat") {
            None => return refuse("Missing 'issued at' claim ('iat') in assertion"),
            Some(iat) if iat > now => {
                return refuse(
                    "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
                );
            }
            Some(_) => {}
        }
        Ok(Caller::App(app.id))
    }

    /// Administrator, member or nobody.
    fn role(&self, user: u64, owner: u64) -> Option<&str> {
        if user == owner {
            return Some("admin");
        }
        let login = self.owners.get(&user)?.login.to_lowercase();
        let o = self.owners.get(&owner)?;
        o.members.get(&login).map(String::as_str).or_else(|| {
            let e = o.enterprise.and_then(|e| self.owners.get(&e))?;
            (e.members.get(&login).map(String::as_str) == Some("admin")).then_some("admin")
        })
    }

    /// Whether the caller sees a repository at all.
    pub(crate) fn sees_repo(&self, caller: &Caller, repo: u64) -> bool {
        let Some(r) = self.repos.get(&repo) else {
            return false;
        };
        if !r.private {
            return true;
        }
        match caller {
            Caller::Holder(Holder::Classic { user, scopes }) => {
                scopes.contains("repo") && self.role(*user, r.owner).is_some()
            }
            Caller::Holder(Holder::FineGrained {
                user, repositories, ..
            }) => {
                self.role(*user, r.owner).is_some()
                    && repositories.as_ref().is_none_or(|s| s.contains(&repo))
            }
            Caller::Holder(Holder::Installation {
                id, repositories, ..
            }) => self.installations.get(id).is_some_and(|i| {
                i.account == r.owner
                    && i.repositories.as_ref().is_none_or(|s| s.contains(&repo))
                    && repositories.as_ref().is_none_or(|s| s.contains(&repo))
            }),
            _ => false,
        }
    }

    /// Whether the caller is listed as having this repository (a public one of somebody else is seen, not had).
    pub(crate) fn has_repo(&self, caller: &Caller, repo: u64) -> bool {
        let Some(r) = self.repos.get(&repo) else {
            return false;
        };
        match caller {
            Caller::Holder(Holder::Installation {
                id, repositories, ..
            }) => self.installations.get(id).is_some_and(|i| {
                i.account == r.owner
                    && i.repositories.as_ref().is_none_or(|s| s.contains(&repo))
                    && repositories.as_ref().is_none_or(|s| s.contains(&repo))
            }),
            Caller::Holder(Holder::Classic { user, .. }) => {
                self.role(*user, r.owner).is_some() && self.sees_repo(caller, repo)
            }
            Caller::Holder(Holder::FineGrained {
                user, repositories, ..
            }) => {
                self.role(*user, r.owner).is_some()
                    && repositories.as_ref().is_none_or(|s| s.contains(&repo))
            }
            _ => false,
        }
    }

    /// Fails unless the caller may do this to the repository.
    pub(crate) fn allow_repo(
        &mut self,
        caller: &Caller,
        repo: u64,
        what: &str,
        level: Level,
    ) -> Result<(), Response> {
        if matches!(caller, Caller::App(_)) {
            return Err(Response::error(401, "Bad credentials"));
        }
        if !self.sees_repo(caller, repo) {
            return Err(Response::error(404, "Not Found"));
        }
        let Some(r) = self.repos.get(&repo) else {
            return Err(Response::error(404, "Not Found"));
        };
        let public_read = !r.private
            && level == Level::Read
            && matches!(what, "actions" | "metadata" | "contents");
        if public_read {
            return Ok(());
        }
        let owner = r.owner;
        let admin_needed = matches!(what, "administration" | "repository_hooks");
        match caller {
            Caller::Anonymous => Err(Response::error(401, "Requires authentication")),
            Caller::App(_) => Err(Response::error(401, "Bad credentials")),
            Caller::Holder(Holder::Classic { user, scopes }) => {
                let scope_ok = scopes.contains("repo")
                    || (what == "repository_hooks" && scopes.contains("admin:repo_hook"));
                if !scope_ok {
                    let wanted = if what == "repository_hooks" {
                        "admin:repo_hook"
                    } else {
                        "repo"
                    };
                    return Err(self.missing_scope(wanted));
                }
                if admin_needed && self.role(*user, owner) != Some("admin") {
                    return Err(self.missing("Must have admin rights to Repository.", None));
                }
                if level == Level::Write && self.role(*user, owner).is_none() {
                    return Err(self.missing("Must have write access to Repository.", None));
                }
                Ok(())
            }
            Caller::Holder(Holder::FineGrained {
                user, permissions, ..
            }) => {
                let role_ok = if admin_needed {
                    self.role(*user, owner) == Some("admin")
                } else {
                    true
                };
                if what == "metadata"
                    || (level.met_by(permissions.get(what))
                        && role_ok
                        && self.has_repo(caller, repo))
                {
                    return Ok(());
                }
                Err(self.missing(
                    "Resource not accessible by personal access token",
                    Some((what, level)),
                ))
            }
            Caller::Holder(Holder::Installation { permissions, .. }) => {
                if what == "metadata"
                    || (level.met_by(permissions.get(what)) && self.has_repo(caller, repo))
                {
                    return Ok(());
                }
                Err(self.missing(
                    "Resource not accessible by integration",
                    Some((what, level)),
                ))
            }
        }
    }

    /// Fails unless the caller may do this to the organisation or enterprise.
    pub(crate) fn allow_owner(
        &mut self,
        caller: &Caller,
        owner: u64,
        what: &str,
        level: Level,
    ) -> Result<(), Response> {
        let Some(o) = self.owners.get(&owner) else {
            return Err(Response::error(404, "Not Found"));
        };
        let enterprise = o.kind == OwnerKind::Enterprise;
        match caller {
            Caller::Anonymous => Err(Response::error(401, "Requires authentication")),
            Caller::App(_) => Err(Response::error(401, "Bad credentials")),
            Caller::Holder(Holder::Classic { user, scopes }) => {
                let role = self.role(*user, owner);
                if role.is_none() {
                    return Err(Response::error(404, "Not Found"));
                }
                let wanted = match (enterprise, what) {
                    (true, _) => "manage_runners:enterprise",
                    (false, "organization_hooks") => "admin:org_hook",
                    (false, _) => "admin:org",
                };
                if !(scopes.contains(wanted) || enterprise && scopes.contains("admin:enterprise")) {
                    return Err(self.missing_scope(wanted));
                }
                if role != Some("admin") {
                    return Err(self.missing("Must have admin rights to Organization.", None));
                }
                Ok(())
            }
            Caller::Holder(Holder::FineGrained {
                user, permissions, ..
            }) => {
                if self.role(*user, owner).is_none() {
                    return Err(Response::error(404, "Not Found"));
                }
                if !enterprise
                    && level.met_by(permissions.get(what))
                    && self.role(*user, owner) == Some("admin")
                {
                    return Ok(());
                }
                Err(self.missing(
                    "Resource not accessible by personal access token",
                    Some((what, level)),
                ))
            }
            Caller::Holder(Holder::Installation {
                id, permissions, ..
            }) => {
                let here = self
                    .installations
                    .get(id)
                    .is_some_and(|i| i.account == owner);
                if enterprise || (here && !level.met_by(permissions.get(what))) {
                    // GitHub Apps are not enabled on the enterprise endpoints
                    return Err(self.missing(
                        "Resource not accessible by integration",
                        Some((what, level)),
                    ));
                }
                if !here {
                    return Err(Response::error(404, "Not Found"));
                }
                Ok(())
            }
        }
    }

    fn missing(&mut self, message: &str, permission: Option<(&str, Level)>) -> Response {
        if self.cfg.faults.not_found_for_missing_permission {
            self.count_fault("not_found_for_missing_permission");
            return Response::error(404, "Not Found");
        }
        let mut r = Response::error(403, message);
        if let Some((what, level)) = permission {
            r.headers.push((
                "x-accepted-github-permissions".into(),
                format!("{what}={}", level.text()),
            ));
        }
        r
    }

    fn missing_scope(&mut self, scope: &str) -> Response {
        let mut r = self.missing("Must have admin rights to Repository.", None);
        r.headers
            .push(("x-accepted-oauth-scopes".into(), scope.into()));
        r
    }
}
