//! AdminService: who may join and call the fleet, and what they did.

mod audit;
mod tokens;

use std::{sync::Arc, time::Duration};

use longshore_proto::v1::{self, admin_service_server::AdminService};
use scheduler_identity::admission::{JoinToken, TTL};
use secrecy::ExposeSecret;
use tonic::{Request, Response, Status};

use super::{convert, enrolment, errors, report};
use crate::{
    access::Who,
    admission::{Admissions, Asking},
    clock::utc,
    ports::Store,
};

pub use audit::Audit;
pub use tokens::Tokens;

/// Life of a join token when nobody says otherwise.
const HOUR: Duration = Duration::from_secs(3_600);

/// The service. Cheap to clone.
pub struct Admins<S> {
    admissions: Arc<Admissions>,
    tokens: Arc<Tokens>,
    audit: Arc<Audit<S>>,
    fleet: Arc<str>,
}

impl<S> Clone for Admins<S> {
    fn clone(&self) -> Self {
        Self {
            admissions: Arc::clone(&self.admissions),
            tokens: Arc::clone(&self.tokens),
            audit: Arc::clone(&self.audit),
            fleet: Arc::clone(&self.fleet),
        }
    }
}

impl<S: Store> Admins<S> {
    pub fn new(admissions: Arc<Admissions>, tokens: Tokens, audit: Audit<S>, fleet: &str) -> Self {
        Self {
            admissions,
            tokens: Arc::new(tokens),
            audit: Arc::new(audit),
            fleet: fleet.into(),
        }
    }

    async fn make(
        &self,
        who: &Who,
        asked: &v1::CreateJoinTokenRequest,
    ) -> Result<v1::CreateJoinTokenResponse, Status> {
        let node = match asked.node.as_str() {
            "" => None,
            name => Some(report::node_name(name).map_err(|problem| {
                errors::invalid("node", problem, "name the node as its agent does")
            })?),
        };
        let life = match &asked.ttl {
            None => HOUR,
            Some(ttl) => convert::duration(ttl)
                .filter(|ttl| TTL.contains(ttl))
                .ok_or_else(|| {
                    errors::invalid("ttl", "it is not between 1 minute and 24 hours", "say 1h")
                })?,
        };
        let asking = asking(who, &asked.request_id);
        let node = node.map(|node| node.to_string());
        let (token, text) = self
            .admissions
            .create_token(node, life, &asking)
            .await
            .map_err(|denied| enrolment::denied_status(&denied))?;
        Ok(v1::CreateJoinTokenResponse {
            token: Some(shown(&token)),
            secret: text.expose_secret().to_owned(),
        })
    }
}

#[tonic::async_trait]
impl<S: Store> AdminService for Admins<S> {
    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let who = Who::of(&request)?;
        let principal = &who.principal;
        Ok(Response::new(v1::WhoAmIResponse {
            name: principal.name.clone(),
            kind: principal.kind.as_str().to_owned(),
            credential: principal.credential.clone(),
            role: principal
                .role
                .map(|role| role.to_string())
                .unwrap_or_default(),
            scope: principal.scope.to_string(),
            expires_at: principal.expires_at.map(convert::time),
            fleet: self.fleet.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let who = Who::of(&request)?;
        // Not answered twice by its request_id: the answer is kept nowhere.
        let made = self.tokens.create(&who, request.get_ref()).await?;
        Ok(Response::new(made))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        Ok(Response::new(self.tokens.list(request.get_ref())?))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let who = Who::of(&request)?;
        let revoked = self.tokens.revoke(&who, request.get_ref()).await?;
        Ok(Response::new(revoked))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        Ok(Response::new(self.audit.list(request.into_inner()).await?))
    }

    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        Ok(Response::new(self.audit.verify(request.get_ref()).await?))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let who = Who::of(&request)?;
        // As with CreateToken: the answer is kept nowhere.
        let made = self.make(&who, request.get_ref()).await?;
        Ok(Response::new(made))
    }

    async fn list_join_tokens(
        &self,
        _: Request<v1::ListJoinTokensRequest>,
    ) -> Result<Response<v1::ListJoinTokensResponse>, Status> {
        let tokens = self.admissions.tokens().iter().map(shown).collect();
        Ok(Response::new(v1::ListJoinTokensResponse { tokens }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<v1::RevokeJoinTokenRequest>,
    ) -> Result<Response<v1::RevokeJoinTokenResponse>, Status> {
        let who = Who::of(&request)?;
        let asked = request.into_inner();
        let revoked = self
            .admissions
            .revoke_token(&asked.id, &asking(&who, &asked.request_id))
            .await
            .map_err(|denied| enrolment::denied_status(&denied))?
            .ok_or_else(|| {
                let next = "`longshore node join-token --list` shows their ids";
                errors::not_found("join_token", &asked.id, next)
            })?;
        Ok(Response::new(v1::RevokeJoinTokenResponse {
            token: Some(shown(&revoked)),
        }))
    }
}

fn asking(who: &Who, request_id: &str) -> Asking {
    Asking {
        who: who.entry("", request_id),
        now: utc(),
    }
}

fn shown(token: &JoinToken) -> v1::JoinToken {
    let used = token.used.as_ref();
    v1::JoinToken {
        id: token.id.clone(),
        node: token.node.clone().unwrap_or_default(),
        created_at: Some(convert::time(token.created_at)),
        expires_at: Some(convert::time(token.expires_at)),
        created_by: token.created_by.clone(),
        used_by: used.map(|used| used.node.clone()).unwrap_or_default(),
        used_at: used.map(|used| convert::time(used.at)),
        revoked_at: token.revoked_at.map(convert::time),
    }
}
