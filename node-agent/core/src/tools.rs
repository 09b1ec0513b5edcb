//! Files that every sandbox finds first in its PATH: what its profile does not
//! offer says so at once, and the container hook.
//!
//! They are in a read-only volume of their own, made once for each version of
//! the agent. Each profile has a folder in it, so that the messages are true.

use crate::names::Fnv;
use crate::sandbox::Profile;

/// Where the volume is in a sandbox.
pub const ROOT: &str = "/opt/longshore";

/// A file of the volume; the path is below [`ROOT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub text: String,
    /// 0755 for programs, else 0644.
    pub program: bool,
}

/// Folder of a profile's programs, below [`ROOT`].
pub fn folder(profile: Profile, sudo: bool) -> String {
    match sudo {
        true => format!("{}-sudo", profile.word()),
        false => profile.word().to_owned(),
    }
}

/// The hook that the runner program is given, whole path. It ends in `.sh`: the
/// runner program picks the interpreter by that.
pub fn hook(profile: Profile, sudo: bool) -> String {
    format!("{ROOT}/{}/container-hook.sh", folder(profile, sudo))
}

/// Everything in the volume.
pub fn files() -> Vec<File> {
    let mut files = Vec::new();
    for profile in Profile::ALL {
        for sudo in [false, true] {
            if sudo && !profile.has_sudo(true) {
                continue;
            }
            files.extend(of(profile, sudo));
        }
    }
    files
}

/// Changes whenever a file does.
pub fn version() -> String {
    let mut hash = Fnv::default();
    for file in files() {
        for part in [&file.path, &file.text] {
            hash.write(part.as_bytes());
            hash.write(&[0]);
        }
    }
    format!("{:016x}", hash.0)
}

fn of(profile: Profile, sudo: bool) -> Vec<File> {
    let folder = folder(profile, sudo);
    let program = |name: &str, text: String| File {
        path: format!("{folder}/{name}"),
        text,
        program: true,
    };
    let mut files: Vec<File> = ["docker", "podman"]
        .into_iter()
        .map(|name| program(&format!("bin/{name}"), refusing(&no_engine(name, profile))))
        .collect();
    if !sudo {
        files.push(program("bin/sudo", refusing(&no_sudo(profile))));
    }
    files.push(program(
        "container-hook.sh",
        match profile.terms().containers {
            true => HOOK.to_owned(),
            false => refusing(&no_containers(profile)),
        },
    ));
    files
}

fn no_engine(name: &str, profile: Profile) -> String {
    let other = match profile.terms().containers {
        true => "container:, services: and container actions work here",
        false => {
            "container:, services: and container actions work in a pool with profile containers"
        }
    };
    format!(
        "{name}: no profile gives a job a container engine or its socket (this is {}); {other}",
        profile.word()
    )
}

fn no_sudo(profile: Profile) -> String {
    match profile {
        Profile::Strict => "sudo: not in profile strict; bake the tools into the pool's image, or use a pool with profile standard on a node with the property user_namespace".into(),
        _ => format!(
            "sudo: profile {} has it only on nodes whose engine maps users, and this one does not; let the pool require the property user_namespace, or bake the tools into its image",
            profile.word()
        ),
    }
}

fn no_containers(profile: Profile) -> String {
    format!(
        "container:, services: and container actions do not work in profile {}; use a pool with profile containers",
        profile.word()
    )
}

/// A program that says one line and fails, in a form that GitHub marks as an error.
fn refusing(line: &str) -> String {
    format!("#!/bin/sh\necho '{}' >&2\nexit 1\n", line.replace('\'', ""))
}

/// Asks the agent. A shell script: the image surely has a shell, and the
/// protocol is lines, so nothing has to be built for each architecture.
pub const HOOK: &str = include_str!("tools/container-hook.sh");

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(files: &'a [File], path: &str) -> &'a str {
        let found = files.iter().find(|file| file.path == path);
        &found.unwrap_or_else(|| panic!("no {path}")).text
    }

    #[test]
    fn what_a_profile_lacks_names_the_one_that_has_it() {
        let files = files();
        let strict = text(&files, "strict/container-hook.sh");
        assert!(strict.contains("profile containers") && strict.contains("exit 1"));
        assert!(text(&files, "strict/bin/sudo").contains("profile standard"));
        assert!(text(&files, "standard/bin/sudo").contains("user_namespace"));
        assert!(text(&files, "standard/bin/docker").contains("profile containers"));
        assert_eq!(text(&files, "containers/container-hook.sh"), HOOK);
    }

    #[test]
    fn sudo_is_left_alone_where_it_works() {
        let files = files();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert!(paths.contains(&"standard-sudo/bin/docker"));
        assert!(!paths.contains(&"standard-sudo/bin/sudo"));
        assert!(!paths.iter().any(|path| path.starts_with("strict-sudo")));
        assert_eq!(folder(Profile::Containers, true), "containers-sudo");
    }

    #[test]
    fn a_refusal_is_one_line_and_survives_the_shell() {
        for file in files().iter().filter(|file| file.path.contains("/bin/")) {
            assert_eq!(file.text.lines().count(), 3, "{}", file.path);
            assert_eq!(file.text.matches('\'').count(), 2, "{}", file.path);
        }
    }
}
