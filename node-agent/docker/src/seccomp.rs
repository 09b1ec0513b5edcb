//! Finds the engine's own seccomp filter and writes down a tightened one.

use std::path::{Path, PathBuf};

use agent_core::seccomp::tightened;

/// Where Podman looks, in its order.
const SOURCES: [&str; 2] = [
    "/etc/containers/seccomp.json",
    "/usr/share/containers/seccomp.json",
];
const FILE: &str = "seccomp.json";
const MAX: u64 = 1 << 20;

/// The tightened filter, or why there is none.
pub(crate) fn profile() -> Result<String, String> {
    profile_of(&SOURCES.map(PathBuf::from))
}

fn profile_of(sources: &[PathBuf]) -> Result<String, String> {
    let found = sources
        .iter()
        .find(|path| path.metadata().is_ok_and(|meta| meta.len() <= MAX));
    let Some(path) = found else {
        let names: Vec<String> = sources.iter().map(|p| p.display().to_string()).collect();
        return Err(format!(
            "the engine's own filter allows user namespaces, and there is none to tighten at {}",
            names.join(" or ")
        ));
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    tightened(&text).map_err(|error| format!("{} cannot be tightened: {error}", path.display()))
}

/// Writes it where the engine reads it at each start of a sandbox.
pub(crate) fn write(state_dir: &Path, profile: &str) -> Result<PathBuf, String> {
    let file = std::path::absolute(state_dir)
        .unwrap_or_else(|_| state_dir.to_owned())
        .join(FILE);
    let new = file.with_extension("new");
    std::fs::write(&new, profile)
        .and_then(|()| std::fs::rename(&new, &file))
        .map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_filter_there_is_is_tightened_and_absence_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a.json"), dir.path().join("b.json"));
        let sources = [first.clone(), second.clone()];
        let why = profile_of(&sources).unwrap_err();
        assert!(
            why.contains("a.json") && why.contains("user namespaces"),
            "{why}"
        );
        let loose = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["unshare","read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        std::fs::write(&second, loose).unwrap();
        let profile = profile_of(&sources).unwrap();
        let file = write(dir.path(), &profile).unwrap();
        assert!(file.is_absolute());
        assert_eq!(std::fs::read_to_string(file).unwrap(), profile);
        std::fs::write(&first, "{").unwrap();
        assert!(profile_of(&sources).unwrap_err().contains("a.json"));
    }
}
