//! Who is a node: the authority, join tokens and certificates, and their commits.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use longshore_proto::join_token::JoinToken as Text;
use scheduler_core::model::UtcMillis;
use scheduler_identity::{
    admission::{Admissions as State, JoinToken, Record, Refusal},
    authority::{Authority, AuthorityError, Issued, NodeCertificate, public_key},
};
use scheduler_store::{AuditEntry, Error as StoreError, RecordChange, Store};
use secrecy::SecretString;

use crate::inbox::{Inbox, Request, Stopped};

const TOKEN: &str = "join_token";
const CERTIFICATE: &str = "certificate";
/// What ran out is remembered so long, so that whoever shows it is told why.
const REMEMBERED: UtcMillis = 7 * 24 * 3_600_000;

/// Join tokens and certificates, the authority that signs, and the way to the store.
#[derive(Debug)]
pub struct Admissions {
    pub authority: Arc<Authority>,
    state: Mutex<State>,
    inbox: Inbox,
    denials: Mutex<Denials>,
    /// Life of a node's certificate.
    life: Duration,
}

/// Why somebody was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Request(#[from] AuthorityError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Who asks: what the audit log keeps of a caller.
#[derive(Clone, Debug)]
pub struct Asking {
    /// Everything but what was done, to what, and how it ended.
    pub who: AuditEntry,
    pub now: UtcMillis,
}

/// Denials that the audit log takes in a minute; the rest is counted. Strangers reach this
/// listener, and must not fill the disk.
const DENIALS: u32 = 60;
const MINUTE: UtcMillis = 60_000;

/// Denials of the minute that began at `since`.
#[derive(Debug, Default)]
struct Denials {
    since: UtcMillis,
    taken: u32,
    left_out: u32,
}

impl Admissions {
    /// What the store kept.
    pub async fn load(store: &impl Store) -> Result<State, StoreError> {
        let mut records = Vec::new();
        for (_, value) in store.records(TOKEN).await? {
            records.extend(read(TOKEN, &value).map(Record::Token));
        }
        for (_, value) in store.records(CERTIFICATE).await? {
            records.extend(read(CERTIFICATE, &value).map(Record::Certificate));
        }
        Ok(State::load(records))
    }

    pub fn new(authority: Arc<Authority>, state: State, inbox: Inbox, life: Duration) -> Self {
        Self {
            authority,
            state: Mutex::new(state),
            inbox,
            denials: Mutex::default(),
            life,
        }
    }

    /// Makes a join token: what is kept, and the text for the agent.
    pub async fn create_token(
        &self,
        node: Option<String>,
        life: Duration,
        asking: &Asking,
    ) -> Result<(JoinToken, SecretString), Denied> {
        let (token, secret) = self
            .state()
            .create(node, life, &asking.who.actor, asking.now)?;
        let text = Text {
            id: token.id.clone(),
            secret,
            authority: self.authority.fingerprint(),
        };
        let subject = format!("join token {}", token.id);
        let records = vec![Record::Token(token.clone())];
        self.commit(records, asking, "AdminService/CreateJoinToken", subject)
            .await?;
        Ok((token, text.text().into()))
    }

    /// Join tokens, newest first.
    pub fn tokens(&self) -> Vec<JoinToken> {
        self.state().tokens()
    }

    /// Ends a join token; `None`: there is none.
    pub async fn revoke_token(
        &self,
        id: &str,
        asking: &Asking,
    ) -> Result<Option<JoinToken>, Denied> {
        let revoked = self.state().revoke_token(id, asking.now);
        if let Some(token) = &revoked {
            let subject = format!("join token {id}");
            let records = vec![Record::Token(token.clone())];
            self.commit(records, asking, "AdminService/RevokeJoinToken", subject)
                .await?;
        }
        Ok(revoked)
    }

    /// Admits a host by its token and request for a certificate.
    pub async fn enroll(
        &self,
        node: &str,
        token: &Text,
        csr_pem: &str,
        asking: &Asking,
    ) -> Result<Issued, Denied> {
        let now = asking.now;
        // First, so that a request that cannot be signed spends no token.
        let issued = self.authority.admit(csr_pem, node, now, self.life)?;
        let key = public_key(csr_pem)?;
        let records = {
            let mut state = self.state();
            let taken = state.take((&token.id, &token.secret), node, &key, now)?;
            let mut records = vec![taken];
            records.extend(state.issued(node, &issued, true, now));
            records
        };
        self.commit(
            records,
            asking,
            "NodeService/Enroll",
            format!("node {node}"),
        )
        .await?;
        Ok(issued)
    }

    /// A further certificate for a node that has one.
    pub async fn renew(
        &self,
        shown: &NodeCertificate,
        csr_pem: &str,
        asking: &Asking,
    ) -> Result<Issued, Denied> {
        let (node, now) = (&shown.node, asking.now);
        self.admits(shown, now)?;
        let issued = self.authority.admit(csr_pem, node, now, self.life)?;
        let records = self.state().issued(node, &issued, false, now);
        self.commit(records, asking, "NodeService/Renew", format!("node {node}"))
            .await?;
        Ok(issued)
    }

    /// Whether this certificate may open a stream.
    pub fn admits(&self, shown: &NodeCertificate, now: UtcMillis) -> Result<(), Refusal> {
        self.state().admits(shown, now)
    }

    /// Whether a stream that it opened may go on.
    pub fn stands(&self, shown: &NodeCertificate, now: UtcMillis) -> Result<(), Refusal> {
        self.state().stands(shown, now)
    }

    /// Revokes a node's certificates.
    pub async fn remove(&self, node: &str, now: UtcMillis) -> Result<(), Stopped> {
        let records = self.state().remove(node, now);
        self.keep(records.iter().map(change).collect()).await
    }

    /// Forgets what ran out long ago.
    pub async fn prune(&self, now: UtcMillis) -> Result<(), Stopped> {
        let (tokens, serials) = self.state().forget(now.saturating_sub(REMEMBERED));
        let gone = |kind: &'static str, key| RecordChange {
            kind,
            key,
            value: None,
        };
        let tokens = tokens.into_iter().map(|id| gone(TOKEN, id));
        let serials = serials.into_iter().map(|serial| gone(CERTIFICATE, serial));
        let records: Vec<_> = tokens.chain(serials).collect();
        self.keep(records).await
    }

    async fn keep(&self, records: Vec<RecordChange>) -> Result<(), Stopped> {
        if records.is_empty() {
            return Ok(());
        }
        let request = Request {
            records,
            ..Request::default()
        };
        self.inbox.submit(request).await.map(drop)
    }

    /// Notes that somebody was refused. Never waits for the disk.
    pub async fn denied(&self, asking: &Asking, action: &str, subject: String, why: String) {
        let left_out = {
            let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
            if asking.now.saturating_sub(denials.since) >= MINUTE {
                denials.since = asking.now;
                denials.taken = 0;
            }
            if denials.taken >= DENIALS {
                denials.left_out += 1;
                return;
            }
            denials.taken += 1;
            std::mem::take(&mut denials.left_out)
        };
        let detail = match left_out {
            0 => why,
            more => format!("{why}; {more} denials before it were left out"),
        };
        let request = Request {
            audit: vec![AuditEntry {
                at: asking.now,
                action: action.to_owned(),
                subject,
                outcome: "denied".to_owned(),
                detail,
                ..asking.who.clone()
            }],
            ..Request::default()
        };
        // Refused only when the driver is gone.
        let _ = self.inbox.post(request).await;
    }

    async fn commit(
        &self,
        records: Vec<Record>,
        asking: &Asking,
        action: &str,
        subject: String,
    ) -> Result<(), Stopped> {
        let request = Request {
            records: records.iter().map(change).collect(),
            audit: vec![AuditEntry {
                at: asking.now,
                action: action.to_owned(),
                subject,
                outcome: "ok".to_owned(),
                ..asking.who.clone()
            }],
            ..Request::default()
        };
        self.inbox.submit(request).await.map(drop)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T: serde::de::DeserializeOwned>(kind: &str, value: &str) -> Option<T> {
    let read = serde_json::from_str(value);
    read.inspect_err(
        |error| tracing::warn!(kind, %error, "a record is not understood and does not count"),
    )
    .ok()
}

fn change(record: &Record) -> RecordChange {
    let (kind, key, value) = match record {
        Record::Token(token) => (TOKEN, &token.id, serde_json::to_string(token)),
        Record::Certificate(certificate) => (
            CERTIFICATE,
            &certificate.serial,
            serde_json::to_string(certificate),
        ),
    };
    RecordChange {
        kind,
        key: key.clone(),
        value: Some(value.expect("strings and numbers are JSON")),
    }
}
