//! Secrets that systemd hands over as files (`LoadCredential=`): found by name, without a setting.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Which setting a credential stands for when nothing else sets it.
pub const NAMES: &[(&str, &str)] = &[
    ("github.token_file", "github-token"),
    ("github.app_key_file", "github-app-key"),
    ("github.webhook_secret_files", "webhook-secret"),
    ("oidc.client_secret_file", "oidc-client-secret"),
];
/// What a path begins with that means a credential by its name.
const SCHEME: &str = "credential:";

/// The files in `$CREDENTIALS_DIRECTORY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    folder: Option<PathBuf>,
    names: BTreeSet<String>,
}

impl Credentials {
    /// A folder and the names of the files in it.
    pub fn new(folder: PathBuf, names: impl IntoIterator<Item = String>) -> Self {
        Self {
            folder: Some(folder),
            names: names.into_iter().collect(),
        }
    }

    /// What systemd gave this process; nothing where it did not start it.
    pub fn of_process() -> std::io::Result<Self> {
        let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
            return Ok(Self::default());
        };
        let folder = PathBuf::from(folder);
        let entries = std::fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>()?;
        let names = entries
            .iter()
            .filter_map(|entry| entry.file_name().into_string().ok());
        Ok(Self::new(folder.clone(), names))
    }

    /// Files that set a setting: its name, or for a list also `name-...` (and `name_...`, as systemd
    /// names the files of a folder). A list is in the order of the names.
    pub(super) fn files(&self, name: &str, list: bool) -> Vec<String> {
        let Some(folder) = &self.folder else {
            return Vec::new();
        };
        let means = |found: &&String| {
            let rest = found.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || (list && rest.starts_with(['-', '_'])))
        };
        let found = self.names.iter().filter(means);
        found
            .map(|name| folder.join(name).display().to_string())
            .collect()
    }

    /// The path that a setting means: `credential:NAME` is one of these files.
    pub(super) fn path(&self, text: &str) -> Result<PathBuf, String> {
        let Some(name) = text.strip_prefix(SCHEME) else {
            return Ok(PathBuf::from(text));
        };
        let Some(folder) = &self.folder else {
            return Err(format!(
                "`{text}` is a credential of systemd, and systemd gave this process none; \
                 name a file, or put LoadCredential={name} into the unit"
            ));
        };
        if !self.names.contains(name) {
            let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
            return Err(format!(
                "`{text}`: systemd gave no credential of that name (it gave {names:?}); \
                 put LoadCredential={name} into the unit"
            ));
        }
        Ok(folder.join(name))
    }

    /// Whether systemd guards this file: its mode says less than systemd's own access list.
    pub fn hold(&self, file: &Path) -> bool {
        self.folder
            .as_ref()
            .is_some_and(|folder| file.starts_with(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Credentials {
        let names = [
            "github-token",
            "webhook-secret-old",
            "webhook-secret",
            "webhook-secrets",
            "acme",
        ];
        Credentials::new("/run/credentials/x".into(), names.map(str::to_owned))
    }

    #[test]
    fn a_list_takes_all_that_its_name_begins() {
        assert_eq!(
            given().files("webhook-secret", true),
            [
                "/run/credentials/x/webhook-secret",
                "/run/credentials/x/webhook-secret-old"
            ]
        );
        assert_eq!(given().files("webhook-secret", false).len(), 1);
        assert!(given().files("github-app-key", false).is_empty());
        assert!(Credentials::default().files("acme", true).is_empty());
    }

    #[test]
    fn a_path_may_name_a_credential_that_is_there() {
        let path = |text| given().path(text);
        assert_eq!(path("/etc/x"), Ok("/etc/x".into()));
        assert_eq!(
            path("credential:acme"),
            Ok("/run/credentials/x/acme".into())
        );
        let error = path("credential:acmee").expect_err("absent");
        assert!(error.contains("LoadCredential=acmee"), "{error}");
        let error = Credentials::default().path("credential:acme");
        let error = error.expect_err("no systemd");
        assert!(error.contains("name a file"), "{error}");
        assert!(given().hold(Path::new("/run/credentials/x/acme")));
        assert!(!given().hold(Path::new("/etc/x")));
    }
}
