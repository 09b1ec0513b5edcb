//! The state folder: made, locked, and its database file private.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::Error;

pub(super) struct Folder {
    pub(super) database: PathBuf,
    /// Held for as long as the file is open.
    pub(super) lock: File,
}

pub(super) fn prepare(state_dir: &Path) -> Result<Folder, Error> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir);
    made.map_err(|e| refused(state_dir, &e))?;

    let lock = lock(&state_dir.join("longshore.lock"))?;
    let database = state_dir.join("longshore.db");
    // SQLite gives its side files the mode of this one.
    let created = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&database);
    created.map_err(|e| refused(&database, &e))?;
    // The file's name must survive a power cut as well as its content.
    File::open(state_dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| refused(state_dir, &e))?;
    Ok(Folder { database, lock })
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| refused(path, &e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: an unreadable note changes nothing.
            let _ = (&file).take(20).read_to_string(&mut holder);
            return Err(Error::Locked {
                path: path.display().to_string(),
                holder: match holder.trim() {
                    "" => "unknown".to_owned(),
                    pid => pid.to_owned(),
                },
            });
        }
        Err(TryLockError::Error(e)) => return Err(refused(path, &e)),
    }
    file.set_len(0)
        .and_then(|()| (&file).rewind())
        .and_then(|()| writeln!(&file, "{}", std::process::id()))
        .map_err(|e| refused(path, &e))?;
    Ok(file)
}

fn refused(path: &Path, error: &io::Error) -> Error {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Error::ReadOnly {
            path,
            detail: error.to_string(),
        },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full { path },
        _ => Error::Unusable {
            path,
            detail: format!("{error}; check --state-dir"),
        },
    }
}
