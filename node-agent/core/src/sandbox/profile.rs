//! The profiles, and what each changes in a sandbox. Everything else is one for all.

use serde::Serialize;

/// How closed a sandbox is. Each is a complete description; nothing is added to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Every row of the isolation table that a sandbox can set. The default, and
    /// the only one for code of forks.
    #[default]
    Strict,
    /// The image's files may be changed; `sudo` where the engine maps users.
    Standard,
    /// As `standard`, and the job may have containers of its own beside it.
    Containers,
}

/// What a profile changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub word: &'static str,
    /// Row 5.
    pub readonly_rootfs: bool,
    /// Rows 2 and 3, and only where the engine maps the sandbox's users to
    /// powerless ones of the host (row 20): elsewhere both hold in every profile.
    pub sudo_where_users_are_mapped: bool,
    /// `container:`, `services:` and container actions, through the agent.
    pub containers: bool,
    /// The call by which 32-bit x86 programs make sockets, whose kind a filter
    /// cannot see.
    pub old_socket_call: bool,
}

/// What `sudo` and a package manager need of root's powers inside a user
/// namespace, and no more: becoming another user, and files of others.
pub const SUDO_CAPABILITIES: [&str; 5] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"];

impl Profile {
    /// From the most closed to the least.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Standard, Self::Containers];

    pub const fn terms(self) -> Terms {
        match self {
            Self::Strict => Terms {
                word: "strict",
                readonly_rootfs: true,
                sudo_where_users_are_mapped: false,
                containers: false,
                old_socket_call: false,
            },
            Self::Standard => Terms {
                word: "standard",
                readonly_rootfs: false,
                sudo_where_users_are_mapped: true,
                containers: false,
                old_socket_call: true,
            },
            Self::Containers => Terms {
                word: "containers",
                readonly_rootfs: false,
                sudo_where_users_are_mapped: true,
                containers: true,
                old_socket_call: true,
            },
        }
    }

    /// As pools and the wire name it.
    pub const fn word(self) -> &'static str {
        self.terms().word
    }

    /// The profile of a name; none given is `strict`.
    pub fn parse(word: &str) -> Option<Self> {
        if word.is_empty() {
            return Some(Self::default());
        }
        Self::ALL.into_iter().find(|profile| profile.word() == word)
    }

    /// Whether a job may become root inside its sandbox.
    pub const fn has_sudo(self, users_are_mapped: bool) -> bool {
        users_are_mapped && self.terms().sudo_where_users_are_mapped
    }
}

/// Which profiles a node's operator lets it offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered([bool; 3]);

impl Default for Offered {
    fn default() -> Self {
        Self([true; 3])
    }
}

impl Offered {
    /// From names with commas between them; the error is the first that is no profile.
    pub fn parse(words: &str) -> Result<Self, String> {
        let mut offered = Self([false; 3]);
        for word in words.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let profile = Profile::parse(word).ok_or_else(|| word.to_owned())?;
            offered.0[profile as usize] = true;
        }
        Ok(offered)
    }

    pub fn has(self, profile: Profile) -> bool {
        self.0[profile as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_profiles() {
        for profile in Profile::ALL {
            assert_eq!(Profile::parse(profile.word()), Some(profile));
        }
        assert_eq!(Profile::parse(""), Some(Profile::Strict));
        for other in ["Strict", "nested", "privileged-dind", "strict "] {
            assert_eq!(Profile::parse(other), None, "{other}");
        }
    }

    #[test]
    fn sudo_needs_mapped_users_and_is_never_strict() {
        assert!(Profile::ALL.iter().all(|profile| !profile.has_sudo(false)));
        let with: Vec<Profile> = Profile::ALL
            .into_iter()
            .filter(|profile| profile.has_sudo(true))
            .collect();
        assert_eq!(with, [Profile::Standard, Profile::Containers]);
    }

    #[test]
    fn an_operators_list_takes_away() {
        let offered = Offered::parse(" strict , containers").unwrap();
        assert!(offered.has(Profile::Strict) && offered.has(Profile::Containers));
        assert!(!offered.has(Profile::Standard));
        assert!(Profile::ALL.into_iter().all(|p| Offered::default().has(p)));
        assert_eq!(Offered::parse("strict,open"), Err("open".to_owned()));
    }
}
