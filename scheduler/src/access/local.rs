//! The token file of this host: made at the first start, so that one host needs no ceremony.
//!
//! Whoever may read the file is admin. It belongs to the group `longshore` (0640)
//! where that group exists, else to the scheduler's user alone. Whoever deletes
//! it gets another at the next start; the old one opens nothing then.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use scheduler_core::model::UtcMillis;
use scheduler_identity::{
    bearer::{self, Presented, TokenHash},
    role::Role,
};
use scheduler_store::{AuditEntry, TokenChange, TokenRow};
use secrecy::{ExposeSecret, SecretString};

/// Name of the file in the state folder.
pub const FILE: &str = "local-token";
/// Who may read it beside the scheduler's user.
pub const GROUP: &str = "longshore";
/// What its token is called.
pub const NAME: &str = "local";
/// Who made it, which nobody else can be.
const MAKER: &str = "scheduler";

/// The file cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(
        "cannot write the token file {path}: {source}; check the folder's owner and free space"
    )]
    Write { path: String, source: io::Error },
    #[error(transparent)]
    Randomness(#[from] bearer::NoRandomness),
}

/// What is to be committed, and then written.
#[derive(Debug)]
pub struct Local {
    pub path: PathBuf,
    pub changes: Vec<TokenChange>,
    fresh: Option<SecretString>,
}

impl Local {
    /// Looks at what is there. A file whose token the store knows and that is still good stays as it is.
    pub fn prepare(
        state_dir: &Path,
        rows: &[TokenRow],
        now: UtcMillis,
    ) -> Result<Self, LocalError> {
        let path = state_dir.join(FILE);
        let ours = |row: &&TokenRow| row.created_by == MAKER && row.revoked_at.is_none();
        if let Some(text) = read(&path)
            && let Some(presented) = Presented::parse(text.expose_secret().trim())
            && rows.iter().filter(ours).any(|row| {
                row.id == presented.id() && presented.matches(&TokenHash::from_bytes(row.hash))
            })
        {
            return Ok(Self {
                path,
                changes: Vec::new(),
                fresh: None,
            });
        }
        let minted = bearer::mint()?;
        let revoked = rows.iter().filter(ours).map(|row| TokenChange::Revoked {
            id: row.id.clone(),
            at: now,
        });
        let made = TokenChange::Made(TokenRow {
            id: minted.id,
            name: NAME.to_owned(),
            hash: *minted.hash.as_bytes(),
            role: Role::Admin.as_str().to_owned(),
            scope: String::new(),
            created_at: now,
            created_by: MAKER.to_owned(),
            expires_at: None,
            last_used_at: None,
            revoked_at: None,
        });
        Ok(Self {
            path,
            changes: revoked.chain([made]).collect(),
            fresh: Some(minted.token),
        })
    }

    /// What the audit log says of it.
    pub fn entry(&self) -> AuditEntry {
        let at = self.changes.iter().find_map(|change| match change {
            TokenChange::Made(row) => Some(row.created_at),
            _ => None,
        });
        AuditEntry {
            at: at.unwrap_or(0),
            actor: MAKER.to_owned(),
            kind: MAKER.to_owned(),
            action: "local token".to_owned(),
            subject: self.path.display().to_string(),
            outcome: "ok".to_owned(),
            detail: "made for this host; those before it are revoked".to_owned(),
            ..AuditEntry::default()
        }
    }

    /// Writes the file, once what it opens is durable; sets its mode in any case.
    pub fn write(&self) -> Result<(), LocalError> {
        let done = match &self.fresh {
            Some(token) => replace(&self.path, token),
            None => share(&self.path),
        };
        done.map_err(|source| LocalError::Write {
            path: self.path.display().to_string(),
            source,
        })
    }
}

/// The file's text, if it is there and no longer than a token with its line's end.
fn read(path: &Path) -> Option<SecretString> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    let most = bearer::LENGTH as u64 + 2;
    file.take(most).read_to_string(&mut text).ok()?;
    Some(text.into())
}

/// Whole or not at all, and never readable by others on its way.
fn replace(path: &Path, token: &SecretString) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    writeln!(file, "{}", token.expose_secret())?;
    file.sync_all()?;
    share(&fresh)?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Lets the group read it, if there is such a group and we may give to it.
fn share(path: &Path) -> io::Result<()> {
    let group = fs::read_to_string("/etc/group").ok();
    let id = group.as_deref().and_then(|text| id_of(GROUP, text));
    let shared = match id {
        Some(id) => chown(path, None, Some(id)).is_ok(),
        None => false,
    };
    let mode = if shared { 0o640 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A group's id in the text of `/etc/group`.
fn id_of(name: &str, text: &str) -> Option<u32> {
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(local: &Local) -> Vec<TokenRow> {
        let made = |change: &TokenChange| match change {
            TokenChange::Made(row) => Some(row.clone()),
            _ => None,
        };
        local.changes.iter().filter_map(made).collect()
    }

    #[test]
    fn the_file_is_made_once_and_again_when_it_is_gone_or_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let first = Local::prepare(folder.path(), &[], 5).unwrap();
        first.write().unwrap();
        let known = rows(&first);
        assert_eq!(known.len(), 1);
        let text = fs::read_to_string(&first.path).unwrap();
        let presented = Presented::parse(text.trim()).unwrap();
        assert!(presented.matches(&TokenHash::from_bytes(known[0].hash)));
        let mode = fs::metadata(&first.path).unwrap().permissions().mode() & 0o777;
        assert!(mode == 0o600 || mode == 0o640, "{mode:o}");
        // Known: it stays.
        let again = Local::prepare(folder.path(), &known, 6).unwrap();
        assert!(again.changes.is_empty());
        again.write().unwrap();
        assert_eq!(fs::read_to_string(&first.path).unwrap(), text);
        // Revoked, of another store, cut off, or gone: another one, and the old one ends.
        let revoked = TokenRow {
            revoked_at: Some(6),
            ..known[0].clone()
        };
        let after = Local::prepare(folder.path(), &[revoked], 7).unwrap();
        assert_eq!(after.changes.len(), 1);
        fs::write(&first.path, &text[..20]).unwrap();
        let after = Local::prepare(folder.path(), &known, 7).unwrap();
        let id = known[0].id.clone();
        assert_eq!(after.changes[0], TokenChange::Revoked { id, at: 7 });
        assert_eq!(rows(&after).len(), 1);
        after.write().unwrap();
        assert_ne!(fs::read_to_string(&first.path).unwrap(), text);
    }

    #[test]
    fn somebody_elses_token_in_the_file_is_not_taken_for_ours() {
        let folder = tempfile::tempdir().unwrap();
        let first = Local::prepare(folder.path(), &[], 5).unwrap();
        first.write().unwrap();
        let mut known = rows(&first);
        known[0].created_by = "ada".to_owned();
        let after = Local::prepare(folder.path(), &known, 6).unwrap();
        assert_eq!(after.changes.len(), 1, "{:?}", after.changes);
    }

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\nlongshore2:x:7:\nlongshore:x:990:ada,eve\n";
        assert_eq!(id_of("longshore", text), Some(990));
        assert_eq!(id_of("long", text), None);
    }
}
