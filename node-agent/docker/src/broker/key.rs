//! The key that jobs' secrets are made with: a file that only the agent reads.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

const LENGTH: usize = 32;

/// Reads the key, making it on first use.
pub(crate) fn load(state_dir: &Path) -> std::io::Result<hmac::Key> {
    let path = state_dir.join("broker.key");
    let bytes = Zeroizing::new(match std::fs::read(&path) {
        Ok(bytes) if bytes.len() == LENGTH => bytes,
        Ok(_) => make(&path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(&path)?,
        Err(error) => return Err(error),
    });
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn make(path: &Path) -> std::io::Result<Vec<u8>> {
    let bytes: [u8; LENGTH] = rand::random();
    let new = path.with_extension("new");
    let mut file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    Ok(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::broker::secret;

    #[test]
    fn secrets_survive_a_restart_and_differ_between_jobs_and_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let first = load(dir.path()).unwrap();
        let again = load(dir.path()).unwrap();
        assert_eq!(*secret(&first, "a"), *secret(&again, "a"));
        assert_ne!(*secret(&first, "a"), *secret(&first, "b"));
        assert_eq!(secret(&first, "a").len(), 64);
        let mode = std::fs::metadata(dir.path().join("broker.key")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        let other = load(other.path()).unwrap();
        assert_ne!(*secret(&first, "a"), *secret(&other, "a"));
    }
}
