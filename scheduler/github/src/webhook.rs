//! Webhooks without a socket: signature, body form, event. Pure functions.

use std::borrow::Cow;

use aws_lc_rs::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeSeed;

use crate::wire::{Field, Payload, Read};

/// Longest body GitHub sends (25 MB); the listener refuses more with 413 before reading on.
pub const MAX_BODY: usize = 25 * 1024 * 1024;

/// A delivery as the listener took it.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// `X-GitHub-Event`.
    pub event: &'a str,
    /// `X-GitHub-Delivery`; the same for each redelivery.
    pub guid: Option<&'a str>,
    /// `X-GitHub-Hook-ID`.
    pub hook_id: Option<&'a str>,
    /// `X-GitHub-Hook-Installation-Target-Type`: repository, organization, ...
    pub hook_target: Option<&'a str>,
    /// `X-Hub-Signature-256`.
    pub signature: Option<&'a str>,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// The raw bytes, as signed.
    pub body: &'a [u8],
    /// W3C `traceparent` of the request's span, to carry on.
    pub traceparent: Option<&'a str>,
}

impl<'a> Delivery<'a> {
    /// Reads the headers of a request; their names are case-insensitive. A
    /// header that is no text counts as missing.
    pub fn from_request(headers: &'a http::HeaderMap, body: &'a [u8]) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            event: text("x-github-event").unwrap_or_default(),
            guid: text("x-github-delivery"),
            hook_id: text("x-github-hook-id"),
            hook_target: text("x-github-hook-installation-target-type"),
            signature: text("x-hub-signature-256"),
            content_type: text("content-type"),
            body,
            traceparent: text("traceparent"),
        }
    }
}

/// Why a delivery is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WebhookError {
    /// Answer 401.
    #[error(
        "no webhook secret is configured; set one and give GitHub the same (webhook_secret_file)"
    )]
    NoSecret,
    /// Answer 401.
    #[error("the delivery carries no X-Hub-Signature-256; set a secret on the hook at GitHub")]
    Unsigned,
    /// Answer 401.
    #[error("the signature fits none of the configured webhook secrets")]
    BadSignature,
    /// Answer 413.
    #[error("the body is larger than GitHub's 25 MB")]
    TooLarge,
    /// Answer 400.
    #[error("the signature is right but the body is not a JSON payload: {0}")]
    Malformed(String),
}

/// Checks `sha256=<hex>` over the raw body against each secret, in constant time.
pub fn verify(
    secrets: &[SecretString],
    signature: Option<&str>,
    body: &[u8],
) -> Result<(), WebhookError> {
    if secrets.is_empty() {
        return Err(WebhookError::NoSecret);
    }
    let hex = signature
        .filter(|text| !text.trim().is_empty())
        .ok_or(WebhookError::Unsigned)?
        .trim()
        .strip_prefix("sha256=")
        .ok_or(WebhookError::BadSignature)?;
    let tag = hex::decode(hex).map_err(|_| WebhookError::BadSignature)?;
    // Every secret is tried, so that time does not tell which one fits.
    let fits = secrets.iter().fold(false, |fits, secret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
        hmac::verify(&key, body, &tag).is_ok() | fits
    });
    if fits {
        Ok(())
    } else {
        Err(WebhookError::BadSignature)
    }
}

/// The JSON inside the body: as it is, or the `payload` of a form.
pub fn json_of<'a>(
    content_type: Option<&str>,
    body: &'a [u8],
) -> Result<Cow<'a, [u8]>, WebhookError> {
    let is_form = content_type.is_some_and(|value| {
        value
            .trim()
            .to_ascii_lowercase()
            .starts_with("application/x-www-form-urlencoded")
    });
    if !is_form {
        return Ok(Cow::Borrowed(body));
    }
    body.split(|byte| *byte == b'&')
        .find_map(|pair| pair.strip_prefix(b"payload="))
        .map(|value| Cow::Owned(form_decode(value)))
        .ok_or_else(|| WebhookError::Malformed("the form has no payload field".to_owned()))
}

fn form_decode(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut i = 0;
    while i < value.len() {
        let decoded = (value[i] == b'%')
            .then(|| value.get(i + 1..i + 3))
            .flatten()
            .and_then(|digits| hex::decode(digits).ok());
        match (value[i], decoded) {
            (_, Some(byte)) => {
                out.extend_from_slice(&byte);
                i += 3;
            }
            (b'+', None) => {
                out.push(b' ');
                i += 1;
            }
            (byte, None) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    out
}

/// What a verified delivery tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    WorkflowJob(Box<Payload>),
    WorkflowRun(Box<Payload>),
    Ping(Box<Payload>),
    Installation(Box<Payload>),
    InstallationRepositories(Box<Payload>),
    Repository(Box<Payload>),
    /// The hook itself was deleted.
    Meta(Box<Payload>),
    /// Accepted and ignored.
    Unknown {
        event: String,
    },
}

/// Reads the JSON of an event. Unknown events and actions are not errors.
pub fn parse(event: &str, json: &[u8]) -> Result<Event, WebhookError> {
    let payload = Box::new(payload(json)?);
    Ok(match event {
        "workflow_job" => Event::WorkflowJob(payload),
        "workflow_run" => Event::WorkflowRun(payload),
        "ping" => Event::Ping(payload),
        "installation" => Event::Installation(payload),
        "installation_repositories" => Event::InstallationRepositories(payload),
        "repository" => Event::Repository(payload),
        "meta" => Event::Meta(payload),
        other => Event::Unknown {
            event: other.chars().take(64).collect(),
        },
    })
}

/// A payload without what we do not model: nobody asks for that, and most of the body is that.
fn payload(json: &[u8]) -> Result<Payload, WebhookError> {
    let malformed = |error: serde_json::Error| WebhookError::Malformed(error.to_string());
    let mut from = serde_json::Deserializer::from_slice(json);
    let read = Read::<Payload>::new(false);
    let payload = read.deserialize(&mut from).map_err(malformed)?;
    from.end().map_err(malformed)?;
    match payload {
        Field::Value(payload) => Ok(payload),
        _ => Err(WebhookError::Malformed("it is not an object".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str =
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn secrets() -> Vec<SecretString> {
        vec!["an older one".into(), "It's a Secret to Everybody".into()]
    }

    #[test]
    fn the_published_vector_verifies_with_any_of_several_secrets() {
        assert_eq!(verify(&secrets(), Some(SIGNATURE), BODY), Ok(()));
    }

    #[test]
    fn anything_else_is_refused() {
        let changed = SIGNATURE.replace("757107", "757108");
        for (signature, body, error) in [
            (None, BODY, WebhookError::Unsigned),
            (Some(""), BODY, WebhookError::Unsigned),
            (Some(changed.as_str()), BODY, WebhookError::BadSignature),
            (
                Some(SIGNATURE),
                b"Hello, World?".as_slice(),
                WebhookError::BadSignature,
            ),
            (Some(&SIGNATURE[..40]), BODY, WebhookError::BadSignature),
            (Some("sha1=757107"), BODY, WebhookError::BadSignature),
            (Some("sha256=zz"), BODY, WebhookError::BadSignature),
        ] {
            assert_eq!(verify(&secrets(), signature, body), Err(error));
        }
        assert_eq!(
            verify(&[], Some(SIGNATURE), BODY),
            Err(WebhookError::NoSecret)
        );
        assert_eq!(
            verify(&secrets()[..1], Some(SIGNATURE), BODY),
            Err(WebhookError::BadSignature)
        );
    }

    #[test]
    fn a_form_body_gives_its_payload() {
        let form = b"a=1&payload=%7B%22zen%22%3A%22a+b%2Bc%25%22%7D&z=2";
        let json = json_of(
            Some("application/x-www-form-urlencoded; charset=utf-8"),
            form,
        )
        .unwrap();
        assert_eq!(&*json, br#"{"zen":"a b+c%"}"#);
        assert!(json_of(Some("application/x-www-form-urlencoded"), b"a=1").is_err());
        assert_eq!(&*json_of(Some("application/json"), b"{}").unwrap(), b"{}");
        assert_eq!(form_decode(b"100%zz%4"), b"100%zz%4");
    }

    #[test]
    fn unknown_events_and_actions_are_accepted_and_broken_json_is_not() {
        assert_eq!(
            parse("sponsorship", b"{\"action\":\"x\"}"),
            Ok(Event::Unknown {
                event: "sponsorship".into()
            })
        );
        assert!(matches!(
            parse("workflow_job", b"{\"action\":\"brand_new\"}"),
            Ok(Event::WorkflowJob(_))
        ));
        // Deeper than anything of GitHub's: in a field we read, and in one we pass over.
        let nested = |field: &str| format!("{{\"{field}\":{}", "[".repeat(100_000));
        let (read, passed) = (nested("workflow_job"), nested("new"));
        for broken in [
            b"{".as_slice(),
            b"[]",
            b"",
            b"\xff",
            read.as_bytes(),
            passed.as_bytes(),
        ] {
            assert!(matches!(
                parse("ping", broken),
                Err(WebhookError::Malformed(_))
            ));
        }
    }
}
