//! The image of the demo's runners, built on this host without a registry.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// Script that builds it, from the root of the checkout.
const SCRIPT: &str = "tests/demo-runner/image/build";

/// Builds the image, or finds it as it was built before, and gives its name. `runner_program` is the static stand-in for GitHub's runner.
pub async fn build(runner_program: &Path) -> Result<String> {
    build_in(Path::new("."), runner_program).await
}

/// The same from elsewhere: `root` is the root of the checkout.
pub async fn build_in(root: &Path, runner_program: &Path) -> Result<String> {
    // A job of the demo runs it, so that it is in the image of its jobs.
    let folder = tempfile::tempdir().context("a folder for the probe")?;
    let probe = folder.path().join("longshore-probe");
    std::fs::write(&probe, agent_probe::PROGRAM).context("write the probe")?;
    let output = Command::new(root.join(SCRIPT))
        .arg("--probe")
        .arg(&probe)
        .env("DEMO_RUNNER_BIN", runner_program)
        .output()
        .await
        .with_context(|| format!("run {SCRIPT} from the root of the checkout"))?;
    if !output.status.success() {
        bail!(
            "{SCRIPT}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    name_in(&String::from_utf8_lossy(&output.stdout))
}

/// The script's last line is the image's name.
fn name_in(output: &str) -> Result<String> {
    let name = output.lines().last().unwrap_or_default().trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        bail!("{SCRIPT} named no image: {name}");
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_in_the_last_line() {
        assert_eq!(name_in("building\na:1\n").unwrap(), "a:1");
        assert!(name_in("").is_err());
        assert!(name_in("no image\n").is_err());
    }
}
