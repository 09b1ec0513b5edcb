//! The filter of system calls that every sandbox gets, whatever the engine's own is.
//!
//! A complete list of what is allowed: an engine's own changes with its release (one
//! lets io_uring and sockets to the hypervisor through, another user namespaces), and
//! nothing can be taken away from it over its API. Names are in `seccomp/calls.json`
//! with the reason for each group, those that are refused too; what is allowed with
//! some arguments only is here. A name that an engine's library does not know yet is
//! left out by it, and so is refused.

use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::sandbox::Profile;

const CALLS: &str = include_str!("seccomp/calls.json");

/// `CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`.
const NAMESPACE_FLAGS: u64 = 0x7E02_0000;
/// Makes the C library fall back to `clone`, whose flags a filter can see.
const ENOSYS: u32 = 38;

const UNIX: u64 = 1;
const INET: u64 = 2;
const INET6: u64 = 10;
const NETLINK: u64 = 16;
/// Route, socket diagnosis, audit (`sudo` asks for it), device events.
const NETLINK_KINDS: [u64; 4] = [0, 4, 9, 15];

/// Linux, 32-bit Linux, either saying it is 2.6, either without random addresses, and
/// the question which one it is.
const PERSONALITIES: [u64; 7] = [0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0x4_0008, 0xFFFF_FFFF];

#[derive(Deserialize)]
struct Calls {
    allowed: Vec<Group>,
    #[cfg(test)]
    refused: Vec<Group>,
    #[cfg(test)]
    bounded: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[cfg(test)]
    why: String,
    names: Vec<String>,
}

/// The filter of a profile's sandboxes, as JSON that Docker and Podman read.
pub fn filter(profile: Profile) -> &'static str {
    static FILTERS: [OnceLock<String>; 2] = [OnceLock::new(), OnceLock::new()];
    let socketcall = profile.terms().old_socket_call;
    FILTERS[usize::from(socketcall)].get_or_init(|| text(socketcall))
}

fn text(socketcall: bool) -> String {
    // Read by a test of this file; were it not to parse, nothing would be allowed at all.
    let calls: Calls = serde_json::from_str(CALLS).unwrap_or(Calls {
        allowed: vec![],
        #[cfg(test)]
        refused: vec![],
        #[cfg(test)]
        bounded: vec![],
    });
    let mut names: Vec<String> = calls.allowed.into_iter().flat_map(|g| g.names).collect();
    names.sort();
    let mut rules = vec![
        allow(&names, &[]),
        json!({
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }],
        }),
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
        allow(&["socketpair"], &[(0, UNIX)]),
        // Said either way: else libseccomp lets through by it what a rule lets through
        // by the call that it stands for, with any argument.
        match socketcall {
            true => allow(&["socketcall"], &[]),
            false => {
                json!({ "names": ["socketcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS })
            }
        },
    ];
    rules.extend([UNIX, INET, INET6].map(|family| allow(&["socket"], &[(0, family)])));
    rules.extend(NETLINK_KINDS.map(|kind| allow(&["socket"], &[(0, NETLINK), (2, kind)])));
    rules.extend(PERSONALITIES.map(|kind| allow(&["personality"], &[(0, kind)])));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        // 32-bit programs too, but not x32, which has numbers of its own and no users.
        "archMap": [
            { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] },
            { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"] },
            { "architecture": "SCMP_ARCH_ARM", "subArchitectures": [] },
        ],
        "syscalls": rules,
    })
    .to_string()
}

/// Lets these through when each of the arguments is just that.
fn allow(names: &[impl AsRef<str>], arguments: &[(u32, u64)]) -> Value {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let arguments: Vec<Value> = arguments
        .iter()
        .map(|(index, value)| {
            json!({ "index": index, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ" })
        })
        .collect();
    json!({ "names": names, "action": "SCMP_ACT_ALLOW", "args": arguments })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rules(profile: Profile) -> Vec<Value> {
        let filter: Value = serde_json::from_str(filter(profile)).unwrap();
        assert_eq!(filter["defaultAction"], "SCMP_ACT_ERRNO");
        filter["syscalls"].as_array().unwrap().clone()
    }

    /// Arguments under which a call is let through; none where it never is.
    fn let_through(profile: Profile, name: &str) -> Vec<Value> {
        rules(profile)
            .iter()
            .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
            .filter(|rule| rule["names"].as_array().unwrap().contains(&json!(name)))
            .map(|rule| rule["args"].clone())
            .collect()
    }

    #[test]
    fn every_call_is_in_one_list_with_a_reason() {
        let calls: Calls = serde_json::from_str(CALLS).unwrap();
        let mut seen = BTreeSet::new();
        for group in calls
            .allowed
            .iter()
            .chain(&calls.refused)
            .chain(&calls.bounded)
        {
            assert!(group.why.len() > 10, "{:?}", group.names);
            for name in &group.names {
                assert!(seen.insert(name.clone()), "{name} is in two lists");
            }
        }
        assert!(seen.len() > 460, "{}", seen.len());
    }

    #[test]
    fn what_is_refused_is_in_no_rule_that_allows() {
        let calls: Calls = serde_json::from_str(CALLS).unwrap();
        for profile in Profile::ALL {
            for name in calls.refused.iter().flat_map(|group| &group.names) {
                assert_eq!(let_through(profile, name), Vec::<Value>::new(), "{name}");
            }
        }
    }

    #[test]
    fn sockets_lead_to_networks_and_never_to_the_hypervisor() {
        const VSOCK: u64 = 40;
        for profile in Profile::ALL {
            let families: BTreeSet<u64> = let_through(profile, "socket")
                .iter()
                .map(|arguments| {
                    assert_eq!(arguments[0]["op"], "SCMP_CMP_EQ");
                    assert_eq!(arguments[0]["index"], 0);
                    arguments[0]["value"].as_u64().unwrap()
                })
                .collect();
            assert_eq!(families, BTreeSet::from([UNIX, INET, INET6, NETLINK]));
            assert!(!families.contains(&VSOCK));
            let other_way = let_through(profile, "socketcall");
            assert_eq!(other_way.is_empty(), profile == Profile::Strict);
        }
    }

    #[test]
    fn a_new_process_gets_no_new_namespace() {
        let arguments = let_through(Profile::Strict, "clone");
        assert_eq!(arguments.len(), 1);
        assert_eq!(arguments[0][0]["value"], NAMESPACE_FLAGS);
        assert_eq!(arguments[0][0]["op"], "SCMP_CMP_MASKED_EQ");
        let clone3: Vec<Value> = rules(Profile::Strict)
            .into_iter()
            .filter(|rule| rule["names"] == json!(["clone3"]))
            .collect();
        assert_eq!(clone3[0]["errnoRet"], ENOSYS);
    }
}
