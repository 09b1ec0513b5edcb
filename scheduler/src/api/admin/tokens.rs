//! Bearer tokens: made, listed, revoked. The only place where a token's text leaves the scheduler.

use std::time::Duration;

use longshore_proto::v1;
use scheduler_core::model::UtcMillis;
use scheduler_identity::{
    bearer,
    role::{Role, Scope},
};
use scheduler_store::{TokenChange, TokenRow};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tonic::{Code, Status};

use crate::{
    access::{
        Directory, Who,
        directory::{MOST, Token},
    },
    api::{convert, errors, page},
    clock::utc,
    inbox::{Inbox, Request},
};

/// Life of a token when nobody says otherwise.
const LIFE: Duration = Duration::from_secs(90 * 86_400);
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3_650 * 86_400);
/// Characters of a name.
const NAME: usize = 100;
/// Longest wait for a commit.
const COMMIT: Duration = Duration::from_secs(10);

/// Tokens as AdminService handles them.
#[derive(Debug)]
pub struct Tokens {
    directory: Directory,
    inbox: Inbox,
    /// One change at a time, so that names stay unique and the bound holds.
    changing: Mutex<()>,
}

impl Tokens {
    pub fn new(directory: Directory, inbox: Inbox) -> Self {
        Self {
            directory,
            inbox,
            changing: Mutex::new(()),
        }
    }

    /// Makes a token; the answer is the only place its text ever stands.
    pub(super) async fn create(
        &self,
        who: &Who,
        asked: &v1::CreateTokenRequest,
    ) -> Result<v1::CreateTokenResponse, Status> {
        let now = utc();
        let (role, scope) = allowed(asked)?;
        let name = name(&asked.name)?;
        let expires_at = expiry(asked, now)?;
        let _turn = self.changing.lock().await;
        let live: Vec<_> = self.directory.all();
        let live: Vec<_> = live.iter().filter(|token| token.is_live(now)).collect();
        if live.iter().any(|token| token.row.name == name) {
            return Err(errors::status(
                Code::AlreadyExists,
                "token_exists",
                &format!("a token is called `{name}` already"),
                "choose another name, or revoke that one first",
            ));
        }
        if live.len() >= MOST {
            return Err(errors::status(
                Code::ResourceExhausted,
                "too_many_tokens",
                &format!("{MOST} tokens are valid, which is the most there may be"),
                "revoke some: `longshore token list` shows when each was last used",
            ));
        }
        let minted = bearer::mint().map_err(|error| {
            tracing::error!(%error, "no token was made");
            errors::status(
                Code::Internal,
                "no_randomness",
                &error.to_string(),
                "see the scheduler's log",
            )
        })?;
        let row = TokenRow {
            id: minted.id,
            name: name.to_owned(),
            hash: *minted.hash.as_bytes(),
            role: role.as_str().to_owned(),
            scope: scope.to_string(),
            created_at: now,
            created_by: who.principal.name.clone(),
            expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        let subject = format!("{name} ({})", row.id);
        let change = TokenChange::Made(row.clone());
        self.commit(who, &subject, &asked.request_id, change)
            .await?;
        let id = row.id.clone();
        self.directory.put(row);
        let made = self.directory.get(&id).ok_or_else(errors::stopping)?;
        Ok(v1::CreateTokenResponse {
            token: Some(shown(&made, now)),
            secret: minted.token.expose_secret().to_owned(),
        })
    }

    pub(super) fn list(
        &self,
        asked: &v1::ListTokensRequest,
    ) -> Result<v1::ListTokensResponse, Status> {
        let now = utc();
        let mut tokens = self.directory.all();
        tokens.retain(|token| asked.include_over || token.is_live(now));
        let key = |token: &&std::sync::Arc<Token>| {
            format!("{:020}-{}", token.row.created_at, token.row.id)
        };
        let (tokens, next_page_token) =
            page::cut(tokens.iter(), key, asked.page_size, &asked.page_token)?;
        Ok(v1::ListTokensResponse {
            tokens: tokens.into_iter().map(|token| shown(token, now)).collect(),
            next_page_token,
        })
    }

    /// Ends a token, found by its id or by the name it has while it is valid.
    pub(super) async fn revoke(
        &self,
        who: &Who,
        asked: &v1::RevokeTokenRequest,
    ) -> Result<v1::RevokeTokenResponse, Status> {
        let now = utc();
        let _turn = self.changing.lock().await;
        let all = self.directory.all();
        let by_id = all.iter().find(|token| token.row.id == asked.token);
        let by_name = || {
            let mut live = all.iter().filter(|token| token.is_live(now));
            live.find(|token| token.row.name == asked.token)
        };
        let token = by_id.or_else(by_name).ok_or_else(|| {
            errors::not_found(
                "token",
                asked
                    .token
                    .chars()
                    .take(NAME)
                    .collect::<String>()
                    .escape_debug(),
                "`longshore token list` shows names and ids",
            )
        })?;
        let id = token.row.id.clone();
        if token.row.revoked_at.is_none() {
            let subject = format!("{} ({id})", token.row.name);
            let change = TokenChange::Revoked {
                id: id.clone(),
                at: now,
            };
            self.commit(who, &subject, &asked.request_id, change)
                .await?;
            self.directory.revoke(&id, now);
        }
        let revoked = self.directory.get(&id).ok_or_else(errors::stopping)?;
        Ok(v1::RevokeTokenResponse {
            token: Some(shown(&revoked, now)),
        })
    }

    async fn commit(
        &self,
        who: &Who,
        subject: &str,
        request_id: &str,
        change: TokenChange,
    ) -> Result<(), Status> {
        let request = Request {
            audit: vec![who.entry(subject, request_id)],
            tokens: vec![change],
            ..Request::default()
        };
        match tokio::time::timeout(COMMIT, self.inbox.submit(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(errors::stopping()),
            Err(_) => Err(errors::status(
                Code::Unavailable,
                "store_slow",
                "the store did not take the change in time; it may still do so",
                "look at `longshore token list` before asking again",
            )),
        }
    }
}

/// Role and scope that go together.
fn allowed(asked: &v1::CreateTokenRequest) -> Result<(Role, Scope), Status> {
    let role: Role = asked.role.parse().map_err(|problem| {
        errors::invalid(
            "role",
            problem,
            "viewer reads, operator runs, admin decides",
        )
    })?;
    let scope: Scope = asked
        .scope
        .parse()
        .map_err(|problem| errors::invalid("scope", problem, "leave it out for the whole fleet"))?;
    if !scope.is_fleet() && matches!(role, Role::Admin | Role::Scrape) {
        return Err(errors::invalid(
            "scope",
            format!("what {role} opens is about the whole fleet"),
            "use viewer or operator, or leave the scope out",
        ));
    }
    Ok((role, scope))
}

fn name(given: &str) -> Result<&str, Status> {
    let is_plain = |letter: char| letter.is_ascii_graphic() || letter == ' ';
    let fits = !given.is_empty() && given.len() <= NAME && given.trim() == given;
    if !fits || !given.chars().all(is_plain) || given.starts_with(bearer::PREFIX) {
        return Err(errors::invalid(
            "name",
            format!("it has to be of 1 to {NAME} plain characters"),
            "name whoever will hold the token, such as ci-dashboard",
        ));
    }
    Ok(given)
}

fn expiry(asked: &v1::CreateTokenRequest, now: UtcMillis) -> Result<Option<UtcMillis>, Status> {
    let wrong =
        |problem: &str| errors::invalid("ttl", problem, "say 2160h, or leave it out for 90 days");
    let life = match (&asked.ttl, asked.no_expiry) {
        (None, true) => return Ok(None),
        (Some(_), true) => return Err(wrong("it stands beside no_expiry")),
        (None, false) => LIFE,
        (Some(ttl), false) => convert::duration(ttl)
            .filter(|life| (SHORTEST..=LONGEST).contains(life))
            .ok_or_else(|| wrong("it is not between 1 minute and 10 years"))?,
    };
    Ok(Some(now + life.as_millis() as u64))
}

fn shown(token: &Token, now: UtcMillis) -> v1::Token {
    let row = &token.row;
    let state = match row.revoked_at {
        Some(_) => "revoked",
        None if token.is_live(now) => "valid",
        None => "expired",
    };
    v1::Token {
        id: row.id.clone(),
        name: row.name.clone(),
        role: row.role.clone(),
        scope: row.scope.clone(),
        state: state.to_owned(),
        created_at: Some(convert::time(row.created_at)),
        created_by: row.created_by.clone(),
        expires_at: row.expires_at.map(convert::time),
        last_used_at: token.last_used().map(convert::time),
        revoked_at: row.revoked_at.map(convert::time),
    }
}
