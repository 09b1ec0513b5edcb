//! The image of the demo's runners: the stand-in for GitHub's runner program, built on this host without a registry.

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::parts::Wishes;

/// Script that builds it.
const SCRIPT: &str = "tests/demo-runner/image/build";

/// Builds the image, or finds it as it was built before, and gives its name.
pub async fn build(wishes: &Wishes) -> Result<String> {
    let output = Command::new(SCRIPT)
        .arg("--runner")
        .arg(&wishes.runner_program)
        .output()
        .await
        .with_context(|| format!("run {SCRIPT} from the root of the checkout"))?;
    if !output.status.success() {
        bail!(
            "{SCRIPT}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let name = String::from_utf8_lossy(&output.stdout)
        .lines()
        .last()
        .unwrap_or_default()
        .trim()
        .to_owned();
    if name.is_empty() {
        bail!("{SCRIPT} named no image");
    }
    Ok(name)
}
