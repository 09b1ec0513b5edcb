//! The layer in front of every service and route of the API listener.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use scheduler_core::model::UtcMillis;
use scheduler_identity::{
    bearer::Presented,
    role::{Access, CALLS, ROUTES, Reach, Role},
};
use tonic::{Code, Status};

use super::{
    browser::{self, Unsafe},
    denials::Denials,
    directory::{Directory, Verdict},
    who::{Principal, Who},
};
use crate::{api::errors, clock::utc, serve::Caller};

/// Longest path kept of a call that nobody declared.
const PATH: usize = 100;

const GET_A_TOKEN: &str = "send `authorization: Bearer TOKEN`: on the scheduler's host the file STATE/local-token holds one \
     (--token-file or LONGSHORE_TOKEN_FILE names it), elsewhere an admin makes one with `longshore token create`";

/// A call or route and what it asks.
#[derive(Debug)]
struct Declared {
    /// `FleetService/StopRunner`, `/metrics`.
    call: Arc<str>,
    access: Access,
}

/// Everything a decision needs, in memory.
#[derive(Debug)]
pub struct Gate {
    declared: HashMap<String, Declared>,
    directory: Directory,
    denials: Denials,
    /// Names of this API beside its addresses.
    names: Vec<String>,
    anonymous: Arc<Principal>,
}

/// A call that is not let through.
struct Refusal {
    principal: Arc<Principal>,
    call: Arc<str>,
    status: Box<Status>,
    reason: &'static str,
    /// Without gRPC.
    http: StatusCode,
}

impl Gate {
    pub fn new(directory: Directory, denials: Denials, names: Vec<String>) -> Self {
        let calls = CALLS.iter().map(|(service, call, access)| {
            let short = service.rsplit('.').next().unwrap_or(service);
            let declared = Declared {
                call: format!("{short}/{call}").into(),
                access: *access,
            };
            (format!("/{service}/{call}"), declared)
        });
        let routes = ROUTES.iter().map(|(path, access)| {
            let declared = Declared {
                call: (*path).into(),
                access: *access,
            };
            ((*path).to_owned(), declared)
        });
        Self {
            declared: calls.chain(routes).collect(),
            directory,
            denials,
            names,
            anonymous: Arc::new(Principal::anonymous()),
        }
    }

    /// Who calls, if they may.
    fn admit<B>(&self, request: &http::Request<B>, now: UtcMillis) -> Result<Who, Refusal> {
        let (uri, headers) = (request.uri(), request.headers());
        let declared = self.declared.get(uri.path());
        let call = match declared {
            Some(declared) => Arc::clone(&declared.call),
            None => uri.path().chars().take(PATH).collect::<String>().into(),
        };
        let refuse = |principal: &Arc<Principal>,
                      refused: (Code, StatusCode, &'static str, &str, &str)| {
            let (code, http, reason, message, next_step) = refused;
            Refusal {
                principal: Arc::clone(principal),
                call: Arc::clone(&call),
                status: Box::new(errors::status(code, reason, message, next_step)),
                reason,
                http,
            }
        };
        browser::check(uri, headers, &self.names).map_err(|found| {
            let said = unsafe_words(&found);
            let (reason, http, message, next) = (said.0, said.1, said.2.as_str(), said.3);
            let code = if http == StatusCode::BAD_REQUEST {
                Code::InvalidArgument
            } else {
                Code::PermissionDenied
            };
            let path: Arc<str> = if found == Unsafe::TokenInUrl && declared.is_none() {
                // The path may be the token.
                "".into()
            } else {
                Arc::clone(&call)
            };
            Refusal {
                call: path,
                ..refuse(&self.anonymous, (code, http, reason, message, next))
            }
        })?;
        let who = |principal: Arc<Principal>| {
            let denials = self.denials.clone();
            Who::new(
                principal,
                Arc::clone(&call),
                peer(request),
                headers,
                denials,
            )
        };
        if let Some(Declared {
            access: Access::Open,
            ..
        }) = declared
        {
            return Ok(who(Arc::clone(&self.anonymous)));
        }
        let unauthenticated = |principal, reason, message: &str, next| {
            refuse(
                principal,
                (
                    Code::Unauthenticated,
                    StatusCode::UNAUTHORIZED,
                    reason,
                    message,
                    next,
                ),
            )
        };
        let presented = match authorization(headers) {
            Authorization::Token(presented) => presented,
            Authorization::None => {
                let said = "this call needs a token and came without";
                return Err(unauthenticated(
                    &self.anonymous,
                    "no_token",
                    said,
                    GET_A_TOKEN,
                ));
            }
            Authorization::Strange => {
                let said = "the authorization header holds no token of this kind";
                return Err(unauthenticated(
                    &self.anonymous,
                    "bad_token",
                    said,
                    GET_A_TOKEN,
                ));
            }
        };
        let token = match self.directory.check(presented, now) {
            Verdict::Valid(token) => token,
            Verdict::Unknown => {
                let said = "the token is not known here";
                let next = "check that it is of this scheduler and was copied whole, or ask an admin for another: \
                            `longshore token create`";
                return Err(unauthenticated(
                    &self.anonymous,
                    "unknown_token",
                    said,
                    next,
                ));
            }
            Verdict::Expired(token) => {
                let said = format!("the token `{}` has expired", token.principal.name);
                let next = "ask an admin for another: `longshore token create`";
                return Err(unauthenticated(
                    &token.principal,
                    "expired_token",
                    &said,
                    next,
                ));
            }
            Verdict::Revoked(token) => {
                let said = format!("the token `{}` was revoked", token.principal.name);
                let next = "ask an admin for another: `longshore token create`";
                return Err(unauthenticated(
                    &token.principal,
                    "revoked_token",
                    &said,
                    next,
                ));
            }
        };
        let principal = &token.principal;
        let forbidden = |reason, message: &str, next: &str| {
            refuse(
                principal,
                (
                    Code::PermissionDenied,
                    StatusCode::FORBIDDEN,
                    reason,
                    message,
                    next,
                ),
            )
        };
        let Some(declared) = declared else {
            let said = "nothing is declared here";
            let next = "check the address, and that client and scheduler have the same version";
            return Err(refuse(
                principal,
                (
                    Code::Unimplemented,
                    StatusCode::NOT_FOUND,
                    "not_declared",
                    said,
                    next,
                ),
            ));
        };
        let Access::Role { needs, reach } = declared.access else {
            return Ok(who(Arc::clone(principal)));
        };
        if principal.role < Some(needs) {
            let has = principal.role.map_or("none", Role::as_str);
            let said = format!(
                "{call} needs the role {needs}; the token `{}` has the role {has}",
                principal.name
            );
            let next = format!(
                "use a token of role {needs}, or ask an admin: `longshore token create --role {needs}`"
            );
            return Err(forbidden("role_too_low", &said, &next));
        }
        if reach == Reach::Fleet && !principal.scope.is_fleet() {
            let said = format!(
                "{call} is about the whole fleet; the token `{}` is for {} only",
                principal.name, principal.scope
            );
            return Err(forbidden(
                "scope_too_narrow",
                &said,
                "use a token without a scope",
            ));
        }
        Ok(who(Arc::clone(principal)))
    }

    fn refuse<B>(&self, refusal: Refusal, request: &http::Request<B>) -> Response {
        let headers = request.headers();
        let who = Who::new(
            refusal.principal,
            refusal.call,
            peer(request),
            headers,
            self.denials.clone(),
        );
        who.denied("", refusal.reason);
        let sent = headers.get(header::CONTENT_TYPE);
        let grpc = sent.filter(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        match grpc {
            Some(kind) => {
                let mut response = refusal.status.into_http::<Body>();
                if kind.as_bytes().starts_with(b"application/grpc-web") {
                    let kind = HeaderValue::from_static("application/grpc-web+proto");
                    response.headers_mut().insert(header::CONTENT_TYPE, kind);
                }
                response
            }
            None => {
                let text = format!("{}\n", refusal.status.message());
                let mut response = (refusal.http, text).into_response();
                if refusal.http == StatusCode::UNAUTHORIZED {
                    let scheme = HeaderValue::from_static("Bearer realm=\"longshore\"");
                    response
                        .headers_mut()
                        .insert(header::WWW_AUTHENTICATE, scheme);
                }
                response
            }
        }
    }
}

/// Puts the gate in front of everything a router serves, what it does not know included.
pub fn protect(router: Router, gate: Gate) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::new(gate), pass))
}

async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    match gate.admit(&request, utc()) {
        Ok(who) => {
            request.extensions_mut().insert(who);
            next.run(request).await
        }
        Err(refusal) => gate.refuse(refusal, &request),
    }
}

fn peer<B>(request: &http::Request<B>) -> Option<IpAddr> {
    let caller = request.extensions().get::<Caller>();
    caller.map(|caller| caller.address.ip())
}

enum Authorization<'a> {
    None,
    /// Not a bearer token of ours, or more than one.
    Strange,
    Token(Presented<'a>),
}

fn authorization(headers: &HeaderMap) -> Authorization<'_> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), more) = (values.next(), values.next()) else {
        return Authorization::None;
    };
    let token = value.to_str().ok().and_then(Presented::from_authorization);
    match (token, more) {
        (Some(token), None) => Authorization::Token(token),
        _ => Authorization::Strange,
    }
}

/// Reason, HTTP status, what is wrong and what to do.
fn unsafe_words(found: &Unsafe) -> (&'static str, StatusCode, String, &'static str) {
    match found {
        Unsafe::TokenInUrl => (
            "token_in_url",
            StatusCode::BAD_REQUEST,
            "a token in a URL ends up in histories and logs".to_owned(),
            "send it as `authorization: Bearer TOKEN`, and revoke this one if it was real",
        ),
        Unsafe::Host(host) => (
            "host_not_known",
            StatusCode::FORBIDDEN,
            format!("this API is not called `{}`", host.escape_debug()),
            "use its address, or add the name to listen.names (--name)",
        ),
        Unsafe::Origin(origin) => (
            "origin_refused",
            StatusCode::FORBIDDEN,
            format!(
                "a page of `{}` may not call this API",
                origin.escape_debug()
            ),
            "open the dashboard at the scheduler's own address",
        ),
    }
}
