//! Blots out what looks like a credential before a log line leaves the process.
//!
//! The second fence: secrets are typed and never logged on purpose. GitHub's
//! tokens have no fixed length, so everything up to a delimiter goes.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Base64 runs of this length are registrations or keys, not names.
const BLOB: usize = 160;

/// Replaces tokens, bearer values and long base64 runs by `[redacted]`.
pub fn redact(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if let Some(secret) = secret_length(rest, out.as_bytes().last().copied()) {
            out.push_str("[redacted]");
            rest = &rest[secret..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// Length of the secret that starts here, if one does.
fn secret_length(text: &str, before: Option<u8>) -> Option<usize> {
    let boundary = before.is_none_or(|byte| !byte.is_ascii_alphanumeric());
    if !boundary {
        return None;
    }
    let bytes = text.as_bytes();
    let token = text.starts_with("github_pat_")
        || (bytes.len() > 4
            && bytes.starts_with(b"gh")
            && bytes[2].is_ascii_lowercase()
            && bytes[3] == b'_');
    let word = text
        .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\\' | ',' | ')' | '\''))
        .unwrap_or(text.len());
    if token && word > 4 {
        return Some(word);
    }
    let blob = bytes
        .iter()
        .take_while(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
        })
        .count();
    (blob >= BLOB).then_some(blob)
}

/// Writes whole lines to stderr, redacted.
#[derive(Clone, Copy, Debug)]
pub struct RedactingStderr;

/// One log line in the making.
pub struct Line(Vec<u8>);

impl<'a> MakeWriter<'a> for RedactingStderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::with_capacity(256))
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let line = redact(&String::from_utf8_lossy(&self.0));
        self.0.clear();
        io::stderr().lock().write_all(line.as_bytes())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // A log line that cannot be written has nowhere to be reported.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_every_kind_and_length_vanish() {
        // Put together here: whole tokens have no place in a source file.
        for (prefix, rest) in [
            ("ghp", "abcdefghijklmnopqrstuvwxyz0123456789"),
            (
                "ghs",
                "123456_eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiIxIn0.c2lnbmF0dXJl-_longer",
            ),
            ("github_pat", "11ABC_def"),
        ] {
            let token = format!("{prefix}_{rest}");
            let line = redact(&format!("{{\"message\":\"sent {token}\",\"n\":1}}"));
            assert_eq!(line, "{\"message\":\"sent [redacted]\",\"n\":1}");
        }
    }

    #[test]
    fn long_base64_runs_vanish_and_words_stay() {
        let jit = "eyJ".repeat(80);
        assert_eq!(redact(&format!("jit={jit} end")), "jit=[redacted] end");
        for text in ["high_water ghost through_put", "ls-fleet-0a1b2c", "ghx"] {
            assert_eq!(redact(text), text);
        }
    }
}
