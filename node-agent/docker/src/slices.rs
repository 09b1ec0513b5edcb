//! Slices of systemd: the parent groups of sandboxes where the engine leaves its control groups
//! to systemd.
//!
//! systemd takes a container's scope away with the container, and keeps the slice around it, as
//! a group and as a unit of its own, until somebody lets it go.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// systemd answers when they are gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// Names in one call.
const AT_ONCE: usize = 64;
const PROGRAM: &str = "systemctl";

/// Whether systemd keeps this parent group.
pub(crate) fn is_slice(parent: &str) -> bool {
    parent.ends_with(".slice")
}

/// The slice around all of one agent's.
pub(crate) fn around(instance: &str) -> String {
    format!("longshore-{instance}.slice")
}

/// Lets these go, with all that is still in them. What is no agent's slice is left out.
pub(crate) async fn stop(parents: &[String]) -> Result<(), String> {
    let mut problem = Ok(());
    for names in calls(parents) {
        problem = problem.and(call(&names).await);
    }
    problem
}

fn calls(parents: &[String]) -> Vec<Vec<&str>> {
    let ours = |name: &&str| is_slice(name) && name.starts_with("longshore-");
    let names: Vec<&str> = parents.iter().map(String::as_str).filter(ours).collect();
    names.chunks(AT_ONCE).map(<[&str]>::to_vec).collect()
}

async fn call(names: &[&str]) -> Result<(), String> {
    let mut command = Command::new(PROGRAM);
    command
        .args(["stop", "--quiet", "--"])
        .args(names)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("{PROGRAM}: {error}")),
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Err(format!("{PROGRAM} did not end within {seconds} s"));
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let first = words.lines().next().unwrap_or("failed").trim();
    Err(format!("{PROGRAM} stop: {first}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slices_of_agents_are_let_go_and_not_too_many_at_once() {
        let none = ["", "longshore.slice", "system.slice", "/longshore-0a/x"].map(String::from);
        assert!(calls(&none).is_empty());
        let many: Vec<String> = (0..AT_ONCE + 1)
            .map(|n| format!("longshore-0a-{n}.slice"))
            .collect();
        let calls = calls(&many);
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[1], ["longshore-0a-64.slice"]);
        assert_eq!(calls.concat(), many);
    }
}
