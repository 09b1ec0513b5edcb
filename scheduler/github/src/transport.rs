//! One request, one answer: octocrab's client over our connector.
//!
//! Retries, limits and tokens are decided above; here are only the standing
//! headers, bounds on time and size, and redirects within the same server.

use std::{error::Error as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use octocrab::{
    AuthState, OctoBody, Octocrab, OctocrabBuilder,
    service::middleware::extra_headers::ExtraHeadersLayer,
};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    config::{ApiUrl, Config, ConfigError},
    connector::{Connector, tls_config},
    proxy::Rules,
    redact::redact,
};

/// The REST version whose answers we know (facts: pinned).
const API_VERSION: &str = "2022-11-28";
/// Longest answer body read.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
const MAX_REDIRECTS: usize = 3;

/// A request before it has a token.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// Path and query below the base, or an absolute URL on the same server (from `Link`).
    pub(crate) target: String,
    pub(crate) body: Option<Bytes>,
    pub(crate) etag: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// A permanent redirect was followed on the way.
    pub(crate) moved: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Target of `Link: <url>; rel="next"`.
    pub(crate) fn next(&self) -> Option<String> {
        self.headers
            .get_all(header::LINK)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(|link| {
                let (url, parameters) = link.trim().split_once('>')?;
                parameters
                    .split(';')
                    .any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"))
                    .then(|| url.trim_start_matches('<').to_owned())
            })
    }
}

/// No answer came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Silence {
    /// The request never left.
    Unreachable(String),
    /// It left; what became of it is unknown.
    Unanswered(String),
}

#[derive(Clone)]
pub(crate) struct Transport {
    crab: Octocrab,
    base: ApiUrl,
    rules: Arc<Rules>,
    timeout: Duration,
}

impl Transport {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let rules = Arc::new(Rules::new(&config.proxy)?);
        let system_roots = config.api_url.uri().scheme_str() == Some("https");
        let tls = tls_config(system_roots, config.ca_file.as_deref())?;
        let client: Client<Connector, OctoBody> = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(8)
            .build(Connector::new(rules.clone(), tls));
        let standing = vec![
            (
                header::USER_AGENT,
                HeaderValue::from_static(concat!("longshore/", env!("CARGO_PKG_VERSION"))),
            ),
            (
                header::ACCEPT,
                HeaderValue::from_static("application/vnd.github+json"),
            ),
            (
                HeaderName::from_static("x-github-api-version"),
                HeaderValue::from_static(API_VERSION),
            ),
        ];
        let built = OctocrabBuilder::new_empty()
            .with_service(client)
            .with_layer(&ExtraHeadersLayer::new(Arc::new(standing)))
            .with_auth(AuthState::None)
            .build();
        let crab = match built {
            Ok(crab) => crab,
            Err(never) => match never {},
        };
        Ok(Self {
            crab,
            base: config.api_url.clone(),
            rules,
            timeout: config.call_timeout,
        })
    }

    /// Sends with this token and follows redirects that stay on the server.
    pub(crate) async fn send(&self, ask: &Ask, token: &SecretString) -> Result<Answer, Silence> {
        match tokio::time::timeout(self.timeout, self.send_unbounded(ask, token)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Silence::Unanswered(format!(
                "no answer within {} s",
                self.timeout.as_secs_f32()
            ))),
        }
    }

    async fn send_unbounded(&self, ask: &Ask, token: &SecretString) -> Result<Answer, Silence> {
        let mut uri = self
            .absolute(&ask.target)
            .ok_or_else(|| Silence::Unreachable("the link leaves GitHub's API".to_owned()))?;
        let mut moved = false;
        for _ in 0..=MAX_REDIRECTS {
            let mut answer = self.send_once(ask, &uri, token).await?;
            let redirect = matches!(answer.status.as_u16(), 301 | 302 | 307 | 308);
            let location = answer.header("location").map(str::to_owned);
            match location {
                Some(location) if redirect => {
                    // A token never follows a redirect to another server.
                    uri = self.absolute(&location).ok_or_else(|| {
                        Silence::Unanswered("redirected away from GitHub's API".to_owned())
                    })?;
                    moved |= matches!(answer.status.as_u16(), 301 | 308);
                }
                _ => {
                    answer.moved = moved;
                    return Ok(answer);
                }
            }
        }
        Err(Silence::Unanswered(format!(
            "more than {MAX_REDIRECTS} redirects"
        )))
    }

    async fn send_once(
        &self,
        ask: &Ask,
        uri: &Uri,
        token: &SecretString,
    ) -> Result<Answer, Silence> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(uri.clone());
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
            .map_err(|_| {
                Silence::Unreachable("the token holds characters no header may".to_owned())
            })?;
        bearer.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, bearer);
        if let Some(etag) = &ask.etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        if uri.scheme_str() == Some("http") {
            let hop = self.rules.hop_for(uri);
            if let Some(authorization) = hop.and_then(|hop| hop.authorization.clone()) {
                request = request.header(header::PROXY_AUTHORIZATION, authorization);
            }
        }
        let body = match &ask.body {
            Some(body) => {
                request = request
                    .header(header::CONTENT_TYPE, "application/json")
                    .header(header::CONTENT_LENGTH, body.len());
                OctoBody::from(body.clone())
            }
            None => OctoBody::empty(),
        };
        let request = request
            .body(body)
            .map_err(|error| Silence::Unreachable(error.to_string()))?;
        let response = self
            .crab
            .send(request)
            .await
            .map_err(|error| classify(&error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| Silence::Unanswered(redact(&error.to_string()).into_owned()))?
            .to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
            moved: false,
        })
    }

    /// The URL of a target, when it is on our server.
    fn absolute(&self, target: &str) -> Option<Uri> {
        if target.starts_with('/') {
            return format!("{}{target}", self.base).parse().ok();
        }
        let uri: Uri = target.parse().ok()?;
        let base = self.base.uri();
        (uri.scheme() == base.scheme() && uri.authority() == base.authority()).then_some(uri)
    }
}

fn classify(error: &octocrab::Error) -> Silence {
    let mut words = Vec::new();
    let mut connect = false;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            connect |= error.is_connect();
        }
        let text = error.to_string();
        if words.last() != Some(&text) {
            words.push(text);
        }
        cause = error.source();
    }
    if words.is_empty() {
        words.push(error.to_string());
    }
    let text = redact(&words.join(": ")).into_owned();
    if connect {
        Silence::Unreachable(text)
    } else {
        Silence::Unanswered(text)
    }
}
