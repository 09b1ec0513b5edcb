//! What a node has to guarantee before a runner of a sandbox profile is placed there.
//!
//! A node says by itself which profiles it offers ([`offer`]); what each of them
//! stands on is asked for here as well, so that a node whose probe found a
//! property broken is refused whatever it offers.

use std::collections::BTreeSet;

use crate::model::Pool;

/// Rows of the isolation table that every sandbox holds, by the names that nodes
/// publish. User namespaces, egress allow-lists, disk quotas, AppArmor and the
/// engine's age are published too, and asked for only where a pool does.
const EVERY: [&str; 23] = [
    "cpu_limit",
    "complete_removal",
    "init_process",
    "log_cap",
    "masked_proc",
    "memory_limit",
    "no_capabilities",
    "no_devices",
    "no_engine_socket",
    "no_escalation",
    "no_host_mounts",
    "no_host_services",
    "no_metadata",
    "no_peers",
    "no_private_networks",
    "no_swap",
    "non_root",
    "own_cgroup_namespace",
    "own_namespaces",
    "process_limit",
    "read_only_proc_sys",
    "seccomp",
    "tmpfs",
];

/// What `strict` has beyond that.
const STRICT: [&str; 1] = ["read_only_rootfs"];

/// What network mode `allowlist` stands on: a slot that forwards nothing, and a proxy.
pub(crate) const EGRESS_ALLOWLIST: &str = "egress_allowlist";

const OFFER: &str = "profile_";

/// Classes of runtimes that a pool may ask for.
pub const RUNTIMES: [&str; 5] = ["runc", "crun", "runsc", "kata", "sysbox"];

/// Name of the property by which a node offers a runtime: a sandbox was made by it.
const RUNTIME: &str = "runtime_";
/// Name of the property that says which runtime the node's own properties are of.
const OWN_RUNTIME: &str = "own_runtime_";

/// Rows that gVisor has no files for, or answers in its own way: a kernel of its own is
/// between the job and the host instead. `docs/security.md` explains each.
const NOT_TOLD_BY_RUNSC: [&str; 7] = [
    "cpu_limit",
    "memory_limit",
    "no_devices",
    "no_swap",
    "process_limit",
    "read_only_rootfs",
    "tmpfs",
];

/// Name of the property by which a node offers a profile.
pub fn offer(profile: &str) -> String {
    format!("{OFFER}{profile}")
}

/// The profile that a property offers.
pub fn offered(property: &str) -> Option<&str> {
    property.strip_prefix(OFFER)
}

/// The profiles there are.
pub const PROFILES: [&str; 3] = ["strict", "standard", "containers"];

/// Everything that a profile asks of a node.
pub fn required(profile: &str) -> BTreeSet<String> {
    let own: &[&str] = if profile == "strict" { &STRICT } else { &[] };
    EVERY
        .iter()
        .chain(own)
        .map(|name| (*name).to_owned())
        .chain([offer(profile)])
        .collect()
}

/// What a node publishes that serves every profile.
pub fn of_a_full_node() -> BTreeSet<String> {
    PROFILES.into_iter().flat_map(required).collect()
}

/// What a pool asks of a node, by its profile and by itself, that is not there.
pub(crate) fn missing(pool: &Pool, published: &BTreeSet<String>) -> BTreeSet<String> {
    let mut wanted = required(&pool.profile);
    if pool.runtime == "runsc" {
        wanted.retain(|property| !NOT_TOLD_BY_RUNSC.contains(&property.as_str()));
    }
    wanted.extend(pool.required_properties.iter().cloned());
    if pool.network_mode == "allowlist" {
        wanted.insert(EGRESS_ALLOWLIST.to_owned());
    }
    if !pool.runtime.is_empty() {
        return missing_under(&pool.runtime, wanted, published);
    }
    wanted.retain(|property| !published.contains(property));
    wanted
}

/// The runtime that a property offers.
pub fn runtime_offered(property: &str) -> Option<&str> {
    property.strip_prefix(RUNTIME)
}

/// What a property is called that holds under a runtime which is not the engine's own.
pub fn under(runtime: &str, property: &str) -> String {
    format!("{runtime}/{property}")
}

/// Runtime and name of a property that [`under`] named.
pub fn told_under(property: &str) -> Option<(&str, &str)> {
    property.split_once('/')
}

/// What is not there where a runtime is asked for: what the node publishes of its
/// sandboxes counts as it was seen under that one.
fn missing_under(
    runtime: &str,
    wanted: BTreeSet<String>,
    published: &BTreeSet<String>,
) -> BTreeSet<String> {
    let has = |property: &str| published.contains(property);
    let offer = format!("{RUNTIME}{runtime}");
    if !has(&offer) {
        return BTreeSet::from([offer]);
    }
    let is_own = has(&format!("{OWN_RUNTIME}{runtime}"));
    wanted
        .into_iter()
        .filter_map(|property| {
            let name = match is_own || offered(&property).is_some() {
                true => property,
                false => under(runtime, &property),
            };
            (!has(&name)).then_some(name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_asks_most_and_each_asks_to_be_offered() {
        let strict = required("strict");
        for profile in PROFILES {
            let asked = required(profile);
            assert!(asked.contains(&offer(profile)), "{profile}");
            let own = strict.iter().filter(|name| offered(name).is_none());
            let lacks: Vec<_> = own.filter(|name| !asked.contains(*name)).collect();
            let expected: &[&str] = if profile == "strict" {
                &[]
            } else {
                &["read_only_rootfs"]
            };
            assert_eq!(lacks, expected, "{profile}");
        }
    }

    #[test]
    fn a_pool_with_a_runtime_needs_it_and_its_own_rows() {
        let defaults = crate::input::Defaults::default();
        let asks = |runtime: &str| Pool {
            runtime: runtime.to_owned(),
            ..defaults.pool("p")
        };
        let of = |names: &[&str]| -> BTreeSet<String> {
            let own = names.iter().map(|name| (*name).to_owned());
            of_a_full_node().into_iter().chain(own).collect()
        };
        let lacks = |pool: &Pool, published: &BTreeSet<String>| -> Vec<String> {
            missing(pool, published).into_iter().collect()
        };
        let bare = of(&[]);
        assert_eq!(lacks(&asks(""), &bare), Vec::<String>::new());
        assert_eq!(lacks(&asks("runsc"), &bare), ["runtime_runsc"]);
        // The node's own runtime: its rows are the plain ones.
        let own = of(&["runtime_runc", "own_runtime_runc"]);
        assert_eq!(lacks(&asks("runc"), &own), Vec::<String>::new());
        // Another one: what holds under it, and of gVisor not what it cannot tell.
        let mut under_it: Vec<String> = required("strict")
            .into_iter()
            .filter(|name| offered(name).is_none())
            .filter(|name| !NOT_TOLD_BY_RUNSC.contains(&name.as_str()))
            .map(|name| under("runsc", &name))
            .collect();
        under_it.push("runtime_runsc".to_owned());
        let all: Vec<&str> = under_it.iter().map(String::as_str).collect();
        assert_eq!(lacks(&asks("runsc"), &of(&all)), Vec::<String>::new());
        let crun: Vec<String> = all
            .iter()
            .map(|name| name.replace("runsc", "crun"))
            .collect();
        let crun: Vec<&str> = crun.iter().map(String::as_str).collect();
        assert_eq!(
            lacks(&asks("crun"), &of(&crun)),
            NOT_TOLD_BY_RUNSC.map(|name| under("crun", name))
        );
        // Asked for by the pool itself: nothing is taken from another runtime's rows.
        let mut wants = asks("runsc");
        wants.required_properties.insert("memory_limit".to_owned());
        assert_eq!(lacks(&wants, &of(&all)), ["runsc/memory_limit"]);
    }
}
