//! RSA keys: for registrations, and for Apps.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine as _;

use crate::machine::RunnerKey;

fn pkcs8() -> Option<Vec<u8>> {
    let pair = KeyPair::generate(KeySize::Rsa2048).ok()?;
    let der: Pkcs8V1Der<'static> = pair.as_der().ok()?;
    Some(der.as_ref().to_vec())
}

pub(super) fn runner_keys(count: usize) -> Option<Vec<RunnerKey>> {
    (0..count)
        .map(|_| RunnerKey::from_pkcs8(&pkcs8()?))
        .collect()
}

/// A key for an App: the private half as GitHub hands it out, and the public half for checking.
pub(super) struct AppKey {
    pub(super) pem: String,
    pub(super) public_der: Vec<u8>,
}

pub(super) fn app_key() -> Option<AppKey> {
    let pkcs8 = pkcs8()?;
    let key = RunnerKey::from_pkcs8(&pkcs8)?;
    let pkcs1 = crate::machine::pkcs1_in_pkcs8(&pkcs8)?;
    let text = base64::engine::general_purpose::STANDARD.encode(pkcs1);
    let mut pem = String::from("-----BEGIN RSA PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END RSA PRIVATE KEY-----\n");
    Some(AppKey {
        pem,
        public_der: key.public_der,
    })
}
