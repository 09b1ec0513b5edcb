//! AdminService: who may join and call the fleet.

use std::{sync::Arc, time::Duration};

use longshore_proto::v1::{self, admin_service_server::AdminService};
use scheduler_identity::admission::{JoinToken, TTL};
use scheduler_store::AuditEntry;
use secrecy::ExposeSecret;
use tonic::{Request, Response, Status};

use super::{convert, enrolment, errors, idempotency::Answers, report};
use crate::{
    admission::{Admissions, Asking},
    clock::utc,
};

/// Life of a join token when nobody says otherwise.
const HOUR: Duration = Duration::from_secs(3_600);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Admins {
    pub admissions: Arc<Admissions>,
    answers: Arc<Answers>,
}

impl Admins {
    pub fn new(admissions: Arc<Admissions>) -> Self {
        Self {
            admissions,
            answers: Arc::default(),
        }
    }

    async fn make(
        &self,
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
        let asking = asking(&asked.request_id);
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
impl AdminService for Admins {
    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let asked = request.into_inner();
        let (id, work) = (&asked.request_id, self.make(&asked));
        let answer = self.answers.once("CreateJoinToken", id, &asked, work);
        answer.await.map(Response::new)
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
        let asked = request.into_inner();
        let revoked = self
            .admissions
            .revoke_token(&asked.id, &asking(&asked.request_id))
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

fn asking(request_id: &str) -> Asking {
    Asking {
        who: AuditEntry {
            actor: "local".to_owned(),
            request_id: request_id.to_owned(),
            ..AuditEntry::default()
        },
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
