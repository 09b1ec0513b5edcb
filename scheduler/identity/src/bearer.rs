//! Bearer tokens: made from the system's randomness, kept as hashes, compared in constant time.
//!
//! A token is `lst_<id>_<secret>`: the id is public and finds the record, the
//! secret is 256 random bits in hexadecimal. The hash covers the whole text, so
//! that one secret cannot be used under another id. Because the secret is
//! random and long, a fast hash without salt gives nothing away.

use std::fmt;

use aws_lc_rs::{constant_time, digest, rand};
use secrecy::SecretString;

/// How every token begins: secret scanners find it by this.
pub const PREFIX: &str = "lst_";
/// Characters of an id.
pub const ID_LENGTH: usize = 16;
/// Characters of a secret: 256 bits.
pub const SECRET_LENGTH: usize = 64;
/// Characters of a token.
pub const LENGTH: usize = PREFIX.len() + ID_LENGTH + 1 + SECRET_LENGTH;

/// SHA-256 of a token's text: all that is kept of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of(text: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Self(hash)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(***)")
    }
}

/// The operating system gave no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no randomness for a token")]
pub struct NoRandomness;

/// A token that was just made. Its text exists only here.
#[derive(Debug)]
pub struct Minted {
    pub id: String,
    pub token: SecretString,
    pub hash: TokenHash,
}

/// Makes a token.
pub fn mint() -> Result<Minted, NoRandomness> {
    let mut id = [0; ID_LENGTH / 2];
    let mut secret = [0; SECRET_LENGTH / 2];
    rand::fill(&mut id).map_err(|_| NoRandomness)?;
    rand::fill(&mut secret).map_err(|_| NoRandomness)?;
    let id = hex::encode(id);
    let text = format!("{PREFIX}{id}_{}", hex::encode(secret));
    let hash = TokenHash::of(&text);
    Ok(Minted {
        id,
        hash,
        token: text.into(),
    })
}

/// What a caller sent, once it has the shape of a token. Borrowed: it is not copied.
#[derive(Clone, Copy)]
pub struct Presented<'a> {
    text: &'a str,
    id: &'a str,
}

impl<'a> Presented<'a> {
    /// A token's text; `None` when it is something else.
    pub fn parse(text: &'a str) -> Option<Self> {
        if text.len() != LENGTH || !text.is_ascii() {
            return None;
        }
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (id.len() == ID_LENGTH && is_hex(id) && is_hex(secret)).then_some(Self { text, id })
    }

    /// The value of an `authorization` header; `None` when it holds no token of ours.
    pub fn from_authorization(value: &'a str) -> Option<Self> {
        let (scheme, text) = value.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        Self::parse(text.trim())
    }

    /// Which token it claims to be.
    pub fn id(&self) -> &'a str {
        self.id
    }

    /// Whether it is the token of this hash, in a time that does not depend on how much is right.
    pub fn matches(&self, hash: &TokenHash) -> bool {
        let ours = TokenHash::of(self.text);
        constant_time::verify_slices_are_equal(&ours.0, &hash.0).is_ok()
    }
}

impl fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}_***", self.id)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_token_is_known_again_and_no_other_one_is() {
        let (one, two) = (mint().unwrap(), mint().unwrap());
        let text = one.token.expose_secret();
        assert_eq!(text.len(), LENGTH);
        let header = format!("bearer  {text}");
        let presented = Presented::from_authorization(&header).unwrap();
        assert_eq!(presented.id(), one.id);
        assert!(presented.matches(&one.hash));
        assert!(!presented.matches(&two.hash));
        // The secret of one under the id of the other.
        let mixed = text.replace(&one.id, &two.id);
        assert!(!Presented::parse(&mixed).unwrap().matches(&two.hash));
        assert!(!Presented::parse(&mixed).unwrap().matches(&one.hash));
    }

    #[test]
    fn each_changed_character_is_another_token() {
        let minted = mint().unwrap();
        let text = minted.token.expose_secret();
        for at in PREFIX.len()..text.len() {
            let mut changed = text.as_bytes().to_vec();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            let accepted = Presented::parse(&changed).is_some_and(|p| p.matches(&minted.hash));
            assert!(!accepted, "character {at}");
        }
    }

    #[test]
    fn what_is_no_token_is_not_read_as_one() {
        let minted = mint().unwrap();
        let text = minted.token.expose_secret();
        for wrong in [
            "",
            "lst_",
            &text[..LENGTH - 1],
            &format!("{text}0"),
            &text.to_uppercase(),
            &text.replacen("lst_", "lsx_", 1),
            &"é".repeat(LENGTH / 2),
        ] {
            assert!(Presented::parse(wrong).is_none(), "{wrong}");
        }
        for header in [text.to_owned(), format!("Basic {text}"), "Bearer".into()] {
            assert!(Presented::from_authorization(&header).is_none(), "{header}");
        }
    }

    #[test]
    fn nothing_of_a_secret_is_printed() {
        let minted = mint().unwrap();
        let text = minted.token.expose_secret().to_owned();
        let secret = &text[LENGTH - SECRET_LENGTH..];
        let presented = Presented::parse(&text).unwrap();
        let printed = format!("{minted:?} {presented:?} {:?}", minted.hash);
        assert!(!printed.contains(secret));
        assert!(!printed.contains(&hex::encode(minted.hash.as_bytes())));
        assert!(printed.contains(&minted.id));
    }
}
