//! Just-in-time configurations, in GitHub's own layout.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::world::World;

/// An RSA key a registration is made with; big-endian numbers. In no `Debug` output.
#[derive(Clone)]
pub struct RunnerKey {
    pub modulus: Vec<u8>,
    pub exponent: Vec<u8>,
    pub d: Vec<u8>,
    pub p: Vec<u8>,
    pub q: Vec<u8>,
    pub dp: Vec<u8>,
    pub dq: Vec<u8>,
    pub inverse_q: Vec<u8>,
    /// DER of the public key (PKCS#1), for checking signatures.
    pub public_der: Vec<u8>,
}

impl RunnerKey {
    /// From a PKCS#1 `RSAPrivateKey` in DER.
    pub fn from_pkcs1(der: &[u8]) -> Option<Self> {
        let mut outer = Der { rest: der };
        let mut seq = Der {
            rest: outer.take(0x30)?,
        };
        let mut int = || {
            seq.take(0x02).map(|b| {
                b.iter()
                    .copied()
                    .skip_while(|x| *x == 0)
                    .collect::<Vec<u8>>()
            })
        };
        let _version = int()?;
        let (modulus, exponent, d, p, q, dp, dq, inverse_q) = (
            int()?,
            int()?,
            int()?,
            int()?,
            int()?,
            int()?,
            int()?,
            int()?,
        );
        let public_der = public_der(&modulus, &exponent);
        Some(Self {
            modulus,
            exponent,
            d,
            p,
            q,
            dp,
            dq,
            inverse_q,
            public_der,
        })
    }

    /// From PKCS#8 in DER, which wraps PKCS#1.
    pub fn from_pkcs8(der: &[u8]) -> Option<Self> {
        Self::from_pkcs1(pkcs1_in_pkcs8(der)?)
    }
}

/// The PKCS#1 key inside a PKCS#8 one.
pub(crate) fn pkcs1_in_pkcs8(der: &[u8]) -> Option<&[u8]> {
    let mut outer = Der { rest: der };
    let mut seq = Der {
        rest: outer.take(0x30)?,
    };
    seq.take(0x02)?;
    seq.take(0x30)?;
    seq.take(0x04)
}

struct Der<'a> {
    rest: &'a [u8],
}

impl<'a> Der<'a> {
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&t, rest) = self.rest.split_first()?;
        if t != tag {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (len, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let n = usize::from(first & 0x7f);
            if n > 4 || rest.len() < n {
                return None;
            }
            let len = rest[..n]
                .iter()
                .fold(0usize, |a, b| a << 8 | usize::from(*b));
            (len, &rest[n..])
        };
        if rest.len() < len {
            return None;
        }
        let (value, after) = rest.split_at(len);
        self.rest = after;
        Some(value)
    }
}

fn der_wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = content.len();
    if len < 0x80 {
        out.push(len as u8);
    } else {
        let bytes: Vec<u8> = len
            .to_be_bytes()
            .iter()
            .copied()
            .skip_while(|b| *b == 0)
            .collect();
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    out.extend_from_slice(content);
    out
}

fn der_integer(magnitude: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(magnitude.len() + 1);
    if magnitude.first().is_none_or(|b| b & 0x80 != 0) {
        content.push(0);
    }
    content.extend_from_slice(magnitude);
    der_wrap(0x02, &content)
}

fn public_der(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let mut body = der_integer(modulus);
    body.extend(der_integer(exponent));
    der_wrap(0x30, &body)
}

impl World {
    /// `encoded_jit_config` of a registration.
    pub(crate) fn jit_config(&mut self, runner: u64) -> String {
        let runner_url = self.cfg.runner_url.clone();
        let filler = self.chance.bytes(256);
        let Some(r) = self.runners.get(&runner) else {
            return String::new();
        };
        let key = self.keys.get(r.key);
        let settings = json!({
            "AgentId": r.id.to_string(),
            "AgentName": r.name,
            "PoolId": r.group.to_string(),
            "PoolName": "Default",
            "DisableUpdate": "False",
            "Ephemeral": "True",
            "ServerUrl": format!("{runner_url}/"),
            "GitHubUrl": format!("{}/{}", self.default_urls().html, self.scope_text(r.scope)),
            "WorkFolder": r.work_folder,
            "UseV2Flow": "True",
            "ServerUrlV2": format!("{runner_url}/"),
        });
        let credentials = json!({
            "scheme": "OAuth",
            "data": {
                "clientId": r.client_id,
                "authorizationUrl": format!("{runner_url}/oauth2/token"),
                "requireFipsCryptography": "True",
            },
        });
        let b64 = |bytes: &[u8]| STANDARD.encode(bytes);
        let rsa = match key {
            Some(k) => json!({
                "d": b64(&k.d), "dp": b64(&k.dp), "dq": b64(&k.dq), "exponent": b64(&k.exponent),
                "inverseQ": b64(&k.inverse_q), "modulus": b64(&k.modulus), "p": b64(&k.p), "q": b64(&k.q),
            }),
            // a world without keys: the right shape, and no key
            None => json!({
                "d": b64(&filler), "dp": b64(&filler[..128]), "dq": b64(&filler[..128]), "exponent": "AQAB",
                "inverseQ": b64(&filler[..128]), "modulus": b64(&filler), "p": b64(&filler[..128]),
                "q": b64(&filler[..128]),
            }),
        };
        let file = |v: &serde_json::Value| b64(v.to_string().as_bytes());
        let all = json!({
            ".runner": file(&settings),
            ".credentials": file(&credentials),
            ".credentials_rsaparams": file(&rsa),
        });
        b64(all.to_string().as_bytes())
    }
}
