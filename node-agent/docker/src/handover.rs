//! A registration as the tar stream that a waiting sandbox unpacks.
//!
//! `encoded_jit_config` is base64 of a JSON object {file name: base64 content}
//! (actions/runner `Runner.cs`). The last member of the archive is a marker
//! with the length and SHA-256 of all that came before, so that a cut or
//! damaged stream starts nothing.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use zeroize::Zeroizing;

/// Name of the marker; `agent_core::sandbox::ENTRY` reads it.
pub(crate) const MARKER: &str = ".handover";
const MAX_BLOB: usize = 1 << 20;
const MAX_FILES: usize = 32;

/// What is wrong with a registration. Never holds any of its content.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HandOverError {
    #[error("the registration is larger than 1 MiB")]
    TooLarge,
    #[error("the registration is not base64")]
    NotBase64,
    #[error("the registration is not a JSON object of files")]
    NotAnObject,
    #[error("the registration holds no file or more than 32")]
    FileCount,
    #[error("a file name in the registration is not plain")]
    FileName,
    #[error("a file in the registration is not base64")]
    FileContent,
    #[error("the registration has no .runner file")]
    NoRunner,
    #[error("the archive could not be built")]
    Archive,
}

/// The archive to write to the sandbox, wiped from memory when dropped.
pub fn archive(jit_config: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandOverError> {
    archive_with(jit_config, None)
}

/// The same with a file of ours, which the registration cannot replace.
pub(crate) fn archive_with(
    jit_config: &[u8],
    own: Option<(&str, &str)>,
) -> Result<Zeroizing<Vec<u8>>, HandOverError> {
    if jit_config.len() > MAX_BLOB {
        return Err(HandOverError::TooLarge);
    }
    let json = Zeroizing::new(
        STANDARD
            .decode(jit_config.trim_ascii())
            .map_err(|_| HandOverError::NotBase64)?,
    );
    let mut files: BTreeMap<String, Zeroizing<String>> =
        serde_json::from_slice::<BTreeMap<String, String>>(&json)
            .map_err(|_| HandOverError::NotAnObject)?
            .into_iter()
            .map(|(name, content)| (name, Zeroizing::new(content)))
            .collect();
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(HandOverError::FileCount);
    }
    if !files.contains_key(".runner") {
        return Err(HandOverError::NoRunner);
    }
    if let Some((name, content)) = own {
        files.insert(name.to_owned(), Zeroizing::new(STANDARD.encode(content)));
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    // Room for everything, so that no copy of a secret is left by growing.
    let mut builder = tar::Builder::new(Vec::with_capacity(json.len() + 8192 + 1024 * files.len()));
    for (name, content) in &files {
        if !plain(name) {
            return Err(HandOverError::FileName);
        }
        let content = Zeroizing::new(
            STANDARD
                .decode(content.as_bytes())
                .map_err(|_| HandOverError::FileContent)?,
        );
        hash.update(&content);
        length += content.len();
        append(&mut builder, name, &content)?;
    }
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let marker = format!(
        "{length} {}\n{}\n",
        hex::encode(hash.finish()),
        names.join(" ")
    );
    append(&mut builder, MARKER, marker.as_bytes())?;
    builder
        .into_inner()
        .map(Zeroizing::new)
        .map_err(|_| HandOverError::Archive)
}

/// Names go through an unquoted shell expansion, so only these bytes may pass.
fn plain(name: &str) -> bool {
    name != MARKER
        && name != "."
        && name != ".."
        && !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn append(
    builder: &mut tar::Builder<Vec<u8>>,
    name: &str,
    content: &[u8],
) -> Result<(), HandOverError> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    header.set_uid(u64::from(agent_core::sandbox::RUNNER_UID));
    header.set_gid(u64::from(agent_core::sandbox::RUNNER_UID));
    header.set_mtime(0);
    builder
        .append_data(&mut header, name, content)
        .map_err(|_| HandOverError::Archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn blob(files: &[(&str, &str)]) -> Vec<u8> {
        let object: BTreeMap<&str, String> = files
            .iter()
            .map(|(n, c)| (*n, STANDARD.encode(c)))
            .collect();
        STANDARD
            .encode(serde_json::to_vec(&object).unwrap())
            .into_bytes()
    }

    #[test]
    fn the_marker_is_last_and_covers_the_rest() {
        let tar = archive(&blob(&[(".runner", "{}"), (".credentials", "secret")])).unwrap();
        let mut reader = tar::Archive::new(tar.as_slice());
        let mut members = Vec::new();
        for entry in reader.entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mode().unwrap(), 0o600);
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            members.push((name, text));
        }
        let (name, marker) = members.pop().unwrap();
        assert_eq!(name, MARKER);
        let whole: String = members.iter().map(|(_, text)| text.as_str()).collect();
        let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        let sum = hex::encode(digest::digest(&digest::SHA256, whole.as_bytes()));
        assert_eq!(
            marker,
            format!("{} {sum}\n{}\n", whole.len(), names.join(" "))
        );
    }

    #[test]
    fn bad_registrations_are_refused_without_quoting_them() {
        let cases: [(&[u8], HandOverError); 3] = [
            (b"%%%secret", HandOverError::NotBase64),
            (b"c2VjcmV0", HandOverError::NotAnObject),
            (b"e30=", HandOverError::FileCount),
        ];
        for (input, expected) in cases {
            let error = archive(input).unwrap_err();
            assert_eq!(error, expected);
            assert!(!error.to_string().contains("secret"));
        }
        assert_eq!(
            archive(&blob(&[(".credentials", "x")])).unwrap_err(),
            HandOverError::NoRunner
        );
        for name in ["../x", "a b", "-rf", "$(id)", MARKER, "..", ""] {
            assert_eq!(
                archive(&blob(&[(".runner", "{}"), (name, "x")])).unwrap_err(),
                HandOverError::FileName,
                "{name}"
            );
        }
    }
}
