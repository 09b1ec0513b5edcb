//! How many files the process may have open, and what that leaves for connections.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files, database and calls to GitHub beside the connections.
const OTHERS: usize = 512;
/// No more is ever asked for.
const ENOUGH: u64 = 65_536;

/// Raises the limit as far as is allowed; the limit in force.
pub fn raise() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if limit.current.is_some_and(|current| current < most) {
        limit.current = Some(most);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files was not raised");
        }
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH);
    usize::try_from(current.min(ENOUGH)).unwrap_or(OTHERS)
}

/// Connections of each of `listeners`, `wanted` or what the limit leaves.
pub fn share(limit: usize, listeners: usize, wanted: usize) -> usize {
    let left = limit.saturating_sub(OTHERS.min(limit / 2)) / listeners.max(1);
    if left >= wanted {
        return wanted;
    }
    tracing::warn!(
        limit,
        connections = left,
        "few files may be open at once (LimitNOFILE in the unit, `ulimit -n` in a shell): fewer connections than {wanted} on each listener"
    );
    left.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_the_limit_of_files() {
        assert_eq!(share(65_536, 3, 8_192), 8_192);
        assert_eq!(share(1_024, 3, 8_192), 170);
        assert!(share(1_024, 3, 8_192) * 3 < 1_024);
        assert_eq!(share(0, 3, 8_192), 1);
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        let limit = raise();
        let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(ENOUGH);
        assert_eq!(limit as u64, allowed.min(ENOUGH));
    }
}
