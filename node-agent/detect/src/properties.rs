//! Which sandbox properties this node guarantees, by row of the isolation table.

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
    pub name: &'static str,
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
    let mut add = |name, good: bool, evidence: String| {
        let state = if good {
            State::Guaranteed
        } else {
            State::NotGuaranteed
        };
        list.push(Property {
            name,
            state,
            evidence,
        });
    };
    let gaps = agent_core::dialect::gaps(&engine.kind, engine.cgroup_version);
    let fixed = "set on every sandbox of this agent; the probe (probe/strict.sh) run as a job reads it back";
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
        has("seccomp") && !has("profile=unconfined") && engine.seccomp_gap.is_empty(),
        match engine.seccomp_gap.as_str() {
            "" => format!("security options: {options}"),
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
    let quota = engine.storage_driver == "overlay2" && engine.backing_filesystem == "xfs";
    add(
        "disk_quota",
        quota,
        format!("{} on {}", engine.storage_driver, engine.backing_filesystem),
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

    #[test]
    fn unconfined_seccomp_is_not_seccomp() {
        let mut engine = debian12();
        engine.security_options = vec!["name=seccomp,profile=unconfined".into()];
        assert_eq!(state(&engine, "seccomp"), State::NotGuaranteed);
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
