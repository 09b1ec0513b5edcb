//! Which sandbox properties this node guarantees, by row of the isolation table.

use std::borrow::Cow;

use agent_core::probe::{self, Check, Found};
use serde::Serialize;

use crate::capability::Engine;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Guaranteed,
    NotGuaranteed,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Property {
    pub name: Cow<'static, str>,
    pub state: State,
    pub evidence: String,
}

/// What the engine's own words allow to promise. Rows set by the sandbox
/// itself are guaranteed by any engine that passed `recover`.
pub fn of_engine(engine: &Engine) -> Vec<Property> {
    let has = |word: &str| {
        engine
            .security_options
            .iter()
            .any(|option| option.contains(word))
    };
    let mut list = Vec::new();
    let mut add = |name: &'static str, good: bool, evidence: String| {
        let state = if good {
            State::Guaranteed
        } else {
            State::NotGuaranteed
        };
        list.push(Property {
            name: Cow::Borrowed(name),
            state,
            evidence,
        });
    };
    let gaps = agent_core::dialect::gaps(&engine.kind, engine.cgroup_version);
    let fixed = "set on every sandbox of this agent";
    for name in [
        "non_root",
        "no_capabilities",
        "no_escalation",
        "read_only_rootfs",
        "tmpfs",
        "process_limit",
        "no_host_mounts",
        "no_engine_socket",
        "masked_proc",
        "read_only_proc_sys",
        "own_namespaces",
        "own_cgroup_namespace",
        "out_of_memory_told",
        "no_devices",
        "no_peers",
        "log_cap",
        "complete_removal",
        "init_process",
    ] {
        match gaps.iter().find(|gap| gap.property == name) {
            Some(gap) => add(name, false, gap.reason.into()),
            None => add(name, true, fixed.into()),
        }
    }
    let options = engine.security_options.join(", ");
    add(
        "seccomp",
        has("seccomp") && engine.seccomp_gap.is_empty(),
        match engine.seccomp_gap.as_str() {
            "" => "the own list of allowed calls, whatever the engine's default is".into(),
            gap => format!("security options: {options}; {gap}"),
        },
    );
    add(
        "apparmor",
        has("apparmor"),
        format!("security options: {options}"),
    );
    add(
        "selinux",
        has("selinux"),
        format!("security options: {options}"),
    );
    add(
        "user_namespace",
        has("userns") || engine.rootless,
        format!("security options: {options}"),
    );
    let cgroup = format!(
        "cgroup v{}, driver {}",
        engine.cgroup_version, engine.cgroup_driver
    );
    let limited = engine.cgroup_version > 0 && engine.cgroup_driver != "none";
    for name in ["memory_limit", "no_swap", "cpu_limit"] {
        add(name, limited, cgroup.clone());
    }
    add(
        "disk_quota",
        engine.work_quota,
        match engine.work_quota {
            true => "a work folder is a file system of its own size, made and attached at start; \
                       changed files of an image with a writable root are watched"
                .into(),
            false => format!(
                "job files are watched and have no hard limit: {}",
                engine.work_quota_gap
            ),
        },
    );
    add(
        "live_restore",
        engine.live_restore,
        format!(
            "live-restore is {}",
            if engine.live_restore { "on" } else { "off" }
        ),
    );
    let fresh = dns_leak_fixed(&engine.kind, &engine.version);
    add(
        "no_dns_leak",
        fresh,
        format!(
            "{} {} (CVE-2024-29018 is fixed in 23.0.11, 25.0.5 and 26.0.0)",
            engine.kind, engine.version
        ),
    );
    list
}

/// What a look at a sandbox from inside came to.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// It has not ended yet, or never ran on this engine.
    Awaited,
    /// It could not be done; says why.
    Impossible(&'a str),
    Seen {
        checks: &'a [Check],
        /// When, for people.
        at: &'a str,
    },
}

/// Told by the engine, and not to be seen from inside.
const NOT_SEEN: [&str; 2] = ["disk_quota", "egress_allowlist"];

/// Puts what was seen over what was set: nothing that a probe can see is
/// guaranteed before one has seen it.
pub fn proven(mut list: Vec<Property>, proof: Proof<'_>) -> Vec<Property> {
    let seen = match proof {
        Proof::Seen { checks, .. } => probe::by_property(checks),
        _ => Vec::new(),
    };
    for (_, name) in probe::PROPERTIES {
        if NOT_SEEN.contains(&name) {
            continue;
        }
        let known = list.iter().position(|property| property.name == name);
        // What the engine cannot give has a better reason than a probe's.
        let gap = known
            .map(|at| &list[at])
            .filter(|property| property.state != State::Guaranteed)
            .map(|property| property.evidence.clone());
        let check = seen.iter().find(|check| check.name == name);
        let (state, evidence) = match (proof, check) {
            (Proof::Awaited, _) => (
                State::NotGuaranteed,
                gap.unwrap_or_else(|| "not probed yet; the probe runs at the agent's start".into()),
            ),
            (Proof::Impossible(why), _) => (
                State::NotGuaranteed,
                gap.unwrap_or_else(|| format!("the probe could not run: {why}")),
            ),
            (Proof::Seen { at, .. }, None) => (
                State::NotGuaranteed,
                format!("the probe at {at} did not tell"),
            ),
            (Proof::Seen { at, .. }, Some(check)) => {
                let told = format!("probe at {at}: {}", check.detail);
                match check.found {
                    Found::Pass => (State::Guaranteed, told),
                    Found::Fail => (State::Failed, told),
                    Found::NotGuaranteed => (State::NotGuaranteed, gap.unwrap_or(told)),
                }
            }
        };
        let property = Property {
            name: Cow::Borrowed(name),
            state,
            evidence,
        };
        match known {
            Some(at) => list[at] = property,
            None => list.push(property),
        }
    }
    list
}

/// CVE-2024-29018: internal networks could leak names through a loopback resolver.
fn dns_leak_fixed(kind: &str, version: &str) -> bool {
    if kind != "docker" {
        return true;
    }
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (
        numbers.next().unwrap_or(0),
        numbers.next().unwrap_or(0),
        numbers.next().unwrap_or(0),
    );
    version >= (26, 0, 0)
        || (version.0 == 25 && version >= (25, 0, 5))
        || (version.0 == 23 && version >= (23, 0, 11))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian12() -> Engine {
        Engine {
            kind: "docker".into(),
            version: "20.10.24+dfsg1".into(),
            cgroup_version: 1,
            cgroup_driver: "cgroupfs".into(),
            storage_driver: "overlay2".into(),
            backing_filesystem: "extfs".into(),
            security_options: vec!["name=seccomp,profile=default".into()],
            ..Engine::default()
        }
    }

    fn state(engine: &Engine, name: &str) -> State {
        of_engine(engine)
            .into_iter()
            .find(|p| p.name == name)
            .unwrap()
            .state
    }

    #[test]
    fn an_old_engine_without_apparmor_says_so() {
        let engine = debian12();
        for (name, expected) in [
            ("seccomp", State::Guaranteed),
            ("memory_limit", State::Guaranteed),
            ("apparmor", State::NotGuaranteed),
            ("user_namespace", State::NotGuaranteed),
            ("disk_quota", State::NotGuaranteed),
            ("live_restore", State::NotGuaranteed),
            ("no_dns_leak", State::NotGuaranteed),
        ] {
            assert_eq!(state(&engine, name), expected, "{name}");
        }
    }

    fn after(engine: &Engine, output: &str) -> Vec<Property> {
        let checks = probe::parse(output);
        let at = "2026-11-21T20:00:00Z";
        proven(
            of_engine(engine),
            Proof::Seen {
                checks: &checks,
                at,
            },
        )
    }

    fn named<'a>(list: &'a [Property], name: &str) -> &'a Property {
        list.iter().find(|p| p.name == name).unwrap()
    }

    #[test]
    fn nothing_is_guaranteed_before_it_was_seen() {
        for proof in [Proof::Awaited, Proof::Impossible("no slot is left")] {
            let list = proven(of_engine(&debian12()), proof);
            for (_, name) in probe::PROPERTIES {
                let guaranteed = list
                    .iter()
                    .any(|p| p.name == name && p.state == State::Guaranteed);
                assert!(!guaranteed, "{name}");
            }
            // What no probe sees stays as the engine says it.
            assert_eq!(named(&list, "no_dns_leak").state, State::NotGuaranteed);
        }
        let impossible = proven(of_engine(&debian12()), Proof::Impossible("no slot is left"));
        assert!(
            named(&impossible, "non_root")
                .evidence
                .contains("no slot is left")
        );
    }

    #[test]
    fn what_was_seen_decides() {
        let list = after(
            &debian12(),
            "PASS 1 non_root user 1001\nPASS 2 no_capabilities x\nFAIL 2 no_capabilities CapEff=1\nNOT_GUARANTEED 8 memory_limit unseen\nNOT_GUARANTEED 20 user_namespace users are the host's\nPASS 22 no_host_services silence\n",
        );
        for (name, state, evidence) in [
            (
                "non_root",
                State::Guaranteed,
                "probe at 2026-11-21T20:00:00Z: user 1001",
            ),
            (
                "no_capabilities",
                State::Failed,
                "probe at 2026-11-21T20:00:00Z: CapEff=1",
            ),
            (
                "memory_limit",
                State::NotGuaranteed,
                "probe at 2026-11-21T20:00:00Z: unseen",
            ),
            (
                "no_host_services",
                State::Guaranteed,
                "probe at 2026-11-21T20:00:00Z: silence",
            ),
            (
                "seccomp",
                State::NotGuaranteed,
                "the probe at 2026-11-21T20:00:00Z did not tell",
            ),
        ] {
            let told = named(&list, name);
            assert_eq!(
                (told.state, told.evidence.as_str()),
                (state, evidence),
                "{name}"
            );
        }
        // The engine's own reason is the better one.
        assert!(
            named(&list, "user_namespace")
                .evidence
                .starts_with("security options")
        );
    }

    #[test]
    fn an_engine_that_filters_nothing_has_no_seccomp() {
        let mut engine = debian12();
        engine.security_options = vec!["name=cgroupns".into()];
        engine.seccomp_gap = "no filter".into();
        assert_eq!(state(&engine, "seccomp"), State::NotGuaranteed);
        // Its own default does not matter: sandboxes do not get it.
        let mut engine = debian12();
        engine.security_options = vec!["name=seccomp,profile=unconfined".into()];
        assert_eq!(state(&engine, "seccomp"), State::Guaranteed);
    }

    #[test]
    fn fixed_engine_versions() {
        for (version, fixed) in [
            ("20.10.24", false),
            ("23.0.10", false),
            ("23.0.11", true),
            ("24.0.9", false),
            ("25.0.5", true),
            ("28.2.2", true),
        ] {
            assert_eq!(dns_leak_fixed("docker", version), fixed, "{version}");
        }
    }

    #[test]
    fn podmans_limits_are_told() {
        let engine = Engine {
            kind: "podman".into(),
            seccomp_gap: "no filter to tighten".into(),
            ..debian12()
        };
        for (name, expected) in [
            ("own_cgroup_namespace", State::NotGuaranteed),
            ("out_of_memory_told", State::NotGuaranteed),
            ("seccomp", State::NotGuaranteed),
            ("masked_proc", State::Guaranteed),
            ("no_peers", State::Guaranteed),
            ("log_cap", State::Guaranteed),
        ] {
            assert_eq!(state(&engine, name), expected, "{name}");
        }
        assert_eq!(
            state(&debian12(), "own_cgroup_namespace"),
            State::Guaranteed
        );
        let told = of_engine(&engine);
        let seccomp = told.iter().find(|p| p.name == "seccomp").unwrap();
        assert!(seccomp.evidence.contains("no filter to tighten"));
    }
}
