//! How an engine wants a sandbox to be put, where engines differ. The sandbox is
//! the same; only its words are not.
//!
//! Measured with Docker 20.10 and Debian 12's Podman 4.3.1 through its
//! Docker-compatible socket. What an engine has no words for is a [`Gap`].

use serde::Serialize;

/// One engine's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Dialect {
    /// How options of a tmpfs say that the runner's user owns it.
    pub tmpfs_owner: TmpfsOwner,
    /// Ends the options of each tmpfs.
    pub tmpfs_suffix: &'static str,
    /// Folders that the engine makes writable under a read-only root by itself,
    /// without a size: given small ones, so that none is without a bound.
    pub unasked_tmpfs: &'static [&'static str],
    /// Masked paths are a security option, and the field for them is ignored.
    pub mask_by_option: bool,
    /// The engine reads a filter of system calls from a file on its host, not from
    /// the request.
    pub seccomp_by_file: bool,
    pub log_driver: &'static str,
    pub log_options: &'static [(&'static str, &'static str)],
}

/// Who owns a tmpfs, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum TmpfsOwner {
    /// `uid=` and `gid=`.
    Number,
    /// `U`: the container's user. The socket refuses numbers.
    User,
}

/// A property that an engine cannot give, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub property: &'static str,
    pub reason: &'static str,
}

impl Dialect {
    pub const DOCKER: Self = Self {
        tmpfs_owner: TmpfsOwner::Number,
        tmpfs_suffix: "",
        unasked_tmpfs: &[],
        mask_by_option: false,
        seccomp_by_file: false,
        log_driver: "local",
        log_options: &[("max-size", "1m"), ("max-file", "1"), ("compress", "false")],
    };

    pub const PODMAN: Self = Self {
        tmpfs_owner: TmpfsOwner::User,
        // Otherwise the image's files are copied into memory.
        tmpfs_suffix: ",notmpcopyup",
        unasked_tmpfs: &["/run", "/var/tmp"],
        mask_by_option: true,
        seccomp_by_file: true,
        log_driver: "k8s-file",
        log_options: &[("max-size", "1m")],
    };

    /// Of an engine's kind, as the fingerprint tells it.
    pub fn of(kind: &str) -> Self {
        match kind {
            "podman" => Self::PODMAN,
            _ => Self::DOCKER,
        }
    }
}

/// What this engine cannot give a sandbox, whatever it is asked.
pub fn gaps(kind: &str, cgroup_version: u32) -> Vec<Gap> {
    let mut gaps = Vec::new();
    if kind == "podman" {
        gaps.push(Gap {
            property: "no_ipv6",
            reason: "podman gives a sandbox a link-local IPv6 address; what is sent from it is dropped by the node's own rules",
        });
    }
    if kind == "podman" && cgroup_version == 1 {
        gaps.push(Gap {
            property: "own_cgroup_namespace",
            reason: "podman's Docker-compatible socket ignores CgroupnsMode and keeps the host's on control groups version 1; set cgroupns = \"private\" in containers.conf, or use a host with version 2",
        });
        gaps.push(Gap {
            property: "out_of_memory_told",
            reason: "podman does not notice on control groups version 1 when a step and not the runner program is killed for memory; such a job ends with the step's own failure",
        });
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_engine_is_spoken_to_like_docker() {
        assert_eq!(Dialect::of("docker"), Dialect::DOCKER);
        assert_eq!(Dialect::of(""), Dialect::DOCKER);
        assert_eq!(Dialect::of("podman"), Dialect::PODMAN);
    }

    #[test]
    fn a_gap_has_a_reason_and_docker_has_none() {
        assert!(gaps("docker", 1).is_empty());
        assert_eq!(gaps("podman", 2).len(), 1);
        let found = gaps("podman", 1);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|gap| gap.reason.contains("podman")));
    }
}
