//! The lists of system calls against the headers of the machine under test, which the pure core
//! may not read itself.

use std::collections::BTreeSet;

const CALLS: &str = include_str!("../src/seccomp/calls.json");

/// Every call that the headers know was thought about.
#[test]
fn no_call_of_the_kernels_headers_is_forgotten() {
    let calls: serde_json::Value = serde_json::from_str(CALLS).unwrap();
    let known: BTreeSet<&str> = ["allowed", "refused", "bounded"]
        .iter()
        .flat_map(|list| calls[list].as_array().unwrap())
        .flat_map(|group| group["names"].as_array().unwrap())
        .map(|name| name.as_str().unwrap())
        .collect();
    let folder = format!("/usr/include/{}-linux-gnu/asm", std::env::consts::ARCH);
    let mut looked_at = 0;
    for file in ["unistd_64.h", "unistd_32.h", "unistd.h"] {
        // A 64-bit ARM has one of them, an x86 machine all.
        let text = std::fs::read_to_string(format!("{folder}/{file}")).unwrap_or_default();
        for name in text
            .lines()
            .filter_map(|line| line.strip_prefix("#define __NR_"))
            .filter_map(|rest| rest.split_whitespace().next())
        {
            assert!(known.contains(name), "{name} of {file} is in no list");
            looked_at += 1;
        }
    }
    assert!(
        looked_at > 300 || std::env::consts::ARCH != "x86_64",
        "no headers in {folder}: apt-get install linux-libc-dev"
    );
}
