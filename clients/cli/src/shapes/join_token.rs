//! `node join-token`.

use jiff::Timestamp;
use longshore_proto::v1;
use serde::Serialize;

use super::{none_if_empty, time};
use crate::output::{Described, Listed, Page};

/// A join token as the scheduler remembers it.
#[derive(Debug, Serialize)]
pub(crate) struct JoinToken {
    pub(crate) id: String,
    /// The only name it admits.
    node: Option<String>,
    state: &'static str,
    created_at: Option<String>,
    expires_at: Option<String>,
    created_by: String,
    used_by: Option<String>,
    used_at: Option<String>,
}

impl JoinToken {
    pub(crate) fn new(token: v1::JoinToken, now: Timestamp) -> JoinToken {
        let expires = token.expires_at.as_ref().and_then(crate::units::timestamp);
        let state = match () {
            () if token.revoked_at.is_some() => "revoked",
            () if token.used_at.is_some() => "used",
            () if expires.is_none_or(|end| end <= now) => "expired",
            () => "open",
        };
        JoinToken {
            state,
            node: none_if_empty(token.node),
            created_at: time(token.created_at.as_ref()),
            expires_at: time(token.expires_at.as_ref()),
            used_by: none_if_empty(token.used_by),
            used_at: time(token.used_at.as_ref()),
            created_by: token.created_by,
            id: token.id,
        }
    }

    fn of(value: &Option<String>) -> String {
        value.clone().unwrap_or_else(|| "-".into())
    }
}

impl Listed for JoinToken {
    const COLUMNS: &'static [&'static str] = &["ID", "STATE", "NODE", "EXPIRES", "USED BY"];
    const WIDE: &'static [&'static str] = &["CREATED", "CREATED BY", "USED"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.id.clone(),
            self.state.into(),
            Self::of(&self.node),
            Self::of(&self.expires_at),
            Self::of(&self.used_by),
        ]
    }

    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            Self::of(&self.created_at),
            self.created_by.clone(),
            Self::of(&self.used_at),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

impl Described for JoinToken {
    fn describe(&self, page: &mut Page, _now: Timestamp) {
        page.line("Id", &self.id);
        page.line("State", self.state);
        page.line("Node", Self::of(&self.node));
        page.line("Expires", Self::of(&self.expires_at));
        page.line("Used by", self.used_by.clone().unwrap_or_default());
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

/// A fresh one, the only time that its secret is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Fresh {
    #[serde(flatten)]
    pub(crate) kept: JoinToken,
    pub(crate) token: String,
}
