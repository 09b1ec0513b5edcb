//! Writes the filters of system calls down for an engine that reads them from files.

use std::path::Path;

use agent_core::sandbox::{Filter, Profile};
use agent_core::seccomp::filter;
use tracing::warn;

/// Where the engine reads them at each start of a sandbox.
pub(crate) fn write(state_dir: &Path) -> Filter {
    let folder = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    for profile in Profile::ALL {
        let file = folder.join(Filter::file(profile));
        let new = file.with_extension("new");
        let written =
            std::fs::write(&new, filter(profile)).and_then(|()| std::fs::rename(&new, &file));
        if let Err(error) = written {
            let why = format!("{} cannot be written: {error}", file.display());
            warn!(
                why,
                "sandboxes keep the engine's own filter of system calls"
            );
            return Filter::Without(why);
        }
    }
    Filter::Files(folder.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_profile_has_its_file_and_a_folder_that_cannot_be_written_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let Filter::Files(folder) = write(dir.path()) else {
            panic!("it can be written");
        };
        assert!(Path::new(&folder).is_absolute());
        for profile in Profile::ALL {
            let file = Path::new(&folder).join(Filter::file(profile));
            assert_eq!(std::fs::read_to_string(file).unwrap(), filter(profile));
        }
        let Filter::Without(why) = write(&dir.path().join("absent")) else {
            panic!("it cannot be written");
        };
        assert!(why.contains("seccomp-strict.json"), "{why}");
    }
}
