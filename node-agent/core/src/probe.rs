//! What the probe program says about a sandbox, read, and how it is put into one.

use crate::sandbox::{RUNNER_ROOT, Sandbox};

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    Pass,
    /// Neither proven nor broken: this sandbox does not claim it, or nobody can see it from inside.
    NotGuaranteed,
    Fail,
}

/// One check, or all checks of one property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub found: Found,
    /// Row of the isolation table in `docs/security.md`.
    pub row: u32,
    pub name: &'static str,
    pub detail: String,
}

/// A probe that ran in a real slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    pub checks: Vec<Check>,
    /// Reference of the job image it ran in; empty for the agent's own.
    pub image: String,
    pub took_ms: u64,
}

impl Probed {
    /// Names of the properties that are claimed and do not hold.
    pub fn failed(&self) -> Vec<&'static str> {
        by_property(&self.checks)
            .into_iter()
            .filter(|check| check.found == Found::Fail)
            .map(|check| check.name)
            .collect()
    }
}

/// Every property that the probe looks at, by its row.
pub const PROPERTIES: [(u32, &str); 38] = [
    (1, "non_root"),
    (2, "no_capabilities"),
    (3, "no_escalation"),
    (4, "seccomp"),
    (4, "no_raw_sockets"),
    (4, "no_vsock"),
    (4, "no_rare_sockets"),
    (4, "no_io_uring"),
    (4, "no_kernel_keyring"),
    (5, "read_only_rootfs"),
    (6, "tmpfs"),
    (7, "process_limit"),
    (8, "memory_limit"),
    (9, "no_swap"),
    (10, "tmpfs_in_memory"),
    (11, "cpu_limit"),
    (12, "ulimits"),
    (13, "no_host_mounts"),
    (14, "no_engine_socket"),
    (15, "masked_proc"),
    (16, "read_only_proc_sys"),
    (17, "own_namespaces"),
    (18, "own_cgroup_namespace"),
    (19, "no_devices"),
    (20, "user_namespace"),
    (21, "no_peers"),
    (22, "no_host_services"),
    (23, "no_metadata"),
    (23, "no_private_networks"),
    (24, "named_resolvers"),
    (25, "egress_allowlist"),
    (26, "no_ipv6"),
    (27, "log_cap"),
    (28, "disk_quota"),
    (29, "complete_removal"),
    (30, "init_process"),
    (31, "runtime_class"),
    (32, "apparmor"),
];

/// Longest output that is read, in lines.
const MOST_LINES: usize = 512;

/// Name of the program in the hand-over, and of the file with its arguments.
pub const PROGRAM: &str = "longshore-probe";
pub const ARGUMENTS: &str = ".probe";

/// Waits for the program on standard input like a runner for its registration,
/// and becomes it.
const ENTRY: &str = r#"umask 077
cd /home/runner && tar -x -f - 2>/dev/null || exit 71
chmod 0700 longshore-probe || exit 72
exec ./longshore-probe </dev/null
"#;

/// Reads the program's output. Lines that are no check are left out.
pub fn parse(output: &str) -> Vec<Check> {
    output.lines().take(MOST_LINES).filter_map(check).collect()
}

fn check(line: &str) -> Option<Check> {
    let mut words = line.trim().splitn(4, ' ');
    let found = match words.next()? {
        "PASS" => Found::Pass,
        "NOT_GUARANTEED" => Found::NotGuaranteed,
        "FAIL" => Found::Fail,
        _ => return None,
    };
    let row: u32 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let (row, name) = PROPERTIES.into_iter().find(|known| *known == (row, name))?;
    Some(Check {
        found,
        row,
        name,
        detail: words.next().unwrap_or_default().to_owned(),
    })
}

/// Checks as the program writes them.
pub fn lines(checks: &[Check]) -> String {
    let line = |check: &Check| {
        let word = match check.found {
            Found::Pass => "PASS",
            Found::NotGuaranteed => "NOT_GUARANTEED",
            Found::Fail => "FAIL",
        };
        format!("{word} {} {} {}\n", check.row, check.name, check.detail)
    };
    checks.iter().map(line).collect()
}

/// One check per property: the worst finding, with what led to it.
pub fn by_property(checks: &[Check]) -> Vec<Check> {
    PROPERTIES
        .into_iter()
        .filter_map(|(row, name)| {
            let of_it = || checks.iter().filter(|check| check.name == name);
            let found = of_it().map(|check| check.found).max()?;
            let details: Vec<&str> = of_it()
                .filter(|check| check.found == found && !check.detail.is_empty())
                .map(|check| check.detail.as_str())
                .collect();
            Some(Check {
                found,
                row,
                name,
                detail: details.join("; "),
            })
        })
        .collect()
}

/// Replaces what the host knows better than the sandbox.
pub fn settle(checks: &mut Vec<Check>, name: &str, good: bool, detail: String) {
    let Some((row, name)) = PROPERTIES.into_iter().find(|(_, known)| *known == name) else {
        return;
    };
    if good {
        checks.retain(|check| check.name != name || check.found == Found::Fail);
    }
    checks.push(Check {
        found: if good { Found::Pass } else { Found::Fail },
        row,
        name,
        detail,
    });
}

/// A job's sandbox with the probe as its command, and nothing else changed. The
/// agent's own image holds the program and nothing else, so that what is mounted
/// from a job's image is left out there.
pub fn instead_of_a_job(mut sandbox: Sandbox, own_image: bool) -> Sandbox {
    if own_image {
        sandbox.entrypoint = vec![format!("/{PROGRAM}")];
        sandbox.cmd = vec!["--stdin".into()];
        let work = format!("{RUNNER_ROOT}/_work");
        sandbox.mounts.retain(|mount| mount.target == work);
    } else {
        sandbox.cmd = vec![ENTRY.into()];
    }
    sandbox
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_known_properties_are_checks() {
        let text = "starting\nPASS 1 non_root user 1001\nFAIL 4 seccomp off\nPASS 2 non_root x\nPASS 4 made_up x\nPASSED all\n";
        let checks = parse(text);
        assert_eq!(checks.len(), 2);
        assert_eq!(checks[1].found, Found::Fail);
        assert_eq!(parse(&lines(&checks)), checks);
        let many = "PASS 1 non_root x\n".repeat(2 * MOST_LINES);
        assert_eq!(parse(&many).len(), MOST_LINES);
    }

    #[test]
    fn the_worst_check_decides_a_property() {
        let checks = parse(
            "PASS 4 seccomp filter\nFAIL 4 seccomp bpf\nNOT_GUARANTEED 27 log_cap outside\nPASS 3 no_escalation a\nPASS 3 no_escalation b\n",
        );
        let told = by_property(&checks);
        let told: Vec<_> = told
            .iter()
            .map(|check| (check.name, check.found, check.detail.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("no_escalation", Found::Pass, "a; b"),
                ("seccomp", Found::Fail, "bpf"),
                ("log_cap", Found::NotGuaranteed, "outside"),
            ]
        );
    }

    #[test]
    fn the_hosts_word_replaces_doubt_but_not_a_failure() {
        let mut checks =
            parse("NOT_GUARANTEED 27 log_cap outside\nFAIL 29 complete_removal marks\n");
        settle(&mut checks, "log_cap", true, "inspected".into());
        settle(&mut checks, "complete_removal", true, "gone".into());
        let told = by_property(&checks);
        assert_eq!(told[0].found, Found::Pass);
        assert_eq!(told[1].found, Found::Fail);
        assert_eq!(told[1].detail, "marks");
    }
}
