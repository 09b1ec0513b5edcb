//! A registration as the tar stream that a waiting sandbox unpacks.
//!
//! `encoded_jit_config` is base64 of a JSON object {file name: base64 content}
//! (actions/runner `Runner.cs`). The last member of the archive is a marker
//! with the SHA-256 of each member before it, in the words of `sha256sum`, so
//! that a cut or damaged stream starts nothing.

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
    let mut marker = String::new();
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
        let hash = digest::digest(&digest::SHA256, &content);
        marker.push_str(&format!("{}  {name}\n", hex::encode(hash)));
        append(&mut builder, name, &content)?;
    }
    append(&mut builder, MARKER, marker.as_bytes())?;
    builder
        .into_inner()
        .map(Zeroizing::new)
        .map_err(|_| HandOverError::Archive)
}

/// Names become words of a list that a program reads, so only these bytes may pass.
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
        let expected: String = members
            .iter()
            .map(|(name, text)| {
                let sum = digest::digest(&digest::SHA256, text.as_bytes());
                format!("{}  {name}\n", hex::encode(sum))
            })
            .collect();
        assert_eq!(marker, expected);
    }

    /// Runs the entry script in a folder of its own with these bytes as its input; true
    /// when the runner program was started.
    fn starts(shell: &[&str], bytes: &[u8]) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir(root.join("bin")).unwrap();
        let listener = root.join("bin/Runner.Listener");
        std::fs::write(&listener, "#!/bin/sh\ncat .runner .credentials >started\n").unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&listener, std::fs::Permissions::from_mode(0o755)).unwrap();
        let entry = agent_core::sandbox::ENTRY
            .replace(agent_core::sandbox::RUNNER_ROOT, &root.to_string_lossy());
        let mut child = std::process::Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &entry, "sh", ""])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        use std::io::Write;
        // One that gives up early closes its end.
        let _ = child.stdin.take().unwrap().write_all(bytes);
        let status = child.wait().unwrap();
        let started = root.join("started").exists();
        assert_eq!(started, status.success());
        if started {
            for name in [".runner", ".credentials"] {
                let mode = std::fs::metadata(root.join(name)).unwrap().permissions();
                assert_eq!(mode.mode() & 0o777, 0o600);
            }
        }
        started
    }

    #[test]
    fn a_cut_or_damaged_stream_starts_nothing() {
        let whole = archive(&blob(&[(".runner", "{}"), (".credentials", "secret")])).unwrap();
        // Two members of two blocks each, the marker, and the end of the archive.
        let marker_ends = 6 * 512;
        for shell in [&["sh"][..], &["busybox", "sh"]] {
            assert!(starts(shell, &whole), "{shell:?}");
            for cut in (0..marker_ends).step_by(256) {
                assert!(!starts(shell, &whole[..cut]), "{shell:?} cut at {cut}");
            }
            // One byte of each member's content, and one of the marker's.
            for place in [512, 512 * 3, 512 * 5] {
                let mut damaged = whole.to_vec();
                damaged[place] ^= 1;
                assert!(!starts(shell, &damaged), "{shell:?} damaged at {place}");
            }
        }
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
