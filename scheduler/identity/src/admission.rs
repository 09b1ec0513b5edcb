//! Which hosts are nodes: join tokens, and certificates that are in force.
//!
//! A certificate counts only while its record is here: whoever holds another one of the
//! same authority gets nothing.

use std::{collections::BTreeMap, time::Duration};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use serde::{Deserialize, Serialize};

use crate::{
    authority::{Issued, NodeCertificate, UtcMillis},
    random::random,
};

/// Join tokens remembered at once; used and expired ones make room.
const TOKENS: usize = 1_000;
/// Certificates of one node that count at once; a newer one ends the oldest.
const CERTIFICATES: usize = 4;
/// Bounds of a join token's life.
pub const TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(24 * 3_600);

/// A join token as it is kept: without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: String,
    /// SHA-256 of the secret, hexadecimal.
    hash: String,
    /// The only name it admits; `None`: any that no node has.
    pub node: Option<String>,
    pub created_at: UtcMillis,
    pub expires_at: UtcMillis,
    pub created_by: String,
    pub used: Option<Used>,
    pub revoked_at: Option<UtcMillis>,
}

/// Whom a join token admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    pub at: UtcMillis,
    pub node: String,
    /// SHA-256 of the certificate request's public key, hexadecimal.
    key: String,
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub serial: String,
    pub node: String,
    pub issued_at: UtcMillis,
    pub not_after: UtcMillis,
    pub revoked_at: Option<UtcMillis>,
}

/// A record to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Token(JoinToken),
    Certificate(Certificate),
}

/// Why a host is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the scheduler knows no such join token")]
    UnknownToken,
    #[error("the join token ran out")]
    ExpiredToken,
    #[error("the join token admitted node {0} already: it is good for one")]
    UsedToken(String),
    #[error("the join token was revoked")]
    RevokedToken,
    #[error("the join token is for node {0} and no other")]
    OtherNode(String),
    #[error("there is a node {0} already, and the join token does not name it")]
    NameTaken(String),
    #[error("the certificate of node {0} was revoked")]
    Revoked(String),
    #[error("the scheduler did not issue this certificate of node {0}, or forgot it")]
    Unknown(String),
    #[error("the certificate of node {0} ran out")]
    Expired(String),
    #[error("there are {TOKENS} join tokens that nobody used; revoke some first")]
    TooManyTokens,
}

impl Refusal {
    /// A word for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownToken => "join_token_unknown",
            Self::ExpiredToken => "join_token_expired",
            Self::UsedToken(_) => "join_token_used",
            Self::RevokedToken => "join_token_revoked",
            Self::OtherNode(_) => "join_token_other_node",
            Self::NameTaken(_) => "node_name_taken",
            Self::Revoked(_) => "certificate_revoked",
            Self::Unknown(_) => "certificate_unknown",
            Self::Expired(_) => "certificate_expired",
            Self::TooManyTokens => "too_many_join_tokens",
        }
    }

    /// What to do.
    pub fn next_step(&self) -> String {
        match self {
            Self::NameTaken(node)
            | Self::Revoked(node)
            | Self::Unknown(node)
            | Self::Expired(node) => {
                format!("join again with the token of `longshore node join-token --node {node}`")
            }
            Self::OtherNode(node) => format!("start the agent with `--node {node}`"),
            Self::TooManyTokens => "`longshore node join-token --list` shows them".to_owned(),
            _ => "`longshore node join-token` makes a new one".to_owned(),
        }
    }
}

/// Every join token and certificate that counts. Changes come back as records to keep.
#[derive(Debug, Default)]
pub struct Admissions {
    tokens: BTreeMap<String, JoinToken>,
    /// By node, in the order of their issue.
    nodes: BTreeMap<String, Vec<Certificate>>,
}

impl Admissions {
    /// From what was kept: of records with the same id or serial the last counts.
    pub fn load(records: impl IntoIterator<Item = Record>) -> Self {
        let mut all = Self::default();
        let mut certificates = BTreeMap::new();
        for record in records {
            match record {
                Record::Token(token) => drop(all.tokens.insert(token.id.clone(), token)),
                Record::Certificate(certificate) => {
                    certificates.insert(certificate.serial.clone(), certificate);
                }
            }
        }
        let mut certificates: Vec<_> = certificates.into_values().collect();
        certificates.sort_by_key(|certificate| certificate.issued_at);
        for certificate in certificates {
            let node = all.nodes.entry(certificate.node.clone()).or_default();
            node.push(certificate);
        }
        all
    }

    /// A new join token and its secret in the clear.
    pub fn create(
        &mut self,
        node: Option<String>,
        life: Duration,
        created_by: &str,
        now: UtcMillis,
    ) -> Result<(JoinToken, String), Refusal> {
        if self.tokens.len() >= TOKENS {
            return Err(Refusal::TooManyTokens);
        }
        let secret = hex::encode(random::<32>());
        let life = life.clamp(*TTL.start(), *TTL.end());
        let token = JoinToken {
            id: hex::encode(random::<8>()),
            hash: hash(secret.as_bytes()),
            node,
            created_at: now,
            expires_at: now + u64::try_from(life.as_millis()).unwrap_or(u64::MAX),
            created_by: created_by.to_owned(),
            used: None,
            revoked_at: None,
        };
        self.tokens.insert(token.id.clone(), token.clone());
        Ok((token, secret))
    }

    /// Join tokens, newest first.
    pub fn tokens(&self) -> Vec<JoinToken> {
        let mut tokens: Vec<_> = self.tokens.values().cloned().collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.created_at));
        tokens
    }

    /// Ends a join token. `None`: there is none with this id.
    pub fn revoke_token(&mut self, id: &str, now: UtcMillis) -> Option<JoinToken> {
        let token = self.tokens.get_mut(id)?;
        token.revoked_at.get_or_insert(now);
        Some(token.clone())
    }

    /// Takes a join token for a node whose request has this public key. The same token and
    /// key are taken again: an answer can get lost.
    pub fn take(
        &mut self,
        (id, secret): (&str, &str),
        node: &str,
        public_key: &[u8],
        now: UtcMillis,
    ) -> Result<Record, Refusal> {
        let taken = self.is_taken(node, now);
        let token = self.tokens.get_mut(id).ok_or(Refusal::UnknownToken)?;
        let given = hash(secret.as_bytes());
        verify_slices_are_equal(given.as_bytes(), token.hash.as_bytes())
            .map_err(|_| Refusal::UnknownToken)?;
        if token.revoked_at.is_some() {
            return Err(Refusal::RevokedToken);
        }
        if now >= token.expires_at {
            return Err(Refusal::ExpiredToken);
        }
        let key = hash(public_key);
        match &token.used {
            Some(used) if used.key == key && used.node == node => {}
            Some(used) => return Err(Refusal::UsedToken(used.node.clone())),
            None => match &token.node {
                Some(only) if only != node => return Err(Refusal::OtherNode(only.clone())),
                None if taken => return Err(Refusal::NameTaken(node.to_owned())),
                _ => {}
            },
        }
        let node = node.to_owned();
        token.used = Some(Used { at: now, node, key });
        Ok(Record::Token(token.clone()))
    }

    /// A node of this name has a certificate that counts.
    pub fn is_taken(&self, node: &str, now: UtcMillis) -> bool {
        let certificates = self.nodes.get(node).into_iter().flatten();
        certificates.into_iter().any(|c| c.counts(now))
    }

    /// Notes a certificate that was signed. With `alone` it ends the node's others, as a host
    /// that joins again does.
    pub fn issued(
        &mut self,
        node: &str,
        issued: &Issued,
        alone: bool,
        now: UtcMillis,
    ) -> Vec<Record> {
        let mut records = Vec::new();
        let all = self.nodes.entry(node.to_owned()).or_default();
        let keep = if alone { 0 } else { CERTIFICATES - 1 };
        let counting = all.iter().filter(|c| c.revoked_at.is_none()).count();
        let surplus = counting.saturating_sub(keep);
        let standing = all.iter_mut().filter(|c| c.revoked_at.is_none());
        for certificate in standing.take(surplus) {
            certificate.revoked_at = Some(now);
            records.push(Record::Certificate(certificate.clone()));
        }
        let certificate = Certificate {
            serial: issued.serial.clone(),
            node: node.to_owned(),
            issued_at: now,
            not_after: issued.not_after,
            revoked_at: None,
        };
        all.push(certificate.clone());
        records.push(Record::Certificate(certificate));
        records
    }

    /// Whether a certificate, whose chain holds, may open a stream.
    pub fn admits(&self, shown: &NodeCertificate, now: UtcMillis) -> Result<(), Refusal> {
        let node = || shown.node.clone();
        let all = self.nodes.get(&shown.node).into_iter().flatten();
        let mut same = all.filter(|certificate| certificate.serial == shown.serial);
        match same.next() {
            None => Err(Refusal::Unknown(node())),
            Some(certificate) if certificate.revoked_at.is_some() => Err(Refusal::Revoked(node())),
            Some(certificate) if now >= certificate.not_after => Err(Refusal::Expired(node())),
            Some(_) => Ok(()),
        }
    }

    /// Whether a stream that this certificate opened may go on: while it is not revoked and
    /// the node has one that counts, renewed meanwhile or not.
    pub fn stands(&self, shown: &NodeCertificate, now: UtcMillis) -> Result<(), Refusal> {
        match self.admits(shown, now) {
            Err(Refusal::Expired(_)) if self.is_taken(&shown.node, now) => Ok(()),
            answer => answer,
        }
    }

    /// The node is gone: none of its certificates counts any more.
    pub fn remove(&mut self, node: &str, now: UtcMillis) -> Vec<Record> {
        let certificates = self.nodes.get_mut(node).into_iter().flatten();
        certificates
            .filter(|certificate| certificate.revoked_at.is_none())
            .map(|certificate| {
                certificate.revoked_at = Some(now);
                Record::Certificate(certificate.clone())
            })
            .collect()
    }

    /// Forgets what ran out before `before`: ids of tokens, serials of certificates.
    pub fn forget(&mut self, before: UtcMillis) -> (Vec<String>, Vec<String>) {
        let mut tokens = Vec::new();
        self.tokens.retain(|id, token| {
            let keep = token.expires_at >= before;
            if !keep {
                tokens.push(id.clone());
            }
            keep
        });
        let mut serials = Vec::new();
        self.nodes.retain(|_, certificates| {
            certificates.retain(|certificate| {
                let keep = certificate.not_after >= before;
                if !keep {
                    serials.push(certificate.serial.clone());
                }
                keep
            });
            !certificates.is_empty()
        });
        (tokens, serials)
    }
}

impl Certificate {
    fn counts(&self, now: UtcMillis) -> bool {
        self.revoked_at.is_none() && now < self.not_after
    }
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

#[cfg(test)]
mod tests;
