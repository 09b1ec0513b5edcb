//! Names of images, as far as two of them have to be compared.

/// The repository of a name, without registry and folder that Docker leaves out:
/// `docker.io/library/busybox:1` and `busybox@sha256:...` are of `busybox`.
pub(crate) fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    // A colon before the last slash is a registry's port.
    let folders = name.rfind('/').map_or(0, |at| at + 1);
    let name = match name[folders..].find(':') {
        Some(at) => &name[..folders + at],
        None => name,
    };
    let name = ["docker.io/", "index.docker.io/"]
        .iter()
        .find_map(|registry| name.strip_prefix(registry))
        .unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

/// What was pulled by a name without one has this tag.
pub(crate) fn tag(name: &str) -> Option<&str> {
    if name.contains('@') {
        return None;
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    Some(last.split_once(':').map_or("latest", |(_, tag)| tag))
}

/// Two names for the same thing.
pub(crate) fn same(one: &str, other: &str) -> bool {
    repository(one) == repository(other) && tag(one) == tag(other)
}

/// A name that can mean another image tomorrow.
pub(crate) fn can_move(name: &str) -> bool {
    !name.contains('@') && !name.starts_with("sha256:")
}

/// What an engine calls the architecture of a platform.
pub(crate) fn architecture(platform: &str) -> &str {
    platform.split('/').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_docker_shortens_them() {
        for (name, expected) in [
            ("busybox", "busybox"),
            ("docker.io/library/busybox:1", "busybox"),
            ("busybox@sha256:00", "busybox"),
            ("127.0.0.1:5000/runner", "127.0.0.1:5000/runner"),
            (
                "127.0.0.1:5000/a/runner:2@sha256:00",
                "127.0.0.1:5000/a/runner",
            ),
            (
                "ghcr.io/actions/actions-runner:latest",
                "ghcr.io/actions/actions-runner",
            ),
        ] {
            assert_eq!(repository(name), expected, "{name}");
        }
        assert!(same("runner", "docker.io/library/runner:latest"));
        assert!(!same("runner:1", "runner:2") && !same("a/runner", "runner"));
        assert!(!same("runner@sha256:00", "runner"));
    }

    #[test]
    fn only_a_tag_moves() {
        assert!(can_move("runner") && can_move("r:5000/runner:latest"));
        assert!(!can_move("runner@sha256:00") && !can_move("sha256:00"));
        assert_eq!(architecture("linux/arm/v7"), "arm");
    }
}
