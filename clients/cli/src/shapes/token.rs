//! `token ...`, `whoami`.

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::time;
use crate::output::{Described, Listed, Page};

#[derive(Debug, Serialize)]
pub(crate) struct Token {
    pub(crate) id: String,
    name: String,
    role: String,
    scope: String,
    state: String,
    created_at: Option<String>,
    created_by: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
    revoked_at: Option<String>,
}

impl From<v1::Token> for Token {
    fn from(t: v1::Token) -> Token {
        Token {
            id: t.id,
            name: t.name,
            role: t.role,
            scope: t.scope,
            state: t.state,
            created_at: time(t.created_at.as_ref()),
            created_by: t.created_by,
            expires_at: time(t.expires_at.as_ref()),
            last_used_at: time(t.last_used_at.as_ref()),
            revoked_at: time(t.revoked_at.as_ref()),
        }
    }
}

fn whole(scope: &str) -> String {
    match scope {
        "" => "(fleet)".to_owned(),
        scope => scope.to_owned(),
    }
}

fn or_never(time: &Option<String>) -> String {
    time.clone().unwrap_or_else(|| "never".to_owned())
}

impl Listed for Token {
    const COLUMNS: &'static [&'static str] =
        &["NAME", "ROLE", "SCOPE", "STATE", "EXPIRES", "LAST USE"];
    const WIDE: &'static [&'static str] = &["ID", "CREATED", "BY"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.name.clone(),
            self.role.clone(),
            whole(&self.scope),
            self.state.clone(),
            or_never(&self.expires_at),
            or_never(&self.last_used_at),
        ]
    }

    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.id.clone(),
            self.created_at.clone().unwrap_or_default(),
            self.created_by.clone(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Described for Token {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        page.line("Name", self.name.clone());
        page.line("Id", self.id.clone());
        page.line("Role", self.role.clone());
        page.line("Scope", whole(&self.scope));
        page.line("State", self.state.clone());
        page.line("Expires", or_never(&self.expires_at));
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// `token create`: the one time that the token is seen.
#[derive(Serialize)]
pub(crate) struct Made {
    #[serde(flatten)]
    pub(crate) token: Token,
    /// Absent when it went into a file.
    #[serde(rename = "token", skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
}

impl Described for Made {
    fn describe(&self, page: &mut Page, now: Timestamp) {
        self.token.describe(page, now);
        if let Some(secret) = &self.secret {
            page.line("Token", secret.clone());
            page.sentence("It is shown this once; only its hash is kept.");
        }
        if let Some(file) = &self.file {
            page.line("File", file.clone());
        }
    }

    fn name(&self) -> String {
        Described::name(&self.token)
    }
}

/// `whoami`.
#[derive(Debug, Serialize)]
pub(crate) struct Me {
    name: String,
    kind: String,
    credential: String,
    role: String,
    scope: String,
    expires_at: Option<String>,
    fleet: String,
    version: String,
}

impl From<v1::WhoAmIResponse> for Me {
    fn from(me: v1::WhoAmIResponse) -> Me {
        Me {
            name: me.name,
            kind: me.kind,
            credential: me.credential,
            role: me.role,
            scope: me.scope,
            expires_at: time(me.expires_at.as_ref()),
            fleet: me.fleet,
            version: me.version,
        }
    }
}

impl Described for Me {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        page.line("Name", self.name.clone());
        page.line("Kind", self.kind.clone());
        page.line("Id", self.credential.clone());
        page.line("Role", self.role.clone());
        page.line("Scope", whole(&self.scope));
        page.line("Expires", or_never(&self.expires_at));
        page.line("Fleet", self.fleet.clone());
        page.line("Scheduler", self.version.clone());
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
