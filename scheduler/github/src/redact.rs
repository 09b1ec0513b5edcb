//! Takes GitHub's tokens out of a text before anybody sees it.

use std::borrow::Cow;

/// Replaces every `gh?_...` and `github_pat_...` token, and the value of a
/// bearer header, by `***`. A token's length is not assumed.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut out: Option<String> = None;
    let mut kept = 0;
    let mut at = 0;
    while let Some(start) = next_token(text, at) {
        let end = start
            + text[start..]
                .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ')' | '&'))
                .unwrap_or(text.len() - start);
        let out = out.get_or_insert_with(String::new);
        out.push_str(&text[kept..start]);
        out.push_str("***");
        kept = end;
        at = end;
    }
    match out {
        Some(mut out) => {
            out.push_str(&text[kept..]);
            Cow::Owned(out)
        }
        None => Cow::Borrowed(text),
    }
}

/// Start of the next secret at or after `from`.
fn next_token(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut i = from;
    while i + 4 < bytes.len() {
        let rest = &bytes[i..];
        let prefixed = rest[0] == b'g'
            && rest[1] == b'h'
            && rest[2].is_ascii_lowercase()
            && rest[3] == b'_'
            && !rest[4].is_ascii_whitespace();
        if prefixed || rest.starts_with(b"github_pat_") {
            return Some(i);
        }
        if rest.len() > 7
            && rest[..7].eq_ignore_ascii_case(b"bearer ")
            && !rest[7..].starts_with(b"***")
        {
            return Some(i + 7);
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn tokens_of_every_form_and_length_vanish() {
        let long = format!("ghs_123456_{}", "eyJ".repeat(400));
        for secret in ["ghp_a", "gho_Zz09", "github_pat_11AAA_bbb", &long] {
            let text = format!("failed with {secret} at /x");
            assert_eq!(redact(&text), "failed with *** at /x");
            assert_eq!(redact(&format!("\"{secret}\"")), "\"***\"");
            assert_eq!(redact(secret), "***");
        }
        assert_eq!(
            redact("Authorization: Bearer eyJhbGciOi.x.y"),
            "Authorization: Bearer ***"
        );
    }

    #[test]
    fn ordinary_text_stays() {
        for text in [
            "",
            "gh",
            "the ghost_writer",
            "ghp_ is a prefix",
            "höhe ghé_x",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}
