//! Who may touch a file with a secret: its owner, who is root or this process's user, and nobody else may change it.

use std::{path::Path, sync::OnceLock};

const OTHERS_READ: u32 = 0o004;
const OTHERS_WRITE: u32 = 0o022;

/// What is wrong with a file of this mode and owner, with the next step; nothing when it will do.
///
/// A group that may read is no error: systemd's access lists and mounted secrets look like that.
pub(crate) fn problem(path: &Path, mode: u32, owner: u32, own: Own) -> Option<String> {
    let path = path.display();
    let shown = mode & 0o7777;
    if owner != 0 && owner != own.user && Some(owner) != own.behind_sudo {
        let user = own.user;
        return Some(format!(
            "it belongs to user {owner}, who could replace the secret; it has to be root's or that of user {user}, who runs this: chown root {path}"
        ));
    }
    if mode & OTHERS_WRITE != 0 {
        return Some(format!(
            "others than its owner may write it (mode {shown:04o}): chmod 600 {path}"
        ));
    }
    if mode & OTHERS_READ != 0 {
        return Some(format!(
            "everybody on this host may read it (mode {shown:04o}): chmod 600 {path}, and renew the secret if the host has other users"
        ));
    }
    None
}

/// Whom this process acts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    /// Its effective user.
    pub(crate) user: u32,
    /// Who became root by sudo to start it: the files are that person's own.
    pub(crate) behind_sudo: Option<u32>,
}

/// Of this process.
pub(crate) fn own() -> Own {
    static OWN: OnceLock<Own> = OnceLock::new();
    *OWN.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let user = effective_user(&status).unwrap_or(0);
        let sudo = std::env::var("SUDO_UID").ok();
        Own {
            user,
            behind_sudo: sudo
                .and_then(|text| text.parse().ok())
                .filter(|_| user == 0),
        }
    })
}

fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_this_user_may_own_it() {
        let of = |user| Own {
            user,
            behind_sudo: None,
        };
        let problem = |mode, owner, own| problem(Path::new("/etc/x"), mode, owner, of(own));
        assert_eq!(problem(0o100_600, 0, 1000), None);
        assert_eq!(problem(0o100_600, 1000, 1000), None);
        let told = problem(0o100_600, 1001, 1000).unwrap();
        assert!(
            told.contains("user 1001") && told.contains("chown root /etc/x"),
            "{told}"
        );
        assert!(problem(0o100_600, 1001, 0).is_some());
        assert!(
            problem(0o100_666, 0, 0)
                .unwrap()
                .contains("may write it (mode 0666)")
        );
        let sudo = Own {
            user: 0,
            behind_sudo: Some(1001),
        };
        assert_eq!(super::problem(Path::new("/etc/x"), 0o600, 1001, sudo), None);
        assert_eq!(effective_user("Name:\tx\nUid:\t1\t2\t3\t4\n"), Some(2));
    }
}
