//! RS256 tokens: GitHub Apps sign them, and so do runners for their OAuth token.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// The claims, without checking anything; for finding out whose key to check with.
pub(crate) fn claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let header: Value = part(parts.next()?)?;
    if header.get("alg").and_then(Value::as_str) != Some("RS256") {
        return None;
    }
    let claims = part(parts.next()?)?;
    parts.next()?;
    parts.next().is_none().then_some(claims)
}

fn part(text: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// Whether the signature was made with the private half of this key (PKCS#1 DER).
pub(crate) fn signed_by(token: &str, public_der: &[u8]) -> bool {
    let Some((signed, signature)) = token.rsplit_once('.') else {
        return false;
    };
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else {
        return false;
    };
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_der)
        .verify(signed.as_bytes(), &signature)
        .is_ok()
}
