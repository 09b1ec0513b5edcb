//! The three files a registration consists of: `.runner`, `.credentials`, `.credentials_rsaparams`.

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::dates;

pub(crate) const FILES: [&str; 3] = [".runner", ".credentials", ".credentials_rsaparams"];

/// What a registration says. No `Debug`: it holds a private key.
pub(crate) struct Settings {
    pub(crate) agent_name: String,
    pub(crate) ephemeral: bool,
    pub(crate) disable_update: bool,
    pub(crate) server: String,
    pub(crate) work: PathBuf,
    client_id: String,
    pub(crate) authorization_url: String,
    key: KeyPair,
}

/// The folder above `bin`, by the name the program was called by.
pub(crate) fn root() -> Result<PathBuf, String> {
    let by_name = std::env::args()
        .next()
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let program = match by_name {
        Some(p) => p,
        None => std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?,
    };
    let root = program.parent().and_then(Path::parent);
    root.map(Path::to_path_buf)
        .ok_or_else(|| format!("{} is not in a bin folder", program.display()))
}

fn read(root: &Path, name: &str) -> Result<Value, String> {
    let path = root.join(name);
    let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    serde_json::from_slice(text).map_err(|_| format!("{} is not JSON", path.display()))
}

/// A field by name without regard to case, as the real program reads it.
fn field<'a>(v: &'a Value, name: &str) -> Option<&'a Value> {
    v.as_object()?
        .iter()
        .find(|(k, _)| k.eq_ignore_ascii_case(name))
        .map(|(_, v)| v)
}

fn text(v: &Value, name: &str) -> Option<String> {
    match field(v, name)? {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

fn flag(v: &Value, name: &str) -> bool {
    text(v, name).is_some_and(|t| t.eq_ignore_ascii_case("true"))
}

impl Settings {
    /// Reads and checks the files. The error never quotes what is in them.
    pub(crate) fn load(root: &Path) -> Result<Self, String> {
        let runner = read(root, FILES[0])?;
        let credentials = read(root, FILES[1])?;
        let rsa = read(root, FILES[2])?;
        let need = |v: &Value, file: &str, name: &str| {
            text(v, name).ok_or_else(|| format!("{file} has no {name}"))
        };
        let data = field(&credentials, "data").cloned().unwrap_or(Value::Null);
        let server = text(&runner, "ServerUrlV2")
            .filter(|_| flag(&runner, "UseV2Flow"))
            .or_else(|| text(&runner, "ServerUrl"))
            .ok_or(".runner has no ServerUrlV2")?;
        Ok(Self {
            agent_name: need(&runner, FILES[0], "AgentName")?,
            ephemeral: flag(&runner, "Ephemeral"),
            disable_update: flag(&runner, "DisableUpdate"),
            server: server.trim_end_matches('/').to_owned(),
            work: root.join(text(&runner, "WorkFolder").unwrap_or_else(|| "_work".into())),
            client_id: need(&data, FILES[1], "clientId")?,
            authorization_url: need(&data, FILES[1], "authorizationUrl")?,
            key: key(&rsa)?,
        })
    }

    /// The assertion that the service changes for an access token.
    pub(crate) fn assertion(&self) -> Result<String, String> {
        let now = dates::now_s();
        let claims = json!({
            "iss": self.client_id, "sub": self.client_id, "aud": self.authorization_url, "nbf": now - 5, "iat": now,
            "exp": now + 300, "jti": format!("{now}-{}", std::process::id()),
        });
        let header = json!({"alg": "RS256", "typ": "JWT"});
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .map_err(|_| "the private key cannot sign".to_owned())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// An ephemeral runner deletes its credentials when its job is over.
pub(crate) fn forget(root: &Path) {
    for name in FILES {
        // they may lie on a read-only mount, and go with the container anyway
        let _ = std::fs::remove_file(root.join(name));
    }
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let n = content.len();
    if n < 128 {
        out.push(n as u8);
    } else {
        let bytes: Vec<u8> = n
            .to_be_bytes()
            .into_iter()
            .skip_while(|b| *b == 0)
            .collect();
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    out.extend_from_slice(content);
    out
}

fn integer(magnitude: &[u8]) -> Vec<u8> {
    let trimmed: &[u8] = &magnitude[magnitude.iter().take_while(|b| **b == 0).count()..];
    let mut content = Vec::with_capacity(trimmed.len() + 1);
    if trimmed.first().is_none_or(|b| b & 0x80 != 0) {
        content.push(0);
    }
    content.extend_from_slice(trimmed);
    der(0x02, &content)
}

/// A key from the numbers in `.credentials_rsaparams`.
fn key(rsa: &Value) -> Result<KeyPair, String> {
    let mut body = integer(&[]);
    for name in ["modulus", "exponent", "d", "p", "q", "dp", "dq", "inverseQ"] {
        let number = text(rsa, name).and_then(|t| STANDARD.decode(t).ok());
        let number = number.ok_or_else(|| format!(".credentials_rsaparams has no {name}"))?;
        body.extend(integer(&number));
    }
    KeyPair::from_der(&der(0x30, &body))
        .map_err(|_| ".credentials_rsaparams holds no usable RSA key".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields_are_read_without_regard_to_case() {
        let v = json!({"agentname": "r1", "Ephemeral": "True", "PoolId": 1});
        assert_eq!(text(&v, "AgentName").as_deref(), Some("r1"));
        assert!(flag(&v, "ephemeral"));
        assert_eq!(text(&v, "PoolId").as_deref(), Some("1"));
    }

    #[test]
    fn a_missing_file_is_named_and_no_content_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let e = Settings::load(dir.path()).err().unwrap();
        assert!(e.contains(".runner"), "{e}");
        std::fs::write(dir.path().join(".runner"), "s3cret").unwrap();
        let e = Settings::load(dir.path()).err().unwrap();
        assert!(!e.contains("s3cret"), "{e}");
    }
}
