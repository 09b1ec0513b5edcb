//! Where the built programs lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Folder that says where the programs are, when they are not beside the caller.
pub const FOLDER_VARIABLE: &str = "LONGSHORE_BIN_DIR";

/// The folder of the built programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Programs in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The folder named by `LONGSHORE_BIN_DIR`, else the one this program was built into. Never PATH: a test must not pass with an installed program.
    pub fn find() -> Result<Self> {
        if let Some(folder) = std::env::var_os(FOLDER_VARIABLE) {
            return Ok(Self::at(folder));
        }
        let own = std::env::current_exe().context("own path")?;
        // target/debug/demo, or target/debug/deps/e2e-0123 for a test.
        let mut folder = own.parent().context("own folder")?;
        if folder.ends_with("deps") {
            folder = folder.parent().context("folder above deps")?;
        }
        Ok(Self::at(folder))
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Full path of a program.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if !path.is_file() {
            bail!(
                "no {name} in {}: build it first with cargo build --workspace --bins, or set {FOLDER_VARIABLE}",
                self.folder.display()
            );
        }
        Ok(path)
    }
}
