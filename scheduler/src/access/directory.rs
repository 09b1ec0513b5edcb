//! Every bearer token in memory: found by its id without a lock and without the disk.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use scheduler_core::model::UtcMillis;
use scheduler_identity::{
    bearer::{Presented, TokenHash},
    role::{Role, Scope},
};
use scheduler_store::{TokenChange, TokenRow};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::who::{Kind, Principal};
use crate::inbox::{Inbox, Request};

/// Tokens that are valid at once, at most.
pub const MOST: usize = 1_000;
/// Tokens that are over and still remembered, so that their holders hear why.
const OVER: usize = 1_000;
/// A token's last use is written at most this often.
const EVERY: u64 = 60_000;
/// Last uses that may wait to be written; more are written with the next use.
const WAITING: usize = MOST;
/// Uses of so much time are written together.
const GATHER: Duration = Duration::from_secs(2);

/// One token.
#[derive(Debug)]
pub struct Token {
    pub principal: Arc<Principal>,
    /// As stored, but for its last use.
    pub row: TokenRow,
    hash: TokenHash,
    /// UTC milliseconds; 0: never.
    used: AtomicU64,
}

impl Token {
    fn new(row: TokenRow, role: Role, scope: Scope) -> Self {
        let principal = Principal {
            kind: Kind::Token,
            name: row.name.clone(),
            credential: row.id.clone(),
            role: Some(role),
            scope,
            expires_at: row.expires_at,
        };
        Self {
            principal: Arc::new(principal),
            hash: TokenHash::from_bytes(row.hash),
            used: AtomicU64::new(row.last_used_at.unwrap_or(0)),
            row,
        }
    }

    /// When it was last used, as far as this process or an earlier one wrote it down.
    pub fn last_used(&self) -> Option<UtcMillis> {
        Some(self.used.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    pub fn is_live(&self, now: UtcMillis) -> bool {
        self.row.revoked_at.is_none() && !self.has_expired(now)
    }

    fn has_expired(&self, now: UtcMillis) -> bool {
        self.row.expires_at.is_some_and(|at| at <= now)
    }
}

/// What became of a presented token.
#[derive(Debug)]
pub enum Verdict {
    Valid(Arc<Token>),
    /// No such token, or its secret is wrong.
    Unknown,
    Expired(Arc<Token>),
    Revoked(Arc<Token>),
}

type Tokens = HashMap<String, Arc<Token>>;

/// All tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Directory {
    tokens: Arc<ArcSwap<Tokens>>,
    uses: mpsc::Sender<String>,
}

/// Where last uses come out, for [`write_uses`].
pub type Uses = mpsc::Receiver<String>;

impl Directory {
    /// What the store holds. A token of a role or scope that this release does not know opens nothing.
    pub fn new(rows: Vec<TokenRow>) -> (Self, Uses) {
        let (uses, taken) = mpsc::channel(WAITING);
        let directory = Self {
            tokens: Arc::default(),
            uses,
        };
        for row in rows {
            directory.put(row);
        }
        (directory, taken)
    }

    /// Who holds this token, if it is one of ours and still good.
    pub fn check(&self, presented: Presented<'_>, now: UtcMillis) -> Verdict {
        let tokens = self.tokens.load();
        let Some(token) = tokens.get(presented.id()) else {
            return Verdict::Unknown;
        };
        if !presented.matches(&token.hash) {
            return Verdict::Unknown;
        }
        let token = Arc::clone(token);
        if token.row.revoked_at.is_some() {
            return Verdict::Revoked(token);
        }
        if token.has_expired(now) {
            return Verdict::Expired(token);
        }
        self.used(&token, now);
        Verdict::Valid(token)
    }

    fn used(&self, token: &Token, now: UtcMillis) {
        let before = token.used.load(Ordering::Relaxed);
        if now < before.saturating_add(EVERY) {
            return;
        }
        let ours = token
            .used
            .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed);
        if ours.is_ok() {
            // Full: the next use in a minute says it again.
            let _ = self.uses.try_send(token.row.id.clone());
        }
    }

    /// Every token, oldest first.
    pub fn all(&self) -> Vec<Arc<Token>> {
        let mut all: Vec<_> = self.tokens.load().values().cloned().collect();
        all.sort_by(|a, b| (a.row.created_at, &a.row.id).cmp(&(b.row.created_at, &b.row.id)));
        all
    }

    pub fn get(&self, id: &str) -> Option<Arc<Token>> {
        self.tokens.load().get(id).cloned()
    }

    /// Takes in a token that is durable now.
    pub fn put(&self, row: TokenRow) {
        let (role, scope) = match (row.role.parse::<Role>(), row.scope.parse::<Scope>()) {
            (Ok(role), Ok(scope)) => (role, scope),
            (role, scope) => {
                tracing::warn!(
                    token = row.name,
                    id = row.id,
                    ?role,
                    ?scope,
                    "a stored token is not understood: it opens nothing"
                );
                return;
            }
        };
        let token = Arc::new(Token::new(row, role, scope));
        self.tokens.rcu(|tokens| {
            let mut tokens = Tokens::clone(tokens);
            tokens.insert(token.row.id.clone(), Arc::clone(&token));
            forget_oldest(&mut tokens, token.row.created_at);
            tokens
        });
    }

    /// Takes in what is durable now.
    pub fn change(&self, change: TokenChange) {
        match change {
            TokenChange::Made(row) => self.put(row),
            TokenChange::Revoked { id, at } => self.revoke(&id, at),
            TokenChange::Used { .. } => {}
        }
    }

    /// A token that is valid no more, durably.
    pub fn revoke(&self, id: &str, at: UtcMillis) {
        let Some(token) = self.get(id).filter(|token| token.row.revoked_at.is_none()) else {
            return;
        };
        self.put(TokenRow {
            revoked_at: Some(at),
            last_used_at: token.last_used(),
            ..token.row.clone()
        });
    }
}

/// Keeps what is over within its bound.
fn forget_oldest(tokens: &mut Tokens, now: UtcMillis) {
    let mut over: Vec<_> = tokens
        .values()
        .filter(|token| !token.is_live(now))
        .map(|token| (token.row.created_at, token.row.id.clone()))
        .collect();
    if over.len() <= OVER {
        return;
    }
    over.sort_unstable();
    for (_, id) in &over[..over.len() - OVER] {
        tokens.remove(id);
    }
}

/// Writes last uses down, several at once, until `stop`.
pub async fn write_uses(
    directory: Directory,
    mut uses: Uses,
    inbox: Inbox,
    stop: CancellationToken,
) {
    loop {
        let first = tokio::select! {
            id = uses.recv() => id,
            () = stop.cancelled() => None,
        };
        if first.is_some() {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = stop.cancelled() => {}
            }
        }
        let more = std::iter::from_fn(|| uses.try_recv().ok());
        let ids: Vec<String> = first.into_iter().chain(more).collect();
        let changes: Vec<TokenChange> = ids
            .into_iter()
            .filter_map(|id| {
                let at = directory.get(&id)?.last_used()?;
                Some(TokenChange::Used { id, at })
            })
            .collect();
        if !changes.is_empty() {
            let request = Request {
                tokens: changes,
                ..Request::default()
            };
            if inbox.post(request).await.is_err() {
                return;
            }
        }
        if stop.is_cancelled() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use scheduler_identity::bearer::{self, Minted};
    use secrecy::ExposeSecret;

    use super::*;

    fn row(minted: &Minted, name: &str) -> TokenRow {
        TokenRow {
            id: minted.id.clone(),
            name: name.to_owned(),
            hash: *minted.hash.as_bytes(),
            role: "viewer".to_owned(),
            scope: "acme".to_owned(),
            created_at: 1,
            created_by: "local".to_owned(),
            expires_at: Some(1_000_000),
            last_used_at: None,
            revoked_at: None,
        }
    }

    fn presented(minted: &Minted) -> Presented<'_> {
        Presented::parse(minted.token.expose_secret()).unwrap()
    }

    #[test]
    fn a_token_is_good_until_it_expires_or_is_revoked() {
        let (ours, strange) = (bearer::mint().unwrap(), bearer::mint().unwrap());
        let (directory, mut uses) = Directory::new(vec![row(&ours, "ci")]);
        let Verdict::Valid(token) = directory.check(presented(&ours), 999_999) else {
            panic!("valid");
        };
        assert_eq!(token.principal.role, Some(Role::Viewer));
        assert_eq!(token.principal.scope, Scope::Owner("acme".to_owned()));
        assert_eq!(uses.try_recv().ok(), Some(ours.id.clone()));
        let verdict = directory.check(presented(&ours), 1_000_000);
        assert!(matches!(verdict, Verdict::Expired(_)), "{verdict:?}");
        let verdict = directory.check(presented(&strange), 5);
        assert!(matches!(verdict, Verdict::Unknown), "{verdict:?}");
        directory.revoke(&ours.id, 7);
        let verdict = directory.check(presented(&ours), 8);
        assert!(matches!(verdict, Verdict::Revoked(_)), "{verdict:?}");
        // A secret that is wrong hears nothing of the token's state.
        let text = ours.token.expose_secret();
        let last = if text.ends_with('0') { "1" } else { "0" };
        let wrong = format!("{}{last}", &text[..text.len() - 1]);
        let verdict = directory.check(Presented::parse(&wrong).unwrap(), 8);
        assert!(matches!(verdict, Verdict::Unknown), "{verdict:?}");
    }

    #[test]
    fn uses_are_told_once_a_minute() {
        let ours = bearer::mint().unwrap();
        let (directory, mut uses) = Directory::new(vec![row(&ours, "ci")]);
        for now in (100_000..220_000).step_by(10) {
            directory.check(presented(&ours), now);
        }
        let told = std::iter::from_fn(|| uses.try_recv().ok()).count();
        assert_eq!(told, 2);
        assert_eq!(directory.all()[0].last_used(), Some(160_000));
    }

    #[test]
    fn a_role_of_a_newer_release_opens_nothing() {
        let ours = bearer::mint().unwrap();
        let newer = TokenRow {
            role: "emperor".to_owned(),
            ..row(&ours, "ci")
        };
        let (directory, _uses) = Directory::new(vec![newer]);
        let verdict = directory.check(presented(&ours), 5);
        assert!(matches!(verdict, Verdict::Unknown), "{verdict:?}");
    }

    #[test]
    fn what_is_over_is_remembered_within_a_bound() {
        let (directory, _uses) = Directory::new(Vec::new());
        let live = bearer::mint().unwrap();
        directory.put(row(&live, "live"));
        for n in 0..OVER as u64 + 20 {
            let minted = bearer::mint().unwrap();
            directory.put(TokenRow {
                created_at: 10 + n,
                revoked_at: Some(11 + n),
                ..row(&minted, "dead")
            });
        }
        assert_eq!(directory.all().len(), OVER + 1);
        assert!(directory.get(&live.id).is_some());
    }
}
