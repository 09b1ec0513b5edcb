//! The token of this caller: a file that was named, or the one of a fleet on this host.

use std::io::Read;
use std::path::{Path, PathBuf};

use longshore_client::SecretString;

use crate::args::Global;
use crate::exit::Failure;
use crate::local;

/// What a scheduler calls it in its state folder.
pub(crate) const FILE: &str = "local-token";
/// Where a scheduler of this host keeps it when it is started by the system.
const SYSTEM: [&str; 2] = [
    "/run/longshore/local-token",
    "/var/lib/longshore/local-token",
];
/// A token is shorter.
const MOST: u64 = 4_096;

/// The token to show, if there is one. What is of this host goes to this host only.
pub(crate) fn find(global: &Global) -> Result<Option<SecretString>, Failure> {
    if let Some(file) = &global.token_file {
        return read(file).map(Some).map_err(|e| {
            Failure::usage(
                format!("read the token file {}: {e}", file.display()),
                "name one you may read with --token-file or LONGSHORE_TOKEN_FILE",
            )
        });
    }
    if !local::is_this_host(&global.scheduler) {
        return Ok(None);
    }
    let home = std::env::var_os("LONGSHORE_HOME").map(PathBuf::from);
    let own = local::state_dir(home.as_deref()).ok();
    let own = own.map(|state| state.join(FILE));
    let mut known = own.into_iter().chain(SYSTEM.map(PathBuf::from));
    Ok(known.find_map(|file| read(&file).ok()))
}

pub(crate) fn read(file: &Path) -> std::io::Result<SecretString> {
    let mut text = String::new();
    std::fs::File::open(file)?
        .take(MOST)
        .read_to_string(&mut text)?;
    match text.trim() {
        "" => Err(std::io::Error::other("it is empty")),
        token => Ok(SecretString::from(token)),
    }
}
