//! The text of a join token, which scheduler and agent both read.
//!
//! `lsj_ID_SECRET_AUTHORITY_SUM`: an id of 16, a secret of 64 and the SHA-256 of the
//! authority's certificate in 64 hexadecimal digits, and 8 digits that tell a whole
//! token from one that was cut or mistyped.

use std::{fmt, str::FromStr};

const PREFIX: &str = "lsj";
const ID: usize = 16;
const SECRET: usize = 64;
const AUTHORITY: usize = 64;
const SUM: usize = 8;

/// A join token in the clear. Debug hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub id: String,
    pub secret: String,
    /// SHA-256 of the authority's certificate (DER), lower-case hexadecimal.
    pub authority: String,
}

/// Why a text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoJoinToken {
    #[error("it does not begin with `{PREFIX}_`")]
    Other,
    #[error("it is not whole: a join token has {length} characters, this has {found}", length = LENGTH)]
    Length { found: usize },
    #[error("it was changed on its way: its check digits do not fit")]
    Sum,
}

const LENGTH: usize = PREFIX.len() + 1 + ID + 1 + SECRET + 1 + AUTHORITY + 1 + SUM;

impl JoinToken {
    /// The token as a person carries it. Holds the secret.
    pub fn text(&self) -> String {
        let body = self.body();
        format!("{body}_{:08x}", sum(&body))
    }

    fn body(&self) -> String {
        let Self {
            id,
            secret,
            authority,
        } = self;
        format!("{PREFIX}_{id}_{secret}_{authority}")
    }
}

impl FromStr for JoinToken {
    type Err = NoJoinToken;

    fn from_str(text: &str) -> Result<Self, NoJoinToken> {
        let text = text.trim();
        let Some(rest) = text.strip_prefix("lsj_") else {
            return Err(NoJoinToken::Other);
        };
        let fields: Vec<_> = rest.split('_').collect();
        let [id, secret, authority, check] = fields[..] else {
            return Err(NoJoinToken::Length { found: text.len() });
        };
        let lengths = [id.len(), secret.len(), authority.len(), check.len()];
        if lengths != [ID, SECRET, AUTHORITY, SUM] {
            return Err(NoJoinToken::Length { found: text.len() });
        }
        let token = Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            authority: authority.to_owned(),
        };
        let hexadecimal = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        let digits = [id, secret, authority].concat().bytes().all(hexadecimal);
        match digits && u32::from_str_radix(check, 16) == Ok(sum(&token.body())) {
            true => Ok(token),
            false => Err(NoJoinToken::Sum),
        }
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, ***)", self.id)
    }
}

/// FNV-1a: against slips of the hand, not against people.
fn sum(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            id: "0123456789abcdef".to_owned(),
            secret: "ab".repeat(32),
            authority: "cd".repeat(32),
        }
    }

    #[test]
    fn a_token_survives_its_text_and_shows_no_secret() {
        let text = token().text();
        assert_eq!(text.len(), LENGTH);
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains("abab"));
    }

    #[test]
    fn a_text_that_was_cut_changed_or_is_something_else_is_told_apart() {
        let text = token().text();
        for end in 4..text.len() {
            let error = text[..end].parse::<JoinToken>().unwrap_err();
            assert_eq!(error, NoJoinToken::Length { found: end });
        }
        let changed = text.replacen("abab", "abac", 1);
        assert_eq!(changed.parse::<JoinToken>(), Err(NoJoinToken::Sum));
        let upper = text.replacen("abab", "ABab", 1);
        assert_eq!(upper.parse::<JoinToken>(), Err(NoJoinToken::Sum));
        assert_eq!("ghp_1".parse::<JoinToken>(), Err(NoJoinToken::Other));
    }
}
