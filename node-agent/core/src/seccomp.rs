//! Tightens an engine's seccomp filter to what Docker's default refuses.
//!
//! Podman's own filter lets an unprivileged process make a user namespace, and
//! inside it mount and configure the kernel as its root. No sandbox needs that.
//! The rest of the filter stays the engine's: it knows its kernel's calls.

use serde_json::{Value, json};
use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum SeccompError {
    #[error("not a seccomp profile in JSON")]
    Form,
    #[error("its default is {0:?}, not a refusal: names left out of it would be allowed")]
    AllowsByDefault(String),
}

/// Calls that make or enter namespaces, or change mounts.
const REFUSED: [&str; 18] = [
    "unshare",
    "setns",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "umount",
    "umount2",
    "pivot_root",
    "chroot",
    "keyctl",
    "add_key",
    "request_key",
    "bpf",
];

/// `CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`.
const NAMESPACE_FLAGS: u64 = 0x7E02_0000;
const EPERM: u32 = 1;
/// Makes the C library fall back to `clone`, whose flags a filter can see.
const ENOSYS: u32 = 38;

/// The profile without those calls, for sandboxes without any capability.
pub fn tightened(profile: &str) -> Result<String, SeccompError> {
    let mut profile: Value = serde_json::from_str(profile).map_err(|_| SeccompError::Form)?;
    let default = profile["defaultAction"].as_str().unwrap_or_default();
    if !matches!(
        default,
        "SCMP_ACT_ERRNO" | "SCMP_ACT_KILL" | "SCMP_ACT_KILL_PROCESS"
    ) {
        return Err(SeccompError::AllowsByDefault(default.to_owned()));
    }
    let rules = profile["syscalls"]
        .as_array_mut()
        .ok_or(SeccompError::Form)?;
    for rule in rules.iter_mut() {
        if let Some(names) = rule["names"].as_array_mut() {
            names.retain(|name| {
                name.as_str()
                    .is_some_and(|name| !REFUSED.contains(&name) && !name.starts_with("clone"))
            });
        }
    }
    rules.retain(|rule| {
        rule["names"]
            .as_array()
            .is_some_and(|names| !names.is_empty())
    });
    rules.push(json!({
        "names": ["clone"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }],
    }));
    rules.push(json!({
        "names": ["clone3"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": ENOSYS,
    }));
    rules.push(json!({
        "names": REFUSED,
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": EPERM,
    }));
    Ok(profile.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOSE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
        "syscalls": [
            {"names": ["read", "clone", "clone3", "unshare", "chroot"], "action": "SCMP_ACT_ALLOW", "args": []},
            {"names": ["setns"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}
        ]
    }"#;

    fn allowed(profile: &str) -> Vec<(String, Value)> {
        let profile: Value = serde_json::from_str(profile).unwrap();
        let mut list = Vec::new();
        for rule in profile["syscalls"].as_array().unwrap() {
            if rule["action"] == "SCMP_ACT_ALLOW" {
                for name in rule["names"].as_array().unwrap() {
                    list.push((name.as_str().unwrap().to_owned(), rule["args"].clone()));
                }
            }
        }
        list
    }

    #[test]
    fn namespaces_are_refused_and_the_rest_stays() {
        let tight = tightened(LOOSE).unwrap();
        let names: Vec<String> = allowed(&tight).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["read", "clone"]);
        let (_, arguments) = allowed(&tight).pop().unwrap();
        assert_eq!(arguments[0]["value"], NAMESPACE_FLAGS);
        assert_eq!(arguments[0]["op"], "SCMP_CMP_MASKED_EQ");
        let tight: Value = serde_json::from_str(&tight).unwrap();
        assert_eq!(tight["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(tight["archMap"][0]["architecture"], "SCMP_ARCH_X86_64");
    }

    #[test]
    fn a_filter_that_allows_by_default_is_not_trusted() {
        assert_eq!(tightened("x"), Err(SeccompError::Form));
        assert!(matches!(
            tightened(r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}"#),
            Err(SeccompError::AllowsByDefault(_))
        ));
    }
}
