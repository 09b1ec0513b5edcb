//! The image of the demo's runners: a static busybox and the stand-in for GitHub's runner program, in the layout of GitHub's image.
//!
//! Built on this host, without a registry. Its name carries a hash of what is in it, so that it is built once and two checkouts do not overwrite each other's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bollard::{Docker, body_full, query_parameters::CreateImageOptions};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::process::Command;

/// User and group of the runner program, as in GitHub's image.
const RUNNER: u64 = 1001;
/// Folder of the runner program, as in GitHub's image.
const HOME: &str = "home/runner";
/// Name without tag.
const NAME: &str = "longshore-demo-runner";

/// Builds the image, or finds it as it was built before, and gives its name.
pub async fn build(engine: &Docker, runner_program: &Path) -> Result<String> {
    let busybox = static_busybox().await?;
    let applets = Command::new(&busybox)
        .arg("--list")
        .output()
        .await
        .context("list what busybox offers")?;
    let applets = String::from_utf8_lossy(&applets.stdout).into_owned();
    let layer = layer(
        &std::fs::read(&busybox).with_context(|| format!("read {}", busybox.display()))?,
        applets.lines().map(str::trim).filter(|a| !a.is_empty()),
        &std::fs::read(runner_program).with_context(|| {
            format!(
                "read the stand-in runner {}: build it with tests/run, or see deploy/demo",
                runner_program.display()
            )
        })?,
    )?;
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &layer);
    let tag = hex::encode(&hash.as_ref()[..8]);
    let name = format!("{NAME}:{tag}");
    if engine.inspect_image(&name).await.is_ok() {
        return Ok(name);
    }
    let options = CreateImageOptions {
        from_src: Some("-".into()),
        repo: Some(NAME.into()),
        tag: Some(tag),
        platform: platform().into(),
        changes: vec![
            "ENV PATH=/bin:/usr/bin HOME=/home/runner".into(),
            "WORKDIR /home/runner".into(),
            "USER 1001:1001".into(),
        ],
        ..CreateImageOptions::default()
    };
    let mut progress =
        engine.create_image(Some(options), Some(body_full(Bytes::from(layer))), None);
    while let Some(step) = progress.next().await {
        step.with_context(|| format!("import {name}"))?;
    }
    engine
        .inspect_image(&name)
        .await
        .with_context(|| format!("{name} is not there after its import"))?;
    Ok(name)
}

fn platform() -> &'static str {
    if std::env::consts::ARCH == "aarch64" {
        "linux/arm64"
    } else {
        "linux/amd64"
    }
}

/// Debian's busybox-static: the dynamic one cannot run alone in an image.
async fn static_busybox() -> Result<PathBuf> {
    for place in ["/bin/busybox", "/usr/bin/busybox"] {
        let path = PathBuf::from(place);
        if !path.exists() {
            continue;
        }
        let linked = Command::new("ldd").arg(&path).output().await;
        // ldd fails on a static program.
        if linked.is_ok_and(|o| !o.status.success()) {
            return Ok(path);
        }
    }
    bail!("no static busybox: install the package busybox-static, or run deploy/prepare-host")
}

/// The only layer, the same bytes for the same input.
fn layer<'a>(
    busybox: &[u8],
    applets: impl Iterator<Item = &'a str>,
    runner: &[u8],
) -> Result<Vec<u8>> {
    let mut tar = Layer(tar::Builder::new(Vec::new()));
    for folder in ["bin", "usr", "usr/bin", "etc", "home", "proc", "sys", "dev"] {
        tar.folder(folder, 0o755, 0)?;
    }
    tar.folder("tmp", 0o1777, 0)?;
    tar.file("bin/busybox", 0o755, 0, busybox)?;
    for applet in applets.filter(|a| *a != "busybox") {
        tar.link(&format!("bin/{applet}"), "busybox")?;
    }
    tar.file(
        "etc/passwd",
        0o644,
        0,
        b"root:x:0:0:root:/:/bin/sh\nrunner:x:1001:1001::/home/runner:/bin/sh\n",
    )?;
    tar.file("etc/group", 0o644, 0, b"root:x:0:\nrunner:x:1001:\n")?;
    tar.folder(HOME, 0o755, RUNNER)?;
    tar.folder(&format!("{HOME}/bin"), 0o755, RUNNER)?;
    tar.folder(&format!("{HOME}/externals"), 0o755, RUNNER)?;
    for program in ["Runner.Listener", "Runner.Worker"] {
        tar.file(&format!("{HOME}/bin/{program}"), 0o755, RUNNER, runner)?;
    }
    tar.0.into_inner().context("end the layer")
}

struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn header(kind: tar::EntryType, mode: u32, owner: u64, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(0);
        header.set_size(size);
        header
    }

    fn folder(&mut self, path: &str, mode: u32, owner: u64) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Directory, mode, owner, 0);
        Ok(self
            .0
            .append_data(&mut header, format!("{path}/"), std::io::empty())?)
    }

    fn file(&mut self, path: &str, mode: u32, owner: u64, bytes: &[u8]) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Regular, mode, owner, bytes.len() as u64);
        Ok(self.0.append_data(&mut header, path, bytes)?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0, 0);
        Ok(self.0.append_link(&mut header, path, target)?)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    #[test]
    fn the_layer_has_the_layout_of_githubs_image_and_is_the_same_every_time() {
        let make = || layer(b"box", ["sh", "busybox", "tar"].into_iter(), b"run").unwrap();
        assert_eq!(make(), make());
        let bytes = make();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(
                path,
                (
                    entry.header().uid().unwrap(),
                    entry.header().mode().unwrap(),
                    text,
                ),
            );
        }
        assert_eq!(
            files["home/runner/bin/Runner.Listener"],
            (1001, 0o755, "run".into())
        );
        assert_eq!(
            files["home/runner/bin/Runner.Worker"],
            (1001, 0o755, "run".into())
        );
        assert!(files.contains_key("bin/sh") && files.contains_key("home/runner/externals/"));
        assert_eq!(files["tmp/"].1, 0o1777);
    }
}
