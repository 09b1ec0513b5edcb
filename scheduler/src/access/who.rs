//! Who calls, from where, with what: known to handlers and to the audit log.

use std::{net::IpAddr, sync::Arc};

use http::HeaderValue;
use scheduler_core::model::UtcMillis;
use scheduler_identity::role::{Role, Scope};
use scheduler_store::AuditEntry;
use tonic::{Code, Request, Status};

use super::denials::Denials;
use crate::{api::errors, clock::utc};

/// Characters kept of what a caller says of itself.
const SAID: usize = 64;

/// What kind of caller it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Holds a bearer token.
    Token,
    /// Nobody knows.
    Anonymous,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Anonymous => "anonymous",
        }
    }
}

/// Whose call it is and what they may.
#[derive(Clone, Debug)]
pub struct Principal {
    pub kind: Kind,
    /// The token's name; empty when nobody knows.
    pub name: String,
    /// The token's public id.
    pub credential: String,
    /// `None`: only what is open.
    pub role: Option<Role>,
    pub scope: Scope,
    pub expires_at: Option<UtcMillis>,
}

impl Principal {
    pub(super) fn anonymous() -> Self {
        Self {
            kind: Kind::Anonymous,
            name: String::new(),
            credential: String::new(),
            role: None,
            scope: Scope::Fleet,
            expires_at: None,
        }
    }
}

/// One call's caller. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Who {
    pub principal: Arc<Principal>,
    call: Arc<str>,
    address: Option<IpAddr>,
    agent: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
    denials: Denials,
}

impl Who {
    pub(super) fn new(
        principal: Arc<Principal>,
        call: Arc<str>,
        address: Option<IpAddr>,
        headers: &http::HeaderMap,
        denials: Denials,
    ) -> Self {
        // A browser's grpc-web says what it is in a header of its own.
        let agent = headers
            .get("x-user-agent")
            .or_else(|| headers.get(http::header::USER_AGENT));
        Self {
            principal,
            call,
            address,
            agent: agent.cloned(),
            traceparent: headers.get("traceparent").cloned(),
            denials,
        }
    }

    /// The caller of a request that came through the layer. One that did not is refused.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let who = request.extensions().get::<Self>().cloned();
        who.ok_or_else(|| {
            errors::status(
                Code::Unauthenticated,
                "no_caller",
                "nobody looked who calls",
                "this is a fault of the scheduler: report it",
            )
        })
    }

    /// A caller with this credential that may everything.
    #[cfg(test)]
    pub(crate) fn for_test(credential: &str) -> Self {
        let principal = Principal {
            kind: Kind::Token,
            name: "test".to_owned(),
            credential: credential.to_owned(),
            role: Some(Role::Admin),
            scope: Scope::Fleet,
            expires_at: None,
        };
        let (denials, _) = super::denials::denials();
        Self::new(
            Arc::new(principal),
            "test".into(),
            None,
            &http::HeaderMap::new(),
            denials,
        )
    }

    /// Whose jobs, runners and queues it may see and touch.
    pub fn scope(&self) -> &Scope {
        &self.principal.scope
    }

    /// The scope as a filter of the store's lists; `None`: everything.
    pub fn within(&self) -> Option<String> {
        (!self.scope().is_fleet()).then(|| self.scope().to_string())
    }

    /// What goes into the audit log when the call changed something.
    pub fn entry(&self, subject: &str, request_id: &str) -> AuditEntry {
        AuditEntry {
            at: utc(),
            actor: self.principal.name.clone(),
            kind: self.principal.kind.as_str().to_owned(),
            credential: self.principal.credential.clone(),
            action: self.call.to_string(),
            subject: cut(subject),
            address: self.address.map(|ip| ip.to_string()).unwrap_or_default(),
            surface: surface(self.agent.as_ref()),
            outcome: "ok".to_owned(),
            detail: String::new(),
            request_id: cut(request_id),
            trace: trace(self.traceparent.as_ref()),
        }
    }

    /// Writes down that this caller was not let at something.
    pub fn denied(&self, subject: &str, reason: &str) {
        self.denials.record(AuditEntry {
            outcome: "denied".to_owned(),
            detail: cut(reason),
            ..self.entry(subject, "")
        });
    }

    /// Whether `owner/name` is within its scope; when not, that it asked is written down.
    pub fn reaches(&self, repository: &str) -> bool {
        let covered = self.scope().covers(repository);
        if !covered {
            self.denied(repository, "out_of_scope");
        }
        covered
    }
}

/// At most so much, without control characters: it comes from outside.
fn cut(text: &str) -> String {
    let printable = text.chars().filter(|letter| !letter.is_control());
    printable.take(SAID * 2).collect()
}

/// Family of the caller's program: the first word of its user agent without the version.
fn surface(agent: Option<&HeaderValue>) -> String {
    let text = agent.and_then(|agent| agent.to_str().ok()).unwrap_or("");
    let word = text.split([' ', '/']).next().unwrap_or("");
    match word {
        "Mozilla" => "browser".to_owned(),
        word => word.chars().take(SAID).collect(),
    }
}

/// The trace id of a W3C `traceparent`.
fn trace(traceparent: Option<&HeaderValue>) -> String {
    let text = traceparent.and_then(|value| value.to_str().ok());
    let id = text.and_then(|text| text.split('-').nth(1)).unwrap_or("");
    let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if is_id {
        id.to_lowercase()
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_says_of_itself_is_cut_to_its_family() {
        for (agent, family) in [
            ("longshore-cli/0.1.0 tonic/0.14", "longshore-cli"),
            ("grpc-python/1.62 grpc-c/39 (linux)", "grpc-python"),
            ("Mozilla/5.0 (X11; Linux x86_64)", "browser"),
            ("", ""),
        ] {
            let value = HeaderValue::from_static(agent);
            assert_eq!(surface(Some(&value)), family);
        }
        let long = HeaderValue::from_str(&"x".repeat(9_000)).unwrap();
        assert_eq!(surface(Some(&long)).len(), SAID);
        assert_eq!(cut("a\nb\u{1b}[31m"), "ab[31m");
    }

    #[test]
    fn only_a_trace_id_is_taken_for_one() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = HeaderValue::from_str(&format!("00-{id}-00f067aa0ba902b7-01")).unwrap();
        assert_eq!(trace(Some(&good)), id);
        for wrong in ["", "00", "00-xyz-1-1", "00-4bf9-1-1"] {
            assert_eq!(trace(Some(&HeaderValue::from_static(wrong))), "");
        }
    }
}
