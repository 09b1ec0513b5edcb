//! How a host becomes a node, stays one, and is told why not.

use longshore_proto::{
    join_token::JoinToken,
    v1::{EnrollRequest, EnrollResponse, RenewRequest, RenewResponse},
};
use scheduler_identity::{admission::Refusal, authority::NodeCertificate};
use scheduler_store::AuditEntry;
use tonic::{Code, Extensions, Request, Response, Status};

use super::{convert, errors, report};
use crate::{
    admission::{Admissions, Asking, Denied},
    clock::utc,
    serve::Caller,
};

pub(super) async fn enroll(
    admissions: &Admissions,
    request: Request<EnrollRequest>,
) -> Result<Response<EnrollResponse>, Status> {
    let address = address(request.extensions());
    let asked = request.into_inner();
    let node = report::node_name(&asked.node)
        .map_err(|problem| errors::invalid("node", problem, "rename it with --node"))?;
    let token: JoinToken = asked
        .join_token
        .parse()
        .map_err(|problem| errors::invalid("join_token", problem, "copy the whole token again"))?;
    let asking = Asking {
        who: AuditEntry {
            actor: node.to_string(),
            kind: "join_token".to_owned(),
            credential: token.id.clone(),
            address: address.clone(),
            surface: "longshore-agent".to_owned(),
            ..AuditEntry::default()
        },
        now: utc(),
    };
    let issued = admissions
        .enroll(node.as_str(), &token, &asked.csr_pem, &asking)
        .await;
    let issued = match issued {
        Ok(issued) => issued,
        Err(denied) => {
            let (subject, why) = (format!("node {node}"), denied.to_string());
            tracing::warn!(%node, address, token = token.id, why, "a host was not admitted");
            admissions
                .denied(&asking, "NodeService/Enroll", subject, why)
                .await;
            return Err(denied_status(&denied));
        }
    };
    tracing::info!(%node, address, serial = issued.serial, "a host became a node");
    Ok(Response::new(EnrollResponse {
        certificate_pem: issued.pem,
        authority_pem: admissions.authority.certificate_pem().to_owned(),
        not_after: Some(convert::time(issued.not_after)),
        scheduler_time: Some(convert::time(asking.now)),
    }))
}

pub(super) async fn renew(
    admissions: &Admissions,
    request: Request<RenewRequest>,
) -> Result<Response<RenewResponse>, Status> {
    let shown = node_of(admissions, request.extensions(), "Renew").await?;
    let asking = asking(&shown, address(request.extensions()));
    let issued = admissions
        .renew(&shown, &request.into_inner().csr_pem, &asking)
        .await
        .map_err(|denied| denied_status(&denied))?;
    tracing::info!(
        node = shown.node,
        serial = issued.serial,
        "a node renewed its certificate"
    );
    Ok(Response::new(RenewResponse {
        certificate_pem: issued.pem,
        authority_pem: admissions.authority.certificate_pem().to_owned(),
        not_after: Some(convert::time(issued.not_after)),
        scheduler_time: Some(convert::time(asking.now)),
    }))
}

/// The node that calls; an error without a certificate that counts.
pub(super) async fn node_of(
    admissions: &Admissions,
    extensions: &Extensions,
    call: &str,
) -> Result<NodeCertificate, Status> {
    let caller = extensions.get::<Caller>();
    let shown = caller
        .and_then(|caller| caller.node.clone())
        .ok_or_else(|| {
            errors::status(
                Code::Unauthenticated,
                "certificate_missing",
                "this call needs the client certificate of a node",
                "join with the token of `longshore node join-token`",
            )
        })?;
    let asking = asking(&shown, address(extensions));
    match admissions.admits(&shown, asking.now) {
        Ok(()) => Ok(shown),
        Err(refusal) => {
            let (node, serial, why) = (&shown.node, &shown.serial, refusal.to_string());
            tracing::warn!(node, serial, why, "a certificate was refused");
            let (action, subject) = (format!("NodeService/{call}"), format!("node {node}"));
            admissions.denied(&asking, &action, subject, why).await;
            Err(refused(&refusal))
        }
    }
}

/// A node spoke for another one.
pub(super) async fn for_another(
    admissions: &Admissions,
    shown: &NodeCertificate,
    address: String,
    other: &str,
) -> Status {
    let own = &shown.node;
    tracing::warn!(node = own, other, "a node spoke for another one");
    let why = format!("the certificate names node {own}");
    let asking = asking(shown, address);
    admissions
        .denied(&asking, "NodeService/Attach", format!("node {other}"), why)
        .await;
    errors::status(
        Code::PermissionDenied,
        "other_node",
        &format!("the certificate names node {own} and the call node {other}"),
        &format!("start the agent with `--node {own}`, or join again under the other name"),
    )
}

/// What a caller with such a certificate or token is told.
pub(super) fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::OtherNode(_) | Refusal::NameTaken(_) => Code::PermissionDenied,
        Refusal::TooManyTokens => Code::ResourceExhausted,
        _ => Code::Unauthenticated,
    };
    let next = refusal.next_step();
    errors::status(code, refusal.reason(), &refusal.to_string(), &next)
}

pub(super) fn denied_status(denied: &Denied) -> Status {
    match denied {
        Denied::Refused(refusal) => refused(refusal),
        Denied::Request(problem) => {
            errors::invalid("csr_pem", problem, "let the agent make it again")
        }
        Denied::Stopped(_) => errors::stopping(),
    }
}

fn asking(shown: &NodeCertificate, address: String) -> Asking {
    Asking {
        who: AuditEntry {
            actor: shown.node.clone(),
            kind: "node".to_owned(),
            credential: shown.serial.clone(),
            address,
            surface: "longshore-agent".to_owned(),
            ..AuditEntry::default()
        },
        now: utc(),
    }
}

pub(super) fn address(extensions: &Extensions) -> String {
    let caller = extensions.get::<Caller>();
    caller.map_or_else(String::new, |caller| caller.address.ip().to_string())
}
