//! The direction of dependencies, as data and one check.
//!
//! A package of this repository that has no row in `PLACES` is a breach: whoever adds a crate says here where it stands.

use crate::{Breach, graph::Graph, graph::Use};

/// A package of this repository and which others of this repository it may name.
pub struct Place {
    /// Package name.
    pub package: &'static str,
    /// Packages of this repository it may depend on.
    pub may_use: &'static [&'static str],
}

/// The whole direction of dependencies of the product. Packages under `tests/` may use anything and stand outside.
pub const PLACES: &[Place] = &[
    place("longshore-proto", &[]),
    place("scheduler-core", &[]),
    place("agent-core", &[]),
    place("scheduler-store", &["scheduler-core", "longshore-proto"]),
    place("scheduler-github", &["scheduler-core"]),
    place("scheduler-identity", &["longshore-proto"]),
    place("scheduler-dashboard", &[]),
    place(
        "agent-docker",
        &["agent-core", "agent-egress", "agent-probe"],
    ),
    place("agent-egress", &["agent-core"]),
    place("agent-probe", &[]),
    place("agent-detect", &["agent-core"]),
    place(
        "longshore-scheduler",
        &[
            "scheduler-core",
            "scheduler-github",
            "scheduler-identity",
            "scheduler-store",
            "scheduler-dashboard",
            "longshore-proto",
            "longshore-mcp",
        ],
    ),
    place(
        "longshore-agent",
        &[
            "agent-core",
            "agent-detect",
            "agent-docker",
            "agent-egress",
            "longshore-proto",
        ],
    ),
    place("longshore-client", &["longshore-proto"]),
    place("longshore", &["longshore-client", "longshore-proto"]),
    place("longshore-mcp", &["longshore-client"]),
];

/// Packages under `tests/` that must not use these of ours, although tests may use anything.
pub const TEST_PLACES: &[Place] = &[
    // A fake GitHub that shared code with our GitHub side would share its mistakes.
    place("github-sim", &[]),
    place("demo-runner", &[]),
];

const fn place(package: &'static str, may_use: &'static [&'static str]) -> Place {
    Place { package, may_use }
}

/// Packages that may not become part of others, by whatever way.
pub struct Fence {
    /// Who is fenced.
    pub packages: &'static [&'static str],
    /// What must stay out.
    pub never: &'static [&'static str],
    /// Why.
    pub because: &'static str,
}

/// What must stay out, even transitively.
pub const FENCES: &[Fence] = &[
    Fence {
        packages: &["scheduler-core", "agent-core"],
        never: &[
            "tokio",
            "tonic",
            "prost",
            "octocrab",
            "bollard",
            "axum",
            "hyper",
            "sqlx",
            "mio",
            "async-io",
            "futures-util",
            "tracing-subscriber",
            "opentelemetry",
            "jiff",
            "chrono",
            "time",
            "getrandom",
            "longshore-proto",
        ],
        because: "a core is pure: no runtime, no network, no clock, no generated code",
    },
    Fence {
        packages: &[
            "longshore-scheduler",
            "scheduler-core",
            "scheduler-github",
            "scheduler-store",
            "scheduler-dashboard",
            "longshore-client",
            "longshore",
            "longshore-mcp",
        ],
        never: &[
            "bollard",
            "agent-core",
            "agent-docker",
            "agent-detect",
            "agent-egress",
            "longshore-agent",
        ],
        because: "only the node agent touches a container engine",
    },
    Fence {
        packages: &[
            "longshore-agent",
            "agent-core",
            "agent-docker",
            "agent-detect",
            "agent-egress",
        ],
        never: &[
            "octocrab",
            "scheduler-core",
            "scheduler-github",
            "scheduler-store",
            "longshore-scheduler",
            "sqlx",
        ],
        because: "no GitHub credential can reach a host, not even by mistake",
    },
    Fence {
        packages: &["agent-egress"],
        never: &["bollard", "tonic", "longshore-proto", "agent-docker"],
        because: "what reads a job's bytes knows neither engine nor scheduler",
    },
    Fence {
        packages: &["longshore-client", "longshore", "longshore-mcp"],
        never: &[
            "scheduler-core",
            "scheduler-github",
            "scheduler-store",
            "longshore-scheduler",
            "agent-core",
            "octocrab",
            "sqlx",
        ],
        because: "every surface is a client of the API: no private door",
    },
    Fence {
        packages: &["github-sim", "demo-runner"],
        never: &["octocrab", "scheduler-github", "scheduler-core", "bollard"],
        because: "the fake GitHub must not share our mistakes",
    },
];

/// A package that only one package of the product may name in its manifest.
pub const SOLE_USERS: &[(&str, &str)] = &[
    ("octocrab", "scheduler-github"),
    ("bollard", "agent-docker"),
    ("sqlx", "scheduler-store"),
];

/// Words that name nothing.
const GRAB_BAGS: &[&str] = &[
    "common", "util", "utils", "helper", "helpers", "manager", "kit", "misc",
];

/// Every rule about packages.
pub fn check(graph: &Graph) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (name, folder) in &graph.members {
        name_is_a_word(name, &mut breaches);
        let in_tests = is_test(folder);
        let place = if in_tests { TEST_PLACES } else { PLACES }
            .iter()
            .find(|p| p.package == name);
        match place {
            Some(place) => stays_in_place(graph, place, &mut breaches),
            None if in_tests => {}
            None => breaches.push(Breach::new(
                name,
                "has no row in tests/architecture/src/rules.rs: add one that says what it may use",
            )),
        }
        if !in_tests {
            uses_no_test(graph, name, &mut breaches);
            leaves_sole_users_alone(graph, name, &mut breaches);
        }
    }
    for fence in FENCES {
        for package in fence.packages {
            for kept_out in fence.never {
                if let Some(way) = graph.path(package, kept_out) {
                    breaches.push(Breach::new(
                        *package,
                        format!(
                            "contains {kept_out} by {}: {}",
                            way.join(" -> "),
                            fence.because
                        ),
                    ));
                }
            }
        }
    }
    breaches.sort();
    breaches.dedup();
    breaches
}

fn is_test(folder: &str) -> bool {
    folder == "tests" || folder.starts_with("tests/")
}

fn stays_in_place(graph: &Graph, place: &Place, breaches: &mut Vec<Breach>) {
    for used in graph.direct(place.package, Use::Built) {
        if graph.members.contains_key(used) && !place.may_use.contains(&used) {
            breaches.push(Breach::new(
                place.package,
                format!("depends on {used}, which its place in the layout does not allow"),
            ));
        }
    }
}

fn uses_no_test(graph: &Graph, name: &str, breaches: &mut Vec<Breach>) {
    for kind in [Use::Built, Use::Dev] {
        for used in graph.direct(name, kind) {
            if graph.members.get(used).is_some_and(|f| is_test(f)) {
                breaches.push(Breach::new(
                    name,
                    format!("depends on {used}: nothing depends on tests, put such a test in tests/contract"),
                ));
            }
        }
    }
}

fn leaves_sole_users_alone(graph: &Graph, name: &str, breaches: &mut Vec<Breach>) {
    for (package, user) in SOLE_USERS {
        if name != *user && graph.direct(name, Use::Built).any(|d| d == *package) {
            breaches.push(Breach::new(
                name,
                format!("names {package}: only {user} may"),
            ));
        }
    }
}

fn name_is_a_word(name: &str, breaches: &mut Vec<Breach>) {
    if let Some(word) = grab_bag(name) {
        breaches.push(Breach::new(
            name,
            format!("`{word}` names nothing: call it after what it does"),
        ));
    }
}

/// The word in `name` that says nothing, if there is one.
pub(crate) fn grab_bag(name: &str) -> Option<&str> {
    name.split(['-', '_', '.'])
        .find(|part| GRAB_BAGS.contains(part))
}
