//! Who may do what: roles, scopes, and the one table that declares both for every call and route.
//!
//! What has no row in [`CALLS`] or [`ROUTES`] is denied. A test of the
//! scheduler walks its service descriptors and routes and fails when one has no
//! row, and another asks a real scheduler for each of them with each role.

use std::{fmt, str::FromStr};

/// What a caller may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads `/metrics` and nothing else.
    Scrape,
    /// Reads jobs, runners, nodes, pools and output.
    Viewer,
    /// Also starts and stops runners, turns scaling on and off, and takes nodes out of service.
    Operator,
    /// Also changes pools and shares, removes nodes, hands out tokens and reads the audit log.
    Admin,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Scrape, Self::Viewer, Self::Operator, Self::Admin];

    /// The word of every surface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scrape => "scrape",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no role; use scrape, viewer, operator or admin", .0.escape_debug())]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| UnknownRole(text.chars().take(64).collect()))
    }
}

/// Whose jobs, runners and queues a token is for. GitHub's names do not know upper and lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The whole fleet.
    #[default]
    Fleet,
    /// Every repository of one owner.
    Owner(String),
    /// One repository.
    Repository { owner: String, name: String },
}

impl Scope {
    pub fn is_fleet(&self) -> bool {
        *self == Self::Fleet
    }

    /// Whether `owner/name` is within.
    pub fn covers(&self, repository: &str) -> bool {
        let (of, called) = repository.split_once('/').unwrap_or((repository, ""));
        match self {
            Self::Fleet => true,
            Self::Owner(owner) => of.eq_ignore_ascii_case(owner),
            Self::Repository { owner, name } => {
                of.eq_ignore_ascii_case(owner) && called.eq_ignore_ascii_case(name)
            }
        }
    }

    /// Whether everything of this owner is within.
    pub fn covers_owner(&self, login: &str) -> bool {
        match self {
            Self::Fleet => true,
            Self::Owner(owner) => login.eq_ignore_ascii_case(owner),
            Self::Repository { .. } => false,
        }
    }

    /// The owner it is limited to, when it is.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Self::Fleet => None,
            Self::Owner(owner) | Self::Repository { owner, .. } => Some(owner),
        }
    }
}

/// Empty for the whole fleet, else `owner` or `owner/name`.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => Ok(()),
            Self::Owner(owner) => f.write_str(owner),
            Self::Repository { owner, name } => write!(f, "{owner}/{name}"),
        }
    }
}

/// A text that names neither an owner nor a repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is neither owner nor owner/name; write it like acme or acme/web", .0.escape_debug())]
pub struct UnknownScope(pub String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let is_name = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !part.is_empty() && part.len() <= 100 && part.bytes().all(allowed)
        };
        let wrong = || UnknownScope(text.chars().take(64).collect());
        if text.is_empty() {
            return Ok(Self::Fleet);
        }
        match text.split_once('/') {
            None if is_name(text) => Ok(Self::Owner(text.to_owned())),
            Some((owner, name)) if is_name(owner) && is_name(name) => Ok(Self::Repository {
                owner: owner.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(wrong()),
        }
    }
}

/// What a call does for a caller whose token is limited to an owner or a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The handler shows and touches only what is within the scope.
    Within,
    /// It is about the whole fleet: such a caller is refused.
    Fleet,
    /// It tells nothing of anybody: everybody gets the same.
    Plain,
}

/// What a call or route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: for probes that cannot hold a token.
    Open,
    /// At least this role.
    Role { needs: Role, reach: Reach },
}

const fn within(needs: Role) -> Access {
    Access::Role {
        needs,
        reach: Reach::Within,
    }
}

const fn fleet(needs: Role) -> Access {
    Access::Role {
        needs,
        reach: Reach::Fleet,
    }
}

const fn plain(needs: Role) -> Access {
    Access::Role {
        needs,
        reach: Reach::Plain,
    }
}

use Role::{Admin, Operator, Scrape, Viewer};

/// Every gRPC call of the API listener: service, call, what it asks.
pub const CALLS: &[(&str, &str, Access)] = &[
    (FLEET, "GetStatus", within(Viewer)),
    (FLEET, "ListWorkflowQueues", within(Viewer)),
    (FLEET, "ListJobs", within(Viewer)),
    (FLEET, "GetJob", within(Viewer)),
    (FLEET, "ExplainJob", within(Viewer)),
    (FLEET, "ListRunners", within(Viewer)),
    (FLEET, "GetRunner", within(Viewer)),
    (FLEET, "StreamRunnerLogs", within(Viewer)),
    (FLEET, "WatchFleet", within(Viewer)),
    (FLEET, "ListNodes", fleet(Viewer)),
    (FLEET, "GetNode", fleet(Viewer)),
    (FLEET, "ListPools", fleet(Viewer)),
    (FLEET, "ProvisionRunners", within(Operator)),
    (FLEET, "StopRunner", within(Operator)),
    (FLEET, "StartAutoscaler", fleet(Operator)),
    (FLEET, "StopAutoscaler", fleet(Operator)),
    (FLEET, "CheckNode", fleet(Operator)),
    (FLEET, "CordonNode", fleet(Operator)),
    (FLEET, "UncordonNode", fleet(Operator)),
    (FLEET, "DrainNode", fleet(Operator)),
    (FLEET, "RemoveNode", fleet(Admin)),
    (FLEET, "SetPool", fleet(Admin)),
    (FLEET, "DeletePool", fleet(Admin)),
    (FLEET, "SetShare", fleet(Admin)),
    (ADMIN, "WhoAmI", plain(Scrape)),
    (ADMIN, "CreateToken", fleet(Admin)),
    (ADMIN, "ListTokens", fleet(Admin)),
    (ADMIN, "RevokeToken", fleet(Admin)),
    (ADMIN, "CreateJoinToken", fleet(Admin)),
    (ADMIN, "ListJoinTokens", fleet(Admin)),
    (ADMIN, "RevokeJoinToken", fleet(Admin)),
    (ADMIN, "ListAudit", fleet(Admin)),
    (ADMIN, "VerifyAudit", fleet(Admin)),
    // What /livez and /readyz say, for probes that speak gRPC.
    (HEALTH, "Check", Access::Open),
    (HEALTH, "Watch", plain(Viewer)),
    (REFLECTION, "ServerReflectionInfo", plain(Viewer)),
];

const FLEET: &str = "longshore.v1.FleetService";
const ADMIN: &str = "longshore.v1.AdminService";
const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";

/// Every other route of the API listener: path, what it asks.
pub const ROUTES: &[(&str, Access)] = &[
    ("/livez", Access::Open),
    ("/readyz", Access::Open),
    ("/metrics", fleet(Scrape)),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_role_may_what_the_one_before_may() {
        assert!(Role::ALL.is_sorted());
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
        assert!("".parse::<Role>().is_err());
    }

    #[test]
    fn a_scope_covers_its_own_and_nothing_that_only_begins_alike() {
        let owner: Scope = "acme".parse().unwrap();
        let repository: Scope = "acme/web".parse().unwrap();
        for (name, by_owner, by_repository) in [
            ("acme/web", true, true),
            ("ACME/Web", true, true),
            ("acme/web2", true, false),
            ("acme/we", true, false),
            ("acme2/web", false, false),
            ("acm/web", false, false),
            ("web", false, false),
            ("", false, false),
        ] {
            assert!(Scope::Fleet.covers(name));
            assert_eq!(owner.covers(name), by_owner, "{name}");
            assert_eq!(repository.covers(name), by_repository, "{name}");
        }
        assert!(owner.covers_owner("Acme") && !owner.covers_owner("acme2"));
        assert!(!repository.covers_owner("acme"));
    }

    #[test]
    fn a_scope_is_written_as_it_is_read() {
        for text in ["", "acme", "acme/web.js", "a-b/c_d"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for wrong in ["/", "acme/", "/web", "acme/web/x", "acme web", "a%b", "*"] {
            assert!(wrong.parse::<Scope>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_is_declared_twice() {
        let mut seen = BTreeSet::new();
        for (service, call, _) in CALLS {
            assert!(seen.insert(format!("/{service}/{call}")), "{call}");
        }
        for (path, _) in ROUTES {
            assert!(seen.insert((*path).to_owned()), "{path}");
        }
    }

    #[test]
    fn what_changes_something_is_not_for_viewers() {
        let reads = [
            "Get", "List", "Explain", "Stream", "Watch", "WhoAmI", "Verify", "Server",
        ];
        for (_, call, access) in CALLS {
            let Access::Role { needs, .. } = access else {
                continue;
            };
            if !reads.iter().any(|verb| call.starts_with(verb)) {
                assert!(*needs >= Operator, "{call}");
            }
        }
    }
}
