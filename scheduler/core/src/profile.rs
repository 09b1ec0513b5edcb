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
    wanted.extend(pool.required_properties.iter().cloned());
    if pool.network_mode == "allowlist" {
        wanted.insert(EGRESS_ALLOWLIST.to_owned());
    }
    wanted.retain(|property| !published.contains(property));
    wanted
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
}
